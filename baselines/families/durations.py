"""What batches are expected to take: what the device's profile predicts, times how far off it was of late."""

import numpy as np

from engine.compiled.jit import inner
from engine.device.predicting import predicted
from engine.server.features import EMPTY, Features, add
from engine.server.moves import is_decode
from engine.server.state import View

KINDS = 2
"""Kinds of batches: decodes alone, and batches with prompt chunks."""

CLOCK = np.dtype(
    [
        ("scale", "f8", (KINDS,)),  # running mean of measured / predicted seconds of each kind, 0: none was measured
        ("predicted", "f8"),  # s, of the batch of the last plan, 0: none
        ("kind", "f8"),  # of that batch
        ("iteration", "f8"),  # its index
        ("shortest", "f8"),  # s, predicted batch of one token, 0: not asked yet
        ("efficient", "f8"),  # s, predicted, the shortest batch of prompts that is EFFICIENT
    ],
    align=True,
)
"""What is known of batch durations."""
EFFICIENT = 0.8
"""Of the most prompt tokens per second that batches of a device compute, the share from which one is long enough."""
SIZES, MOST_TOKENS = 27, 8192.0
"""How many batches of prompts are compared, each of 0.7 as many tokens as the one before; the first without a table."""
FORGET = 0.05
"""Weight of the last batch in the running mean."""


@inner
def learn_scale(view: View, clock: np.record) -> None:
    """Compare the last batch with its prediction, and begin another one."""
    row, kind = view.row[0], 1 if clock.kind > 0.0 else 0  # in range whatever has written the memory
    if clock.predicted > 0.0 and row.iterations == clock.iteration + 1.0:
        ratio, known = row.last_duration / clock.predicted, scale_of(clock, kind)
        clock.scale[kind] = known + FORGET * (ratio - known)
    clock.iteration, clock.predicted = row.iterations, 0.0


@inner
def scale_of(clock: np.record, kind: int) -> float:
    """How much slower than predicted batches of a kind are: as those of the other kind while none was seen."""
    if clock.scale[kind] > 0.0:
        return clock.scale[kind]
    return clock.scale[1 - kind] if clock.scale[1 - kind] > 0.0 else 1.0


@inner
def ask_device(device: np.record, clock: np.record) -> None:
    """Set what is asked of a device once: its shortest batch, and the shortest efficient one."""
    clock.shortest = predicted(device, decodes_of(1.0, 1.0))
    clock.efficient, best = clock.shortest, 0.0
    most = device.table[int(device.rows) - 1, 0] if device.rows > 0.0 else MOST_TOKENS  # beyond it nothing was measured
    for k in range(SIZES):
        tokens = np.rint(most * 2.0 ** (-0.5 * k))
        seconds = predicted(device, add(EMPTY, 0.0, max(tokens, 1.0), False))
        best = max(best, tokens / max(seconds, 1e-12))
        if tokens < EFFICIENT * best * seconds:
            break
        clock.efficient = seconds


@inner
def decodes_of(number: float, context: float) -> Features:
    """Features of a batch of so many decodes that read so much KV together."""
    return Features(number, number, number, 0.0, 0.0, 0.0, context)


@inner
def all_decodes(view: View) -> Features:
    """Features of a batch of everything that decodes."""
    f = EMPTY
    for j in range(view.row[0].num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            f = add(f, r.length - 1.0, 1.0, True)
    return f


@inner
def kind_of(f: Features) -> int:
    """Which of the KINDS a batch is: 0 of decodes alone, 1 with a chunk."""
    return 1 if f.requests > f.decodes else 0


@inner
def expected(device: np.record, clock: np.record, f: Features) -> float:
    """Seconds that a batch will take."""
    return predicted(device, f) * scale_of(clock, kind_of(f))


@inner
def remember_batch(device: np.record, clock: np.record, f: Features) -> None:
    """The batch of this plan has been made: what its duration will be compared with."""
    clock.predicted, clock.kind = predicted(device, f), float(kind_of(f))
