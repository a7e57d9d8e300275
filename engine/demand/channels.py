"""Predictors of output lengths: what each says about requests whose true outputs it is given.

A channel has the errors that its published predictor has. `engine.demand.predictions` picks one by its spec and puts
what it says into the requests.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.demand.columns import FloatArray
from engine.demand.prediction_bins import (
    BINS_TOKENS,
    NUM_BINS,
    calibrate,
    distribution,
    expectation,
    first_distribution,
    one_token,
)
from engine.demand.requests import INT32_MAX
from engine.fields import checked
from engine.ranges import Share, number, whole
from engine.spec import short, write_spec

Places = npt.NDArray[np.int64]

_CALIBRATION_PAIRS = 16_384
"""Refreshed predictions that calibration looks at, at most."""
_NONE = np.zeros(0)

Tokens = Annotated[float, number(0.0, INT32_MAX)]
Spread = Annotated[float, number(0.0, 10.0)]
Interval = Annotated[int, whole(1, INT32_MAX)]


class Drawn(NamedTuple):
    """What a channel says about n requests, before the options that all channels have."""

    total: FloatArray
    """First prediction of all output tokens of each request, float64[n]."""
    every: int = 0
    """Output tokens between predictions of a request, 0: the first one stays."""
    remaining: FloatArray = _NONE
    """Refreshed predictions of the output tokens still to come, float64, in the order of `Forecast.total`."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A predictor of output lengths; the fields are its settings, those here are options of every channel.

    Raises:
        InputError: a field is out of range.
    """

    name: ClassVar[str] = ""
    """Name, as its spec begins."""
    about: ClassVar[str] = ""
    """One line on what it says."""
    refreshes: ClassVar[bool] = False
    """Whether it predicts anew while a request is served."""

    cap: Annotated[int, whole(0, INT32_MAX)] = 0
    """Largest prediction of the total (tokens), as of a model that cannot say more; 0 for none."""
    shrink: Share = 0.0
    """Regression to the mean (0..1): share of the way to the mean log length, which heavy tails do to predictors.
    Refreshed predictions go towards the mean log of what remains at all refreshes."""
    stale: Literal["one", "half"] = "one"
    """What remains of a request that has outlived its prediction: `one` token, or `half` of what it has generated."""

    def __post_init__(self) -> None:
        """Check every field."""
        checked(self, f"channel {self.name!r}: ")

    @property
    def spec(self) -> str:
        """The channel in canonical form: the name and the settings that differ from the defaults."""
        values = {field.name: getattr(self, field.name) for field in settings_of(type(self))}
        defaults = {field.name: field.default for field in fields(self)}
        return write_spec(self.name, {k: value for k, value in values.items() if value != defaults[k]}, short)

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Predictions for requests with these true outputs (tokens, float64[n])."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Oracle(Channel):
    """The truth."""

    name: ClassVar[str] = "oracle"
    about: ClassVar[str] = "the truth"

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """The outputs themselves."""
        return Drawn(output)


@dataclass(frozen=True, kw_only=True)
class Bins(Channel):
    """TRAIL's prediction from the prompt: the expectation of a distribution over ten bins of 0..512 tokens.

    The published predictor is a classifier (DistilBERT) with a mean absolute error of 46 tokens on Alpaca prompts with
    answers of Llama-3-8B, cut at 512 tokens (harvard-cns/TRAIL-llm-scheduling). Here a request shows its length, cut
    at 512, plus normal noise; the distribution is what follows from that and from the share of requests in each bin.
    The noise is as large as it takes for the error asked for. Not every error can be had: below about a quarter of a
    bin there is the width of the bins, and knowing nothing but the shares is the other end. The nearest is taken.
    """

    name: ClassVar[str] = "bins"
    about: ClassVar[str] = "TRAIL's first prediction: expectation over 10 bins of 0..512 tokens, with this mean error"

    mae: Tokens = 46.0
    """Mean absolute error against the length cut at 512 (tokens)."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Expectations of the distributions."""
        return Drawn(expectation(first_distribution(output, self.mae, rng.standard_normal(output.size))))


