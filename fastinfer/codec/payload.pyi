"""Tensors of a request: JSON data and raw bytes. C only: nothing is offered to Python."""
