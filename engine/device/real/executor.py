"""`TransformersExecutor`: a server's batches on a real model, `MistralForCausalLM` of `transformers`, in real time.

One forward runs a whole hybrid batch, prompt chunks and decodes of many requests. Tokens are real: prompts are drawn at
random, outputs are the model's own (greedy), as many as the trace says. Random weights of the same shape take the same
time as trained ones. Needs torch, as the modules beside it do and nothing else in `engine`: import it only to run it.
"""

import contextlib
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import MistralConfig
from transformers import __version__ as transformers_version

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.fitting import Clock
from engine.device.real.attention import NAME, PAGE, load_kernel
from engine.device.real.clock import DeviceClock
from engine.device.real.extents import Extents
from engine.device.real.forward import (
    GRAPH_SIZES,
    WARM_UP,
    DecodeGraph,
    Item,
    compile_layers,
    logits_of,
    pack,
    to_device,
    unpack,
)
from engine.device.real.models import DTYPES, MISTRAL_7B, TINY, build, enough_memory, from_folder
from engine.device.real.placing import place, set_threads
from engine.errors import InputError
from engine.server.state import RUNNING, Server, load, new_server
from engine.spec import Spec

_FORMS = "transformers, transformers:tiny or transformers:FOLDER, then dtype=, device=, attention= and threads="

ROOM = 1.5
"""KV buffers in KV tokens of the server: blocks hold what a request has generated so far, extents its whole output."""
CLOCK_TRIES = 4
"""Runs of a batch, at most, until the GPU does not wait for its host."""


