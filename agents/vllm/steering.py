"""`Steering`: what makes a scheduler of vLLM's follow one of our policies, as a class to mix in before it.

A shadow of the server is kept from what vLLM decides (`agents.vllm.shadow`), the policy plans for it, and vLLM's own
`schedule` finds what it planned (`agents.vllm.turn`). Where anything fails before vLLM's turn, vLLM decides alone.
"""

import logging
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, cast

from agents.policies import resolve
from agents.vllm.server import Batch, Request, Scheduler, free_blocks, others
from agents.vllm.settings import PROBING, STOCK, Settings, Watched
from agents.vllm.shadow import CAPACITY, Flight, Shadow, ShadowError, Steps
from agents.vllm.step_log import Note, StepLog
from agents.vllm.turn import Arranged, Turn, arrange
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError

_OFF, _JUDGED, _EVERY = 1.5, 100, 4096
"""How much longer or shorter than predicted batches of a kind are where a profile does not fit, after how many of that
kind; judged when nobody is there, and after so many batches."""
_logger = logging.getLogger("vllm.llmsched")


def tier_of(request: Request, names: list[str]) -> int:
    """The tier of a vLLM request, by the convention of `agents.vllm.settings`."""
    said = (getattr(request.sampling_params, "extra_args", None) or {}).get("tier")
    if isinstance(said, str) and said in names:
        return names.index(said)
    if isinstance(said, int | float) and 0 <= said < len(names):
        return int(said)
    return 0 if request.priority < 0 else len(names) - 1


class _UnderWay(NamedTuple):
    """A batch whose tokens are not there yet."""

    output: Batch
    flight: Flight
    note: Note


