"""`doctor` on exports: which ONNX Runtime is installed, and which of its providers load."""

import sys

import pytest

from ncfmkit.exporters import sessions
from ncfmkit.exporters.sessions import PROVIDERS
from ncfmkit.extras import install
from ncfmkit.jobs import doctor


@pytest.fixture(autouse=True)
def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torchvision_datasets", lambda: None)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_the_package_that_is_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sessions, "packages", lambda: [name])
    monkeypatch.setattr(doctor, "_version", lambda package: f"1.2.3 of {package}")
    findings = doctor.examine()
    assert findings["ONNX Runtime"] == f"{name} 1.2.3 of {name}"
    assert [findings[package] for package in ("onnx", "onnxscript", "tensorrt-cu13")] == [
        "1.2.3 of onnx",
        "1.2.3 of onnxscript",
        "1.2.3 of tensorrt-cu13",
    ]


def test_a_build_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sessions, "packages", lambda: [])
    assert doctor.examine()["ONNX Runtime"] == f"of another package, {ort.__version__}"


def test_both_packages_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sessions, "packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    says = doctor.examine()["ONNX Runtime"]
    assert says.startswith("onnxruntime ")
    assert " and onnxruntime-gpu " in says
    assert "exclude each other: pip uninstall onnxruntime onnxruntime-gpu, then " in says
    assert says.endswith(f"{install('cpu')}, or on Linux with CUDA {install('gpu')}")


def test_providers_that_load_and_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    lacking = {"cpu": "", "cuda": "libcublas.so.13: cannot open shared object file", "tensorrt": "torch sees no GPU"}
    monkeypatch.setattr(sessions, "missing", lacking.__getitem__)
    findings = doctor.examine()
    assert {name: findings[f"ONNX Runtime provider {name}"] for name in PROVIDERS} == {
        "cpu": "loads",
        "cuda": "not usable: libcublas.so.13: cannot open shared object file",
        "tensorrt": "not usable: torch sees no GPU",
    }


def test_this_machine_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert doctor.examine()["ONNX Runtime provider cpu"] == "loads"
    assert capfd.readouterr() == ("", "")


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    findings = doctor.examine()
    assert findings["ONNX Runtime"].startswith("not usable (only export, validate and predict need it): ")
    assert install("cpu") in findings["ONNX Runtime"]
    assert not any("provider" in name for name in findings)
