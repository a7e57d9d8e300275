"""Files with policies as users write them, for the tests."""

PLAIN = '''
from dataclasses import dataclass

from engine import Policy, schedule


@dataclass(frozen=True)
class OneAtATime(Policy):
    """Serves the oldest request alone, its prompt in chunks."""

    name = "one-at-a-time"
    space = {"chunk": (64, 4096)}

    chunk: int = 512
    """Tokens of a chunk."""

    def plan(self, view, memory, plan):
        row = view.row[0]
        if row.num_waiting + row.num_running == 0:
            return
        i = view.running[0] if row.num_running else view.queue[0]
        request = view.request[i]
        schedule(plan, i, max(1, min(self.chunk, request.prompt - request.prefilled)))
'''
"""A policy in plain Python with a parameter."""

COMPILED = '''
from dataclasses import dataclass

from engine import HotKernel, Policy, inner, remaining, schedule


@inner
def left(request):
    return request.prompt - request.prefilled


@HotKernel
def one_at_a_time(view, memory, plan):
    row = view.row[0]
    if row.num_waiting + row.num_running == 0:
        return
    i = view.running[0] if row.num_running > 0 else view.queue[0]
    schedule(plan, i, max(1, min(int(memory.params[0]), left(view.request[i]))))


@dataclass(frozen=True)
class OneCompiled(Policy):
    """The same, compiled."""

    name = "one-compiled"
    kernel = one_at_a_time

    chunk: int = 512
'''
"""Its compiled twin."""
