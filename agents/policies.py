"""From what a person writes to a policy: baseline specs, `random`, folders with a learned policy, classes of users."""

import copy
import hashlib
import pickle
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import baselines
from baselines.own import RESERVED, check_class
from engine.config import EngineConfig
from engine.errors import InputError
from engine.files.reading import is_there
from engine.own_code import file_place, parse_place, source_digest
from engine.ranges import SEED, number
from engine.server.policy import Policy
from engine.spec import Spec, read_settings, split_specs

RANDOM = "random"
"""Name of the random-legal policy, the floor that every learner must beat."""
PRETRAINED = "pretrained"
"""Name of the learned policy that ships with the package and does best on what nobody was trained on."""
SHIPPED = (PRETRAINED, "pretrained-ppo")
"""Names of all learned policies that ship: found by evolution, and trained by PPO."""

ADJUSTABLE = ("ageing", "close", "close_until", "longest")
"""Settings that the spec of a learned policy may have."""


class PolicyLabel(str):
    """The name under which a policy that was given as an object is compared; it goes where the name goes."""

    policy: Policy
    digest: str

    def __new__(cls, text: str, policy: Policy, digest: str = "") -> "PolicyLabel":
        """The label of this policy; the digest of its source and parameters is made here, once for all processes."""
        label = super().__new__(cls, text)
        label.policy, label.digest = policy, digest or _object_digest(policy)
        return label

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the policy with its name."""
        return PolicyLabel, (str(self), self.policy, self.digest)


def label_of(policy: str | Policy) -> str:
    """What a policy is called in a comparison: its spec, or for an object of a user's class a label that holds it.

    Raises:
        InputError: neither a spec nor a policy that can be run.
    """
    if isinstance(policy, str):
        return policy
    if not isinstance(policy, Policy):
        given = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
        raise InputError(f"policies: expected specs or objects of subclasses of engine.Policy, got {given}")
    cls, settings = type(policy), Spec.parse(policy.spec).rest
    if cls in baselines.POLICIES.values():
        return policy.spec
    if place := file_place(cls):
        return str(Spec(place, settings))
    if cls.name in RESERVED:
        return (
            policy.spec if is_there(_split(policy.spec)[0]) or cls.name == RANDOM else PolicyLabel(policy.spec, policy)
        )
    check_class(cls, f"policy {cls.__name__}", (*baselines.POLICIES, *RESERVED))
    name = cls.__name__ if cls.name == Policy.name else cls.name
    return PolicyLabel(str(Spec(name, settings)), policy)


def labels_of(policies: Iterable[str | Policy]) -> tuple[str, ...]:
    """The labels of all policies of a comparison.

    Raises:
        InputError: one of them is no policy, or two have the same label.
    """
    labels = tuple(map(label_of, policies))
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"policies: expected each once, got {label!r} twice (a class can have a name of its own)")
    return labels


def check_sendable(label: str, start_method: str) -> None:
    """Find a policy that worker processes cannot get before they are started.

    Raises:
        InputError: it is an object whose class they cannot import, or that cannot be pickled.
    """
    if not isinstance(label, PolicyLabel):
        return
    hint = "put its class into a file (FILE.py:Class), or use one worker"
    main = sys.modules.get("__main__")
    is_typed = type(label.policy).__module__ == "__main__" and not Path(str(getattr(main, "__file__", ""))).is_file()
    if start_method != "fork" and is_typed:
        raise InputError(f"policy {str(label)!r}: worker processes cannot see what a shell or notebook defines; {hint}")
    try:
        pickle.dumps(label.policy)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"policy {str(label)!r}: cannot be sent to worker processes ({text}); {hint}") from None


def with_setting(spec: str, key: str, value: str) -> str:
    """The spec of the same policy with another value of one parameter."""
    return str(Spec(*baselines.base_of(baselines.expand(spec))).with_setting(key, value))


def pretrained_folder(name: str = PRETRAINED) -> Path:
    """Where a shipped policy and its model card are."""
    return Path(str(resources.files("agents") / "learning" / name))


def _split(spec: str) -> tuple[Path, str]:
    """The folder of a learned policy and the settings behind it."""
    parsed = Spec(spec) if is_there(spec) else Spec.parse(spec)
    return pretrained_folder(parsed.name) if parsed.name in SHIPPED else Path(parsed.name), parsed.rest


def _is_folder(spec: str) -> bool:
    """Whether a spec names a learned policy that is there."""
    return is_there(_split(spec)[0])


def split_policies(text: str) -> tuple[str, ...]:
    """Specs in a comma-separated list; commas also stand between the parameters of one spec.

    ``slai:token_budget=1024,offset=3,mine.py:Mine:k=3,j=4`` are two policies.

    Raises:
        InputError: an empty list, or one policy twice.
    """
    specs = split_specs(text, _is_folder)
    if not specs:
        raise InputError(f"policies: expected at least one, got {text!r}")
    for spec in specs:
        if specs.count(spec) > 1:
            raise InputError(f"policies: expected each once, got {spec!r} twice")
    return specs


def resolve(spec: str) -> Policy:
    """The policy that a spec names: a baseline, `random`, one that ships, a folder with a learned one, a user's class.

    A folder is that of a training run or of a bundle. A learned policy whose actions are slackfit's parameters takes
    two of its settings: ``pretrained:ageing=20``. A user's class is ``module:Class`` or ``path/file.py:Class``
    (`baselines.own`).

    Raises:
        InputError: an unknown name or parameter, or a folder without a usable bundle.
    """
    if isinstance(spec, PolicyLabel):
        # What one run leaves in an object must not reach the next one.
        return copy.deepcopy(spec.policy)
    parsed = Spec.parse(spec)
    if parsed.name in baselines.POLICIES:
        return baselines.make(spec)
    if parsed.name == RANDOM:
        return _random(parsed)
    folder, settings = _split(spec)
    if parse_place(spec) and not (is_there(folder) and folder.is_dir()):
        return baselines.make(spec)
    if parsed.name and is_there(folder):
        from agents.learning.learned.load import load_policy, policy_of

        return policy_of(load_policy(folder).bundle.adjusted(**_numbers(spec, settings)), spec)
    known = ", ".join([*baselines.POLICIES, RANDOM, *SHIPPED])
    raise InputError(
        f"policy: expected one of {known}, the folder of a trained policy, module:Class or FILE.py:Class, got {spec!r}"
    )


def _numbers(spec: str, settings: str) -> dict[str, float]:
    where = f"policy {spec!r}"
    given = read_settings(settings, where, ADJUSTABLE, f"{' or '.join(ADJUSTABLE)} = a number")
    return {key: float(number(0.0, 1e9).parse(text, f"{where}: {key}")) for key, text in given.items()}


def _random(spec: Spec) -> Policy:
    from agents.learning.learned.policy import RandomLegal

    given = spec.settings("policy 'random'", ("seed",), "seed=WHOLE NUMBER")
    return RandomLegal(**{key: int(SEED.parse(text, f"policy 'random': {key}")) for key, text in given.items()})


def fingerprint(spec: str) -> str:
    """What makes results of this spec comparable: the spec, with the digest of a learned policy's or class's files."""
    if isinstance(spec, PolicyLabel):
        return f"{spec}@{spec.digest}"
    path, _ = _split(spec)
    if Spec.parse(spec).name in (*baselines.POLICIES, RANDOM):
        return baselines.expand(spec)
    if not (is_there(path) and path.is_dir()):
        expanded = baselines.expand(spec)
        return f"{expanded}@{source_digest(type(resolve(expanded)))}" if parse_place(expanded) else expanded
    return f"{spec}@{_folder_digest(path)}"


def _folder_digest(folder: Path) -> str:
    """Digest of the bundles in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.name in ("policy.json", "weights.safetensors"):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _object_digest(policy: Policy) -> str:
    """Digest of the source of an object's class, of its parameters, and of what its kernel is given."""
    values = repr(sorted((name, value) for name, value in vars(policy).items() if name != "bundle"))
    digest = hashlib.sha256(f"{source_digest(type(policy))}{values}".encode())
    digest.update(policy.params(EngineConfig()).tobytes() if policy.kernel else b"")
    return digest.hexdigest()[:16]
