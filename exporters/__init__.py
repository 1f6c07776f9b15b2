"""Students to ONNX and TensorRT, and the proof that what was exported does what was trained."""

if __name__ != "ncfmkit.exporters":
    raise ImportError("this folder installs as ncfmkit.exporters: import ncfmkit.exporters")
