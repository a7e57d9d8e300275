"""`llmsched starvation`: what it costs to let nobody wait too long."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.options import ComparisonOptions
from agents.policies import with_setting
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.study_plots import check_plot, plot_tradeoff, write_plot
from agents.reporting.study_tables import starvation_grid
from agents.work.files import check_writable, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.errors import InputError
from engine.ranges import parse_number


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions):
    """Trade-off between mean and longest waits: policies with the ageing knob, at several settings of it.

    Ageing is the number of tokens that a prompt counts less for each second that it waits: 0 is shortest remaining
    prompt first, very many is first come first served.
    """

    policies: str = "slackfit:tuned,pretrained"
    """Policies with that knob, comma separated: slackfit with parameters, pretrained, folders made by evolve, classes
    of your own with a parameter `ageing`."""
    ageing: str = "0,10,20,50,100,300,1000"
    """Settings, tokens/s."""
    rates: str = "1.4,1.8,2.0"
    """Arrival rates in requests/s: a list or start:end:step."""
    plot: Path | None = None
    """Also draw longest wait against mean TTFT into this PNG file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        if self.resume:
            raise InputError("resume: a starvation study cannot be resumed")
        if self.reference is not None:
            raise InputError("reference: expected none, the first setting of the first policy is it; got one")
        check_writable(self.json)
        check_plot(self.plot)
        base = self.setup()
        specs = tuple(with_ageing(policy, setting) for policy in base["policies"] for setting in self._settings())
        setup = base | {"policies": specs, "reference": specs[0]}
        evaluation = Evaluation(loads=self.loads(None, self.rates), **setup)
        workers = workers_for(self.workers)
        with bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            result = evaluate(evaluation, workers=workers, with_windows=False, progress=progress)
        console = terminal_console()
        show(starvation_grid(result), console, self.wide)
        print_lines(console, result.notes)
        write_json(self.json, result)
        write_plot(self.plot, partial(plot_tradeoff, result))

    def _settings(self) -> tuple[float, ...]:
        numbers = [parse_number(part) for part in self.ageing.split(",")]
        found = tuple(float(number) for number in numbers if number is not None and 0.0 <= number < 1e9)
        if len(set(found)) < len(numbers):
            raise InputError(f"ageing: expected numbers >= 0, each once, such as 0,20,100, got {self.ageing!r}")
        return found


def with_ageing(policy: str, ageing: float) -> str:
    """The spec of a policy with this setting of the knob."""
    return with_setting(policy, "ageing", f"{ageing:g}")
