"""What `ncfmkit doctor` reports: this machine as the toolkit sees it."""

import importlib.metadata
import shutil

import torch

from ncfmkit.config import RuntimeSettings
from ncfmkit.errors import UserError
from ncfmkit.files import bytes_in, cache_dir, format_bytes
from ncfmkit.real.arrays import torchvision_datasets
from ncfmkit.runtime import choose_runtime, compiler_missing, device_name, versions

PACKAGES = ("safetensors", "pyarrow", "pillow", "scikit-learn", "typer", "rich", "onnx", "onnxscript", "tensorrt-cu13")


def examine() -> dict[str, str]:
    """Findings by name, each one line."""
    chosen = choose_runtime(RuntimeSettings())
    missing = compiler_missing(chosen.device)
    findings = {
        "default device and precision": chosen.describe(),
        "GPUs": "; ".join(_gpus()) or f"none found (CUDA of this torch: {torch.version.cuda or 'none, a CPU build'})",
        "bfloat16 instructions of the CPU": "yes" if torch.cpu._is_avx512_bf16_supported() else "no",
        "torch.compile": f"not usable: {missing}" if missing else "usable",
        "torchvision": _torchvision(),
        "cache": _cache(),
    }
    return findings | _onnx_runtime() | versions() | {name: _version(name) for name in PACKAGES}


def _gpus() -> list[str]:
    count = torch.cuda.device_count()
    totals = [torch.cuda.get_device_properties(i).total_memory for i in range(count)]
    return [f"{device_name(torch.device('cuda', i))}, {format_bytes(total)}" for i, total in enumerate(totals)]


def _torchvision() -> str:
    try:
        torchvision_datasets()
    except UserError as error:
        return f"not usable (only cifar10, cifar100, mnist, fashion-mnist and svhn by name need it): {error}"
    return _version("torchvision")


def _onnx_runtime() -> dict[str, str]:
    """Which of its packages is installed, and per provider whether it loads, of which package and on which devices."""
    from ncfmkit.exporters.providers import PROVIDERS, conflicts, found, keep_one, missing, onnxruntime, packages

    try:
        says = f"of another package, {onnxruntime().__version__}"
    except UserError as error:
        return {"ONNX Runtime": f"not usable (only export, validate and predict need it): {error}"}
    installed = packages()
    if installed:
        says = " and ".join(f"{name} {_version(name)}" for name in installed)
    if len(installed) > 1:
        says += f" {keep_one(installed)}"
    findings = {"ONNX Runtime": says}
    for name in PROVIDERS:
        lacking = missing(name)
        findings[f"ONNX Runtime provider {name}"] = f"not usable: {lacking}" if lacking else f"loads ({found(name)})"
    apart = conflicts()
    return findings | ({"versions of CUDA and TensorRT": apart} if apart else {})


def _cache() -> str:
    folder = cache_dir()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    used = bytes_in(folder)
    free = shutil.disk_usage(there).free
    return f"{folder}: {format_bytes(used)} used, {format_bytes(free)} free (NCFMKIT_CACHE moves it)"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
