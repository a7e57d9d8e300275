"""Routers on three replicas, by hand; specs, registry, routers of users."""

from pathlib import Path

import numpy as np
import pytest

from baselines import routers
from baselines.routers import ROUTERS
from engine.cluster.router import Router
from engine.cluster.state import RouterMemory, RouterView, new_view
from engine.errors import InputError

COLUMNS = (
    ("in_flight", "unanswered", "waiting", "running", "prompt_left", "unpredicted", "generated", "free_blocks"),
    ("blocks_wanted", "prefill_s", "decode_s"),
)
HAND = (
    ((8, 3000, 2, 6, 2500, 8, 400, 700), (130, 1e-4, 1e-3)),
    ((5, 7000, 3, 2, 6800, 5, 100, 900), (430, 1e-4, 1e-3)),
    ((9, 600, 1, 8, 500, 9, 1800, 300), (12, 4e-4, 4e-3)),
)
"""Replicas of 1000 KV blocks of 16 tokens: one with a bit of all, one with few long prompts, a slow one without KV.

Present are 8, 5, 9 requests; KV use is 0.3, 0.1, 0.7.
"""


def hand(index: int = 0, prompt: int = 1000) -> RouterView:
    """A view of these replicas when a request arrives."""
    view = new_view(3)
    for j, row in enumerate(HAND):
        for names, values in zip(COLUMNS, row, strict=True):
            for name, value in zip(names, values, strict=True):
                view.replica[j][name] = value
    view.replica["num_blocks"], view.replica["block_size"], view.replica["label"] = 1000, 16, np.arange(3)
    view.request["prompt"], view.request["prediction"], view.row["index"] = prompt, np.nan, index
    return view


CHOICES = {
    # Prompts left + 256 a request - generated: 2500 + 2048 - 400, 6800 + 1280 - 100, 500 + 2304 - 1800.
    "least_tokens": 2,
    # Without outputs 2500, 6800, 500.
    "least_tokens:output_weight=0": 2,
    # One token each at least: 2500 + 8, 6800 + 5, 500 + 9.
    "least_tokens:mean_output=1": 2,
    "jsq": 1,
    "power_of_d:d=3": 1,
    "power_of_d:d=9": 1,
    "least_kv": 1,
    # Seconds left 0.25 + 1.648, 0.68 + 1.18, 0.2 + 2.016 = 1.898, 1.86, 2.216; the request 0.356, 0.356, 1.424 more.
    "least_finish_time": 1,
    # 1.898 x 0.356 = 0.676, 0.662, 3.156.
    "max_weight": 1,
    # max(8, 8), max(5, 5), 9 + 6 x 1 x (0.7 - 0.5) = 10.2; with two clients 16, 10, 18 + 1.2.
    "vllm_dp": 1,
    "vllm_dp:clients=2": 1,
    # 9 - 5 in flight are in balance: the least loaded, or the smallest tree, all of which are empty: drawn, see below.
    "sglang": 1,
    "sglang:absolute=3,relative=1.5,unmatched=smallest_tree": 1,
    # 2 x (3 - 2) / 2 + 2 x 0.7 = 2.4, 0 + 1.8, 2 + 0.6 = 2.6.
    "llm_d": 2,
    # Free KV alone: 0.7, 0.9, 0.3. Running: (8 - 6) / 6, 1, 0. In flight: 1/9, 4/9, 0.
    "llm_d:queue=0": 1,
    "llm_d:queue=0,kv=0,running=1": 1,
    "llm_d:queue=0,kv=0,active=1": 1,
    # 0.5 (1 - waiting / 128).
    "llm_d:queue=0,kv=0,load=1": 2,
    # 1 - (600 + 1000) / limit is the largest.
    "llm_d:queue=0,kv=0,tokens=1": 2,
    # (4000, 8000, 1600) / 16 + 430, 530, 712 = 680, 1030, 812.
    "dynamo_kv": 0,
    # Without blocks to compute 430, 530, 712; with 1000 a request in flight 8680, 6030, 9812.
    "dynamo_kv:prefill_scale=0": 0,
    "dynamo_kv:in_flight_weight=1000": 1,
    "dynamo_kv:prefill_scale=10": 2,
    # Nobody holds a prefix: in flight 8, 5, 9. KV use 0.3, 0.1, 0.7.
    "aibrix": 1,
    "aibrix:strategy=least_request": 1,
    "aibrix:strategy=least_kv": 1,
    # Nothing sent yet; output tokens per request 400 / 8 = 50, 20, 200.
    "aibrix:strategy=throughput": 1,
    # 4000 x 431, 8000 x 531, 1600 x 713 = 1.72, 4.25, 1.14 million.
    "lmetric": 2,
    "lmetric:form=sglang": 1,
    # (700 - 130) / 8, (900 - 430) / 5, (300 - 12) / 9 = 71, 94, 32.
    "llumnix": 1,
}
"""What each router does with these replicas; in the comments what it compares."""


