"""The table of export formats: one row per format. Light, so that `--help` can import it."""

import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A row of `EXPORTERS`. Functions are named, and imported when they are used (see :meth:`function`)."""

    suffix: str  # of the file
    beside: str  # added to the file's name, the name of what may lie beside it
    precisions: tuple[str, ...]
    extra: str  # of ncfmkit, which brings what it needs
    require: str  # () -> None: raises UserError if what it needs is not installed
    convert: str  # (ONNX file, file to write)
    publish: str  # (written file, its final name) -> the files that are there now
    open: str  # (file) -> what runs it: uint8 [N, C, H, W] -> scores float32 [N, K]

    def function(self, role: str) -> Any:
        """The row's function for that role: require, convert, publish or open."""
        return pkgutil.resolve_name(getattr(self, role))


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        suffix=".onnx",
        beside=".data",
        precisions=("fp32", "fp16", "int8"),
        extra="cpu",
        # an ONNX file, for ONNX Runtime and whatever else reads ONNX
        require="ncfmkit.exporters.onnx:require_packages",
        convert="ncfmkit.exporters.onnx:publish",
        publish="ncfmkit.exporters.onnx:publish",
        open="ncfmkit.exporters.sessions:open_session",
    ),
    "tensorrt": Exporter(
        suffix=".engine",
        beside=".json",
        precisions=("fp32", "fp16", "int8"),
        extra="tensorrt",
        # a TensorRT engine for the GPU of this machine, built from the ONNX file
        require="ncfmkit.exporters.tensorrt:tensorrt",
        convert="ncfmkit.exporters.tensorrt:build_engine",
        publish="ncfmkit.exporters.engine_file:publish",
        open="ncfmkit.exporters.tensorrt:open_engine",
    ),
}
