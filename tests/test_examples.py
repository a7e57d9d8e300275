"""Every example runs, with short settings, and shows what it is there to show."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from baselines import make
from engine import load_profile, simulate
from llmsched_env import PRESETS

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "first_steps.ipynb"


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write below the folder in which they are started."""
    monkeypatch.chdir(tmp_path)


def test_own_policy_without_patience_is_sarathi_and_with_it_serves_prompts_sooner() -> None:
    medians = load("own_policy").main(num_requests=300)
    assert medians["patient:patience=0"] == medians["sarathi"]
    assert medians["patient:patience=1"] < medians["sarathi"]


def test_own_reward_is_what_the_environment_gives() -> None:
    assert load("own_reward").main(steps=50, rows=2) < 0.0


def test_own_trace_is_written_and_served(tmp_path: Path) -> None:
    found = load("own_trace").main(tmp_path / "trace.csv", num_requests=50)
    assert len((tmp_path / "trace.csv").read_text(encoding="utf-8").splitlines()) == 51
    assert {"vllm", "sarathi", "slai", "slackfit"} == set(found)
    assert min(found.values()) > 0.0


def test_comparison_writes_its_report(tmp_path: Path) -> None:
    report = load("compare").main(("sarathi", "slai"), (1.4,), seeds=2, num_requests=50, out=tmp_path / "out")
    assert "slai" in report.read_text(encoding="utf-8")


def test_training_makes_a_policy(tmp_path: Path) -> None:
    assert 0.0 < load("train").main(total_timesteps=8192, run_dir=tmp_path / "run", num_requests=50) < 100.0


def test_ppo_in_one_file_finds_the_best_return_of_the_toy() -> None:
    """Each prompt of 512 tokens in one batch: the toy's requests are alone, so nothing can be served sooner."""
    example = load("cleanrl_ppo")
    toy = PRESETS["LLMSchedToy-v0"]
    profile = load_profile(toy.profile)
    record = simulate(make("sarathi:token_budget=512"), toy.workload.generate(0), profile, toy.engine)
    best = -float((record.ledger["first_token"] - record.request["arrival"]).sum())
    random, learned = example.main(example.Settings(total_steps=20_480, rows=32))
    assert random < 1.15 * best
    assert learned == pytest.approx(best, rel=1e-6)


def test_ppo_in_one_file_runs_on_a_truncated_server() -> None:
    """The observation of the end is what a truncated episode bootstraps from."""
    example = load("cleanrl_ppo")
    settings = example.Settings(env_id="llmsched_env:LLMSched-v0", rows=4, rollout=8, max_episode_steps=5)
    envs = example.make_envs(settings)
    agent = example.Agent(envs.single_observation_space.shape[0], envs.single_action_space.nvec.tolist())
    now, _ = envs.reset(seed=0)
    rollout, _ = example.collect(envs, agent, now, settings)
    assert rollout.advantage.isfinite().all()


def test_ppo_for_queues_in_one_file_has_groups_on_common_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("cleanrl_queues")
    monkeypatch.setattr(example, "BURN_IN", 20)
    monkeypatch.setattr(example, "REQUESTS", 700)
    settings = example.Settings(groups=1, rollout=4, warm_up=1, total_steps=4 * 56 * 3)
    servers = example.Servers(settings)
    seen = servers.new_round().reshape(7, 8, -1)
    assert (seen == seen[:, :1]).all()
    rollout = example.collect(servers, example.Agent(servers.watched), 4)
    assert rollout.levels[0].reshape(7, 8, 3).std(1).min() > 0.0
    assert (servers.new_round().reshape(7, 8, -1)[1:] != seen[1:]).any()
    learned = example.train(settings)
    assert learned.best.isfinite().all()
    assert learned.best.abs().max() > 0.0


def test_ppo_for_queues_in_one_file_begins_with_slackfit_tuned() -> None:
    example = load("cleanrl_queues")
    workload = PRESETS["LLMSched-v0"].workload
    traces = [replace(workload, rate=1.8, num_requests=300).generate(example.HELD_OUT + k) for k in range(2)]
    profile = load_profile(PRESETS["LLMSched-v0"].profile)
    records = [simulate(make("slackfit:tuned"), trace, profile) for trace in traces]
    usual = [1000.0 * (one.ledger["first_token"] - one.request["arrival"]).mean() for one in records]
    assert example.mean_ttft(None, 1.8, traces=2, requests=300) == pytest.approx(sum(usual) / 2, rel=0.02)


@pytest.mark.filterwarnings("default")
def test_torchrl_takes_the_environment() -> None:
    pytest.importorskip("torchrl")
    assert load("torchrl_gymwrapper").main(steps=5)["observation"].shape[-1] > 1


def outputs(notebook: Any) -> list[tuple[str, list[str]]]:
    """What each cell prints, however many messages that took, and the kinds of what it draws."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(o.text for o in found if o.output_type == "stream") for found in cells]
    drawn = [[kind for o in found if o.output_type != "stream" for kind in sorted(o.data)] for found in cells]
    return [*zip(printed, drawn, strict=True)]


@pytest.mark.filterwarnings("default")
def test_the_notebook_prints_what_it_shows() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    again = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(again, timeout=600, kernel_name="python3").execute()
    assert outputs(again) == outputs(stored)
    assert all(text or pictures for text, pictures in outputs(stored))


def test_every_example_is_on_the_page_of_examples() -> None:
    page = (EXAMPLES.parent / "docs/guide/examples.md").read_text(encoding="utf-8")
    names = {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
    assert names
    assert set(re.findall(r"examples/([\w.]+)", page)) >= names
