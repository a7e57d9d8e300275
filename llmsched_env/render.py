"""Rendering without a plotting library: a line of text, or a timeline drawn straight into an image array."""

import numpy as np

from engine.server.state import Server

WIDTH, LANE, GAP = 480, 80, 8
_PREFILL, _DECODE = (66, 103, 172), (67, 160, 91)
_WAITING, _RUNNING, _KV = (214, 126, 44), (120, 120, 120), (140, 86, 175)
_STRICT, _RELAXED, _LATE = (214, 39, 40), (244, 190, 80), (120, 0, 0)
_PAPER, _FRAME = 255, 215

_SCALES = (2048.0, 128.0, 1.0, 1.0)
"""Full height of the lanes: batch tokens, requests, share of the KV blocks, slack in deadlines."""


def _deadlines(slack: float) -> str:
    """A slack in deadlines, which is huge for a deadline next to zero."""
    return f"{slack:+.2f}" if abs(slack) < 1e6 else f"{max(slack, -1e300):+.0e}"


class Timeline:
    """The latest decisions of one server, a column of pixels each.

    Four lanes from top to bottom: tokens of the batch (prefill blue, decodes green), requests (waiting orange on top of
    running grey), KV use (purple), least slack in deadlines (strict tier red, others yellow; dark red at the bottom:
    a deadline has passed).
    """

    def __init__(self) -> None:
        """Start with nothing to show."""
        self._columns: list[tuple[float, ...]] = []
        self._seen = (0, 0)

    def clear(self, servers: Server | None = None) -> None:
        """Forget what was drawn; what comes begins with an episode, or in the middle of one at the state of row 0."""
        self._columns.clear()
        row = None if servers is None else servers.visible.row[0, 0]
        self._seen = (0, 0) if row is None else (int(row.prefill_tokens), int(row.decode_tokens))

    def add(self, servers: Server) -> None:
        """Remember the state of row 0 after a decision."""
        row = servers.visible.row[0, 0]
        seen = (int(row.prefill_tokens), int(row.decode_tokens))
        prefill, decode = seen[0] - self._seen[0], seen[1] - self._seen[1]
        self._seen = seen
        kv = 1.0 - float(row.free_blocks) / float(row.num_blocks)
        self._columns.append((prefill, decode, row.num_waiting, row.num_running, kv, *self._slack(servers)))
        del self._columns[:-WIDTH]

    def line(self, servers: Server) -> str:
        """One line: clock, queue, batch, KV, least slack per class of users."""
        row = servers.visible.row[0, 0]
        strict, relaxed = self._slack(servers)
        kv = 1.0 - float(row.free_blocks) / float(row.num_blocks)
        return (
            f"t={row.now:9.3f} s  waiting {row.num_waiting:4d}  running {row.num_running:4d} "
            f"({row.num_prefilling} in prefill)  last batch {row.batch_tokens:5d} tokens "
            f"{1000 * row.last_duration:6.1f} ms  KV {kv:6.1%}  least slack strict {_deadlines(strict)} "
            f"relaxed {_deadlines(relaxed)} deadlines  finished {row.finished}/{row.num_requests}"
        )

    @staticmethod
    def _slack(servers: Server) -> tuple[float, float]:
        row = servers.visible.row[0, 0]
        rows = servers.visible.request[0][servers.visible.running[0, : row.num_running]]
        decodes = rows[rows["prefilled"] == rows["prompt"]]
        with np.errstate(over="ignore"):  # of a deadline next to zero
            slack = (decodes["last_token"] + decodes["tbt"] - row.now) / decodes["tbt"]
        least = [float(slack[decodes["strict"] == s].min(initial=1.0)) for s in (1, 0)]
        return least[0], least[1]

    def image(self) -> np.ndarray:
        """The timeline as uint8[4 lanes, WIDTH, 3]; the latest decision is the rightmost column."""
        height = 4 * LANE + 5 * GAP
        image = np.full((height, WIDTH, 3), _PAPER, np.uint8)
        for lane in range(4):
            top = GAP + lane * (LANE + GAP)
            image[top : top + LANE] = _FRAME + 25
            image[top + LANE - 1] = _FRAME - 60
        for x, column in enumerate(self._columns, WIDTH - len(self._columns)):
            prefill, decode, waiting, running, kv, strict, relaxed = column
            self._stack(image, 0, x, ((decode, _DECODE), (prefill, _PREFILL)))
            self._stack(image, 1, x, ((running, _RUNNING), (waiting, _WAITING)))
            self._stack(image, 2, x, ((kv, _KV),))
            self._mark(image, x, relaxed, _RELAXED)
            self._mark(image, x, strict, _STRICT)
        return image

    @staticmethod
    def _stack(image: np.ndarray, lane: int, x: int, parts: tuple[tuple[float, tuple[int, int, int]], ...]) -> None:
        bottom = GAP + lane * (LANE + GAP) + LANE
        used = 0
        for value, colour in parts:
            pixels = min(LANE - used, max(1, round(LANE * value / _SCALES[lane]))) if value > 0 else 0
            image[bottom - used - pixels : bottom - used, x] = colour
            used += pixels

    @staticmethod
    def _mark(image: np.ndarray, x: int, slack: float, colour: tuple[int, int, int]) -> None:
        bottom = GAP + 3 * (LANE + GAP) + LANE
        y = round((LANE - 3) * min(max(slack, 0.0), 1.0))
        image[bottom - y - 3 : bottom - y, x] = colour if slack >= 0.0 else _LATE
