"""What a learned policy was trained for, against what it is asked to do: one line where they differ.

A policy may well serve another device or other deadlines, but its numbers then say nothing about its training. What is
meant to vary (rates, numbers of requests, seeds, shares of the tiers) is not remarked on.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from agents.source import Source
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import LatencyModel
from engine.server.policy import Policy

SHOWN = 3
"""Limits of the server that are named; of further ones their number."""


def remark(
    policy: Policy, tiers: Sequence[Tier], model: LatencyModel | None, config: EngineConfig, source: Source
) -> str:
    """One line on how a policy's training differs from a run, empty where it does not or nothing was trained.

    Args:
        policy: any policy.
        tiers: of the run's requests.
        model: the run's device; None: a real one, which has no profile.
        config: the run's server.
        source: where the run's requests come from.
    """
    bundle = getattr(policy, "bundle", None)
    if bundle is None or bundle.env.scenarios:
        return ""  # what is trained over many worlds is meant for others, too
    env = bundle.env
    pairs = [_tiers(env.workload.tiers, tiers)]
    if model is not None and not env.action.codec.knows(bundle.codec, model):
        numbers = " with other numbers" if env.profile == model.name else ""
        pairs.append((f"profile {env.profile}{numbers}", f"profile {model.name}"))
    pairs += _limits(env.engine, config)
    pairs += [_lengths(env.workload, source), _predictions(env.prediction, source.channel(policy))]
    known = [pair for pair in pairs if pair]
    if not known:
        return ""
    was, here = (", ".join(filter(None, side)) for side in zip(*known, strict=True))
    return f"{policy.spec} was trained with {was}; here {here}"


Pair = tuple[str, str] | None


def _tiers(trained: Sequence[Tier], given: Sequence[Tier]) -> Pair:
    sides = [[(t.strict, t.ttft_s, t.tbt_s, t.weight) for t in tiers] for tiers in (trained, given)]
    return None if sides[0] == sides[1] else (_tier_text(trained), _tier_text(given))


def _tier_text(tiers: Sequence[Tier]) -> str:
    texts = []
    for t in tiers:
        weight = f" weight {t.weight:g}" if t.weight != 1.0 else ""
        texts.append(f"{t.name}{_kind(t)} {t.ttft_s:g}/{t.tbt_s:g} s{weight}")
    return f"{len(tiers)} tier{'s' if len(tiers) > 1 else ''} ({', '.join(texts)})"


def _kind(tier: Tier) -> str:
    """Whether a tier is strict, where its name does not say it."""
    if tier.strict == (tier.name == "strict"):
        return ""
    return " strict" if tier.strict else " not strict"


def _limits(trained: EngineConfig, given: EngineConfig) -> list[Pair]:
    changed = [f.name for f in fields(EngineConfig) if getattr(trained, f.name) != getattr(given, f.name)]
    pairs: list[Pair] = [(f"{name} {getattr(trained, name)}", f"{getattr(given, name)}") for name in changed[:SHOWN]]
    more = len(changed) - SHOWN
    if more > 0:
        pairs.append((f"{more} more settings of the server", "others"))
    return pairs


def _lengths(trained: Workload, source: Source) -> Pair:
    was = _length_name(trained)
    if source.trace:
        here = Path(source.trace).name
    else:
        here = _length_name(parse_workload(source.workload))
    return None if was == here else (f"lengths {was}", f"lengths {here}")


def _length_name(workload: Workload) -> str:
    if trace := getattr(workload, "trace", ""):
        return Path(trace).name
    lengths = workload.lengths
    return Path(lengths).name if isinstance(lengths, str) else str(getattr(lengths, "name", "of its own"))


def _predictions(trained: str, given: str) -> Pair:
    return (f"predictions {trained or 'of none'}", f"{given or 'none'}") if trained != given else None