class TransformersExecutor:
    """An `engine.device.latency.Executor` that runs each batch and returns the seconds that it took.

    The scheduler's KV blocks stay logical. Physically each running request has an extent for its prompt and its whole
    output; requests that together need more than the buffers are an error. An eviction gives the extent back, a swap
    copies it to the host's memory.
    """

    real_time: ClassVar[bool] = True

    def __init__(self, model: Any, capacity_tokens: int, name: str = "transformers", seed: int = 0) -> None:
        """Put KV buffers beside a model that was built with this module's attention.

        Args:
            model: a `MistralForCausalLM` (`build` makes one).
            capacity_tokens: KV tokens that the buffers hold.
            name: for reports.
            seed: draws the prompts.

        Raises:
            InputError: the device has no memory for the buffers.
        """
        self.model, self.name, self.seed = model.eval(), name, seed
        self.device = next(model.parameters()).device
        self.extents = Extents(capacity_tokens, PAGE)
        self.emitted: list[int] = []
        """Requests that got a token in the latest batch."""
        self.logits = torch.empty(0)
        """Their logits, [emitted, vocabulary]."""
        self._caches: list[torch.Tensor] = []
        config = model.config
        # The last page is for padding.
        shape = (self.extents.size + PAGE, config.num_key_value_heads, config.head_dim)
        with enough_memory(f"KV buffers of {capacity_tokens} tokens"):
            for layer in model.model.layers:
                for cache in ("k_cache", "v_cache"):
                    zeros = torch.zeros(shape, dtype=model.dtype, device=self.device)
                    layer.self_attn.register_buffer(cache, zeros, persistent=False)
                self._caches += [layer.self_attn.k_cache, layer.self_attn.v_cache]
        self._graphs: dict[int, DecodeGraph] = {}
        self._requests: Requests | None = None
        self._text: dict[int, np.ndarray] = {}
        self._host: dict[int, list[torch.Tensor]] = {}
        self._evictions: dict[int, int] = {}
        self._clock: DeviceClock | None = None
        if self.device.type == "cuda":
            compile_layers(model)
            self.warm_up()

    def start(self, requests: Requests) -> None:
        """Forget every earlier run and get ready for this trace.

        Raises:
            InputError: a request does not fit the buffers or the model's positions.
        """
        length = int((requests.prompt.astype(np.int64) + requests.output).max())
        limit = min(self.extents.size, int(self.model.config.max_position_embeddings))
        if length > limit:
            raise InputError(f"executor {self.name}: expected requests of at most {limit} tokens, got one of {length}")
        self.extents = Extents(self.extents.size, PAGE)
        self._requests = requests
        self._text, self._host, self._evictions = {}, {}, {}

    def seconds(self, server: Server) -> float:
        """Run the batch in ``server.plan`` (already through `begin`) and return its duration in seconds.

        Raises:
            InputError: the buffers are too small for the requests that run, or semantics in which the last prompt
                iteration emits no token or evictions take tokens back.
        """
        begin = time.perf_counter()
        row = server.visible.row[0]
        if not (row.prompt_emits and row.eviction_keeps_output):
            raise InputError(
                f"executor {self.name}: expected --semantics default (prompt_emits, eviction_keeps_output)"
            )
        if row.finds_own:
            raise InputError(f"executor {self.name}: expected prefix_cache none (it keeps no KV that was evicted)")
        self._release(server)
        entry = server.plan.entry[: server.plan.size[0]]
        entry = entry[entry["tokens"] > 0]
        state = server.visible.request[entry["request"]]
        is_chunk = state["prefilled"] < state["prompt"]
        order = np.argsort(is_chunk, kind="stable")
        entry, state, is_chunk = entry[order], state[order], is_chunk[order]
        before = np.where(is_chunk, state["prefilled"], state["length"] - 1)
        emits = ~is_chunk | (before + entry["tokens"] == state["prompt"])
        ids, items = [], []
        columns = (column.tolist() for column in (entry["request"], before, entry["tokens"], state["evictions"]))
        for i, done, n, evictions in zip(*columns, strict=True):
            ids.append(self._known(i)[done : done + n])
            items.append((self._extent(i), done, n))
            self._evictions[i] = evictions
        new = self._forward(np.concatenate(ids), items, int((~is_chunk).sum()), emits)
        self.emitted = entry["request"][emits].tolist()
        lengths = state["length"][emits]
        for i, length, token in zip(self.emitted, lengths.tolist(), new.tolist(), strict=True):
            self._text[i][length] = token
        return time.perf_counter() - begin

    def tokens(self, i: int) -> np.ndarray:
        """Output tokens of request `i`, int64[output]; -1 where not generated."""
        assert self._requests is not None
        return self._known(i)[int(self._requests.prompt[i]) :].copy()

    def prompt(self, i: int) -> np.ndarray:
        """Prompt tokens of request `i`, int64[prompt]."""
        assert self._requests is not None
        return self._known(i)[: int(self._requests.prompt[i])].copy()

    def measure(
        self,
        prefills: Sequence[tuple[int, int]],
        decodes: Sequence[int],
        repeats: int = 5,
        warmup: int = 2,
        clock: Clock = "wall",
    ) -> np.ndarray:
        """Seconds of one made-up batch, run several times.

        Args:
            prefills: (new tokens, KV tokens before) of each prompt chunk.
            decodes: KV tokens that each decode reads, its own included.
            repeats: measured runs.
            warmup: runs before them that do not count.
            clock: wall, or device: without the time in which a GPU waits for its host; then a run in which it may have
                waited all the same is made again, a few times.

        Returns:
            float64[repeats], s.

        Raises:
            InputError: an empty batch, one that the buffers do not hold, or a clock that the device has not.
        """
        if clock == "device" and self.device.type != "cuda":
            raise InputError(f"executor {self.name}: clock: expected wall on a CPU, got {clock!r}")
        parts = [(context - 1, 1) for context in decodes] + [(context, n) for n, context in prefills]
        if not parts or min(min(n, 1 + done) for done, n in parts) < 1:
            raise InputError(f"executor {self.name}: expected a batch of items with tokens >= 1, got {parts}")
        server = self._made_up(parts, len(decodes))
        self._clock = DeviceClock() if clock == "device" else None
        try:
            with enough_memory(f"a batch of {sum(n for _, n in parts)} tokens"):
                seconds = [self._timed(server) for _ in range(warmup + repeats)]
        finally:
            self._clock = None
        return np.array(seconds[warmup:])

    def _timed(self, server: Server) -> float:
        """Seconds of a made-up batch by the clock in use."""
        for _ in range(CLOCK_TRIES):
            seconds = TransformersExecutor.seconds(self, server)
            if self._clock is None:
                break
            seconds = self._clock.seconds()
            if not self._clock.waited:
                break
        return seconds

    def warm_up(self) -> None:
        """Compile and capture what batches need, so that no run pays for it."""
        for prefills, decodes in WARM_UP:
            if 8 * PAGE * (len(prefills) + len(decodes)) <= self.extents.size:
                self.measure(prefills, decodes, repeats=1, warmup=1)

    def _made_up(self, parts: Sequence[tuple[int, int]], decodes: int) -> Server:
        """A server about to run items of (KV tokens before, new tokens), the first so many of them decodes."""
        done, new = np.array(parts, np.int64).T
        decoding = np.arange(len(parts)) < decodes
        prompt = np.where(decoding & (done > 0), done, done + new)  # a decode of 1 KV token: its own prompt
        requests = Requests.create(np.zeros(len(parts)), prompt, 1 + decoding)
        self.start(requests)
        for i in range(len(parts)):
            self._known(i)[prompt[i] :] = 0
        server = new_server(len(parts), len(requests.tiers), 0)
        load(server, EngineConfig(), requests)
        state, entry = server.visible.request, server.plan.entry
        state["status"], state["prefilled"], state["length"] = RUNNING, np.where(decoding, prompt, done), done + new
        server.plan.size[0] = len(parts)
        entry["request"][: len(parts)], entry["tokens"][: len(parts)] = np.arange(len(parts)), new
        return server

    def provenance(self) -> dict[str, Any]:
        """Device, model and versions that a measurement belongs to."""
        cuda = self.device.type == "cuda"
        config = self.model.config
        return {
            "executor": self.name,
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine(),
            "threads": None if cuda else torch.get_num_threads(),
            "model": {key: getattr(config, key, None) for key in MISTRAL_7B if key != "rope_theta"},
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": config._attn_implementation.removeprefix(f"{NAME}_") if cuda else "sdpa",
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "transformers": transformers_version,
        }

    def _known(self, i: int) -> np.ndarray:
        """Prompt and output of a request, -1 where not generated yet."""
        if i not in self._text:
            assert self._requests is not None
            prompt, output = int(self._requests.prompt[i]), int(self._requests.output[i])
            text = np.full(prompt + output, -1, np.int64)
            text[:prompt] = np.random.default_rng([self.seed, i]).integers(self.model.config.vocab_size, size=prompt)
            self._text[i] = text
        return self._text[i]

    def _release(self, server: Server) -> None:
        """Follow what happened to the KV since the last batch: who left, was evicted or swapped."""
        held = list(self.extents)
        columns = (server.visible.request[name][held].tolist() for name in ("status", "host", "evictions"))
        for i, status, host, evictions in zip(held, *columns, strict=True):
            if status != RUNNING and host > 0:
                r = server.visible.request[i]
                start, count = self.extents.start(i), int(r.prefilled + r.length - r.prompt)
                self._host[i] = [cache[start : start + count].to("cpu", copy=True) for cache in self._caches]
                self.extents.release(i)
            elif status != RUNNING or evictions != self._evictions[i]:
                self.extents.release(i)

    def _extent(self, i: int) -> int:
        """Start of a request's KV, taken (and filled from the host) if it has none."""
        if i in self.extents:
            return self.extents.start(i)
        length = len(self._known(i))
        start = self.extents.take(i, length)
        if start is None:
            for source, target, count in self.extents.compact():
                for cache in self._caches:
                    cache[target : target + count] = cache[source : source + count].clone()
            start = self.extents.take(i, length)
            assert start is not None
        if i in self._host:
            for cache, saved in zip(self._caches, self._host.pop(i), strict=True):
                cache[start : start + len(saved)] = saved.to(self.device)
        return start

    @torch.inference_mode()
    def _forward(self, ids: np.ndarray, items: Sequence[Item], decodes: int, emits: np.ndarray) -> np.ndarray:
        """Run a batch; returns the greedy tokens of the items that emit one, int64[emitted]."""
        if self.device.type == "cuda" and decodes == len(items) <= GRAPH_SIZES[-1]:
            size = next(size for size in GRAPH_SIZES if size >= decodes)
            if size not in self._graphs:
                self._graphs[size] = DecodeGraph(self.model, size, self.extents.size)
            launch = partial(self._graphs[size].run, ids, items)
        else:
            packed, sizes = pack(ids, items, np.cumsum([n for _, _, n in items])[emits] - 1)
            launch = partial(self._launch, packed, len(ids), len(items), decodes, *sizes)
        with self._clock or contextlib.nullcontext():
            self.logits = launch()
            tokens = self.logits.argmax(-1)
        return tokens.cpu().numpy()

    def _launch(self, packed: np.ndarray, *sizes: int) -> torch.Tensor:
        """Logits of a batch as `pack` and `unpack` describe it."""
        return logits_of(self.model, *unpack(to_device(packed, self.device), *sizes))


