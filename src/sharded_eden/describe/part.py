"""`StatsResult` and its `Part`s: what `stats` counted, one part for each path."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharded_eden.describe.group import By, Group
from sharded_eden.describe.packing import IfPacked
from sharded_eden.describe.window_table import Split
from sharded_eden.describe.windows import KEEP_TAIL, LEFT_OUT, MIN_LENGTH, STRIDE


@dataclass(kw_only=True, eq=False)
class Part:
    """The counts of one path: a folder of sequence databases, a window database, or a split file."""

    path: Path
    kind: str
    """`sequence databases`, `window database` or `split file`."""
    total: Group
    groups: dict[str, Group] = field(default_factory=dict)
    """By sample or tag, where that is requested."""
    samples: int | None = None
    """Sequence databases in the folder."""
    split: Split | None = None
    """The metadata of a window database."""
    unassigned_contigs: int | None = None
    """Contigs that have no window in any of the window databases; None where there are no window databases."""
    unassigned_bases: int | None = None
    too_short_bases: int | None = None
    """Bases of those contigs whose lengths make no window in any of the window databases."""
    if_packed: IfPacked | None = None
    """What `pack` would reach; None where there are packs, and without windows."""

    @property
    def useful_packed(self) -> float | None:
        """The share of useful tokens in packed rows; None without packs."""
        split = self.split
        if split is None or not split.packs or self.total.windows is None:
            return None
        if split.pack_row_tokens is None:
            return self.total.windows.useful_tokens / (split.packs * split.geometry.window_size)
        useful = split.pack_useful_tokens  # of another tokenizer
        return None if useful is None else useful / (split.packs * split.pack_row_tokens)

    @property
    def overlap(self) -> int | None:
        """Bases that a full window shares with the next one; negative where bases lie between them, None without windows."""
        return None if self.split is None else self.split.geometry.usable - self.split.geometry.stride

    def options(self) -> dict[str, str]:
        """Return the option that would show the bases in no window, by the reason in `WindowCounts.unseen`."""
        if self.split is None:
            return {}
        geometry = self.split.geometry
        threshold = f"--window-min-length-threshold below {geometry.min_length}"
        ambiguous = self.split.max_ambiguous
        return {
            KEEP_TAIL: "--keep-tail",
            MIN_LENGTH: threshold,
            "keep_tail_and_threshold": f"--keep-tail and {threshold}",
            STRIDE: f"--stride {geometry.usable} or less",
            LEFT_OUT: f"--max-ambiguous above {ambiguous:g}"
            if ambiguous is not None
            else "precompute again: windows are missing",
            "special_tokens": f"--window-size above {geometry.special_tokens}",
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found: dict[str, Any] = {
            "path": str(self.path),
            "kind": self.kind,
            "samples": self.samples,
            **self.total.as_dict(),
        }
        if self.split is not None:
            found["geometry"] = self.split.geometry.as_metadata()
            found["overlap_of_neighbours"] = self.overlap
            found["packs"] = self.split.packs
            found["useful_share_packed"] = self.useful_packed
            found["useful_share_if_packed"] = None if self.if_packed is None else self.if_packed.share
            found["useful_share_if_packed_is_exact"] = None if self.if_packed is None else self.if_packed.is_exact
            unseen = {} if self.total.windows is None else self.total.windows.unseen
            found["options"] = {reason: option for reason, option in self.options().items() if reason in unseen}
        if self.unassigned_contigs is not None:
            found["contigs_without_a_window"] = self.unassigned_contigs
            found["bases_without_a_window"] = self.unassigned_bases
            found["bases_of_contigs_too_short_for_a_window"] = self.too_short_bases
        found["groups"] = {name: group.as_dict() for name, group in sorted(self.groups.items())}
        return found


@dataclass(kw_only=True, eq=False)
class StatsResult:
    """What was counted."""

    parts: list[Part]
    """The folder of sequence databases first, then the others in their order."""
    by: By | None
    sampled: float | None
    """The share of the contigs whose letters were counted; None where all were. Lengths and windows are always exact."""

    @property
    def is_exact(self) -> bool:
        """Whether all contigs were counted."""
        return self.sampled is None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "is_exact": self.is_exact,
            "sampled_share_of_contigs": self.sampled,
            "by": self.by,
            "parts": [part.as_dict() for part in self.parts],
        }
