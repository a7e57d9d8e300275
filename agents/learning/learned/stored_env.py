"""The environment of a training as a bundle keeps it: plain data, and the length table that a file of a user's held.

A bundle can be moved to a machine where that file is not: its environment then draws from the table in the bundle.
Lengths that are drawn from rows of data are kept as their joint quantiles.
"""

from dataclasses import replace
from typing import Any

from engine.demand.length_models import EmpiricalLengths, table_names
from engine.demand.lengths import JointQuantileTable, LengthModel, measure_table
from engine.errors import InputError
from engine.files.reading import kind_of
from llmsched_env.config import EnvConfig

_BINS = 20


def to_stored(env: EnvConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The environment as plain data, and its length table where that is not one of the package's.

    Raises:
        InputError: a length model that is neither a name nor a table nor data.
    """
    lengths = env.workload.lengths
    if isinstance(lengths, str) and (lengths in table_names() or not lengths.endswith(".json")):
        return env.to_dict(), None
    if isinstance(lengths, str) and bool(getattr(env.workload, "trace", None)):
        return env.to_dict(), None
    table = _table(env.workload.length_model)
    named = replace(env, workload=replace(env.workload, lengths="fixed:1,1")).to_dict()
    named["workload"]["lengths"] = table.name
    return named, table.to_dict()


def _table(model: LengthModel) -> JointQuantileTable:
    if isinstance(model, JointQuantileTable):
        return model
    if isinstance(model, EmpiricalLengths) and len(model) >= 2:
        return measure_table(
            model.prompt,
            model.output,
            name=model.name,
            source=model.description,
            licence="that of the user's data",
            bins=min(_BINS, len(model) // 2),
        )
    raise InputError(f"env.workload.lengths: expected a name, a table or rows to save, got {kind_of(model)}")


def from_stored(data: Any, table: Any) -> EnvConfig:
    """The environment that `to_stored` gave.

    Raises:
        InputError: something else.
    """
    if table is None:
        return EnvConfig.from_dict(data)
    model = JointQuantileTable.from_dict(table, "length_table")
    workload = data.get("workload") if isinstance(data, dict) else None
    if not isinstance(workload, dict) or not isinstance(workload.get("lengths"), str):
        raise InputError("env.workload.lengths: expected the name of the length table")
    env = EnvConfig.from_dict(data | {"workload": workload | {"lengths": "fixed:1,1"}})
    return replace(env, workload=replace(env.workload, lengths=model))
