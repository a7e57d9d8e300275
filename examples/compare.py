"""Schedulers on the same arrivals, with intervals, as a table in the terminal and as one HTML file.

python examples/compare.py --policies sarathi slai slackfit:tuned --loads 1.4 1.8
"""

from pathlib import Path

import tyro

from agents import Evaluation, Source, evaluate, write_report
from agents.reporting.grid import terminal_console
from agents.reporting.tables import print_tables
from engine import EngineConfig, load_profile


def main(
    policies: tuple[str, ...] = ("sarathi", "slai", "pretrained"),
    loads: tuple[float, ...] = (1.4, 1.8),
    seeds: int = 3,
    num_requests: int = 1000,
    out: Path = Path("out/compare"),
) -> Path:
    """Serve every load with every policy, seed by seed on the same requests.

    Args:
        policies: specs; the first is what the others are compared with.
        loads: arrival rates, requests/s.
        seeds: traces of each load.
        num_requests: of each trace.
        out: folder of the result.

    Returns:
        The HTML report.
    """
    comparison = Evaluation(
        policies=policies,
        source=Source(num_requests=num_requests),
        loads=loads,
        seeds=seeds,
        reference=policies[0],
        profile=load_profile("rtx6000ada-mistral-7b"),
        config=EngineConfig(),
    )
    result = evaluate(comparison)
    print_tables(result, terminal_console())
    return write_report(result, out)[-1]


if __name__ == "__main__":
    print("written:", tyro.cli(main))
