"""Fixtures of all tests: tiny real data in memory, an untrained pool, a plain runtime, a cache of their own.

And a tiny student, which knows that data, with what it exports to.
"""

import os

# One thread a process, unless told otherwise, and in the processes that tests start: tensors of this size gain nothing
# from more, and threads that wait for each other take twenty times as long on a busy machine. torch reads it on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import getpass
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from watch import Watch

from ncfmkit import estimate
from ncfmkit.cli import main
from ncfmkit.config import DistillSettings, NetworkSettings, Settings, StudentSettings, to_dict
from ncfmkit.distillation.pool import Pool
from ncfmkit.images import labeled
from ncfmkit.mosaic import decode_mask
from ncfmkit.networks import network_builder
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import student_file
from ncfmkit.scoring.student_manifest import NetworkRecord, StudentManifest, TrainedOn
from ncfmkit.scoring.students import train_student
from ncfmkit.sets import label_codes, pixels, quantize, set_file
from ncfmkit.sets.manifest import Pixels, Training, with_digests
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.training import fresh_state

# a shell's background job ignores Ctrl-C, which tests send to themselves and to their child processes
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# compiled code is kept between tests and between runs: else every test would compile anew
COMPILED = Path(tempfile.gettempdir()) / f"ncfmkit-tests-compiled-{getpass.getuser()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED))

