"""What a run records, as tests of run directories and reports need it."""

from typing import Any

from ncfmkit.assessment import Architectures, AssessedSet, Assessment
from ncfmkit.comparison import ComparedOn
from ncfmkit.run_records import Accuracy, Curve, DataInfo, MetricsRow, RunInfo, Score


def score(
    name: str,
    mean: float,
    *,
    n: int = 5,
    images: int = 10,
    network: str = "convnet-2 width 64",
    bytes_per_class: float | None = None,
    balanced: float | None = None,
) -> Score:
    """A row of ten classes, whose accuracies differ."""
    return Score(
        set=name,
        label=f"{name}, 1 image per class",
        images=images,
        decoded=4 * images,
        bytes_per_class=bytes_per_class,
        network=network,
        epochs=300,
        steps=1200,
        n=n,
        last=Accuracy(mean=mean, std=0.00449, values=(mean,) * n),
        best=Accuracy(mean=mean + 0.01, std=0.002, values=(mean + 0.01,) * n),
        evaluations=3,
        seconds=12.0,
        classes=tuple(mean * (1 - k / 50) for k in range(10)),
        balanced=None if balanced is None else Accuracy(mean=balanced, std=0.0123, values=(balanced,) * n),
        curve=Curve(epochs=(100, 200, 300), mean=(mean / 2, mean / 1.5, mean), std=(0.01, 0.005, 0.00449)),
    )


def run_info(**changes: Any) -> RunInfo:
    """Of a run that has begun."""
    data = DataInfo(
        name="digits",
        classes=tuple(str(i) for i in range(10)),
        train=1347,
        test=450,
        counts={"train": (134,) * 9 + (141,), "test": (45,) * 10},
        size=8,
        channels=1,
        fingerprint="sha256:abc123",
    )
    started = RunInfo(
        ncfmkit="0.1.0",
        arguments={"data": "digits"},
        baselines=(),
        data=data,
        settings={"recipe": "digits", "distill": {"ipc": 1}},
        seed=0,
        device="cpu (AMD EPYC, 4 threads)",
        precision="bf16",
        compile=True,
        status="started",
    )
    return RunInfo(**dict(started) | changes)


def metrics(steps: int, *, calibration: bool = True) -> list[MetricsRow]:
    """Losses that fall; the learning rate changes once."""
    return [
        MetricsRow(
            step=i + 1,
            matching=300.0 / (i + 1),
            calibration=2.0 if calibration else None,
            lr=1e-3 if i < 5 else 5e-4,
            seconds=0.1 * i,
        )
        for i in range(steps)
    ]


def assessment(manifest_sha256: str = "0" * 64) -> Assessment:
    """Of a set that was assessed with two networks."""
    kinds = {"distilled": 0.66, "mosaic": 0.46, "random": 0.3, "whole": 0.8}
    rows = [score(kind, mean, network="convnet-3 width 8") for kind, mean in kinds.items()]
    rows += [score(kind, mean / 2, network="vgg11") for kind, mean in kinds.items()]
    return Assessment(
        set=AssessedSet(
            name="ten",
            path="/some/where/ten",
            manifest_sha256=manifest_sha256,
            per_class=10,
            bytes_per_class=30_720.0,
            soft_labels=False,
        ),
        data=ComparedOn(name="cifar10", fingerprint="f", test=10_000, classes=("a", "b")),
        recipe={},
        device="cpu (EPYC)",
        precision="fp32",
        versions={},
        seconds={"architectures": 61.0},
        architectures=Architectures(rows=tuple(rows)),
    )
