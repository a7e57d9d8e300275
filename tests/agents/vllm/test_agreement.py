"""`llmsched ab`: an engine that does what the simulation says is predicted without an error, and in the same order."""

import gzip
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.cli import main
from agents.policies import resolve
from agents.vllm.agreement import compare, fit_profile
from agents.vllm.cell_files import FORMAT, META, REQUESTS, STEPS, CellFiles, Sent
from agents.vllm.orders import compare_policies
from agents.vllm.plan import PROBED, PROFILE, Cell, Plan
from agents.vllm.replay import main as replay
from agents.vllm.results import METRICS, read_cells, read_folders
from agents.vllm.step_log import COLUMNS, Counters
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.simulate import simulate

PLAN = Plan(
    policies=("sarathi", "slai", "slackfit", "cautious"),
    rates=(1.8,),
    num_requests=80,
    profile="rtx6000ada-mistral-7b",
    variants={"cautious": {"policy": "slackfit", "margin": 0.4}},
)
CONFIG = EngineConfig(max_num_seqs=64, max_batched_tokens=4096)
MODEL = load_profile(PLAN.profile)


def _sent(cell: Cell) -> list[Sent]:
    """The requests of a cell as a simulation serves them."""
    settings, requests = PLAN.settings(cell.policy), PLAN.requests(cell)
    record = simulate(resolve(settings.policy), requests.replace(tiers=settings.told_tiers()), MODEL, CONFIG)
    start, found = float(requests.arrival[0]), []
    for k in range(len(requests)):
        due, output, tier = float(requests.arrival[k]) - start, int(requests.output[k]), int(requests.tier[k])
        first, last = (float(record.ledger[name][k]) - start for name in ("first_token", "completed"))
        times = np.linspace(first, last, output)
        if output > 2:  # the longest gap stands first, the others share what is left
            gap = float(record.ledger["max_gap"][k])
            times = np.concatenate([[first], np.linspace(first + gap, last, output - 1)])
        found.append(Sent(due, int(requests.prompt[k]), output, tier, due, times.tolist()))
    return found


