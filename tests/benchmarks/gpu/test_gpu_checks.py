"""The checks for a GPU in miniature on the CPU, their runner, and what packs them: so that they run on the day."""

import json
import math
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkout import ROOT
from ncfmkit.errors import UserError

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("NCFM_CPU", "1")  # read when they are imported
    from benchmarks.gpu import __main__ as runner
    from benchmarks.gpu import checks, common, onnxruntime_archive, pack, plan
    from benchmarks.gpu.checks import CHECKS
    from benchmarks.gpu.plan import Check


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a check of that name in this process, with its folders in `tmp_path`."""
    for module in (common, checks):
        for place in ("OUT", "KEEP"):
            monkeypatch.setattr(module, place, tmp_path, raising=False)

    def run(name: str, **options: Any) -> dict[str, Any]:
        return json.loads(json.dumps(CHECKS[name](**options), default=str))

    return run


def scripted(name: str, script: str, *, needs: str = "") -> Check:
    script = script.replace("{", "{{").replace("}", "}}")  # its places are filled in
    return Check(name=name, part="step", seconds=20, arguments=("-c", script), needs=needs)


def planned(name: str) -> Check:
    return next(c for c in plan.CHECKS if c.name == name)


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Part:
    monkeypatch.setenv("NCFM_CPU", "1")
    return runner.Part("step", 60, out=tmp_path, keep=tmp_path, about={"commit": "abc"})


def stored(part: runner.Part) -> dict[str, Any]:
    return json.loads((part.out / "results-step.json").read_text())["checks"]


def failures(result: object) -> list[str]:
    """What was tried in a check and failed."""
    if isinstance(result, dict):
        return [f"{key}: {v}" for key, value in result.items() for v in failures(value)]
    return [result] if isinstance(result, str) and "Error: " in result else []


def test_a_step_in_miniature(check: Callable, tmp_path: Path) -> None:
    result = check("step", profile=True, half_norms=True, chunk=4)
    assert result["ms"] > 0
    assert result["plan"]["chunk"] == 4
    assert set(result["parts, s"]) > {"real features", "optimizer"}
    assert json.loads((tmp_path / "profile.json").read_text())["host_ms"][0]["calls"] > 0
    assert failures(result) == []


def test_a_resumed_run_in_miniature(check: Callable) -> None:
    result = check("resume")
    assert result["same"]
    assert result["digests"] != check("same_bytes")["digests"]  # of other steps


def test_running_out_of_memory_in_miniature(check: Callable) -> None:
    result = check("out_of_memory")
    assert result["chunk after"] == result["chunk before"] // 2
    assert result["largest difference"] < 1e-5


def test_the_pieces_in_miniature(check: Callable) -> None:
    assert [failures(check(name)) for name in ("rates", "kernels", "store")] == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"norm_pool", "real_side"}))
def test_every_check_in_miniature(check: Callable, name: str) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    assert [line for line in failures(check(name)) if not line.startswith("nvidia-smi")] == []


@pytest.mark.parametrize("name", ["norm_pool", "real_side"])
def test_the_fused_kernel_in_tritons_interpreter(name: str, part: runner.Part) -> None:
    """In a process of its own: the interpreter must be chosen before triton is imported."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: the fused kernel is not run")
    part.run(planned(name), 60)
    result = stored(part)[name]["result"]
    errors = [v for row in (result, *result.values()) if isinstance(row, dict) for k, v in row.items() if "error" in k]
    assert errors
    assert max(errors) < 1e-5


def test_a_check_in_a_process_of_its_own(part: runner.Part) -> None:
    part.run(planned("machine"), 60)
    assert stored(part)["machine"]["result"]["device"].startswith("cpu (")


def test_the_plan_names_what_is_there() -> None:
    names = [c.name for c in plan.CHECKS]
    assert len(set(names)) == len(names)
    assert {c.part for c in plan.CHECKS} == set(plan.PARTS)
    started = {c.arguments[2] for c in plan.CHECKS if c.arguments[:2] == plan.CHECK}
    assert started == set(CHECKS)
    assert all(c.seconds <= plan.PARTS[c.part] for c in plan.CHECKS)
    at_most = f"; {math.ceil(sum(plan.PARTS.values()) / 60)} minutes at most"
    assert at_most in str(runner.__doc__)
    assert at_most in (ROOT / "benchmarks" / "gpu" / "README.md").read_text(encoding="utf-8")


