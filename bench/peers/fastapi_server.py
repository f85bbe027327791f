"""The server that people write themselves: FastAPI, pydantic and onnxruntime. `fastapi_server.py PORT NAME=FILE...`

As tutorials have it: typed request and response, the session's default options, one uvicorn process (with uvloop and
httptools, as `uvicorn[standard]` brings them).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

NUMPY = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}
DATATYPE = {np.dtype(kind): name for name, kind in NUMPY.items()}


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    id: str | None = None
    outputs: list[Tensor]


app = FastAPI()
sessions: dict[str, onnxruntime.InferenceSession] = {}


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: InferRequest) -> InferResponse:
    if model not in sessions:
        raise HTTPException(404, f"no model {model}")
    session = sessions[model]
    feeds = {each.name: np.array(each.data, NUMPY[each.datatype]).reshape(each.shape) for each in request.inputs}
    results = session.run(None, feeds)
    outputs = [
        Tensor(name=meta.name, shape=list(array.shape), datatype=DATATYPE[array.dtype], data=array.ravel().tolist())
        for meta, array in zip(session.get_outputs(), results, strict=True)
    ]
    return InferResponse(model_name=model, id=request.id, outputs=outputs)


if __name__ == "__main__":
    for word in sys.argv[2:]:
        name, _, file = word.partition("=")
        sessions[name] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning", backlog=4096)
