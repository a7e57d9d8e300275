"""Decodes that must run: those whose deadline is near, and those with the most KV where memory gets short."""

from engine.compiled.jit import inner
from engine.server.moves import decode, fits_decode, is_decode, take_kv
from engine.server.plan import is_named, name
from engine.server.state import Plan, View


@inner
def _youngest_unplanned(view: View, plan: Plan, i: int) -> int:
    """The youngest request with KV that this plan has not touched yet; `i` itself if there is none."""
    for j in range(view.row[0].num_running - 1, -1, -1):
        if not is_named(plan, view.running[j]):
            return view.running[j]
    return i


@inner
def take_urgent(view: View, plan: Plan, slack_s: float) -> None:
    """Decodes with less slack than this, oldest first; one without a block evicts the youngest unplanned request."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        if draft.tokens >= row.max_batched_tokens:
            break
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) or r.last_token + r.tbt - row.now >= slack_s or is_named(plan, i):
            continue
        name(plan, i)
        fits = fits_decode(view, plan, i)
        while not fits:
            v = _youngest_unplanned(view, plan, i)
            name(plan, v)  # it is not served again
            take_kv(view, plan, v)
            if v == i:
                break
            fits = fits_decode(view, plan, i)
        if fits:
            decode(view, plan, i)


@inner
def take_large(view: View, plan: Plan, times_mean: float) -> None:
    """Decodes with more KV than so many times the mean: they free the most memory."""
    row, draft, total = view.row[0], plan.draft[0], 0
    for j in range(row.num_running):
        total += view.request[view.running[j]].length
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        large = is_decode(r) and r.length * row.num_running > times_mean * total
        large = large and draft.tokens < row.max_batched_tokens
        if large and not is_named(plan, i) and fits_decode(view, plan, i):
            decode(view, plan, i)
