"""Routers head to head: common arrivals, paired differences to the first, any number of workers says the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import baselines
from agents.cli import main
from agents.evaluation.setup import Setup
from agents.evaluation.statistics import paired_interval
from agents.policies import resolve
from agents.reporting.route_plots import by_age, captions, draw_all, plot_age
from agents.reporting.route_tables import (
    difference_grid,
    each_replica_grid,
    fleet_grid,
    html_text,
    markdown_text,
    replica_grid,
)
from agents.source import Source
from agents.studies.route.presence import presence_of
from agents.studies.route.records import FORMAT, Routes
from agents.studies.route.run import Routing, run_routing
from baselines import routers
from engine.cluster.record import summarize_cluster
from engine.cluster.seats import Seat
from engine.cluster.simulate import simulate_cluster
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.simulate import simulate

SETUP = Setup(
    policies=("sarathi",),
    source=Source(num_requests=120),
    seeds=3,
    reference="sarathi",
    profile=load_profile("rtx6000ada-mistral-7b"),
    config=EngineConfig(),
)
SEAT = Seat("sarathi", SETUP.profile, SETUP.config)
ROUTING = Routing(routers=("random", "jsq", "least_tokens:age=0.5"), fleet=(SEAT,) * 3, setup=SETUP, loads=(4.0, 6.0))


@pytest.fixture(scope="module")
def result() -> Routes:
    return run_routing(ROUTING)


def test_every_router_meets_the_same_arrivals_and_is_what_simulate_cluster_makes_of_them(result: Routes) -> None:
    assert len(result.cells) == 3 * 2 * 3
    for load in (4.0, 6.0):
        for seed in range(3):
            cells = [cell for cell in result.cells if (cell.load, cell.seed) == (load, seed)]
            assert len({cell.trace for cell in cells}) == 1
            requests = Workload(rate=load, num_requests=120).generate(seed)
            assert cells[0].trace == requests.digest()
            for cell in cells:
                policies, devices = [baselines.make("sarathi")] * 3, [SETUP.profile] * 3
                record = simulate_cluster(routers.make(cell.router), policies, requests, devices, seed=seed)
                report = summarize_cluster(record)
                assert cell.number("mean_ttft_ms") == pytest.approx(1000.0 * report.fleet.ttft.mean)
                assert cell.number("jain_replicas") == pytest.approx(report.jain_replicas)
                assert [one.requests for one in cell.replicas] == record.sent.tolist()
                assert sum(one.requests for one in cell.replicas) == 120


def test_the_policy_that_ships_is_itself_at_each_replica() -> None:
    requests, policy = Workload(rate=5.0, num_requests=150).generate(0), resolve("pretrained")
    record = simulate_cluster(routers.make("least_tokens"), [policy] * 2, requests, [SETUP.profile] * 2)
    for one in record.records:
        alone = simulate(policy, one.requests, SETUP.profile)
        assert np.array_equal(alone.ledger, one.ledger)
        assert np.array_equal(alone.row, one.row)


def test_differences_are_paired_with_the_first_router(result: Routes) -> None:
    assert result.reference == "random"
    assert {row.router for row in result.differences} == {"jsq", "least_tokens:age=0.5"}
    row = next(r for r in result.differences if (r.router, r.load, r.metric) == ("jsq", 6.0, "mean_ttft_ms"))
    ours, theirs = ([c.number("mean_ttft_ms") for c in result.of(name, 6.0)] for name in ("jsq", "random"))
    assert row.difference == paired_interval(ours, theirs)
    assert row.relative == pytest.approx((np.mean(ours) - np.mean(theirs)) / np.mean(theirs))


def test_tables_have_a_row_for_each_router_and_load(result: Routes) -> None:
    fleet, replicas, differences = fleet_grid(result), replica_grid(result), difference_grid(result)
    assert [part.title for part in fleet.parts] == [
        f"{load} requests/s in front of 3 replicas, each with sarathi" for load in (4, 6)
    ]
    assert [row[0] for row in fleet.parts[0].rows] == list(ROUTING.routers)
    assert differences is not None
    assert len(differences.parts[0].rows) == 4
    assert len(replicas.parts[0].rows) == 6
    assert markdown_text(result).count("| jsq |") == 2 + 2 + 2  # fleet, differences, replicas
    assert "least_tokens:age=0.5" in html_text(result, {})


def test_each_replica_has_a_row_at_the_load_in_the_middle(result: Routes) -> None:
    assert result.watched == 6.0
    grid = each_replica_grid(result)
    assert grid is not None
    assert [part.title for part in grid.parts] == list(ROUTING.routers)
    assert [row[:2] for row in grid.parts[1].rows] == [(str(j), "sarathi") for j in range(3)]
    means = [np.mean([cell.replicas[1].requests for cell in result.of("jsq", 6.0)])]
    assert grid.parts[1].rows[1][2] == f"{means[0]:.0f}"
    assert each_replica_grid(replace(result, replicas=40)) is None


def test_requests_at_each_replica_are_those_that_came_and_did_not_end(result: Routes) -> None:
    watched = {cell.router: cell.presence for cell in result.cells if cell.presence is not None}
    assert list(watched) == list(ROUTING.routers)
    record, _ = ROUTING.serve("jsq", 6.0, 0)
    presence = watched["jsq"]
    assert presence is not None
    assert len(presence.counts) == 3
    for k in (0, 17, 100, 239):
        time = presence.step_s * k
        for one, counts in zip(record.records, presence.counts, strict=True):
            here = [a <= time < c for a, c in zip(one.requests.arrival, one.ledger["completed"], strict=True)]
            assert counts[k] == sum(here)
    assert presence.step_s * 239 == pytest.approx(float(record.requests.arrival[-1]))


def test_a_cluster_of_many_replicas_is_looked_at_less_often() -> None:
    requests = Workload(rate=20.0, num_requests=50).generate(0)
    policies, devices = [baselines.make("sarathi")] * 200, [SETUP.profile] * 200
    presence = presence_of(simulate_cluster(routers.make("round_robin"), policies, requests, devices))
    assert (len(presence.counts), len(presence.counts[0])) == (200, 80)


def test_plots_show_what_there_is_to_show(result: Routes) -> None:
    assert list(captions(result)) == ["load", "presence"]
    with_ages = run_routing(replace(ROUTING, routers=("random", "jsq", "jsq:age=1"), loads=(4.0,)))
    assert by_age(with_ages) == {"jsq": [(0.0, "jsq"), (1.0, "jsq:age=1")]}
    for one in (result, with_ages):
        images = draw_all(one)
        assert list(images) == list(captions(one))
        assert all(image.startswith(b"\x89PNG") for image in images.values())
        assert html_text(one, images).count("<figure>") == len(images)
    assert list(captions(with_ages)) == ["load", "age", "presence"]
    lines = plot_age(with_ages).axes[0].lines[0]
    assert np.asarray(lines.get_xdata()).tolist() == [0.0, 1.0]
    means = [np.mean([c.number("mean_ttft_ms") for c in with_ages.of(name, 4.0)]) for name in ("jsq", "jsq:age=1")]
    assert np.asarray(lines.get_ydata()).tolist() == pytest.approx([mean / 1000.0 for mean in means])


def test_workers_and_interruptions_change_nothing(result: Routes, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 3 and not (tmp_path / stage).exists():
            (tmp_path / stage).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_routing(ROUTING, folder=tmp_path, progress=interrupt)
    done: list[int] = []
    again = run_routing(ROUTING, workers=2, folder=tmp_path, resume=True, progress=lambda _, k, __: done.append(k))
    assert again == result
    assert len(done) == 18 - 3


def test_another_configuration_has_another_digest(tmp_path: Path) -> None:
    others = [
        replace(ROUTING, fleet=(SEAT,) * 4),
        replace(ROUTING, routers=("random", "jsq")),
        replace(ROUTING, loads=(4.0,)),
    ]
    assert len({one.digest() for one in (ROUTING, *others)}) == 4


ARGUMENTS = "--replicas 2 --policy vllm --rates 2,3 --seeds 2 --num-requests 40 --workers 1 --no-progress"


def test_the_command_prints_tables_and_writes_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["route", "--routers", "round_robin,power_of_d:d=2,age=0.5", *ARGUMENTS.split(), "--json", "r.json"]) == 0
    )
    printed = capsys.readouterr().out
    assert "3 requests/s in front of 2 replicas, each with vllm" in printed
    assert "Difference to round_robin, same arrivals, 95 % interval" in printed
    assert "power_of_d:d=2,age=0.5 0.5 s" in printed
    data = json.loads(Path("r.json").read_text())
    assert data == json.loads(Path("out/route/route.json").read_text())
    assert (data["format"], data["reference"], data["replicas"]) == (FORMAT, "round_robin", 2)
    assert [router["label"] for router in data["routers"]] == ["round_robin", "power_of_d:d=2,age=0.5"]
    assert {path.name for path in Path("out/route").iterdir()} >= {
        "route.json",
        "table.md",
        "report.html",
        "load.png",
        "presence.png",
    }


def test_a_user_compares_a_router_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from engine import Router\n\nclass First(Router):\n    name = 'first'\n"
    Path("mine.py").write_text(f"{text}\n    def route(self, view, memory):\n        return 0\n")
    assert main(["route", "--routers", "jsq,mine.py:First", *ARGUMENTS.split(), "--json", "r.json"]) == 0
    data = json.loads(Path("r.json").read_text())
    assert "@" in data["config"]["routers"][1]
    own = [cell for cell in data["cells"] if cell["router"] == "mine.py:First"]
    assert all([replica["requests"] for replica in cell["replicas"]] == [40, 0] for cell in own)


MIXED = """
replicas:
  - count: 2
  - count: 1
    profile: rtx6000ada-mistral-7b:speed=3
    server: num_blocks=2x,max_num_seqs=256
    policy: vllm
