"""What computes: batches in ONNX Runtime, and the built-in workers."""
