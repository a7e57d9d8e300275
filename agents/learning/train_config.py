"""`TrainConfig`: one training run as one frozen record, and its defaults as YAML per environment id.

The files in ``hyperparams`` beside this one have the shape of rl-baselines3-zoo's ``hyperparams/ppo.yml``: one block
per environment id; `n_timesteps`, `policy_kwargs`, `env_kwargs` and ``lin_<number>`` mean the same there.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from agents.files import config_hash
from agents.learning.run_folder import plain, saved_config
from engine.errors import InputError
from llmsched_env import PRESETS
from llmsched_env.config import EnvConfig

NOT_COMPARED = (
    "total_timesteps",
    "run_dir",
    "resume",
    "progress",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_every",
)
"""Fields that may differ when a run is resumed."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run (PPO on `env_id`)."""

    env_id: Annotated[str, tyro.conf.Suppress] = "LLMSched-v0"
    """Registered environment; its block in the hyperparameter file gives the defaults."""
    run_dir: Path = Path("runs/LLMSched-v0")
    """Folder of the run: checkpoints, TensorBoard events, best and final policy."""
    resume: bool = False
    """Continue from the last checkpoint in the run folder."""
    total_timesteps: int = 1_000_000
    """Decisions to train on, all rows together; rounded up to whole rollouts."""
    n_envs: int = 256
    """Rows: servers that are simulated side by side."""
    n_steps: int = 64
    """Decisions of each row in one rollout."""
    batch_size: int = 2048
    """Decisions in one gradient step."""
    n_epochs: int = 4
    """Passes over each rollout."""
    learning_rate: float = 3e-4
    """Step size of Adam."""
    schedule: Literal["constant", "linear"] = "constant"
    """Whether the learning rate stays or falls linearly to 0 at `total_timesteps`."""
    discount_s: float = 30.0
    """Seconds after which a reward counts 1/e of its value."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation, per decision."""
    clip_range: float = 0.2
    """PPO's clip of the probability ratio."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    target_kl: float = 0.0
    """Stop an update when the policy has moved this far (0: never)."""
    net_arch: tuple[int, ...] = (64, 64)
    """Width of the hidden layers, for actor and critic each."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    teacher: str = ""
    """Baseline to imitate before PPO begins: slackfit or sarathi with parameters (empty: begin from scratch)."""
    imitation_steps: int = 200_000
    """Decisions of the teacher to learn from; they do not count as timesteps."""
    normalize: bool = True
    """Scale observations and rewards by running statistics."""
    seed: int = 0
    """Seed of the networks, of exploration and of the training traces."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda or auto."""
    threads: int = 1
    """Threads of torch; two are slower than one whenever another process is busy."""
    checkpoint_every: int = 500_000
    """Decisions between checkpoints."""
    keep_checkpoints: int = 3
    """Checkpoints to keep."""
    eval_every: int = 250_000
    """Decisions between evaluations on held-out traces (0: never)."""
    eval_traces: int = 3
    """Held-out traces at each arrival rate."""
    eval_requests: int = 400
    """Requests in each held-out trace."""
    eval_baselines: tuple[str, ...] = ("sarathi", "slai", "vllm")
    """Policies whose margin is logged."""
    progress: bool = True
    """Show a progress bar."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment."""

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InputError: one is out of range.
        """
        for name in (
            "total_timesteps",
            "n_envs",
            "n_steps",
            "n_epochs",
            "threads",
            "checkpoint_every",
            "imitation_steps",
        ):
            self._whole(name, 1)
        for name in ("keep_checkpoints", "eval_traces", "eval_requests"):
            self._whole(name, 1)
        for name in ("seed", "eval_every"):
            self._whole(name, 0)
        self._whole("batch_size", 2)
        if self.n_envs * self.n_steps % self.batch_size:
            raise InputError(
                f"batch_size: expected a divisor of n_envs x n_steps = {self.n_envs} x {self.n_steps}, "
                f"got {self.batch_size}"
            )
        for name in ("learning_rate", "discount_s", "clip_range", "max_grad_norm"):
            self._number(name, above_zero=True)
        for name in ("ent_coef", "vf_coef", "target_kl", "gae_lambda"):
            self._number(name, above_zero=False)
        if self.gae_lambda > 1.0:
            raise InputError(f"gae_lambda: expected 0 to 1, got {self.gae_lambda!r}")
        if self.schedule not in ("constant", "linear") or self.activation not in ("tanh", "relu"):
            raise InputError("schedule, activation: expected constant or linear, and tanh or relu")
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in self.net_arch) or len(self.net_arch) > 7:
            raise InputError(f"net_arch: expected up to 7 widths of 1 to 4096, got {self.net_arch!r}")

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name}: expected a whole number >= {least}, got {value!r}")

    def _number(self, name: str, above_zero: bool) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < float("inf")
        if not number or (above_zero and value == 0.0):
            raise InputError(f"{name}: expected a number {'>' if above_zero else '>='} 0, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what only says how to run (folder, resume, progress) is left out.

        Raises:
            InputError: the environment cannot be saved.
        """
        data = asdict(self) | {"env": self.env.to_dict()}
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
    def digest(self) -> str:
        """What checkpoints of this configuration carry: 16 hexadecimal digits."""
        return config_hash({key: value for key, value in plain(self.to_dict()).items() if key not in NOT_COMPARED})

    @classmethod
    def from_yaml(cls, source: str | Path = "LLMSched-v0") -> "TrainConfig":
        """The configuration of the first block of a hyperparameter file.

        Args:
            source: an environment id that has a shipped file, or a YAML file.

        Raises:
            InputError: no such file, no block, an unknown key, or a value that does not fit.
        """
        text, where = _read(str(source))
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{where}: expected YAML, {str(error).splitlines()[0]}") from None
        if not isinstance(data, dict) or len(data) != 1:
            raise InputError(f"{where}: expected one block, named after an environment id")
        env_id, block = next(iter(data.items()))
        if env_id not in PRESETS:
            raise InputError(f"{where}: expected an environment id among {', '.join(PRESETS)}, got {env_id!r}")
        if not isinstance(block, dict):
            raise InputError(f"{where}: {env_id}: expected a mapping")
        return _from_block(str(env_id), block, where)