def _steps() -> list[str]:
    """A step log of batches that take what the profile says."""
    from engine.device.fitting import Batch, Point, predicted

    rng, lines = np.random.default_rng(0), []
    for _ in range(300):
        prompt, decodes = int(rng.choice([0, 64, 512, 1500])), int(rng.integers(0, 60))
        decodes = max(decodes, int(prompt == 0))
        context = 700 * decodes
        batch = Batch(((prompt, 0),) if prompt else (), (700,) * decodes)
        seconds = float(predicted(MODEL, [Point("mixed", batch, 1.0)])[0])
        lines.append(f"0.0,{seconds:.6f},{prompt},{decodes},{context},1,0,{decodes},0,0,-1,10.0")
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `agents.vllm.replay` would have written."""
    out = tmp_path_factory.mktemp("ab")
    counters: dict[str, Any] = asdict(Counters()) | {"limits": asdict(CONFIG)}
    (out / META).write_text(json.dumps({"format": FORMAT, "plan": asdict(PLAN)}))
    with gzip.open(out / REQUESTS, "wt") as file, gzip.open(out / STEPS, "wt") as steps:
        steps.write(f"cell,{','.join(COLUMNS)}\n")
        for number, cell in enumerate(PLAN.cells()):
            sent = _sent(cell)
            file.write(json.dumps({"cell": number, **asdict(cell), "requests": len(sent), "counters": counters}) + "\n")
            file.writelines(json.dumps(one.line()) + "\n" for one in sent)
            steps.writelines(f"{number},{line}\n" for line in _steps())
    return out


def test_an_engine_that_is_the_simulation_is_predicted_without_an_error(folder: Path) -> None:
    pairs = compare(read_cells(folder), MODEL)
    assert [pair.measured.cell for pair in pairs] == PLAN.cells()
    for pair in pairs:
        assert pair.predicted is not None
        for metric in METRICS:
            if metric != "p99_tbt_strict_s":  # the gaps between are not those of the simulation
                assert pair.real[metric] == pytest.approx(pair.predicted[metric], rel=2e-3, abs=1e-9)


def test_margin_is_kept_from_the_policy_and_not_from_the_figures(folder: Path) -> None:
    pairs = {pair.measured.cell.policy: pair for pair in compare(read_cells(folder), MODEL)}
    told, cautious = pairs["slackfit"], pairs["cautious"]
    assert cautious.measured.tiers() == told.measured.tiers()
    assert cautious.predicted
    assert told.predicted
    assert cautious.predicted["p99_tbt_strict_s"] < told.predicted["p99_tbt_strict_s"] - 0.01
    assert cautious.predicted["slo_met"] == pytest.approx(cautious.real["slo_met"])


def test_order_of_the_policies_is_the_same(folder: Path) -> None:
    found = {one.metric: one for one in compare_policies(compare(read_cells(folder), MODEL))[1]}
    assert set(found) == set(METRICS)
    for metric in ("median_ttft_s", "mean_ttft_s"):
        assert found[metric].tau == found[metric].tau_told_apart == 1.0
        assert -1.0 <= found[metric].low <= found[metric].high <= 1.0
        assert 0 < found[metric].told_apart <= found[metric].pairs == 6


def test_profile_comes_from_the_step_log(folder: Path) -> None:
    model = fit_profile(read_cells(folder), "engine")
    residuals = model.provenance["residuals"]
    assert all(one["mape"] < 3.0 for one in residuals.values())


def test_finished_cells_are_found_again(folder: Path) -> None:
    assert [Cell(head["policy"], head["rate"], head["seed"]) for head in CellFiles(folder).heads()] == PLAN.cells()


def test_command_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ab.json"
    assert main(["ab", str(folder), "--profile", PLAN.profile, "--json", str(out)]) == 0
    assert "Kendall" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert len(written["cells"]) == len(PLAN.cells())
    assert set(written["errors"]) == set(METRICS)
    assert {"tau", "low", "high", "told_apart", "tau_told_apart"} < set(written["ranks"][0])


def test_folders_are_taken_together(folder: Path, tmp_path: Path) -> None:
    """A repeat is pooled; what was told another margin gets a name of its own, the rest does not."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    told = asdict(PLAN) | {"variants": {"cautious": {"policy": "slackfit", "margin": 0.3}}}
    (other / META).write_text(json.dumps({"format": FORMAT, "plan": told}))
    cells = read_folders([folder, other])
    assert [cell.cell.policy for cell in cells[3:]] == [
        "cautious (margin=0.4)",
        *("sarathi", "slai", "slackfit", "cautious (margin=0.3)"),
    ]
    assert [cell.settings().margin for cell in cells] == [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.3]
    differences, found = compare_policies(compare(cells, MODEL))
    assert found[0].pairs == 10
    means = [d for d in differences if d.metric == "mean_ttft_s" and "0.3" not in d.policy + d.reference]
    assert [d.predicted for d in means] == pytest.approx([d.value for d in means], rel=0.01, abs=1e-4)


def test_probed_folders_are_pooled(folder: Path, tmp_path: Path) -> None:
    """Each has a profile of its own, which is not another setting."""
    folders = [tmp_path / name for name in "ab"]
    for one in folders:
        shutil.copytree(folder, one)
        MODEL.save(one / PROFILE)
        (one / META).write_text(json.dumps({"format": FORMAT, "plan": asdict(PLAN) | {"profile": PROBED}}))
    cells = read_folders(folders)
    assert {cell.cell.policy for cell in cells} == set(PLAN.policies)
    assert {cell.settings().profile for cell in cells} == {str(one / PROFILE) for one in folders}


