"""Calls KServe's InferenceRESTClient; runs in the environment that has it.

Each line of stdin is a call, ``{"method": ..., "arguments": {...}}``; each line of stdout its outcome:
``{"result": ...}`` or ``{"raised": <the exception's name>, "text": ...}``. Requests and tensors are written as JSON:
``data`` is what the tensor holds, ``form`` how the client shall send it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import to_np_dtype


def infer_input(tensor: dict[str, Any]) -> InferInput:
    """``form``: ``list`` is given as it is; ``json`` and ``binary`` go through numpy."""
    form = tensor["form"]
    if form == "list":
        return InferInput(tensor["name"], tensor["shape"], tensor["datatype"], tensor["data"])
    made = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
    array = np.array(tensor["data"], to_np_dtype(tensor["datatype"])).reshape(tensor["shape"])
    made.set_data_from_numpy(array, binary_data=form == "binary")
    return made


def infer_request(request: dict[str, Any]) -> InferRequest:
    outputs = [RequestedOutput(each["name"], each.get("parameters")) for each in request.get("outputs", [])]
    return InferRequest(
        request["model"],
        [infer_input(each) for each in request["inputs"]],
        request_id=request.get("id"),
        parameters=request.get("parameters"),
        request_outputs=outputs or None,
    )


async def infer(
    client: InferenceRESTClient, url: str, request: dict[str, Any], times: int = 1, **options: Any
) -> dict[str, Any]:
    """Asks ``times`` times at once; the answer is the last one's, as the client's own objects show it."""
    headers: dict[str, str] = {}
    asked = [
        client.infer(
            url,
            request["body"] if "body" in request else infer_request(request),
            model_name=request["model"],
            response_headers=headers,
            **options,
        )
        for _ in range(times)
    ]
    answer = (await asyncio.gather(*asked))[-1]
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
            "data": output.data,
            "parameters": output.parameters,
        }
        for output in answer.outputs
    ]
    return {"model": answer.model_name, "id": answer.id, "outputs": outputs, "type": headers["content-type"]}


async def outcome(client: InferenceRESTClient, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = getattr(client, method)
    try:
        if method == "infer":
            return {"result": await infer(client, arguments.pop("base_url"), **arguments)}
        return {"result": await call(**arguments)}
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}


async def main() -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=30)) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await outcome(client, **json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
