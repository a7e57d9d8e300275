"""`llmsched devices`: policies on many devices, at loads relative to what each device can carry."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agents.evaluation.setup import Setup
from agents.options import ComparisonOptions, ReportOptions, ServerOptions, UpToMillion, parse_rates
from agents.policies import split_policies
from agents.reporting.device_tables import balance_grid, balance_lines, html_text, markdown_text, matrix_grid
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.result_folder import ResultFolder
from agents.studies.devices.matrix import Devices, compare_devices, device_names
from agents.studies.devices.records import DeviceMatrix
from agents.work.files import claimed
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.device.memory import server_of
from engine.errors import InputError
from engine.files.reading import is_there
from engine.spec import split_specs

REFERENCE = "slai"
RIVALS = ("slai", "sarathi", "vllm_v1", "slackfit")
"""Whose best the others are compared with, as far as they run."""


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions, ReportOptions):
    """Run policies on many devices at loads relative to what each can carry: who wins, ties, loses and is late where.

    The capacity of a device is the largest rate at which the best of the policies meets the sound criterion. Finished
    work is kept in OUT: after an interruption --resume goes on from there.
    """

    policies: str = "slai,sarathi,vllm_v1,slackfit,slackfit:tuned,pretrained"
    """Policies, comma separated."""
    profiles: str | None = None
    """Devices, comma separated: shipped names, perhaps with changes (rtx6000ada-mistral-7b:mixed=2,speed=2), and .json
    files (default: every device that ships). Each server has the KV blocks that its profile says."""
    shares: str = "0.5,0.7,0.85,0.95"
    """Loads as shares of the capacity of each device: a list or start:end:step."""
    seeds: UpToMillion = 5
    """Seeds 0 ... N-1, each a common trace for all policies."""
    reference: str | None = None
    """Policy whose deadlines the others have to keep wherever it does (default: slai if it runs, else the first)."""
    rivals: str | None = None
    """Policies with whose best every one is compared (default: slai, sarathi, vllm_v1 and slackfit, as far as they
    run, else the reference)."""
    out: Path = Path("out/devices")
    """Folder of the results (devices.json, report.html, table.md, ceilings.jsonl, cells.jsonl)."""

    def setup(self) -> dict[str, Any]:
        """What is common to all devices."""
        policies = split_policies(self.policies)
        default = REFERENCE if REFERENCE in policies else policies[0]
        return super().setup() | {"reference": self.reference or default}

    def devices(self) -> Devices:
        """What to run.

        Raises:
            InputError: options that do not fit.
        """
        if self.profile != ServerOptions.profile:
            raise InputError("profile: expected --profiles here, got --profile")
        if self.engine.num_blocks != EngineConfig.num_blocks:
            raise InputError("engine.num_blocks: expected none here, since each device has its own, got some")
        if self.rate_scale != 1.0:
            raise InputError("rate_scale: expected 1, since the loads follow from the devices")
        setup = self.setup()
        names = device_names() if self.profiles is None else split_specs(self.profiles, is_there)
        return Devices(
            setups=tuple(self._on(name, setup) for name in names),
            shares=parse_rates(self.shares, "shares"),
            rivals=self._rivals(setup),
        )

    def _on(self, name: str, setup: dict[str, Any]) -> Setup:
        """The setup on one device."""
        model = load_profile(name)
        return Setup(**(setup | {"profile": model, "config": server_of(model, self.engine)}))

    def _rivals(self, setup: dict[str, Any]) -> tuple[str, ...]:
        if self.rivals is not None:
            return split_policies(self.rivals)
        return tuple(name for name in RIVALS if name in setup["policies"]) or (setup["reference"],)

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        devices = self.devices()
        places = ResultFolder(self.out, "devices", self.json, self.report)
        places.check()
        with claimed(self.out, "devices"), bars(self.progress) as progress:
            result = self._compare(devices, progress)
            places.write(result, markdown_text(result), partial(html_text, result))
        console = terminal_console()
        show(matrix_grid(result), console, self.wide)
        show(balance_grid(result), console, self.wide)
        print_lines(console, balance_lines(result))
        print(*places.lines(), sep="\n")

    def _compare(self, devices: Devices, progress: OnProgress) -> DeviceMatrix:
        progress("getting ready", 0, 0)
        workers = workers_for(self.workers)
        return compare_devices(devices, workers=workers, folder=self.out, resume=self.resume, progress=progress)
