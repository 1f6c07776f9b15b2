"""Timing: turns, warm-up and limits on a clock made by hand; percentiles, ratios; cold start and memory for real."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ncfmkit import runtime
from ncfmkit.errors import UserError
from ncfmkit.exporters import timing
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.preprocessing import Deployed
from ncfmkit.exporters.timing import (
    COMPILED,
    EAGER,
    Job,
    SpeedSection,
    TimingConfig,
    parse_batches,
    race,
    summary,
    time_device,
)

NO_PAUSE: dict[str, Any] = {"block_seconds": 0, "pause": 0}
QUICK = TimingConfig(batches=(1, 2), calls=4, seconds=0, warm_calls=1, warm_seconds=0, block_calls=2, **NO_PAUSE)


class Clock:
    """Time passes only in calls."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *durations: float) -> Callable[[], None]:
        """A call that takes these durations in turn, the last of them from then on."""
        left = list(durations)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_contenders_take_turns_and_the_first_call_of_a_block_is_not_timed() -> None:
    clock = Clock()
    config = TimingConfig(calls=4, seconds=0, limit=1000, warm_calls=2, warm_seconds=0, block_calls=2, **NO_PAUSE)
    # two warm-up calls, then blocks of three: the first call of each is slow, and must not be seen
    calls = {"a": clock.work("a", 9, 9, 50, 1, 2, 60, 3, 4), "b": clock.work("b", 9, 9, 70, 5, 6, 80, 7, 8)}
    seconds, _ = race(calls, config, clock=clock)
    assert "".join(clock.log) == "aabb" + "aaabbb" * 2
    assert seconds["a"].tolist() == [1, 2, 3, 4]
    assert seconds["b"].tolist() == [5, 6, 7, 8]


def test_timing_goes_on_for_its_least_time() -> None:
    clock = Clock()
    config = TimingConfig(calls=2, seconds=3, warm_calls=1, warm_seconds=0, block_calls=2, **NO_PAUSE)
    seconds, _ = race({"a": clock.work("a", 0.125), "b": clock.work("b", 0.375)}, config, clock=clock)
    assert len(seconds["a"]) == len(seconds["b"]) == 24  # until both have 3 s: a needs 24 calls, b would need 8


def test_a_block_has_its_least_time() -> None:
    clock = Clock()
    config = TimingConfig(calls=1, seconds=0, warm_calls=1, warm_seconds=0, block_calls=2, block_seconds=1, pause=0)
    seconds, _ = race({"a": clock.work("a", 0.125), "b": clock.work("b", 2.0)}, config, clock=clock)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 8, "b": 2}


def test_there_is_a_pause_before_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: clock.log.append(str(seconds)))
    race(
        {"a": clock.work("a", 1.0), "b": clock.work("b", 1.0)},
        TimingConfig(calls=1, seconds=0, warm_calls=0, pause=7),
        clock=clock,
    )
    assert clock.log == ["a", "b", "7", *"aaaaaa", "7", *"bbbbbb"]


def test_warm_up_takes_its_calls_and_its_time() -> None:
    for duration, expected in ((1.0, 10), (0.01, 30)):
        clock = Clock()
        timing._warm_up(clock.work("a", duration), TimingConfig(), clock)
        assert expected <= len(clock.log) <= expected + 1  # sums of 0.01 may fall short of 0.3


def test_slow_calls_stop_at_the_limit() -> None:
    clock = Clock()
    seconds, _ = race({"a": clock.work("a", 30.0)}, TimingConfig(limit=20, pause=0), clock=clock)
    assert clock.log == ["a"] * (1 + 1 + 5)  # warm-up, the block's first, the block
    assert seconds["a"].tolist() == [30.0] * 5


def test_percentiles_by_hand() -> None:
    # 101 calls of 1 to 101 ms in a mixed order: the p-th percentile is the (p + 1)-th smallest
    seconds = np.random.default_rng(0).permutation(np.arange(1, 102) / 1000)
    row = summary(seconds, 8, {})
    assert (row.batch, row.calls) == (8, 101)
    assert [row.p50_ms, row.p95_ms, row.p99_ms] == pytest.approx([51, 96, 100])
    assert row.images_per_second == pytest.approx(8 / 0.051)


