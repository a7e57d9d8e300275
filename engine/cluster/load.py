"""Running sums over the requests at a replica (LOAD): what a router's view is made of, without going through them.

Most iterations only decode, and change the sums by their number of tokens. Where requests are admitted, prompts
computed or requests finished, the batch is looked through; where KV is lost, moved or found again, a request is
refused, or predictions are refreshed, all requests present are.
"""

import math

import numpy as np

from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit
from engine.server.state import FINISHED, Server


@inner
def _moves(row: np.record) -> int:
    """How often something has happened at a server that the sums cannot follow; never less than before."""
    return int(row.evictions + row.dropped + row.swaps + row.swapped_in + row.reused_tokens)


@inner
def _expect(load: np.record, r: np.record, times: int) -> None:
    """Add (or with -1 take away) what is predicted of a request."""
    if math.isnan(r.prediction):
        load.unpredicted += times
    else:
        load.predicted += times * r.prediction


@inner
def enter(load: np.record, r: np.record, block_size: int) -> None:
    """Add a request that is sent to the replica."""
    load.sent += 1
    load.prompt_left += r.prompt
    load.unanswered += r.prompt
    load.blocks_wanted += blocks_to_admit(r, block_size)
    _expect(load, r, 1)


@inner
def _add(server: Server, load: np.record, i: int, has_kv: bool) -> None:
    """Add a request that is present."""
    r = server.visible.request[i]
    load.prompt_left += r.prompt - r.prefilled
    load.generated += r.generated
    if not r.has_token:
        load.unanswered += server.hidden.ledger[i].original_prompt
    if not has_kv:
        load.blocks_wanted += blocks_to_admit(r, server.visible.row[0].block_size)
    _expect(load, r, 1)


@inner
def count(server: Server, load: np.record) -> None:
    """Sum anew over all requests present, those on their way included."""
    view, row = server.visible, server.visible.row[0]
    load.prompt_left, load.unanswered, load.unpredicted, load.generated, load.blocks_wanted = 0, 0, 0, 0, 0
    load.predicted = 0.0
    for k in range(row.num_running):
        _add(server, load, view.running[k], True)
    for k in range(row.num_waiting):
        _add(server, load, view.queue[k], False)
    for i in range(row.next_arrival, load.sent):
        _add(server, load, i, False)


@inner
def begun(server: Server, load: np.record, waiting: int) -> None:
    """Bring the sums up to date after `begin`, before which so many requests were waiting."""
    row = server.visible.row[0]
    moves = _moves(row)
    if moves != load.moves:
        load.moves = moves
        count(server, load)
    elif row.num_waiting != waiting:
        for k in range(server.plan.size[0]):
            entry = server.plan.entry[k]
            if entry.tokens > 0:
                r = server.visible.request[entry.request]
                if r.prefilled == 0:  # it has just been admitted
                    load.blocks_wanted -= blocks_to_admit(r, row.block_size)


@inner
def ended(server: Server, load: np.record) -> None:
    """Bring the sums up to date after `finish`."""
    row = server.visible.row[0]
    computed = row.prefill_tokens - load.prefill_tokens
    load.generated += row.decode_tokens - load.decode_tokens
    load.prompt_left -= computed
    if row.refresh_every > 0:  # predictions have changed
        count(server, load)
    elif computed > 0 or row.finished != load.finished or not row.prompt_emits:  # then a decode may be the first token
        for k in range(server.plan.size[0]):
            if server.plan.entry[k].tokens > 0:
                _take_off(server, load, server.plan.entry[k].request)
    load.prefill_tokens, load.decode_tokens, load.finished = row.prefill_tokens, row.decode_tokens, row.finished


@inner
def _take_off(server: Server, load: np.record, i: int) -> None:
    """What request `i` of the batch that has just ended changes beside its tokens."""
    row, r, h = server.visible.row[0], server.visible.request[i], server.hidden.ledger[i]
    if h.prompt_done == row.now:
        load.generated += row.prompt_emits
    if h.first_token == row.now:
        load.unanswered -= h.original_prompt
    if r.status == FINISHED:
        load.generated -= r.generated
        _expect(load, r, -1)
