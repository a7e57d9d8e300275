"""The profile of an engine, fitted to what its scheduler logged."""

import tempfile
from pathlib import Path

from agents.device.importing import vllm_log
from agents.device.importing.source import Importing
from engine.device import fitting
from engine.device.latency import LatencyModel


def profile_of(log: str, name: str) -> LatencyModel:
    """The profile that fits what a scheduler logged (the text); all batches together take as long in it as they did.

    Raises:
        InputError: too few batches.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.csv"
        file.write_text(log)
        imported = vllm_log.read(file, Importing())
    model = fitting.fit(imported.points, name, imported.provenance)
    took = sum(point.seconds for point in imported.points)
    return model.scaled(took / float(fitting.predicted(model, imported.points).sum()))
