"""The backend ``python``: serves a class of the repository's own code, ``Model`` in ``model.py``.

    class Model:
        def load(self, config: dict) -> None: ...
        def infer(self, inputs: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]: ...

See docs/python-models.md. A model may raise :class:`InvalidInput` to answer 400.
"""


class InvalidInput(Exception):
    """The inputs cannot be used; the text is answered with status 400."""
