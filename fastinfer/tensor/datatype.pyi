"""The v2 datatypes (Open Inference Protocol, "Tensor Data Types")."""

NAMES: tuple[str, ...]
"""All names as on the wire, in the order of their ids: BOOL, UINT8 ... FP64, BYTES."""

def itemsize(name: str) -> int:
    """Bytes of one element; 0 for BYTES, whose elements have lengths of their own. ValueError for an unknown name."""

def numpy_dtype(name: str) -> str:
    """numpy's dtype string, little-endian; BF16 is carried as ``<u2``, BYTES as ``O``. ValueError for an unknown
    name."""
