"""The memory for KV of a device that runs one model, as the provenance of its profile says it."""

from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError

MEMORY = ("num_blocks", "kv_bytes_per_token")
"""Limits of a server that follow from the device and the model: entries of a provenance, fields of `EngineConfig`."""


def server_of(model: LatencyModel, server: EngineConfig | None = None) -> EngineConfig:
    """A server with the KV blocks and the bytes per token of a profile; what that does not say stays as it is.

    Args:
        model: the profile.
        server: everything else (None: the default).

    Raises:
        InputError: the profile says something impossible.
    """
    said = {name: model.provenance[name] for name in MEMORY if model.provenance.get(name) is not None}
    try:
        return (server or EngineConfig()).replace(**said)
    except InputError as error:
        raise InputError(f"profile {model.name!r}: provenance: {error}") from None


def default_server(executor: object) -> EngineConfig:
    """The server where nobody says one: with the memory of the device, if it is the model of one.

    Raises:
        InputError: the profile says something impossible.
    """
    return server_of(executor) if isinstance(executor, LatencyModel) else EngineConfig()


def moved(server: EngineConfig, old: LatencyModel, new: LatencyModel) -> EngineConfig:
    """The server on another device: what of its memory was the old device's own becomes the new one's.

    Raises:
        InputError: a profile says something impossible.
    """
    before, after = server_of(old), server_of(new)
    own = [name for name in MEMORY if getattr(server, name) == getattr(before, name)]
    return server.replace(**{name: getattr(after, name) for name in own})
