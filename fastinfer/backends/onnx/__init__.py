"""ONNX models, run by ONNX Runtime through its C API."""
