"""The backend ``python``: loads ``model.py`` files. Off without the server's option ``--allow-python-models``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fastinfer.backends.backend import BackendContext, Loaded, Source
from fastinfer.backends.labels import labels_of
from fastinfer.backends.parameters import Integer, Number, Parameters
from fastinfer.backends.python.host import Code, Host, ProcessHost, ThreadHost
from fastinfer.backends.python.hosted import Described, HostedError
from fastinfer.backends.python.model import PythonModel
from fastinfer.backends.python.process import EndedError
from fastinfer.backends.python.resources import Resources
from fastinfer.backends.warm_up import warm_ups
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_schema import TensorConfig
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec

_MAX_PROCESSES = 64  # of one model


class PythonParameters(Parameters):
    """Of a model's load.

    Attributes:
        isolation: ``process``: in processes of its own; ``thread``: in the server's process.
        run_timeout_s: seconds that a run may take; then its process is replaced. By default the server's
            ``--request-timeout-s``.
        instances: batches that run at once, each in a process (or on a thread) of its own.
    """

    isolation: Literal["process", "thread"] = "process"
    run_timeout_s: Annotated[Number, Field(gt=0, le=86_400)] | None = None
    instances: Annotated[Integer, Field(ge=1, le=_MAX_PROCESSES)] | None = None

    @classmethod
    def known(cls, name: str) -> bool:  # noqa: ARG003 - the class of the model gets them all
        return True


class PythonBackend:
    """Loads ``model.py`` files; a :class:`fastinfer.backends.backend.Backend`."""

    name: ClassVar[str] = "python"
    aliases: ClassVar[tuple[str, ...]] = ()
    pattern: ClassVar[str] = "model.py"
    parameters = PythonParameters

    def __init__(self, context: BackendContext) -> None:
        config = context.config
        self._allowed, self._request_timeout_s = config.allow_python_models, config.request_timeout_s
        self._threads = ThreadPoolExecutor(_MAX_PROCESSES, "fastinfer-python")
        self._resources = Resources(
            context.loop, self._threads, context.budget, config.off_loop_bytes, config.load_timeout_s
        )

    async def load(self, source: Source[PythonParameters]) -> Loaded:
        if not self._allowed:
            raise _refusal(source, "is Python code, which is run only with --allow-python-models")
        parameters = source.parameters
        content, signature = await source.read(lambda content: (content, _signature(source)))
        instances = parameters.instances or source.config.instances
        if instances > _MAX_PROCESSES:
            raise _refusal(source, f"has {instances} instances, at most {_MAX_PROCESSES} are allowed")
        code = Code(
            name=f"model '{source.name}' version {source.version}",
            source=content,
            path=source.path,
            config=_config(source),
            inputs=[Described(spec.name, spec.datatype, spec.shape) for spec in signature.inputs],
            outputs=[Described(spec.name, spec.datatype, spec.shape) for spec in signature.outputs],
            batched=signature.batched,
        )
        kind = ProcessHost if parameters.isolation == "process" else ThreadHost
        hosts: list[Host] = [kind(code, self._resources) for _ in range(instances)]
        limit_s = parameters.run_timeout_s or self._request_timeout_s
        model = PythonModel(code, signature, hosts, self._resources.loop, limit_s)
        try:
            await self._bring_up(source, model, hosts)
        except BaseException:
            model.close()
            raise
        return Loaded(model, max(signature.max_batch_size, 1), instances)

    def close(self) -> None:
        self._threads.shutdown(wait=False)  # the interpreter waits for them: models that close have some seconds

    async def _bring_up(self, source: Source[PythonParameters], model: PythonModel, hosts: list[Host]) -> None:
        """Loads the model in each place, and runs its warm-up there. ApiError."""
        signature = model.signature
        for host in hosts:
            try:
                await host.load()
            except TimeoutError:
                limit_s = self._resources.load_timeout_s
                raise ApiError(504, f"loading model '{source.name}' has not ended in {limit_s:g} s") from None
            except HostedError as error:
                raise _refusal(source, f"does not load: {without_paths(error.reason)}") from error
            except EndedError as error:
                raise _refusal(source, f"does not load: its process {error}") from error
            except OSError as error:
                raise ApiError(
                    503, f"no process for model '{source.name}': {error.strerror}", retry_after_s=1
                ) from error
            for tensors in warm_ups(source.name, signature, source.config, source.directory):
                rows = tensors[0].shape[0] if signature.batched else 1
                try:
                    await model.attempt(host, [tensors], [rows])
                except ApiError as error:
                    raise _refusal(source, f"does not run its warm-up: {error.message}") from error


def _signature(source: Source[PythonParameters]) -> Signature:
    """What the configuration declares. ApiError 400."""
    config = source.config
    if not config.inputs or not config.outputs:
        raise _refusal(source, "needs a config.toml that declares its inputs and outputs")
    optional = next((each.name for each in config.inputs if each.optional), None)
    if optional is not None:
        raise _refusal(source, f"has the optional input '{optional}': only ONNX models can have such inputs")
    if any(axis != 0 for axis in config.batch_axes.values()):
        raise _refusal(source, "has its rows along the first dimension: batch_axis is for ONNX models")
    batched = bool(config.max_batch_size)
    try:
        labels = labels_of(source.directory, config)
    except ConfigError as error:
        raise _refusal(source, str(error)) from error
    return Signature(
        [_spec(each, batched) for each in config.inputs],
        [_spec(each, batched) for each in config.outputs],
        batched=batched,
        max_batch_size=config.max_batch_size or 0,
        max_batch_size_configured=batched,
        labels=labels,
    )


def _spec(tensor: TensorConfig, batched: bool) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, [-1, *tensor.dims] if batched else list(tensor.dims))


def _config(source: Source[PythonParameters]) -> dict[str, Any]:
    """What the class's ``load`` gets, as JSON, besides ``directory``."""
    config: ModelConfig = source.config

    def tensors(given: tuple[Any, ...]) -> list[dict[str, Any]]:
        return [{"name": each.name, "datatype": each.datatype, "dims": list(each.dims)} for each in given]

    return {
        "name": source.name,
        "version": source.version,
        "max_batch_size": config.max_batch_size or 0,
        "inputs": tensors(config.inputs),
        "outputs": tensors(config.outputs),
        "parameters": dict(config.parameters),
    }


def _refusal(source: Source[PythonParameters], reason: str) -> ApiError:
    return ApiError(400, f"model '{source.name}' {reason}")
