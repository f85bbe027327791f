"""One model's notes in the crash record."""

from fastinfer.base.errors import ApiError
from fastinfer.shared.crash_record import CrashSlot
from fastinfer.tensor.message import InferRequest

class RunNotes:
    """The crash record for the scheduler and the runner of one model. Loop's thread only.

    Args:
        slot: the process's.
        key: of the model as it was loaded, not 0.
        group: the key of its name.
        label: the displayed name of the model.
    """

    slot: CrashSlot

    def __init__(self, slot: CrashSlot, key: int, group: int, label: bytes) -> None: ...
    def fingerprint(self, request: InferRequest) -> int:
        """The identity of a request: a hash of the model and of the inputs, which are in the model's order.

        Of an input of more than 64 KiB, the hash takes the size, both ends and samples. The request keeps it.
        """
    def why_withdrawn(self) -> ApiError | None:
        """503 with the reason and when to come back, if the model has ended processes with several different requests
        and is not run for a time; else None."""
    def reinstate(self) -> bool:
        """The model is run again; returns whether it was withdrawn."""
