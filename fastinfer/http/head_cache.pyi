"""Parsed request heads by their outlines. Loop's thread only."""

from fastinfer.http.exchange import RequestHead

class HeadCache:
    """Clients repeat their heads except for the values of some fields. To find one here costs a small part of parsing
    it (`make bench-micro` measures both); each connection first compares with its own last one."""

    def __len__(self) -> int: ...
    def get(self, raw: bytes) -> RequestHead | None:
        """The parsed form of a whole head. None: it is not cached, or may mean something else with its values."""
    def remember(self, raw: bytes, head: RequestHead) -> None:
        """Caches a valid head. A flood of different heads empties the cache, and cannot make it grow."""
