"""Which split each sample (or contig) goes to: a keyed hash of the names gives the order, the shares of bases the borders.

Input: names and bases. Output: {name: split}. No file is read.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from hashlib import blake2b

from sharded_eden.errors import UsageError, shown

MOST_OF_SHARE = 1.5
"""A sample that would take a split above this multiple of its share is skipped while a smaller one is left."""


def assign_groups(
    bases: Mapping[str, int],
    shares: Mapping[str, float],
    seed: int,
    fixed: Mapping[str, str],
    group_of: Mapping[str, str],
    listed: Collection[str],
) -> dict[str, str]:
    """Return the split of every sample (or contig); those of one group have the same.

    Args:
        bases: the bases of each.
        shares: as for `assign`.
        seed: as for `assign`.
        fixed: those whose split is known.
        group_of: the group of each; empty where there are none.
        listed: the splits that a file lists: nothing else goes there.

    Raises:
        UsageError: the splits that are known already divide a group, a listed split would get others, or the
            sequence databases have changed meanwhile.
    """
    if not group_of:
        return assign(bases, shares, seed, fixed)
    if bases.keys() != group_of.keys():
        name = min(bases.keys() ^ group_of.keys())
        raise UsageError(
            f"the sequence databases hold other samples or contigs than a moment ago, {shown(name)} for example"
        )
    group_bases: dict[str, int] = {}
    for name, count in bases.items():
        group_bases[group_of[name]] = group_bases.get(group_of[name], 0) + count
    group_fixed: dict[str, tuple[str, str]] = {}
    for name, split in fixed.items():
        known, first = group_fixed.setdefault(group_of[name], (split, name))
        if known != split:
            raise UsageError(
                f"{shown(first)} is in {known} and {shown(name)} in {split} already, but they are in one group of similar "
                "sequences. Write to another folder, name all of the group in one list, or raise --threshold"
            )
    for name in bases.keys() - fixed.keys():
        known, first = group_fixed.get(group_of[name], ("", ""))
        if known in listed:
            raise UsageError(
                f"{shown(name)} resembles {shown(first)}, which is named in --{known}-samples. Name both there, or raise "
                "--threshold"
            )
    splits = assign(group_bases, shares, seed, {group: split for group, (split, _) in group_fixed.items()})
    return {name: splits[group_of[name]] for name in bases}


def share_of(name: str, seed: int) -> float:
    """Return the number in [0, 1) by which samples or contigs are ordered: a hash of the name, keyed by the seed."""
    digest = blake2b(
        name.encode(), digest_size=8, key=repr(operator.index(seed)).encode(), person=b"eden split"
    ).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign(
    bases: Mapping[str, int], shares: Mapping[str, float], seed: int, fixed: Mapping[str, str]
) -> dict[str, str]:
    """Return the split of every sample (or contig): {name: train, val or test}.

    Args:
        bases: the bases of each.
        shares: the share of bases wanted in val and in test; 0 assigns nothing to it.
        seed: another seed gives another order.
        fixed: those whose split is known.
    """
    split_of = dict(fixed)
    rest = sorted((name for name in bases if name not in fixed), key=lambda name: (share_of(name, seed), name))
    total = sum(bases.values())
    taken = dict.fromkeys(("train", "val", "test"), 0)
    for name, split in fixed.items():
        taken[split] += bases[name]
    occupied = set(fixed.values())
    to_fill = [split for split in ("val", "test") if shares[split] > 0]
    for i, split in enumerate(to_fill):
        reserved = len({*to_fill[i + 1 :], "train"} - occupied)  # one sample for each split that has none yet
        chosen = _choose(rest, bases, taken[split], shares[split] * total, len(rest) - reserved, split not in occupied)
        split_of |= dict.fromkeys(chosen, split)
        rest = [name for name in rest if name not in chosen]
    return split_of | dict.fromkeys(rest, "train")


def _choose(
    rest: list[str], bases: Mapping[str, int], taken: int, target: float, most: int, is_empty: bool
) -> set[str]:
    """Return at most `most` names of `rest` that take a split from `taken` bases to its target."""
    chosen: set[str] = set()
    for name in rest:
        if len(chosen) >= most or (taken >= target and (chosen or not is_empty)):
            break
        if taken + bases[name] <= MOST_OF_SHARE * target:
            chosen.add(name)
            taken += bases[name]
    if len(chosen) < most and (taken < target or (is_empty and not chosen)):  # all others are large
        chosen.add(min((name for name in rest if name not in chosen), key=bases.__getitem__))
    return chosen
