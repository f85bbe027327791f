"""Explains refusals of ONNX Runtime: for an unknown operator, what brings it."""

from __future__ import annotations

import re

_NOT_REGISTERED = re.compile(r"Fatal error: (.{0,200}):(\w{1,200})\(-?\d+\) is not a registered function/op")
_NODE = re.compile(r'In Node, \("[^"\n]{0,1000}", (\w{1,200}), "([^"\n]{0,200})", -?\d+\)')
_NOT_IN_SET = re.compile(r" No Op registered for \w+ with domain_version of (\d+)")
_NO_SET = " No opset import for domain "
_EXTENSIONS = ("ai.onnx.contrib", "com.microsoft.extensions")  # the domains of onnxruntime-extensions
_RUNTIME = re.compile(r"(ai\.onnx|com\.microsoft)(\.|$)|^$")  # domains of the runtime itself
_PACKAGES = {
    "mmdeploy": "the library libmmdeploy_onnxruntime_ops.so of mmdeploy",
    "com.nvidia": "a library of TensorRT",
    "org.pytorch.aten": "ONNX Runtime for training; export the model again without the fallback to ATen",
}


def explained(message: str, *, extensions: bool, libraries: bool) -> str:
    """Add to a refusal of an unknown operator what would bring the operator; any other text is returned as it is.

    Args:
        message: the runtime's text.
        extensions: whether the operators of onnxruntime-extensions are loaded.
        libraries: whether other libraries of operators are loaded.
    """
    found = _NOT_REGISTERED.search(message)
    if found is not None:
        domain, operator = found.groups()
        return f"operator '{operator}' of domain '{domain}' is not known: {_source(domain, extensions, libraries)}"
    node = _NODE.search(message)
    if node is None:
        return message
    operator, domain = node.groups()
    if _NO_SET in message:
        return f"operator '{operator}' is of domain '{domain}', whose version the model does not import"
    found = _NOT_IN_SET.search(message)
    if found is not None:
        return f"operator '{operator}' is not in version {found[1]} of the operator set '{domain or 'ai.onnx'}'"
    return message


def _source(domain: str, extensions: bool, libraries: bool) -> str:
    if domain in _EXTENSIONS:
        if extensions:
            return "the installed version of onnxruntime-extensions does not have it"
        return (
            "it is in the package onnxruntime-extensions: pip install 'fastinfer[extensions]', and extensions = true "
            "in the model's config.toml"
        )
    if _RUNTIME.match(domain):
        return "this version or build of ONNX Runtime does not have it"
    if libraries:
        return "the libraries of model_operations.op_library_filename do not have it"
    source = _PACKAGES.get(domain, "a library of operators")
    return f"it is in {source}; name the library with model_operations.op_library_filename in the model's configuration"
