"""How a model's requests share batches and wait in its queue: ``dynamic_batching`` of a model's configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from fastinfer.config.model_schema import Table, Whole

_MAX_TIMEOUT_US = 86_400_000_000


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class QueuePolicy(Table):
    """How requests wait: of all priorities, or of one."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    """What happens after the timeout: 504, or requests of the same priority that have not timed out go first."""
    default_timeout_microseconds: Annotated[Whole, Field(le=_MAX_TIMEOUT_US)] = 0
    """Of requests that have none of their own; 0: the server's default."""
    allow_timeout_override: StrictBool = True
    """Whether the timeout that a request gives counts."""
    max_queue_size: Whole = 0
    """Requests that may wait; 0: the server's limit."""


class DynamicBatching(Table):
    """How requests share batches, and how long they may wait."""

    preferred_batch_size: Annotated[
        tuple[Annotated[Whole, Field(ge=1)], ...], BeforeValidator(_one_or_more), Field(max_length=1024)
    ] = ()
    max_queue_delay_microseconds: Annotated[Whole, Field(le=3_600_000_000)] = 0
    max_queue_size: Whole = 0
    """Requests that may wait; 0: the server's limit."""
    default_timeout_microseconds: Annotated[Whole, Field(le=_MAX_TIMEOUT_US)] = 0
    """Timeout of requests that have none of their own; 0: the server's default."""
    priority_levels: Annotated[Whole, Field(le=1_000_000)] = 0
    default_priority_level: Whole = 0
    preserve_ordering: StrictBool = False
    """Has no effect: the answers of a connection are always in the order of its requests."""
    priority_queue_policy: Annotated[dict[int, QueuePolicy], Field(max_length=1024)] = Field(default={})
    """Instead of the default policy, by priority."""
    default_queue_policy: QueuePolicy | None = None

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        """Copies the fields of ``default_queue_policy`` into the table."""
        policy = value.get("default_queue_policy") if isinstance(value, dict) else None
        if not isinstance(policy, dict):
            return value
        flat = dict(value)
        for name in ("max_queue_size", "default_timeout_microseconds"):
            if name in policy and flat.setdefault(name, policy[name]) != policy[name]:
                raise ValueError(f"{name} is set twice, to different values")
        return flat

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.default_priority_level > self.priority_levels:
            raise ValueError(
                f"default_priority_level {self.default_priority_level} is above priority_levels {self.priority_levels}"
            )
        if self.priority_levels and not self.default_priority_level:
            raise ValueError(f"default_priority_level must be from 1 to {self.priority_levels}")
        for level in self.priority_queue_policy:
            if not 1 <= level <= self.priority_levels:
                raise ValueError(f"priority_queue_policy names priority {level} of {self.priority_levels}")
        return self

    @property
    def default_policy(self) -> QueuePolicy:
        """The policy of requests whose priority has none of its own."""
        policy = self.default_queue_policy or QueuePolicy()
        return policy.model_copy(
            update={
                "max_queue_size": self.max_queue_size,
                "default_timeout_microseconds": self.default_timeout_microseconds,
            }
        )
