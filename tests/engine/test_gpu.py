"""The real executor on a tiny model: its logits and tokens are those of plain full-context forward."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import baselines
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.real.executor import TransformersExecutor, make_executor
from engine.device.real.extents import Extents
from engine.device.real.forward import compile_layers
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.server.state import Server

TIGHT = EngineConfig(num_blocks=40, block_size=4, watermark=0.0, max_num_seqs=8, max_model_len=160)


class Checked(TransformersExecutor):
    """An executor that compares every token's logits with a full-context forward of the same weights."""

    plain: torch.nn.Module
    checked = 0
    worst = 0.0

    @torch.inference_mode()
    def seconds(self, server: Server) -> float:
        """Run the batch, then everything that emitted a token again, from its first token."""
        lengths = {i: int(server.visible.request["length"][i]) for i in range(len(server.visible.request))}
        took = super().seconds(server)
        for i, logits in zip(self.emitted, self.logits, strict=True):
            text = torch.from_numpy(self._known(i)[: lengths[i]])[None]
            expected = self.plain(input_ids=text).logits[0, -1]
            self.worst = max(self.worst, float((logits - expected).abs().max()))
            assert int(expected.argmax()) == self._known(i)[lengths[i]]
            self.checked += 1
        return took


@pytest.fixture(scope="module")
def checked() -> Checked:
    """A tiny model with buffers that the requests of these tests fill several times over."""
    executor = make_executor("transformers:tiny", 400)
    executor.__class__ = Checked
    assert isinstance(executor, Checked)
    config = copy.deepcopy(executor.model.config)
    models: Any = AutoModelForCausalLM
    plain = models.from_config(config, attn_implementation="sdpa")
    plain.load_state_dict(executor.model.state_dict())
    executor.plain = plain.eval()
    return executor


@pytest.mark.parametrize(
    ("spec", "bandwidth"),
    [("sarathi:token_budget=24", 0.0), ("vllm", 0.0), ("slai:token_budget=16", 0.0), ("alise", 1e9), ("mlfq", 0.0)],
)
def test_logits_and_tokens_are_those_of_full_context(checked: Checked, spec: str, bandwidth: float) -> None:
    policy = baselines.make(spec)
    requests = Workload(arrivals="burst", num_requests=14, lengths="lognormal:2.8,0.5,3,0.5,120").generate(7)
    requests = predict(requests, policy.channel, 0) if policy.channel else requests
    config = TIGHT if not bandwidth else EngineConfig(**{**vars(TIGHT), "swap_bandwidth": bandwidth})
    checked.checked, checked.worst = 0, 0.0
    record = simulate(policy, requests, checked, config, log_steps=True)
    assert checked.checked == requests.output.sum()
    assert checked.worst < 1e-4
    assert record.steps is not None
    hybrid = {0, 1} in [set(batch[:, 2]) for batch in record.steps.batches]
    assert hybrid != (spec == "vllm"), "vLLM v0 runs prompts alone, the others do not"
    row = record.row[0]
    if bandwidth:
        assert row.swaps > 0
    elif spec.startswith(("sarathi", "vllm")):
        assert row.evictions > 0
    for i in range(len(requests)):
        assert (checked.tokens(i) >= 0).all()


def test_the_same_trace_gives_the_same_tokens_whatever_the_policy(checked: Checked) -> None:
    requests = Workload(rate=2000.0, num_requests=6, lengths="lognormal:3,0.5,2,0.5,60").generate(1)
    outputs = []
    for spec in ("sarathi", "orca"):
        simulate(baselines.make(spec), requests, checked, TIGHT)
        outputs.append(np.concatenate([checked.tokens(i) for i in range(6)]))
    assert (outputs[0] == outputs[1]).all()


