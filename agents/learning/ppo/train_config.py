"""`TrainConfig`: one training run as one frozen record, and its defaults as YAML per environment id.

The files in ``hyperparams`` beside this one have the shape of rl-baselines3-zoo's ``hyperparams/ppo.yml``: one block
per environment id; `n_timesteps`, `policy_kwargs`, `env_kwargs` and ``lin_<number>`` mean the same there.
"""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.learning.ppo.queues.config import QueueConfig
from agents.learning.run_folder import plain, saved_config
from agents.work.provenance import config_hash
from engine.device.memory import MEMORY
from engine.errors import InputError
from engine.fields import checked
from engine.files.reading import kind_of
from engine.files.yaml_text import parse_yaml, read_yaml
from engine.machine import check_memory
from engine.ranges import MOST_SECONDS, Share, number, parse_number, whole
from llmsched_env import PRESETS
from llmsched_env.config import EnvConfig
from llmsched_env.crew import THREADS

NOT_COMPARED = (
    "total_timesteps",
    "run_dir",
    "resume",
    "progress",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_every",
    "row_threads",
)
"""Fields that may differ when a run is resumed."""

BYTES_PER_ROW_REQUEST = 150
"""Memory of one request in one row of the environment, at the least."""
BYTES_PER_DECISION = 4 * 64
"""Memory of one decision in a rollout: its observation, at the least."""
Many = Annotated[int, whole(1, 10**12)]
Some = Annotated[int, whole(1, 10**7)]
Weight = Annotated[float, number(0.0, 1e6)]
_POSITIVE = number(0.0, 1e6, above=True)
Positive = Annotated[float, _POSITIVE]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run (PPO on `env_id`)."""

    env_id: Annotated[str, tyro.conf.Suppress] = "LLMSched-v0"
    """Registered environment; its block in the hyperparameter file gives the defaults."""
    run_dir: Path = Path("runs/LLMSched-v0")
    """Folder of the run: checkpoints, TensorBoard events, best and final policy."""
    resume: bool = False
    """Continue from the last checkpoint in the run folder."""
    total_timesteps: Many = 1_000_000
    """Decisions to train on, all rows together; rounded up to whole rollouts."""
    n_envs: Some = 256
    """Rows: servers that are simulated side by side."""
    n_steps: Many = 64
    """Decisions of each row in one rollout."""
    batch_size: Annotated[int, whole(2, 10**9)] = 2048
    """Decisions in one gradient step."""
    n_epochs: Many = 4
    """Passes over each rollout."""
    learning_rate: Positive = 3e-4
    """Step size of Adam."""
    schedule: Literal["constant", "linear"] = "constant"
    """Whether the learning rate stays or falls linearly to 0 at `total_timesteps`."""
    discount_s: Annotated[float, number(0.0, MOST_SECONDS, above=True)] = 30.0
    """Seconds after which a reward counts 1/e of its value."""
    gae_lambda: Share = 0.95
    """Lambda of generalised advantage estimation, per decision."""
    clip_range: Positive = 0.2
    """PPO's clip of the probability ratio."""
    ent_coef: Weight = 0.0
    """Weight of the entropy bonus."""
    vf_coef: Weight = 0.5
    """Weight of the value loss."""
    max_grad_norm: Positive = 0.5
    """Gradients are scaled down to this norm."""
    target_kl: Weight = 0.0
    """Stop an update when the policy has moved this far (0: never)."""
    net_arch: tuple[Annotated[int, whole(1, 4096, noun="widths")], ...] = (64, 64)
    """Width of the hidden layers, for actor and critic each."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    teacher: str = ""
    """Baseline to imitate before PPO begins: slackfit or sarathi with parameters (empty: begin from scratch)."""
    imitation_steps: Many = 200_000
    """Decisions of the teacher to learn from; they do not count as timesteps."""
    normalize: bool = True
    """Scale observations and rewards by running statistics."""
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0
    """Seed of the networks, of exploration and of the training traces."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda or auto."""
    threads: Annotated[int, whole(1, 1024)] = 1
    """Threads of torch; two are slower than one whenever another process is busy."""
    row_threads: Annotated[int, THREADS] = 1
    """Threads that step the rows; beside the first one, the critic of the trainer for queues is fitted while the next
    rollout is collected. The results are the same bit for bit. Leave it at 1 where several runs share the cores."""
    checkpoint_every: Many = 500_000
    """Decisions between checkpoints."""
    keep_checkpoints: Some = 3
    """Checkpoints to keep."""
    eval_every: Annotated[int, whole(0, 10**12)] = 250_000
    """Decisions between evaluations on held-out traces (0: never)."""
    eval_traces: Some = 3
    """Held-out traces at each arrival rate."""
    eval_requests: Some = 400
    """Requests in each held-out trace."""
    eval_baselines: tuple[str, ...] = ("sarathi", "slai", "vllm")
    """Policies whose margin is logged."""
    progress: bool = True
    """Show a progress bar."""
    env: EnvConfig = field(default_factory=EnvConfig, metadata={"read": EnvConfig.from_dict})
    """The environment."""
    queue: QueueConfig = field(default_factory=QueueConfig)
    """The trainer for queues."""

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InputError: one is out of range.
        """
        checked(self, "")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise InputError(f"device: expected cpu, cuda, cuda:NUMBER or auto, got {self.device!r}")
        if self.n_envs * self.n_steps % self.batch_size:
            raise InputError(
                f"batch_size: expected a divisor of n_envs x n_steps = {self.n_envs} x {self.n_steps}, "
                f"got {self.batch_size}"
            )
        if self.queue.is_on and self.n_envs % self.queue.group_size:
            raise InputError(
                f"n_envs: expected a multiple of queue.group_size = {self.queue.group_size}, got {self.n_envs}"
            )
        if len(self.net_arch) > 7:
            raise InputError(f"net_arch: expected up to 7 widths of 1 to 4096, got {len(self.net_arch)}")
        check_memory(self.n_envs, self.env.workload.num_requests * BYTES_PER_ROW_REQUEST, "n_envs")
        check_memory(self.n_envs * self.n_steps, BYTES_PER_DECISION, "n_envs x n_steps")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what only says how to run (folder, resume, progress) is left out.

        Raises:
            InputError: the environment cannot be saved.
        """
        data = asdict(self) | {"env": self.env.to_dict()}
        if not self.queue.is_on:
            del data["queue"]
        return {k: v for k, v in data.items() if k not in ("run_dir", "resume", "progress")}

    @classmethod
    def of_run(cls, run_dir: str | Path, **changes: Any) -> "TrainConfig":
        """The configuration of the run in a folder, to go on with it.

        Args:
            run_dir: the folder.
            changes: fields that are to differ (`total_timesteps`, say; see `NOT_COMPARED`).

        Raises:
            InputError: the folder holds no run, or its configuration is damaged.
        """
        folder = Path(run_dir)
        return replace(saved_config(cls, folder), **{"run_dir": folder, "resume": True, **changes})

    @property
    def algorithm(self) -> dict[str, Any]:
        """Keywords of SB3's PPO that every learner here takes from it."""
        same = ("n_steps", "batch_size", "n_epochs", "gae_lambda", "clip_range", "ent_coef", "max_grad_norm", "seed")
        given = {name: getattr(self, name) for name in (*same, "device", "discount_s")}
        return given | {"target_kl": self.target_kl or None}

    @property
    def digest(self) -> str:
        """What checkpoints of this configuration carry: 16 hexadecimal digits."""
        return config_hash({key: value for key, value in plain(self.to_dict()).items() if key not in NOT_COMPARED})

    @classmethod
    def from_yaml(cls, source: str | Path = "LLMSched-v0") -> "TrainConfig":
        """The configuration of the block in a hyperparameter file.

        What a user's file does not say is as in the shipped file of that environment, if there is one.

        Args:
            source: an environment id that has a shipped file, or a YAML file.

        Raises:
            InputError: no such file, no block, an unknown key, or a value that does not fit.
        """
        env_id, block, where = _block(str(source))
        if str(source) not in shipped_hyperparams() and env_id in shipped_hyperparams():
            block = _over(_block(env_id)[1], block, where)
        return _from_block(env_id, block, where)


