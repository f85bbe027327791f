"""One change of what is loaded, from the view of the process that makes it."""

from __future__ import annotations

from hashlib import blake2b


def text_mark(text: str) -> str:
    """The digest of a configuration that a load has given; the text itself is sent and kept once."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Operation:
    """A change that a single process makes; :mod:`fastinfer.repository.two_phase` has a subclass for several processes.

    Args:
        number: distinguishes models that are loaded one after another under the same name.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def number_of(self, version: int) -> int:  # noqa: ARG002
        """The number of a model's version that this operation makes."""
        return self.number

    async def prepared(self, name: str, files: str) -> None:
        """Reports that an endpoint is ready to change; returns when it is ready in all processes.

        Args:
            name: the endpoint.
            files: a fingerprint of the files.

        Raises:
            ApiError: a process cannot make the change.
        """
