"""The requests that wait for one loaded model. Loop's thread only."""

class QueuePolicy:
    """How the requests of a priority wait.

    Args:
        max_size: requests that may wait; one more is refused with 503.
        timeout_us: microseconds until a request without a timeout of its own is answered with 504.
        delay_us: a request that has waited for so many microseconds lets others of its priority go first; 0: none does.
        allow_override: the timeout that a request gives counts.
    """

    max_size: int
    timeout_us: int
    delay_ns: int
    allow_override: bool
    waiting: int
    def __init__(self, *, max_size: int, timeout_us: int, delay_us: int = 0, allow_override: bool = True) -> None: ...