def _read(source: str) -> tuple[str, str]:
    shipped = resources.files("agents.learning") / "hyperparams"
    if source in shipped_hyperparams():
        return (shipped / f"{source}.yml").read_text(encoding="utf-8"), f"{source}.yml"
    path = Path(source)
    if path.suffix not in (".yml", ".yaml") or not path.is_file():
        raise InputError(
            f"hyperparams: expected one of {', '.join(shipped_hyperparams())} or a .yml file, got {source!r}"
        )
    return path.read_text(encoding="utf-8", errors="replace"), source


def shipped_hyperparams() -> list[str]:
    """Environment ids with a shipped hyperparameter file."""
    folder = resources.files("agents.learning") / "hyperparams"
    names = (e.name.removesuffix(".yml") for e in folder.iterdir() if e.name.endswith(".yml"))
    return sorted(name for name in names if name in PRESETS)


def _from_block(env_id: str, block: dict[str, Any], where: str) -> TrainConfig:
    values: dict[str, Any] = {"env_id": env_id, "run_dir": Path("runs") / env_id, "env": PRESETS[env_id]}
    known = {f.name for f in fields(TrainConfig)} - {"env_id", "run_dir", "resume", "env"}
    for key, value in block.items():
        if key == "n_timesteps":
            values["total_timesteps"] = int(value) if isinstance(value, float) else value
        elif key == "policy":
            if value != "MlpPolicy":
                raise InputError(f"{where}: policy: expected MlpPolicy, got {value!r}")
        elif key == "learning_rate" and isinstance(value, str) and value.startswith("lin_"):
            values |= {"schedule": "linear", "learning_rate": _parse_float(value[4:], where)}
        elif key == "policy_kwargs":
            values |= _network(value, where)
        elif key == "env_kwargs":
            values["env"] = EnvConfig.from_dict(_merge(PRESETS[env_id].to_dict(), value, f"{where}: env_kwargs"))
        elif key in known:
            values[key] = tuple(value) if isinstance(value, list) else value
        else:
            names = sorted(known | {"n_timesteps", "policy", "policy_kwargs", "env_kwargs"})
            raise InputError(f"{where}: {env_id}: unknown key {key!r}, known: {', '.join(names)}")
    try:
        return TrainConfig(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _parse_float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: learning_rate: expected lin_<number>, got 'lin_{text}'") from None


def _network(given: Any, where: str) -> dict[str, Any]:
    names = {"net_arch": "net_arch", "activation_fn": "activation"}
    if not isinstance(given, dict) or set(given) - set(names):
        raise InputError(f"{where}: policy_kwargs: expected net_arch and activation_fn, got {given!r}")
    return {names[k]: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _merge(default: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    """`default` with the entries of `changes`, block by block; unknown keys stay for `EnvConfig` to refuse."""
    if not isinstance(changes, dict):
        raise InputError(f"{where}: expected a mapping, got {changes!r}")
    merged = dict(default)
    for key, value in changes.items():
        inside = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value, f"{where}.{key}") if inside else value
    return merged


def with_run_dir(config: TrainConfig, run_dir: Path, **changes: Any) -> TrainConfig:
    """A copy of a configuration for another folder."""
    return replace(config, run_dir=Path(run_dir), **changes)
