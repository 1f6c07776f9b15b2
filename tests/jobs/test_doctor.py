"""`doctor` on exports: which ONNX Runtime is installed, and which of its providers load."""

import re
import sys

import pytest

from ncfmkit.exporters import providers
from ncfmkit.exporters.providers import PROVIDERS
from ncfmkit.extras import install
from ncfmkit.jobs import doctor


@pytest.fixture(autouse=True)
def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torchvision_datasets", lambda: None)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_the_package_that_is_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(providers, "packages", lambda: [name])
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
    monkeypatch.setattr(providers, "packages", lambda: [])
    assert doctor.examine()["ONNX Runtime"] == f"of another package, {ort.__version__}"


def test_both_packages_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    says = doctor.examine()["ONNX Runtime"]
    assert says.startswith("onnxruntime ")
    assert " and onnxruntime-gpu " in says
    assert "exclude each other: pip uninstall onnxruntime onnxruntime-gpu, then " in says
    assert says.endswith(f"{install('cpu')}, or on Linux with CUDA {install('gpu')}")


def test_providers_that_load_and_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    lacking = dict.fromkeys(PROVIDERS, "torch sees no GPU") | {"cpu": "", "openvino": ""}
    monkeypatch.setattr(providers, "missing", lacking.__getitem__)
    monkeypatch.setattr(providers, "found", lambda name: f"package of {name} 1.2, on a device")
    findings = doctor.examine()
    assert {name: findings[f"ONNX Runtime provider {name}"] for name in PROVIDERS} == {
        "cpu": "loads (package of cpu 1.2, on a device)",
        "cuda": "not usable: torch sees no GPU",
        "tensorrt": "not usable: torch sees no GPU",
        "openvino": "loads (package of openvino 1.2, on a device)",
        "webgpu": "not usable: torch sees no GPU",
        "tensorrt-rtx": "not usable: torch sees no GPU",
    }


def test_versions_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    name = "versions of CUDA and TensorRT"
    monkeypatch.setattr(providers, "conflicts", lambda: "")
    assert name not in doctor.examine()
    monkeypatch.setattr(providers, "conflicts", lambda: "torch is for CUDA 12, ONNX Runtime for CUDA 13")
    assert doctor.examine()[name] == "torch is for CUDA 12, ONNX Runtime for CUDA 13"


def test_this_machine_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    ort = pytest.importorskip("onnxruntime")
    says = doctor.examine()["ONNX Runtime provider cpu"]
    assert re.fullmatch(rf"loads \(onnxruntime\S* {re.escape(ort.__version__)}, on cpu \(.+\)\)", says)
    assert capfd.readouterr() == ("", "")


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    findings = doctor.examine()
    assert findings["ONNX Runtime"].startswith("not usable (only export, validate and predict need it): ")
    assert install("cpu") in findings["ONNX Runtime"]
    assert not any("provider" in name for name in findings)
