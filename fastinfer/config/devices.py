"""The fields of a model's configuration about devices that are not here, beside those that have an effect on a CPU.

They are read, so that a configuration for a machine with GPUs serves here without a change, and have no effect;
:func:`without_effect` names them for a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from fastinfer.config.model_schema import Name, Table, Text, Whole, no_bool

PARAMETERS = frozenset(
    {
        "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d",
        "do_copy_in_default_stream", "enable_cuda_graph", "gpu_mem_limit", "prefer_nhwc", "tunable_op_enable",
        "tunable_op_tuning_enable", "use_tf32",
    }
)  # fmt: skip
"""Parameters of Triton's ONNX Runtime backend that only a GPU understands."""

_OF_GROUPS = ("gpus", "rate_limiter", "secondary_devices", "profile", "host_policy")
_OF_OPTIMIZATION = ("cuda", "execution_accelerators", "gather_kernel_buffer_threshold", "eager_batching")


# --- Instances --------------------------------------------------------------------------------------------------------


class Resource(Table):
    name: Text = ""
    is_global: StrictBool = Field(False, validation_alias="global")
    count: Whole = 0


class RateLimiter(Table):
    """Limits instances by resources; off in Triton, too, unless its command line names the resources."""

    resources: Annotated[tuple[Resource, ...], Field(max_length=64)] = ()
    priority: Whole = 0


class SecondaryDevice(Table):
    kind: Literal["KIND_NVDLA"] = "KIND_NVDLA"
    device_id: Whole = 0


class InstanceGroup(Table):
    """How many batches may run concurrently."""

    name: Text = ""
    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"] = "KIND_AUTO"
    count: Annotated[Whole, Field(ge=1, le=64)] = 1
    gpus: Annotated[tuple[Whole, ...], Field(max_length=64)] = ()
    rate_limiter: RateLimiter | None = None
    secondary_devices: Annotated[tuple[SecondaryDevice, ...], Field(max_length=64)] = ()
    profile: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    passive: Literal[False] = False
    host_policy: Text = ""


# --- Optimizations ----------------------------------------------------------------------------------------------------


class Accelerator(Table):
    name: Text = ""
    parameters: Annotated[dict[Name, Text], Field(max_length=64)] = Field(default={})


class Accelerators(Table):
    """TensorRT, OpenVINO and others."""

    gpu_execution_accelerator: Annotated[tuple[Accelerator, ...], Field(max_length=16)] = ()
    cpu_execution_accelerator: Annotated[tuple[Accelerator, ...], Field(max_length=16)] = ()


class GraphShape(Table):
    dim: Annotated[tuple[Whole, ...], Field(max_length=16)] = ()


class GraphLowerBound(Table):
    batch_size: Whole = 0
    input: Annotated[dict[Name, GraphShape], Field(max_length=1024)] = Field(default={})


class GraphSpec(GraphLowerBound):
    graph_lower_bound: GraphLowerBound | None = None


class Cuda(Table):
    graphs: StrictBool = False
    busy_wait_events: StrictBool = False
    graph_spec: Annotated[tuple[GraphSpec, ...], Field(max_length=64)] = ()
    output_copy_stream: StrictBool = False


class Graph(Table):
    level: Annotated[int, BeforeValidator(no_bool), Field(ge=-1, le=2)] = 0


class PinnedMemory(Table):
    enable: StrictBool = False


class Optimization(Table):
    """Only ``graph.level`` has an effect. Pinned memory has none on a CPU, as in Triton."""

    graph: Graph = Graph()
    priority: Literal["PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"] = "PRIORITY_DEFAULT"
    cuda: Cuda | None = None
    execution_accelerators: Accelerators | None = None
    input_pinned_memory: PinnedMemory = PinnedMemory()
    output_pinned_memory: PinnedMemory = PinnedMemory()
    gather_kernel_buffer_threshold: Whole = 0
    eager_batching: StrictBool = False


def without_effect(groups: Iterable[InstanceGroup], optimization: Optimization, parameters: Iterable[str]) -> list[str]:
    """Return the names of the fields that are set and have no effect.

    Args:
        groups, optimization: of the configuration.
        parameters: the names of its parameters.
    """
    given = set(parameters)
    found = [f"parameters.{name}" for name in sorted(given & PARAMETERS)]
    for group in groups:
        if group.kind == "KIND_GPU" and "execution_providers" not in given:  # these choose a device
            found.append("instance_group.kind KIND_GPU")
        found += [f"instance_group.{name}" for name in _OF_GROUPS if getattr(group, name)]
    found += [f"optimization.{name}" for name in _OF_OPTIMIZATION if getattr(optimization, name)]
    if optimization.priority != "PRIORITY_DEFAULT":
        found.append("optimization.priority")
    return list(dict.fromkeys(found))
