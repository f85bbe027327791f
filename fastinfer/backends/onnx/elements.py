"""Names of the ONNX element types that the v2 protocol has no datatype for, for refusals.

ONNX and ONNX Runtime number the types from 24 on differently.
"""

from __future__ import annotations

NO_DATATYPE = "the protocol has no datatype for that"
"""The end of a refusal."""

UNSUPPORTED = {
    14: "COMPLEX64",
    15: "COMPLEX128",
    17: "FLOAT8E4M3FN",
    18: "FLOAT8E4M3FNUZ",
    19: "FLOAT8E5M2",
    20: "FLOAT8E5M2FNUZ",
    21: "UINT4",
    22: "INT4",
    23: "FLOAT4E2M1",
    24: "FLOAT8E8M0",
    25: "UINT2",
    26: "INT2",
    27: "FLOAT6E2M3",
    28: "FLOAT6E3M2",
}
"""By ``TensorProto.DataType`` of a model file."""

_RUNTIME = UNSUPPORTED | {24: "UINT2", 25: "INT2", 26: "FLOAT8E8M0"}


def name_of_runtime_type(number: int) -> str:
    """Return the ONNX name of the runtime's ``ONNXTensorElementDataType``."""
    return _RUNTIME.get(number, f"of element type {number}")
