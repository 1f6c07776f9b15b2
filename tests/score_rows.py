"""A row of a run's scores, as tests of reports need it."""


def score(name: str, mean: float, *, n: int = 5, images: int = 10, network: str = "convnet-2 width 64") -> dict:
    return {
        "set": name,
        "label": f"{name}, 1 image per class",
        "images": images,
        "decoded": 4 * images,
        "network": network,
        "epochs": 300,
        "steps": 1200,
        "n": n,
        "last": {"mean": mean, "std": 0.00449, "values": [mean] * n},
        "best": {"mean": mean + 0.01, "std": 0.002, "values": [mean + 0.01] * n},
        "evaluations": 20,
        "seconds": 12.0,
    }
