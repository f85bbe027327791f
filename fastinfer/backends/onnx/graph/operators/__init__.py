"""Which operators keep the rows of a batch apart, and along which axes: a rule for each that is known.

A rule is given what is known of an operator's inputs, and says where the rows are in its outputs, or raises
:class:`Mixes`. What has no rule does not keep rows apart: a model that could have been batched and is not costs
throughput, a wrong batch costs an answer. The rules follow the operators' specifications in "ONNX Operators"
(``ai.onnx`` 7 to 26, ``ai.onnx.ml`` 1 to 5) and in ONNX Runtime's "ContribOperators.md" (``com.microsoft``).

A rule's inputs have no mixed values: those are passed on before it is asked. The dimensions of outputs are told as far
as later operators need them: a size that depends on values or on parameters that are seldom met is a new symbol.

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
_ = (axes, classical, elementwise, images, places, products, quantized, selection, sequences, shapes)
