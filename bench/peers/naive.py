"""The naive server: what a good engineer writes in an afternoon. `python naive.py PORT MODEL_REPOSITORY...`

httptools, orjson, numpy and `onnxruntime.InferenceSession.run`, all on the loop's thread: one process, no batching, no
checks, no limits, only FP and integer tensors. Lean on purpose: a fast stack with nothing around it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import httptools
import numpy as np
import onnxruntime
import orjson
import uvloop

NUMPY = {
    "BOOL": np.dtype("bool"),
    "FP16": np.dtype("float16"),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
    **{name.upper(): np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name.upper(): np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
DATATYPE = {dtype: name for name, dtype in NUMPY.items()}


class Model:
    """A session, and the names of its outputs."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the loop's thread; a pool would spin beside the load generator
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def infer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        feeds = {
            tensor["name"]: np.array(tensor["data"], NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in request["inputs"]
        }
        results = self.session.run(None, feeds)
        return [
            {"name": name, "datatype": DATATYPE[array.dtype], "shape": array.shape, "data": array.ravel()}
            for name, array in zip(self.outputs, results, strict=True)
        ]


def load(repositories: list[str]) -> dict[bytes, tuple[str, Model]]:
    """The newest version of each model, by the URL that it answers."""
    models = {}
    for repository in repositories:
        for file in sorted(Path(repository).glob("*/[1-9]*/*.onnx"), key=lambda file: int(file.parent.name)):
            name = file.parents[1].name
            models[f"/v2/models/{name}/infer".encode()] = (name, Model(file))
    return models


class Naive(asyncio.Protocol):
    """One connection."""

    models: dict[bytes, tuple[str, Model]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        if self.url == b"/v2/health/ready":
            self.respond(b'{"ready":true}')
            return
        name, model = self.models[self.url]
        request = orjson.loads(body)
        answer = {"model_name": name, "model_version": "1", "outputs": model.infer(request)}
        if request.get("id"):
            answer["id"] = request["id"]
        self.respond(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def respond(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Naive, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    Naive.models = load(sys.argv[2:])
    uvloop.run(main(int(sys.argv[1])))