@dataclass(frozen=True, kw_only=True)
class Refined(Channel):
    """TRAIL's predictions from the model's own hidden state, every few tokens, smoothed over time.

    The first prediction is that of `Bins`. A refreshed one starts from a distribution over the same bins for the
    tokens that remain; the published network's has a mean absolute error of 34 tokens. Its noise is independent from
    one refresh to the next and fitted to the error of this raw prediction, over all refreshes of all requests. Then
    comes the Bayesian smoothing of harvard-cns/TRAIL-llm-scheduling: the distribution before, moved on by one token at
    a time (one bin down with probability 1/51.2, the lowest bin stays), times the new one. The smoothed error is about
    half of the raw one; the paper (Shahout et al., 2410.01035) has its predictions 2.66 times as good as the first.
    """

    name: ClassVar[str] = "refined"
    about: ClassVar[str] = "TRAIL: bins at first, then a distribution of what remains every few tokens, smoothed"
    refreshes: ClassVar[bool] = True

    mae: Tokens = 34.0
    """Mean absolute error of a refreshed prediction before smoothing, against what remains, cut at 512 (tokens)."""
    first: Tokens = 46.0
    """Mean absolute error of the first prediction, against the length cut at 512 (tokens)."""
    every: Interval = 8
    """Output tokens from one prediction to the next."""
    smooth: bool = True
    """Whether distributions are smoothed over time; without, each refresh forgets those before."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """First and refreshed expectations."""
        first = first_distribution(output, self.first, rng.standard_normal(output.size))
        place, request, generated = refreshes_of(output, self.every)
        remaining = np.minimum(output[request] - generated, BINS_TOKENS)
        noise = rng.standard_normal(remaining.size)
        chosen = np.arange(remaining.size)
        if remaining.size > _CALIBRATION_PAIRS:
            chosen = rng.integers(remaining.size, size=_CALIBRATION_PAIRS)
        sigma = calibrate(remaining[chosen], noise[chosen], self.mae, np.zeros(NUM_BINS))
        seen = remaining + sigma * noise
        return Drawn(expectation(first), self.every, self._filter(first, place, seen, sigma))

    def _filter(self, first: FloatArray, place: Places, seen: FloatArray, sigma: float) -> FloatArray:
        """Expectations after each refresh; all requests take their k-th refresh together."""
        left = np.empty(seen.size)
        count = np.diff(place)
        order = np.argsort(-count, kind="stable")  # those still refreshed come first
        place, belief = place[:-1][order], first[:, order]
        step = np.linalg.matrix_power(one_token(), self.every)
        for k in range(int(count.max())):
            at = place[: np.count_nonzero(count > k)] + k
            raw = distribution(seen[at], sigma, np.zeros(NUM_BINS))
            if self.smooth:
                belief = np.einsum("jb,jm->bm", step, belief[:, : at.size]) * raw
                mass = belief.sum(axis=0)
                belief = np.where(mass > 0.0, belief / np.maximum(mass, np.finfo(float).tiny), raw)
            else:
                belief = raw
            left[at] = expectation(belief)
        return left


@dataclass(frozen=True, kw_only=True)
class Gauss(Channel):
    """The length plus normal noise: how TRAIL's authors test the sensitivity to errors.

    As there (harvard-cns/TRAIL-llm-scheduling) the standard deviation is mae sqrt(pi/2) and no prediction is below one
    token; where many outputs are shorter than the error, that floor makes the measured error smaller than asked for.
    """

    name: ClassVar[str] = "gauss"
    about: ClassVar[str] = "the truth plus normal noise of this mean absolute size, at least one token"

    mae: Tokens = 46.0
    """Mean absolute size of the noise (tokens)."""
    clip: bool = False
    """Whether a prediction is never above the truth: the downward bias of TRAIL's oracle with noise."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Noisy outputs."""
        noisy = np.maximum(1.0, output + self.mae * math.sqrt(math.pi / 2.0) * rng.standard_normal(output.size))
        return Drawn(np.minimum(noisy, output) if self.clip else noisy)


@dataclass(frozen=True, kw_only=True)
class Rank(Channel):
    """A ranking with a given Kendall tau, as learning-to-rank predictors have it (Fu et al., 2408.15792).

    A Gaussian copula: with z the normal score of a request's rank by length and eps standard normal, requests are
    ordered by rho z + sqrt(1 - rho^2) eps, where rho = sin(pi tau / 2) is what makes Kendall's tau come out, however
    lengths are distributed. For log-normal lengths this is, up to a monotone map, ln L + sigma eps with
    sigma = sd(ln L) sqrt(1 / rho^2 - 1). The prediction is the quantile of the lengths at that score, interpolated so
    that a higher score is always a higher prediction: predictions are distributed as the lengths are, and the order is
    what counts. Requests of equal length have one rank, so tau is exact only as far as there are few of them. tau = 1
    is the truth; the public code (hao-ai-lab/vllm-ltr) reports 0.52 for ShareGPT and 0.64 for LMSYS-Chat.
    """

    name: ClassVar[str] = "rank"
    about: ClassVar[str] = "lengths in an order of this Kendall tau (LTR: 0.52 ShareGPT, 0.64 LMSYS), otherwise as true"

    tau: Annotated[float, number(-1.0, 1.0)] = 0.52
    """Kendall's tau between prediction and length (-1..1)."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Quantiles of the outputs at noisy normal scores; if all outputs are equal, the truth."""
        from scipy.special import ndtri

        noise = rng.standard_normal(output.size)
        values, group, count = np.unique(output, return_inverse=True, return_counts=True)
        if values.size == 1:
            return Drawn(output)
        node = np.asarray(ndtri((np.cumsum(count) - count / 2.0) / output.size), np.float64)
        rho = math.sin(math.pi * self.tau / 2.0)
        score = rho * node[group] + math.sqrt(1.0 - rho * rho) * noise
        below, above = np.minimum(score - node[0], 0.0), np.minimum(node[-1] - score, 0.0)
        # Scores beyond the shortest and the longest length keep their order within half a token.
        return Drawn(np.interp(score, node, values) + 0.5 * np.expm1(below) - 0.5 * np.expm1(above))