def test_compiled_layers_give_the_same_tokens_and_do_not_compile_for_every_batch(checked: Checked) -> None:
    requests = Workload(arrivals="burst", num_requests=8, lengths="lognormal:2.8,0.5,2,0.5,100").generate(3)
    compiled = make_executor("transformers:tiny", 400)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(compiled.model, backend="aot_eager")
    outputs = []
    for executor in (checked, compiled):
        simulate(baselines.make("sarathi:token_budget=24"), requests, executor, TIGHT)
        outputs.append([executor.tokens(i).tolist() for i in range(len(requests))])
    assert outputs[0] == outputs[1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3, "one, and those for sizes of 0 or 1"
    assert not torch._dynamo.utils.counters["graph_break"]


def test_after_its_warm_up_an_executor_compiles_nothing() -> None:
    executor = make_executor("transformers:tiny", 20_000)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(executor.model, backend="aot_eager")
    executor.warm_up()
    known = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert known > 0
    for prefills, decodes in (
        ([(40, 0)], []),
        ([(1, 8)], [5]),
        ([(9, 0), (30, 70)], [40] * 20),
        ([], [300]),
        ([], [9] * 7),
    ):
        executor.measure(prefills, decodes, repeats=1, warmup=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == known


def test_time_is_real(checked: Checked) -> None:
    requests = Requests.create([0.0], [8], [4])
    record = simulate(baselines.make("sarathi"), requests, checked, TIGHT)
    row = record.row[0]
    assert 0.0 < row.busy < 5.0
    seconds = checked.measure([(16, 8)], [20, 30], repeats=3, warmup=1)
    assert seconds.shape == (3,)
    assert (seconds > 0.0).all()


def test_requests_beyond_the_buffers_are_one_clear_line(checked: Checked) -> None:
    with pytest.raises(InputError, match="expected requests of at most 400 tokens, got one of 402"):
        checked.start(Requests.create([0.0], [400], [2]))
    wide = EngineConfig(num_blocks=1000, max_num_seqs=8, max_model_len=400)
    requests = Requests.create([0.0, 0.0], [300, 300], [50, 50])
    with pytest.raises(InputError, match="expected at most 400 tokens of KV"):
        simulate(baselines.make("sarathi"), requests, checked, wide)
    with pytest.raises(InputError, match="expected a batch of items with tokens >= 1"):
        checked.measure([], [])
    with pytest.raises(InputError, match="expected --semantics default"):
        simulate(baselines.make("sarathi"), Requests.create([0.0], [8], [4]), checked, EngineConfig.reference())
    with pytest.raises(InputError, match="expected prefix_cache none"):
        simulate(baselines.make("sarathi"), Requests.create([0.0], [8], [4]), checked, EngineConfig(prefix_cache="own"))


def folder(path: Path, **config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_bad_specs_are_one_clear_line(tmp_path: Path) -> None:
    for spec, message in (
        ("vllm", "expected transformers, transformers:tiny or transformers:FOLDER"),
        ("transformers:tiny,speed=2", "expected transformers, transformers:tiny or"),
        ("transformers:tiny,dtype=fp8", "dtype: expected bf16 or fp32, got 'fp8'"),
        ("transformers,dtype=fp32", r"dtype: expected bf16 on CUDA \(flash attention takes no other\), got 'fp32'"),
        ("transformers:tiny,attention=fa9", "attention: expected split, joint or fa3, got 'fa9'"),
        ("transformers:tiny,attention=fa3", "attention: fa3 expected a Hopper GPU"),
        ("transformers:tiny,device=tpu", "device: expected cuda or cpu, got 'tpu'"),
        (f"transformers:{tmp_path}/none,device=cpu", "expected a folder with config.json and weights"),
        (f"transformers:{folder(tmp_path / 'a', model_type='llama')},device=cpu", "expected 'mistral', got 'llama'"),
        (f"transformers:{folder(tmp_path / 'b', model_type='mistral')},device=cpu", "cannot load"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            make_executor(spec, 100)
        assert "\n" not in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="expected a CUDA device, found none: use transformers:tiny"):
            make_executor("transformers", 100)


def test_weights_come_from_a_folder(tmp_path: Path, checked: Checked) -> None:
    checked.model.save_pretrained(tmp_path / "model")
    loaded = make_executor(f"transformers:{tmp_path}/model,device=cpu", 100)
    requests = Requests.create([0.0], [8], [6])
    tokens = []
    for executor in (checked, loaded):
        simulate(baselines.make("sarathi"), requests, executor, TIGHT)
        tokens.append(executor.tokens(0).tolist())
    assert tokens[0] == tokens[1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=40))
@settings(max_examples=50, deadline=None)
def test_extents_never_overlap(steps: list[tuple[int, int]]) -> None:
    extents, held = Extents(100), dict[int, int]()
    for request, length in steps:
        if request in held:
            extents.release(request)
            del held[request]
        elif sum(held.values()) + length > 100:
            with pytest.raises(InputError, match="expected at most 100 tokens"):
                extents.take(request, length)
        else:
            if extents.take(request, length) is None:
                moved = extents.compact()
                assert all(target < source for source, target, _ in moved)
                assert extents.take(request, length) is not None
            held[request] = length
        used = sorted((extents.start(i), extents.start(i) + held[i]) for i in extents)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(used))
        assert set(extents) == set(held)
        assert extents.used == sum(held.values())
