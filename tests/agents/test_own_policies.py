"""Classes of users wherever a policy is named: the same results, workers included; what is wrong in one line."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import baselines
from agents.cli import main
from agents.evaluation.capacity import Search, search_capacity
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.policies import fingerprint, resolve, split_policies
from agents.source import Source
from engine import InputError, Plan, Policy, PolicyFault, View, Workload, load_profile, schedule, simulate
from engine.config import EngineConfig
from engine.runs.record import Record
from engine.server.policy import Kernel
from engine.server.state import Memory
from tests.agents.own_policies import COMPILED, PLAIN

PROFILE = load_profile("rtx6000ada-mistral-7b")
REQUESTS = Workload(rate=0.5, num_requests=12).generate(0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "compiled.py").write_text(COMPILED)
    return tmp_path


def served(policy: Policy) -> Record:
    return simulate(policy, REQUESTS, PROFILE)


def evaluation(*policies: str | Policy, **changes: object) -> Evaluation:
    settings = {"source": Source(num_requests=8), "loads": (0.5,), "seeds": 2, "reference": policies[0]}
    settings |= {"profile": PROFILE, "config": EngineConfig(), **changes}
    return Evaluation(policies=policies, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Oldest(Policy):
    """Defined in an importable module."""

    name: ClassVar[str] = "oldest"

    chunk: int = 512

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        row = view.row[0]
        if row.num_waiting + row.num_running > 0:
            i = view.running[0] if row.num_running else view.queue[0]
            r = view.request[i]
            schedule(plan, i, max(1, min(self.chunk, r.prompt - r.prefilled)))


@pytest.mark.parametrize("spec", ["plain.py", "plain.py:OneAtATime", "./plain.py:OneAtATime", "{folder}/plain.py"])
def test_a_file_or_a_class_in_it_is_a_policy(files: Path, spec: str) -> None:
    policy = resolve(spec.format(folder=files))
    assert (policy.name, vars(policy)) == ("one-at-a-time", {"chunk": 512})
    assert vars(resolve(f"{spec.format(folder=files)}:chunk=64")) == {"chunk": 64}


def test_a_class_of_a_module_in_the_current_folder_is_a_policy(files: Path) -> None:
    (files / "doors_module.py").write_text(PLAIN)
    assert vars(resolve("doors_module:OneAtATime:chunk=7")) == {"chunk": 7}


def test_a_list_of_policies_is_split_at_those_of_users_too(files: Path) -> None:
    text = "slai:token_budget=1024,offset=3,plain.py:OneAtATime:chunk=3,m:C:a=1,b=2,m:D,plain.py:chunk=9,sarathi"
    assert split_policies(text) == (
        "slai:token_budget=1024,offset=3",
        "plain.py:OneAtATime:chunk=3",
        "m:C:a=1,b=2",
        "m:D",
        "plain.py:chunk=9",
        "sarathi",
    )


def test_python_and_compiled_twins_give_the_same_record(files: Path) -> None:
    plain, compiled = (served(resolve(f"{name}.py:chunk=100")) for name in ("plain", "compiled"))
    assert np.array_equal(plain.ledger, compiled.ledger)
    assert np.array_equal(plain.row, compiled.row)
    assert plain.row["iterations"][0] > 100


def test_a_compiled_policy_follows_an_edit_of_a_file_beside_it(files: Path) -> None:
    (files / "doors_part.py").write_text(
        "from engine import inner\n\n@inner\ndef left(r):\n    return min(64, r.prompt - r.prefilled)\n"
    )
    text = COMPILED.replace("@inner\ndef left(request):\n    return request.prompt - request.prefilled\n", "")
    (files / "split.py").write_text("from doors_part import left\n" + text)
    command = ["simulate", "--policy", "split.py", "--num-requests", "2", "--rate", "0.5", "--json"]
    counts = []
    for tokens in ("64", "32"):
        (files / "doors_part.py").write_text((files / "doors_part.py").read_text().replace("64", tokens))
        run_cli([*command, f"{tokens}.json"], files)
        counts.append(json.loads((files / f"{tokens}.json").read_text())["iterations"])
    assert counts[0] < counts[1]


def run_cli(arguments: list[str], folder: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "agents.cli", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_comparisons_take_specs_and_objects_in_any_number_of_processes(
    files: Path, workers: int, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.work.processes.start_method", lambda: start)
    monkeypatch.setattr("agents.evaluation.setup.start_method", lambda: start)
    (files / "doors_workers.py").write_text(PLAIN)
    setup = evaluation("sarathi", "plain.py:chunk=100", "doors_workers:OneAtATime:chunk=100", Oldest(100))
    result = evaluate(setup, workers=workers, with_windows=False)
    rows = {label: [c.report | {"policy": ""} for c in result.cells if c.policy == label] for label in setup.policies}
    assert list(rows) == ["sarathi", "plain.py:chunk=100", "doors_workers:OneAtATime:chunk=100", "oldest:chunk=100"]
    first, *others = list(rows.values())[1:]
    assert others == [first, first]
    assert list(result.labels) == list(rows)


def test_capacity_takes_them(files: Path) -> None:
    search = Search(
        policies=("plain.py", Oldest()),
        reference=Oldest(),
        rates=(0.1, 3.0),
        source=Source(num_requests=8),
        seeds=1,
        profile=PROFILE,
        config=EngineConfig(),
    )
    rows = search_capacity(search, workers=1).rows
    assert len({row.capacity.mean for row in rows if row.criterion == "paper"}) == 1


def test_tune_saves_what_tuned_reads(files: Path) -> None:
    command = ["tune", "plain.py:OneAtATime,sarathi", "--rates", "0.2", "--seeds", "1", "--num-requests", "5"]
    assert main([*command, "--save", "t.json", "--workers", "1"]) == 0
    spec = json.loads((files / "t.json").read_text())["poisson"]["plain.py:OneAtATime"]
    assert spec == "plain.py:OneAtATime:chunk=4096"
    assert vars(resolve("plain.py:OneAtATime:tuned=t.json")) == {"chunk": 4096}
    assert isinstance(resolve("sarathi:tuned=t.json"), baselines.Sarathi)
    assert fingerprint("plain.py:OneAtATime:tuned=t.json") == fingerprint(spec)
    with pytest.raises(InputError, match=r"expected a setting of slai in t\.json, found none"):
        resolve("slai:tuned=t.json")


def test_a_file_with_settings_of_several_workloads_asks_which(files: Path) -> None:
    table = {"poisson": {"slai": "slai:offset=3"}, "gamma:cv=2": {"slai": "slai:offset=4"}}
    (files / "t.json").write_text(json.dumps(table))
    assert resolve("slai:tuned=t.json:gamma:cv=2") == baselines.SLAI(offset=4.0)
    with pytest.raises(InputError, match=r"expected :WORKLOAD behind the file, one of poisson, gamma:cv=2"):
        resolve("slai:tuned=t.json")
    (files / "t.json").write_text(json.dumps({"poisson": {"slai": "vllm"}}))
    with pytest.raises(InputError, match=r"t\.json: expected a setting of slai, got 'vllm'"):
        resolve("slai:tuned=t.json")
    (files / "t.json").write_text(json.dumps({"poisson": {"slai": 3}}))
    with pytest.raises(InputError, match=r"t\.json: expected a table of tuned settings"):
        resolve("slai:tuned=t.json")


def test_starvation_sets_the_knob_of_a_class(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "aged.py").write_text(PLAIN.replace("chunk: int = 512", "chunk: int = 512\n    ageing: float = 0.0"))
    command = ["starvation", "--policies", "aged.py:chunk=100", "--ageing", "0,5", "--rates", "0.5"]
    assert main([*command, "--seeds", "1", "--num-requests", "5", "--workers", "1", "--json", "s.json"]) == 0
    labels = [row["label"] for row in json.loads((files / "s.json").read_text())["policies"]]
    assert labels == ["aged.py:chunk=100,ageing=0", "aged.py:chunk=100,ageing=5"]
    assert main([*command[:2], "plain.py", *command[3:], "--seeds", "1", "--num-requests", "5"]) == 2
    assert "expected one of chunk as name=value, got 'ageing=0'" in capsys.readouterr().err


def test_an_edited_policy_has_another_fingerprint_and_is_not_resumed(files: Path) -> None:
    before = evaluation("plain.py")
    cells = files / "cells.jsonl"
    evaluate(before, cells_path=cells, with_windows=False)
    evaluate(evaluation("plain.py"), cells_path=cells, resume=True, with_windows=False)
    (files / "plain.py").write_text(PLAIN.replace("512", "256"))
    assert evaluation("plain.py").digest() != before.digest()
    with pytest.raises(InputError, match="expected cells of configuration"):
        evaluate(evaluation("plain.py"), cells_path=cells, resume=True, with_windows=False)
    with pytest.raises(InputError, match="its files changed while the comparison ran"):
        before.policy("plain.py")


def test_fingerprints_follow_the_files_behind_and_the_parameters(files: Path) -> None:
    (files / "doors_base.py").write_text(PLAIN)
    (files / "child.py").write_text("from doors_base import OneAtATime\n\n\nclass Child(OneAtATime):\n    name = 'c'\n")
    assert fingerprint("child.py") != fingerprint("plain.py")
    assert fingerprint("child.py") == fingerprint("child.py")
    assert fingerprint("child.py:chunk=3") != fingerprint("child.py")
    one, two = evaluation(Oldest(3)), evaluation(Oldest(4))
    assert one.digest() != two.digest()
    assert one.digest() == evaluation(Oldest(3)).digest()


def test_the_same_class_name_in_two_files_is_two_policies(files: Path) -> None:
    (files / "other.py").write_text(PLAIN.replace("512", "64"))
    assert vars(resolve("plain.py:OneAtATime")) != vars(resolve("other.py:OneAtATime"))
    result = evaluate(evaluation("plain.py:OneAtATime", "other.py:OneAtATime"), with_windows=False)
    assert [policy.parameters["chunk"] for policy in result.policies] == [512, 64]


HEADER = "from engine import Policy, Kernel, schedule\nfrom dataclasses import dataclass\n"
WRONG = {
    "nothing.py": (None, r"nothing\.py: cannot read"),
    "nothing_here:Mine": (None, "expected a module in the current folder or among the installed packages, found none"),
    "empty.py": ("x = 1\n", "expected a subclass of engine.Policy in the file, found none"),
    "two.py": (
        HEADER + "class A(Policy):\n    def plan(self, v, m, p): ...\nclass B(A): ...\n",
        r"expected the name of one of several classes: two\.py:A, two\.py:B",
    ),
    "gone.py:Mine": (HEADER + "class A(Policy): ...\n", r"expected a name that gone\.py defines \(A\), got 'Mine'"),
    "syntax.py": ("x = 1\nclass A(:\n", r"SyntaxError: .* \(.*syntax\.py, line 2\)"),
    "lacks.py": ("import nothing_of_the_kind\n", r"ModuleNotFoundError: .* \(.*lacks\.py, line 1\)"),
    "relative.py": ("from .other import thing\n", r"ImportError: .* \(.*relative\.py, line 1\)"),
    "leaves.py": ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*leaves\.py, line 2\)"),
    "function.py:mine": ("def mine(): ...\n", "expected a class, got function"),
    "object.py:Mine": ("class Mine: ...\n", "expected a subclass of engine.Policy, got Mine"),
    "noplan.py": (HEADER + "class A(Policy):\n    name = 'a'\n", "expected a plan method or a kernel, found neither"),
    "arguments.py": (
        HEADER + "class A(Policy):\n    def plan(self, view): ...\n",
        r"plan: expected plan\(self, view, memory, plan\) to be callable",
    ),
    "kernel.py": (HEADER + "class A(Policy):\n    kernel = schedule\n", "kernel: expected @Kernel or @HotKernel"),
    "kernel2.py": (
        HEADER + "@Kernel\ndef k(view): ...\nclass A(Policy):\n    kernel = k\n",
        r"kernel: expected kernel\(view, memory, plan\) to be callable",
    ),
    "clash.py": (
        HEADER + "class A(Policy):\n    name = 'slai'\n    def plan(self, v, m, p): ...\n",
        "expected a name of its own, got that of the policy 'slai' that ships",
    ),
    "name.py": (
        HEADER + "class A(Policy):\n    name = 'a:b'\n    def plan(self, v, m, p): ...\n",
        "name: expected a word without spaces, colons, commas and =, got 'a:b'",
    ),
    "memory.py": (
        HEADER + "class A(Policy):\n    row_memory = -1\n    def plan(self, v, m, p): ...\n",
        "row_memory: expected a whole number of cells from 0 to",
    ),
    "channel.py": (
        HEADER + "class A(Policy):\n    prediction = 'psychic'\n    def plan(self, v, m, p): ...\n",
        "expected one of",
    ),
    "params.py:A:j=3": (
        HEADER + "class A(Policy):\n    k: int = 3\n    def plan(self, v, m, p): ...\n",
        r"expected one of no parameter: .* as name=value, got 'j=3'",
    ),
    "typed.py:A:k=three": (
        HEADER + "@dataclass(frozen=True)\nclass A(Policy):\n    k: int = 3\n    def plan(self, v, m, p): ...\n",
        "k: expected a whole number, got 'three'",
    ),
    "required.py": (
        HEADER + "@dataclass(frozen=True)\nclass A(Policy):\n    k: int\n    def plan(self, v, m, p): ...\n",
        r"expected k=\.\.\., which has no default",
    ),
    "init.py": (
        HEADER
        + "class A(Policy):\n    def __init__(self):\n        self.k = 1 / 0\n    def plan(self, v, m, p): ...\n",
        r"ZeroDivisionError: division by zero \(.*init\.py, line 5\)",
    ),
    "frozen.py": (
        HEADER + "@dataclass(frozen=True)\nclass A(Policy):\n    def __post_init__(self):\n        self.k = 1\n"
        "    def plan(self, v, m, p): ...\n",
        r"cannot assign to field 'k' .*parameters are the fields of a class with @dataclass\(frozen=True\)",
    ),
}
"""Spec -> (content of its file, what the one line says)."""


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_with_a_class_is_one_line(files: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = WRONG[spec]
    if text is not None:
        (files / spec.partition(":")[0]).write_text(text)
    assert main(["simulate", "--policy", spec, "--num-requests", "3"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("llmsched: ")
    assert error.count("\n") == 1


FAULTS = {
    "raise": ("raise ValueError('no\\nmore')", r"ValueError: no more \(.*bad\.py, line 6\)"),
    "late": ("if view.row[0].now > 0.1: {}['x']", r"KeyError: 'x' \(.*bad\.py, line 6\)"),
    "type": ("schedule(plan, 'a', 1)", r"Error: .*bad\.py, line 6\)"),
    "view": ("view.row[0].free_blocks += 5", r"changed the view at t=.*which it may only read"),
    "request": ("view.request[0].prefilled = 1", "changed the view"),
    "index": ("schedule(plan, 10**6, 1)", "illegal plan"),
    "many": ("plan.size[0] = 10**9", "illegal plan"),
    "negative": ("schedule(plan, view.queue[0], -77)", "illegal plan"),
    "exit": ("raise SystemExit(0)", r"SystemExit: 0 \(.*bad\.py, line 6\)"),
    "nothing": ("pass", "planned nothing at"),
    "quit": ("raise SystemError('x')", r"SystemError: x \(.*bad\.py, line 6\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_goes_wrong_in_a_plan_is_one_line_with_its_place(
    files: Path, fault: str, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = FAULTS[fault]
    text = f"{HEADER}class Bad(Policy):\n    name = 'bad'\n    def plan(self, view, memory, plan):\n        {code}\n"
    (files / "bad.py").write_text(text)
    command = ["evaluate", "--policies", "bad.py", "--rates", "1", "--seeds", "2", "--num-requests", "5"]
    assert main([*command, "--no-plots", "--workers", workers, "--report", "r.html"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_a_fault_keeps_its_cause_in_python(files: Path) -> None:
    text = f"{HEADER}class Bad(Policy):\n    name = 'bad'\n    def plan(self, view, memory, plan):\n        1 / 0\n"
    (files / "bad.py").write_text(text)
    with pytest.raises(PolicyFault, match="ZeroDivisionError") as caught:
        served(resolve("bad.py"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_kernel_that_cannot_be_compiled_or_fails_is_one_line(files: Path) -> None:
    base = (
        f"{HEADER}@Kernel\ndef k(view, memory, plan):\n    {{}}\nclass Bad(Policy):\n    name = 'bad'\n    kernel = k\n"
    )
    (files / "compile.py").write_text(base.format("view.nothing[0]"))
    with pytest.raises(InputError, match=r"cannot be compiled: TypingError: .*nothing.*\(.*compile\.py, line 5\)"):
        served(resolve("compile.py"))
    (files / "fails.py").write_text(base.format("1 // view.row[0].num_running"))
    with pytest.raises(PolicyFault, match=r"ZeroDivisionError: .*fails\.py, kernel in line"):
        served(resolve("fails.py"))


def test_objects_that_cannot_be_sent_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Local(Oldest):
        name: ClassVar[str] = "local"

    assert evaluate(evaluation(Local()), with_windows=False).labels[0] == "local"
    with pytest.raises(InputError, match=r"policy 'local': cannot be sent to worker processes .*or use one worker"):
        evaluate(evaluation(Local()), workers=2, with_windows=False)
    monkeypatch.setattr(Oldest, "__module__", "__main__")
    monkeypatch.setattr("__main__.__file__", "<stdin>", raising=False)
    monkeypatch.setattr("agents.evaluation.setup.start_method", lambda: "spawn")
    with pytest.raises(InputError, match="worker processes cannot see what a shell or notebook defines"):
        evaluate(evaluation(Oldest()), workers=2, with_windows=False)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ((Oldest(), Oldest()), "expected each once, got 'oldest' twice"),
        (("slai", baselines.SLAI()), "expected each once, got 'slai' twice"),
        ((Oldest,), "expected specs or objects of subclasses of engine.Policy, got the class Oldest"),
        ((3,), "got int"),
    ],
)
def test_wrong_objects_are_refused(policies: tuple[Policy, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation(*policies)


def test_objects_of_baselines_are_their_specs_and_replace_keeps_labels() -> None:
    setup = evaluation(baselines.SLAI(offset=3.0), Oldest())
    assert setup.policies == ("slai:offset=3.0", "oldest")
    assert replace(setup, seeds=1).policy("oldest") == Oldest()


def test_words_as_parameters_need_no_encoding_without_a_kernel() -> None:
    @dataclass(frozen=True)
    class Worded(Oldest):
        name: ClassVar[str] = "worded"
        order: str = "fcfs"

    assert np.isnan(Worded().params(EngineConfig())[1])
    assert served(Worded()).row["finished"][0] == len(REQUESTS)
    with pytest.raises(InputError, match="order: expected a number for the kernel"):
        type("K", (Worded,), {"kernel": Kernel(lambda v, m, p: None)})().params(EngineConfig())


STATEFUL = """
from engine import Policy, schedule


class Stateful(Policy):
    name = "stateful"

    def __init__(self, chunk: int = 512, first=64):
        self.chunk, self.first, self.calls = chunk, first, 0

    def plan(self, view, memory, plan):
        self.calls += 1
        row = view.row[0]
        if row.num_waiting + row.num_running > 0:
            i = view.running[0] if row.num_running else view.queue[0]
            r = view.request[i]
            chunk = self.first if self.calls < 50 else self.chunk
            schedule(plan, i, max(1, min(chunk, r.prompt - r.prefilled)))
"""


def test_a_plain_class_has_its_constructors_parameters_and_what_it_remembers_ends_with_the_run(files: Path) -> None:
    (files / "doors_stateful.py").write_text(STATEFUL)
    policy = resolve("doors_stateful:Stateful:chunk=7,first=9")
    assert {**vars(policy)} == {"chunk": 7, "first": 9, "calls": 0}
    with pytest.raises(InputError, match="first: expected a whole number, got 'x'"):
        resolve("doors_stateful:Stateful:first=x")
    for given in ("doors_stateful:Stateful", policy):
        alone, both = (evaluate(evaluation(given), workers=w, with_windows=False).cells for w in (1, 2))
        assert alone == both
