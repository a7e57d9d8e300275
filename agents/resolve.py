"""From what a person writes to a policy: baseline specs, `random`, folders with a learned policy."""

import hashlib
from importlib import resources
from pathlib import Path

import baselines
from engine.errors import InputError
from engine.policy import Policy

RANDOM = "random"
"""Name of the random-legal policy, the floor that every learner must beat."""
PRETRAINED = "pretrained"
"""Name of the learned policy that ships with the package."""

ADJUSTABLE = ("ageing", "close")
"""Settings that the spec of a learned policy may have."""


def pretrained_folder() -> Path:
    """Where the shipped policy and its model card are."""
    return Path(str(resources.files("agents") / "learning" / "pretrained"))


def _split(spec: str) -> tuple[Path, str]:
    """The folder of a learned policy and the settings behind it."""
    name, _, settings = (spec, "", "") if Path(spec).exists() else spec.partition(":")
    return pretrained_folder() if name == PRETRAINED else Path(name), settings


def _is_start(part: str) -> bool:
    """Whether a part of a comma-separated list begins a new policy (and does not go on with parameters)."""
    name = part.partition(":")[0]
    return name in (*baselines.POLICIES, RANDOM, PRETRAINED) or _split(part)[0].exists() or "=" not in part


def split_policies(text: str) -> tuple[str, ...]:
    """Specs in a comma-separated list; commas also stand between the parameters of one spec.

    ``slai:token_budget=1024,offset=3,sarathi`` are two policies.

    Raises:
        InputError: an empty list, or one policy twice.
    """
    specs: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        if specs and not _is_start(part):
            specs[-1] = f"{specs[-1]},{part}"
        else:
            specs.append(part)
    if not specs:
        raise InputError(f"policies: expected at least one, got {text!r}")
    for spec in specs:
        if specs.count(spec) > 1:
            raise InputError(f"policies: expected each once, got {spec!r} twice")
    return tuple(specs)


def resolve(spec: str) -> Policy:
    """The policy that a spec names: a baseline, `random`, `pretrained`, or the folder of a training run or of a bundle.

    A learned policy whose actions are slackfit's parameters takes two of its settings: ``pretrained:ageing=20``.

    Raises:
        InputError: an unknown name or parameter, or a folder without a usable bundle.
    """
    name, _, settings = spec.partition(":")
    if name in baselines.POLICIES:
        return baselines.make(spec)
    if name == RANDOM:
        return _random(settings)
    folder, settings = _split(spec)
    if folder.exists():
        from agents.learning.policy import LearnedPolicy

        return LearnedPolicy.of(LearnedPolicy.load(folder).bundle.adjusted(**_numbers(spec, settings)), spec)
    known = ", ".join([*baselines.POLICIES, RANDOM, PRETRAINED])
    raise InputError(f"policy: expected one of {known} or the folder of a trained policy, got {spec!r}")


def _numbers(spec: str, settings: str) -> dict[str, float]:
    found = {}
    for part in filter(None, settings.split(",")):
        key, _, text = part.partition("=")
        try:
            found[key] = float(text)
        except ValueError:
            key = ""
        if key not in ADJUSTABLE:
            raise InputError(f"policy {spec!r}: expected {' or '.join(ADJUSTABLE)} = a number, got {part!r}")
    return found


def _random(settings: str) -> Policy:
    from agents.learning.policy import RandomLegal

    key, _, value = settings.partition("=")
    if not settings:
        return RandomLegal()
    if key != "seed" or not value.isdecimal():
        raise InputError(f"policy 'random': expected seed=WHOLE NUMBER, got {settings!r}")
    return RandomLegal(seed=int(value))


def fingerprint(spec: str) -> str:
    """What makes results of this spec comparable: the spec, or the digest of a learned policy's files."""
    path, _ = _split(spec)
    if spec.partition(":")[0] in (*baselines.POLICIES, RANDOM) or not path.is_dir():
        return baselines.expand(spec)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.name in ("policy.json", "weights.safetensors"):
            digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return f"{spec}@{digest.hexdigest()[:16]}"
