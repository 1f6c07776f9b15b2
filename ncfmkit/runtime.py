"""The device, its precision, compilation and memory. Every choice made here is said to the user."""

import os
import platform
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ncfmkit import distributed
from ncfmkit.config import RuntimeSettings
from ncfmkit.errors import DeviceFailed, RankFailed, UserError
from ncfmkit.files import cache_dir, writable
from ncfmkit.in_use import hold_until_exit
from ncfmkit.progress import plural

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Said by RuntimeErrors of the CPU's allocator, and by CUDA, cuBLAS and cuDNN 8 and 9 of memory that they take past
# torch's allocator. torch 2.9 and newer raise the CUDA ones as AcceleratorError, which is a RuntimeError too.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how networks run: device, precision (fp32, bf16 or fp16 by autocast), compiled or not."""

    device: torch.device
    precision: str
    compile: bool
    why: str  # how precision and compilation were chosen, for people

    @property
    def records(self) -> bool:
        """Whether steps are recorded and replayed (:mod:`ncfmkit.recorded`): the scaler of fp16 waits for the GPU."""
        return self.device.type == "cuda" and self.compile and self.precision != "fp16"

    def autocast(self) -> AbstractContextManager:
        """The context in which networks run; outside it everything is float32."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled for fixed shapes where this runtime compiles; too many shapes are an error."""
        if not self.compile:
            return function
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        # torch.compile, before 2.14, advises TF32 on GPUs that have it; fp32 means float32 here
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores for float32 matrix multiplication available")
        dynamo.recompile_limit = 256
        dynamo.fail_on_recompile_limit_hit = True
        # on a GPU the compiler would time kernels that sum in different orders and take the fastest, which on another
        # day may be another one; torch 2.9 cannot be told not to
        same_bytes = self.device.type == "cuda" and hasattr(inductor, "deterministic")
        return torch.compile(function, dynamic=False, options={"deterministic": True} if same_bytes else None)

    def scaler(self, init_scale: float = 2.0**16) -> torch.amp.GradScaler:
        """Gradient scaling, which fp16 needs; disabled otherwise."""
        return torch.amp.GradScaler(self.device.type, init_scale=init_scale, enabled=self.precision == "fp16")

    def describe(self) -> str:
        """One line such as `cpu (AMD EPYC, 4 threads), bf16, compiled`."""
        compiled = "compiled" if self.compile else "not compiled"
        return f"{device_name(self.device)}, {self.precision}, {compiled} ({self.why})"


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Lets torch use that many CPU threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """The device with its model, for reports."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({_cpu_model()}, {plural(torch.get_num_threads(), 'thread')})"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def choose_runtime(settings: RuntimeSettings) -> Runtime:
    """Resolves `auto` and checks what was asked for.

    Raises:
        UserError: the device, the precision or the compiler is not there.
    """
    device = choose_device(settings.device)
    distributed.wait_at_most(settings.rank_timeout)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 means float32
        torch.backends.cudnn.deterministic = True  # the same run gives the same bytes
    missing = compiler_missing(device)
    if settings.compile == "on" and missing:
        raise UserError(f"--compile on: {missing}; install it, or pass --compile off")
    compile_ = settings.compile != "off" and not missing
    if compile_:
        _keep_compiled_code()
    why = [f"compile {settings.compile}" + (f": {missing}" if missing and settings.compile == "auto" else "")]
    precision: str = settings.precision
    if precision == "auto":
        precision, reason = _auto_precision(device, compile_)
        why.insert(0, f"precision auto: {reason}")
    elif precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--precision bf16: {device_name(device)} has no bfloat16; pass --precision fp16 or fp32")
    elif precision != "fp32" and device.type == "mps":
        raise UserError("--precision: only fp32 is supported on mps")
    if device.type == "cuda":
        # float32 products beside the networks (phases, psi, augmentation): their operands come from or go to bfloat16
        torch.backends.cuda.matmul.allow_tf32 = precision == "bf16"
        why += ["other products in TF32"] if precision == "bf16" else []
    return Runtime(device=device, precision=precision, compile=compile_, why="; ".join(why))


def _keep_compiled_code() -> None:
    """In our cache, where it can be written: torch's own default is among temporary files, lost with a reboot."""
    folder = cache_dir() / "compiled"
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(folder)) == str(folder):
        with suppress(UserError):
            hold_until_exit(folder)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(writable(folder))


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where torch sees one.

    Raises:
        UserError: an unknown device, or one that is not there.
    """
    if name == "auto":
        return _gpu_of_rank(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unsupported device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not available: this torch or machine has no Metal backend; pass --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            built = torch.version.cuda or "none: a CPU build"
            raise UserError(
                f"device {name} is not available: torch sees no GPU (CUDA of this torch: {built}); pass --device cpu"
            )
        if (device.index or 0) >= count:
            raise UserError(f"device {name} is not available: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
        device = _gpu_of_rank(device)
    return device


def _gpu_of_rank(device: torch.device) -> torch.device:
    """Of several ranks on this machine each has a GPU of its own."""
    ranks, count = distributed.local_world(), torch.cuda.device_count()
    if ranks == 1:
        return device
    if device.index is not None:
        raise UserError(f"--device {device}: {ranks} ranks on this machine need a GPU each: pass --device cuda")
    if 1 < count < ranks:
        raise UserError(f"{ranks} ranks on this machine, where torch sees {count} GPUs: start one rank for each")
    device = torch.device("cuda", distributed.local_rank() % count)  # srun may show each rank its own GPU alone
    torch.cuda.set_device(device)
    return device


def _auto_precision(device: torch.device, compile_: bool) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has bfloat16"
        return "fp16", "this GPU has no bfloat16"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() and compile_:
        return "bf16", "this CPU has bfloat16 instructions"
    return "fp32", "bfloat16 gains nothing uncompiled" if not compile_ else "no fast bfloat16 here"


def compiler_missing(device: torch.device) -> str:
    """What torch.compile lacks on this machine for the device, or ""."""
    if device.type == "mps":
        return "torch.compile is not used on mps"
    if os.name == "nt":
        return "torch.compile is not used on Windows"
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "no C++ compiler found"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the headers of this Python (Python.h) are not installed"
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton is not installed"
    return ""


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of what `run` computes; each storage counts once."""
    storages: dict[int, int] = {}
    kept = []  # keeps the tensors alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(run())
    return sum(storages.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is the way of torch, of the device or of its libraries to say that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


@contextmanager
def device_failures(advice: Callable[[], str]) -> Iterator[None]:
    """A block that says what to do where a GPU or another rank fails in it: `advice`, asked for then.

    Raises:
        DeviceFailed: in place of torch's error.
        RankFailed: with the advice.
    """
    try:
        yield
    except RankFailed as error:
        raise RankFailed(f"{error}; {advice()}", silent=error.silent) from None
    except RuntimeError as error:
        said = str(error).split("\n")[0]
        if not said.startswith("CUDA error: ") or is_out_of_memory(error):
            raise
        raise DeviceFailed(
            f"the GPU failed ({said}): see what the driver says, `dmesg` or `nvidia-smi`; {advice()}"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import numpy

    from ncfmkit._version import __version__

    return {
        "ncfmkit": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
