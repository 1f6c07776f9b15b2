"""Optional parts of ncfmkit: their import, and how messages name the command that installs them."""

import importlib
from types import ModuleType

from ncfmkit.errors import UserError

_ONNX = ("onnx>=1.18", "onnxscript>=0.5")
EXTRAS: dict[str, tuple[str, ...]] = {  # as pyproject.toml has them for Linux x86-64
    "cpu": (*_ONNX, "onnxruntime>=1.22"),
    "gpu": (*_ONNX, "onnxruntime-gpu>=1.23"),
    "openvino": ("onnxruntime-ep-openvino>=1.8",),
    "webgpu": ("onnxruntime-ep-webgpu>=0.4",),
    "tensorrt-rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13>=0.5",),
    "tensorrt": (*_ONNX, "onnxruntime-gpu>=1.23", "tensorrt-cu13>=10.13.3,<11"),
    "tensorboard": ("tensorboard>=2.16",),
    "hub": ("datasets>=3", "huggingface_hub>=0.26"),
    "remote": ("fsspec>=2024.6", "aiohttp>=3.9", "s3fs>=2024.6"),
}


def install(extra: str) -> str:
    """`pip install "datasets>=3" ... (the extra 'hub')`.

    It names the packages: the name of ncfmkit means nothing to pip where it runs from a checkout.
    """
    packages = " ".join(f'"{package}"' for package in EXTRAS[extra])
    return f"pip install {packages} (the extra {extra!r})"


def import_optional(module: str, extra: str, use: str) -> ModuleType:
    """A library of an extra; `use` begins the message: "hf://me/birds is read by the library".

    Raises:
        UserError: it does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{use} {module}, which does not import here ({error}): {install(extra)}") from None
