"""What can be known of CUDA without a GPU: no tensors are mixed across devices, and how often the host waits."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import GPU, Recorder
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

from ncfmkit import networks
from ncfmkit.config import DistillSettings, NetworkSettings, PoolSettings, Settings, StudentSettings, override
from ncfmkit.distillation import loop, memory
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import Plan, make_plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Problem, State, make_problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.errors import UserError
from ncfmkit.images import labeled
from ncfmkit.networks import network_builder
from ncfmkit.progress import track
from ncfmkit.run import read_checkpoint, write_checkpoint
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import SetSize, selected_subset
from ncfmkit.scoring.coreset import SELECTIONS, Extractor
from ncfmkit.scoring.soft_labels import Teachers
from ncfmkit.training import StackedModels, accuracy, fresh_state, train

# How often the host waits for the device; blocking copies to it; copies said not to block, but from pageable memory.
# These are today's, and none may rise. Where one falls, lower it here, so that it stays down.
COUNTS = {
    "step, default": (0, 0, 0),
    "step, learned": (0, 0, 0),
    "step, mean": (0, 0, 0),
    "step, sgd, no calibration": (0, 0, 0),
    "step, bound": (0, 0, 0),
    "step, every augmentation": (0, 0, 0),
    "step, smooth plateau": (0, 0, 0),
    "step, cosine and average": (0, 0, 0),
    "step, stages": (0, 0, 0),
    "step, three bits": (0, 0, 0),
    "step, half the color": (0, 0, 0),
    "step, fp32": (0, 0, 0),
    "step, fp16": (0, 0, 0),
    "step, in pieces": (0, 0, 0),
    "step, recomputed": (0, 0, 0),
    # two epochs: each waits once, for its losses; images that fit are copied once, which blocks
    "training, 1 in bf16": (2, 1, 0),
    "training, 3 in bf16": (2, 1, 0),
    "training, 1 in fp32": (2, 1, 0),
    "training, 3 in fp32": (2, 1, 0),
    "training, 1 in fp16": (2, 1, 0),
    "training, from main memory": (2, 0, 0),
    "testing": (1, 1, 0),
    "testing, from main memory": (1, 0, 0),
}

STEPS: dict[str, dict[str, Any]] = {
    "default": {},
    "learned": {"sampler": "learned"},
    "mean": {"metric": "mean"},
    "sgd, no calibration": {"optimizer": "sgd", "calibration_weight": 0.0},
    "bound": {"decode": "bound", "alpha": 0.3},
    "every augmentation": {"augment": "color_crop_flip_scale_rotate_cutout"},
    "smooth plateau": {"schedule": "smooth-plateau"},
    "cosine and average": {"schedule": "cosine", "warmup": 1, "average": 0.98},
    "stages": {"extractor": "stages", "calibration_stages": 2},
    "three bits": {"bits": 3, "bits_from": 0.0},
    "half the color": {"bits": 2, "chroma": "4:2:0", "bits_from": 0.0},
}


@pytest.fixture(autouse=True)
def _supported() -> None:
    """Skips where there can be no such device, but not with the versions of torch that have been seen to take to it."""
    if why := fake_cuda.unsupported():
        seen = (2, 13) <= tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 15)
        if seen and sys.platform == "linux" and not torch.cuda.is_available():
            pytest.fail(why)
        pytest.skip(why)


@pytest.mark.parametrize(("message", "said"), [("", "AssertionError"), ("guard\nof", "AssertionError guard")])
def test_a_torch_that_does_not_take_to_it_is_told(monkeypatch: pytest.MonkeyPatch, message: str, said: str) -> None:
    def fails() -> None:
        raise AssertionError(message)

    monkeypatch.setattr(fake_cuda, "_guard_of_meta", fails)
    expected = f"torch {torch.__version__} does not take to a fake CUDA device: {said}"
    assert fake_cuda.unsupported.__wrapped__() == expected


def check_counts(name: str, recorder: Recorder) -> None:
    """Compares with `COUNTS`: a rise fails, and so does a fall that is not written down."""
    counters = {"waits": recorder.waits, "blocking copies": recorder.blocking, "pageable copies": recorder.unpinned}
    for stored, (what, counter) in zip(COUNTS[name], counters.items(), strict=True):
        found = counter.total()
        places = "".join(f"\n  {count} x {place}" for place, count in sorted(counter.items()))
        assert found <= stored, f"{what} of {name!r} rose from {stored} to {found}:{places}"
        assert found >= stored, f"{what} of {name!r} fell from {stored} to {found}: lower it in COUNTS"


def on(precision: str) -> Runtime:
    return Runtime(device=GPU, precision=precision, compile=False, why="tests")


Prepare = Callable[..., tuple[Problem, State, Plan]]


@pytest.fixture
def prepare(make_real: Callable, make_pool: Callable) -> Prepare:
    """A problem on the GPU that is not there, its state and its plan; to be called inside `fake_cuda()`."""
    real = make_real((40, 30, 20))
    pool, build = make_pool(real)

    def prepared(
        precision: str, *, budget: int | None = None, checkpointing: bool = False, **settings: Any
    ) -> tuple[Problem, State, Plan]:
        problem = make_problem(
            real,
            DistillSettings(ipc=2, frequencies=64, real_batch=16, **settings),
            seed=0,
            pool=pool,
            builds=[build],
            runtime=on(precision),
            budget=budget,
            gradient_checkpointing=checkpointing,
        )
        state = make_state(problem, initialize("mix", real, ipc=2, factor=2, seed=0))
        return problem, state, make_plan(problem, state, budget=budget)

    return prepared


def counts_of_a_step(prepare: Prepare, precision: str, **how: Any) -> Recorder:
    """Of the second step, for the first one makes what all later ones use."""
    with fake_cuda.fake_cuda() as recorder:
        problem, state, plan = prepare(precision, **how)
        distill_step(problem, state, plan)
        recorder.clear()
        distill_step(problem, state, plan)
    return recorder


@pytest.mark.parametrize("name", STEPS)
def test_a_step(prepare: Prepare, name: str) -> None:
    check_counts(f"step, {name}", counts_of_a_step(prepare, "bf16", **STEPS[name]))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_in_other_precisions(prepare: Prepare, precision: str) -> None:
    check_counts(f"step, {precision}", counts_of_a_step(prepare, precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_in_every_precision(prepare: Prepare, name: str, precision: str) -> None:
    counts_of_a_step(prepare, precision, **STEPS[name])


def test_a_step_in_pieces(prepare: Prepare) -> None:
    check_counts(
        "step, in pieces",
        counts_of_a_step(prepare, "bf16", sampler="learned", budget=memory.WORKSPACE["cuda"] + 400_000),
    )


def test_a_budget_below_the_reserve_names_the_least_that_works(prepare: Prepare) -> None:
    """The reserve of cuBLAS and cuDNN counts, and so does a pool that is on the device."""
    with fake_cuda.fake_cuda():
        with pytest.raises(UserError, match=r"--memory-budget 50 MiB is below .*: at least 65MiB") as caught:
            prepare("bf16", budget=50 << 20)
        problem, state, _ = prepare("bf16", budget=65 << 20)
        weights = [v for side in (problem.pool.initial, problem.pool.final) for m in side for v in m.values()]
        assert {v.device for v in weights} == {GPU}
        without = dataclasses.replace(problem, pool_bytes=0)
        spared = memory._fixed_bytes(problem, state) - memory._fixed_bytes(without, state)
        assert spared == sum(v.nbytes for v in weights) > 0
    assert "one stored image" in str(caught.value)


def test_a_budget_that_a_pool_will_not_fit_is_refused_before_it_is_trained(make_real: Callable) -> None:
    """The rehearsal has an empty pool, and the plan of the run that follows."""
    real = make_real((40, 30, 20))
    changes = {"network.width": 8, "network.depth": 2, "distill.ipc": 2, "distill.frequencies": 64}
    settings = override(Settings(), changes | {"pool.members": 3, "runtime.memory_budget": "80MiB"})
    build = network_builder(settings.network, real)
    weights = [fresh_state(build, 0, "member", m) for m in range(3)]
    images = initialize("mix", real, ipc=2, factor=2, seed=0)
    with fake_cuda.fake_cuda():
        fixed = []
        for pool in (Pool.empty(), dataclasses.replace(Pool.empty(), stages=[[w, w] for w in weights])):
            problem, state, plan = loop.prepare(real, settings, pool, images, on("bf16"))
            fixed.append((memory._fixed_bytes(problem, state), plan))
    assert fixed[0] == fixed[1]
    assert problem.pool_bytes > 0


def test_a_checkpointed_step(prepare: Prepare) -> None:
    # in float32, because recomputation enters torch's own autocast, not ours
    check_counts("step, recomputed", counts_of_a_step(prepare, "fp32", checkpointing=True))


def devices(state: State) -> list[torch.device]:
    return [v.device for v in tree_flatten(state.state_dict())[0] if isinstance(v, torch.Tensor)]


def test_a_resumed_state_is_where_it_was(prepare: Prepare, tmp_path: Path) -> None:
    """What a checkpoint brings from the CPU ends where the step that was saved had it, and costs no more waits."""
    with fake_cuda.fake_cuda():
        problem, state, plan = prepare("bf16", sampler="learned")
        distill_step(problem, state, plan)
        before = devices(state)
        content = tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, state.state_dict())
    write_checkpoint(tmp_path / "step.pt", content)
    stored = read_checkpoint(tmp_path / "step.pt")
    assert stored is not None
    with fake_cuda.fake_cuda() as recorder:
        problem, state, plan = prepare("bf16", sampler="learned")
        state.load_state_dict(stored)
        assert devices(state) == before
        assert set(before) == {GPU}
        distill_step(problem, state, plan)  # the chunks are made
        recorder.clear()
        distill_step(problem, state, plan)
    check_counts("step, learned", recorder)


def check_training(make_real: Callable, size: int, precision: str, where: str = "", free: int = 70 * 2**30) -> None:
    """Counts of two epochs of three batches, and of a test."""
    real = make_real((30, 30, 30))
    build = network_builder(NetworkSettings(width=8, depth=2), real)
    data = [labeled(real, real.train)] * size
    with fake_cuda.fake_cuda(free=free) as recorder, track("", 2) as bar:
        models = StackedModels(build, size, on(precision))
        models.load([fresh_state(build, 0, "s", k) for k in range(size)])
        recorder.clear()
        train(models, data, PoolSettings(epochs=2, batch=32), seed=0, keys=range(size), bar=bar)
        check_counts("training" + (where or f", {size} in {precision}"), recorder)
        recorder.clear()
        assert len(accuracy(models, labeled(real, real.test))) == size
        check_counts("testing" + where, recorder)
        assert {v.device.type for state in models.states() for v in state.values()} == {"cpu"}


@pytest.mark.parametrize(
    ("size", "precision"),
    [(1, "bf16"), (3, "bf16"), (1, "fp16"), *(pytest.param(n, "fp32", marks=pytest.mark.slow) for n in (1, 3))],
)
def test_training(make_real: Callable, size: int, precision: str) -> None:
    check_training(make_real, size, precision)


@pytest.mark.parametrize("size", [1, 3])
def test_training_on_images_that_do_not_fit(make_real: Callable, size: int) -> None:
    check_training(make_real, size, "bf16", ", from main memory", free=0)


@pytest.mark.parametrize(("short", "home"), [(0, "cuda"), (1, "cpu")])
def test_images_that_take_a_quarter_of_the_free_memory_are_moved(make_real: Callable, short: int, home: str) -> None:
    real = make_real((30, 30, 30))
    data = dataclasses.replace(labeled(real, real.train), soft_labels=torch.zeros(90, 3))
    held = 90 * (3 * 8 * 8 + 8 + 3 * 4)  # pixels, labels, soft labels
    with fake_cuda.fake_cuda(free=4 * held - short):
        there = data.on(GPU)
        assert there.home.type == home
        index = torch.arange(5, device=there.home)
        assert there.normalized(index).device == there.targets(index).device == GPU


def test_scores_selections_and_soft_labels(make_real: Callable, make_pool: Callable) -> None:
    real, network = make_real((30, 30, 30)), NetworkSettings(width=8, depth=2)
    pool, build = make_pool(real, network=network)
    settings = StudentSettings(epochs=2, repeats=2, evaluations=1)
    with fake_cuda.fake_cuda():
        extractor = Extractor(network=network, stages=[*pool.stages[0], pool.final[0]])
        chosen = {how: selected_subset(how, real, 3, extractor, on("bf16")) for how in SELECTIONS}
        data = chosen["herding"]
        teachers = Teachers(
            states=[(network, state) for state in pool.final], real=real, temperature=2.0, runtime=on("bf16")
        )
        data = dataclasses.replace(data, soft_labels=teachers.teach(data).logits)
        test = labeled(real, real.test)
        size = SetSize(stored=3, decoded=3, bytes=200)
        about = students.row_work("random", real, Settings(network=network, student=settings), size)
        row = students.score(lambda _: data, test, build, settings, seed=0, runtime=on("bf16"), about=about)
    assert row.n == 2


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[pytest.mark.slow] if "densenet" in name or precision == "fp32" else [])
        for name in networks.NETWORKS
        for precision in ("bf16", "fp32")
    ],
)
def test_every_network(name: str, precision: str) -> None:
    with fake_cuda.fake_cuda() as recorder:
        network = networks.build(name, channels=3, classes=10, size=32).to(GPU)
        x = torch.randn(4, 3, 32, 32, device=GPU, requires_grad=True)
        with on(precision).autocast():
            logits = network(x)
        logits.float().sum().backward()
        assert x.grad is not None
        assert x.grad.device == GPU
    assert not recorder.waits


def test_mixed_devices_are_found(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = memory.cut
    monkeypatch.setattr(memory, "cut", lambda a, b, c, device: plain(a, b, c, torch.device("cpu")))
    with pytest.raises(Exception, match=r"two( different)? devices|expected to be in the same device"):
        counts_of_a_step(prepare, "fp32")


def test_waits_and_copies_are_found() -> None:
    with fake_cuda.fake_cuda() as recorder:
        x = torch.ones(4).to(GPU)
        float(x.sum()), bool(x.any()), x.tolist(), x.cpu(), x[torch.tensor([1])]
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]
        torch.ones(4).pin_memory().to(GPU, non_blocking=True)
        torch.ones(4).to(GPU, non_blocking=True)
    found = {place.split(" @")[0] for place in recorder.waits}
    assert {"scalar read", "copy to the CPU", "index.Tensor by an index on the CPU"} < found
    assert recorder.waits.total() == 6
    assert recorder.blocking.total() == 1
    assert recorder.unpinned.total() == 1


def test_a_count_that_rises_or_falls_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "three reads", (3, 0, 0))
    with fake_cuda.fake_cuda() as recorder:
        x = torch.ones((), device=GPU)
        float(x), float(x)
        with pytest.raises(AssertionError, match="waits of 'three reads' fell from 3 to 2: lower it in COUNTS"):
            check_counts("three reads", recorder)
        float(x)
        check_counts("three reads", recorder)
        float(x)
        with pytest.raises(AssertionError, match=r"waits of 'three reads' rose from 3 to 4:\n +4 x scalar read @ "):
            check_counts("three reads", recorder)


def test_autocast_is_as_torchs() -> None:
    """Where no gradient is needed torch's own autocast can be asked what it does on CUDA."""

    def types(autocast: Any) -> list[torch.dtype]:
        f = torch.nn.functional
        x, w = torch.randn(2, 8, 8, 8, device=GPU), torch.randn(8, 8, 3, 3, device=GPU)
        with autocast:
            y = f.conv2d(x, w)
            n = f.group_norm(y, 8)
            flat = n.flatten(1)
            return [v.dtype for v in (y, n, n.relu(), f.linear(flat, torch.randn(3, 288, device=GPU)), flat @ flat.T)]

    with fake_cuda.fake_cuda(), torch.no_grad():
        ours = types(on("bf16").autocast())
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), torch.no_grad():
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        assert ours == types(torch.autocast("cuda", torch.bfloat16))
