"""`Steering`: what makes a scheduler of vLLM's follow one of our policies, as a class to mix in before it.

vLLM's own `schedule` still does everything: it goes through `running` and then `waiting`, gives each request the tokens
that it lacks while a token budget lasts, takes KV blocks and preempts where there are none. Steering decides what it
finds when it comes, and puts everything back behind it:

- the budget is the number of tokens that the policy planned;
- requests that hold KV and that the policy does not serve are not in `running` meanwhile (and count as seats);
- those that it wants to lose their KV are the last there, which vLLM preempts first, if it has to;
- `waiting` has those that the policy admits, in its order;
- a started prompt that gets a part of what it lacks has as many tokens fewer to come (`num_output_placeholders`).

What cannot be said in this way: chunks of several new prompts in one batch (all but the last get what they lack), KV
taken away that nobody needs, KV moved to the host, refusals. Where anything fails before vLLM's turn, vLLM decides.

The names used of vLLM's scheduler are the same in 0.24 and 0.32.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

from agents.policies import resolve
from agents.vllm.settings import STOCK, Settings, Watched
from agents.vllm.shadow import CAPACITY, Flight, Shadow, ShadowError, Steps
from agents.vllm.step_log import StepLog
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError

_logger = logging.getLogger("vllm.llmsched")
SEATS = ("max_num_running_reqs", "max_num_active_reqs")
"""What vLLM calls the most requests that may run, by version."""
UNKNOWN_QUEUES = ("skipped_waiting", "kv_holding_waiting", "deferred_waiting")
"""Queues of requests that wait for something else than the scheduler."""


def tier_of(request: Any, names: list[str]) -> int:
    """The tier of a vLLM request, by the convention of `agents.vllm.settings`."""
    said = (getattr(request.sampling_params, "extra_args", None) or {}).get("tier")
    if isinstance(said, str) and said in names:
        return names.index(said)
    if isinstance(said, int | float) and 0 <= said < len(names):
        return int(said)
    return 0 if request.priority < 0 else len(names) - 1


class _Arranged(NamedTuple):
    """The requests of vLLM as the policy has sorted them."""

    present: list[Any]
    """Those that are to run, then those that are to lose their KV."""
    held: list[Any]
    """Those that are not."""
    admitted: list[Any]
    """Those to be admitted, in order."""
    budget: int
    """Tokens of the batch."""


class Steering:
    """Mixed in before a scheduler of vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make vLLM's scheduler, then read the settings.

        Raises:
            InputError: the settings do not fit, or vLLM runs something that policies do not know.
        """
        super().__init__(*args, **kwargs)
        self._watched = Watched()
        self._in_flight: deque[tuple[Any, Flight]] = deque()
        self._cut: list[tuple[Any, int, int]] = []
        self._is_broken = False
        self._own_s = 0.0
        self._watched.changed()
        self._configure(Settings.read(self._watched.path))

    def _configure(self, settings: Settings) -> None:
        """Begin anew with these settings."""
        scheduler: Any = self
        if settings.policy != STOCK and scheduler.policy.value != "fcfs":
            raise InputError(f"policy {settings.policy!r}: expected --scheduling-policy fcfs, got priority")
        if settings.policy != STOCK and scheduler.num_spec_tokens:
            raise InputError(f"policy {settings.policy!r}: expected no speculative decoding")
        tiers = settings.service_tiers()
        model = load_profile(settings.profile)
        policy = None if settings.policy == STOCK else resolve(settings.policy)
        limits = self._limits(settings.watermark)
        self._make_shadow: Callable[[], Shadow] = lambda: Shadow(limits, tiers, model, policy, CAPACITY)
        self._shadow = self._make_shadow()
        self._tier_names = [tier.name for tier in tiers]
        self._steered = policy is not None
        about: dict[str, Any] = {"policy": settings.policy, "profile": settings.profile, "label": settings.label}
        about |= {"limits": asdict(self._shadow.config)}
        self._log = StepLog(settings.log, settings.counters, about)

    def _limits(self, watermark: float) -> EngineConfig:
        """The limits of this server."""
        s: Any = self
        return EngineConfig(
            block_size=s.block_size,
            num_blocks=s.cache_config.num_gpu_blocks,
            watermark=watermark,
            max_num_seqs=s.scheduler_config.max_num_seqs,
            max_batched_tokens=s.scheduler_config.max_num_batched_tokens,
            max_model_len=s.max_model_len,
            async_scheduling=bool(s.scheduler_config.async_scheduling),
        )

    # What vLLM calls.

    def add_request(self, request: Any) -> None:
        """A request has come."""
        scheduler: Any = self
        if not scheduler.requests and self._watched.changed():
            self._read_again()
        super().add_request(request)  # type: ignore[misc]
        try:
            if request.request_id not in self._shadow.index:
                self._enter(request)
        except Exception as error:
            self._break(error)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The next batch: vLLM's own, among what the policy has chosen."""
        began = time.perf_counter()
        self._own_s = 0.0
        arranged, note = self._choose()
        note["us"] = 1e6 * (time.perf_counter() - began)
        output = self._let_schedule(arranged, args, kwargs)
        self._follow(output, arranged, note)
        all_us = 1e6 * (time.perf_counter() - began - self._own_s)
        self._log.decision(note["running"] + note["waiting"], note["us"], all_us)
        return output

    def _own_schedule(self, args: Any, kwargs: Any) -> Any:
        """The own `schedule` of vLLM; how long it takes is kept."""
        began = time.perf_counter()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._own_s = time.perf_counter() - began
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """The tokens of a batch are there."""
        now = time.monotonic()
        found = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if self._in_flight and self._in_flight[0][0] is scheduler_output:
            _, flight = self._in_flight.popleft()
            try:
                seconds = self._shadow.end(flight, now)
                self._log.batch(flight.start, seconds, flight.features, flight.note)
            except Exception as error:
                self._break(error)
        scheduler: Any = self
        if not scheduler.requests:
            self._log.flush()
        return found

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Inside vLLM's `schedule`, once the batch is known."""
        self._uncut()
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    # Before vLLM's turn.

    def _choose(self) -> tuple[_Arranged | None, dict[str, Any]]:
        """What vLLM will find; None: everything, it decides. Beside it what the log says of the step."""
        s: Any = self
        count = self._log.count
        note: dict[str, Any] = {"running": len(s.running), "waiting": len(s.waiting), "held": 0, "planned": -1}
        try:
            self._catch_up()
            if not self._steered:
                return None, note
            if any(len(getattr(self, name, ())) for name in UNKNOWN_QUEUES):
                count.passed += 1
                return None, note
            steps = self._plan()
            if not steps.served and not self._in_flight and (s.running or s.waiting):
                count.stalled += 1
                return None, note
            arranged = self._arrange(steps)
        except Exception as error:
            self._uncut()
            count.fallbacks += 1
            self._tell(error)
            return None, note
        count.decided += 1
        note["planned"], note["held"] = arranged.budget, len(arranged.held) - self._shadow.leaving
        return arranged, note

    def _catch_up(self) -> None:
        """Let the shadow know who has gone since the last batch."""
        s: Any = self
        for name in s.finished_req_ids:
            self._shadow.leave(name)
        if self._is_broken or self._shadow.is_full:
            self._rebuild()

    def _plan(self) -> Steps:
        s: Any = self
        under_way = self._in_flight[-1][1].start if self._in_flight else float("inf")
        free = s.kv_cache_manager.block_pool.get_num_free_blocks()
        there = len(s.running), len(s.waiting)
        if self._shadow.look(time.monotonic(), under_way, free) != there:
            self._rebuild()
            members = self._shadow.look(time.monotonic(), under_way, free)
            if members != there:
                raise ShadowError(f"expected {members} requests running and waiting, got {there}")
        return self._shadow.plan()

    def _arrange(self, steps: Steps) -> _Arranged:
        """Sort vLLM's requests by what the policy has chosen."""
        s: Any = self
        if steps.is_everyone:
            return _Arranged(s.running, [], [], min(len(steps.served), s.max_num_scheduled_tokens))
        names, requests = self._shadow.names, s.requests
        served = {names[i]: (tokens, left) for i, tokens, left in steps.served}
        victims = {names[i] for i in steps.victims}
        present, held, last = [], [], []
        for request in s.running:
            name = request.request_id
            if name in victims:
                last.append(request)
                served.pop(name, None)
            elif (step := served.pop(name, None)) is None:
                held.append(request)
            else:
                present.append(request)
                if step[0] < step[1]:
                    self._cut.append((request, request.num_output_placeholders, step[0] - step[1]))
        self._log.count.cut_apart += sum(tokens < left for tokens, left in list(served.values())[:-1])
        budget = min(sum(step[1] for step in steps.served), s.max_num_scheduled_tokens)
        return _Arranged(present + last, held, [requests[name] for name in served], budget)

    def _uncut(self) -> None:
        """Started prompts have again as many tokens to come as before."""
        for request, placeholders, _ in self._cut:
            request.num_output_placeholders = placeholders
        self._cut.clear()

    # vLLM's turn.

    def _let_schedule(self, arranged: _Arranged | None, args: Any, kwargs: Any) -> Any:
        """The own `schedule` of vLLM; afterwards everything is where it was, but for what it has decided."""
        if arranged is None:
            return self._own_schedule(args, kwargs)
        s: Any = self
        running, waiting, budget = s.running, s.waiting, s.max_num_scheduled_tokens
        seats = {name: getattr(self, name) for name in SEATS if hasattr(self, name)}
        queue = type(waiting)()
        for request in arranged.admitted:
            queue.add_request(request)
        s.running, s.waiting, s.max_num_scheduled_tokens = arranged.present, queue, arranged.budget
        for name, most in seats.items():
            setattr(self, name, most - len(arranged.held))
        for request, _, less in self._cut:
            request.num_output_placeholders = less
        try:
            return self._own_schedule(args, kwargs)
        finally:
            self._uncut()
            for name, most in seats.items():
                setattr(self, name, most)
            s.max_num_scheduled_tokens, s.waiting = budget, waiting
            self._put_back(running, queue, arranged)

    def _put_back(self, running: list[Any], queue: Any, arranged: _Arranged) -> None:
        """Held requests run again, in the order of before; who was not admitted waits where it was."""
        s: Any = self
        if s.running is running and not queue:
            return
        left, admitted = set(queue), set(arranged.admitted)
        for request in arranged.admitted:
            if request not in left:
                s.waiting.remove_request(request)
        for request in reversed([request for request in queue if request not in admitted]):  # preempted
            s.waiting.prepend_request(request)
        now, before = {*s.running, *arranged.held}, set(running)
        s.running = [r for r in running if r in now] + [r for r in s.running if r not in before]

    # Behind it.

    def _follow(self, output: Any, arranged: _Arranged | None, note: dict[str, Any]) -> None:
        """Let the shadow know what vLLM has decided."""
        s: Any = self
        total, count = output.total_num_scheduled_tokens, self._log.count
        try:
            for name in output.preempted_req_ids or ():
                self._shadow.evict(name)
                count.preemptions += 1
            cached = output.scheduled_cached_reqs
            for name in (*(new.req_id for new in output.scheduled_new_reqs), *cached.resumed_req_ids):
                computed = s.requests[name].num_computed_tokens - output.num_scheduled_tokens[name]
                self._shadow.admit(name, computed)
            if total:
                flight = self._shadow.begin(output.num_scheduled_tokens, time.monotonic())
                flight.note = note
                self._in_flight.append((output, flight))
                count.steps += 1
        except Exception as error:
            self._break(error)
        if arranged is not None:
            count.holding += note["held"] > 0
            count.held += note["held"]
            count.held_ran += sum(r.request_id in output.num_scheduled_tokens for r in arranged.held)
            count.over_budget += total > arranged.budget
            count.under_plan += total < arranged.budget

    # When something changes.

    def _enter(self, request: Any) -> None:
        now = time.monotonic()
        arrival = min(now, now - (time.time() - request.arrival_time))
        tier = tier_of(request, self._tier_names)
        self._shadow.enter(request.request_id, arrival, request.num_prompt_tokens, request.max_tokens, tier)

    def _rebuild(self) -> None:
        """Make the shadow anew of what vLLM has; the policy forgets what it has seen."""
        s: Any = self
        self._shadow, self._is_broken = self._make_shadow(), False
        self._log.count.rebuilt += 1
        for _, flight in self._in_flight:
            flight.batch = flight.batch[:0]
        for request in sorted([*s.running, *s.waiting], key=lambda r: r.arrival_time):
            self._enter(request)
        for request in s.running:
            state = request.num_tokens, request.num_computed_tokens
            output = request.num_output_tokens, request.num_output_placeholders
            self._shadow.restore(request.request_id, *state, *output)
        for request in s.waiting:
            self._shadow.restore_waiting(request.request_id, request.num_tokens, request.num_output_tokens)
        self._shadow.order_queue([request.request_id for request in s.waiting])

    def _read_again(self) -> None:
        """Begin anew with changed settings; with those of before, if they cannot be read."""
        self._log.flush()
        try:
            self._configure(Settings.read(self._watched.path))
        except InputError as error:
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