"""


def test_a_fleet_of_kinds_comes_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixed.yml").write_text(MIXED)
    rest = "--policy sarathi --rates 6 --seeds 2 --num-requests 60 --workers 1 --no-progress --json r.json"
    assert main(["route", "--routers", "weighted_random,jsq", "--fleet", "mixed.yml", *rest.split()]) == 0
    fast = "1 of vllm on rtx6000ada-mistral-7b:speed=3"
    assert f"3 replicas, 2 of sarathi on rtx6000ada-mistral-7b, {fast}" in capsys.readouterr().out
    data = json.loads(Path("r.json").read_text())
    assert [replica["policy"] for replica in data["cells"][0]["replicas"]] == ["sarathi", "sarathi", "vllm"]
    slow, _, fast_one = data["config"]["fleet"]
    assert fast_one["engine"]["num_blocks"] == 2 * slow["engine"]["num_blocks"]
    assert fast_one["engine"]["max_num_seqs"] == 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicas: []", "mixed.yml: expected 1 to 4096 replicas, got none"),
        ("fleet: 3", "mixed.yml: expected a mapping with one key, replicas, got the keys fleet"),
        ("{}", "mixed.yml: expected a mapping with one key, replicas, got the keys none"),
        ("- 3", "mixed.yml: expected a mapping with one key, replicas, got a list"),
        ("replicas: 3", "mixed.yml: replicas: expected a list of kinds, got 3"),
        ("replicas: [{count: 0}]", "mixed.yml: replicas[0]: count: expected a whole number >= 1, got 0"),
        ("replicas: [{speed: 3}]", "mixed.yml: replicas[0]"),
        ("replicas: [{count: 1}, {profile: moon}]", "mixed.yml: replicas[1]: profile: expected one of "),
        ("replicas: [{server: num_blocks=-3}]", "mixed.yml: replicas[0]: server: num_blocks: expected a whole number"),
        ("replicas: [{policy: nobody}]", "mixed.yml: policy: expected one of "),
        ("replicas: [{policy: trail}, {policy: ltr}]", "replicas: expected policies with the same predictions, got "),
    ],
)
def test_a_bad_fleet_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixed.yml").write_text(text)
    assert main(["route", "--fleet", "mixed.yml", "--num-requests", "40", "--no-progress"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llmsched: {message}"), said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--replicas 0", "replicas: expected a whole number >= 1, got 0"),
        ("--routers joiner", "router: expected one of random, weighted_random, "),
        ("--routers jsq,jsq", "routers: expected each once, got 'jsq' twice"),
        ("--routers jsq:age=x", "router 'jsq': age: expected a number, got 'x'"),
        ("--policy nobody", "policy: expected one of "),
        ("--workload closed:concurrency=4", "route: expected an open loop, got 4 users"),
        ("--engine.num-blocks 20", "replica 0: request "),
        ("--rates 2,2", "rates: expected each load once, got (2.0, 2.0)"),
        ("--replicas 2 --fleet x.yml", "replicas, fleet: expected one of them, got both"),
        ("--fleet x.yml", "x.yml: "),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["route", *arguments.split(), "--num-requests", "40", "--workers", "1", "--no-progress"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llmsched: {message}"), said
    assert said.count("\n") == 1
    assert not Path("out/route/route.json").exists()


def test_no_router_and_a_closed_loop_are_refused() -> None:
    with pytest.raises(InputError, match="routers: expected at least one, got none"):
        replace(ROUTING, routers=())


def test_the_routers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routers"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in routers.names())
    assert "clients=1, kv_weight=6.0, age=0.1" in printed