def test_nobody_knows_the_limits_of_another_server(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    told = asdict(PLAN) | {"variants": {**PLAN.variants, "sync": {"policy": "plain"}}}
    (other / META).write_text(json.dumps({"format": FORMAT, "plan": told}))
    with gzip.open(other / REQUESTS, "at") as file:
        for number, policy in ((90, "http://host:1"), (91, "plain"), (92, "sync")):
            head = {"cell": number, "policy": policy, "rate": 1.8, "seed": 0, "requests": 1, "counters": None}
            file.write(json.dumps(head) + "\n" + json.dumps(Sent(0.0, 5, 2, 1, 0.0, [0.1, 0.2]).line()) + "\n")
    *ours, given, plain, sync = read_cells(other)
    assert given.limits is None
    assert plain.limits == sync.limits == ours[0].limits is not None


def test_another_plan_in_the_same_folder_keeps_what_the_first_one_told(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    files, next_plan = CellFiles(other), replace(PLAN, policies=("slai:token_budget=256",), variants={})
    files.write_meta(next_plan, {})
    assert [cell.settings() for cell in read_cells(other)] == [cell.settings() for cell in read_cells(folder)]
    for changed, what in ((replace(next_plan, margin=0.1), "margin"), (replace(next_plan, profile="probe"), "profile")):
        with pytest.raises(InputError, match=f"{what}: expected .* as for the cells that are there"):
            files.write_meta(changed, {})
    with pytest.raises(InputError, match="server: expected None as for the cells that are there, got given"):
        files.write_meta(next_plan, {"server": "given"})


def test_a_cell_that_was_cut_off_leaves_its_number(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    last = len(PLAN.cells())
    with gzip.open(other / STEPS, "at") as file:
        file.write(f"{last},{_steps()[0]}\n")
    assert CellFiles(other).missing([Cell("stock", 1.8, 9)]) == [(last + 1, Cell("stock", 1.8, 9))]


def test_folders_of_other_requests_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / META).write_text(json.dumps({"format": FORMAT, "plan": asdict(PLAN) | {"num_requests": 79}}))
    assert main(["ab", str(folder), str(other)]) == 2
    assert "expected the requests of the other folders" in capsys.readouterr().err


def test_a_policy_that_has_changed_is_left_out(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "ab.json"
    assert main(["ab", str(folder), "--without", "slai,cautious", "--profile", PLAN.profile, "--json", str(out)]) == 0
    assert {cell["policy"] for cell in json.loads(out.read_text())["cells"]} == {"sarathi", "slackfit"}


def test_folder_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / META).write_text('{"format": "other"}')
    assert main(["ab", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ab"]) == 2
    assert "expected one of FOLDERs" in capsys.readouterr().err


def test_replay_says_in_one_line_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay([str(tmp_path / "none.json"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_replay_runs_vllm_without_our_scheduler_in_a_plan_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(PLAN, policies=("sync", "slai"), variants={"sync": {"policy": "plain"}}, model="tiny")
    plan.check()
    assert [plan.is_plain(name) for name in plan.policies] == [True, False]
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan)))
    assert replay([str(tmp_path / "plan.json"), str(tmp_path / "out")]) == 2
    assert "expected plain in a plan of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policies": ("stock", "no-such")}, "no-such"),
        ({"policies": ()}, "policies: expected at least one"),
        ({"policies": ("trail",)}, "without predictions"),
        ({"rates": ()}, "rates: expected at least one"),
        ({"profile": "no-such"}, "no-such"),
        ({"lengths": "no-such"}, "no-such"),
        ({"tiers": ({"name": "a", "share": 2.0, "tbt": 0.1},)}, "share"),
        ({"model": "no-such-folder"}, "no-such-folder"),
        ({"margin": 1.5}, "margin"),
        ({"variants": {"slai": {"margin": "much"}}}, "variants.slai.margin"),
        ({"variants": {"slai": {"margins": 0.1}}}, "variants.slai: unknown key 'margins'"),
        ({"variants": {"other": {"margin": 0.1}}}, "variants: expected names among the policies, got 'other'"),
    ],
)
def test_plan_that_cannot_be_run_is_refused_before_a_server_starts(changes: dict[str, Any], expected: str) -> None:
    PLAN.check()
    with pytest.raises(InputError, match=expected) as refused:
        replace(PLAN, **({"policies": ("slai",), "variants": {}} | changes)).check()
    assert "\n" not in str(refused.value)


def test_plan_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"policies": ["slai"], "rates": [2], "sedes": [1]}')
    with pytest.raises(Exception, match="sedes"):
        Plan.read(file)
    assert replace(PLAN, seeds=(0, 1)).cells()[4] == Cell("sarathi", 1.8, 1)
