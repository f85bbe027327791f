"""Tensors with their memory, the records that carry them, and what a model takes."""
