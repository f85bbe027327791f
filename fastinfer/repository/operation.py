"""One change of what is loaded, as the process that makes it sees it."""

from __future__ import annotations

from hashlib import blake2b


def text_mark(text: str) -> str:
    """Stands for a configuration that a load has given: the texts are sent and kept once."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Operation:
    """A change that a process makes by itself; where several do the same, :mod:`fastinfer.repository.replicated` has
    another.

    Args:
        number: tells models apart that were loaded one after the other under the same name.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def number_of(self, version: int) -> int:  # noqa: ARG002
        """The number of a version of a model that is made now."""
        return self.number

    async def prepared(self, name: str, made_of: str) -> None:
        """An endpoint is about to change: returns when all processes are ready to.

        Args:
            name: the endpoint.
            made_of: a fingerprint of the files.

        Raises:
            ApiError: one of them is not.
        """
