"""Exports students to ONNX and TensorRT, and validates that the exported model matches the trained one."""

if __name__ != "ncfmkit.exporters":
    raise ImportError("this folder installs as ncfmkit.exporters: import ncfmkit.exporters")