TINY_NETWORK = NetworkSettings(name="convnet", width=8, depth=2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _short_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates measure one call of each kind: what they say is no test's business but their own."""
    monkeypatch.setattr(estimate, "ENOUGH_SECONDS", 0.0)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in `tmp_path`, and leave the process's signals as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "_debug", False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(device=torch.device("cpu"), precision="fp32", compile=False, why="tests")


def _split(counts: Sequence[int], size: int, channels: int, seed: int) -> Split:
    """Every class has a pattern of its own (drawn by its label alone), each image adds noise to it."""
    parts = []
    for label, count in enumerate(counts):
        pattern = np.random.default_rng([7, label]).uniform(40, 215, (1, channels, size, size))
        noise = np.random.default_rng([seed, label]).normal(0, 30, (count, channels, size, size))
        parts.append(np.clip(pattern + noise, 0, 255).astype(np.uint8))
    return Split(np.concatenate(parts), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def build_real(
    counts: Sequence[int] = (7, 5, 9),
    *,
    test_counts: Sequence[int] | None = (4, 3, 5),
    size: int = 8,
    channels: int = 3,
    seed: int = 0,
) -> RealData:
    """Random, class-dependent images; mean and std are fixed, so that no class's data moves another's."""
    return RealData(
        name="tiny",
        classes=tuple(f"class {c}" for c in range(len(counts))),
        train=_split(counts, size, channels, seed),
        test=None if test_counts is None else _split(test_counts, size, channels, seed + 1000),
        size=size,
        channels=channels,
        mean=(0.5, 0.45, 0.4)[:channels],
        std=(0.25, 0.2, 0.3)[:channels],
        fingerprint=f"tiny-{seed}",
        skipped=0,
    )


@pytest.fixture
def make_real() -> Callable[..., RealData]:
    return build_real


@pytest.fixture
def real() -> RealData:
    return build_real()


@pytest.fixture
def tiny_network() -> NetworkSettings:
    return TINY_NETWORK


def build_pool(
    real: RealData, members: int = 2, network: NetworkSettings = TINY_NETWORK
) -> tuple[Pool, Callable[[], torch.nn.Module]]:
    """An untrained pool (initial and final weights are two draws) and the builder of its network."""
    build = network_builder(network, real)
    initial = [fresh_state(build, 5, "initial", m) for m in range(members)]
    final = [fresh_state(build, 5, "final", m) for m in range(members)]
    return Pool(
        key="tiny",
        stages=[list(ends) for ends in zip(initial, final, strict=True)],
        accuracies=[None] * members,
        seconds=0.0,
    ), build


@pytest.fixture
def make_pool() -> Callable[..., tuple[Pool, Callable[[], torch.nn.Module]]]:
    return build_pool


def build_set(
    kind: Any = "single",
    factor: int = 2,
    budget: int | None = None,
    *,
    classes: Sequence[str] = ("class 0", "class 1", "class 2"),
    ipc: int = 2,
    size: int = 8,
    channels: int = 3,
    soft: bool = False,
    label_bits: int = 16,
    top: int = 0,
    bits: int | None = None,
    scale: quantize.Scale = "image",
    chroma: Literal["4:2:0"] | None = None,
    smooth: bool = False,
    seed: int = 0,
    **changes: Any,
) -> SyntheticSet:
    """Random stored images of `build_real`'s classes; `changes` are keys of its manifest, as plain JSON values.

    The training record is that of the settings, unless it is given. With `bits` and `smooth`, gradients are stored as
    one stream; without, packed.
    """
    rng, count = np.random.default_rng(seed), len(classes) * ipc
    decoded = int(decode_mask(kind, factor, ipc, budget).sum())
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    if smooth:
        images = np.linspace(images // 2, 255 - images // 4, size, axis=3)[..., 0].astype(np.uint8)
    images_NCHW, stored = torch.from_numpy(images), None
    if bits is not None:
        how = Pixels(bits=bits, scale=scale, dither=False, shape=(channels, size, size), chroma=chroma)
        images_NCHW, stored, how = pixels.stored(images_NCHW, how)
        assert (how.coding is not None) == smooth
        changes = {"pixels": how.to_dict()} | changes
    distill = DistillSettings(ipc=ipc, factor=factor, decode=kind, decoded_per_class=budget)
    logits = rng.normal(size=(len(classes) * decoded, len(classes))).astype(np.float16) if soft else None
    content: dict[str, Any] = {
        "kind": "synthetic set",
        "value_range": [0, 255],
        "tool": "ncfmkit tests",
        "name": f"tiny-ipc{ipc}",
        "classes": list(classes),
        "ipc": {"stored": ipc, "decoded": decoded},
        "decode": {"kind": kind, "factor": factor, "budget": budget},
        "mean": [0.5, 0.4, 0.3][:channels],
        "std": [0.2, 0.25, 0.3][:channels],
        "source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": None},
        "settings": to_dict(Settings(network=TINY_NETWORK, distill=distill)),
        "score": None,
    }
    content |= changes
    if "training" not in content:
        content["training"] = Training.of(content["settings"]).to_dict()
    labels = torch.arange(len(classes)).repeat_interleave(ipc)
    tensors = {"labels": labels} | (stored or {"images": images_NCHW})
    if logits is not None:
        tensors["soft_labels"] = torch.from_numpy(logits)
    if logits is not None and label_bits < 16:
        content["labels"] = {"bits": label_bits, "top": top}
        logits = label_codes.rounded(logits, label_bits, top)
        tensors["soft_labels"] = torch.from_numpy(label_codes.encode(logits, label_bits, top))
    return SyntheticSet(
        images=images_NCHW,
        labels=labels,
        manifest=with_digests(content, tensors),
        soft_labels=None if logits is None else torch.from_numpy(logits),
        pixel_tensors=stored,
    )


def write_student(path: Path, real: RealData, network: NetworkSettings = TINY_NETWORK, *, epochs: int = 20) -> Path:
    """A student of that network, trained for a moment on the data's own training split."""
    build = network_builder(network, real)
    runtime = Runtime(device=torch.device("cpu"), precision="fp32", compile=False, why="tests")
    settings = StudentSettings(epochs=epochs, batch=16, evaluations=1)
    data = labeled(real, real.train)
    if epochs:
        state, _ = train_student(data, build, settings, test=None, seed=0, runtime=runtime)
    else:
        state = fresh_state(build, 0)
    manifest = StudentManifest(
        kind="student",
        tool="ncfmkit tests",
        network=NetworkRecord(**to_dict(network)),
        channels=real.channels,
        size=real.size,
        mean=tuple(map(float, real.mean)),
        std=tuple(map(float, real.std)),
        classes=tuple(real.classes),
        test_accuracy=0.75,
        trained_on=TrainedOn(name="tiny-ipc1", sha256={"images": "0" * 64}, manifest_sha256="1" * 64),
        training={"seed": 0},
    )
    student_file.save(state, manifest, path)
    return path


@pytest.fixture(scope="session")
def student_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of `build_real()`'s classes: ConvNet-2 of width 8, 3x8x8 pixels."""
    return write_student(tmp_path_factory.mktemp("student") / "student.safetensors", build_real((40, 40, 40)))


def write_set(path: Path, *, count: int = 12, size: int = 8) -> Path:
    """A set of 3 classes of `build_real`'s own images, as many as it decodes to: int8 can be calibrated with it."""
    small = build_set("single", 1, ipc=count // 3, size=size)
    real = build_real((count // 3,) * 3, size=size)
    set_file.save(dataclasses.replace(small, images=torch.from_numpy(real.train.images)), path)
    return path


@pytest.fixture(scope="session")
def set_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled set that fits the student: 12 images of 3x8x8 pixels."""
    return write_set(tmp_path_factory.mktemp("set") / "set.safetensors")


@pytest.fixture(scope="session")
def exported(student_path: Path, set_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The student as ONNX, each kind made once: `exported(precision, layout, output)`."""
    from exports import traced_once

    from ncfmkit.exporters import export

    folder = tmp_path_factory.mktemp("exported")

    def path_of(precision: str = "fp32", layout: str = "uint8-nchw", output: str = "logits") -> Path:
        path = folder / f"{precision}-{layout}-{output}" / "student.onnx"
        if not path.exists():
            path.parent.mkdir()
            calibration = DataArguments(data=str(set_path)) if precision == "int8" else None
            how: dict[str, Any] = {"precision": precision, "layout": layout, "output": output}
            with traced_once():
                export.export(student_path, out=path, calibration=calibration, **how)
        return path

    return path_of


@pytest.fixture(scope="session")
def onnx_path(exported: Callable[..., Path]) -> Path:
    """The student as ONNX: uint8-nchw in, float32 logits out, with our metadata."""
    return exported()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(tmp_path)
    yield watch
    watch.close()
