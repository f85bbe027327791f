class Budget:
    """Counts the memory that requests hold in a process: bodies, inflated bodies, tensors, outputs, answers as text.

    Thread-safe.

    Args:
        limit: in bytes; by default there is no limit.

    Attributes:
        used: bytes that are reserved now.
        refused: how often a reservation was refused.
    """

    limit: int
    used: int
    refused: int
    def __init__(self, limit: int = ...) -> None: ...
    def reserve(self, nbytes: int) -> bool:
        """Counts memory that is about to be allocated. Returns False, and counts nothing, if it exceeds the limit."""

    def release(self, nbytes: int) -> None:
        """Returns reserved bytes to the budget."""
