"""ONNX Runtime's providers: the table, and what a provider lacks on this machine.

Some are built into a package of ONNX Runtime, which lists those that cannot load, too. Others are plug-ins: a package
of their own has a library, which ONNX Runtime loads when it is told to, and which offers devices.
"""

import ctypes
import importlib
import importlib.metadata
import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ncfmkit.errors import UserError
from ncfmkit.extras import install

# All own the import name onnxruntime: only one can be installed.
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-webgpu")
TENSORRT_PACKAGES = ("tensorrt-cu13", "tensorrt")  # the first is what the extra installs
Device = Literal["cpu", "cuda", "webgpu"]
LONGEST_REASON = 1000  # characters of ONNX Runtime's message that are shown: it may quote the model
Options = dict[str, bool | int | str]  # of a provider, ONNX Runtime's own


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Where a provider that is a plug-in comes from, and what it needs."""

    package: str
    module: str
    since: str  # the oldest version of ONNX Runtime that it takes; plug-ins exist from 1.23 on
    needs: str  # of the machine, for messages
    metadata: Mapping[str, str] = field(default_factory=dict)  # of its devices that are meant; empty: any
    refuses: Callable[[], str] = lambda: ""  # why this machine's device is not supported, found before anything loads


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A row of `PROVIDERS`. With neither a library nor a plug-in, it is part of ONNX Runtime itself."""

    name: str  # ONNX Runtime's
    extra: str  # of ncfmkit, which brings it
    device: Device  # where its inputs and outputs live, ONNX Runtime's name, and torch's where torch has it
    library: str | None = None  # the file beside ONNX Runtime's that holds it
    plugin: Plugin | None = None
    caches: bool = False  # builds an engine, kept in a folder beside the model
    waits: bool = True  # a call returns when the device is done; False: only copying its scores to the host waits
    options: Callable[[int | None], Options] = lambda threads: {}  # by the number of CPU threads, None: its choice

    @property
    def in_torch(self) -> bool:
        """Whether torch has the device, so that the student can be timed there."""
        return self.device != "webgpu"


def _openvino_options(threads: int | None) -> Options:
    """Without the hint, float32 becomes bfloat16 on CPUs that have instructions for it; threads are OpenVINO's own."""
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return {"load_config": json.dumps({"CPU": settings})}


def _not_rtx() -> str:
    """Why TensorRT for RTX does not support the GPU. The numbers are those that its plug-in 0.5 documents."""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: install a torch for CUDA 13 and NVIDIA's driver"
    capability = torch.cuda.get_device_capability()
    if capability in ((8, 6), (8, 9)) or capability >= (12, 0):
        return ""
    return (
        f"TensorRT for RTX does not support {torch.cuda.get_device_name()}, of compute capability "
        f"{'.'.join(map(str, capability))}: expected 8.6, 8.9, or 12.0 and later; this GPU runs cuda and tensorrt"
    )


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider(name="CPUExecutionProvider", extra="cpu", device="cpu"),
    "cuda": Provider(
        name="CUDAExecutionProvider",
        library="libonnxruntime_providers_cuda.so",
        extra="gpu",
        device="cuda",
        options=lambda threads: {"use_tf32": 0},  # float32 means float32
    ),
    "tensorrt": Provider(
        name="TensorrtExecutionProvider",
        library="libonnxruntime_providers_tensorrt.so",
        extra="tensorrt",
        device="cuda",
        caches=True,
    ),
    "openvino": Provider(
        name="OpenVINOExecutionProvider",
        plugin=Plugin(
            package="onnxruntime-ep-openvino",
            module="onnxruntime_ep_openvino",
            since="1.23",
            needs="an Intel CPU",
            metadata={"ov_device": "CPU"},
        ),
        extra="openvino",
        device="cpu",
        options=_openvino_options,
    ),
    "webgpu": Provider(
        name="WebGpuExecutionProvider",
        plugin=Plugin(
            package="onnxruntime-ep-webgpu",
            module="onnxruntime_ep_webgpu",
            since="1.24.4",
            needs="a GPU and its driver, on Linux a GPU that /sys/class/drm lists, with a driver for Vulkan",
        ),
        extra="webgpu",
        device="webgpu",
        waits=False,
    ),
    "tensorrt-rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        plugin=Plugin(
            package="onnxruntime-ep-nv-tensorrt-rtx-cu13",
            module="onnxruntime_ep_nv_tensorrt_rtx",
            since="1.24",
            needs="an NVIDIA RTX GPU, its driver (libcuda) and the libraries of a torch for CUDA 13",
            refuses=_not_rtx,
        ),
        extra="tensorrt-rtx",
        device="cuda",
    ),
}


