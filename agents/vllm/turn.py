"""vLLM's own turn under a policy: what `schedule` finds when it comes, and how everything is put back behind it.

vLLM goes through `running` and then `waiting`, gives each request the tokens that it lacks while a token budget lasts,
takes KV blocks and preempts where there are none. What it finds:

- a budget of as many tokens as the policy planned;
- in `running` no request that the policy does not serve (they count as seats);
- those that are to lose their KV last, which vLLM preempts first, if it has to;
- in `waiting` those that the policy admits, in its order;
- a started prompt that gets a part of what it lacks with as many tokens fewer to come (`num_output_placeholders`).

What cannot be said in this way: chunks of several new prompts in one batch (all but the last get what they lack), KV
taken away that nobody needs, KV moved to the host, refusals.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

from agents.vllm.server import SEATS, Request, Scheduler
from agents.vllm.shadow import Steps


class Arranged(NamedTuple):
    """The requests of vLLM as a policy has sorted them."""

    budget: int
    """Tokens of the batch."""
    present: list[Request]
    """Those with KV that are to run, then those that are to lose it."""
    held: list[Request]
    """Those that are not."""
    admitted: list[Request]
    """Those to be admitted, in order."""
    cut: list[tuple[Request, int]]
    """Started prompts that get fewer tokens than they lack, and how many fewer."""
    apart: int
    """Of `Steps`."""


def arrange(scheduler: Scheduler, steps: Steps, requests: Mapping[int, Request]) -> Arranged:
    """Sort the requests of vLLM by what a policy asks for; `requests` has them by their indices."""
    admitted, held, victims = (
        list(map(requests.__getitem__, some)) for some in (steps.admitted, steps.held, steps.victims)
    )
    cut = [(requests[i], fewer) for i, fewer in steps.cut]
    present = scheduler.running
    if held or victims:
        away = {*held, *victims}
        present = [request for request in present if request not in away] + victims
    return Arranged(steps.budget, present, held, admitted, cut, steps.apart)


class Turn:
    """``with Turn(scheduler, arranged): schedule()``."""

    def __init__(self, scheduler: Scheduler, arranged: Arranged) -> None:
        self._scheduler, self._arranged = scheduler, arranged
        self._running, self._waiting = scheduler.running, scheduler.waiting
        self._most = scheduler.max_num_scheduled_tokens
        self._seats = {name: getattr(scheduler, name) for name in SEATS if hasattr(scheduler, name)}
        self._queue = type(scheduler.waiting)()
        self._coming = [(request, request.num_output_placeholders) for request, _ in arranged.cut]

    def __enter__(self) -> None:
        """Let vLLM find what the policy has chosen."""
        s, arranged = self._scheduler, self._arranged
        for request in arranged.admitted:
            self._queue.add_request(request)
        s.running, s.waiting = arranged.present, self._queue
        s.max_num_scheduled_tokens = min(arranged.budget, self._most)
        for name, most in self._seats.items():
            setattr(s, name, most - len(arranged.held))
        for request, fewer in arranged.cut:
            request.num_output_placeholders -= fewer

    def uncut(self) -> None:
        """Started prompts have again as many tokens to come as before: workers are told of them, too."""
        for request, coming in self._coming:
            request.num_output_placeholders = coming
        self._coming = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Everything is where it was, but for what vLLM has decided."""
        s = self._scheduler
        self.uncut()
        s.max_num_scheduled_tokens, s.waiting = self._most, self._waiting
        for name, most in self._seats.items():
            setattr(s, name, most)
        if self._arranged.admitted or s.running is not self._running or len(self._queue):
            self._put_back()

    def _put_back(self) -> None:
        """Held requests run again, in the order of before; who was not admitted waits where it was."""
        s, arranged = self._scheduler, self._arranged
        left, admitted = set(self._queue), set(arranged.admitted)
        for request in arranged.admitted:
            if request not in left:
                s.waiting.remove_request(request)
        for request in reversed([request for request in self._queue if request not in admitted]):  # preempted
            s.waiting.prepend_request(request)
        now, before = {*s.running, *arranged.held}, set(self._running)
        new = [request for request in s.running if request not in before]
        s.running = [request for request in self._running if request in now] + new
