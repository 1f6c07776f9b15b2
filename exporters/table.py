"""The table of export formats: one row per format. Light, so that `--help` can import it."""

import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A row of `EXPORTERS`. Functions are named, and imported when they are used (see :meth:`function`)."""

    suffix: str  # of the file; "": it writes a folder
    beside: str  # added to the file's name, the name of what may lie beside it
    precisions: tuple[str, ...]
    extra: str  # of ncfmkit, which brings what it needs
    require: str  # () -> None: raises UserError if what it needs is not installed
    convert: str  # (ONNX file, file to write)
    publish: str  # (written file, its final name) -> the files that are there now
    open: str  # (file) -> what runs it: uint8 [N, C, H, W] -> scores float32 [N, K]
    layouts: tuple[str, ...] | None = None  # of the images; None: all
    runtime: str | None = None  # (place or None, download) -> what runs the model, which `convert` takes as `runtime`
    foreign: str | None = None  # (folder) -> names in it that we did not write: such a folder is never overwritten
    trying: str | None = None  # a command that tries what was written, `{}` its name

    def function(self, role: str) -> Any:
        """The row's function for that role: require, convert, publish, open, runtime or foreign."""
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
    "web": Exporter(
        suffix="",
        beside="",
        precisions=("fp32", "fp16", "int8"),
        extra="cpu",
        # a folder with the ONNX file and a page that runs it in a browser
        require="ncfmkit.exporters.onnx:require_packages",
        convert="ncfmkit.exporters.web:write_site",
        publish="ncfmkit.exporters.web:publish",
        open="ncfmkit.exporters.web:open_site",
        layouts=("uint8-nchw",),
        runtime="ncfmkit.exporters.web_runtime:find_runtime",
        foreign="ncfmkit.exporters.web:foreign",
        trying="python -m http.server --bind 127.0.0.1 -d {}",
    ),
}
