"""The settings of vLLM that are tried, as specs of `vllm_v1` and as options of `vllm serve`."""

from dataclasses import dataclass
from itertools import product

from baselines.vllm_v1 import CLASSES
from engine.config import EngineConfig

TOKENS = (256, 384, 512, 640, 768, 1024, 1536, 2048, 4096, 8192)
"""max_num_batched_tokens."""
SEQS = (32, 64, 128, 256, 1024)
"""max_num_seqs."""
WATERMARKS = (0.0, 0.02, 0.05, 0.1)
THRESHOLDS = (0, 512, 2048)
"""long_prefill_token_threshold; one that no batch reaches is left out."""


@dataclass(frozen=True)
class Setting:
    """Values of vLLM's options of these names."""

    max_num_batched_tokens: int
    max_num_seqs: int
    watermark: float = 0.0
    long_prefill_token_threshold: int = 0

    @property
    def further(self) -> dict[str, float]:
        """Options that are not what vLLM does without them."""
        options = {
            "watermark": self.watermark,
            "long_prefill_token_threshold": float(self.long_prefill_token_threshold),
        }
        return {name: value for name, value in options.items() if value}

    @property
    def options(self) -> dict[str, str]:
        """The options to give, by their names."""
        size = {"max_num_batched_tokens": self.max_num_batched_tokens, "max_num_seqs": self.max_num_seqs}
        return {name: f"{value:g}" for name, value in {**size, **self.further}.items()}

    @property
    def spec(self) -> str:
        """The policy that takes vLLM's decisions with these settings."""
        return "vllm_v1:" + ",".join(f"{name}={value}" for name, value in self.options.items())

    @property
    def command(self) -> str:
        """The command line of vLLM 0.32 with these settings."""
        flags = (f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())
        return " ".join(("vllm serve MODEL", *flags))


def grid(server: EngineConfig) -> tuple[Setting, ...]:
    """Every setting that is tried on a server, the plainest first.

    vLLM does not start with a budget of fewer tokens than sequences.
    """
    seats = sorted({min(seqs, server.max_num_seqs) for seqs in SEQS}, reverse=True)
    found = (Setting(*values) for values in product(TOKENS, seats, WATERMARKS, THRESHOLDS))
    fitting = (one for one in found if one.max_num_seqs <= one.max_num_batched_tokens <= server.max_batched_tokens)
    effective = (one for one in fitting if one.long_prefill_token_threshold < one.max_num_batched_tokens)
    return tuple(sorted(effective, key=lambda one: len(one.further)))


def default_setting(gpu: str) -> Setting:
    """What vLLM takes on a class of GPUs where nobody says anything."""
    return Setting(*CLASSES[gpu])
