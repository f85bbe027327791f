"""What request heads mean, by what decides about it. Loop's thread only."""

from fastinfer.http.exchange import Head

class HeadCache:
    """Clients repeat their heads but for the values of some fields. Finding one here costs a small part of
    understanding it (`make bench-micro` tells both); each connection looks at its own last one before."""

    def __len__(self) -> int: ...
    def get(self, raw: bytes) -> Head | None:
        """The meaning of a whole head. None: it is not known, or one with such values may mean something else."""
    def remember(self, raw: bytes, head: Head) -> None:
        """Keeps the meaning of a sound head; a flood of different ones empties the memory and cannot fill it."""