def onnxruntime() -> Any:
    """The ONNX Runtime module, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what matters of its log is found out here and said in one message
    except (ImportError, AttributeError) as error:  # no attributes: half of it was uninstalled with its twin package
        first = f"pip uninstall {' '.join(packages())}, then " if packages() else ""
        raise UserError(
            f"ONNX Runtime cannot be used ({error}): {first}{install('cpu')}, or on Linux with CUDA {install('gpu')}"
        ) from None
    return ort


def packages() -> list[str]:
    """The packages that are installed and own the import name onnxruntime."""
    return [name for name in PACKAGES if any(importlib.metadata.distributions(name=name))]


def keep_one(installed: list[str]) -> str:
    """What is said of several such packages, after their names."""
    return (
        f"exclude each other: pip uninstall {' '.join(installed)}, then {install('cpu')}, or on Linux with CUDA "
        f"{install('gpu')}"
    )


def missing(name: str) -> str:
    """Why a provider cannot be used on this machine, or "" if it loads."""
    row = PROVIDERS[name]
    try:
        ort = onnxruntime()
    except UserError as error:
        return str(error)
    if row.plugin is not None:
        return _plugin_missing(ort, row, row.plugin)
    if row.library is None:
        return ""
    if row.name not in ort.get_available_providers():
        installed = packages() or ["onnxruntime"]
        return (
            f"the installed {' and '.join(installed)} has no {row.name}: pip uninstall {' '.join(installed)}, "
            f"then {install(row.extra)}, on Linux x86-64 with an NVIDIA GPU"
        )
    import torch

    if not torch.cuda.is_available():  # first: without a driver, some versions crash when they load a provider
        return (
            f"torch {torch.__version__} sees no GPU: install a torch for CUDA {ort.cuda_version}, whose libraries "
            f"{row.name} uses, and NVIDIA's driver"
        )
    _load_neighbors(ort, row)
    why = _not_started(ort, row)
    if why:
        # Only now, that ONNX Runtime has tried: loaded before its host is set, such a library crashes the process.
        lacking = _unloadable(_capi(ort) / row.library) or why
        return (
            f"{row.name} does not load: {lacking}; it needs NVIDIA's driver (libcuda), the libraries of a torch for "
            f"CUDA {ort.cuda_version} and the packages of {install(row.extra)}"
        )
    return ""


def _plugin_missing(ort: Any, row: Provider, plugin: Plugin) -> str:
    installed = packages()
    if len(installed) > 1:
        return f"{' and '.join(installed)} {keep_one(installed)}"
    if _numbers(ort.__version__) < _numbers(plugin.since):
        newer = f'pip install --upgrade "{(installed or PACKAGES)[0]}>={plugin.since}"'
        return f"ONNX Runtime {ort.__version__} is too old for the plug-in {plugin.package}: {newer}"
    unsupported = plugin.refuses()
    if unsupported:
        return unsupported
    try:
        offered = plugin_devices(ort, row)
    except UserError as error:
        return str(error)
    origin = f"{row.name} of {plugin.package} {_version(plugin.package)}"
    if not offered:
        return f"{origin} loads, but offers no device on this machine: it needs {plugin.needs}"
    why = _not_started(ort, row)
    return f"{origin} does not start: {why}; it needs {plugin.needs}" if why else ""


def plugin_devices(ort: Any, row: Provider) -> list[Any]:
    """The devices that a plug-in offers on this machine and that its row means; loads its library, if it is not yet.

    Raises:
        UserError: its package is not installed, or does not load.
    """
    assert row.plugin is not None

    def offered() -> list[Any]:
        return [
            device
            for device in ort.get_ep_devices()
            if device.ep_name == row.name and plugin.metadata.items() <= dict(device.ep_metadata).items()
        ]

    plugin = row.plugin
    if found := offered():  # its library is registered, under whatever name: again, they would be there twice
        return found
    try:
        version = importlib.metadata.version(plugin.package)
        module = importlib.import_module(plugin.module)
        ort.register_execution_provider_library(row.name, module.get_library_path())
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the package {plugin.package} is not installed: {install(row.extra)}") from None
    except Exception as error:  # of the package, or of ONNX Runtime, whose errors have no common class
        if "already registered" not in str(error):  # a plug-in without devices here
            raise UserError(
                f"{row.name} of {plugin.package} {version} does not load: {reason(error)}; it needs {plugin.needs}"
            ) from None
    return offered()


def start_session(ort: Any, row: Provider, model: str | bytes, options: Any, own: Options) -> Any:
    """ONNX Runtime's session of a model, a path or its bytes, on that provider, without its fallback to the CPU, which
    it would take when the provider fails, and print so.

    Args:
        options: ONNX Runtime's of the session.
        own: the provider's.

    Raises:
        Exception: whatever ONNX Runtime raises, whose errors have no common class.
        UserError: a plug-in does not load or offers no device.
    """
    providers: list[Any] | None = [(row.name, own)]
    if row.plugin is not None:
        devices = plugin_devices(ort, row)[:1]  # some take one alone
        if not devices:
            raise UserError(f"{row.name} offers no device on this machine: it needs {row.plugin.needs}")
        options.add_provider_for_devices(devices, {key: str(value) for key, value in own.items()})
        providers = None  # they would take precedence
    with redirect_stdout(io.StringIO()):  # the argument is newer than ONNX Runtime 1.22
        return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)


def probe_model(opset: int) -> bytes:
    """The smallest ONNX model, to see what ONNX Runtime makes of it."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    versions = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=helper.find_min_ir_version_for(versions))
    return model.SerializeToString()


