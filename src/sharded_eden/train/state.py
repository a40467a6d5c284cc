"""The position of a job: all that a checkpoint needs of the data, the same on every rank. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharded_eden.errors import StateError

VERSION = 1


def make_state(*, consumed_samples: int, seed: int, fingerprint: int, geometry: Mapping[str, int]) -> dict[str, Any]:
    """Return the state to save: JSON-like, rank-independent."""
    return {
        "version": VERSION,
        "consumed_samples": consumed_samples,
        "seed": seed,
        "fingerprint": fingerprint,
        "geometry": dict(geometry),
    }


def consumed_samples_of(
    state: Mapping[str, Any], *, seed: int, fingerprint: int, geometry: Mapping[str, int], accept_other_data: bool
) -> int:
    """Return the position in a saved state, once it is known to belong to this stream.

    Args:
        state: what `make_state` returned.
        seed: the seed of the stream that is to go on.
        fingerprint: the fingerprint of its window database.
        geometry: the geometry of its windows.
        accept_other_data: take the position whatever else the state says.

    Raises:
        StateError: it was saved for another seed, other data or another geometry; names both values.
    """
    consumed = state.get("consumed_samples")
    if not isinstance(consumed, int) or consumed < 0:
        raise StateError(f"the checkpoint's data state holds no position: consumed_samples={consumed!r}")
    if accept_other_data:
        return consumed
    cure = "Go on with what it was saved for, or pass accept_other_data=True to take its position as it is."
    if "version" not in state:
        raise StateError(
            "the checkpoint holds a bare consumed_samples, as the original loader saves it: it does not say for which data, "
            f"seed and order, and the original's order was another one. {cure}"
        )
    if state["version"] != VERSION:
        raise StateError(
            f"the checkpoint's data state has version {state['version']}, this program reads version {VERSION}. {cure}"
        )
    here = {"seed": seed, "fingerprint": fingerprint, "geometry": dict(geometry)}
    differing = [key for key in here if state.get(key) != here[key]]
    if differing:
        raise StateError(
            "the checkpoint belongs to another stream: "
            + "; ".join(f"{key} was {state.get(key)!r}, is {here[key]!r}" for key in differing)
            + f". {cure}"
        )
    return consumed
