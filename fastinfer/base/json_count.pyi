"""How much there is in a JSON text, before somebody makes Python objects of it."""

from typing_extensions import Buffer

def values_and_depth(text: Buffer) -> tuple[int, int]:
    """The number of values in a JSON text, and how many lists and objects are in each other.

    It takes a millisecond for a megabyte, and the GIL is released. Of what is not JSON the numbers are upper bounds
    too: a parser makes no more values of it before it finds that out.
    """