def _block(source: str) -> tuple[str, dict[str, Any], str]:
    """Environment id and settings of a shipped or a user's file, and what to call the file in messages."""
    if source in shipped_hyperparams():
        where = f"{source}.yml"
        folder = resources.files("agents.learning") / "hyperparams"
        data = parse_yaml((folder / where).read_text(encoding="utf-8"), where)
    elif source.endswith((".yml", ".yaml")):
        where, data = source, read_yaml(source, "hyperparameters")
    else:
        raise InputError(
            f"hyperparams: expected one of {', '.join(shipped_hyperparams())} or a .yml file, got {source!r}"
        )
    if not isinstance(data, dict) or len(data) != 1:
        raise InputError(f"{where}: expected one block, named after an environment id")
    env_id, block = next(iter(data.items()))
    if env_id not in PRESETS:
        raise InputError(f"{where}: expected an environment id among {', '.join(PRESETS)}, got {env_id!r}")
    return env_id, _mapping(block, f"{where}: {env_id}"), where


def _over(shipped: dict[str, Any], own: dict[str, Any], where: str) -> dict[str, Any]:
    """The shipped settings with a user's in their place; those of the environment and the network one by one."""
    merged = shipped | own
    for key in ("env_kwargs", "policy_kwargs"):
        if key in shipped and key in own:
            merged[key] = _merge(shipped[key], own[key], f"{where}: {key}")
    return merged


