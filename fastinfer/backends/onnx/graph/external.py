"""Finds the files with a model's external data, which lie beside the model file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from fastinfer.backends.onnx.graph.proto import Graph, Model, Node, ProtoError, Tensor
from fastinfer.backends.onnx.graph.visits import TooLargeError, Visits

_LOCATION = "location"  # the key of the file's path
_TENSOR, _GRAPH, _GRAPHS = 4, 5, 10  # types of attributes


def external_files(model: bytes) -> frozenset[str]:
    """Return the relative paths of the files. Never raises: an unreadable graph has none."""
    if _LOCATION.encode() not in model:
        return frozenset()
    try:
        return frozenset(path for tensor in _tensors(Model(model)) for path in _locations(tensor) if _is_inside(path))
    except (ProtoError, RecursionError, TooLargeError):
        return frozenset()


def _tensors(model: Model) -> Iterator[Tensor]:
    visits = Visits()
    if model.graph is not None:
        yield from _of_graph(model.graph, visits)
    for function in model.functions:
        yield from _of_nodes(function.node, visits)


def _of_graph(graph: Graph, visits: Visits) -> Iterator[Tensor]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from [] if sparse.values is None else [sparse.values]
    yield from _of_nodes(graph.node, visits)


def _of_nodes(nodes: list[Node], visits: Visits) -> Iterator[Tensor]:
    for node in nodes:
        visits.next()
        for attribute in node.attribute:
            if attribute.type == _TENSOR and attribute.t is not None:
                yield attribute.t
            elif attribute.type in (_GRAPH, _GRAPHS):
                for graph in [attribute.g] if attribute.g is not None else attribute.graphs:
                    yield from _of_graph(graph, visits)


def _locations(tensor: Tensor) -> Iterator[str]:
    return (entry.value for entry in tensor.external_data if entry.key == _LOCATION)


def _is_inside(path: str) -> bool:
    """Whether a path stays in the model file's directory; the runtime refuses any other."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
