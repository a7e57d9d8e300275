"""What RAD is about: saturated throughput where an iteration costs its GeMM tiles, against the bound 1 / E[w].

Unit of time: one tile column. A request of p prompt and o output tokens needs at least w(p, o) = ceil(p / tile) +
(o - 1) / tile of it, if prompts are padded to tiles on their own, so no such scheduler serves more than 1 / E[w]
requests per unit. Packed prompts need p / tile: the token bound. With t0 units of fixed cost for each iteration both
bounds rise. The setting is a published one: 64-wide tiles, chunks of 128, log-normal lengths.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import baselines
from agents.work.progress import OnProgress, unseen
from agents.work.records import as_json
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.runs.simulate import simulate

FORMAT = "llmsched-tiles/1"
CHUNK = 128
"""Prompt tokens per RAD iteration: two tiles."""
CYCLES = (16, 64, 256, 1024)
"""Requests of a cycle, the paper's N."""


@dataclass(frozen=True)
class CutLogNormal:
    """Independent log-normal lengths, LogN(6, 1) and LogN(5, 0.8), each cut to 1..its own maximum."""

    max_prompt: int = 4096
    """Longest prompt in tokens."""
    max_output: int = 1024
    """Longest output in tokens."""

    @property
    def description(self) -> str:
        """One line that names the model in reports."""
        return f"prompts LogN(6, 1) <= {self.max_prompt}, outputs LogN(5, 0.8) <= {self.max_output}"

    def draw(self, rng: np.random.Generator, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draw n prompt and n output lengths (tokens), int64[n] each."""
        prompt = np.clip(np.rint(rng.lognormal(6.0, 1.0, n)), 1, self.max_prompt)
        output = np.clip(np.rint(rng.lognormal(5.0, 0.8, n)), 1, self.max_output)
        return prompt.astype(np.int64), output.astype(np.int64)


@dataclass(frozen=True)
class Case:
    """One row of the table: a policy and how many requests may hold KV."""

    name: str
    """How the row is called."""
    policy: str
    """Spec of the policy."""
    cap: int = 4096
    """max_num_seqs of the server."""


@dataclass(frozen=True)
class Row:
    """A measured row; throughputs in requests per unit of time."""

    name: str
    """How the row is called."""
    policy: str
    """Spec of the policy."""
    cap: int
    """max_num_seqs of the server."""
    throughput: dict[str, float]
    """By fixed cost t0 (as a string)."""
    share_of_bound: dict[str, float]
    """The same over the bound for prompts padded on their own."""


@dataclass(frozen=True)
class Bounds:
    """Most requests per unit of time that any scheduler can reach."""

    padded: float
    """1 / E[w] with prompts in their own chunks of `CHUNK` and decodes in batches of one tile."""
    tokens: float
    """The bound for packed prompts, with no fixed cost."""


@dataclass(frozen=True)
class Setting:
    """What was measured."""

    profile: str
    tile_tokens: int
    chunk_tokens: int
    requests: int
    seed: int
    lengths: str
    unit: str = "requests per tile column of time; t0 = fixed cost of an iteration in tile columns"


@dataclass(frozen=True)
class Tiles:
    """The table; the fields are the keys of its JSON form, after its format."""

    setting: Setting
    bounds: dict[str, Bounds]
    """By fixed cost t0 (as a string)."""
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row that is called so."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"format": FORMAT, **{name: as_json(value) for name, value in vars(self).items()}}


def rad(prefills: int, drain: str = "carry", batch: int = 64, chunk: int = CHUNK, pack: bool = False) -> str:
    """Spec of RAD in this study."""
    tail = ",pack_tail=true" if pack else ""
    return f"rad:prefills={prefills},chunk={chunk},decode_batch={batch},drain={drain}{tail}"


def cases() -> list[Case]:
    """The rows of the published table; carry with N = 1 is the paper's N = infinity, cycle its finite N."""
    rows = [Case(f"RAD carry, N = {n}", rad(n)) for n in (1, 16, 64)]
    rows += [Case(f"RAD cycle, N = {n}", rad(n, "cycle")) for n in CYCLES]
    rows += [Case(f"RAD full drain, N = {n}", rad(n, "full")) for n in (64, 256, 1024)]
    rows += [
        Case("RAD carry, packed tails, N = 64", rad(64, pack=True)),
        Case("RAD carry, decode batch 256, chunk 2048", rad(64, batch=256, chunk=2048)),
    ]
    rows += [
        Case(f"vLLM, cap {cap}", "vllm:max_batched_tokens=4096,batch_cap=100000", cap)
        for cap in (64, 65, 128, 129, 256)
    ]
    settings = ((256, 512), (256, 2048), (128, 512), (128, 500))
    return rows + [Case(f"Sarathi, cap {c}, budget {b}", f"sarathi:token_budget={b}", c) for c, b in settings]


def bounds(requests: Requests, tile: int, t0: float = 0.0) -> Bounds:
    """Most requests per unit of time that any scheduler can reach on these lengths.

    Args:
        requests: the workload; only its lengths count.
        tile: tokens of a tile column, which takes one unit.
        t0: fixed cost of an iteration in units.
    """
    prompt, decodes = requests.prompt.astype(np.float64), requests.output - 1.0
    prefill = np.ceil(prompt / tile) + t0 * np.ceil(prompt / CHUNK)
    padded = prefill + decodes * (1.0 + t0) / tile
    return Bounds(float(1.0 / padded.mean()), float(tile / (prompt + decodes).mean()))


def throughput(case: Case, requests: Requests, model: LatencyModel) -> float:
    """Requests per unit of time that the case serves out of a full queue, the run's tail included.

    KV is made ample, so that only the batch shapes differ.
    """
    config = EngineConfig(num_blocks=4_000_000, max_num_seqs=case.cap, max_model_len=8192, watermark=0.0)
    record = simulate(baselines.make(case.policy), requests, model, config)
    return len(requests) / float(record.row["now"][0])


def study(
    num_requests: int = 24_000,
    seed: int = 0,
    fixed_costs: tuple[float, ...] = (0.0, 1.0),
    rows: list[Case] | None = None,
    progress: OnProgress = unseen,
) -> Tiles:
    """Measure the table.

    Args:
        num_requests: requests in the queue at time 0.
        seed: of the lengths.
        fixed_costs: t0 values, in units.
        rows: cases to run; all of `cases` if not given.
        progress: called before each row.
    """
    unit = load_profile("tile-unit")
    lengths = CutLogNormal()
    requests = Workload(arrivals="burst", num_requests=num_requests, lengths=lengths).generate(seed)
    limits = {f"{t0:g}": bounds(requests, unit.tile, t0) for t0 in fixed_costs}
    models = {key: LatencyModel(float(key), 0.0, unit.per_token, 0.0, 0.0, tile=unit.tile) for key in limits}
    measured = []
    chosen = cases() if rows is None else rows
    for done, case in enumerate(chosen):
        progress("policies", done, len(chosen))
        reached = {key: throughput(case, requests, model) for key, model in models.items()}
        share = {key: value / limits[key].padded for key, value in reached.items()}
        measured.append(Row(case.name, case.policy, case.cap, reached, share))
    setting = Setting(unit.name, unit.tile, CHUNK, num_requests, seed, lengths.description)
    return Tiles(setting, limits, tuple(measured))


def loss(result: Tiles, good: str, bad: str, t0: str = "0") -> float:
    """Share of the throughput of row `good` that row `bad` loses."""
    return 1.0 - result.row(bad).throughput[t0] / result.row(good).throughput[t0]


def _shares(result: Tiles, name: str, cycles: tuple[int, ...]) -> str:
    """What RAD reaches of the bound with cycles of so many requests."""
    rows = (result.row(f"{name}, N = {n}") for n in cycles)
    return " / ".join(f"{100.0 * row.share_of_bound['0']:.1f}" for row in rows) + " %"


def readings(result: Tiles) -> Iterator[str]:
    """The four things that the table says, with the measured values (needs all rows and t0 = 0 and 1)."""
    yield (
        f"(i) RAD reaches {_shares(result, 'RAD carry', (1,))} of 1/E[w] with the paper's N = infinity, "
        f"{_shares(result, 'RAD cycle', CYCLES)} in cycles of N = {' / '.join(map(str, CYCLES))}, and with prompts "
        f"first, then decodes, {_shares(result, 'RAD full drain', (64, 256, 1024))} at N = 64 / 256 / 1024"
    )
    over = [100.0 * loss(result, f"vLLM, cap {cap}", f"vLLM, cap {cap + 1}") for cap in (64, 128)]
    ragged = 100.0 * loss(result, "Sarathi, cap 128, budget 512", "Sarathi, cap 128, budget 500")
    yield (
        f"(ii) one request beyond a tile costs vLLM {over[0]:.1f} % (64 -> 65) and {over[1]:.1f} % (128 -> 129); "
        f"a budget off the tile costs Sarathi {ragged:.1f} %"
    )
    limits = result.bounds["0"]
    padding = 100.0 * (1.0 - limits.padded / limits.tokens)
    packed = -100.0 * loss(result, "RAD carry, N = 64", "RAD carry, packed tails, N = 64")
    yield f"(iii) padding each prompt costs {padding:.1f} % of the token bound; pack_tail gives RAD {packed:.1f} %"
    narrow, wide, sarathi = (
        result.row(name).throughput["1"]
        for name in ("RAD carry, N = 64", "RAD carry, decode batch 256, chunk 2048", "Sarathi, cap 256, budget 2048")
    )
    yield (
        f"(iv) with t0 = 1 RAD at one tile reaches {narrow:.4f}, at decode batch 256 {wide:.4f}, Sarathi (256, 2048) "
        f"{sarathi:.4f}: a batch of one tile is best only without fixed costs"
    )
