"""A CUDA device that is not there: tensors on `cuda:0` have a shape, a dtype and a device, and no numbers.

Inside :func:`fake_cuda` CPU tensors are real and CUDA tensors are torch's FakeTensors, so code that mixes the two
raises as it would on a GPU, in autograd and under autocast too. Everything by which the host waits for the device, or
copies to it from pageable memory, is counted with the line of this project that asked for it. No number that comes back
from the device means anything: it is 1.
"""

import ctypes
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ncfmkit import rng, runtime

GPU = torch.device("cuda", 0)
META = torch.device("meta")
CUDA_TYPE, META_TYPE = 1, 14  # c10::DeviceType
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = tuple(f"{ROOT / name}/" for name in ("ncfmkit", "cli", "exporters", "benchmarks"))

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
WAITS = ("nonzero", "unique", "masked_select", "_unique2", "repeat_interleave.Tensor")  # only the device knows the size


class FakeGenerator(torch.Generator):
    """A CPU generator that says it is on the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


class Recorder(TorchDispatchMode):
    """Sends what touches the GPU to the fake mode beneath it, runs the rest for real, and counts."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self.waits: Counter[str] = Counter()  # the host waits for the device, by `what @ where`
        self.blocking: Counter[str] = Counter()  # copies to the device that wait for all that was launched before
        self.unpinned: Counter[str] = Counter()  # copies to the device said not to wait, but from pageable memory
        self.pinned: set[int] = set()
        self._alive: list[torch.Tensor] = []  # pinned tensors, so that no id is used twice

    def clear(self) -> None:
        for counter in (self.waits, self.blocking, self.unpinned):
            counter.clear()

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned.add(id(tensor))
        self._alive.append(tensor)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # asked by C++: autograd would look for a guard and a stream of CUDA, which are not there
            return META if _on_gpu(args[0]) else args[0].device
        kwargs = {k: GPU if v == META else v for k, v in kwargs.items()}
        tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        asked = kwargs.get("device")
        if not (any(map(_on_gpu, tensors)) or (asked is not None and torch.device(asked).type == "cuda")):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = str(func).removeprefix("aten.")
        if func is aten._local_scalar_dense.default:
            self.waits[f"scalar read @ {_where()}"] += 1
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if func in COPIES:
            return self._copy(func, args, kwargs)
        if name.startswith(WAITS) and kwargs.get("output_size") is None:
            self.waits[f"{name} @ {_where()}"] += 1
        if "index" in name:
            for index in tree_flatten(args[1:])[0]:
                if isinstance(index, torch.Tensor) and not _on_gpu(index) and index.dim():
                    self.waits[f"{name} by an index on the CPU @ {_where()}"] += 1
                elif _on_gpu(index) and index.dtype == torch.bool:
                    self.waits[f"{name} by a mask @ {_where()}"] += 1
        return None if name.startswith("_fused_") else func(*args, **kwargs)  # in place; some have no fake kernel

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        target, source = (None, args[0]) if func is aten._to_copy.default else args[:2]
        device = target.device if target is not None else torch.device(kwargs.get("device") or source.device)
        if _on_gpu(source) and device.type == "cpu":
            self.waits[f"copy to the CPU @ {_where()}"] += 1
            with unset_fake_temporarily():
                host = torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
                return host if target is None else target.copy_(host)
        if _on_gpu(source):
            return func(*args, **kwargs)
        if source.dim():
            if not (kwargs.get("non_blocking") or (target is not None and len(args) > 2 and args[2])):
                self.blocking[f"copy @ {_where()}"] += 1
            elif id(source) not in self.pinned:
                self.unpinned[f"copy @ {_where()}"] += 1
        fake = self._mode.from_tensor(source.detach())  # torch 2.9 would copy a real one, as a constant, for real
        return func(*(fake if a is source else a for a in args), **kwargs)


