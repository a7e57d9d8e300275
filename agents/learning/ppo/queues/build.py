"""From a training configuration to a `QueuePPO` in front of its worlds, and from one to a bundle."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule

from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.levels import level_layer
from agents.learning.ppo.export import numbers
from agents.learning.ppo.queues.config import USUAL_REQUEST_S
from agents.learning.ppo.queues.groups import GroupedServers
from agents.learning.ppo.queues.learner import QueuePPO
from agents.learning.ppo.queues.policy import CLIP, Frame, LevelPolicy
from agents.learning.ppo.queues.worlds import (
    MOST_GROWTH,
    Setting,
    Watched,
    scale_of,
    shared_out,
    usual_cost,
    watch,
    worlds_of,
)
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.teachers import Teacher, as_taught, constant, teacher
from agents.work.provenance import TRAINS, source_hash, versions
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env.config import EnvConfig
from llmsched_env.crew import Crew
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

WATCHED_SEED = TRAINING_SEED - (1 << 20)
"""Traces on which the reference is watched are drawn from this seed on."""


def levels_of(spec: str, env: EnvConfig) -> Teacher:
    """The levels of a baseline, whatever the settings of the action; of none, the middle level of every head.

    Raises:
        InputError: a baseline outside the action space.
    """
    return teacher(spec, as_taught(spec, env)) if spec else constant(*((size - 1) // 2 for size in env.action.sizes))


def setting_of(config: TrainConfig) -> Setting:
    """The worlds of a run, and the reference watched in each of them; those that it cannot serve are left out.

    Raises:
        InputError: worlds that rows cannot go on in, traces that end before the burn-in, or a reference outside the
            action space.
    """
    worlds, watched, choose = [], [], levels_of(config.queue.reference, config.env)
    if config.queue.burn_in >= (requests := config.env.workload.num_requests):
        raise InputError(
            f"queue.burn_in: expected less than the {requests} requests of a trace, got {config.queue.burn_in}"
        )
    for w, world in enumerate(worlds_of(config.env)):
        found = watch(world, choose, config.queue.burn_in, WATCHED_SEED + 64 * w)
        if found.growth > MOST_GROWTH:
            print(
                f"llmsched: {world.name}: left out, the reference does not keep up with its requests", file=sys.stderr
            )
            continue
        found.price["usual_cost"] = usual_cost(found, world.env.reward.vector())
        worlds.append(world)
        watched.append(found)
    if not worlds:
        raise InputError(
            "queue.reference: expected one that keeps up with the requests of some world, got none that does"
        )
    return Setting(shared_out(worlds, config.n_envs // config.queue.group_size), watched, choose)


def frame_of(config: TrainConfig, watched: list[Watched]) -> Frame:
    """What the actor's numbers mean: it begins with the levels of the teacher."""
    names = config.queue.features or OBSERVATION_NAMES
    columns = np.sort([OBSERVATION_NAMES.index(name) for name in names])
    nothing = np.zeros((1, OBSERVATION_SIZE), np.float32)
    base = levels_of(config.teacher, config.env)(nothing)[0].astype(np.float64)
    return Frame(*scale_of(watched), columns, base)


def build_queue_model(
    config: TrainConfig, learning_rate: float | Schedule, kind: type[GroupedServers] = GroupedServers
) -> QueuePPO:
    """The learner in front of its worlds, not trained yet.

    Args:
        config: everything about the run.
        learning_rate: of SB3, a number or a schedule.
        kind: of the environment.

    Raises:
        InputError: worlds, a reference or a teacher that do not fit.
    """
    queue, setting = config.queue, setting_of(config)
    groups, crew = config.n_envs // queue.group_size, Crew(config.row_threads)
    servers = kind(config.env, setting, queue, groups, config.n_steps, crew)
    model = QueuePPO(
        LevelPolicy,
        SB3VecEnv(servers),
        queue=queue,
        usual=np.array([one.price["usual_cost"][0] for one in setting.watched]),
        pace=_pace(config, setting),
        learning_rate=learning_rate,
        policy_kwargs={
            "frame": frame_of(config, setting.watched),
            "actor": queue.actor,
            "critic": config.net_arch,
            "std": queue.std,
            "rates": (queue.std_rate, queue.hidden_rate),
            "averaging": queue.averaging,
        },
        **config.algorithm,
    )
    env: Any = model.get_env()
    env.seed(TRAINING_SEED + (config.seed << 20))
    return model


def _pace(config: TrainConfig, setting: Setting) -> np.ndarray:
    """Real seconds of each world for one of the configuration: rates of one device and workload share their clock."""
    if not config.env.scenarios:
        return np.ones(len(setting.watched))
    return np.array([one.price["unit"][0] / USUAL_REQUEST_S for one in setting.watched])


Layer = tuple[np.ndarray, np.ndarray]
"""Weight [out, in] and bias [out]."""


def exported_layers(layers: Sequence[Layer], sizes: Sequence[int]) -> tuple[Layer, ...]:
    """The layers of an actor of levels as a bundle has them.

    Args:
        layers: the actor's; the last one gives a level for each head, and its first input is the constant 1.
        sizes: levels of each head.
    """
    *hidden, (weight, bias) = layers
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    return (*hidden, level_layer(weight[:, 1:], bias + weight[:, 0], sizes))


def export_levels(model: QueuePPO, config: TrainConfig, command: str) -> Bundle:
    """The actor's running mean as a bundle: its levels as logits (`agents.learning.learned.levels`)."""
    policy = model.policy
    frame = policy.frame
    parts: Any = policy.averaged.module
    hidden, last = parts
    layers = [(numbers(m.weight), numbers(m.bias)) for m in (*hidden, last) if isinstance(m, th.nn.Linear)]
    return Bundle(
        layers=exported_layers(layers, config.env.action.sizes),
        activation="tanh",
        mean=frame.mean[frame.columns].astype(np.float32).astype(np.float64),
        std=frame.std[frame.columns].astype(np.float32).astype(np.float64),
        clip=CLIP,
        codec=config.env.action.codec.params(load_profile(config.env.profile)),
        env=config.env,
        observation=tuple(OBSERVATION_NAMES[k] for k in frame.columns),
        command=command,
        timesteps=int(model.num_timesteps),
        versions=versions(TRAINS),
        sources=source_hash(),
    )
