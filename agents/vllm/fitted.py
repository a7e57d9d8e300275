"""The profile of an engine, fitted to what its scheduler logged."""

from pathlib import Path

from agents.device.importing import vllm_log
from agents.device.importing.source import Importing
from engine.device import fitting
from engine.device.latency import LatencyModel


def profile_of(log: Path, name: str) -> LatencyModel:
    """The profile that fits what a scheduler logged; all batches together take as long in it as they did.

    Raises:
        InputError: too few batches.
    """
    imported = vllm_log.read(log, Importing())
    model = fitting.fit(imported.points, name, imported.provenance)
    took = sum(point.seconds for point in imported.points)
    return model.scaled(took / float(fitting.predicted(model, imported.points).sum()))