def test_percentiles_lie_linearly_between_calls() -> None:
    row = summary(np.array([0.010, 0.020]), 1, {})
    assert [row.p50_ms, row.p95_ms, row.p99_ms] == pytest.approx([15, 19.5, 19.9])


@pytest.mark.parametrize(
    ("text", "expected"), [("1,8,64", (1, 8, 64)), ("64, 8", (1, 8, 64)), ("1", (1,)), ("3,3", (1, 3))]
)
def test_batches(text: str, expected: tuple[int, ...]) -> None:
    assert parse_batches(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,-2", "1.5", "1,,2", "70000"])
def test_wrong_batches(text: str) -> None:
    with pytest.raises(UserError, match=r"--batches .*: expected .*1 to 65,536.*1,8,64"):
        parse_batches(text)


def test_effort_times_batch_1_first() -> None:
    with pytest.raises(ValueError, match="rising numbers from 1 on"):
        TimingConfig(batches=(8, 64))


class FakeContract:
    @staticmethod
    def feed(images_NCHW: np.ndarray) -> np.ndarray:
        return LAYOUTS["uint8-nchw"].arrange(images_NCHW)


class FakeRunner:
    """Answers at once, and keeps the batches that it was bound to."""

    def __init__(self, worst: int = 1000) -> None:
        self.contract, self.seconds = FakeContract(), 0.0
        self.placement: dict[str, Any] = {}
        self.bound_to, self.worst = list[np.ndarray](), worst

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        return np.zeros((len(images_NCHW), 3), np.float32)

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        if len(images_NCHW) >= self.worst:
            raise MemoryError("no room\nfor this")
        self.bound_to.append(images_NCHW)
        return lambda: None


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), np.uint8)


@pytest.fixture
def deployed(student_path: Path) -> Deployed:
    from ncfmkit.scoring import student_file

    network, manifest = student_file.load(student_path)
    return Deployed(network, mean=manifest.mean, std=manifest.std)


def timed(runners: dict[str, Any], student: Any, images: np.ndarray, config: TimingConfig = QUICK) -> SpeedSection:
    return time_device("cpu", runners, student, images, config)


def test_without_a_student_only_the_model_is_timed(images: np.ndarray) -> None:
    runner = FakeRunner()
    found = timed(
        {"ONNX Runtime cpu": runner},
        None,
        images,
        TimingConfig(batches=(1, 7), calls=2, seconds=0, warm_seconds=0, **NO_PAUSE),
    )
    (row,) = found.rows
    assert (row.stopped, found.largest_batch) == ("", 7)
    assert [(b.batch, b.times) for b in row.batches] == [(1, {}), (7, {})]
    expected = [images[:1], images[[0, 1, 2, 0, 1, 2, 0]]]  # a batch larger than the data goes round
    for got, want in zip(runner.bound_to, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_rows_and_ratios(monkeypatch: pytest.MonkeyPatch, images: np.ndarray, deployed: Deployed) -> None:
    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "")
    monkeypatch.setattr(runtime.Runtime, "compiled", lambda self, function: function)
    seconds = {"first": [0.001] * 3, "second": [0.004] * 3, EAGER: [0.002, 0.003, 0.010], COMPILED: [0.0015] * 3}
    raced = []

    def fake_race(
        calls: dict[str, Callable[[], Any]], config: TimingConfig
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        for call in calls.values():
            call()
        raced.append(list(calls))
        return {name: np.array(seconds[name]) for name in calls}, {}

    monkeypatch.setattr(timing, "race", fake_race)
    found = timed({"first": FakeRunner(), "second": FakeRunner()}, deployed, images)
    rows = {row.name: row for row in found.rows}
    assert raced == [["first", "second", EAGER, COMPILED]] * 2
    for batch in (0, 1):
        assert rows["first"].batches[batch].times == pytest.approx({EAGER: 3.0, COMPILED: 1.5})
        assert rows["second"].batches[batch].times == pytest.approx({EAGER: 0.75, COMPILED: 0.375})
        assert rows[EAGER].batches[batch].times == rows[COMPILED].batches[batch].times == {}
    assert rows[COMPILED].compile_seconds
    assert rows[EAGER].compile_seconds is None


def test_why_compiled_torch_is_absent(monkeypatch: pytest.MonkeyPatch, images: np.ndarray, deployed: Deployed) -> None:
    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "no C++ compiler found")
    first, eager, compiled = timed({"model": FakeRunner()}, deployed, images).rows
    assert compiled.absent == "no C++ compiler found"
    assert compiled.batches == ()
    assert eager.absent == first.absent == ""
    assert set(first.batches[0].times) == {EAGER}

    def broken(self: Any, function: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("g++ says no\nand more")

        return call

    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "")
    monkeypatch.setattr(runtime.Runtime, "compiled", broken)
    *_, compiled = timed({"model": FakeRunner()}, deployed, images).rows
    assert compiled.absent == "torch.compile failed: RuntimeError: g++ says no"
    assert compiled.compile_seconds is None


