"""fastinfer serves ONNX models over the KServe v2 REST protocol."""

__version__ = "0.1.0"
