"""Rules of operators: which keep the rows of a batch independent, and along which axes.

A rule gets the facts about an operator's inputs, and returns where the rows are in its outputs, or raises
:class:`~fastinfer.backends.onnx.graph.values.Mixes`. An operator without a rule is assumed to mix rows, because a
missed batch costs throughput, but a wrong batch costs an answer. The rules follow the operators' specifications in
"ONNX Operators" (``ai.onnx`` 7 to 26, ``ai.onnx.ml`` 1 to 5) and in ONNX Runtime's "ContribOperators.md"
(``com.microsoft``).

A rule never gets mixed inputs: they make the outputs mixed before it is called. It returns the dimensions of outputs as
far as later operators need them; a size that depends on values or on rare parameters is a new symbol.

Pure.
"""

from fastinfer.backends.onnx.graph.operators import (
    axes,
    classical,
    elementwise,
    images,
    places,
    products,
    quantized,
    selection,
    sequences,
    shapes,
    texts,
)
from fastinfer.backends.onnx.graph.operators.call import (
    COUPLES,
    MICROSOFT,
    ML,
    ONNX,
    RANDOM,
    RULES,
    SAME_BITS,
    SHAPE_INPUTS,
    Call,
)

__all__ = ["COUPLES", "MICROSOFT", "ML", "ONNX", "RANDOM", "RULES", "SAME_BITS", "SHAPE_INPUTS", "Call"]

# Each module registers its rules.
_ = (axes, classical, elementwise, images, places, products, quantized, selection, sequences, shapes, texts)
