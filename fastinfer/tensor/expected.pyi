class Expectation:
    """The inputs that a model takes, for the decoder; made by :class:`fastinfer.tensor.signature.Signature`."""
