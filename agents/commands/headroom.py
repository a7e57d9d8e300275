"""`llmsched headroom`: how much of what hindsight finds a policy reaches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.evaluation.suite_runs import RunOptions
from agents.policies import split_policies
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.studies.score.headroom import Headroom, Reach, Search
from agents.studies.score.run import serve_contest
from agents.suite_options import SuiteOptions
from agents.work.files import check_writable, claimed, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.ranges import Count

HEADS = (
    *(Head("scenario", "name"), Head("req/s", "number", 2), Head("policy", "name"), Head("slackfit, s")),
    *(Head("best setting, s"), Head("lengths known, s"), Head("policy's, s"), Head("gain, s", "number", 1)),
    *(Head("of the settings', %"), Head("of both, %")),
)


@dataclass(frozen=True, kw_only=True)
class Command(SuiteOptions):
    """Measure what is left to win: mean TTFT against slackfit with the best of many settings for each single trace.

    The settings are chosen after the fact, with and without the true output lengths; those that lose a deadline or 1 %
    of the goodput do not count. Finished runs are kept in OUT/cells.jsonl: after an interruption --resume goes on from
    there.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional] = ("slackfit:tuned", "pretrained")
    """Policies; several also with commas between them."""
    tries: Count = 100
    """Settings that are tried of slackfit, and as many of it with the output lengths told."""
    out: Path = Path("out/headroom")
    """Folder of the results (headroom.json, cells.jsonl)."""

    def search(self) -> Search:
        """What to run.

        Raises:
            InputError: options that do not fit.
        """
        suite = self.scenarios()
        return Search(suite, split_policies(",".join(self.policies)), self.tries)

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        search = self.search()
        check_writable(self.json)
        workers = workers_for(self.workers)
        with claimed(self.out, "headroom"), bars(self.progress) as progress:
            cells = serve_contest(search.contest, RunOptions(workers, self.out, self.resume, progress))
            result = search.judge(cells)
            for path in (self.out / "headroom.json", self.json):
                write_json(path, result)
        show(_grid(result), terminal_console(), self.wide)
        print(f"written: {self.json or self.out / 'headroom.json'}")


def _grid(result: Headroom) -> Grid:
    caption = (
        f"Mean TTFT over {result.seeds} seeds. Best setting: of {result.tries} of slackfit's, chosen for each trace "
        "after the fact; lengths known: of those and as many that are told the true output lengths. Gain: against "
        "slackfit as it is, with 95 % intervals"
    )
    return Grid(HEADS, [Part([_row(row) for row in result.rows], f"Suite {result.suite}")], caption)


def _row(row: Reach) -> tuple[str, ...]:
    waits = (row.base_ttft_ms, row.settings_ttft_ms, row.foresight_ttft_ms, row.ttft_ms)
    low, gain, high = (figure(ms / 1000.0, "+.3f") for ms in (row.gain_ms.low, row.gain_ms.mean, row.gain_ms.high))
    shares = ("-" if share is None else figure(100.0 * share, ".0f") for share in (row.of_settings, row.of_foresight))
    seconds = (figure(wait.mean / 1000.0, ".3f") for wait in waits)
    return (row.scenario, figure(row.rate, ".3g"), row.policy, *seconds, f"{gain} [{low}, {high}]", *shares)
