"""PPO on the environment, and what it learned beside two baselines on traces that it has not seen.

python examples/train.py --total-timesteps 1_000_000
tensorboard --logdir runs/example
"""

from dataclasses import replace
from pathlib import Path

import tyro

from agents import TrainConfig, train
from agents.policies import resolve
from engine import Workload, load_profile, simulate, summarize


def main(total_timesteps: int = 300_000, run_dir: Path = Path("runs/example"), num_requests: int = 1000) -> float:
    """Train, then serve one unseen trace with the best policy of the run.

    Args:
        total_timesteps: decisions to train on.
        run_dir: new folder for the run.
        num_requests: of the unseen trace.

    Returns:
        Median TTFT of the learned policy, seconds.
    """
    config = replace(TrainConfig.from_yaml(), total_timesteps=total_timesteps, run_dir=run_dir, progress=False)
    folder = train(config)
    requests, profile = Workload(rate=1.6, num_requests=num_requests).generate(seed=1), load_profile(config.env.profile)
    medians = {}
    for spec in ("sarathi", "slai", str(folder)):
        report = summarize(simulate(resolve(spec), requests, profile, config.env.engine))
        medians[spec] = report.ttft.p50
        print(f"{spec:16} median TTFT {report.ttft.p50:.3f} s, deadlines met {report.slo_attainment:.1%}")
    return medians[str(folder)]


if __name__ == "__main__":
    tyro.cli(main)