@pytest.mark.parametrize("spec", CHOICES)
def test_three_replicas_by_hand(spec: str) -> None:
    router = routers.make(spec)
    assert router.route(hand(), router.memory(3)) == CHOICES[spec]


@pytest.mark.parametrize("spec", CHOICES)
def test_what_is_chosen_is_a_replica_and_not_its_place(spec: str) -> None:
    router, view = routers.make(spec), hand()
    turned = hand()
    for j in range(3):
        turned.replica[j] = view.replica[(j + 1) % 3]
    assert (router.route(turned, router.memory(3)) + 1) % 3 == CHOICES[spec]


def shares(spec: str, view: RouterView | None = None) -> np.ndarray:
    """Shares of the replicas over 3000 requests, nothing else changing."""
    router, view = routers.make(spec), view or hand()
    memory, chosen = router.memory(len(view.replica)), []
    for index in range(3000):
        view.row["index"] = index
        chosen.append(router.route(view, memory))
    return np.bincount(chosen, minlength=len(view.replica)) / 3000


def test_random_takes_each_as_often_and_weighted_random_by_speed() -> None:
    assert shares("random") == pytest.approx([1 / 3] * 3, abs=0.03)
    assert shares("weighted_random") == pytest.approx([4 / 9, 4 / 9, 1 / 9], abs=0.03)


def test_weighted_random_weighs_the_mean_request() -> None:
    """Prompt tokens at 1, 1 and 4, output tokens at 1, 4 and 1: for long prompts the third is slow, else the second."""
    view = hand()
    view.replica["prefill_s"], view.replica["decode_s"] = [1.0, 1.0, 4.0], [1.0, 4.0, 1.0]
    found = shares("weighted_random:mean_prompt=1000000,mean_output=1", view)
    assert found == pytest.approx([4 / 9, 4 / 9, 1 / 9], abs=0.03)
    found = shares("weighted_random:mean_prompt=1,mean_output=1000000", view)
    assert found == pytest.approx([4 / 9, 1 / 9, 4 / 9], abs=0.03)


def test_round_robin_takes_turns() -> None:
    router = routers.make("round_robin")
    assert [router.route(hand(k), router.memory(3)) for k in range(5)] == [0, 1, 2, 0, 1]


def test_two_choices_draw_each_pair_as_often() -> None:
    """With 8, 5, 9 requests the second wins both of its pairs, the first one, the third none."""
    assert shares("power_of_d") == pytest.approx([1 / 3, 2 / 3, 0.0], abs=0.03)
    assert shares("power_of_d:d=1") == pytest.approx([1 / 3] * 3, abs=0.03)


def test_equal_replicas_are_drawn() -> None:
    view = hand()
    for j in range(3):
        view.replica[j] = view.replica[0]
        view.replica[j].label = j
    for spec in ("jsq", "least_tokens", "max_weight", "llm_d", "llumnix", "lmetric", "dynamo_kv", "power_of_d"):
        assert shares(spec, view) == pytest.approx([1 / 3] * 3, abs=0.035), spec


def test_among_replicas_without_work_max_weight_takes_the_fastest() -> None:
    view = hand()
    for name in ("prompt_left", "unpredicted", "generated", "waiting", "running"):
        view.replica[name] = 0
    view.replica["prefill_s"] = [4e-4, 1e-4, 2e-4]
    router = routers.make("max_weight")
    assert router.route(view, router.memory(3)) == 1
    view.replica[2]["prompt_left"], view.replica[2]["waiting"], view.replica[2]["unpredicted"] = 10, 1, 1
    assert router.route(view, router.memory(3)) == 1


def test_predictions_count_where_there_are_any() -> None:
    """800 predicted tokens left at the second, for two requests, against 256 at the first, for one without."""
    view = new_view(2)
    view.replica["waiting"], view.replica["unpredicted"] = [1, 2], [1, 0]
    view.replica["predicted"], view.replica["label"] = [0.0, 800.0], [0, 1]
    router = routers.make("least_tokens")
    assert router.route(view, router.memory(2)) == 0
    view.replica["generated"] = [0, 700]
    assert router.route(view, router.memory(2)) == 1


