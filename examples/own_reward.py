"""A reward and an observation of one's own, named `FILE.py:function` wherever an environment is configured.

python examples/own_reward.py
llmsched train --env.reward.function examples/own_reward.py:reward --total-timesteps 100_000
"""

import gymnasium
import numpy as np
import tyro

from llmsched_env.own import Seen, Step


def reward(step: Step) -> np.ndarray:
    """Minus the request-seconds without a first token; a late gap costs three times its lateness.

    Args:
        step: arrays with one entry for each row of the environment.

    Returns:
        float64[rows].
    """
    return step.terms[:, 0] + 3.0 * step.terms[:, 1]


def observe(seen: Seen) -> np.ndarray:
    """KV use, waiting and running requests.

    Args:
        seen: what a policy may see, with one entry for each row of the environment.

    Returns:
        float[rows, 3].
    """
    row = seen.row
    kv_use = 1.0 - row["free_blocks"] / row["num_blocks"].clip(1)
    return np.stack([kv_use, row["num_waiting"], row["num_running"]], axis=1)


def main(steps: int = 1000, rows: int = 4) -> float:
    """Take random actions in an environment with this reward and this observation.

    Args:
        steps: decisions of each row.
        rows: environments side by side.

    Returns:
        Mean reward of a decision.
    """
    envs = gymnasium.make_vec(
        "llmsched_env:LLMSched-v0",
        num_envs=rows,
        vectorization_mode="vector_entry_point",
        reward=f"{__file__}:reward",
        observation=f"{__file__}:observe",
        skip_decode_only=True,
    )
    envs.action_space.seed(0)
    observation, _ = envs.reset(seed=0)
    total = 0.0
    for _ in range(steps):
        observation, rewards, _, _, _ = envs.step(envs.action_space.sample())
        total += float(rewards.mean())
    print(f"mean reward {total / steps:.3f}; last observation of row 0 (KV use, waiting, running): {observation[0]}")
    return total / steps


if __name__ == "__main__":
    tyro.cli(main)