def test_pytests_plugins_can_be_missing() -> None:
    command = [sys.executable, *plan.PYTEST, "-p", "no:timeout", "-p", "no:xdist", "--collect-only"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests collected" in done.stdout


def test_a_check_that_fails_costs_no_other_its_result(part: runner.Part) -> None:
    part.run(scripted("good", "print('noise'); print('{\"a\": 1}'); print('{not JSON')"), 20)
    part.run(scripted("bad", "print('{\"a\": 2}'); raise SystemExit('sorry')"), 20)
    assert stored(part)["good"]["result"] == {"a": 1}
    assert "tail" not in stored(part)["good"]
    bad = stored(part)["bad"]
    assert (bad["code"], bad["result"]) == (1, {"a": 2})
    assert "sorry" in bad["tail"]
    part.run(scripted("after", "print('{\"a\": 3}')"), 20)
    assert stored(part)["after"]["code"] == 0
    assert "=== bad: 1" in (part.out / "log-step.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_check_that_hangs_is_ended_with_what_it_started(part: runner.Part, tmp_path: Path) -> None:
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    script = f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); print('{{}}', flush=True)\n"
    part.run(scripted("hangs", script + f"subprocess.run([sys.executable, '-c', {child!r}])"), 5)
    row = stored(part)["hangs"]
    assert row["code"] == "out of time"
    assert row["result"] == {}
    child_state = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    end = time.monotonic() + 20
    while child_state.exists() and child_state.read_text().split()[2] != "Z":
        assert time.monotonic() < end, "what the check started is still running"
        time.sleep(0.05)


def test_what_has_no_time_or_lacks_something_is_skipped(part: runner.Part) -> None:
    part.run(scripted("needy", "", needs="run/scores.json"), 20)
    assert "no run/scores.json" in stored(part)["needy"]["skipped"]
    part.seconds = 4
    part.run(scripted("late", ""), 20)
    assert "are left" in stored(part)["late"]["skipped"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, archive = tmp_path / "some", tmp_path / "packages.tar.xz"
    data.mkdir()
    (data / "train.parquet").write_bytes(b"pixels")
    (tmp_path / "extra.py").write_text("")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "extra.py", "extra.py")
    script = "import extra, json, os; print(json.dumps([os.environ['NCFM_KEEP']]).join(['{\"keep\": ', '}']))"
    monkeypatch.setattr(runner, "CHECKS", (scripted("one", script), scripted("two", "raise SystemExit(3)")))
    out, keep = tmp_path / "out", tmp_path / "keep"
    arguments = ["--parts", "step", "--data", str(data), "--packages", str(archive), "--commit", "abc"]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--out", str(out), "--keep", str(keep)])
    assert runner.main() == 1
    results = json.loads((out / "results-step.json").read_text())
    assert results["about"]["commit"] == "abc"
    assert results["checks"]["one"]["result"] == {"keep": [str(keep)]}
    assert results["checks"]["two"]["code"] == 3
    assert (keep / "data" / "train.parquet").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "all"], "--parts 'all': expected some of step, cifar10, export"),
        (["--only", "speed"], "--only 'speed': expected some of machine, rates"),
        (["--times", "0"], "--times 0.0: expected a number above 0"),
        (["--out", "results"], f"torch {torch.__version__} sees no GPU: NCFM_CPU=1 runs the checks in miniature"),
        (["--data", "."], "expected a folder of CIFAR-10 as .parquet files"),
        (["--packages", "nowhere.tar"], "--packages nowhere.tar cannot be unpacked ([Errno 2]"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "SMALL", "--out" not in arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--keep", str(tmp_path / "keep"), *arguments])
    assert runner.main() == 2
    assert message in capsys.readouterr().err


def tar_of(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:xz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return archive


def test_packages_are_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, keep, archive = tmp_path / "folder", tmp_path / "keep", tmp_path / "packages.tar.xz"
    folder.mkdir()
    keep.mkdir()
    (folder / "a.py").write_text("a")
    (folder / "b.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    whole = tar_of(folder, archive).read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:50_000] + bytes(1000) + whole[51_000:]):
        archive.write_bytes(broken)
        with pytest.raises(UserError, match=r"packages\.tar\.xz cannot be unpacked .*: expected a whole tar archive"):
            runner.unpack(archive, keep)
        assert list(keep.iterdir()) == []
    archive.write_bytes(whole)
    runner.unpack(archive, keep)
    (folder / "a.py").rename(folder / "c.py")
    runner.unpack(tar_of(folder, archive), keep)
    assert [f.name for f in keep.iterdir()] == ["packages"]
    assert sorted(f.name for f in (keep / "packages").iterdir()) == ["b.bin", "c.py"]


def test_packing_shares_out_what_one_upload_cannot_carry(tmp_path: Path) -> None:
    data, packages = tmp_path / "data", tmp_path / "ort.tar.xz"
    data.mkdir()
    packages.write_bytes(bytes(899))
    sizes = {"a": 400, "b": 450, "c": 350, "d": 300}
    for name, size in sizes.items():
        (data / f"{name}.parquet").write_bytes(bytes(size))
    commands = pack.pack(data, packages, tmp_path / "to", room=900, commit="abc")
    carried = {name: sorted(f.name for f in (tmp_path / "to" / name).iterdir()) for name in plan.PARTS}
    assert carried == {
        "step": ["a.parquet", "b.parquet"],
        "cifar10": ["c.parquet", "d.parquet"],
        "export": ["ort.tar.xz"],
    }
    assert f"--data {tmp_path / 'to' / 'step'}" in commands[0]
    assert f"--packages {tmp_path / 'to' / 'export' / 'ort.tar.xz'}" in commands[2]
    (data / "e.parquet").write_bytes(bytes(800))
    with pytest.raises(UserError, match=r"c\.parquet .* fits into no upload"):
        pack.pack(data, packages, tmp_path / "to", room=900, commit="abc")
    packages.write_bytes(bytes(901))
    with pytest.raises(UserError, match=r"ort\.tar\.xz .* fits into no upload: 900 B are left of each"):
        pack.pack(data, packages, tmp_path / "to", room=900, commit="abc")


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs the checkout and git")
def test_the_packers_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.parquet").write_bytes(bytes(400))

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pack", "--data", str(tmp_path), "--to", str(tmp_path / "to"), *options])
        code = pack.main()
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = run()
    assert code == 0
    assert [line.split()[4] for line in said.splitlines() if line.startswith("python")] == list(plan.PARTS)
    assert run("--bytes", "1GiB")[1].count("of 1 GiB with the checkout") == len(plan.PARTS)
    longest = max(plan.PARTS.values()) + pack.START_SECONDS
    for option, value, message in (
        ("--bytes", "1KiB", "--bytes 1KiB: the checkout alone takes"),
        ("--bytes", "much", "--bytes 'much' is not a size"),
        ("--seconds", f"{longest - 1}", f"--seconds {longest - 1}: the longest part takes {longest} s with its start"),
    ):
        code, said = run(option, value)
        assert code == 2
        assert message in said


def library(*boxes: list[tuple[int, int, bytes]]) -> bytes:
    """A 64-bit ELF file whose section .nv_fatbin has containers of entries (kind, architecture, code)."""
    fat = b""
    for box in boxes:
        entries = b"".join(
            struct.pack("<HHIQ12xI32x", kind, 1, 64, len(code), architecture) + code for kind, architecture, code in box
        )
        fat += struct.pack("<IHHQ", onnxruntime_archive.MAGIC, 1, 16, len(entries)) + entries + bytes(8)
    names = b"\0.nv_fatbin\0.shstrtab\0".ljust(32, b"\0")
    at = 64 + len(names)
    rows = [(0, 0, 0), (1, at, len(fat)), (12, 64, len(names))]
    table = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, start, size, 0, 0, 1, 0) for name, start, size in rows)
    header = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", at + len(fat))
    header = header.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 3, 2)
    return header + names + fat + table


