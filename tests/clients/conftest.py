"""Servers for the stock clients: one that all tests share, and models of every datatype."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx_models
import pytest
from clients.support import add_model
from support import REPOSITORY, serving


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that the bundled repository does not have."""
    directory = tmp_path_factory.mktemp("models")
    add = partial(add_model, directory)

    for datatype in onnx_models.ONNX_TYPES:
        add(f"rows_{datatype.lower()}", onnx_models.identity(datatype, ["batch", "columns"]))
        add(f"scalar_{datatype.lower()}", onnx_models.identity(datatype, []))
    add("every_datatype", onnx_models.identities({name: name for name in onnx_models.ONNX_TYPES}))
    add("unicode", onnx_models.identities({"größe π": "FP32"}))
    add("gather", onnx_models.gather_rows())
    add("two_at_most", onnx_models.identity("FP32"), "max_batch_size = 2\n")
    add("endless", onnx_models.endless(), "max_batch_size = 0\n")
    add_model(
        directory,
        "endless_for_two",
        onnx_models.endless(),
        "max_batch_size = 0\n[dynamic_batching]\nmax_queue_size = 1\n",
    )
    labelled = 'max_batch_size = 8\n[[outputs]]\nname = "y"\ndatatype = "FP32"\ndims = [3]\n'
    add_model(
        directory, "labelled", onnx_models.identity("FP32", ["batch", 3]), labelled + 'label_filename = "labels.txt"\n'
    )
    (directory / "labelled" / "labels.txt").write_text("cat\ndog\nbird\n")
    return directory


@pytest.fixture(scope="session")
def server(repository: Path):
    """Serves the bundled models and those of ``repository``; tests leave it as it was."""
    with serving("--model-repository", str(repository), "--compress-answers", "1KiB") as running:
        yield running


@pytest.fixture
def own_server():
    """A server that the test may change."""
    with serving("--load", "simple", repository=REPOSITORY) as running:
        yield running


@pytest.fixture(params=["sync", "async_infer", "aio"])
def client(server, request):
    """The client in each of its forms, on the shared server."""
    opened = open_client(request.param, server)
    yield opened
    opened.close()


@pytest.fixture(params=["sync", "aio"])
def own_client(own_server, request):
    """The client on a server that the test may change."""
    opened = open_client(request.param, own_server)
    yield opened
    opened.close()


def open_client(form, server):
    from clients import triton  # where it is not installed, nobody comes here

    return triton.CLIENTS[form](triton.address(server))
