"""Providers: what is said of those that cannot be used; fakes stand for plug-ins, or real ones where there are some."""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ncfmkit.errors import UserError
from ncfmkit.exporters import parity, providers
from ncfmkit.exporters.providers import (
    PROVIDERS,
    conflicts,
    device_text,
    found,
    keep_one,
    missing,
    offered_devices,
    plugin_devices,
    reason,
    start_session,
)
from ncfmkit.exporters.sessions import open_session
from ncfmkit.extras import EXTRAS, install

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

CPU = "CPUExecutionProvider"
PLUGINS = [name for name, row in PROVIDERS.items() if row.plugin]


@dataclass
class FakeDevice:
    """An `OrtEpDevice`."""

    ep_name: str
    ep_metadata: dict[str, str] = field(default_factory=dict)
    device: Any = field(
        default_factory=lambda: SimpleNamespace(
            vendor="", vendor_id=0x8086, device_id=0x1912, type=SimpleNamespace(name="GPU")
        )
    )


@dataclass
class FakeOptions:
    """`SessionOptions` that keep what they are given."""

    asked: list[Any]
    intra_op_num_threads: int = 0
    enable_profiling: bool = False
    profile_file_prefix: str = ""

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.asked.append((devices, options, self.intra_op_num_threads))


@dataclass
class Plugged:
    """What ONNX Runtime is told, and what it answers."""

    offers: list[FakeDevice] = field(default_factory=list)  # once a library is registered
    fails: str = ""  # registering
    starts: Callable[..., Any] = lambda *_, **__: pytest.fail("a session is opened")
    registered: dict[str, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)  # devices, options and threads of sessions

    def register(self, name: str, library: str) -> None:
        if self.fails:
            raise RuntimeError(self.fails)
        if name in self.registered:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : EP library is already registered under {name}")
        self.registered[name] = library

    def devices(self) -> list[FakeDevice]:
        return [FakeDevice(CPU), *(self.offers if self.registered else [])]


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Plugged:
    """All plug-ins installed, in version 1.2.3, for an ONNX Runtime that knows none yet; GPUs are not asked for."""
    fake = Plugged()
    monkeypatch.setattr(ort, "register_execution_provider_library", fake.register, raising=False)
    monkeypatch.setattr(ort, "get_ep_devices", fake.devices, raising=False)
    monkeypatch.setattr(ort, "SessionOptions", lambda: FakeOptions(fake.asked))
    monkeypatch.setattr(ort, "InferenceSession", lambda *given, **named: fake.starts(*given, **named))
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime"])
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    for name in PLUGINS:
        row = PROVIDERS[name]
        assert row.plugin is not None
        module: Any = ModuleType(row.plugin.module)
        module.get_library_path = lambda name=name: f"/somewhere/{name}.so"
        monkeypatch.setitem(sys.modules, row.plugin.module, module)
        monkeypatch.setitem(PROVIDERS, name, replace(row, plugin=replace(row.plugin, refuses=lambda: "")))
    return fake


def opened(*given: Any, **named: Any) -> Any:
    """A session that has what it was asked for."""
    assert named == {"providers": None, "enable_fallback": 0}
    devices, _, _ = given[1].asked[-1]
    return SimpleNamespace(get_providers=lambda: [devices[0].ep_name, CPU], disable_fallback=lambda: None)


def offer(name: str) -> FakeDevice:
    """A device as a plug-in's row means it."""
    row = PROVIDERS[name]
    assert row.plugin is not None
    return FakeDevice(row.name, dict(row.plugin.metadata))


