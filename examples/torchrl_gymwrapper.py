"""The environment in TorchRL: `GymWrapper` around it, a rollout as one TensorDict. Needs `pip install torchrl`.

python examples/torchrl_gymwrapper.py
"""

import gymnasium
import tyro
from tensordict import TensorDictBase
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs


def main(steps: int = 200, env_id: str = "llmsched_env:LLMSchedToy-v0") -> TensorDictBase:
    """Random actions in the wrapped environment.

    Args:
        steps: decisions at most; the rollout ends with the episode.
        env_id: registered environment.

    Returns:
        The rollout: observation, action, reward and done of each decision.
    """
    env = GymWrapper(gymnasium.make(env_id, skip_decode_only=True), categorical_action_encoding=True)
    env.set_seed(0)
    check_env_specs(env)
    rollout = env.rollout(steps)
    reward = rollout["next", "reward"]
    print(rollout)
    print(f"{len(reward)} decisions, return {float(reward.sum()):.3f}")
    return rollout


if __name__ == "__main__":
    tyro.cli(main)
