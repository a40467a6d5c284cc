"""The position of a job, as checkpoints store it: the same on every rank. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sharded_eden.errors import StateError, UsageError, shown
from sharded_eden.format.geometry import integer

VERSION = 1
"""The usual version of a state; 2 has an epoch; 3 belongs to rows that version 0.1 of this package would not make."""

MAX_POSITION = 1 << 62

RESTART: Literal["restart"] = "restart"
AcceptOtherData = bool | Literal["restart"]
"""Which positions of other streams are accepted: none; all, as they are; or all, as the start of a new stream at 0."""

Rows = Mapping[str, float | None]
"""What decides the tokens of a row beside its window, see `ShardedEdenDataset.rows`."""


def make_state(
    *,
    consumed_samples: int,
    seed: int,
    fingerprint: int,
    geometry: Mapping[str, int],
    rows: tuple[Rows, Rows],
    letters: int,
    shuffle: bool,
    epoch: int,
    samples_of_an_epoch: int,
) -> dict[str, Any]:
    """Return the state to save: JSON-like and rank-independent.

    `rows` are those of now and those of version 0.1, `epoch` is that of `Stream.set_epoch`, whose positions begin after `epoch`
    times `samples_of_an_epoch`. Programs that would ignore an epoch or other rows refuse the version of a state that has them.

    Raises:
        UsageError: `consumed_samples` is no position.
    """
    now, of_0_1 = rows
    state = {
        "version": VERSION + 2 if now != of_0_1 else _version(epoch),
        "consumed_samples": position_to_save(consumed_samples),
        "seed": seed,
        "fingerprint": fingerprint,
        "geometry": dict(geometry),
        "rows": dict(now),
        "letters": letters,
        "shuffle": shuffle,
    }
    return {**state, "epoch": epoch, "samples_of_an_epoch": samples_of_an_epoch} if epoch else state


def position_of(
    state: Mapping[str, Any],
    *,
    seed: int,
    fingerprint: int,
    geometry: Mapping[str, int],
    rows: tuple[Rows, Rows],
    letters: int,
    shuffle: bool,
    samples_of_an_epoch: int,
    accept_other_data: AcceptOtherData,
) -> tuple[int, int]:
    """Return the consumed samples and the epoch in a saved state, after checking that the state belongs to this stream.

    Args:
        state: what `make_state` returned, here or in version 0.1.
        seed: the seed of the stream that continues.
        fingerprint: the fingerprint of its window database.
        geometry: the geometry of its windows.
        rows: what decides its rows, and what it was in version 0.1: a state without `rows` belongs to the latter.
        letters: a digest of the ids that the tokenizer gives to letters.
        shuffle: whether the windows are shuffled. States of versions 0.1 and 0.2 have neither.
        samples_of_an_epoch: the length of the stream. Only states with an epoch have it, and not those of 0.1 and 0.2.
        accept_other_data: True takes the position of any state, "restart" is 0 where the state belongs to another stream.

    Raises:
        StateError: it is not a state, or was saved for another seed, other data, another geometry, other rows, other ids of
            letters, another order or epochs of another length; the message names both values.
    """
    position = position_in(state, "consumed_samples"), position_in(state, "epoch") if "epoch" in state else 0
    if accept_other_data is True:
        return position
    here: dict[str, Any] = {"seed": seed, "fingerprint": fingerprint, "geometry": dict(geometry)}
    added = {"letters": letters, "shuffle": shuffle, "samples_of_an_epoch": samples_of_an_epoch}
    here |= {name: value for name, value in added.items() if name in state}
    problem = _problem(state, here, rows)
    if not problem:
        return position
    if accept_other_data == RESTART:
        return 0, 0
    raise StateError(
        f"{problem}. Continue with what it was saved for, or pass accept_other_data to what loads the position "
        "(ShardedEdenDataModule, StreamBatchSampler or MegatronBatchSampler). accept_other_data=True keeps the position, "
        f"{position[0]} consumed samples, but neither the order of the windows nor their strands: some windows are seen twice "
        'and others not at all. accept_other_data="restart" begins a new stream at 0'
    )


def check_accept_other_data(value: AcceptOtherData) -> AcceptOtherData:
    """Return an argument `accept_other_data`.

    Raises:
        UsageError: it is neither a bool nor "restart".
    """
    if not isinstance(value, bool) and value != RESTART:
        raise UsageError(f"accept_other_data must be True, False or {RESTART!r}, not {shown(value)}")
    return value


def _problem(state: Mapping[str, Any], here: dict[str, Any], rows: tuple[Rows, Rows]) -> str:
    """Return why a state does not belong to a stream; empty where it does."""
    if "version" not in state:
        return (
            "the checkpoint holds a bare consumed_samples, as the original loader saves it: it does not say for which data, "
            "seed and rows, and the original visits the windows in another order"
        )
    version, expected = state["version"], [_version("epoch" in state)]
    expected += [VERSION + 2] if "rows" in state else []
    if type(version) is not int or version not in expected:
        reads = " or ".join(map(str, expected))
        return f"the checkpoint's data state has version {shown(version)}, this program reads version {reads} of such a state"
    differing = [
        f"{key} was {_quoted(state.get(key))}, is {_quoted(value)}"
        for key, value in here.items()
        if type(state.get(key)) is not type(value) or state.get(key) != value
    ]
    now, of_0_1 = rows
    saved = state.get("rows", of_0_1)
    if not isinstance(saved, Mapping):
        differing.append(f"rows was {shown(saved)}, is {_quoted(now)}")
        return f"the checkpoint belongs to another stream: {'; '.join(differing)}"
    if ("seed" in saved) != ("seed" in now):  # left out where it is the seed of the order
        saved, now = {"seed": state.get("seed"), **saved}, {"seed": here["seed"], **now}
    if saved != now:
        when = "" if "rows" in state else " in version 0.1"
        differing += [
            f"rows[{shown(key)}] was {shown(saved.get(key))}{when}, is {shown(now.get(key))}"
            for key in [*now, *sorted(set(saved) - set(now), key=str)]
            if key not in saved or key not in now or saved[key] != now[key]
        ][:8]
    return f"the checkpoint belongs to another stream: {'; '.join(differing)}" if differing else ""


def _version(has_epoch: int) -> int:
    return VERSION + bool(has_epoch)


def _quoted(value: object) -> str:
    """Return a value for a message; a geometry is not cut."""
    if not isinstance(value, Mapping) or len(value) >= 20:
        return shown(value)
    return "{" + ", ".join(f"{shown(key)}: {shown(part)}" for key, part in value.items()) + "}"


def position_to_save(consumed_samples: Any) -> int:
    """Return a position as a state holds it: an int of Python, also of a NumPy integer.

    Raises:
        UsageError: it is not an integer in [0, 2**62), which `position_in` would refuse.
    """
    position = integer(consumed_samples, "consumed_samples")
    if not 0 <= position < MAX_POSITION:
        raise UsageError(f"consumed_samples must lie in [0, 2**62), but is {shown(position)}")
    return position


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