def entries_of(data: bytes | bytearray) -> list[list[tuple[int, int, bytes]]]:
    return [
        [(e.kind, e.architecture, bytes(data[e.start + 64 : e.stop])) for e in found]
        for _, found in onnxruntime_archive.containers(data)
    ]


def test_pruning_keeps_what_the_gpu_runs() -> None:
    boxes = [
        [(2, 80, b"a" * 16), (2, 90, b"b" * 24), (1, 90, b"c" * 8)],
        [(2, 80, b"d" * 16), (1, 80, b"e" * 8), (1, 120, b"f" * 8)],
        [(2, 75, b"g" * 16)],
        [(2, 86, b"h" * 8), (2, 90, b"i" * 8), (2, 90, b"j" * 8)],
    ]
    plain = library(*boxes)
    assert entries_of(plain) == boxes
    pruned = bytearray(plain)
    assert onnxruntime_archive.prune(pruned, 90) == 3
    assert len(pruned) == len(plain)
    assert entries_of(pruned) == [[boxes[0][1]], [boxes[1][1]], boxes[2], boxes[3][1:]]
    assert b"a" * 16 not in pruned
    with pytest.raises(UserError, match="no section"):
        onnxruntime_archive.section(plain, ".text")


def test_the_archive_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    wheel, out = tmp_path / "o.whl", tmp_path / "o.tar.xz"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr(
            f"onnxruntime/capi/{onnxruntime_archive.PRUNED}", library([(2, 80, b"a" * 8), (2, 90, b"b" * 8)])
        )
        packed.writestr("onnxruntime/__init__.py", "")
        packed.writestr("onnxruntime/tools/big.py", "")
    monkeypatch.setattr(sys, "argv", ["archive", str(wheel), str(out), "--architecture", "90"])
    assert onnxruntime_archive.main() == 0
    first = out.read_bytes()
    with tarfile.open(out) as tar:
        assert tar.getnames() == ["onnxruntime/__init__.py", f"onnxruntime/capi/{onnxruntime_archive.PRUNED}"]
        assert b"a" * 8 not in tar.extractfile(tar.getnames()[1]).read()  # type: ignore[union-attr]
    assert onnxruntime_archive.main() == 0
    assert out.read_bytes() == first
    out.unlink()
    monkeypatch.setattr(sys, "argv", ["archive", str(wheel), str(out), "--architecture", "70"])
    assert onnxruntime_archive.main() == 2
    assert "no kernels for architecture 70" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [wheel]
