"""Predictions of output lengths, with the errors that published predictors have, drawn into the requests.

``predict(requests, "rank:tau=0.52", seed)`` fills in the predictions. Noise is drawn per request from a stream of its
own, so the same seed gives the same predictions at every load. What a channel is calibrated to is a property of the
trace: the noise of `bins` and `refined` is fitted to the requests that are to be predicted, as their predictors were
trained on the data that they serve. `errors` says how large the errors came out.
"""

import math
from typing import NamedTuple

import numpy as np

from engine.demand.channels import CHANNELS, Channel, refreshes_of, settings_of
from engine.demand.columns import LONGEST_PREDICTION, FloatArray
from engine.demand.forecast import Forecast
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.fields import types_of
from engine.ranges import SEED
from engine.spec import Spec, short, write_settings

_STREAM = 0x4C454E47
"""Second word of the seed: keeps the noise apart from the numbers that the trace itself was drawn from."""
_LEAST = 2.0**-20
"""Smallest prediction (tokens), so that no channel says 0."""


def channel_names() -> tuple[str, ...]:
    """Return the names of the channels, as spec strings begin."""
    return tuple(CHANNELS)


def channel_descriptions() -> dict[str, str]:
    """Return one line for each channel: what it says, and the keys that its spec takes with their defaults."""
    return {
        name: f"{cls.about} ({write_settings({f.name: f.default for f in settings_of(cls)}, short)})"
        for name, cls in CHANNELS.items()
    }


def parse_channel(spec: str) -> Channel:
    """Return the channel that a spec describes: `name`, or `name:key=value,key=value`.

    Raises:
        InputError: an unknown name or key (lists the known ones), a key given twice, or a bad value.
    """
    parsed = Spec.parse(spec)
    if parsed.name not in CHANNELS:
        raise InputError(f"channel: expected one of {', '.join(CHANNELS)}; got {parsed.name!r}")
    cls, where = CHANNELS[parsed.name], f"channel {parsed.name!r}"
    kinds = types_of(cls)
    return cls(**parsed.values(where, {field.name: kinds[field.name] for field in settings_of(cls)}))


def predict(requests: Requests, channel: str, seed: int) -> Requests:
    """Return the requests with predictions; what they had before is replaced.

    Args:
        requests: n requests; of these only the outputs and their order count, not when they arrive.
        channel: spec of the channel (`parse_channel`).
        seed: a whole number >= 0; the same one gives the same predictions, bit for bit.

    Returns:
        A copy whose `prediction` (tokens, > 0) and `forecast` come from the channel.

    Raises:
        InputError: a bad spec or seed.
    """
    chosen = parse_channel(channel)
    SEED.check(seed, "seed")
    output = requests.output.astype(np.float64)
    drawn = chosen.draw(output, np.random.default_rng([int(seed), _STREAM]))
    prediction = _bounded(_regressed(drawn.total, output, chosen.shrink), chosen.cap)
    if not drawn.every:
        return requests.replace(
            prediction=prediction, forecast=Forecast(chosen.spec, stale_half=chosen.stale == "half")
        )
    place, request, generated = refreshes_of(output, drawn.every)
    remaining = _regressed(drawn.remaining, output[request] - generated, chosen.shrink)
    total = _bounded(generated + remaining, chosen.cap).astype(np.float32)
    for array in (place, total):
        array.flags.writeable = False
    forecast = Forecast(chosen.spec, drawn.every, place, total, chosen.stale == "half")
    return requests.replace(prediction=prediction, forecast=forecast)


class Errors(NamedTuple):
    """How wrong predictions are."""

    mae: float
    """Mean absolute error of the first predictions (tokens)."""
    bias: float
    """Their mean error (tokens), > 0 where they are too long."""
    tau: float
    """Kendall's tau-b between first predictions and lengths; nan if either are all equal."""
    refreshed_mae: float
    """Mean absolute error of what remains (tokens), over all refreshes of all requests; nan if there are none."""


def errors(requests: Requests, limit: float = math.inf) -> Errors:
    """Compare predictions with the truth, for reports.

    Args:
        requests: requests with predictions.
        limit: lengths above it, true or predicted, count as this many tokens (512: as TRAIL's errors are stated).

    Raises:
        InputError: requests without predictions.
    """
    from scipy.stats import kendalltau

    if np.isnan(requests.prediction).any():
        raise InputError("prediction errors: expected requests with predictions (`engine.demand.predictions.predict`)")
    output = requests.output.astype(np.float64)
    error = np.minimum(requests.prediction, limit) - np.minimum(output, limit)
    varied = np.ptp(requests.prediction) > 0.0 and np.ptp(output) > 0.0
    tau = float(kendalltau(requests.prediction, output).statistic) if varied else math.nan
    refreshed, forecast = math.nan, requests.forecast
    if forecast.total.size:
        _, request, generated = refreshes_of(output, forecast.every)
        left = forecast.total - generated
        stale = np.maximum(1.0, 0.5 * generated) if forecast.stale_half else 1.0  # as `engine.server.moves.remaining`
        left = np.where(left < 1.0, stale, left)
        truth = output[request] - generated
        refreshed = float(np.abs(np.minimum(left, limit) - np.minimum(truth, limit)).mean())
    return Errors(float(np.abs(error).mean()), float(error.mean()), tau, refreshed)


def _regressed(prediction: FloatArray, truth: FloatArray, share: float) -> FloatArray:
    """Predictions moved this share of the way to the mean log of the truth."""
    if not share or not truth.size:
        return prediction
    least = np.maximum(prediction, _LEAST)
    return np.asarray(np.exp((1.0 - share) * np.log(least) + share * np.log(truth).mean()), np.float64)


def _bounded(prediction: FloatArray, cap: int) -> FloatArray:
    return np.clip(prediction, _LEAST, cap or LONGEST_PREDICTION)
