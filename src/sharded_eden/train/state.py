"""The position of a job, as checkpoints store it: the same on every rank. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharded_eden.errors import StateError, shown

VERSION = 1
MAX_POSITION = 1 << 62


def make_state(
    *, consumed_samples: int, seed: int, fingerprint: int, geometry: Mapping[str, int], epoch: int = 0
) -> dict[str, Any]:
    """Return the state to save: JSON-like and rank-independent.

    `epoch` is that of `Stream.set_epoch`. A state with an epoch other than 0 has version 2, which earlier programs refuse.
    """
    state = {
        "version": VERSION,
        "consumed_samples": consumed_samples,
        "seed": seed,
        "fingerprint": fingerprint,
        "geometry": dict(geometry),
    }
    return {**state, "version": VERSION + 1, "epoch": epoch} if epoch else state


def consumed_samples_of(
    state: Mapping[str, Any], *, seed: int, fingerprint: int, geometry: Mapping[str, int], accept_other_data: bool
) -> int:
    """Return the position in a saved state, after checking that the state belongs to this stream.

    Args:
        state: what `make_state` returned.
        seed: the seed of the stream that continues.
        fingerprint: the fingerprint of its window database.
        geometry: the geometry of its windows.
        accept_other_data: take the position whatever else the state says.

    Raises:
        StateError: it is not a state, or was saved for another seed, other data or another geometry; the message names both
            values.
    """
    consumed = position_in(state, "consumed_samples")
    if accept_other_data:
        return consumed
    cure = "Go on with what it was saved for, or pass accept_other_data=True to take its position as it is."
    if "version" not in state:
        raise StateError(
            "the checkpoint holds a bare consumed_samples, as the original loader saves it: it does not say for which data, "
            f"seed and order, and the original's order was another one. {cure}"
        )
    expected = VERSION + 1 if "epoch" in state else VERSION
    if type(state["version"]) is not int or state["version"] != expected:
        raise StateError(
            f"the checkpoint's data state has version {shown(state['version'])}, this program reads version {VERSION}. {cure}"
        )
    here = {"seed": seed, "fingerprint": fingerprint, "geometry": dict(geometry)}
    differing = [key for key in here if type(state.get(key)) is not type(here[key]) or state.get(key) != here[key]]
    if differing:
        raise StateError(
            "the checkpoint belongs to another stream: "
            + "; ".join(f"{key} was {_quoted(state.get(key))}, is {_quoted(here[key])}" for key in differing)
            + f". {cure}"
        )
    return consumed


def _quoted(value: object) -> str:
    """Return a value for a message; a geometry is not cut."""
    if not isinstance(value, dict) or len(value) >= 20:
        return shown(value)
    return "{" + ", ".join(f"{shown(key)}: {shown(part)}" for key, part in value.items()) + "}"


def epoch_of(state: Mapping[str, Any]) -> int:
    """Return the epoch in a saved state, 0 where it has none.

    Raises:
        StateError: it is not an integer of at least 0.
    """
    return position_in(state, "epoch") if "epoch" in state else 0


def position_in(state: Mapping[str, Any], key: str) -> int:
    """Return an integer of at least 0 from a saved state.

    Raises:
        StateError: the state is not a dict, or holds anything else under this key.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"the checkpoint's data state must be a dict, not {shown(state)}")
    value = state.get(key)
    if type(value) is not int or not 0 <= value < MAX_POSITION:
        raise StateError(f"the checkpoint's data state holds no position: {key}={shown(value)}")
    return value
