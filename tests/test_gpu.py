"""What only a CUDA device can show: `python -m pytest -m gpu`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings, NetworkSettings, TrainSettings
from ncfmkit.distillation import frequencies, step
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import make_plan
from ncfmkit.distillation.problem import make_problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.images import labeled
from ncfmkit.jobs.distill import distill
from ncfmkit.networks import network_builder
from ncfmkit.progress import Tracker
from ncfmkit.real import arguments
from ncfmkit.recorded import Recorded
from ncfmkit.rng import torch_generator
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, class_hits, fresh_state, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on(device: str, precision: str = "fp32", compile: bool = False) -> Runtime:
    return Runtime(device=torch.device(device), precision=precision, compile=compile, why="tests")


@pytest.fixture
def images_after(make_real, make_pool, monkeypatch: pytest.MonkeyPatch):
    """The images after some steps on a runtime, on the CPU; frequencies are drawn on the CPU for all."""

    def draw(problem, step):
        generator = torch_generator("cpu", problem.seed, "frequencies", step)
        count, dim, device = problem.settings.frequencies, problem.architecture.feature_dim, problem.runtime.device
        if problem.settings.sampler == "learned":
            return tuple(noise.to(device) for noise in frequencies.noise(count, dim, generator))
        return (frequencies.gaussian(count, dim, generator).to(device),)

    monkeypatch.setattr(step, "draw_noise", draw)

    def run(runtime: Runtime, steps: int = 5, **settings) -> torch.Tensor:
        real = make_real((40, 30, 20))
        pool, build = make_pool(real)
        chosen = DistillSettings(ipc=2, frequencies=64, real_batch=16, **settings)
        problem = make_problem(real, chosen, seed=0, pool=pool, builds=[build], runtime=runtime)
        state = make_state(problem, initialize("mix", real, ipc=2, factor=2, seed=0))
        plan = make_plan(problem, state, budget=None)
        for _ in range(steps):
            distill_step(problem, state, plan)
        return state.images.detach().cpu()

    return run


@pytest.fixture
def plain_and_replayed(monkeypatch: pytest.MonkeyPatch):
    """What a function gives where nothing is recorded, and where all but the first calls are replays."""

    def both(function: Callable[[], Any]) -> tuple[Any, Any]:
        replays = []
        replay = torch.cuda.CUDAGraph.replay

        def counted(graph: torch.cuda.CUDAGraph) -> None:
            replays.append(graph)
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
        replayed = function()
        assert len(replays) > 2
        monkeypatch.setattr(Recorded, "PLAIN_CALLS", 10**6)
        before = len(replays)
        plain = function()
        assert len(replays) == before
        return plain, replayed

    return both


@pytest.fixture(autouse=True)
def _cudnn_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `choose_runtime` leaves it, which no runtime of `on` has passed: float32 is exact, the bytes are the same."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def test_cuda_equals_cpu(images_after) -> None:
    torch.testing.assert_close(images_after(on("cuda")), images_after(on("cpu")), rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(images_after, precision: str) -> None:
    difference = (images_after(on("cuda", precision)) - images_after(on("cuda"))).abs()
    assert difference.mean() < 2e-3


@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_compiled_is_near(images_after) -> None:
    torch.testing.assert_close(images_after(on("cuda", compile=True)), images_after(on("cuda")), rtol=0, atol=2e-3)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_replayed_steps_are_the_plain_ones(images_after, plain_and_replayed, precision: str, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "schedule": "cosine", "average": 0.9}
    run = lambda: images_after(on("cuda", precision, compile=True), 8, **settings)  # noqa: E731
    assert torch.equal(*plain_and_replayed(run))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("size", [1, 3])
def test_replayed_training_is_the_plain_one(make_real, plain_and_replayed, size: int, optimizer: Any) -> None:
    real = make_real((40, 30, 20))
    build = network_builder(NetworkSettings(width=8, depth=2), real)
    settings = TrainSettings(epochs=4, batch=16, cutmix=0.5, optimizer=optimizer, lr=0.02)

    def run() -> torch.Tensor:
        models = StackedModels(build, size, on("cuda", "bf16", compile=True))
        models.load([fresh_state(build, 0, "student", k) for k in range(size)])
        data, bar = [labeled(real, real.train)] * size, Tracker("tests", 1, None)
        train(models, data, settings, seed=0, keys=list(range(size)), bar=bar)
        return torch.cat([v.flatten() for state in models.states() for v in state.values()])

    assert torch.equal(*plain_and_replayed(run))


def test_steps_go_on_unrecorded_where_a_recording_runs_out_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    total = torch.zeros(3, device="cuda")

    def add(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total.add_(value)
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("on purpose")
        return (total * 2,)

    recorded = Recorded(add, torch.device("cuda"))
    ones = torch.ones(3, device="cuda")
    assert [recorded(ones * k)[0].tolist() for k in range(1, 6)] == [[float(k * (k + 1))] * 3 for k in range(1, 6)]
    assert "steps are not recorded" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bytes_twice(images_after, precision: str) -> None:
    runs = [images_after(on("cuda", precision)) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
@pytest.mark.parametrize("budget", [192 * 2**20, 2**30])
def test_a_step_keeps_to_its_memory_budget(
    make_real, make_pool, budget: int, sampler: Literal["gaussian", "learned"]
) -> None:
    real = make_real((600,) * 10, size=32)
    pool, build = make_pool(real, network=NetworkSettings(width=64))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    chosen = DistillSettings(ipc=10, real_batch=512, sampler=sampler)
    problem = make_problem(real, chosen, seed=0, pool=pool, builds=[build], runtime=on("cuda", "bf16"), budget=budget)
    state = make_state(problem, initialize("mix", real, ipc=10, factor=2, seed=0))
    plan = make_plan(problem, state, budget=budget)
    for _ in range(3):
        distill_step(problem, state, plan)
    assert isinstance(problem.train_images, torch.Tensor) == (real.train.images.nbytes <= budget // 4)
    assert torch.cuda.max_memory_allocated() - before <= budget


def test_training_from_main_memory_is_training_on_the_device(make_real, monkeypatch) -> None:
    real, network = make_real((40, 30, 20)), NetworkSettings(width=8, depth=2)
    build, settings = network_builder(network, real), TrainSettings(epochs=3, batch=16, cutmix=0.5)
    ends = []
    for free in (2**30, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None, free=free: (free, free))
        models = StackedModels(build, 2, on("cuda"))
        models.load([fresh_state(build, 0, "student", k) for k in range(2)])
        train(models, [labeled(real, real.train)] * 2, settings, seed=0, keys=[0, 1], bar=Tracker("tests", 1, None))
        hits_RK = class_hits(models, labeled(real, real.test))
        ends.append([*(v for state in models.states() for v in state.values()), torch.from_numpy(hits_RK)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_main_job_on_digits(tmp_path) -> None:
    settings: dict[str, Any] = {"device": "cuda", "steps": 100, "pool.members": 2, "repeats": 3, "student.epochs": 150}
    distill("digits", out=tmp_path / "run", baselines=["random"], **settings)
    distilled, chance = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    assert distilled["last"]["mean"] > chance["last"]["mean"] + 0.05


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_providers_equal_the_cpu(provider: str, precision: str, student_path: Path, tmp_path: Path) -> None:
    """Skips what is not installed: onnxruntime-gpu, TensorRT."""
    pytest.importorskip("onnxruntime")
    from ncfmkit.exporters import export, parity, sessions

    if lacking := sessions.missing(provider):
        pytest.skip(lacking)
    calibration = None
    if precision == "int8":
        _write_class_folders(tmp_path / "real")
        calibration = arguments.DataArguments(data=str(tmp_path / "real"))
    path = tmp_path / "s.onnx"
    export.export(student_path, out=path, precision=precision, calibration=calibration)
    images = parity.random_images(300, 3, 8)
    expected, session = sessions.open_session(path)(images), sessions.open_session(path, provider)
    scale = np.abs(expected).max()
    assert np.abs(session(images) - expected).max() < {"fp32": 5e-3, "fp16": 2e-2, "int8": 0.1}[precision] * scale
    session.bound(images)()


def _write_class_folders(root: Path) -> None:
    from PIL import Image

    for label in range(3):
        (root / f"class {label}").mkdir(parents=True)
        for i, image in enumerate(np.random.default_rng(label).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)):
            Image.fromarray(image).save(root / f"class {label}" / f"{i}.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_validate_on_cuda(student_path: Path, onnx_path: Path, tmp_path: Path, make_real, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    from ncfmkit.exporters import sessions, validate

    if lacking := sessions.missing("cuda"):
        pytest.skip(lacking)
    monkeypatch.setattr(arguments.DataArguments, "check", lambda self, settings: None)
    monkeypatch.setattr(arguments.DataArguments, "open", lambda self, settings: make_real((40, 40, 40)))
    result = validate.validate(
        onnx_path, data="tiny", out=tmp_path / "v", provider="cuda", against=student_path, batches=(1, 64)
    )
    assert result.failures == ()
    assert result.providers[0].agreement == 1.0
    assert result.speed is not None
    assert [row.name for row in result.speed[0].rows][:2] == ["ONNX Runtime cuda", "torch eager"]
