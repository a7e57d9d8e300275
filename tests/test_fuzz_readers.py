"""Malformed inputs over every reader and every parser of specs: one line or a sound value, never a wait.

What is accepted must be sound: numbers finite and within the documented ranges, and writable as strict JSON.
"""

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import baselines
from agents.cli import main
from agents.device.importing.llmservingsim import attention_grid, curves
from agents.device.importing.model import read_config, shape_of
from agents.device.importing.vllm_log import iterations
from agents.device.profiling import read_points, read_provenance
from agents.evaluation.result import Comparison
from agents.learning.learned.bundle import Bundle
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.search.evolution import EvolutionConfig, shipped_recipe
from agents.options import parse_rates
from agents.policies import pretrained_folder, resolve, split_policies
from agents.reporting.report import html_text, load_result
from agents.reporting.tables import TEXTS, print_tables
from agents.studies.tuning import save
from agents.work import cells
from agents.work.cells import CellFile
from agents.work.files import json_text
from engine.demand.length_models import parse_lengths
from engine.demand.lengths import TABLE_FOLDER, JointQuantileTable
from engine.demand.predictions import parse_channel
from engine.demand.rate_profile import Stretch, read_rate_profile
from engine.demand.requests import Requests
from engine.demand.server_run import LOGGED, ServerRun, read_run
from engine.demand.trace_options import AS_IT_IS, TraceOptions, parse_window
from engine.demand.traces import read_trace
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import NUMBERS as COEFFICIENTS
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.files.reading import read_json
from engine.ranges import MOST_SECONDS, MOST_TOKENS
from engine.scenarios.scenario import read_scenario
from engine.scenarios.suite import load_suite
from llmsched_env.config import EnvConfig
from tests.fuzz_inputs import json_bytes, spec, structured, textual

