"""The runtime: devices, precision, compilation, and counting what autograd keeps."""

import dataclasses
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor

from ncfmkit import runtime as R
from ncfmkit.config import RuntimeSettings
from ncfmkit.errors import DeviceFailed, UserError
from ncfmkit.files import format_bytes
from ncfmkit.runtime import Runtime, choose_runtime, device_failures, is_out_of_memory, saved_bytes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pretends what the machine has."""
    tf32 = torch.backends.cuda.matmul.allow_tf32  # which choosing a GPU changes

    def pretend(*, gpus: int = 0, gpu_bf16: bool = False, cpu_bf16: bool = False, compiler: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(R, "compiler_missing", lambda device: "" if compiler else "no C++ compiler found")

    yield pretend
    torch.backends.cuda.matmul.allow_tf32 = tf32


def choose(**settings: Any) -> Runtime:
    return choose_runtime(RuntimeSettings(**settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_gpu_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=rf"device {name} .*no GPU .*--device cpu"):
        choose(device=name)


def test_device_errors(machine) -> None:
    machine(gpus=2)
    with pytest.raises(UserError, match=r"unknown device 'gpu': expected auto, cpu, cuda, cuda:N or mps"):
        choose(device="gpu")
    with pytest.raises(UserError, match=r"unsupported device 'meta': expected auto, cpu, cuda, cuda:N or mps"):
        choose(device="meta")
    with pytest.raises(UserError, match=r"device cuda:2 .*2 GPU\(s\), cuda:0 to cuda:1"):
        choose(device="cuda:2")
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="device mps is not available"):
            choose(device="mps")


def test_auto_device(machine) -> None:
    machine(gpus=1, gpu_bf16=True)
    assert choose().device == torch.device("cuda")
    assert choose(device="cpu").device == torch.device("cpu")
    machine(gpus=0)
    assert choose().device == torch.device("cpu")


@pytest.mark.parametrize(
    ("has", "precision"),
    [
        ({"gpus": 1, "gpu_bf16": True}, "bf16"),
        ({"gpus": 1, "gpu_bf16": False, "cpu_bf16": True}, "fp16"),
        ({"gpus": 1, "gpu_bf16": True, "compiler": False}, "bf16"),
        ({"cpu_bf16": True}, "bf16"),
        ({"cpu_bf16": True, "compiler": False}, "fp32"),
        ({"cpu_bf16": False}, "fp32"),
    ],
)
def test_auto_precision(machine, has: dict, precision: str) -> None:
    machine(**has)
    chosen = choose()
    assert chosen.precision == precision
    assert "precision auto" in chosen.why


@pytest.mark.parametrize(("precision", "tf32"), [("bf16", True), ("fp16", False), ("fp32", False)])
def test_products_beside_bf16_networks_are_in_tf32(machine, precision: str, tf32: bool) -> None:
    machine(gpus=1, gpu_bf16=True)
    torch.backends.cuda.matmul.allow_tf32 = not tf32
    assert ("other products in TF32" in choose(precision=precision).why) is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32


def test_what_is_asked_for_is_never_changed(machine) -> None:
    machine(gpus=1, gpu_bf16=False)
    with pytest.raises(UserError, match=r"--precision bf16: .*a GPU.* bfloat16; .*--precision fp16 or fp32"):
        choose(precision="bf16")
    machine(cpu_bf16=False)
    for precision in ("fp32", "bf16", "fp16"):
        assert choose(precision=precision).precision == precision
    machine(cpu_bf16=True)
    assert choose(compile="off").precision == "fp32"
    assert choose(compile="off").compile is False


def test_compile_without_a_compiler(machine) -> None:
    machine(compiler=False)
    with pytest.raises(UserError, match=r"--compile on: no C\+\+ compiler .*--compile off"):
        choose(compile="on")
    chosen = choose(compile="auto")
    assert chosen.compile is False
    assert "no C++ compiler found" in chosen.describe()
    machine(compiler=True)
    assert choose(compile="auto").compile is True
    assert choose(compile="on").compile is True


def test_compiler_missing_looks_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(R.shutil, "which", lambda name: None)
    assert R.compiler_missing(torch.device("cpu")) == "no C++ compiler found"
    assert "mps" in R.compiler_missing(torch.device("mps"))


def test_autocast_and_scaler() -> None:
    x = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        made = Runtime(device=torch.device("cpu"), precision=precision, compile=False, why="")
        with made.autocast():
            assert (x @ x).dtype == dtype
        assert made.scaler().is_enabled() == (precision == "fp16")


def test_describe_says_everything(runtime: Runtime) -> None:
    text = runtime.describe()
    assert text.startswith("cpu (")
    assert re.search(r"\d threads?\), fp32, not compiled \(tests\)", text)


def test_uncompiled_is_the_function_itself(runtime: Runtime) -> None:
    assert runtime.compiled(format_bytes) is format_bytes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
@pytest.mark.parametrize(("device", "known"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_only_on_gpus_the_compiler_may_not_choose_by_measured_speed(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, device: str, known: bool
) -> None:
    asked: list[Any] = []
    compile, theirs = torch.compile, hasattr(inductor, "deterministic")

    def spied(function: Any, *, dynamic: bool, options: Any) -> Any:
        asked.append(options)
        return compile(function, dynamic=dynamic, options=options) if known else function  # refuses unknown options

    monkeypatch.setattr(torch, "compile", spied)
    if not known:  # as in torch 2.9
        monkeypatch.setattr(torch._inductor, "config", SimpleNamespace())
    dataclasses.replace(runtime, device=torch.device(device), compile=True).compiled(format_bytes)
    assert asked == [{"deterministic": True} if device == "cuda" and known and theirs else None]


def test_saved_bytes_counts_a_known_graph() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 4000  # exp keeps its result
    assert saved_bytes(lambda: x.exp().sin()) == 4000  # sin keeps its input, which is that result
    assert saved_bytes(lambda: x.exp().exp()) == 8000
    assert saved_bytes(lambda: x + 1) == 0
    w = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x * w) == 8000
    assert saved_bytes(lambda: x * x) == 4000  # one storage, once
    assert saved_bytes(lambda: x.view(10, 100).exp().view(-1).exp()) == 8000


def test_saved_bytes_of_nothing_differentiable() -> None:
    x = torch.randn(1000, requires_grad=True)
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp()) == 0


def test_saved_bytes_counts_graphs_that_have_been_dropped() -> None:
    """Storages whose memory could be used again are still counted apart."""
    x = torch.randn(1000, requires_grad=True)

    def run() -> None:
        for _ in range(5):
            x.exp()

    assert saved_bytes(run) == 20_000


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other API call"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("out of resource: shared memory, Required: 278528, Hardware limit: 232448"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_is_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no AcceleratorError")
def test_errors_of_the_accelerator_are_out_of_memory_where_they_say_so() -> None:
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))


def test_a_gpu_that_fails_is_told_from_one_that_is_full() -> None:
    said = "CUDA error: unspecified launch failure"
    failed = torch.AcceleratorError(f"{said}\nCUDA kernel errors might be reported at some other call")
    with (
        pytest.raises(DeviceFailed, match=rf"^the GPU failed \({said}\): .*; go on$"),
        device_failures(lambda: "go on"),
    ):
        raise failed
    for error in (RuntimeError("CUDA error: out of memory"), RuntimeError("shapes"), ValueError("CUDA error: no")):
        with pytest.raises(type(error)) as caught, device_failures(lambda: "go on"):
            raise error
        assert caught.value is error


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_torchs_advice_to_use_tf32_is_not_shown(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function says it, as on a GPU with TF32; every other warning from there is still one."""
    from torch._inductor import compile_fx

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    advise = getattr(compile_fx, "_warn_tf32_disabled", None)
    if advise is None or "warnings.warn(" not in inspect.getsource(advise):
        pytest.skip(f"torch {torch.__version__} does not warn of it: newer ones write it into their log")
    advise = advise.__wrapped__  # cached: said once a process
    with pytest.raises(UserWarning, match="TensorFloat32"):
        advise()
    dataclasses.replace(runtime, compile=True).compiled(format_bytes)
    advise()
    with pytest.raises(UserWarning, match="another"):
        warnings.warn_explicit("another", UserWarning, compile_fx.__file__, 1, compile_fx.__name__)


def test_compiled_code_is_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    settings = RuntimeSettings(device="cpu", compile="auto")
    if R.compiler_missing(torch.device("cpu")):
        pytest.skip("no compiler here")
    monkeypatch.setenv("NCFMKIT_CACHE", "/proc/none")  # where nothing can be made: torch's own place will do
    choose_runtime(settings)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path))
    choose_runtime(settings)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("NCFMKIT_CACHE", "elsewhere")
    choose_runtime(settings)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")  # what is set stays
