"""`EngineConfig`: the limits and the semantics of one LLM server."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.fields import checked
from engine.ranges import Count, Seconds, number, whole


@dataclass(frozen=True)
class EngineConfig:
    """Limits and semantics of the simulated (or real) server; every field can be set on the command line."""

    block_size: Count = 16
    """Tokens per KV block."""
    num_blocks: Count = 14_000
    """KV blocks on the device (14 000 x 16 tokens: Mistral-7B on a 48 GB RTX 6000 Ada; a command's default is what its
    profile says)."""
    watermark: Annotated[float, number(0.0, 1.0, below=True, noun="a share")] = 0.01
    """Share of the blocks that admission of a new request leaves free."""
    max_num_seqs: Count = 128
    """Requests that may hold KV at the same time."""
    max_batched_tokens: Count = 65_536
    """Tokens that one iteration may process."""
    max_model_len: Count = 16_384
    """Longest prompt + output in tokens; a request that reaches it ends there, its prompt must be shorter."""
    swap_bandwidth: Annotated[float, number(0.0, 1e15, noun="bytes/s")] = 0.0
    """Bytes per second between device and host, each way; 0: KV cannot be swapped (25e9: PCIe 4.0 x16)."""
    swap_space_gib: Annotated[float, number(0.0, 1e6, noun="GiB")] = 4.0
    """Memory of the host for swapped KV, GiB (4: the default of vLLM v0)."""
    kv_bytes_per_token: Annotated[int, whole(1, 2**40)] = 131_072
    """Bytes of KV per token (Mistral-7B: 32 layers x 8 heads x 128 x 2 x 2 bytes; else what the profile says)."""
    decision_s: Seconds = 0.0
    """Time charged to the clock for each scheduling decision, seconds."""
    decision_per_request_s: Seconds = 0.0
    """Additional time charged for each request in the batch, seconds."""
    prompt_emits: bool = True
    """The iteration that finishes a prompt emits output token 1 (real engines); otherwise the next decode does."""
    eviction_keeps_output: bool = True
    """An evicted request keeps the tokens it delivered; otherwise it generates its full output again."""
    decode_needs_free_block: bool = False
    """A decode is scheduled only while some block is free, needed or not (the public SLAI code tests this)."""
    replans_at_once: bool = True
    """After a plan that only evicts or drops, plan again at the same time; otherwise at the next arrival."""
    prefix_cache: Literal["none", "own"] = "none"
    """What a request finds of its KV after an eviction: nothing, or the full blocks at its beginning that nobody has
    taken since ("own": the prefix cache that vLLM has by default, where prompts share nothing)."""
    async_scheduling: bool = False
    """A batch is planned while the one before it runs, as vLLM does by default: arrivals meanwhile wait for another,
    and what a finished request held comes free one later."""
    ttft_at: Literal["first_token", "prompt_done"] = "first_token"
    """Event that ends TTFT: output token 1, or the last time that the prompt was completed."""
    zero_gaps: bool = False
    """Count two gaps of 0 s per completed prompt, and no gap before token 1 (the public SLAI code's TBT)."""

    def __post_init__(self) -> None:
        """Check every limit.

        Raises:
            InputError: a field is of another type, or a limit out of range.
        """
        checked(self, "engine.")

    @property
    def watermark_blocks(self) -> int:
        """Blocks that admission leaves free: int(watermark x num_blocks)."""
        return int(self.watermark * self.num_blocks)

    @property
    def capacity_tokens(self) -> int:
        """Tokens of KV that fit on the device."""
        return self.num_blocks * self.block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block."""
        return self.block_size * self.kv_bytes_per_token

    @property
    def host_half_blocks(self) -> int:
        """Half KV blocks that the host has room for; 0 where swapping is off."""
        return int(2 * self.swap_space_gib * 2**30 / self.block_bytes) if self.swap_bandwidth > 0.0 else 0

    @property
    def half_block_s(self) -> float:
        """Seconds to move half a KV block between device and host; 0 where swapping is off."""
        return 0.5 * self.block_bytes / self.swap_bandwidth if self.swap_bandwidth > 0.0 else 0.0

    @property
    def max_request_tokens(self) -> int:
        """Longest prompt + output that can be served: the model's limit, or the KV above the watermark."""
        return min(self.max_model_len, self._admitted_tokens)

    @property
    def _admitted_tokens(self) -> int:
        """Tokens of the KV above the watermark."""
        return (self.num_blocks - self.watermark_blocks) * self.block_size

    def served_output(self, prompt: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Output tokens that requests of these lengths get, int64[n]: they end where they reach max_model_len.

        In the reference semantics (an evicted request generates everything again) they grow past it.
        """
        wanted: npt.NDArray[np.int64] = output.astype(np.int64)
        return np.minimum(wanted, self.max_model_len - prompt) if self.eviction_keeps_output else wanted

    def unservable(self, prompt: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which requests of these lengths can never be served, bool[n].

        Those whose prompt leaves no room for a token within max_model_len, and those that would hold more KV than
        there is above the watermark before they end. The one rule, for whoever refuses them or leaves them out.
        """
        total = prompt.astype(np.int64) + self.served_output(prompt, output)
        bad: npt.NDArray[np.bool_] = (prompt >= self.max_model_len) | (total > self.max_request_tokens)
        return bad

    def required_of(self, prompt: int) -> str:
        """What `unservable` expects of a request with this prompt that it does not find served, in words."""
        if not self.eviction_keeps_output:
            return f"prompt + output <= {self.max_request_tokens} tokens"
        if prompt >= self.max_model_len:
            return f"prompt < {self.max_model_len} tokens (max_model_len)"
        return f"prompt + output <= {self.max_request_tokens} tokens (KV above the watermark)"

    @classmethod
    def reference(cls, **changes: object) -> "EngineConfig":
        """The semantics of the public SLAI code (agrimUT/SLAI 5098a7a), which the golden traces follow.

        Finishing a prompt emits nothing, an evicted request generates everything again, TTFT ends at the last
        prompt completion, a decode needs a free block, and each completed prompt adds zero gaps to the TBT samples.
        """
        preset: dict[str, object] = {
            "max_model_len": 8192,
            "prompt_emits": False,
            "eviction_keeps_output": False,
            "decode_needs_free_block": True,
            "replans_at_once": False,
            "ttft_at": "prompt_done",
            "zero_gaps": True,
        }
        return cls(**(preset | changes))  # type: ignore[arg-type]

    def replace(self, **changes: object) -> "EngineConfig":
        """A copy with some fields changed.

        Raises:
            InputError: a name is not a field, or the new values do not fit.
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"engine: unknown field {name!r}, known: {', '.join(known)}")
        return replace(self, **changes)  # type: ignore[arg-type]
