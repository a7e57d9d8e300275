"""The importer of aiconfigurator's tables: on a package of that name whose seconds are known, and on the real one."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.cli import main
from agents.device.importing import aiconfigurator
from agents.device.importing.source import Importing
from engine.device.fitting import Batch
from engine.device.latency import load_profile
from engine.errors import InputError

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
SDK = {
    "sdk/__init__.py": """
def estimate_num_gpu_blocks(model, system, backend, version, **options):
    return options["max_num_tokens"] // options["tp_size"]
""",
    "sdk/config_builders.py": "build_model_config = dict",
    "sdk/perf_database.py": """
def get_version_slots(system, backend):
    return {"current": "1.0", "previous": "0.9"}
""",
    "sdk/models.py": """
import json, pathlib, types
def get_model(folder, config, backend):
    if json.loads(pathlib.Path(folder, "config.json").read_text())["architectures"] != ["LlamaForCausalLM"]:
        raise RuntimeError("an architecture\\nthat is not known")
    def ops(names):
        return [types.SimpleNamespace(_name=name) for name in names.split()]
    return types.SimpleNamespace(
        context_ops=ops("context_mlp context_attention context_logits_gemm context_sum"),
        generation_ops=ops("generation_attention generation_logits_gemm"),
    )
""",
    "sdk/engine.py": """
class EngineHandle:
    @classmethod
    def compile(cls, folder, system, backend, backend_version, tp_size):
        print("much to say")
        found = cls()
        found.tp = tp_size
        return found
    def evaluate_context_ops(self, ops, batch_size, s, prefix=0):
        cost = {0: 5 + 0.02 * s / self.tp, 1: 1e-6 * s * (s / 2 + prefix), 3: 0.5}
        return [(op, cost[op], "measured") for op in ops]
    def evaluate_generation_ops(self, ops, batch_size, s):
        return [(op, {0: 1e-4 * batch_size * s, 1: 0.01 * batch_size}[op], "measured") for op in ops]
""",
}
"""A package with the calls that are used; its times are ms."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put that package where imports find it; gives a folder with a model."""
    home = tmp_path / "site" / "aiconfigurator_core"
    for place in ("one_gpu/attention/vllm", "one_gpu/attention/sglang", "two_gpu/attention/sglang", "none/gemm/vllm"):
        (home / "systems/data" / place).mkdir(parents=True)
    for name, text in {"__init__.py": "", **SDK}.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)
    about = tmp_path / "site" / "aiconfigurator_core-7.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: 7.0\n")
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("aiconfigurator_core")}
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("aiconfigurator_core")]:
        del sys.modules[name]
    sys.modules.update(kept)


def test_an_iteration_is_the_sum_of_its_kernels(package: Path) -> None:
    found = aiconfigurator.read(Path(), Importing(model=package, system="one_gpu", tp=2))
    seconds = {point.batch: point.seconds for point in found.points}
    assert seconds[Batch((), (1024,) * 32)] == pytest.approx(1e-3 * (5.5 + 0.01 * 32 + 0.32 + 1e-4 * 32 * 1024))
    mixed = 5.5 + 0.01 * 288 + 0.01 * 33 + 1e-6 * 256 * (128 + 2048) + 1e-4 * 32 * 512
    assert seconds[Batch(((256, 2048),), (512,) * 32)] == pytest.approx(1e-3 * mixed)
    said = found.provenance
    assert (said["engine"], said["num_blocks"], said["device"]) == ("vllm 1.0", 1024, "one_gpu, 2 x")
    assert said["source"].startswith("aiconfigurator-core 7.0 ")


def test_the_command_makes_a_profile_of_them(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"fit --from aiconfigurator --system one_gpu --version 0.9 --tp 4 --model {package} --out {package}/p.json"
    assert main(line.split()) == 0
    assert "much to say" not in "".join(capsys.readouterr())
    model = load_profile(f"{package}/p.json")
    assert model.provenance["residuals"]["held-out mixed"]["mape"] < 3.0
    assert model.provenance["kv_bytes_per_token"] == 131_072 // 4
    assert model.provenance["engine"] == "vllm 0.9"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "system: expected one of one_gpu, got none"),
        ({"system": "none"}, "system: expected one of one_gpu, got 'none'"),
        ({"system": "two_gpu", "backend": "vllm"}, "system: expected one of one_gpu, got 'two_gpu'"),
        ({"system": "x", "backend": "sglang"}, "system: expected one of one_gpu, two_gpu, got 'x'"),
        ({"system": "one_gpu", "backend": "tgi"}, "backend: expected one of sglang, vllm, got 'tgi'"),
        ({"system": "one_gpu", "version": "2"}, "version: expected one of 1.0, 0.9, got '2'"),
        ({"system": "one_gpu"}, "model: expected the config.json of a model, got none"),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_there_is_is_listed(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        aiconfigurator.read(Path(), Importing(**options))  # type: ignore[arg-type]
    assert str(caught.value) == said


def test_what_the_package_refuses_is_one_line(package: Path) -> None:
    (package / "config.json").write_text(json.dumps(MISTRAL | {"architectures": ["NewForCausalLM"]}))
    with pytest.raises(InputError) as caught:
        aiconfigurator.read(Path(), Importing(model=package, system="one_gpu"))
    said = str(caught.value)
    assert said.endswith("aiconfigurator cannot compose this model (an architecture that is not known)")


def test_kernels_of_an_h100_are_composed(tmp_path: Path) -> None:
    pytest.importorskip("aiconfigurator_core", reason="the extra aiconfigurator is not installed")
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    found = aiconfigurator.read(Path(), Importing(model=tmp_path, system="h100_sxm"))
    seconds = {point.batch: point.seconds for point in found.points}
    assert seconds[Batch((), (1024,) * 32)] == pytest.approx(8.03e-3, rel=0.01)
    assert found.provenance["num_blocks"] == 28072
