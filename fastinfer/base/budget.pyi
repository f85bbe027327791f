class Budget:
    """The memory that requests hold in a process: bodies, inflated bodies, tensors, outputs, the text of answers.

    Thread-safe.

    Args:
        limit: bytes; by default there is none.

    Attributes:
        used: bytes that are held now.
        refused: how often a reservation was refused.
    """

    limit: int
    used: int
    refused: int
    def __init__(self, limit: int = ...) -> None: ...
    def reserve(self, nbytes: int) -> bool:
        """Counts memory that is about to be made; False, and nothing is counted, if that would be over the limit."""

    def release(self, nbytes: int) -> None:
        """Gives back what was counted."""
