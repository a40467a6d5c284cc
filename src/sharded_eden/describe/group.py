"""`Group`: what `stats` counts of a set of contigs (all, those of a sample, those with a tag)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sharded_eden.describe.lengths import LengthDistribution
from sharded_eden.describe.letters import LetterCounts
from sharded_eden.describe.windows import WindowCounts
from sharded_eden.errors import EdenError
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.schema import control_name, extract_sample_id

By = Literal["sample", "tag"]

NO_SAMPLE = "(no sample in the ID)"


@dataclass(kw_only=True, eq=False)
class Group:
    """Counts of a set of contigs."""

    lengths: LengthDistribution = field(default_factory=LengthDistribution)
    letters: LetterCounts | None = None
    """None where no bases were read."""
    windows: WindowCounts | None = None
    """None where contigs were not cut into windows."""

    @property
    def all_windows(self) -> WindowCounts:
        """The windows of contigs that are cut into windows."""
        return cast("WindowCounts", self.windows)

    def merge(self, other: Group) -> None:
        """Add the contigs of another group."""
        self.lengths.merge(other.lengths)
        if other.letters is not None:
            self.letters = self.letters or LetterCounts()
            self.letters.merge(other.letters)
        if other.windows is not None:
            self.windows = self.windows or WindowCounts(geometry=other.windows.geometry)
            self.windows.merge(other.windows)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **self.lengths.as_dict(),
            "composition": None if self.letters is None else self.letters.as_dict(),
            "windows": None if self.windows is None else self.windows.as_dict(),
        }


class Groups:
    """All contigs as one group, and by sample or tag.

    Args:
        by: what to group by; None for only the total.
        geometry: how contigs are cut into windows; None where they are not.
    """

    def __init__(self, by: By | None, geometry: WindowGeometry | None = None) -> None:
        self._by = by
        self._geometry = geometry
        self.total = self._new()
        self.by_name: dict[str, Group] = {}

    def _new(self) -> Group:
        return Group(windows=None if self._geometry is None else WindowCounts(geometry=self._geometry))

    def of(self, ids: Sequence[str], sample: str | None = None) -> list[tuple[Group, NDArray[np.bool_] | slice]]:
        """Return the groups that contigs belong to, each with which of the contigs.

        Args:
            ids: the sequence IDs.
            sample: their sample; None takes it from the IDs.
        """
        found: list[tuple[Group, NDArray[np.bool_] | slice]] = [(self.total, slice(None))]
        if self._by is None or not ids:
            return found
        if self._by == "sample" and sample is not None:
            return [*found, (self._named(sample), slice(None))]
        names = np.array([control_name(each) if self._by == "tag" else sample_of(each) for each in ids], dtype=object)
        return found + [(self._named(name), names == name) for name in dict.fromkeys(names)]

    def _named(self, name: str) -> Group:
        group = self.by_name.get(name)
        if group is None:
            group = self.by_name[name] = self._new()
        return group

    def merge(self, other: Groups) -> None:
        """Add the contigs of other groups, name by name."""
        self.total.merge(other.total)
        for name, group in other.by_name.items():
            self._named(name).merge(group)


def sample_of(sequence_id: str) -> str:
    """Return the sample that a sequence ID names, or `NO_SAMPLE`."""
    try:
        return extract_sample_id(sequence_id)
    except EdenError:
        return NO_SAMPLE
