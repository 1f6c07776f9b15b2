"""A set as the replay buffer of Avalanche (`pip install avalanche-lib`): ten digits arrive two at a time.

One network learns the digits as they come. Beside them it is shown what a buffer holds of those that came before:
nothing, ten random images, or the ten images of the set, which is distilled from all digits at once.
"""

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ExemplarsBuffer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

import ncfmkit


class SetBuffer(ExemplarsBuffer):
    """What a set holds of all classes that have been seen."""

    def __init__(self, small: ncfmkit.SyntheticSet):
        dataset = small.as_dataset()
        super().__init__(max_size=len(dataset))
        # a benchmark of one step makes it a dataset of Avalanche
        self.whole = nc_benchmark(dataset, dataset, n_experiences=1, task_labels=False).train_stream[0].dataset
        self.labels, self.seen = dataset.targets.tolist(), set()

    def post_adapt(self, agent_state, exp) -> None:
        self.seen |= set(exp.classes_in_this_experience)
        self.buffer = self.whole.subset([n for n, label in enumerate(self.labels) if label in self.seen])

    def resize(self, strategy, new_size) -> None:
        raise ValueError(f"a set has a fixed size: {self.max_size} images")


def normalized(images: np.ndarray, labels: np.ndarray, small: ncfmkit.SyntheticSet) -> TensorDataset:
    """Real images as the set's dataset gives its own."""
    mean, std = small.manifest.mean[0], small.manifest.std[0]
    return TensorDataset((torch.from_numpy(images)[:, None] / 255 - mean) / std, torch.from_numpy(labels))


def final_accuracy(small: ncfmkit.SyntheticSet, train, test, buffer: ExemplarsBuffer | None) -> float:
    """Test accuracy on all digits after the last have come."""
    torch.manual_seed(0)
    real = normalized(*train, small), normalized(*test, small)
    stream = nc_benchmark(*real, n_experiences=5, task_labels=False, seed=0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    )
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=32,
        train_epochs=10,
        plugins=[] if buffer is None else [ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy.eval(stream.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


digits = load_digits()
images = np.round(digits.images * (255 / 16)).astype(np.uint8)
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=450, stratify=digits.target, random_state=0
)
train, test = (x_train, y_train), (x_test, y_test)
small = ncfmkit.distill({"train": train, "test": test}, recipe="digits", ipc=1, repeats=0).set
for name, buffer in {
    "no replay": None,
    f"replay of {len(small.labels)} random images": ClassBalancedBuffer(max_size=len(small.labels)),
    "replay of the set": SetBuffer(small),
}.items():
    print(f"{name}: {100 * final_accuracy(small, train, test, buffer):.1f}% of the test images after the last digits")