def make_executor(spec: str, capacity_tokens: int, seed: int = 0) -> TransformersExecutor:
    """Build an executor from its spec.

    Args:
        spec: ``transformers`` (Mistral-7B with random weights on CUDA), ``transformers:tiny`` (a small model of the
            same architecture, on the CPU) or ``transformers:FOLDER``; then ``,dtype=bf16|fp32`` and
            ``,device=cuda|cpu`` if the defaults (bf16 on CUDA, fp32 on a CPU) do not fit; ``,attention=`` a kernel of
            `engine.device.real.attention` on CUDA (split); ``,threads=N`` for torch on a CPU (of the whole process;
            tiny: 1, which neighbours on the machine disturb least).
        capacity_tokens: KV tokens of the buffers (ROOM times what the scheduler may use).
        seed: draws weights and prompts.

    Raises:
        InputError: another spec, no such device or folder, a dtype that does not fit, not enough memory.
    """
    whole = Spec.parse(spec, ",")
    model_spec = Spec.parse(whole.name)
    if model_spec.name != "transformers":
        raise InputError(f"executor: expected {_FORMS}; got {spec!r}")
    source, options = model_spec.rest, whole.settings("executor", ("dtype", "device", "attention", "threads"), _FORMS)
    device, dtype = place(source, options)
    if device == "cpu":
        set_threads(options.get("threads", "1" if source == "tiny" else ""))
    kernel = options.get("attention", "split")
    load_kernel(kernel, device)
    if source in ("", "tiny"):
        model = build(MistralConfig(**(TINY if source else MISTRAL_7B)), DTYPES[dtype], device, seed, kernel)
    else:
        model = from_folder(Path(source), DTYPES[dtype], device, kernel)
    return TransformersExecutor(model, capacity_tokens, spec, seed)