class CudaAutocast(TorchFunctionMode):
    """What autocast does on CUDA to the functions that networks call; on a CPU it leaves norms in half precision.

    torch's own does nothing here, because it asks C++ whether a tensor is on CUDA. A test compares the two.
    """

    LOWER = ("conv2d", "linear", "matmul", "__matmul__", "bmm", "mm", "addmm")
    FLOAT32 = ("group_norm", "layer_norm", "cross_entropy", "log_softmax", "softmax", "normalize", "sum", "norm")

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        to = self.dtype if name in self.LOWER else torch.float32 if name in self.FLOAT32 else None

        def cast(value: Any) -> Any:
            half = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(to) if to and half else value

        return func(*tree_map(cast, args), **tree_map(cast, kwargs or {}))


def _on_gpu(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def _where() -> str:
    """File, line and function of the innermost line of this project on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(FOLDERS):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


@contextmanager
def _guard_of_meta() -> Iterator[None]:
    """Gives CUDA the device guard of `meta`, which does nothing: C++ asks for one, and the real one for a driver."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META_TYPE + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[CUDA_TYPE]
    guards[CUDA_TYPE] = guards[META_TYPE]
    try:
        yield
    finally:
        guards[CUDA_TYPE] = before


def _saved_bytes(run: Callable[[], Any]) -> int:
    """As :func:`ncfmkit.runtime.saved_bytes`, which knows a storage by its address; fake ones have none."""
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        kept.append((tensor, storage))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(run())
    return sum(storages.values())


def _torch_generator(device: torch.device | str, seed: int, *key: int | str) -> torch.Generator:
    return FakeGenerator() if torch.device(device).type == "cuda" else PLAIN_GENERATOR(device, seed, *key)


def _autocast(self: runtime.Runtime) -> AbstractContextManager:
    return nullcontext() if self.precision == "fp32" else CudaAutocast(runtime.DTYPES[self.precision])


@contextmanager
def _new_parameters() -> Iterator[None]:
    """`module.to` makes new parameters; set in place, torch 2.9's would stay on `meta`, as which C++ knows the GPU."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


PLAIN_GENERATOR = rng.torch_generator
REPLACED = {
    "torch_generator": (rng.torch_generator, _torch_generator),
    "saved_bytes": (runtime.saved_bytes, _saved_bytes),
}


@contextmanager
def fake_cuda(*, free: int = 70 * 2**30) -> Iterator[Recorder]:
    """Lets what runs inside use `torch.device("cuda", 0)`, of whose memory `free` bytes are free."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(mode)
    patches: list[tuple[Any, str, Any]] = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (torch.cuda, "mem_get_info", lambda device=None: (free, free)),
        (torch.cuda, "get_device_name", lambda device=None: "a GPU that is not there"),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "synchronize", lambda device=None: None),
        (FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()),  # one copy, not one read a number
        (torch.Tensor, "pin_memory", lambda tensor, *_: recorder.pin(tensor)),
        (runtime.Runtime, "autocast", _autocast),
    ]
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] in ("ncfmkit", "benchmarks")]:
        for name, (plain, fake) in REPLACED.items():
            if getattr(module, name, None) is plain:
                patches.append((module, name, fake))
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # load_state_dict takes fake parameters for ones on `meta`
        warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter", UserWarning)
        stack.enter_context(_guard_of_meta())
        stack.enter_context(_new_parameters())
        for target, name, value in patches:
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mode)
        yield stack.enter_context(recorder)


@functools.cache
def unsupported() -> str:
    """Why there can be no such device with this torch on this machine, or ""."""
    if torch.cuda.is_available():
        return "a real CUDA device is here: run pytest -m gpu"
    try:
        with fake_cuda() as recorder, CudaAutocast(torch.bfloat16):
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(4, 4)).to(GPU)
            x = torch.ones(2, 3, 8, 8).to(GPU).requires_grad_()
            network(x).sum().backward()
            assert x.grad is not None
            assert float(x.grad.sum()) == 1
        assert (recorder.waits.total(), recorder.blocking.total()) == (1, 5)
    except Exception as error:  # torch's own insides, which change between versions
        said = " ".join([type(error).__name__, *str(error).splitlines()[:1]])  # an assertion may say nothing
        return f"torch {torch.__version__} does not take to a fake CUDA device: {said}"
    return ""
