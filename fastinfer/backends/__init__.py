"""Engines that run batches: ONNX Runtime, Python models, and the built-in workers."""
