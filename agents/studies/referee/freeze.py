"""The digests of a suite's requests, as its file has them: `python -m agents.studies.referee.freeze SUITE`.

A suite with digests is frozen: whoever runs it is told where the requests that are drawn are no longer those.
"""

import sys
from collections.abc import Iterator

from agents.evaluation.suite_runs import source_in
from engine.scenarios.scenario import Scenario
from engine.scenarios.suite import Suite, load_suite


def digests_of(suite: Suite) -> dict[str, tuple[str, ...]]:
    """Digests of the requests of every seed, by scenario."""
    return {one.name: tuple(_digests(suite, one)) for one in suite.scenarios}


def _digests(suite: Suite, scenario: Scenario) -> Iterator[str]:
    source = source_in(scenario, suite)
    for seed in range(suite.seeds):
        yield source.requests(scenario.rate, seed).digest()


def main() -> None:
    """Print the entry of the suite that the command line names."""
    print("traces:")
    for name, digests in digests_of(load_suite(sys.argv[1])).items():
        print(f"  {name}: {' '.join(digests)}")


if __name__ == "__main__":
    main()
