"""What policies and routers have in common: a frozen dataclass whose fields are the parameters."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from engine.config import EngineConfig
from engine.errors import InputError
from engine.fields import checked
from engine.spec import write_spec


@dataclass(frozen=True)
class Parametric:
    """Something with a name and parameters that a spec can write and a kernel can read."""

    noun: ClassVar[str] = ""
    """What it is, for messages."""
    name: ClassVar[str] = ""
    """Short name, as on the command line and in reports."""
    evidence: ClassVar[str] = ""
    """How sure we are that this is the published one."""
    kernel: ClassVar[Any] = None
    """Its compiled form, if there is one."""

    def __post_init__(self) -> None:
        """Check the parameters against what their fields declare: types, and ranges (`engine.ranges`); not defaults.

        Raises:
            InputError: one is of another type, not finite, or out of its range.
        """
        defaults = [f.name for f in fields(self) if getattr(self, f.name) is f.default]
        checked(self, f"{self.noun} {self.name!r}: ", untyped=defaults)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The parameters as float64, in field order (flags as 0/1); choices are encoded by `encode`."""
        return np.array([self.encode(f.name, getattr(self, f.name)) for f in fields(self)], np.float64)

    def encode(self, name: str, value: Any) -> float:
        """One parameter as a number for the kernel (without a kernel: nan for what is none).

        Raises:
            InputError: there is a kernel, and the parameter is no number.
        """
        try:
            return float(value)
        except (TypeError, ValueError):
            if self.kernel is None:
                return float("nan")
            raise InputError(
                f"{self.noun} {self.name!r}: {name}: expected a number for the kernel, or an `encode` of the class "
                f"that makes one of {value!r}"
            ) from None

    @property
    def spec(self) -> str:
        """As it is written on the command line: the name and the parameters that differ from defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return write_spec(self.name, values)
