"""Policies that predict how long their batches take: the latency profile of the device is among their parameters."""

from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar, Self

import numpy as np

from engine.config import EngineConfig
from engine.device.latency import DEFAULT_PROFILE, LatencyModel, load_profile
from engine.device.predicting import DEVICE, device_cells
from engine.server.policy import Policy


@cache
def _cells(name: str) -> np.ndarray:
    return device_cells(load_profile(name))


@dataclass(frozen=True)
class Profiled(Policy):
    """What such policies have in common."""

    profile: str = ""
    """Latency profile that predicts durations; empty: that of the device on which the policy runs."""

    _model: ClassVar[LatencyModel | None] = None

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            InputError: one is out of range, or there is no such profile.
        """
        super().__post_init__()
        _cells(self.profile or DEFAULT_PROFILE)

    def on(self, model: LatencyModel) -> Self:
        """The same policy told what it runs on, unless it was told a profile."""
        return self if self.profile else self._told(model)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The parameters in field order, then the device in the place of the profile's name (`params_on_device`)."""
        told = [self.encode(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "profile"]
        return np.concatenate([told, self.device()])

    @property
    def predictor(self) -> LatencyModel:
        """The latency model that predicts."""
        return self._model or load_profile(self.profile or DEFAULT_PROFILE)

    def device(self) -> np.ndarray:
        """The numbers of the device as a record of DEVICE."""
        return device_cells(self._model) if self._model else _cells(self.profile or DEFAULT_PROFILE)


def params_on_device(policy: type[Profiled]) -> np.dtype:
    """The record of such a policy's parameters: one "f8" for each field but the profile, which is its numbers, last."""
    return np.dtype([*((f.name, "f8") for f in fields(policy) if f.name != "profile"), ("profile", DEVICE)], align=True)
