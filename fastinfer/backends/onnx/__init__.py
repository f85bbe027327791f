"""Models in ONNX Runtime, through its C API."""
