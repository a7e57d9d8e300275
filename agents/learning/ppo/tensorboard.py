"""TensorBoard: its event files, also of runs that were interrupted, and the page that shows what belongs together."""

import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

SLO_METRICS = ("median_ttft_s", "p99_ttft_s", "p99_tbt_s", "attainment")
"""What is shown of each tier."""
EVENTS = "events.out.tfevents."
"""How the names of TensorBoard's files begin; the second of their making follows."""


class _Events(TensorBoardOutputFormat):
    """TensorBoard's event file of one session; readers forget what earlier ones wrote from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        hides = first_step > 0 or any(folder.glob(f"{EVENTS}*"))
        self.writer = SummaryWriter(str(folder), purge_step=first_step if hides else None)
        self._is_closed = False


def tensorboard_logger(folder: Path, first_step: int) -> Logger:
    """A logger that writes TensorBoard events, hiding what an interrupted run wrote from `first_step` on."""
    _let_names_sort(folder)
    return Logger(folder=str(folder), output_formats=[_Events(folder, first_step)])


def _let_names_sort(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second: no two sessions in one."""
    seconds = [int(part) for path in folder.glob(f"{EVENTS}*") if (part := path.name.split(".")[3]).isdecimal()]
    latest, begun = max(seconds, default=0), time.time()
    while int(time.time()) <= latest and time.time() < begun + 2.0:
        time.sleep(0.02)


def scalar_layout(tiers: list[str], terms: list[str], rivals: tuple[str, ...]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom-scalars page: deadlines by tier, margins over the baselines, reward terms that count."""

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", list(tags)]

    layout = {
        "Service levels": {m: lines(*(f"slo/{tier}/{m}" for tier in tiers)) for m in SLO_METRICS},
        "Reward": {"terms of one step": lines(*(f"reward/{term}" for term in terms))},
    }
    if rivals:
        layout["Margin over baselines"] = {
            what: lines(*(f"margin/{name}/{what}" for name in rivals)) for what in ("ttft", "return")
        }
    return layout


def writers(logger: Logger) -> list[SummaryWriter]:
    """What a logger writes TensorBoard's files with, for what SB3 has no record of."""
    return [output.writer for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
