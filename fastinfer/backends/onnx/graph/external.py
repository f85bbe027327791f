"""Finds and changes the names of the files with a model's external data, which lie beside the model file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from fastinfer.backends.onnx.graph.proto import Attribute, Graph, Model, Node, ProtoError, Tensor
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


# --- Other names ------------------------------------------------------------------------------------------------------


def relocated(model: bytes | memoryview, names: Mapping[str, str]) -> bytes:
    """Return a model whose external data is in files of other names.

    Args:
        model: the model, which :func:`external_files` could read.
        names: the new relative paths, by the old ones.
    """
    made, visits = Model(model), Visits()
    graph = made.graph
    if graph is not None and _rename_in_graph(graph, names, visits):
        made.graph = graph
    functions = made.functions
    changed = False
    for function in functions:
        nodes = function.node
        if _rename_in_nodes(nodes, names, visits):
            function.node, changed = nodes, True
    if changed:
        made.functions = functions
    return made.to_bytes()


def _rename_in_graph(graph: Graph, names: Mapping[str, str], visits: Visits) -> bool:
    """Rename in a graph; returns whether it has changed. A nested message that has changed is assigned again."""
    tensors, sparse, nodes = graph.initializer, graph.sparse_initializer, graph.node
    changed = [_rename(tensor, names) for tensor in tensors]
    if any(changed):
        graph.initializer = tensors
    for each in sparse:
        values = each.values
        if values is not None and _rename(values, names):
            each.values = values
            changed.append(True)
    if sparse:
        graph.sparse_initializer = sparse
    if _rename_in_nodes(nodes, names, visits):
        graph.node = nodes
        changed.append(True)
    return any(changed)


def _rename_in_nodes(nodes: list[Node], names: Mapping[str, str], visits: Visits) -> bool:
    changed = False
    for node in nodes:
        visits.next()
        attributes = node.attribute
        renamed = [_rename_in_attribute(attribute, names, visits) for attribute in attributes]
        if any(renamed):
            node.attribute, changed = attributes, True
    return changed


def _rename_in_attribute(attribute: Attribute, names: Mapping[str, str], visits: Visits) -> bool:
    if attribute.type == _TENSOR and (tensor := attribute.t) is not None and _rename(tensor, names):
        attribute.t = tensor
        return True
    if attribute.type in (_GRAPH, _GRAPHS):
        if (graph := attribute.g) is not None:
            if _rename_in_graph(graph, names, visits):
                attribute.g = graph
                return True
            return False
        graphs = attribute.graphs
        renamed = [_rename_in_graph(graph, names, visits) for graph in graphs]
        if any(renamed):
            attribute.graphs = graphs
            return True
    return False


def _rename(tensor: Tensor, names: Mapping[str, str]) -> bool:
    entries = tensor.external_data
    found = [entry for entry in entries if entry.key == _LOCATION and entry.value in names]
    for entry in found:
        entry.value = names[entry.value]
    if found:
        tensor.external_data = entries
    return bool(found)
