"""Decodes by slack (time left until the deadline of their next token): slackfit and the allocation codec share this."""

from baselines._fill import TAKEN, evict_into, fits_decode, is_decode, schedule_decode, take
from engine._jit import inner
from engine.state import Memory, Plan, View


@inner
def _youngest_unplanned(view: View, memory: Memory, i: int) -> int:
    """The youngest request with KV that this plan has not touched yet; `i` itself if there is none."""
    row = view.row[0]
    for j in range(row.num_running - 1, -1, -1):
        v = view.running[j]
        if memory.request[v, TAKEN] != row.iterations + 1:
            return v
    return i


@inner
def take_urgent(
    view: View, memory: Memory, plan: Plan, slack_s: float, free: int, victims: int
) -> tuple[int, int, int]:
    """Decodes with less slack than this, oldest first; returns (tokens, free blocks, victims)."""
    row = view.row[0]
    stamp = row.iterations + 1
    tokens = 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) or r.last_token + r.tbt - row.now >= slack_s or memory.request[i, TAKEN] == stamp:
            continue
        memory.request[i, TAKEN] = stamp
        fits = fits_decode(row, r, free)
        while not fits:
            v = _youngest_unplanned(view, memory, i)
            take(view, memory, v)
            free += evict_into(plan, memory, view, v, victims)
            victims += 1
            if v == i:
                break
            fits = fits_decode(row, r, free)
        if fits:
            free -= schedule_decode(plan, row, i, r)
            tokens += 1
    return tokens, free, victims
