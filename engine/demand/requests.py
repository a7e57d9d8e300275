"""Requests and service tiers: the immutable input of every simulation, environment episode and report."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from engine.config import EngineConfig
from engine.demand.closed import Loop
from engine.demand.columns import FloatArray, IntArray, arrivals, first_of, integers, predictions
from engine.demand.forecast import Forecast
from engine.errors import InputError
from engine.fields import checked
from engine.files.reading import kind_of
from engine.ranges import MOST_SECONDS, SEED, Share, number

INT32_MAX = int(np.iinfo(np.int32).max)
MAX_TIERS = 64
"""Service tiers of a run; each takes 53 KB of a server's memory for its histogram of gaps."""
COLUMNS = ("arrival", "prompt", "output", "tier", "prediction")
"""The arrays of `Requests`, in the order of their digest."""


Deadline = Annotated[float, number(0.0, MOST_SECONDS, above=True, noun="seconds")]


@dataclass(frozen=True)
class Tier:
    """A class of users with its own deadlines.

    Raises:
        InputError: a field is out of range (an empty name, a share outside 0..1, a deadline that is not
            positive and finite).
    """

    name: str
    """Name of the tier, as reports print it."""
    share: Share
    """Fraction of the requests that belong to the tier (0..1)."""
    tbt_s: Deadline
    """Deadline of every gap between two output tokens (s)."""
    ttft_s: Deadline = 2.0
    """Deadline of the first output token, from arrival (s); Sarathi-Serve bounds scheduling delay by 2 s."""
    weight: Annotated[float, number(0.0, 1e9)] = 1.0
    """Weight of the tier's requests in rewards (no unit)."""
    strict: bool = False
    """Whether these are paying users (`engine.demand.tiers`): SLAI's user priority, own entries of the observation."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not (isinstance(self.name, str) and self.name.isprintable() and self.name.strip() and len(self.name) <= 60):
            raise InputError(f"tier name: expected 1 to 60 printable characters, got {kind_of(self.name)}")
        if set(self.name) & set(".,=/"):
            raise InputError(f"tier name: expected a name without . , = and /, got {self.name!r}")
        if not isinstance(self.strict, bool):
            raise InputError(f"tier {self.name!r} strict: expected true or false, got {self.strict!r}")
        checked(self, f"tier {self.name!r} ")


DEFAULT_TIERS = (Tier("strict", 0.05, 0.1, strict=True), Tier("relaxed", 0.95, 0.5))
"""Users as in the SLAI evaluation (agrimUT/SLAI): 5 % pay for 0.1 s between tokens, the rest accept 0.5 s."""


def check_shares(tiers: tuple[Tier, ...]) -> None:
    """Check that the tiers can be drawn by share: at least one, distinct names, shares that sum to 1.

    Raises:
        InputError: one of these does not hold.
    """
    total = math.fsum(tier.share for tier in _tiers(tiers))
    if abs(total - 1.0) > 1e-6:
        shares = ", ".join(f"{tier.name} {tier.share:g}" for tier in tiers)
        raise InputError(f"tiers: expected shares that sum to 1, got {total:g} ({shares})")


def seeded(seed: int | np.random.Generator) -> np.random.Generator:
    """Return the generator that a seed stands for; a generator is returned as it is.

    Raises:
        InputError: the seed is not a whole number >= 0; None, which numpy accepts, is refused too.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(SEED.check(seed, "seed"))


def draw_tiers(rng: np.random.Generator, n: int, tiers: tuple[Tier, ...]) -> IntArray:
    """Draw n tier indices, int32[n], by comparing one uniform number per request with the cumulative shares.

    With the default tiers this is the rule of the public SLAI code: a user pays if `rng.random() < 0.05`.

    Raises:
        InputError: the tiers' shares do not sum to 1.
    """
    check_shares(tiers)
    # The last tier takes the rest, so that a rounding error in the sum cannot yield an index out of range.
    bounds = np.cumsum([tier.share for tier in tiers[:-1]])
    return np.searchsorted(bounds, rng.random(n), side="right").astype(np.int32)