@dataclass(frozen=True, kw_only=True)
class Iterative(Channel):
    """ELIS (2505.09142): what remains is predicted anew every 50 tokens, better each time.

    The k-th prediction (k = 0 at arrival) is what remains times exp(s eps - s^2 / 2), with s = sigma decay^k and eps
    standard normal: right in the mean. The paper says that errors fall from window to window; the decay is our choice.
    """

    name: ClassVar[str] = "iterative"
    about: ClassVar[str] = "ELIS: what remains, drawn anew every few tokens with log-normal errors that shrink"
    refreshes: ClassVar[bool] = True

    sigma: Spread = 0.5
    """Standard deviation of the log of the first prediction (no unit)."""
    decay: Share = 0.8
    """Factor by which it shrinks from one prediction to the next (0..1)."""
    every: Interval = 50
    """Output tokens from one prediction to the next."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """First and refreshed predictions."""
        total = output * self._error(0.0, rng.standard_normal(output.size))
        _, request, generated = refreshes_of(output, self.every)
        error = self._error(generated / self.every, rng.standard_normal(generated.size))
        return Drawn(total, self.every, (output[request] - generated) * error)

    def _error(self, redraw: float | FloatArray, noise: FloatArray) -> FloatArray:
        spread = self.sigma * np.power(self.decay, redraw)
        return np.asarray(np.exp(spread * noise - spread * spread / 2.0), np.float64)


@dataclass(frozen=True, kw_only=True)
class Exponential(Channel):
    """Exponential predictions whose mean is the length.

    The stress case of Mitzenmacher's "Scheduling with Predictions and the Price of Misprediction".
    """

    name: ClassVar[str] = "exp"
    about: ClassVar[str] = "exponential with the truth as its mean"

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Outputs times standard exponential numbers."""
        return Drawn(output * rng.standard_exponential(output.size))


@dataclass(frozen=True, kw_only=True)
class Retrieval(Channel):
    """A predictor that looks up similar prompts, as ALISE's (2410.23537): good where it finds one, poor elsewhere.

    The length times a log-normal number of median 1. No error of that predictor is published; the settings are ours.
    """

    name: ClassVar[str] = "retrieval"
    about: ClassVar[str] = "ALISE-like look-up: log-normal errors, smaller where a similar prompt was found"

    hit: Share = 0.7
    """Share of the requests for which a similar prompt is found (0..1)."""
    sigma: Spread = 0.4
    """Standard deviation of the log of their predictions (no unit)."""
    miss_sigma: Spread = 0.9
    """That of the others (no unit)."""

    def draw(self, output: FloatArray, rng: np.random.Generator) -> Drawn:
        """Outputs times numbers of the mixture."""
        noise = rng.standard_normal(output.size)
        spread = np.where(rng.random(output.size) < self.hit, self.sigma, self.miss_sigma)
        return Drawn(output * np.exp(spread * noise))


CHANNELS: dict[str, type[Channel]] = {
    cls.name: cls for cls in (Oracle, Bins, Refined, Gauss, Rank, Iterative, Exponential, Retrieval)
}
"""Every channel by name."""


def refreshes_of(output: FloatArray, every: int) -> tuple[Places, Places, FloatArray]:
    """Places of each request's refreshes, int64[n + 1]; request and tokens generated of each refresh, [k] each."""
    count = ((output - 1.0) // every).astype(np.int64)
    place = np.concatenate([[0], np.cumsum(count)])
    request = np.repeat(np.arange(count.size), count)
    generated = (np.arange(place[-1]) - place[request] + 1.0) * every
    return place, request, generated


def settings_of(cls: type[Channel]) -> list[Any]:
    """Fields of a channel, its own before those that all have."""
    common = len(fields(Channel))
    return [*fields(cls)[common:], *fields(cls)[:common]]