@pytest.mark.parametrize("name", PLUGINS)
def test_a_package_that_is_not_installed(plugged: Plugged, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    plugin = PROVIDERS[name].plugin
    assert plugin is not None
    assert plugin.package in install(name)
    assert missing(name) == f"the package {plugin.package} is not installed: {install(name)}"


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("error", [ImportError("bad magic"), OSError("libtensorrt_rtx.so.1: no such file")])
def test_a_package_that_does_not_import(
    plugged: Plugged, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(module: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    row = PROVIDERS[name]
    assert row.plugin is not None
    says = f"{row.name} of {row.plugin.package} 1.2.3 does not load: {error}; it needs {row.plugin.needs}"
    assert missing(name) == says


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /a b/c.so with error: libcuda.so.1: cannot open",
            "libcuda.so.1: cannot open",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /a/c.so with error: /a/c.so: file too short",
            "c.so: file too short",
        ),
        (
            '[ONNXRuntimeError] : 1 : FAIL : ORT runtime version "1.24.1" is below the minimum required version.',
            'ORT runtime version "1.24.1" is below the minimum required version.',
        ),
    ],
)
def test_a_library_that_does_not_load(plugged: Plugged, fails: str, says: str) -> None:
    plugged.fails = fails
    lacking = missing("webgpu")
    assert f"WebGpuExecutionProvider of onnxruntime-ep-webgpu 1.2.3 does not load: {says}; it needs a GPU" in lacking


def test_a_runtime_without_plugins(plugged: Plugged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort, "register_execution_provider_library")
    monkeypatch.setattr(ort, "__version__", "1.22.1")
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime-gpu"])
    assert missing("openvino") == (
        "ONNX Runtime 1.22.1 is too old for the plug-in onnxruntime-ep-openvino: "
        'pip install --upgrade "onnxruntime-gpu>=1.23"'
    )
    assert missing("webgpu").endswith(': pip install --upgrade "onnxruntime-gpu>=1.24.4"')


@pytest.mark.parametrize(
    ("name", "version", "runs"),
    [
        ("openvino", "1.23.2", True),
        ("webgpu", "1.23.2", False),
        ("webgpu", "1.24.3", False),
        ("webgpu", "1.24.4", True),
        ("webgpu", "1.25.0.dev20260101", True),
    ],
)
def test_each_plugin_has_its_oldest_runtime(
    plugged: Plugged, monkeypatch: pytest.MonkeyPatch, name: str, version: str, runs: bool
) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    plugged.offers, plugged.starts = [offer(name)], opened
    assert (missing(name) == "") == runs
    assert bool(plugged.registered) == runs


def test_the_documentation_has_the_oldest_runtimes_of_plugins() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    said = " ".join(text.split("Plug-ins need an ONNX Runtime of ")[1].split(" and later.")[0].split())
    for name, label in (("openvino", "OpenVINO"), ("tensorrt-rtx", "TensorRT for RTX"), ("webgpu", "WebGPU")):
        plugin = PROVIDERS[name].plugin
        assert plugin is not None
        assert f"{plugin.since} ({label}, " in said
    assert len(PLUGINS) == 3


def test_two_runtimes(plugged: Plugged, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["onnxruntime", "onnxruntime-openvino"]
    monkeypatch.setattr(providers, "packages", lambda: both)
    says = missing("openvino")
    assert says == f"onnxruntime and onnxruntime-openvino {keep_one(both)}"
    assert "exclude each other: pip uninstall onnxruntime onnxruntime-openvino, then " in says
    assert plugged.registered == {}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_without_a_device(plugged: Plugged, name: str) -> None:
    row = PROVIDERS[name]
    assert row.plugin is not None
    plugged.offers = [FakeDevice(f"{row.name}.AUTO", {"ov_device": "CPU"}), FakeDevice("another", {"ov_device": "CPU"})]
    if name == "openvino":
        plugged.offers.append(FakeDevice(row.name, {"ov_device": "GPU"}))
    says = (
        f"{row.name} of {row.plugin.package} 1.2.3 loads, but offers no device on this machine: it needs "
        f"{row.plugin.needs}"
    )
    assert [missing(name), missing(name)] == [says, says]  # the second time, its library is registered
    with pytest.raises(UserError, match="offers no device on this machine: it needs"):
        start_session(ort, row, b"", ort.SessionOptions(), {})


NO_ADAPTER = (  # as WebGPU's 0.4.0 says it without a driver for Vulkan
    "/onnxruntime_src/onnxruntime/core/session/plugin_ep/ep_plugin_provider_interfaces.cc:71 virtual "
    "std::unique_ptr<onnxruntime::IExecutionProvider> onnxruntime::PluginExecutionProviderFactory::CreateProvider("
    "const OrtSessionOptions&, const OrtLogger&) Error creating execution provider: [ONNXRuntimeError] : 11 : EP_FAIL "
    ": /onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::WebGpuContext::"
    "Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> adapter_result.status == "
    "wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU adapter: No supported adapters\n\n\n"
)


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (NO_ADAPTER, "Error creating execution provider: Failed to get a WebGPU adapter: No supported adapters"),
        (
            "[ONNXRuntimeError] : 11 : EP_FAIL : Exception from src/inference/src/cpp/core.cpp:117:\nException from "
            "src/plugins/intel_cpu/src/config.cpp:266:\nWrong value f17 for property key INFERENCE_PRECISION_HINT.\n\n",
            "Wrong value f17 for property key INFERENCE_PRECISION_HINT.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : shader_helper.cc:416 GenerateSourceCode Program Transpose requires f16 "
            "but the device does not support it.",
            "Program Transpose requires f16 but the device does not support it.",
        ),
    ],
)
def test_what_plugins_say_in_one_line(theirs: str, says: str) -> None:
    assert reason(RuntimeError(theirs)) == says