@pytest.mark.parametrize("fails", ["bound", "warm", "timed"])
def test_only_what_fails_stops(fails: str, images: np.ndarray) -> None:
    """At a batch of 2 already in memory, in its first call, or in a later one; others go on to the last batch."""

    class Failing(FakeRunner):
        def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
            left = {"bound": 0, "warm": 0, "timed": 3}[fails] if len(images_NCHW) >= 2 else 1000

            def call() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise MemoryError("no room\nfor this")

            if fails == "bound" and len(images_NCHW) >= 2:
                call()
            return call

    config = TimingConfig(
        batches=(1, 2, 4), calls=4, seconds=0, warm_calls=1, warm_seconds=0, block_calls=2, **NO_PAUSE
    )
    before, failing, after = timed(
        {"before": FakeRunner(), "failing": Failing(), "after": FakeRunner()}, None, images, config
    ).rows
    assert failing.stopped == "batch 2: MemoryError: no room"
    assert [b.batch for b in failing.batches] == [1]
    for other in (before, after):
        assert ([b.batch for b in other.batches], other.stopped) == ([1, 2, 4], "")


class Watched(FakeRunner):
    """Keeps an eye on the calls that it was bound to, and says how many are alive, by batch, when it is bound."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.calls, self.alive, self.fails = list[Any](), list[int](), fails

    def living(self) -> int:
        return sum(call() is not None for call in self.calls)

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        self.alive.append(self.living())
        left = {"": 1000, "warm": 0, "timed": 3}[self.fails] if len(images_NCHW) == 2 else 1000

        def call() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise MemoryError("no room")

        self.calls.append(weakref.ref(call))
        return call


def test_calls_of_one_batch_are_gone_when_the_next_is_bound(images: np.ndarray) -> None:
    """What they are bound to would take the memory of the larger batch."""
    first, second = Watched(), Watched()
    timed({"first": first, "second": second}, None, images)
    assert first.alive == second.alive == [0, 0]


@pytest.mark.parametrize("fails", ["warm", "timed"])
def test_a_call_that_failed_is_gone_while_others_go_on(fails: str, images: np.ndarray) -> None:
    failing, living = Watched(fails), list[int]()

    class Other(FakeRunner):
        def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
            return lambda: living.append(failing.living())

    found, _ = timed({"failing": failing, "other": Other()}, None, images).rows
    assert found.stopped == "batch 2: MemoryError: no room"
    assert living[-1] == 0
    if fails == "warm":  # from the first call of the other with that batch on
        assert sorted(living, reverse=True) == living


def test_what_fails_with_one_image_was_not_timed(images: np.ndarray) -> None:
    good, bad = timed({"good": FakeRunner(), "bad": FakeRunner(worst=1)}, None, images).rows
    assert (bad.absent, bad.stopped, bad.batches) == ("MemoryError: no room", "", ())
    assert [b.batch for b in good.batches] == [1, 2]


def test_compiled_torch_stops_where_it_fails(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, deployed: Deployed
) -> None:
    def compiled(self: Any, function: Any) -> Any:
        def call(images_NCHW: torch.Tensor) -> torch.Tensor:
            if len(images_NCHW) > 1:
                raise RuntimeError("too large")
            return function(images_NCHW)

        return call

    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "")
    monkeypatch.setattr(runtime.Runtime, "compiled", compiled)
    _, eager, found = timed({"model": FakeRunner()}, deployed, images).rows
    assert found.stopped == "batch 2: torch.compile failed: RuntimeError: too large"
    assert [b.batch for b in found.batches] == [1]
    assert found.compile_seconds
    assert [b.batch for b in eager.batches] == [1, 2]


def test_images_that_do_not_fit_into_memory_stop_all(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    def batch(images_NCHW: np.ndarray, count: int) -> np.ndarray:
        if count > 1:
            raise MemoryError("no room")
        return images_NCHW[:1]

    monkeypatch.setattr(timing, "_batch", batch)
    for row in timed({"a": FakeRunner(), "b": FakeRunner()}, None, images).rows:
        assert (row.stopped, [b.batch for b in row.batches]) == ("batch 2: MemoryError: no room", [1])


def test_torch_answers_what_the_student_answers(images: np.ndarray, deployed: Deployed) -> None:
    seen = []
    deployed.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    timing._bind_torch(deployed, "cpu", FakeContract.feed)(images)()
    ((fed, scores),) = seen
    assert fed.dtype == torch.uint8
    assert not scores.requires_grad
    np.testing.assert_array_equal(fed.numpy(), images)


def test_the_share_of_other_processes() -> None:
    # 4 CPUs for 10 s: 30 s of work, 20 of them by this process
    assert timing._others_share((100, 50, 5), (140, 80, 25)) == pytest.approx(10 / 40)
    assert timing._others_share((100, 50, 5), (140, 50, 6)) == 0  # own ticks are counted a little later
    assert timing._others_share(None, None) is None
    if Path("/proc/stat").exists():
        total, work, own = timing._cpu_seconds() or (0, 0, 0)
        assert total > work > own > 0


def test_tf32_is_off_and_put_back() -> None:
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [p.allow_tf32 for p in places]
    try:
        for place in places:
            place.allow_tf32 = True
        check_tf32(places)
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def check_tf32(places: Sequence[Any]) -> None:
    with timing.exact_float32("cpu"):
        assert [p.allow_tf32 for p in places] == [True, True]
    with timing.exact_float32("cuda"):
        assert [p.allow_tf32 for p in places] == [False, False]
    assert [p.allow_tf32 for p in places] == [True, True]


def test_footprint_of_a_model(onnx_path: Path) -> None:
    jobs = (Job(path=str(onnx_path), device="cpu", provider="cpu", threads=1, batch=batch) for batch in (2, 20_000))
    small, large = map(timing.footprint, jobs)
    for found in (small, large):
        assert found.failed == ""
        assert found.cold_start_seconds is not None
        assert 0 < found.cold_start_seconds < 10
    pixels = 20_000 * 3 * 8 * 8
    if Path("/proc/self/status").exists():
        # the uint8 images, and at least one float32 copy of them
        assert small.memory_bytes is not None
        assert large.memory_bytes is not None
        assert small.memory_bytes < 5 * pixels < large.memory_bytes


def test_footprint_of_a_student(student_path: Path) -> None:
    job = Job(path=str(student_path), device="cpu", batch=2, threads=1, layout="uint8-nhwc", output="logits")
    found = timing.footprint(job)
    assert found.failed == ""
    assert found.cold_start_seconds is not None
    assert 0 < found.cold_start_seconds < 10


def test_footprint_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(path=str(tmp_path / "none.onnx"), device="cpu", batch=1, threads=1, provider="cpu")
    found = timing.footprint(job)
    assert found.failed.startswith("ncfmkit.errors.UserError: no model at ")
    assert found.cold_start_seconds is found.memory_bytes is None
    monkeypatch.setattr(timing, "FOOTPRINT_SECONDS", 0.001)
    assert "timed out" in timing.footprint(job).failed


def test_an_engine_goes_to_its_own_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from ncfmkit.exporters import tensorrt as tensorrt_engine

    monkeypatch.setattr(tensorrt_engine, "open_engine", lambda path: f"engine {path}")
    assert timing.open_model(Path("a.engine"), "tensorrt", threads=1, declared={}) == "engine a.engine"
    with pytest.raises(UserError, match=r"no model at a\.onnx"):
        timing.open_model(Path("a.onnx"), "cpu", threads=1, declared={})
    assert timing.runner_name(Path("a.engine"), "tensorrt") == "TensorRT engine"
    assert timing.runner_name(Path("a.onnx"), "cuda") == "ONNX Runtime cuda"
