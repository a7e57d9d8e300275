"""`--from aiconfigurator`: kernels that NVIDIA measured, from the tables of aiconfigurator-core.

An iteration is composed of the linear layers at the sum of its tokens, the head at the number of its requests, the
attention of each chunk and that of the decodes at their mean context: kernels launched one after the other. Only the
kernels were measured, at locked clocks; chunks behind a context are scaled from whole prompts (much too cheap where a
short chunk stands behind a long context), and the host's time is not in it.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import Any

from agents.device.importing.model import FILE, read_config, shape_of
from agents.device.importing.source import Imported, Importing, composed
from engine.device.fitting import Batch
from engine.errors import InputError
from engine.extras import need

SAME_AS = {"MistralForCausalLM": "LlamaForCausalLM"}
"""Architectures that the package does not know, and the same layers under a name that it does."""
BLOCK_TOKENS = 16
MEMORY_SHARE, LARGEST_BATCH, MOST_REQUESTS = 0.9, 2048, 256
"""What estimates of the KV blocks assume: vLLM's share of the memory, tokens and requests of a batch."""
CHUNKS_BEHIND = (512, 2048)
"""Chunks of fewer tokens behind a longer context are composed too cheap."""
METHOD = (
    "kernels measured at locked clocks, iterations composed; chunks behind a context scaled from whole prompts (too "
    f"cheap below {CHUNKS_BEHIND[0]} tokens behind more than {CHUNKS_BEHIND[1]}); host time not included; KV blocks by "
    "estimate_num_gpu_blocks"
)
NOT_LINEAR = ("context_attention", "context_logits_gemm")


class Kernels:
    """Seconds of iterations from the package's tables."""

    def __init__(self, folder: str, options: Importing, version: str) -> None:
        sdk = "aiconfigurator_core.sdk"
        self._engine = import_module(f"{sdk}.engine").EngineHandle.compile(
            folder, options.system, options.backend, backend_version=version, tp_size=options.tp
        )
        shards = {"attention_dp_size": 1, "moe_tp_size": 1, "moe_ep_size": 1}
        config = import_module(f"{sdk}.config_builders").build_model_config(tp_size=options.tp, pp_size=1, **shards)
        model = import_module(f"{sdk}.models").get_model(folder, config, options.backend)
        chunk, decode = ([op._name for op in ops] for ops in (model.context_ops, model.generation_ops))
        self._linear = [k for k, name in enumerate(chunk) if name not in NOT_LINEAR]
        self._chunk = [chunk.index("context_attention")]
        self._decode, self._head = [decode.index("generation_attention")], [decode.index("generation_logits_gemm")]
        self._seconds = cache(self._evaluated)

    def seconds(self, batch: Batch) -> float:
        """Seconds of one batch."""
        requests, decodes = len(batch.prefills) + len(batch.decodes), len(batch.decodes)
        parts = [("linear", 1, batch.tokens, 0), ("head", requests, 1, 0)]
        parts += [("chunk", 1, n, context) for n, context in batch.prefills]
        if decodes:
            parts.append(("decode", decodes, max(1, round(sum(batch.decodes) / decodes)), 0))
        return sum(self._seconds(*part) for part in parts)

    def _evaluated(self, part: str, count: int, tokens: int, context: int) -> float:
        """Seconds of one part of an iteration."""
        if part in ("linear", "chunk"):
            ops = self._linear if part == "linear" else self._chunk
            rows = self._engine.evaluate_context_ops(ops, batch_size=count, s=tokens, prefix=context)
        else:
            ops = self._head if part == "head" else self._decode
            rows = self._engine.evaluate_generation_ops(ops, batch_size=count, s=tokens)
        return float(sum(row[1] for row in rows)) / 1e3


def _tables() -> Path:
    return Path(str(resources.files("aiconfigurator_core"))) / "systems" / "data"


def systems(backend: str) -> list[str]:
    """Devices with measured attention of an engine."""
    return sorted(path.parents[1].name for path in _tables().glob(f"*/attention/{backend}"))


def backends() -> list[str]:
    """Engines with measured attention on some device."""
    return sorted({path.name for path in _tables().glob("*/attention/*") if path.is_dir()})


def _version(options: Importing) -> str:
    """The version of the engine whose tables are read.

    Raises:
        InputError: no such device, engine or version; lists what there is.
    """
    if options.backend not in backends():
        raise InputError(f"backend: expected one of {', '.join(backends())}, got {options.backend!r}")
    if options.system not in systems(options.backend):
        got = "none" if options.system is None else repr(options.system)
        raise InputError(f"system: expected one of {', '.join(systems(options.backend))}, got {got}")
    slots = (
        import_module("aiconfigurator_core.sdk.perf_database").get_version_slots(options.system, options.backend) or {}
    )
    version = slots.get("current") if options.version is None else options.version
    if version not in slots.values():
        raise InputError(f"version: expected one of {', '.join(dict.fromkeys(slots.values()))}, got {version!r}")
    return str(version)


@contextlib.contextmanager
def _as_known(config: dict[str, Any]) -> Iterator[str]:
    """A folder with the config.json of a model under a name that the package knows; it says nothing meanwhile."""
    names = [SAME_AS.get(name, name) for name in config.get("architectures") or ()]
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder, quiet[0], quiet[1]:
            (Path(folder) / FILE).write_text(json.dumps({**config, "architectures": names}), encoding="utf-8")
            yield folder
    finally:
        logging.disable(before)


def read(data: Path, options: Importing) -> Imported:
    """Compose the grid from the package's tables.

    Raises:
        InputError: the package is not installed, knows no such device or engine, or cannot take the model.
    """
    need("aiconfigurator", "fit --from aiconfigurator")
    version = _version(options)
    if options.model is None:
        raise InputError(f"model: expected the {FILE} of a model, got none")
    config = read_config(options.model)
    shape = shape_of(config, str(options.model))
    with _as_known(config) as folder:
        try:
            points, blocks = composed(Kernels(folder, options, version)), _num_blocks(folder, options, version)
        except Exception as error:  # the package raises what it likes
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"{options.model}: aiconfigurator cannot compose this model ({said})") from None
    package = metadata.version("aiconfigurator-core")
    return Imported(
        points,
        {
            "device": f"{options.system}, {options.tp} x" if options.tp > 1 else options.system,
            "model": shape.to_dict(),
            "model_name": "/".join(config.get("architectures") or ["not stated"]),
            "tp": options.tp,
            "engine": f"{options.backend} {version}",
            "attention": "separate launches for prompts and decodes",
            "source": f"aiconfigurator-core {package} (Apache-2.0), tables of {options.system}",
            "method": METHOD,
            "validity": {"chunks_behind": CHUNKS_BEHIND},
            "num_blocks": blocks,
        },
    )


def _num_blocks(folder: str, options: Importing, version: str) -> int:
    """KV blocks that the engine would find memory for."""
    return int(
        import_module("aiconfigurator_core.sdk").estimate_num_gpu_blocks(
            folder,
            options.system,
            options.backend,
            version,
            scheduler_block_size=BLOCK_TOKENS,
            max_num_tokens=LARGEST_BATCH,
            max_batch_size=MOST_REQUESTS,
            memory_fraction_kind="of_total",
            memory_fraction_value=MEMORY_SHARE,
            tp_size=options.tp,
        )
    )