def test_a_plugin_that_does_not_start(plugged: Plugged, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **named: Any) -> None:
        assert named["enable_fallback"] == 0  # else ONNX Runtime prints the error and opens the CPU
        raise RuntimeError(NO_ADAPTER)

    plugged.offers, plugged.starts = [offer("webgpu")], fail
    says = missing("webgpu")
    assert says.startswith("WebGpuExecutionProvider of onnxruntime-ep-webgpu 1.2.3 does not start: Error creating ")
    assert "No supported adapters; it needs a GPU and its driver" in says
    plugged.starts = lambda *_, **__: SimpleNamespace(get_providers=lambda: [CPU])
    assert "does not start: ONNX Runtime does not say why; it needs" in missing("webgpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_can_be_used(plugged: Plugged, name: str) -> None:
    plugged.offers, plugged.starts = [offer(name), offer(name)], opened
    assert [missing(name), missing(name)] == ["", ""]
    assert plugged.registered == {PROVIDERS[name].name: f"/somewhere/{name}.so"}
    assert [len(devices) for devices, _, _ in plugged.asked] == [1, 1]  # WebGPU's takes one alone


def test_a_library_that_others_registered(plugged: Plugged) -> None:
    """Under another name; again, its devices would be there twice."""
    plugged.registered["ov"], plugged.offers = "/elsewhere/ov.so", [offer("openvino")]
    assert plugin_devices(ort, PROVIDERS["openvino"]) == plugged.offers
    assert plugged.registered == {"ov": "/elsewhere/ov.so"}


@pytest.mark.parametrize(
    ("capability", "says"),
    [((7, 5), "7.5"), ((8, 0), "8.0"), ((8, 7), "8.7"), ((9, 0), "9.0"), ((10, 0), "10.0")]
    + [(capability, "") for capability in ((8, 6), (8, 9), (12, 0), (12, 1), (13, 0))],
)
def test_gpus_that_tensorrt_for_rtx_supports(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], says: str
) -> None:
    """The compute capabilities that the plug-in's provider options list; nothing of it is loaded to refuse another."""
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    if not says:
        monkeypatch.setattr(providers, "plugin_devices", lambda ort, row: [])
        assert "offers no device" in missing("tensorrt-rtx")
        return
    monkeypatch.setattr(providers, "plugin_devices", lambda ort, row: pytest.fail("its library is loaded"))
    assert missing("tensorrt-rtx") == (
        f"TensorRT for RTX does not support NVIDIA H200, of compute capability {says}: expected 8.6, 8.9, or 12.0 and "
        "later; this GPU runs cuda and tensorrt"
    )


def test_tensorrt_for_rtx_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing("tensorrt-rtx").startswith(f"torch {torch.__version__} sees no GPU: install a torch for CUDA 13")