RESULT_FILE = "agents/reporting/results/evaluation.json.gz"
"""An evaluation, below tests."""
SECONDS = 20
"""A case that takes longer hangs."""
TIMED = b"arrived_at,num_prefill_tokens,num_decode_tokens\n" + b"".join(b"%d.5,%d,3\n" % (k, 50 + k) for k in range(6))
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00.1+00:00,10,3\n2024-05-12 00:00:01+00:00,20,1\n"
BURST = b"Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45,GPT-4,1087,0\n118,GPT-4,417,276\n"
MOONCAKE = b"".join(
    b'{"timestamp": %d, "input_length": %d, "output_length": 5, "hash_ids": [1]}\n' % (1_715_472_000_123 + k, 9 + k)
    for k in range(4)
)
CHATS = [{"conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "d e"}]}] * 2
VLLM = {
    "total_input_tokens": 60,
    "input_lens": [10, 20, 30],
    "output_lens": [1, 2, 3],
    "start_times": [5.0, 5.5, 6.25],
    "errors": ["", "", ""],
}

RUN = b"".join(
    b'{"input_toks": %d, "output_toks": 5, "arrival_time": 1787267980.25, "queued_ts": 5.5, "scheduled_ts": 5.5, '
    b'"first_token_ts": 6, "last_token_ts": 7e0}\n' % (50 + k)
    for k in range(4)
)
RUN_LOG = f"t,{','.join(LOGGED.values())},preempted\n1,200,20.5,3,1,0\n2,0,0,0,0,1\n".encode()
RUN_META = {"model": "x", "kv_cache": {"num_gpu_blocks": 99, "block_size": 16}, "engine_kwargs": {"max_num_seqs": 5}}


def _small(result: Any) -> Any:
    """A result with one load, one seed and two policies of those that it has."""
    load, labels = result["config"]["loads"][0], [policy["label"] for policy in result["policies"][:2]]
    for part in ("cells", "summary", "paired", "behaviour"):
        rows = [row for row in result[part] if row["load"] == load and row["policy"] in labels]
        result[part] = [row for row in rows if row.get("seed", 0) == 0]
    result["traces"] = [trace for trace in result["traces"] if (trace["load"], trace["seed"]) == (load, 0)]
    looks = result["windows"]["policies"]
    for label in labels:
        looks[label]["timeline"] = {name: values[:2] for name, values in looks[label]["timeline"].items()}
    result["windows"]["policies"] = {label: looks[label] for label in labels}
    return result | {"policies": result["policies"][:2], "config": result["config"] | {"loads": [load]}}


RESULT = _small(json.loads(gzip.decompress((Path(__file__).parent / RESULT_FILE).read_bytes())))
MEASURED = b"set,prefills,decodes,tokens,requests,prefill_pairs,prefill_reads,decode_context,seconds\n" + b"".join(
    b"table,%d@0,,%d,1,36,8,0,0.02\nmixed,64@128 8@0,300x4 20,77,7,99,99,1220,0.03\n" % (k, k) for k in (8, 16, 64)
)
ITERATIONS = b"prompt_tokens,decodes,context,prompts,seconds\n" + b"".join(
    b"%d,%d,%d,2,0.0%d\n" % (9 * k, k, 300 * k, k + 1) for k in range(1, 40)
)
LAYERS = b"layer,tokens,time_us\nqkv,1,2.5\nqkv,64,3.5\nnorm,1,1\nnorm,64,1.5\n"
ATTENTION = b"prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n" + b"".join(
    b"%d,%d,%d,%d,7.5\n" % (chunk, before, decodes, kv)
    for chunk, before in ((0, 0), (16, 0), (16, 64))
    for decodes, kv in ((0, 0), (2, 16), (2, 64))
    if chunk or decodes
)
SHAPE = b'{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}'


def _finite(*arrays: Any) -> None:
    for array in arrays:
        assert np.isfinite(np.asarray(array, np.float64)).all()


def _sound_profile(model: LatencyModel) -> None:
    json.dumps(asdict(model), allow_nan=False)
    assert all(0.0 <= getattr(model, name) <= 1e12 for name in COEFFICIENTS)
    assert model.name.isprintable()


def _sound_requests(requests: Requests) -> None:
    _finite(requests.arrival)
    assert 0.0 <= requests.arrival[0] <= requests.arrival[-1] <= MOST_SECONDS
    assert (np.diff(requests.arrival) >= 0.0).all()
    assert 1 <= min(requests.prompt.min(), requests.output.min())
    assert requests.source.isprintable()


def _sound_run(run: ServerRun) -> None:
    times = (run.arrival, run.scheduled, run.first_token, run.last_token)
    _finite(*times)
    assert all((before <= after + 1e-6).all() for before, after in itertools.pairwise(times))
    assert 1 <= min(run.prompt.min(), run.output.min())
    assert run.limits.get("prefix_cache", "none") in ("none", "own")
    assert all(1 <= value <= MOST_TOKENS for value in run.limits.values() if type(value) is int)
    assert run.about.isprintable()
    if run.log:
        _finite(run.log.t, *run.log.values.values())
        assert (np.diff(run.log.t, prepend=0.0) > 0.0).all()


def _sound_lengths(model: Any) -> None:
    prompt, output = model.draw(np.random.default_rng(0), 50)
    assert 1 <= min(prompt.min(), output.min()) <= max(prompt.max(), output.max()) <= MOST_TOKENS


def _sound_record(record: Any) -> None:
    json.dumps(record.to_dict() if hasattr(record, "to_dict") else asdict(record), allow_nan=False, default=str)


def _sound_workload(workload: Workload) -> None:
    if workload.num_requests <= 10_000 and workload.arrivals != "recorded":
        with contextlib.suppress(InputError):
            _sound_requests(workload.generate(0))


def _sound_policy(policy: Any) -> None:
    values = [value for value in vars(policy).values() if isinstance(value, int | float)]
    assert all(math.isfinite(value) and abs(value) <= 2**53 for value in values)
    assert policy.spec.isprintable() or "\n" not in policy.spec


def _sound_day(day: tuple[Stretch, ...]) -> None:
    assert day[0].start_h == 0.0
    assert sum(one.hours for one in day) == pytest.approx(24.0)
    assert all(one.hours > 0.0 and math.isfinite(one.rate) and one.rate >= 0.0 for one in day)


def _anything(value: Any) -> None:
    json.dumps(value, allow_nan=False, default=str)


def _sound_bundle(bundle: Bundle) -> None:
    _finite(bundle.mean, bundle.std, bundle.clip)
    json.dumps(bundle.env.to_dict(), allow_nan=False)


def _trace(options: TraceOptions = AS_IT_IS, rate: float | None = None) -> Callable[[Path], Requests]:
    return lambda path: read_trace(path, options, rate=rate)


def _bundle(path: Path) -> Bundle:
    folder = path.with_suffix(".d")
    folder.mkdir(exist_ok=True)
    shutil.copy(pretrained_folder() / "weights.safetensors", folder)
    (folder / "policy.json").unlink(missing_ok=True)
    (folder / "policy.json").symlink_to(path)
    return Bundle.load(folder)


def _saved(path: Path) -> dict[str, Any]:
    save(path, "poisson", "slai:offset=5.0")
    return dict(json.loads(path.read_text()))


def _beside_a_run(what: str) -> Callable[[Path], ServerRun]:
    """Reads a run with the file as one that lies beside it."""

    def read(path: Path) -> ServerRun:
        run = path.with_name("beside-requests.jsonl")
        run.write_bytes(RUN)
        link = path.with_name(f"beside-{what}")
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return read_run(run)

    return read


def _provenance(path: Path) -> dict[str, Any]:
    return read_provenance(path.with_suffix(""))


@dataclass(frozen=True)
class Toy:
    """A cell."""

    policy: str
    seed: int
    value: float

    @property
    def key(self) -> tuple[str, int]:
        return self.policy, self.seed


def _resumed(path: Path) -> list[Toy]:
    return CellFile(path, "abc", Toy, True).cells


def _sound_result(result: Comparison) -> None:
    """All of a report but the plots, which take long."""
    for text in TEXTS.values():
        text(result)
    html_text(result, {})
    print_tables(result, Console(file=io.StringIO(), width=100))
    json_text(result)


@dataclass(frozen=True)
class Reader:
    """A reader of files, a file that it reads, and what must hold of what it returns."""

    read: Callable[[Path], Any]
    sound: Callable[[Any], None]
    valid: bytes
    suffix: str = ".json"

    @property
    def data(self) -> Any:
        """The valid file as data, None if it is text."""
        if self.suffix == ".yml":
            return yaml.safe_load(self.valid)
        return json.loads(self.valid) if self.suffix == ".json" else None

    def written(self, data: Any) -> bytes:
        """Data in the language of the file."""
        if self.suffix == ".yml":
            return yaml.safe_dump(json.loads(json.dumps(data)), allow_unicode=False).encode("utf-8", "surrogatepass")
        return json_bytes(data)


PROFILE = json.loads(
    (Path(load_profile.__code__.co_filename).parents[1] / "data/profiles/rtx6000ada-mistral-7b.json").read_text()
)
PROFILE["table"] = [[1, 0.01], [64, 0.02], [128, 0.04]]
CELLS = b'{"format": "%s", "config_hash": "abc"}\n' % cells.FORMAT.encode() + b"".join(
    b'{"policy": "slai", "seed": %d, "value": 1.5, "config_hash": "abc"}\n' % k for k in range(3)
)
SUITE = b"""about: mine
seeds: 2
scenarios:
  - poisson:rate=1.5@h100-mistral-7b@num_blocks=2x
  - {name: three, workload: 'gamma:cv=2', loads: [0.5, 0.9], capacity: 3, tiers: ['name=a,tbt=0.1']}
"""
HYPER = b"LLMSched-v0:\n  n_envs: 64\n  learning_rate: 3e-4\n  policy_kwargs: {net_arch: [32, 32]}\n" + (
    b"  env_kwargs: {rates: [1.4, 2], workload: {cv: 1.5, tiers: [{name: all, share: 1, tbt_s: 0.1}]},\n"
    b"    engine: {block_size: 8}}\n"
)
METRICS = b"# TYPE python_info gauge\npython_info 1.0\n" + b"".join(
    b'vllm:request_%s_tokens_bucket{model_name="m",le="%s"} %d.0\n' % (kind, end, count)
    for kind in (b"prompt", b"generation")
    for end, count in ((b"10.0", 3), (b"100.0", 8), (b"+Inf", 9))
)
METRICS += b"vllm:request_prompt_tokens_sum 700.0\nvllm:request_generation_tokens_sum 600.0\n"
READERS = {
    "profile": Reader(lambda path: load_profile(str(path)), _sound_profile, json.dumps(PROFILE).encode()),
    "length table": Reader(
        JointQuantileTable.load, _sound_lengths, (TABLE_FOLDER / "azure2023_code.json").read_bytes()
    ),
    "timed csv": Reader(_trace(), _sound_requests, TIMED, ".csv"),
    "timed csv, skipping": Reader(
        _trace(TraceOptions(unservable="skip", max_tokens=60)), _sound_requests, TIMED, ".csv"
    ),
    "windowed csv": Reader(_trace(TraceOptions(window=(1, 4), time_unit="s")), _sound_requests, TIMED, ".csv"),
    "azure csv": Reader(_trace(TraceOptions(unservable="skip")), _sound_requests, AZURE, ".csv"),
    "burstgpt csv": Reader(_trace(), _sound_requests, BURST, ".csv"),
    "mooncake": Reader(_trace(), _sound_requests, MOONCAKE, ".jsonl"),
    "mooncake, skipping": Reader(
        _trace(TraceOptions(unservable="skip", time_unit="us")), _sound_requests, MOONCAKE, ".jsonl"
    ),
    "chats": Reader(_trace(TraceOptions(tokenizer="words"), rate=1.0), _sound_requests, json.dumps(CHATS).encode()),
    "vllm result": Reader(_trace(), _sound_requests, json.dumps(VLLM).encode()),
    "request log": Reader(_trace(), _sound_requests, RUN, ".jsonl"),
    "prometheus": Reader(_trace(rate=1.0), _sound_requests, METRICS, ".txt"),
    "day of rates": Reader(read_rate_profile, _sound_day, b"hour,rate\n0,1.5\n7.5,12\n20,0\n", ".csv"),
    "server run": Reader(read_run, _sound_run, RUN, ".jsonl"),
    "log of a server": Reader(_beside_a_run("timeseries.csv"), _sound_run, RUN_LOG, ".csv"),
    "limits of a server": Reader(_beside_a_run("meta.json"), _sound_run, json.dumps(RUN_META).encode()),
    "hyperparameters": Reader(TrainConfig.from_yaml, _sound_record, HYPER, ".yml"),
    "recipe": Reader(EvolutionConfig.from_yaml, _sound_record, shipped_recipe().read_bytes(), ".yml"),
    "suite": Reader(lambda path: load_suite(str(path)), _sound_record, SUITE, ".yml"),
    "environment": Reader(
        lambda path: EnvConfig.from_dict(read_json(path, "an environment")),
        _sound_record,
        json.dumps(EnvConfig().to_dict()).encode(),
    ),
    "bundle": Reader(_bundle, _sound_bundle, (pretrained_folder() / "policy.json").read_bytes()),
    "result": Reader(load_result, _sound_result, json.dumps(RESULT).encode()),
    "log of iterations": Reader(
        iterations, lambda read: _finite([seconds for _, seconds in read[0]]), ITERATIONS, ".csv"
    ),
    "layers": Reader(
        lambda path: curves(path, "tokens", ("qkv", "norm")),
        lambda found: _finite(*itertools.chain(*found.values())),
        LAYERS,
        ".csv",
    ),
    "attention": Reader(attention_grid, lambda grid: _finite(grid.values, *grid.axes), ATTENTION, ".csv"),
    "config.json of a model": Reader(
        lambda path: shape_of(read_config(path), str(path)), lambda shape: _finite(shape.kv_bytes_per_token()), SHAPE
    ),
    "measurements": Reader(read_points, lambda points: _finite([p.seconds for p in points]), MEASURED, ".csv"),
    "provenance": Reader(
        _provenance, _anything, b'{"format": "llmsched-measurements/2", "device": "x", "model": {"a": [1]}}'
    ),
    "cells": Reader(_resumed, _anything, CELLS, ".jsonl"),
    "settings": Reader(_saved, _anything, b'{"poisson": {"slai": "slai:offset=3.0"}}'),
}
SPECS: dict[str, tuple[Callable[[str], Any], Callable[[Any], None], tuple[str, ...]]] = {
    "scenario": (
        read_scenario,
        _sound_record,
        ("poisson:load=0.8,lengths=fixed:512,64@h100-mistral-7b:speed=2@num_blocks=4x,max_num_seqs=256", "gamma:cv=2"),
    ),
    "workload": (
        parse_workload,
        _sound_workload,
        (
            "poisson:rate=1.6,num_requests=20,gap_cap=3",
            "gamma:rate=2,cv=1.5,num_requests=20",
            "onoff:rate=1,num_requests=20,off_factor=0.5,on_factor=2,off_mean_s=6,on_mean_s=3",
            "ramp:rate=1,ramp_end_rate=3,num_requests=20",
            "step:rate=1,step_factor=2,step_s=5,step_every_s=50,num_requests=20",
            "burst:num_requests=5,lengths=lognormal:5,1,3,1,2000",
            "toy:rate=0.5,num_requests=5,lengths=fixed:16,2",
        ),
    ),
    "lengths": (parse_lengths, _sound_lengths, ("fixed:16,2", "lognormal:6,0.5,5,0.8,8192", "azure2023_code")),
    "channel": (
        parse_channel,
        lambda channel: _anything(asdict(channel)),
        ("refined:mae=34,first=46,every=8,smooth=1,cap=5", "rank:tau=0.52", "gauss:mae=3,clip=1", "exp:shrink=0.5"),
    ),
    "policy": (
        baselines.make,
        _sound_policy,
        (
            "slai:offset=5,token_budget=512,memory_limit=0.9,fixed_offset=true",
            "slackfit:limit=0.8,slack=3,ageing=20,close=1",
            "wait:types=64:1;128:2;inf:3,timeout_s=2",
            "mlfq:quantum_s=0.1,levels=3,factor=2",
            "past_future:limit=0.95,seed=3",
            "sarathi:order=spf",
            "slai:tuned=gamma:cv=2",
        ),
    ),
    "profile": (load_profile, _sound_profile, ("rtx6000ada-mistral-7b:speed=2", "tile-unit")),
    "rates": (parse_rates, lambda rates: _finite(rates), ("1.0:2.0:0.2", "1.0,1.4")),
    "window": (parse_window, lambda window: _finite(window[0]), ("1:20", "5:", ":7.5")),
    "policies": (
        lambda text: [resolve(one) for one in split_policies(text)],
        _anything,
        ("random:seed=3,slai:offset=2", "sarathi,vllm"),
    ),
}


class Hang(Exception):
    """A case took too long."""


@contextlib.contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `Hang` in what takes longer."""

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(read: Callable[[], Any], sound: Callable[[Any], None]) -> str | None:
    """What is wrong with how an input is taken; None if nothing is."""
    try:
        with limited():
            value = read()
    except InputError as error:
        text = str(error)
        return None if "\n" not in text and 5 < len(text) < 2000 else f"not one line: {text[:80]!r} ({len(text)})"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    try:
        sound(value)
    except Exception as error:
        return f"accepted absurdity: {type(error).__name__}: {str(error)[:100]}"
    return None


CASES = {"structured": 50, "textual": 40}


def inputs(name: str, reader: Reader) -> Iterator[bytes]:
    """The malformed files for one reader."""
    rng = random.Random(name)
    data = reader.data
    for _ in range(CASES["structured"] if data is not None else 0):
        try:
            case = reader.written(structured(rng, data))
        except (UnicodeEncodeError, RecursionError):  # not to be written in this language
            continue
        yield case
    for _ in range(CASES["textual"] * (1 if data is not None else 2)):
        yield textual(rng, reader.valid)


@pytest.mark.parametrize("name", READERS)
def test_valid_file_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = tmp_path / f"valid{reader.suffix}"
    path.write_bytes(reader.valid)
    reader.sound(reader.read(path))


@pytest.mark.parametrize("name", READERS)
def test_malformed_file_is_one_line_or_sound(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, found, count = READERS[name], [], 0
    for count, data in enumerate(inputs(name, reader), start=1):
        path = tmp_path / f"case{count}{reader.suffix}"
        path.write_bytes(data)
        wrong = fault(lambda path=path: reader.read(path), reader.sound)  # type: ignore[misc]
        if wrong:
            found.append((wrong, data[:200]))
        path.unlink(missing_ok=True)
    assert found == []
    assert count >= 75


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_one_line_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = READERS[name]
    places = {}
    for kind in ("pipe", "loop", "folder", "socket", "absent", "zero", "full", "sparse"):
        places[kind] = tmp_path / f"{kind}{reader.suffix}"
    os.mkfifo(places["pipe"])
    places["loop"].symlink_to(places["loop"])
    places["folder"].mkdir()
    places["zero"].symlink_to("/dev/zero")
    places["full"].symlink_to("/dev/full")
    with places["sparse"].open("wb") as file:
        file.truncate(5 << 30)
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.bind(str(places["socket"]))
    found = []
    for kind, path in places.items():
        wrong = fault(lambda path=path: reader.read(path), lambda value: None)  # type: ignore[misc]
        if wrong:
            found.append((kind, wrong))
    assert found == []


@pytest.mark.parametrize("name", SPECS)
def test_malformed_spec_is_one_line_or_sound(name: str) -> None:
    parse, sound, valid = SPECS[name]
    rng, found = random.Random(name), []
    for text in valid:
        assert fault(lambda text=text: parse(text), sound) is None  # type: ignore[misc]
    for _ in range(60):
        text = spec(rng, rng.choice(valid))
        wrong = fault(lambda text=text: parse(text), sound)  # type: ignore[misc]
        if wrong:
            found.append((wrong, text[:200]))
    assert found == []


LINES = [
    "simulate --trace {pipe}", "simulate --trace /dev/zero", "simulate --trace {folder}", "simulate --trace {binary}",
    "simulate --profile {binary}.json", "simulate --profile {pipe}.json", "simulate --num-requests 1000000000000",
    "simulate --num-requests -1", "simulate --rate 0", "simulate --rate -0.0", "simulate --rate nan",
    "simulate --rate inf", "simulate --rate 1e-320", "simulate --seed -5", "simulate --seed 1e3",
    "simulate --rate-scale 0 --trace {timed}", "simulate --trace {timed} --window 5:1",
    "simulate --trace {timed} --window nan:", "simulate --trace {timed} --time-unit h",
    "simulate --trace {timed} --unservable maybe", "simulate --workload gamma:cv=1e300",
    "simulate --workload gamma:cv=1e-300", "simulate --workload poisson:rate=1e-300",
    "simulate --workload onoff:off_mean_s=1e-9,on_mean_s=1e-9", "simulate --workload poisson:lengths=fixed:1e10,1",
    "simulate --workload poisson:lengths={binary}.json", "simulate --workload recorded:trace={pipe}",
    "simulate --policy slai:offset=inf", "simulate --policy slai:token_budget=99999999999999999999",
    "simulate --policy mlfq:factor=1e300", "simulate --policy wait:types=nan:1", "simulate --policy random:seed=x",
    "simulate --policy pretrained:ageing=nan", "simulate --profile rtx6000ada-mistral-7b:speed=1e-300",
    "simulate --engine.num-blocks 99999999999999", "simulate --engine.watermark nan", "simulate --horizon nan",
    "simulate --warmup inf", "simulate --engine.decision-s 1e300", "simulate --tokenizer words",
    "simulate --prediction rank:tau=9", "simulate --prediction gauss:mae=1e300",
    "evaluate --rates 1:1e9:0.001", "evaluate --rates 1:2:1e-320", "evaluate --rates ٣,", "evaluate --seeds 1e3",
    "evaluate --seeds 99999999999", "evaluate --workers -1", "demo --rate 0", "demo --rate nan", "demo --seeds 0",
    "demo --num-requests 0", "demo --total-timesteps 0", "capacity --low 0", "capacity --high inf",
    "capacity --tolerance nan", "capacity --low 3 --high 2", "profile --grid.kv-tokens 1", "profile --grid.tokens 1",
    "profile --rounds 0", "profile --grid.thin 0", "fit --table {pipe}", "fit --table {timed}", "report {binary}",
    "report {pipe}", "report {folder}", "train --hyperparams {binary}.yml", "train --hyperparams {pipe}.yml",
    "train --seed 4294967296", "train --n-envs 100000000000", "train --learning-rate nan", "train --trace {pipe}",
    "train --trace {timed} --unservable x", "train --env.workload.trace {pipe} --env.workload.arrivals recorded",
    "train --env.rates 1e300", "evolve --recipe {binary}.yml", "evolve --recipe {pipe}", "evolve --generations 0",
    "mixture --rates 0", "mixture --updates -1", "tune slai --rates nan", "tune slai --seeds 0", "bench --scale nan",
    "fluid --limit 0", "fluid --bounds 1,nan", "starvation --ageing nan", "reproduce --seeds 0",
    "tiles --num-requests 0", "sensitivity --rates ,", "validate --shares 0", "validate --against {pipe}",
    "validate --against {binary}", "validate --against {folder}", "validate --against {timed}", "directions --seeds -1",
    "devices --shares nan", "devices --shares 0.5,0.5", "devices --profiles {pipe}", "devices --rivals nosuch",
    "nosuch", "simulate --nosuch 1",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_command_refuses_in_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for suffix in (".json", ".yml"):
        os.mkfifo(f"pipe{suffix}")
        Path(f"binary{suffix}").write_bytes(bytes(range(256)))
    Path("binary").write_bytes(bytes(range(256)))
    Path("timed").write_bytes(TIMED)
    Path("folder").mkdir()
    names = {name: name for name in ("pipe", "binary", "timed", "folder")}
    with limited(60):
        code = main(line.format(**names).split())
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("llmsched")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_there_are_enough_cases() -> None:
    files = sum(sum(1 for _ in inputs(name, reader)) for name, reader in READERS.items())
    assert files + 8 * len(READERS) + 60 * len(SPECS) + len(LINES) >= 1500
