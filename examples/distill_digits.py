"""Distills the embedded digits into ten images and trains a small classifier of one's own on them."""

import torch

import ncfmkit

small = ncfmkit.distill("digits", ipc=1, repeats=1).set
dataset = small.as_dataset()
loader = torch.utils.data.DataLoader(dataset, batch_size=10, shuffle=True)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
for _ in range(200):
    for images, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
print(f"trained on {len(dataset)} images: {', '.join(dataset.classes)}")
