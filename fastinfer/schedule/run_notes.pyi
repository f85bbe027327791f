"""One model's notes in the crash record."""

from fastinfer.base.errors import ApiError
from fastinfer.shared.crash_record import CrashSlot
from fastinfer.tensor.message import InferRequest

class RunNotes:
    """What a scheduler and a runner need to know of crashes. Loop's thread only.

    Args:
        slot: the process's.
        key: of the model as it was loaded, not 0.
        group: the key of its name.
        label: what it is, for people.
    """

    slot: CrashSlot

    def __init__(self, slot: CrashSlot, key: int, group: int, label: bytes) -> None: ...
    def fingerprint(self, request: InferRequest) -> int:
        """What tells a request from others: a hash of the model and of its inputs, which are in the model's order.

        Of an input of more than 64 KiB the size, both ends and pieces between them count. Kept by the request.
        """
    def why_withdrawn(self) -> ApiError | None:
        """503 with the reason and when to come back, if the model has ended processes with several different requests
        and is not run for a time; None: it is run."""
    def reinstate(self) -> bool:
        """The model is run again; returns whether it was withdrawn."""