def test_vllm_counts_what_it_has_sent_since_the_report_and_begins_further_each_time() -> None:
    """Three empty engines: in turn, each with one more than waiting says; a new report makes them empty again."""
    view = new_view(3)
    view.replica["num_blocks"] = view.replica["free_blocks"] = 100
    router = routers.make("vllm_dp")
    memory = router.memory(3)
    assert [router.route(view, memory) for _ in range(4)] == [0, 1, 2, 0]
    view.row["as_of"] = 0.1
    assert [router.route(view, memory) for _ in range(2)] == [1, 2]


def test_vllm_counts_kv_beyond_half() -> None:
    """3 waiting at KV use 0.9 count 3 + 6 x 3 x 0.4 = 10.2, more than 9 at 0.2; at 0.5 they count 3."""
    view = new_view(2)
    view.replica["num_blocks"], view.replica["free_blocks"] = 100, [10, 80]
    view.replica["waiting"], view.replica["running"] = [3, 0], [0, 9]
    router = routers.make("vllm_dp")
    assert router.route(view, router.memory(2)) == 1
    view.replica["free_blocks"] = [50, 80]
    assert router.route(view, router.memory(2)) == 0


def test_sglang_fills_the_smallest_tree_while_loads_are_in_balance() -> None:
    view = new_view(2)
    view.replica["in_flight"], view.replica["label"] = [10, 60], [0, 1]
    router = routers.make("sglang:unmatched=smallest_tree")
    memory = router.memory(2)
    memory.replica.view(np.int64)[:, 0] = [900, 300]
    view.request["prompt"] = 400
    assert [router.route(view, memory) for _ in range(3)] == [1, 1, 0]
    view.replica["in_flight"] = [10, 80]  # 70 apart, and more than 1.5 times as many
    assert [router.route(view, memory) for _ in range(3)] == [0, 0, 0]
    view.replica["in_flight"] = [200, 270]  # 70 apart, but less than 1.5 times as many
    memory.replica.view(np.int64)[:, 0] = [900, 300]
    assert router.route(view, memory) == 1


def aibrix_choice(spec: str, in_flight: tuple[int, int, int], holder: int) -> int:
    """Where a request goes whose prefix one of three replicas holds."""
    router, view = routers.make(spec), hand()
    memory = router.memory(3)
    view.replica["in_flight"], memory.row[:] = in_flight, holder + 1
    return router.route(view, memory)


def test_aibrix_keeps_to_the_holder_of_a_prefix_while_loads_allow_it() -> None:
    """Mean 7 and deviation 2.65 of 5, 6, 10: at most 9.65; of 6, 6, 9 at most 7 + 1.73; 1 apart from 9 is too much."""
    spec = "aibrix:sessions=1"
    assert aibrix_choice(spec, (5, 6, 10), holder=1) == 1
    assert aibrix_choice(spec, (5, 6, 10), holder=2) == 0
    assert aibrix_choice("aibrix:sessions=1,deviations=2", (5, 6, 10), holder=2) == 2
    assert aibrix_choice(spec, (2, 3, 10), holder=1) == 1  # 8 apart are in balance
    assert aibrix_choice(spec, (1, 2, 10), holder=1) == 0  # 9 apart are not: only the least loaded one may hold it
    assert aibrix_choice(spec, (1, 2, 10), holder=0) == 0
    assert aibrix_choice("aibrix:sessions=1,gap=9", (1, 2, 10), holder=1) == 1


def test_aibrix_remembers_who_got_a_session_and_what_was_sent() -> None:
    view, router = hand(), routers.make("aibrix:sessions=1")
    memory = router.memory(3)
    assert router.route(view, memory) == 1
    view.replica["in_flight"] = [5, 6, 7]
    assert router.route(view, memory) == 1
    view.replica["generated"], view.replica["sent"] = 0, [2, 1, 4]
    throughput = routers.make("aibrix:strategy=throughput")
    memory = throughput.memory(3)
    memory.replica.view(np.int64)[:, 0] = [2000, 1001, 4001]  # 2 x 1000, 1001, 1000.25
    assert throughput.route(view, memory) == 0
    assert memory.replica.view(np.int64)[0, 0] == 3000


def test_more_choices_than_replicas_are_worth_a_line() -> None:
    assert routers.make("power_of_d:d=100").remark(2) == (
        "power_of_d:d=100: draws all of the 2 replicas there are, as jsq does"
    )
    assert not routers.make("power_of_d").remark(1)
    assert not routers.make("power_of_d:d=3").remark(3)


def test_dynamo_draws_by_the_softmax_of_its_costs() -> None:
    """Costs 680, 1030, 812 over their range of 350 at temperature 1: weights 1, e^-1, e^-0.377."""
    weights = np.exp([0.0, -1.0, -132 / 350])
    assert shares("dynamo_kv:temperature=1") == pytest.approx(weights / weights.sum(), abs=0.03)


