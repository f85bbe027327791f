"""Reads and writes ONNX graphs, and proves from a graph that the rows of a batch are independent."""