def _not_started(ort: Any, row: Provider) -> str:
    """What ONNX Runtime says of a provider that it does not open a session with, which is little; or "", if it does."""
    try:
        session = start_session(ort, row, probe_model(17), ort.SessionOptions(), row.options(1))
    except Exception as error:  # ONNX Runtime's have no common class
        return reason(error)
    return "" if row.name in session.get_providers() else "ONNX Runtime does not say why"


def _load_neighbors(ort: Any, row: Provider) -> None:
    """Loads the libraries of CUDA and cuDNN that came with torch, and those of TensorRT that came with its package.

    A provider's library names them, but the dynamic linker does not look into Python's packages.
    """
    with redirect_stdout(io.StringIO()):  # what it prints, the linker says again
        ort.preload_dlls()
    if row.extra == "tensorrt":
        with suppress(ImportError, OSError):
            import tensorrt  # noqa: F401


def _capi(ort: Any) -> Path:
    """Where ONNX Runtime's libraries are."""
    return Path(ort.__file__).parent / "capi"


def _unloadable(library: Path) -> str:
    """The dynamic linker's words on what a library lacks, or ""."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error).replace(f"{library.parent}/", "")
    return ""


def reason(error: Exception) -> str:
    """ONNX Runtime's message without its codes, source lines, signatures and paths of libraries, in one line."""
    noise = (
        r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"Load model from .*? failed:",
        r"/onnxruntime_src/\S+ .*?\)>?( \[with .*?\])? (?=\w)",
        r"Failed to load library .* with error: (\S*/)?",
        r"(?<!\S)(\w+\.cc:\d+ \w+|\S+ == \S+ was false\.) ",  # WebGPU's; only where a word begins, as texts can be long
        r"Exception from \S+:\d+:\s",  # OpenVINO's
    )
    text = re.sub("|".join(noise), "", str(error))
    line = " ".join(text.split(" ; GPU=")[0].split())
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."


def device_text(device: Device) -> str:
    """The device with its model, for reports."""
    if device == "webgpu":
        return f"WebGPU ({' or '.join(offered_devices('webgpu'))})"  # which one, it chooses itself
    import torch

    from ncfmkit.runtime import device_name

    return device_name(torch.device(device))


def offered_devices(name: str) -> list[str]:
    """What a plug-in that can be used calls the devices that it offers here: their model or, of GPUs, their PCI ids."""
    return [
        dict(offered.ep_metadata).get("FULL_DEVICE_NAME") or _hardware_text(offered.device)
        for offered in plugin_devices(onnxruntime(), PROVIDERS[name])
    ]


def _hardware_text(hardware: Any) -> str:
    return f"{hardware.vendor} {hardware.type.name} {hardware.vendor_id:04x}:{hardware.device_id:04x}".strip()


def found(name: str) -> str:
    """The package, its version and the devices of a provider that can be used."""
    row = PROVIDERS[name]
    owner = row.plugin.package if row.plugin else " and ".join(packages()) or "onnxruntime"
    devices = ", ".join(offered_devices(name)) if row.plugin else device_text(row.device)
    return f"{owner} {_version(owner) or onnxruntime().__version__}, on {devices}"


def _version(package: str) -> str:
    """Of an installed package, or ""."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def conflicts() -> str:
    """Where torch, ONNX Runtime and TensorRT are for different majors of CUDA or TensorRT, in words; "": nowhere."""
    import torch

    ort = onnxruntime()
    said, wanted = [], _major(ort.cuda_version or "")
    has = _major(torch.version.cuda or "")
    if has and wanted and has != wanted:
        said.append(
            f"torch {torch.__version__} is for CUDA {has}, ONNX Runtime {ort.__version__} for CUDA {wanted}: install a "
            f"torch for CUDA {wanted}, whose libraries ONNX Runtime uses"
        )
    needed = _libnvinfer(ort)
    others = [f"{name} {_version(name)}" for name in TENSORRT_PACKAGES if _major(_version(name)) not in ("", needed)]
    if needed and others:
        said.append(
            f"ONNX Runtime {ort.__version__} is for TensorRT {needed} (libnvinfer.so.{needed}), installed is "
            f'{" and ".join(others)}: pip install "{TENSORRT_PACKAGES[0]}=={needed}.*"'
        )
    return "; ".join(said)


def _numbers(version: str) -> list[int]:
    """To compare versions: those of `1.24.4`, or of a build such as `1.25.0.dev3`."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _major(version: str) -> str:
    return version.split(".")[0]


def _libnvinfer(ort: Any) -> str:
    """The major version of TensorRT that ONNX Runtime's provider links; "": it has none, or does not say."""
    try:
        content = (_capi(ort) / str(PROVIDERS["tensorrt"].library)).read_bytes()
    except OSError:
        return ""
    named = re.search(rb"\0libnvinfer\.so\.(\d+)\0", content)  # among the names of the libraries that it needs
    return named[1].decode() if named else ""
