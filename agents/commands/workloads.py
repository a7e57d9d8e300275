"""`llmsched workloads`: where requests can come from."""

from dataclasses import dataclass

from engine.predictions import channel_descriptions
from engine.workload import length_descriptions, workload_descriptions

TRACES = {
    "lengths csv": "num_prefill_tokens,num_decode_tokens; arrivals are drawn (--rate)",
    "timed lengths csv": "arrived_at,num_prefill_tokens,num_decode_tokens (s)",
    "Azure csv": "TIMESTAMP,ContextTokens,GeneratedTokens",
    "BurstGPT csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "Mooncake jsonl": "timestamp (ms), input_length, output_length",
}


def _block(title: str, lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join([title, *(f"    {name:<{width}}{text}" for name, text in lines.items())])


@dataclass(frozen=True)
class Command:
    """List the workloads, length models, prediction channels and trace formats."""

    def run(self) -> None:
        """Print them."""
        print(_block("Arrivals, as --workload name:key=value,...", workload_descriptions()))
        print()
        print(_block("Lengths, as --workload poisson:lengths=...", length_descriptions()))
        print()
        print(_block("Predictions of output lengths, as --prediction name:key=value,...", channel_descriptions()))
        print()
        print(_block("Trace files, as --trace FILE", TRACES))
