"""`inspect` and `doctor`: what is said of a run, a set, a student, and of whatever else a path may hold."""

from pathlib import Path

import pytest
import torch
from conftest import build_set
from exports import write_any_student
from recorded import run_info
from safetensors.torch import save_file

from ncfmkit import networks
from ncfmkit.errors import UserError
from ncfmkit.jobs import doctor, setup
from ncfmkit.jobs.distill import to_dict
from ncfmkit.jobs.inspect import inspect
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import PoolInfo, Timings
from ncfmkit.sets import set_file
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.training import fresh_state

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
SCORE = {
    "network": "convnet-2 width 8",
    "epochs": 3,
    "n": 2,
    "last": {"mean": 0.5, "std": 0.01},
    "best": {"mean": 0.6, "std": 0.0},
}


def tiny_set(score: dict | None = SCORE) -> SyntheticSet:
    source = {"name": "tiny", "fingerprint": "0", "train_images": 1234, "license": None}
    return build_set(classes=("cat", "dog [bold]"), ipc=2, channels=1, score=score, source=source, tool="ncfmkit 0")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    set_file.save(tiny_set(), path)
    return path


def test_a_set(small: Path) -> None:
    what = inspect(small)
    assert what.title == f"synthetic set {small}"
    assert what.summary["classes"] == ["cat", "dog [bold]"]
    assert what.summary["images per class"] == "2 stored, 8 decoded"
    assert what.summary["images"] == "uint8 [4, 1, 8, 8]"
    assert what.summary["source"] == "tiny, 1,234 training images"
    assert what.summary["last-epoch accuracy"] == "50.0% ± 1.0% (n = 2) with convnet-2 width 8, 3 epochs"
    assert what.content["manifest_sha256"] == what.summary["sha256 of its manifest"]
    assert what.summary["bytes"] == "images 256 B, labels 32 B"
    assert what.summary["bytes per class"] == "128 B, without the labels"
    assert what.summary["bits per pixel value"] == "8"
    assert what.summary["smaller than its pixels"] == "274 times"  # 1234 * 64 / 288
    assert what.scores == ()
    assert what.images is not None
    assert what.images.images.shape == (4, 1, 8, 8)


def test_a_set_without_a_score(small: Path) -> None:
    set_file.save(tiny_set(score=None), small, force=True)
    assert inspect(small).summary["last-epoch accuracy"] is None


def test_a_student(tmp_path: Path) -> None:
    shape = {"channels": 3, "size": 8, "classes": ["cat", "dog"]}
    settings = {"name": "convnet", "width": 8, "depth": 2}
    state = fresh_state(lambda: networks.build("convnet", channels=3, classes=2, size=8, width=8, depth=2), 0)
    more = {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "test_accuracy": 0.75,
        "trained_on": {"name": "x", "sha256": {}},
        "tool": "t",
    }
    write_any_student(tmp_path / "s.safetensors", state, {"kind": "student", "network": settings, **shape, **more})
    what = inspect(tmp_path / "s.safetensors")
    assert what.title.startswith("student ")
    assert what.summary["input"] == "3 x 8 x 8"
    assert what.summary["test accuracy"] == "75.0%"
    assert what.summary["parameters"] == f"{sum(v.numel() for v in state.values()):,}"
    assert what.content["kind"] == "student"
    assert what.images is None


def test_a_run_that_is_not_finished_and_one_that_is(tmp_path: Path, small: Path) -> None:
    settings = setup.make_settings("digits", None, {})
    run = RunDirectory.create(tmp_path / "run", run_info(status="distilling", settings=to_dict(settings)))
    what = inspect(run.path)
    assert what.title == f"run {run.path}"
    assert what.summary["status"] == "distilling"
    assert what.summary["recipe"] == "digits"
    assert what.summary["distilled in"] is None
    assert what.images is None
    assert "manifest" not in what.content
    (run.path / set_file.FILE_NAME).write_bytes(small.read_bytes())
    pool, timings = PoolInfo(key="abc", accuracies=(), seconds=0), Timings(distill_seconds=1.5, steps=3)
    run.update(status="done", timings=timings, pool=pool)
    what = inspect(run.path)
    assert what.summary["distilled in"] == "1.5 s"
    assert what.summary["pool"] == "abc"
    assert what.summary["set"] == "tiny-ipc2"
    assert what.content["manifest"]["name"] == "tiny-ipc2"
    assert what.images is not None


def test_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file or directory: .*nowhere'"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a run directory: .*run\.json"):
        inspect(tmp_path)
    others = {"notes.txt": b"hello", "empty": b"", "x.pt": b"PK\x03\x04" * 30, "x.json": b'{"a": 1}', "x.png": PNG}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            UserError, match=f"{name} is not a run directory, a synthetic set, a package, a student or an"
        ):
            inspect(tmp_path / name)
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"without .*'ncfmkit' manifest: "):
        inspect(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["cut.safetensors", "under another name"])
def test_a_truncated_set_is_damaged(tmp_path: Path, small: Path, name: str) -> None:
    (tmp_path / name).write_bytes(small.read_bytes()[:-20])
    with pytest.raises(
        UserError, match=rf"{name} is damaged: .*not a readable safetensors file \(damaged or truncated\)"
    ):
        inspect(tmp_path / name)


def test_doctor_names_what_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torchvision_datasets", lambda: None)
    findings = doctor.examine()
    assert findings["torch"] == torch.__version__
    assert findings["default device and precision"].startswith(("cpu", "cuda"))
    assert findings["torch.compile"] == "usable" or findings["torch.compile"].startswith("not usable: ")
    assert str(tmp_path / "cache") in findings["cache"]
    assert "0 B used" in findings["cache"]
    assert set(doctor.PACKAGES) <= set(findings)
    assert all(isinstance(v, str) and v for v in findings.values())


def test_doctor_counts_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache" / "pools").mkdir(parents=True)
    (tmp_path / "cache" / "pools" / "x").write_bytes(b"0" * 3000)
    assert "2.93 KiB used" in doctor.examine()["cache"]


def test_doctor_tells_what_torchvision_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UserError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "torchvision_datasets", missing)
    says = doctor.examine()["torchvision"]
    assert says.startswith("not usable (only cifar10,")
    assert "nms does not exist" in says


def test_doctor_tells_what_is_not_installed() -> None:
    assert doctor._version("no-such-package-at-all") == "not installed"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, None),
        ({"soft": True}, "float16"),
        ({"soft": True, "label_bits": 8}, "8 bits"),
        ({"soft": True, "label_bits": 4, "top": 2}, "4 bits, of the top 2 classes and the mean of the others"),
    ],
)
def test_how_soft_labels_are_stored(tmp_path: Path, how: dict, said: str | None) -> None:
    path = tmp_path / "set.safetensors"
    set_file.save(build_set(**how), path)
    summary = inspect(path).summary
    assert summary["soft labels"] == said
    assert summary["bits per pixel value"] == "8"