class Steering:
    """Mixed in before a scheduler of vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make vLLM's scheduler, then read the settings.

        Raises:
            InputError: the settings do not fit, or vLLM runs something that policies do not know.
        """
        super().__init__(*args, **kwargs)
        self._vllm = cast(Scheduler, self)
        self._watched = Watched()
        self._under_way: deque[_UnderWay] = deque()
        self._turn: Turn | None = None
        self._is_broken = False
        self._watched.changed()
        self._configure(Settings.read(self._watched.path))

    def _configure(self, settings: Settings) -> None:
        """Begin anew with these settings; nothing has changed if they do not fit."""
        if settings.policy != STOCK and self._vllm.policy.value != "fcfs":
            raise InputError(f"policy {settings.policy!r}: expected --scheduling-policy fcfs, got priority")
        if settings.policy != STOCK and self._vllm.num_spec_tokens:
            raise InputError(f"policy {settings.policy!r}: expected no speculative decoding")
        told = settings.told_tiers()
        model = load_profile(settings.profile)
        policy = None if settings.policy == STOCK else resolve(settings.policy)
        limits = self._limits(settings.watermark)
        about = {"policy": settings.policy, "profile": settings.profile, "label": settings.label}
        log = StepLog(settings.log, settings.counters, settings.metrics, about | {"limits": asdict(limits)})
        make = partial(Shadow, limits, told, model, policy, CAPACITY)
        self._shadow, self._make_shadow, self._log = make(), make, log
        self._profile, self._is_judged = settings.profile, settings.label == PROBING
        self._tier_names = [tier.name for tier in told]
        self._steered = policy is not None
        self._is_shadowed = self._steered or bool(settings.log)

    def _limits(self, watermark: float) -> EngineConfig:
        """The limits of this server."""
        config = self._vllm.scheduler_config
        return EngineConfig(
            block_size=self._vllm.block_size,
            num_blocks=self._vllm.cache_config.num_gpu_blocks,
            watermark=watermark,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self._vllm.max_model_len,
            async_scheduling=bool(config.async_scheduling),
        )

    # What vLLM calls.

    def add_request(self, request: Request) -> None:
        """A request has come."""
        if not self._vllm.requests and self._watched.changed():
            self._read_again()
        super().add_request(request)  # type: ignore[misc]
        if not self._is_shadowed:
            return
        try:
            if request.request_id not in self._shadow.index:
                self._enter(request)
        except Exception as error:
            self._break(error)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The next batch: vLLM's own, among what the policy has chosen."""
        if not self._is_shadowed:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
            self._log.count.steps += output.total_num_scheduled_tokens > 0
            return output
        began = time.perf_counter()
        note = Note(len(self._vllm.running), len(self._vllm.waiting))
        arranged = self._choose(note)
        note.decide_us = 1e6 * (time.perf_counter() - began)
        self._turn = Turn(self._vllm, arranged) if arranged else None
        with self._turn or nullcontext():
            turn_began = time.perf_counter()
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
            began += time.perf_counter() - turn_began
        self._follow(output, note)
        if arranged:
            self._check(output, arranged, note)
        self._log.decision(note, 1e6 * (time.perf_counter() - began))
        return output

    def _make_cached_request_data(self, *args: Any, **kwargs: Any) -> Any:
        """Inside vLLM's `schedule`, once the batch is known: what the workers are told of requests with KV."""
        if self._turn:
            self._turn.uncut()
        return super()._make_cached_request_data(*args, **kwargs)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: Batch, model_runner_output: object) -> Any:
        """The tokens of a batch are there."""
        now = time.monotonic()
        found = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if self._under_way and self._under_way[0].output is scheduler_output:
            _, flight, note = self._under_way.popleft()
            try:
                self._log.batch(flight.start, self._shadow.end(flight, now), flight.features, note)
                self._let_go()
            except Exception as error:
                self._break(error)
        if self._vllm.requests:
            self._log.tick(now)
            if self._log.count.steps % _EVERY == 0:
                self._judge()
        else:
            self._judge()
            self._log.flush()
        return found

    def _judge(self) -> None:
        """Note how far off the profile is, and say so once if it is another engine's."""
        self._log.off = self._shadow.correction.overall()
        known = zip(self._log.off, self._shadow.correction.learned, strict=True)
        is_off = any(count >= _JUDGED and not 1.0 / _OFF <= ratio <= _OFF for ratio, count in known)
        if is_off and not self._is_judged:
            self._is_judged = True
            took = " and ".join(f"{ratio:.2f}" for ratio in self._log.off)
            text = "llmsched: batches without and with prompts took %s times what profile %s says: probe this engine"
            _logger.warning(text, took, self._profile)

    # Before vLLM's turn.

    def _choose(self, note: Note) -> Arranged | None:
        """What vLLM will find; None: everything, it decides."""
        count = self._log.count
        try:
            self._catch_up()
            if not self._steered:
                return None
            if others(self._vllm):
                count.passed += 1
                return None
            steps = self._plan()
            if not steps.budget and not self._under_way and note.running + note.waiting:
                count.stalled += 1
                return None
            arranged = arrange(self._vllm, steps, self._shadow.requests)
        except Exception as error:
            count.fallbacks += 1
            self._tell(error)
            return None
        count.decided += 1
        note.planned, note.held = arranged.budget, len(arranged.held)
        return arranged

    def _catch_up(self) -> None:
        """Let the shadow know who has gone since the last batch."""
        self._let_go()
        if self._is_broken or self._shadow.is_full:
            self._rebuild()

    def _let_go(self) -> None:
        """Let the shadow forget who has gone."""
        requests = self._vllm.requests
        for name in self._vllm.finished_req_ids:
            if name not in requests:
                self._shadow.leave(name)

    def _plan(self) -> Steps:
        """What the policy asks for.

        Raises:
            ShadowError: the shadow is not what the server is, even if it is made anew; or the plan cannot be read.
            Exception: whatever the policy raises.
        """
        there = len(self._vllm.running), len(self._vllm.waiting)
        if self._look() != there:
            self._rebuild()
            if (members := self._look()) != there:
                raise ShadowError(f"expected {members} requests running and waiting, got {there}")
        return self._shadow.plan()

    def _look(self) -> tuple[int, int]:
        since = self._under_way[-1].flight.start if self._under_way else float("inf")
        return self._shadow.look(time.monotonic(), since, free_blocks(self._vllm))

    # Behind it.

    def _follow(self, output: Batch, note: Note) -> None:
        """Let the shadow know what vLLM has decided."""
        requests, count, tokens = self._vllm.requests, self._log.count, output.num_scheduled_tokens
        try:
            for name in output.preempted_req_ids or ():
                self._shadow.evict(name)
                count.preemptions += 1
            new = (one.req_id for one in output.scheduled_new_reqs)
            for name in (*new, *output.scheduled_cached_reqs.resumed_req_ids):
                self._shadow.admit(name, requests[name].num_computed_tokens - tokens[name])
            if tokens:
                flight = self._shadow.begin(tokens, time.monotonic())
                self._under_way.append(_UnderWay(output, flight, note))
                count.steps += 1
        except Exception as error:
            self._break(error)

    def _check(self, output: Batch, arranged: Arranged, note: Note) -> None:
        """Count what differs from what the policy planned."""
        count, total = self._log.count, output.total_num_scheduled_tokens
        count.holding += note.held > 0
        count.held += note.held
        count.held_ran += sum(request.request_id in output.num_scheduled_tokens for request in arranged.held)
        count.over_budget += total > arranged.budget
        count.under_plan += total < arranged.budget
        count.cut_apart += arranged.apart

    # When something changes.

    def _enter(self, request: Request) -> None:
        now = time.monotonic()
        arrival = min(now, now - (time.time() - request.arrival_time))
        tier = tier_of(request, self._tier_names)
        self._shadow.enter(request, arrival, tier)

    def _rebuild(self) -> None:
        """Make the shadow anew of what vLLM has; the policy forgets what it has seen."""
        running, waiting = self._vllm.running, list(self._vllm.waiting)
        self._shadow, self._is_broken = self._make_shadow(), False
        self._log.count.rebuilt += 1
        for one in self._under_way:
            one.flight.batch = one.flight.batch[:0]
        for request in sorted([*running, *waiting], key=lambda request: request.arrival_time):
            self._enter(request)
        for request in running:
            output = request.num_output_tokens, request.num_output_placeholders
            self._shadow.restore(request.request_id, request.num_tokens, request.num_computed_tokens, *output)
        for request in waiting:
            self._shadow.restore_waiting(request.request_id, request.num_tokens, request.num_output_tokens)
        self._shadow.order_queue([request.request_id for request in waiting])

    def _read_again(self) -> None:
        """Begin anew with changed settings; with those of before, if they cannot be read."""
        self._log.flush()
        try:
            self._configure(Settings.read(self._watched.path))
        except Exception as error:  # of a policy of the user's, too
            self._log.count.refused += 1
            self._tell(error)

    def _break(self, error: Exception) -> None:
        """The shadow is not what the server is any more."""
        self._is_broken = True
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Keep an error for the counters; the first of its kind goes to vLLM's log."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if text != self._log.last_error:
            _logger.warning("llmsched: %s", text)
        self._log.last_error = text
