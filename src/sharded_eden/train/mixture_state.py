"""The position of a job on a mixture, as checkpoints store it. What the job has passed must not change; the rest may. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from sharded_eden.errors import EdenError, StateError, shown
from sharded_eden.train.schedule import Skips
from sharded_eden.train.state import RESTART, AcceptOtherData, position_in, position_to_save

MIXTURE_VERSION = 4
"""The version of a state of a mixture: programs that know only streams of one dataset refuse it."""


class Past(NamedTuple):
    """The mixture that continues."""

    identity: Mapping[str, Any]
    """See `Mixture.identity`."""
    names: list[str]
    samples_of_an_epoch: int


def make_mixture_state(
    identity: Mapping[str, Any], names: list[str], consumed_samples: int, epoch: int, samples_of_an_epoch: int
) -> dict[str, Any]:
    """Return the state to save: JSON-like and rank-independent."""
    sources = [{"name": name, **source} for name, source in zip(names, identity["sources"], strict=True)]
    consumed = position_to_save(consumed_samples)
    state = {"version": MIXTURE_VERSION, "consumed_samples": consumed, **identity, "sources": sources}
    return {**state, "epoch": epoch, "samples_of_an_epoch": samples_of_an_epoch} if epoch else state


def position_of_mixture(state: Mapping[str, Any], here: Past, *, accept_other_data: AcceptOtherData) -> tuple[int, int]:
    """Return the consumed samples and the epoch in a saved state, after comparing its past with a mixture.

    Args:
        state: what `make_mixture_state` returned, or `make_state` for a stream of one dataset.
        here: the mixture that continues.
        accept_other_data: True takes the position of any state, "restart" is 0 where the state belongs to another mixture.

    Raises:
        StateError: it is not a state, or its past is not that of the mixture; the message names both values.
    """
    position = position_in(state, "consumed_samples"), position_in(state, "epoch") if "epoch" in state else 0
    if accept_other_data is True:
        return position
    problem = _problem(state, here, *position)
    if not problem:
        return position
    if accept_other_data == RESTART:
        return 0, 0
    raise StateError(
        f"{problem}. Phases, skipped ranges and new sources may be added where they begin at or after the position of the "
        "checkpoint; what is before it must stay. Or pass accept_other_data to what loads the position: True keeps the "
        f"position, {position[0]} consumed samples, but not the rows before it: some are seen twice and others not at all. "
        '"restart" begins a new stream at 0'
    )


def _problem(state: Mapping[str, Any], here: Past, consumed: int, epoch: int) -> str:
    """Return why a state does not belong to a mixture; empty where it does."""
    if state.get("version") != MIXTURE_VERSION:
        try:
            state = _of_one_source(state, here.identity["sources"][0]["strand_seed"] is not None)
        except (KeyError, TypeError):
            return (
                f"the checkpoint's data state has version {shown(state.get('version'))}: it is not one of a mixture "
                f"(version {MIXTURE_VERSION}), nor one of a stream of one dataset that says for which rows"
            )
    try:
        return _compared(state, here, consumed, epoch)
    except (LookupError, TypeError, ValueError, AttributeError, EdenError, ArithmeticError) as error:
        return f"the checkpoint's data state of a mixture is damaged ({shown(str(error))})"


def _of_one_source(state: Mapping[str, Any], draws: bool) -> dict[str, Any]:
    """Return the state of a stream of one dataset as that of a mixture.

    Args:
        state: what `make_state` returned.
        draws: the rows of the first source depend on a seed. Where those of the state do not, its `rows` differ.
    """
    if state["version"] not in {1, 2, 3} or not isinstance(state["rows"], Mapping):
        raise TypeError
    source = {name: value for name, value in state.items() if name not in _NOT_OF_A_SOURCE}
    if source.get("shuffle") is True:
        del source["shuffle"]  # any other value is a difference
    source["rows"] = dict(state["rows"])
    strand_seed = source["rows"].pop("seed", state["seed"])
    source["strand_seed"] = strand_seed if draws else None
    epochs = {name: state[name] for name in ("samples_of_an_epoch",) if name in state}
    return {
        "seed": state["seed"],
        "sources": [{"name": "source 0", **source}],
        "phases": [[0, [1]]],
        "skip": [],
        **epochs,
    }


_NOT_OF_A_SOURCE = {"version", "consumed_samples", "seed", "epoch", "samples_of_an_epoch"}


def _compared(state: Mapping[str, Any], here: Past, consumed: int, epoch: int) -> str:
    if state["seed"] != here.identity["seed"]:
        return f"the checkpoint belongs to another stream: seed was {shown(state['seed'])}, is {here.identity['seed']}"
    if epoch and "samples_of_an_epoch" in state and state["samples_of_an_epoch"] != here.samples_of_an_epoch:
        return (
            f"an epoch was {shown(state['samples_of_an_epoch'])} samples, is {here.samples_of_an_epoch}: the positions of "
            f"epoch {epoch} would be others"
        )
    counted = epoch * here.samples_of_an_epoch + consumed
    if not isinstance(state["skip"], list | tuple):
        raise TypeError(f"skip is {shown(state['skip'])}")
    skips = Skips(state["skip"])
    done = skips.place([counted - 1])[0] + 1 if counted else 0
    left_out, leaves_out = (
        [each for each in ranges if each[0] < done] for ranges in (skips.ranges, Skips(here.identity["skip"]).ranges)
    )
    if left_out != leaves_out:
        return (
            f"the job has passed position {done}, and its past differs: skip was {shown(left_out)} before it, is "
            f"{shown(leaves_out)}"
        )
    phases, own = state["phases"], here.identity["phases"]
    before, of_own = ([phase for k, phase in enumerate(each) if k == 0 or phase[0] < done] for each in (phases, own))
    if [phase[0] for phase in before] != [phase[0] for phase in of_own]:
        return (
            f"the job has passed position {done}, and its past differs: phases began at "
            f"{shown([phase[0] for phase in before])} before it, now at {shown([phase[0] for phase in of_own])}"
        )
    saved, sources = state["sources"], here.identity["sources"]
    names = [source.get("name", f"source {k}") for k, source in enumerate(saved)]
    for k in range(max(len(saved), len(sources))):
        name = here.names[k] if k < len(sources) else names[k]
        shares = [(_share(then, k), _share(now, k), then[0]) for then, now in zip(before, of_own, strict=True)]
        for then, now, begin in shares:
            if then != now:
                return (
                    f"the job has passed position {done}, and its past differs: the share of {shown(name)} from position "
                    f"{begin} on was {then}, is {now}"
                )
        if any(then for then, _, _ in shares) and (difference := _differing(saved[k], sources[k])):
            return f"the checkpoint belongs to another stream: {difference} of {shown(name)}"
    return ""


def _share(phase: Any, k: int) -> Fraction:
    """Return the share of a source in a phase of a state; 0 where the phase does not know it."""
    weights = phase[1]
    return Fraction(weights[k], sum(weights)) if k < len(weights) else Fraction(0)


def _differing(saved: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """Return which part of a source differs; its name does not count."""
    for key in [*source, *sorted(set(saved) - set(source) - {"name"}, key=str)]:
        if key == "letters" and key not in saved:
            continue  # as version 0.2 saved it
        was, now = saved.get(key), source.get(key)
        if was == now and type(was) is type(now):
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            part = next(
                part for part in [*now, *was] if was.get(part) != now.get(part) or (part in was) != (part in now)
            )
            return f"{shown(key)}[{shown(part)}] was {shown(was.get(part))}, is {shown(now.get(part))}: that"
        return f"{shown(key)} was {shown(was)}, is {shown(now)}: that"
    return ""
