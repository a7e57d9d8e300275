"""What of vLLM's scheduler is used, the same in 0.24 and 0.32; nothing else of vLLM is touched."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

SEATS = ("max_num_running_reqs", "max_num_active_reqs")
"""What vLLM calls the most requests that may run: the second one in 0.32 only."""
OTHER_QUEUES = ("skipped_waiting", "kv_holding_waiting", "deferred_waiting")
"""Queues of requests that wait for something else than the scheduler, by version."""


class Request(Protocol):
    """`vllm.v1.request.Request`."""

    request_id: str
    arrival_time: float  # s, wall clock
    priority: int
    sampling_params: Any
    max_tokens: int
    num_prompt_tokens: int
    num_computed_tokens: int  # of prompt and output, those of scheduled batches included
    num_output_placeholders: int  # output tokens under way

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""

    @property
    def num_output_tokens(self) -> int:
        """Output that is there."""


class Queue(Protocol):
    """`vllm.v1.core.sched.request_queue.RequestQueue`."""

    def add_request(self, request: Request) -> None:
        """At the end."""

    def prepend_request(self, request: Request) -> None:
        """At the head."""

    def remove_request(self, request: Request) -> None:
        """From where it stands."""

    def __iter__(self) -> Iterator[Request]:
        """In order."""

    def __len__(self) -> int:
        """How many wait."""


class Named(Protocol):
    """`NewRequestData`, of a request that is scheduled for the first time."""

    req_id: str


class Cached(Protocol):
    """`CachedRequestData`, of those that were scheduled before."""

    resumed_req_ids: set[str]


class Batch(Protocol):
    """`vllm.v1.core.sched.output.SchedulerOutput`."""

    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int
    preempted_req_ids: set[str] | None
    scheduled_new_reqs: list[Named]
    scheduled_cached_reqs: Cached


class Scheduler(Protocol):
    """`vllm.v1.core.sched.async_scheduler.AsyncScheduler`."""

    policy: Any
    num_spec_tokens: int
    block_size: int
    max_model_len: int
    max_num_scheduled_tokens: int  # read once in each step
    cache_config: Any
    scheduler_config: Any
    kv_cache_manager: Any
    requests: dict[str, Request]
    running: list[Request]
    waiting: Queue
    finished_req_ids: Iterable[str]  # gone since the last batch


def others(scheduler: Scheduler) -> bool:
    """Whether requests are there that policies do not know: grammars, KV of other servers."""
    return any(len(getattr(scheduler, name, ())) for name in OTHER_QUEUES)


def free_blocks(scheduler: Scheduler) -> int:
    """KV blocks that nobody holds."""
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())
