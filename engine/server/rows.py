"""Many servers side by side: the arrays of `Server` with a leading axis, one row per server."""

import numpy as np

from engine.compiled.jit import inner
from engine.server.state import Hidden, Plan, Server, View, new_server


def new_rows(rows: int, num_requests: int, num_tiers: int) -> Server:
    """Memory for `rows` servers of the same size; ``row_of(servers, e)`` is one of them."""

    def stacked(array: np.ndarray) -> np.ndarray:
        return np.zeros((rows, *array.shape), array.dtype).view(type(array))

    one = new_server(num_requests, num_tiers)
    return Server(
        View(*map(stacked, one.visible)),
        Hidden(*map(stacked, one.hidden)),
        Plan(*map(stacked, one.plan)),
        stacked(one.features),
    )


@inner
def row_of(servers: Server, e: int) -> Server:
    """Server `e` of many; its arrays are views, so changes reach the stack."""
    v, h, p = servers.visible, servers.hidden, servers.plan
    return Server(
        View(v.request[e], v.queue[e], v.running[e], v.row[e]),
        Hidden(h.ledger[e], h.output[e], h.tier[e], h.gaps[e], h.refresh[e], h.release[e]),
        Plan(p.entry[e], p.size[e], p.wake[e], p.draft[e], p.victim[e], p.named[e]),
        servers.features[e],
    )
