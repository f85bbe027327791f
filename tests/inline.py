"""A model with its scheduler and native threads, on a loop of its own; for tests of runs on the loop's thread."""

import asyncio
from contextlib import asynccontextmanager

from fastinfer.backends.onnx.backend import OnnxModel
from fastinfer.backends.onnx.ort import Session
from fastinfer.native.executor import Executor
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor


class Model:
    """A model whose short batches run on the loop's thread, once their shape was timed."""

    def __init__(self, model, executor, batched, inline_run_us):
        session = Session(model=model)
        self.names = [spec.name for spec in session.inputs]
        signature = Signature(session.inputs, session.outputs, batched=batched, max_batch_size=64)
        self.worker = OnnxModel(session, signature, executor, inline_run_us)
        self.stats = ModelStats()
        self.scheduler = Scheduler(
            self.worker.start,
            BatchingPolicy(64 if batched else 1),
            instances=1,
            max_queue_size=100,
            timeout_s=30,
            stats=self.stats,
            loop=asyncio.get_running_loop(),
        )

    @property
    def bound_nbytes(self):
        return self.worker.start.bound_nbytes

    async def ask(self, *requests):
        """The outcomes of requests (each a list of arrays) that arrive together."""
        futures = []
        for arrays in requests:
            tensors = [Tensor.from_numpy(name, array) for name, array in zip(self.names, arrays, strict=True)]
            future = asyncio.get_running_loop().create_future()
            request = InferRequest(tensors)
            request.rows = len(arrays[0])
            request.complete = lambda _, outcome, future=future: future.set_result(outcome)
            futures.append(future)
            self.scheduler.submit(request)
        return await asyncio.wait_for(asyncio.gather(*futures), 30)


def with_model(model, scenario, batched=True, inline_run_us=1_000_000):
    """Runs a scenario (a coroutine function of a Model) on a loop of its own."""

    @asynccontextmanager
    async def executor():
        loop = asyncio.get_running_loop()
        made = Executor(1)
        loop.add_reader(made.fileno(), made.drain)
        try:
            yield made
        finally:
            loop.remove_reader(made.fileno())
            made.close()

    async def main():
        async with executor() as threads:
            return await scenario(Model(model, threads, batched, inline_run_us))

    return asyncio.run(main())
