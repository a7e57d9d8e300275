"""`llmsched advise`: which settings of vLLM fit somebody's traffic, what they carry, how many GPUs a day takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.options import RunsOptions, ServerOptions, SourceOptions, UpToMillion
from agents.policies import split_policies
from agents.reporting.advice_tables import advice_grids, advice_lines, replica_grid, replica_lines
from agents.reporting.grid import print_lines, show, terminal_console
from agents.source import DEFAULT_NUM_REQUESTS, Source
from agents.studies.advice.judge import Advice, judge
from agents.studies.advice.replicas import Replicas, replicas
from agents.studies.advice.search import Question, search
from agents.work.files import check_writable, claimed, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars
from agents.work.records import as_json
from baselines.vllm_v1 import CLASSES
from engine.config import EngineConfig
from engine.demand.processes import PROCESSES
from engine.demand.rate_profile import Stretch, read_rate_profile
from engine.demand.tiers import parse_slo
from engine.demand.workload import fields_said
from engine.errors import InputError
from engine.files.reading import is_there
from engine.ranges import Rate, number
from engine.spec import Spec

LEAST_PIECE = 500
"""Requests of a piece of a recorded trace, at least: shorter runs do not show whether a queue grows."""


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, RunsOptions):
    """Advise settings of vLLM for your traffic: token budget, sequences, watermark, long-prefill threshold.

    Says what they carry within an SLO, from which load on another setting or scheduler is better, and the command line
    to paste. The server is vLLM's: asynchronous scheduling, KV found again after an eviction, and as many sequences as
    vLLM has on such GPUs, unless --engine says otherwise. Finished runs are kept in OUT/cells.jsonl.
    """

    trace: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TRACE")] = None
    """Your traffic: any trace file (see `llmsched workloads`), vLLM's request log, Prometheus text of its /metrics, or
    a workload such as poisson:rate=2,lengths=azure2023_conv (default: poisson)."""
    slo: tuple[str, ...] = ()
    """Deadlines in seconds of the first token and of every gap between two tokens (default: ttft:2 tbt:0.1); users with
    different ones: --tier."""
    rate: Rate | None = None
    """Requests/s that come (default: as the trace or the workload says; without it the setting that carries most)."""
    gpu: Literal["standard", "h100", "b200"] = "standard"
    """Class of GPUs by vLLM's defaults: below 70 GiB and A100, from 70 GiB on, from 160 GiB on."""
    policies: str = "slackfit,slai,sarathi"
    """Other schedulers to compare with, comma separated ("": none)."""
    replicas: bool = False
    """Also count the GPUs of a day; needs --rate-profile."""
    rate_profile: Path | None = None
    """Csv file with the columns hour and rate (requests/s), each row until the next, from hour 0 on."""
    price: Annotated[float, number(0.0, 1e6)] | None = None
    """Price of a GPU hour."""
    seeds: UpToMillion = 5
    """Traces of the last round; of recorded times pieces one after the other, as many as there are."""
    grid: bool = False
    """Also serve in full with every setting that is tried (many minutes), and say how far the advised one is from the
    best."""
    out: Path = Path("out/advise")
    """Folder of the results (advice.json, cells.jsonl)."""

    def usual_server(self) -> EngineConfig:
        """VLLM's."""
        if self.semantics == "reference":
            raise InputError("semantics: expected default, since it is vLLM that is advised on, got reference")
        return EngineConfig(max_num_seqs=CLASSES[self.gpu][1], async_scheduling=True, prefix_cache="own")

    def run(self) -> None:
        """Search, print, write.

        Raises:
            InputError: options that do not fit, a place that cannot be written, or an SLO that no setting meets.
        """
        question, day = self.question(), self._day()
        check_writable(self.json)
        with claimed(self.out, "advise"), bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            cells = self.out / "cells.jsonl"
            workers = workers_for(self.workers)
            found = search(
                question,
                whole_grid=self.grid,
                workers=workers,
                cells_path=cells,
                resume=self.resume,
                progress=progress,
            )
            advice = judge(question, found)
            staffed = replicas(day, min(advice.row.carries_by_seed), self.price) if day else None
            for path in (self.out / "advice.json", self.json):
                write_json(path, _data(advice, staffed))
        self._print(advice, staffed)

    def question(self) -> Question:
        """Whose traffic is to be served on what.

        Raises:
            InputError: options that do not fit.
        """
        if self.horizon < float("inf") or self.warmup:
            raise InputError("horizon, warmup: expected none, since every request counts, got one of them")
        options = self._traffic()
        source = options.source()
        if self.slo and self.tier:
            raise InputError("slo, tier: expected one of them, got both")
        if not self.tier:
            source = replace(source, tiers=parse_slo(self.slo or ("ttft:2", "tbt:0.1")))
        return Question(
            source=source,
            profile=self.model(),
            config=self.engine,
            rate=self._load(options, source),
            gpu=self.gpu,
            others=split_policies(self.policies) if self.policies.strip() else (),
            seeds=self.seeds,
            num_requests=self._length(source),
        )

    def _traffic(self) -> "Command":
        """The options with a workload where TRACE is one."""
        if self.trace is None or is_there(self.trace) or Spec.parse(self.trace).name not in PROCESSES:
            return self
        if self.workload is not None:
            raise InputError(f"workload: expected a trace file beside it, got {self.trace!r}")
        return replace(self, trace=None, workload=self.trace)

    def _load(self, options: "Command", source: Source) -> float | None:
        """Requests/s that come; None: nobody says."""
        (rate,) = options.loads(self.rate, None)
        if self.rate is not None:
            return rate
        if not source.synthetic_arrivals:
            requests = replace(source, num_requests=None).requests(None, 0)
            return float(requests.rate)
        return rate if "rate" in fields_said(source.workload) else None

    def _length(self, source: Source) -> int:
        """Requests of a run in the last round."""
        workload = source.drawn_workload
        if source.num_requests is not None:
            return source.num_requests
        if workload is not None:
            return workload.num_requests if self.trace and source.trace is None else DEFAULT_NUM_REQUESTS
        rows = len(source.requests(None, 0))
        return min(DEFAULT_NUM_REQUESTS, max(rows // self.seeds, min(rows, LEAST_PIECE)))

    def _day(self) -> tuple[Stretch, ...]:
        """The rates of a day, if its GPUs are to be counted."""
        if self.replicas != (self.rate_profile is not None):
            raise InputError("replicas, rate_profile: expected both or none, got one of them")
        if self.price is not None and not self.replicas:
            raise InputError("price: expected --replicas beside it, got none")
        return read_rate_profile(self.rate_profile) if self.rate_profile else ()

    def _print(self, advice: Advice, staffed: Replicas | None) -> None:
        """Tables, then the advice."""
        console = terminal_console()
        for grid in advice_grids(advice):
            show(grid, console, self.wide)
        if staffed:
            show(replica_grid(staffed), console, self.wide)
            print_lines(console, replica_lines(staffed))
        print_lines(console, advice_lines(advice))
        print(f"\nwritten: {self.json or self.out / 'advice.json'}")


def _data(advice: Advice, staffed: Replicas | None) -> dict[str, Any]:
    """What advice.json holds."""
    return advice.to_dict() | {"replicas": as_json(staffed)}