@pytest.mark.parametrize(("threads", "more"), [(None, {}), (3, {"INFERENCE_NUM_THREADS": 3})])
def test_openvino_keeps_float32_and_takes_the_threads(
    plugged: Plugged, onnx_path: Path, threads: int | None, more: dict[str, int]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no further")

    plugged.offers, plugged.starts = [offer("openvino")], opened
    assert missing("openvino") == ""
    plugged.starts = lambda model, *_, **__: fail() if isinstance(model, str) else opened(model, *_, **__)
    with pytest.raises(UserError, match="cannot be opened by ONNX Runtime: no further"):
        open_session(onnx_path, "openvino", threads=threads)
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    probe, _, (devices, options, intra_op) = plugged.asked
    assert json.loads(probe[1]["load_config"]) == {"CPU": precise | {"INFERENCE_NUM_THREADS": 1}}
    assert json.loads(options["load_config"]) == {"CPU": precise | more}
    assert (devices, intra_op) == (plugged.offers, threads or 0)


def test_a_session_without_the_plugin_is_refused(plugged: Plugged, onnx_path: Path) -> None:
    def fallen(model: Any, options: Any, **named: Any) -> Any:
        own = opened(model, options, **named).get_providers()
        return SimpleNamespace(
            get_providers=lambda: [CPU] if isinstance(model, str) else own, disable_fallback=lambda: None
        )

    plugged.offers, plugged.starts = [offer("webgpu")], fallen
    with pytest.raises(UserError, match=rf"expected WebGpuExecutionProvider, ONNX Runtime opened \['{CPU}'\]$"):
        open_session(onnx_path, "webgpu")


@pytest.mark.parametrize(("name", "devices"), [("webgpu", ("webgpu", "cpu")), ("openvino", ("cpu", "cpu"))])
def test_where_timed_calls_have_inputs_and_outputs(onnx_path: Path, name: str, devices: tuple[str, str]) -> None:
    """WebGPU's calls with outputs on the GPU return before it is done: only the copy to the host waits."""
    session, bound = open_session(onnx_path), []
    session.row = PROVIDERS[name]
    value = SimpleNamespace(ortvalue_from_numpy=lambda images, device, index: bound.append(device))
    binding = SimpleNamespace(
        bind_ortvalue_input=lambda name, value: None, bind_output=lambda name, device, index: bound.append(device)
    )
    session._ort = SimpleNamespace(OrtValue=value)
    session._session = SimpleNamespace(io_binding=lambda: binding)
    session.bound(np.zeros((2, *session.contract.image_shape), np.uint8))
    assert tuple(bound) == devices


def test_what_devices_are_called(plugged: Plugged) -> None:
    intel, gpu = offer("openvino"), offer("webgpu")
    intel.ep_metadata["FULL_DEVICE_NAME"] = "Intel Core"
    plugged.offers = [intel, gpu, offer("webgpu")]
    assert offered_devices("openvino") == ["Intel Core"]
    assert found("openvino") == "onnxruntime-ep-openvino 1.2.3, on Intel Core"
    assert found("webgpu") == "onnxruntime-ep-webgpu 1.2.3, on GPU 8086:1912, GPU 8086:1912"
    assert device_text("webgpu") == "WebGPU (GPU 8086:1912 or GPU 8086:1912)"
    assert found("cpu").startswith("onnxruntime 1.2.3, on cpu (")


@pytest.mark.parametrize(
    ("torchs", "theirs", "says"),
    [
        ("12.8", "13.0", "is for CUDA 12, ONNX Runtime 1.31.1 for CUDA 13: install a torch for CUDA 13"),
        ("13.1", "13.0", ""),
        (None, "13.0", ""),  # a torch for CPUs
        ("12.8", "", ""),  # an ONNX Runtime for CPUs
        ("12.8", None, ""),
    ],
)
def test_majors_of_cuda(monkeypatch: pytest.MonkeyPatch, torchs: str | None, theirs: str | None, says: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", torchs)
    monkeypatch.setattr(ort, "cuda_version", theirs)
    monkeypatch.setattr(ort, "__version__", "1.31.1")
    assert says in conflicts()
    assert bool(says) == bool(conflicts())


@pytest.mark.parametrize(
    ("content", "installed", "says"),
    [
        (
            b"\0libcudart.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0",
            {"tensorrt-cu13": "11.0.0.114"},
            "tensorrt-cu13 11.0.0.114",
        ),
        (b"\0libnvinfer.so.10\0", {"tensorrt": "11.0.0.114"}, "tensorrt 11.0.0.114"),
        (
            b"\0libnvinfer.so.10\0",
            {"tensorrt": "11.0", "tensorrt-cu13": "11.1"},
            "tensorrt-cu13 11.1 and tensorrt 11.0",
        ),
        (b"\0libnvinfer.so.10\0", {"tensorrt": "10.13.0", "tensorrt-cu13": "10.13.0"}, ""),
        (b"\0libnvinfer.so.10\0", {}, ""),
        (b"\0libnvinfer_plugin.so.9\0", {"tensorrt-cu13": "10.13.0"}, ""),
        (None, {"tensorrt-cu13": "11.0.0.114"}, ""),
    ],
)
def test_majors_of_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, installed: dict[str, str], says: str
) -> None:
    """The extra installs one of these packages; users may have the other."""

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    if content:
        (folder / "libonnxruntime_providers_tensorrt.so").write_bytes(content)
    monkeypatch.setattr(ort, "__file__", str(folder.parent / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert bool(says) == bool(conflicts())
    if says:
        assert "is for TensorRT 10 (libnvinfer.so.10), " in conflicts()
        assert conflicts().endswith(f', installed is {says}: pip install "tensorrt-cu13==10.*"')
    assert any(package.startswith(f"{providers.TENSORRT_PACKAGES[0]}>=10") for package in EXTRAS["tensorrt"])


def test_help_names_all_providers() -> None:
    for command, names in (("predict", [*PROVIDERS]), ("validate", [*PROVIDERS, "all"])):
        text = (Path(importlib.import_module(f"ncfmkit.cli.{command}").__file__ or "")).read_text(encoding="utf-8")
        assert f'metavar="{"|".join(names)}"' in text


def usable(name: str) -> str:
    """The provider, where its plug-in is installed and offers a device; else the test is skipped."""
    if lacking := missing(name):
        pytest.skip(lacking)
    return name


@pytest.mark.parametrize("name", PLUGINS)
def test_a_real_plugin_answers_as_the_cpu_does(onnx_path: Path, name: str) -> None:
    on, cpu = open_session(onnx_path, usable(name), threads=1), open_session(onnx_path)
    assert on.placement.keys() >= {PROVIDERS[name].name}
    images = np.random.default_rng(0).integers(0, 256, (3, *cpu.contract.image_shape), dtype=np.uint8)
    scores, expected = on(images), cpu(images)
    tolerance = parity.TOLERANCES["fp32"]
    assert np.abs(scores - expected).max() <= tolerance.absolute + tolerance.relative * np.abs(expected).max()
    on.bound(images)()
    assert found(name)


def test_real_openvino_that_leaves_work_to_the_cpu_is_refused(tmp_path: Path) -> None:
    usable("openvino")
    helper, kind = onnx.helper, onnx.TensorProto
    weights = [
        onnx.numpy_helper.from_array(np.ones((48, 3), np.float32), "w"),
        onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=kind.FLOAT),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("TransposeMatMul", ["c", "v"], ["logits"], domain="com.microsoft"),  # OpenVINO has none
    ]
    ends = [
        helper.make_tensor_value_info("images", kind.UINT8, ["N", 3, 4, 4]),
        helper.make_tensor_value_info("logits", kind.FLOAT, ["N", 3]),
    ]
    graph = helper.make_graph(nodes, "half", ends[:1], ends[1:], weights)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "half.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())
    with pytest.raises(UserError, match=rf"OpenVINOExecutionProvider: ONNX Runtime placed 1 TransposeMatMul on {CPU}$"):
        open_session(path, "openvino")


def test_real_webgpu_that_leaves_work_to_the_cpu_is_refused(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable("webgpu")
    names = [node.name for node in onnx.load(onnx_path).graph.node if node.op_type == "Conv"]
    row = replace(PROVIDERS["webgpu"], options=lambda threads: {"forceCpuNodeNames": "\n".join(names)})
    monkeypatch.setitem(PROVIDERS, "webgpu", row)
    with pytest.raises(UserError, match=rf"WebGpuExecutionProvider: ONNX Runtime placed {len(names)} Conv on {CPU}$"):
        open_session(onnx_path, "webgpu")


def test_a_real_openvino_says_which_options_it_refuses(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So those that its row has reach it."""
    usable("openvino")
    wrong = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "f17"}})
    monkeypatch.setitem(
        PROVIDERS, "openvino", replace(PROVIDERS["openvino"], options=lambda threads: {"load_config": wrong})
    )
    assert "does not start: Wrong value f17 for property key INFERENCE_PRECISION_HINT" in missing("openvino")