def shipped_hyperparams() -> list[str]:
    """Environment ids with a shipped hyperparameter file."""
    folder = resources.files("agents.learning") / "hyperparams"
    names = (e.name.removesuffix(".yml") for e in folder.iterdir() if e.name.endswith(".yml"))
    return sorted(name for name in names if name in PRESETS)


def queue_recipe() -> Path:
    """The shipped recipe of the trainer for queues."""
    return Path(str(resources.files("agents.learning") / "hyperparams" / "queue.yml"))


def _from_block(env_id: str, block: dict[str, Any], where: str) -> TrainConfig:
    values: dict[str, Any] = {"env_id": env_id, "run_dir": Path("runs") / env_id, "env": PRESETS[env_id]}
    for key, value in block.items():
        values |= _entry(key, value, env_id, where)
    try:
        return TrainConfig(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _entry(key: str, value: object, env_id: str, where: str) -> dict[str, Any]:
    """What one entry of an environment's block says of the configuration."""
    known = {f.name for f in fields(TrainConfig)} - {"env_id", "run_dir", "resume", "env"}
    if key == "n_timesteps":
        return {"total_timesteps": value}
    if key == "policy":
        _check_policy(value, where)
        return {}
    if key == "learning_rate" and isinstance(value, str) and value.startswith("lin_"):
        return {"schedule": "linear", "learning_rate": _rate(value, f"{where}: learning_rate")}
    if key == "policy_kwargs":
        return _network(value, where)
    if key == "env_kwargs":
        return {"env": _environment(env_id, value, where)}
    if key not in known:
        names = sorted(known | {"n_timesteps", "policy", "policy_kwargs", "env_kwargs"})
        raise InputError(f"{where}: {env_id}: unknown key {key!r}, known: {', '.join(names)}")
    return {key: value}


def _check_policy(name: object, where: str) -> None:
    if name != "MlpPolicy":
        raise InputError(f"{where}: policy: expected MlpPolicy, got {kind_of(name)}")


def _environment(env_id: str, changes: object, where: str) -> EnvConfig:
    preset = PRESETS[env_id].to_dict()
    del preset["action"]  # its settings are read beside the changes, as they may be of another action
    preset["engine"] = {key: value for key, value in preset["engine"].items() if key not in MEMORY}  # the profile's own
    merged = _merge(preset, changes, f"{where}: env_kwargs")
    return EnvConfig.from_dict(merged, f"{where}: env", PRESETS[env_id].action)


def _rate(text: str, where: str) -> float:
    value = parse_number(text.removeprefix("lin_"))
    if value is None:
        raise InputError(f"{where}: expected lin_<number>, got {kind_of(text)}")
    return float(_POSITIVE.check(value, where))


def _network(given: object, where: str) -> dict[str, Any]:
    names = {"net_arch": "net_arch", "activation_fn": "activation"}
    if not isinstance(given, dict) or set(given) - set(names):
        raise InputError(f"{where}: policy_kwargs: expected net_arch and activation_fn, got {kind_of(given)}")
    return {names[k]: v for k, v in given.items()}


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a mapping, got {kind_of(value)}")
    return value


def _merge(default: dict[str, Any], changes: object, where: str) -> dict[str, Any]:
    """`default` with the entries of `changes`, block by block; unknown keys stay for `EnvConfig` to refuse."""
    merged = dict(default)
    for key, value in _mapping(changes, where).items():
        inside = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value, f"{where}.{key}") if inside else value
    return merged