def _tiers(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    tiers = tuple(tiers)
    if not 1 <= len(tiers) <= MAX_TIERS:
        raise InputError(f"tiers: expected at least one tier and at most {MAX_TIERS}, got {len(tiers) or 'none'}")
    names = [tier.name for tier in tiers]
    if len(set(names)) != len(names):
        raise InputError(f"tiers: expected distinct names, got {', '.join(names)}")
    return tiers


def _tier_indices(tier: npt.ArrayLike | None, tiers: tuple[Tier, ...], length: int) -> IntArray:
    if tier is not None:
        return integers("tier", tier, length, 0, len(tiers) - 1)
    largest = max(range(len(tiers)), key=lambda index: tiers[index].share)
    return np.full(length, largest, dtype=np.int32)


class Further(TypedDict, total=False):
    """What requests may have besides columns and tiers: further keyword arguments of `Requests.create`."""

    source: str
    """One line on the origin of the data."""
    forecast: Forecast
    """How predictions change while requests are served; absent: they do not."""
    loop: Loop | None
    """How arrivals wait for completions; None: they do not."""


@dataclass(frozen=True, eq=False)
class Requests:
    """A sequence of n requests in order of arrival, as read-only arrays of equal length.

    Build it with `Requests.create`, which validates; the plain constructor does not.
    """

    arrival: FloatArray
    """Arrival times, float64[n] (s), finite, >= 0, non-decreasing; equal times are served in index order. In a closed
    loop when requests are due (limit) or when they would come if serving took no time (users); when they came is in
    the record."""
    prompt: IntArray
    """Prompt lengths, int32[n] (tokens), >= 1."""
    output: IntArray
    """True output lengths, int32[n] (tokens), >= 1; a policy must not read them."""
    tier: IntArray
    """Index into `tiers` of each request, int32[n]."""
    prediction: FloatArray
    """Predicted output lengths, float64[n] (tokens); nan where there is no prediction."""
    tiers: tuple[Tier, ...]
    """The service tiers that `tier` refers to."""
    source: str = ""
    """One line that says where the requests come from."""
    forecast: Forecast = field(default_factory=Forecast)
    """How predictions change while requests are served."""
    loop: Loop | None = None
    """How arrivals wait for completions; None: they do not."""

    @classmethod
    def create(
        cls,
        arrival: npt.ArrayLike,
        prompt: npt.ArrayLike,
        output: npt.ArrayLike,
        tier: npt.ArrayLike | None = None,
        prediction: npt.ArrayLike | None = None,
        tiers: tuple[Tier, ...] = DEFAULT_TIERS,
        **further: Unpack[Further],
    ) -> Requests:
        """Convert, copy, validate and freeze.

        Args:
            arrival: n arrival times (s), non-decreasing.
            prompt: n prompt lengths (tokens).
            output: n output lengths (tokens).
            tier: n indices into `tiers`; None puts every request in the tier with the largest share.
            prediction: n predicted output lengths (tokens, nan = none); None means no predictions.
            tiers: the service tiers.
            **further: source, forecast and loop (`Further`).

        Raises:
            InputError: no requests, lengths differ, or a value is out of range (names the first offending
                index).
            TypeError: an argument that there is not.
        """
        times = arrivals(arrival)
        n = times.shape[0]
        tiers = _tiers(tiers)
        prompts = integers("prompt", prompt, n, 1, INT32_MAX)
        outputs = integers("output", output, n, 1, INT32_MAX)
        indices = _tier_indices(tier, tiers, n)
        predicted = predictions(prediction, n)
        further.get("forecast", Forecast()).check(outputs)
        if loop := further.get("loop"):
            further["loop"] = loop.check(n)
        for array in (times, prompts, outputs, indices, predicted):
            array.flags.writeable = False
        return cls(times, prompts, outputs, indices, predicted, tiers, **further)

    def __repr__(self) -> str:
        """How many, how fast, how long and whose; not the arrays."""
        tiers = ", ".join(f"{tier.name} {np.mean(self.tier == k):.1%}" for k, tier in enumerate(self.tiers))
        lengths = f"median prompt {np.median(self.prompt):.0f}, output {np.median(self.output):.0f} tokens"
        return f"Requests({len(self)} at {self.rate:.3g}/s, {lengths}, {tiers}; {self.source or 'no source'})"

    def __len__(self) -> int:
        """Return the number of requests."""
        return int(self.arrival.shape[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through `create`, since pickled arrays would come back writable."""
        return partial(Requests.create, **vars(self)), ()

    @property
    def rate(self) -> float:
        """Mean arrival rate (requests/s): n - 1 gaps over the span of the arrivals; inf if that is zero."""
        span = float(self.arrival[-1] - self.arrival[0])
        return (len(self) - 1) / span if span > 0.0 else math.inf

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of all arrays and tiers; `source` does not count."""
        digest = hashlib.sha256()
        for array in (getattr(self, name) for name in COLUMNS):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        for tier in self.tiers:
            fields = (tier.name, float(tier.share), float(tier.tbt_s), float(tier.ttft_s), float(tier.weight))
            digest.update(repr((*fields, bool(tier.strict))).encode())
        if self.forecast.every or self.forecast.stale_half:
            digest.update(repr((self.forecast.every, self.forecast.stale_half)).encode())
            digest.update(self.forecast.total.astype("<f4").tobytes())
        if self.loop:
            digest.update(repr((int(self.loop.places), self.loop.think is None)).encode())
            digest.update(b"" if self.loop.think is None else self.loop.think.astype("<f8").tobytes())
        return digest.hexdigest()[:16]

    def head(self, n: int) -> Requests:
        """Return the first n requests.

        Raises:
            InputError: n is below 1 or above the number of requests.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"num_requests: expected 1..{len(self)} (all of {self.source or 'the requests'}), got {n}")
        columns = {name: getattr(self, name)[:n] for name in COLUMNS}
        return self.replace(**columns, forecast=self.forecast.head(n), loop=self.loop.head(n) if self.loop else None)

    def take(self, index: npt.NDArray[np.int64]) -> Requests:
        """Return some of the requests of an open loop, perhaps none, in the same order.

        Args:
            index: which, rising.

        Raises:
            InputError: requests of a closed loop, in which each waits for others.
        """
        if self.loop:
            raise InputError(f"requests: expected an open loop to take some from, got a {self.loop.description}")
        columns = {name: getattr(self, name)[index] for name in COLUMNS}
        for column in columns.values():
            column.flags.writeable = False
        return Requests(**columns, tiers=self.tiers, source=self.source, forecast=self.forecast.take(index))

    def replace(self, **changes: Any) -> Requests:
        """Return a copy in which the named fields are changed, validated as in `create`.

        Raises:
            InputError: an unknown field name, or a value that `create` refuses.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        unknown = sorted(set(changes) - set(fields))
        if unknown:
            raise InputError(f"Requests.replace: expected fields among {', '.join(fields)}, got {', '.join(unknown)}")
        return Requests.create(**(fields | changes))

    def limited(self, places: int) -> Requests:
        """Return a copy of which at most `places` requests are in flight; 0: these requests.

        Raises:
            InputError: fewer than 1 place, or requests of a closed loop, which has its limit.
        """
        if places == 0:
            return self
        if self.loop:
            raise InputError(f"max_concurrency: expected requests of an open loop, got a {self.loop.description}")
        loop = Loop(places).check(len(self))
        return self.replace(loop=loop, source=", ".join(filter(None, (self.source, loop.description))))

    def check_servable(self, config: EngineConfig) -> None:
        """Check that a server with these limits can serve every request (`EngineConfig.unservable`).

        Raises:
            InputError: names the first request that it cannot serve, says why, and counts them.
        """
        bad = config.unservable(self.prompt, self.output)
        if not bad.any():
            return
        index = first_of(bad)
        prompt, output = int(self.prompt[index]), int(self.output[index])
        raise InputError(
            f"request {index}: expected {config.required_of(prompt)}, got {prompt} + {output}; "
            f"{int(bad.sum())} of {len(self)} requests can never be served"
        )
