"""What only a CUDA device can show: `python -m pytest -m gpu`. Not yet run on one."""

import json

import pytest
import torch

from ncfmkit import distillation, frequencies, jobs
from ncfmkit.config import DistillSettings
from ncfmkit.distillation import distill_step, make_plan, make_problem, make_state
from ncfmkit.draws import torch_generator
from ncfmkit.extractors import Pool
from ncfmkit.runtime import Runtime
from ncfmkit.synthetic import initialise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on(device: str, precision: str = "fp32", compile: bool = False) -> Runtime:
    return Runtime(device=torch.device(device), precision=precision, compile=compile, why="tests")


@pytest.fixture
def images_after(make_real, make_pool, monkeypatch: pytest.MonkeyPatch):
    """The images after some steps on a runtime, on the CPU; frequencies are drawn on the CPU for all."""

    def draw(problem, state):
        generator = torch_generator("cpu", problem.seed, "frequencies", state.step)
        return frequencies.gaussian(problem.settings.frequencies, problem.feature_dim, generator).to(state.images)

    monkeypatch.setattr(distillation, "_draw_frequencies", draw)

    def run(runtime: Runtime, steps: int = 5, **settings) -> torch.Tensor:
        real = make_real((40, 30, 20))
        pool, build = make_pool(real)
        device = runtime.device
        move = [[{k: v.to(device) for k, v in s.items()} for s in side] for side in (pool.initial, pool.final)]
        pool = Pool(key="", initial=move[0], final=move[1], accuracies=pool.accuracies, seconds=0.0)
        chosen = DistillSettings(ipc=2, frequencies=64, real_batch=16, **settings)
        problem = make_problem(real, chosen, seed=0, pool=pool, build=build, runtime=runtime)
        state = make_state(problem, initialise("mix", real, ipc=2, factor=2, seed=0))
        plan = make_plan(problem, state, budget=None)
        for _ in range(steps):
            distill_step(problem, state, plan)
        return state.images.detach().cpu()

    return run


@pytest.fixture(autouse=True)
def _exact_float32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_cuda_equals_cpu(images_after) -> None:
    torch.testing.assert_close(images_after(on("cuda")), images_after(on("cpu")), rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(images_after, precision: str) -> None:
    difference = (images_after(on("cuda", precision)) - images_after(on("cuda"))).abs()
    assert difference.mean() < 2e-3


def test_compiled_is_near(images_after) -> None:
    torch.testing.assert_close(images_after(on("cuda", compile=True)), images_after(on("cuda")), rtol=0, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bytes_twice(images_after, precision: str) -> None:
    runs = [images_after(on("cuda", precision)) for _ in range(2)]
    assert torch.equal(*runs)


def test_the_main_job_on_digits(tmp_path) -> None:
    settings = {"device": "cuda", "steps": 100, "pool.members": 2, "repeats": 3, "student.epochs": 150}
    jobs.distill("digits", out=tmp_path / "run", baselines=["random"], **settings)
    distilled, chance = json.loads((tmp_path / "run" / "scores.json").read_text())["rows"]
    assert distilled["last"]["mean"] > chance["last"]["mean"] + 0.05