def test_an_empty_replica_is_the_freest() -> None:
    view = hand()
    view.replica[2]["waiting"] = view.replica[2]["running"] = 0
    router = routers.make("llumnix")
    assert router.route(view, router.memory(3)) == 2


def test_a_session_stays_where_it_is_and_leaves_only_with_its_replica() -> None:
    view = hand()
    router = routers.make("session_hash:sessions=1")
    places = {router.route(hand(k), router.memory(3)) for k in range(50)}
    assert len(places) == 1
    many = routers.make("session_hash:sessions=10000")
    before = [many.route(hand(k), many.memory(3)) for k in range(300)]
    without = view.replica[:2].copy()

    def after(k: int) -> int:
        shown = hand(k)
        return many.route(shown._replace(replica=without.view(np.recarray)), many.memory(2))

    moved = [(old, after(k)) for k, old in enumerate(before)]
    assert all(old == new for old, new in moved if old != 2)
    assert {new for old, new in moved if old == 2} == {0, 1}
    assert np.bincount(before) / 300 == pytest.approx([1 / 3] * 3, abs=0.1)


@pytest.mark.parametrize("name", routers.names())
def test_every_router_says_what_it_is_and_is_made_from_its_spec(name: str) -> None:
    router = routers.make(name)
    assert router.spec == name
    assert router.runs_compiled
    assert all(isinstance(text, str) and text for text in (router.source, router.sees, router.evidence))
    assert type(router).__doc__


def test_specs_have_parameters_and_ages() -> None:
    assert routers.make("power_of_d:d=3,age=2").spec == "power_of_d:d=3,age=2.0"
    assert routers.make("jsq:age=5").report_s == 5.0
    assert [routers.make(name).report_s for name in ("jsq", "random", "vllm_dp", "llm_d")] == [0.0, 0.0, 0.1, 0.05]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("joiner", "router: expected one of random, weighted_random, .*, module:Class or FILE.py:Class, got 'joiner'"),
        ("jsq:old=1", "router 'jsq': expected one of age as name=value, got 'old=1'"),
        ("jsq:age=-1", "router 'jsq': age: expected seconds >= 0, got -1.0"),
        ("power_of_d:d=0", "router 'power_of_d': d: expected replicas >= 1, got 0"),
        ("random:seed=1", "router 'random': "),
    ],
)
def test_bad_specs_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        routers.make(spec)


OWN = '''
from dataclasses import dataclass

from engine import Router, is_better, params_of, record, router_kernel_of


@dataclass(frozen=True)
class Shortest(Router):
    """The least prompt tokens without an answer, over a weight."""

    name = "shortest"

    bias: int = 0
    """What the first replica has more."""


_params = record(params_of(Shortest))


@router_kernel_of(Shortest)
def _route(view, memory):
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        cost = float(view.replica[j].unanswered) + (_params(memory.params).bias if j == 0 else 0)
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best


@dataclass(frozen=True)
class Plain(Router):
    name = "plain"

    def route(self, view, memory):
        return int(view.replica.unanswered.argmax())


class Jsq(Router):
    name = "jsq"

    def route(self, view, memory):
        return 0


class Wrong(Router):
    name = "wrong"

    def route(self, view):
        return 0


class Nothing(Router):
    name = "nothing"
'''


def test_a_user_brings_a_router_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    compiled, plain = routers.make(f"{file}:Shortest:bias=10000"), routers.make(f"{file}:Plain")
    assert compiled.runs_compiled
    assert compiled.route(hand(), compiled.memory(3)) == 2
    assert not plain.runs_compiled
    assert plain.route(hand(), RouterMemory(np.zeros(1), np.zeros((3, 1)), np.zeros(1))) == 1
    for name, message in {
        "Jsq": "name: expected a name of its own, got that of the router 'jsq' that ships",
        "Wrong": r"route: expected route\(self, view, memory\) to be callable",
        "Nothing": "expected a route method or a kernel, found neither",
        "dataclass": "expected a class, got function",
    }.items():
        with pytest.raises(InputError, match=message):
            routers.make(f"{file}:{name}")
    with pytest.raises(InputError, match="expected the name of one of several classes"):
        routers.make(str(file))


def test_the_registry_holds_routers_only() -> None:
    assert list(ROUTERS) == routers.names()
    by_hand = {spec.partition(":")[0] for spec in CHOICES}
    assert by_hand | {"random", "weighted_random", "round_robin", "session_hash"} == set(ROUTERS)  # those above
    assert all(issubclass(cls, Router) and cls.kernel is not None for cls in ROUTERS.values())
