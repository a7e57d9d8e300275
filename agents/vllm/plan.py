"""What an A/B in a vLLM engine runs: policies, loads and seeds, on a model with random weights."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from agents.policies import resolve
from agents.vllm.settings import STOCK, Settings
from engine.demand.requests import Requests
from engine.demand.tiers import parse_tiers
from engine.demand.workload import Workload
from engine.device.latency import DEFAULT_PROFILE, load_profile
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import read_json, read_mapping
from engine.ranges import Count, Rate, Seconds, number, whole

_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32768,
}
SHAPES: dict[str, dict[str, Any]] = {
    "mistral-7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "qwen-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1024,
    },
}
"""Models whose weights are drawn at random: only their shapes matter."""
MODEL_LEN = 8448
"""Longest prompt and output of an engine of ours, unless the plan says otherwise."""
PROBED = "probe"
"""In place of a profile: the one that is fitted to a probe of the engine (`agents.vllm.probe`) before policies run."""
PROFILE = "profile.json"
"""Its name in the folder of an A/B."""
PLAIN = "plain"
"""In place of a policy: vLLM without our scheduler, in an engine of its own."""


@dataclass(frozen=True)
class Cell:
    """One policy at one load, for one seed."""

    policy: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """An A/B."""

    policies: tuple[str, ...]
    """Specs of policies, stock, plain, names of variants."""
    rates: tuple[Rate, ...]
    """Arrival rates, requests/s."""
    seeds: tuple[Annotated[int, whole(0)], ...] = (0,)
    """Each draws lengths, tiers and arrivals, the same for every policy."""
    num_requests: Count = 200
    """Requests of a cell."""
    model: str = "mistral-7b"
    """mistral-7b, qwen-0.5b, tiny, or a folder with a config.json."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs."""
    profile: str = DEFAULT_PROFILE
    """Latency profile that the policies are told: a name, a file, or probe."""
    lengths: str = "openchat_sharegpt4"
    """Prompt and output lengths, as in a workload."""
    tiers: tuple[dict[str, Any], ...] = ()
    """Tiers of the users, as in a workload; the default ones if empty."""
    margin: Annotated[float, number(0.0, 1.0, below=True)] = 0.0
    """Of the scheduler's settings (`agents.vllm.settings.Settings`)."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Cells that differ in one setting: a name among the policies, and what the scheduler is told otherwise than it
    would be ({"slackfit-0": {"policy": "slackfit", "margin": 0.0}})."""
    limit_s: Seconds = 540.0
    """The whole A/B ends by then; finished cells stay, and another run goes on behind them."""

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """The plan in a JSON file.

        Raises:
            InputError: it is not there, or has a key or a value that does not fit.
        """
        return from_mapping(cls, read_json(path, "plan of an A/B"), f"{path}")

    def check(self) -> None:
        """Make sure that every cell can be run, before a server starts.

        Raises:
            InputError: no policy, no load, an unknown policy or one that needs predictions, a variant that nobody asks
                for, lengths, tiers, profile or model that there are not.
        """
        for name in ("policies", "rates", "seeds"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected at least one, got none")
        for name in self.variants:
            if name not in self.policies or name in (STOCK, PLAIN):
                raise InputError(f"variants: expected names among the policies, got {name!r}")
            if self.settings(name).profile == PROBED != self.profile:
                raise InputError(f"variants.{name}: profile: expected a name or a file ({PROBED} is for a whole plan)")
        for name in self.policies:
            self._check_policy(self.settings(name))
        self.workload(self.rates[0])
        self.vocabulary()

    def _check_policy(self, settings: Settings) -> None:
        if settings.policy not in (STOCK, PLAIN) and resolve(settings.policy).channel:
            raise InputError(f"policy {settings.policy!r}: expected one without predictions, got one that needs them")
        if settings.profile != PROBED:
            load_profile(settings.profile)

    def cells(self) -> list[Cell]:
        """All cells, those that belong together one after the other."""
        return [Cell(policy, rate, seed) for seed in self.seeds for rate in self.rates for policy in self.policies]

    def workload(self, rate: float) -> Workload:
        """The requests of one load."""
        tiers = parse_tiers(self.tiers)
        return Workload(rate=rate, num_requests=self.num_requests, lengths=self.lengths, tiers=tiers)

    def requests(self, cell: Cell) -> Requests:
        """The requests of a cell, the same for each policy."""
        return self.workload(cell.rate).generate(cell.seed)

    def knowing(self, place: Path) -> "Plan":
        """The plan with what was fitted to a probe, in a folder, in place of `PROBED`."""
        return replace(self, profile=str((place / PROFILE).absolute())) if self.profile == PROBED else self

    def settings(self, policy: str = STOCK, label: str = "") -> Settings:
        """What the scheduler is told, for one of the policies.

        Raises:
            InputError: a variant that does not fit.
        """
        told = {"policy": policy, "profile": self.profile, "tiers": self.tiers, "margin": self.margin, "label": label}
        return from_mapping(Settings, told | self.variants.get(policy, {}), f"variants.{policy}")

    def is_plain(self, policy: str) -> bool:
        """Whether one of the policies is vLLM without our scheduler."""
        return self.settings(policy).policy == PLAIN

    def vocabulary(self) -> int:
        """Tokens that the model knows.

        Raises:
            InputError: it is neither one of `SHAPES` nor a folder with a config.json that says so.
        """
        place = Path(self.model) / "config.json"
        shape = SHAPES.get(self.model) or read_mapping(place, "the shape of a model")
        return int(whole(4, 2**24).check(shape.get("vocab_size"), f"{place}: vocab_size"))

    def model_folder(self, scratch: Path) -> Path:
        """The folder of the model, made if it is one of `SHAPES`."""
        if self.model not in SHAPES:
            return Path(self.model)
        folder = scratch / self.model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_MISTRAL | SHAPES[self.model]))
        return folder
