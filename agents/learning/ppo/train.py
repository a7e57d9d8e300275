"""`train`: PPO on the environment, into a run folder that can be evaluated, watched and resumed.

<run_dir>/config.json        the configuration, versions, how it was started
<run_dir>/checkpoints/       step-<decisions>.safetensors, everything that the next update depends on
<run_dir>/best, final        policy bundles (`agents.learning.learned.bundle`); the best by held-out traces
<run_dir>/events.out...      TensorBoard
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

import llmsched_env  # noqa: F401 - registers the environments
from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.load import policy_of
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.ppo.callbacks import Checkpoints, Evaluation, ProgressBar, TrainingLog
from agents.learning.ppo.checkpoint import checkpoints, load_checkpoint, old_checkpoints
from agents.learning.ppo.checkpoint_file import DamagedCheckpoint, check_configuration
from agents.learning.ppo.export import export
from agents.learning.ppo.imitation import imitate
from agents.learning.ppo.normalize import TimedNormalize
from agents.learning.ppo.queues.build import build_queue_model, export_levels
from agents.learning.ppo.queues.learner import QueuePPO
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.tensorboard import tensorboard_logger
from agents.learning.ppo.train_config import NOT_COMPARED, TrainConfig
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.run_folder import CONFIG_FILE, refuse_difference, write_about
from agents.learning.teachers import Teacher, teacher
from agents.work.files import claimed
from agents.work.provenance import TRAINS, source_hash, versions
from engine.errors import InputError

CHECKPOINTS = "checkpoints"


def _linear(start: float) -> Any:
    # The last rollout may go past the total.
    return lambda remaining: max(remaining, 0.0) * start


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """One thread, and no argument checks in distributions (a fifth of a small network's time)."""
    before, checked = th.get_num_threads(), th.distributions.Distribution._validate_args
    th.set_num_threads(threads)
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.set_num_threads(before)
        th.distributions.Distribution.set_default_validate_args(checked)


def build_model(
    config: TrainConfig,
    learner: type[TimedPPO] = TimedPPO,
    normalizer: type[TimedNormalize] = TimedNormalize,
    **network: Any,
) -> TimedPPO:
    """The learner in front of its environment, not trained yet.

    Args:
        config: everything about the run.
        learner: the algorithm.
        normalizer: the wrapper that normalises, if the configuration says so.
        network: further `policy_kwargs` of SB3.

    Raises:
        InputError: the environment cannot be built.
    """
    rate = _linear(config.learning_rate) if config.schedule == "linear" else config.learning_rate
    if config.queue.is_on:
        return build_queue_model(config, rate)
    if config.env_id not in gymnasium.registry:
        raise InputError(f"env_id: expected a registered environment, got {config.env_id!r}")
    try:
        threads: dict[str, Any] = {"threads": config.row_threads} if config.row_threads > 1 else {}
        envs = gymnasium.make_vec(config.env_id, config.n_envs, config=config.env, **threads)
    except TypeError as error:
        raise InputError(f"env_id: expected an environment like ours, got {config.env_id!r} ({error})") from None
    env: Any = SB3VecEnv(envs)
    if config.normalize:
        env = normalizer(env, config.discount_s)
    model = learner(
        "MlpPolicy",
        env,
        learning_rate=rate,
        vf_coef=config.vf_coef,
        policy_kwargs={
            "net_arch": list(config.net_arch),
            "activation_fn": th.nn.Tanh if config.activation == "tanh" else th.nn.ReLU,
            **network,
        },
        **config.algorithm,
    )
    env.seed(TRAINING_SEED + (config.seed << 20))
    return model


def learned_policy(model: TimedPPO, config: TrainConfig, name: str = "learned") -> LearnedPolicy:
    """The model's present actor as a policy for `simulate`."""
    if isinstance(model, QueuePPO):
        return policy_of(export_levels(model, config, _command()), name)
    bundle = export(model, model.get_vec_normalize_env(), config.env, _command())
    return policy_of(bundle, name)


def _command() -> str:
    return " ".join(["llmsched", *sys.argv[1:]]) if Path(sys.argv[0]).name == "llmsched" else " ".join(sys.argv)


def _prepare(config: TrainConfig) -> list[Path]:
    """Make the run folder; returns the checkpoints to resume from, oldest first.

    Raises:
        InputError: the folder holds another run or cannot be written, or there is nothing to resume.
    """
    folder = config.run_dir
    found = checkpoints(folder / CHECKPOINTS)
    if config.resume:
        _check_resumed(config, found)
    elif found:
        raise InputError(f"run_dir: {folder} already holds a run; --resume continues it, or choose another folder")
    about = {"config": config.to_dict(), "versions": versions(TRAINS), "command": _command(), "sources": source_hash()}
    write_about(folder, about)
    return found if config.resume else []


def _check_resumed(config: TrainConfig, found: list[Path]) -> None:
    """Check that a folder holds a run of this configuration, with these checkpoints.

    Raises:
        InputError: it holds another, or none that can be resumed.
    """
    folder = config.run_dir
    old = old_checkpoints(folder / CHECKPOINTS)
    if not found and (old or not (folder / CONFIG_FILE).exists()):
        what = f"only {old[-1].name} of an earlier version of llmsched" if old else "none"
        raise InputError(f"resume: {folder}: expected a run with a checkpoint, found {what}")
    refuse_difference(config.to_dict(), TrainConfig.of_run(folder).to_dict(), NOT_COMPARED, folder)
    for path in found:
        check_configuration(path, config.digest)
    if not found:
        print(f"llmsched: {folder} was interrupted before its first decision: begins anew", file=sys.stderr)


def _continue(model: TimedPPO, config: TrainConfig, found: list[Path], evaluation: Evaluation) -> None:
    """Load the newest checkpoint that is whole, saying so where it is not the newest of all.

    Raises:
        InputError: none is whole, or one belongs to another configuration.
    """
    damaged: list[DamagedCheckpoint] = []
    for path in reversed(found):
        try:
            run = load_checkpoint(model, path, config.digest)
            _load_evaluation(evaluation, run, path)
        except DamagedCheckpoint as error:
            damaged.append(error)
            continue
        if damaged:
            print(f"llmsched: {damaged[0]}; going on from {path.name}", file=sys.stderr)
        return
    more = f"; {len(damaged) - 1} older ones are damaged, too" if len(damaged) > 1 else ""
    raise InputError(f"resume: expected a whole checkpoint, {damaged[0]}{more}")


def _load_evaluation(evaluation: Evaluation, run: dict[str, Any], path: Path) -> None:
    try:
        evaluation.load_state(run.get("evaluation"))
    except InputError as error:
        raise DamagedCheckpoint(f"{path}: damaged ({error})") from None


def train(config: TrainConfig, *extra: BaseCallback) -> Path:
    """Train PPO and return the run folder.

    With the same configuration, the same versions and one thread the result is the same bit for bit, in one go or
    resumed from a checkpoint. (With the linear schedule `total_timesteps` must be the same, too.)

    Args:
        config: everything about the run.
        extra: further SB3 callbacks.

    Raises:
        InputError: the configuration does not fit, or the folder holds another run or damaged checkpoints or cannot
            be written.
        KeyboardInterrupt: stopped by the user; what was learned up to the last update is in a checkpoint.
    """
    with claimed(config.run_dir, "train"):
        return _train(config, extra)


def _check_device(name: str) -> None:
    """Refuse a device that is not there, instead of which stable-baselines3 would take the CPU."""
    kind, _, number = name.partition(":")
    found = {"cuda": th.cuda.device_count(), "mps": int(th.backends.mps.is_available())}.get(kind, 1)
    if int(number or 0) >= found:
        raise InputError(f"device: expected one that torch finds here, got {name!r}")


def _teacher(config: TrainConfig) -> Teacher | None:
    """What is imitated first; a learner of levels begins with the teacher's and needs no imitation."""
    return teacher(config.teacher, config.env) if config.teacher and not config.queue.is_on else None


def _train(config: TrainConfig, extra: tuple[BaseCallback, ...]) -> Path:
    _check_device(config.device)
    choose = _teacher(config)
    found = _prepare(config)
    with torch_settings(config.threads):
        model = build_model(config)
        evaluation = Evaluation(config, lambda: learned_policy(model, config), config.run_dir / "best")
        if found:
            _continue(model, config, found, evaluation)
        elif choose is not None:
            _imitate(model, choose, config)
        logger = tensorboard_logger(config.run_dir, model.num_timesteps + 1 if found else 0)
        model.set_logger(logger)
        kept = Checkpoints(config, config.run_dir / CHECKPOINTS, lambda: {"evaluation": evaluation.state()})
        watch: list[BaseCallback] = [evaluation] if config.eval_every else []
        bars = [ProgressBar(config.total_timesteps)] if config.progress else []
        try:
            _learn(model, config, CallbackList([TrainingLog(config.env.action), *watch, *bars, *extra, kept]))
            learned_policy(model, config).bundle.save(config.run_dir / "final")
        except KeyboardInterrupt:
            kept.save()
            raise
        finally:
            for bar in bars:
                bar.close()
            logger.close()
            model.get_env().close()  # type: ignore[union-attr]
    return config.run_dir


def _imitate(model: TimedPPO, choose: Teacher, config: TrainConfig) -> None:
    taught = imitate(model, choose, config.imitation_steps)
    print(f"imitated {config.teacher}: {100 * taught['agreement']:.1f} % of its decisions", file=sys.stderr)


def _learn(model: TimedPPO, config: TrainConfig, callbacks: CallbackList) -> None:
    remaining = config.total_timesteps - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callbacks, reset_num_timesteps=False, log_interval=1)


def parameters(model: TimedPPO) -> np.ndarray:
    """All parameters of the model's networks as one vector, for comparisons."""
    return np.concatenate([p.detach().cpu().numpy().ravel() for p in model.policy.parameters()])
