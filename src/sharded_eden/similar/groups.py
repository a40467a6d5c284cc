"""Similar contigs -> groups that must stay in one split: the connected components of the pairs.

Input: sequence databases. Output: the group of each sample (or contig), and the size of the largest. See `similar/pairs.py` for
the cost.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.kinds import refuse_url
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.jobs import Engine
from sharded_eden.progress import Progress
from sharded_eden.similar.pairs import ONE, OTHER, SAMPLE, Similar, Wanted, similar_contigs
from sharded_eden.similar.sketch import writing_temporary

THRESHOLD = 0.1
"""The least containment unless another is given: about 90% identity over the whole shorter contig, 95% over half of it."""
LARGEST_GROUP = 0.5
"""The largest share of all bases that one group may have unless another is given."""


@dataclass(frozen=True)
class Grouping:
    """Which samples (or contigs) belong together."""

    group_of: Mapping[str, str]
    """{sample or contig: the first name of its group}."""
    groups: int
    """How many groups have more than one member."""
    largest: int
    """Members of the largest group by bases; 1 where nothing is similar."""
    largest_bases: int
    largest_share: float
    """Its share of all bases."""
    pairs: int
    """Pairs of similar contigs."""
    not_compared: int
    """Contigs that were not compared, because they are too short."""


def group_similar(
    databases: Mapping[str, Path],
    key: str,
    *,
    threshold: float = THRESHOLD,
    largest: float = LARGEST_GROUP,
    scratch: Path | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Grouping:
    """Group samples (or contigs) that hold similar contigs.

    Args:
        databases: {sample: sequence database}.
        key: `sample` or `contig_id`: what is grouped.
        threshold: the least containment of two contigs that belong together.
        largest: the largest share of all bases that a group may have.
        scratch: a folder for temporary files, made if it is missing; None is the system's.
        engine: where databases are sketched.
        progress: called with the bytes of databases that are done and their total.

    Raises:
        UsageError: a group has more than `largest` of the bases, or an argument is invalid.
        MissingExtra: sourmash is not installed.
        WriteError: temporary files cannot be written.
    """
    if not 0 < largest <= 1:
        raise UsageError(f"--largest-group {largest} is invalid: it must be above 0 and at most 1")
    if scratch is not None:
        refuse_url(scratch, "--scratch")
    with writing_temporary(scratch or Path(os.environ.get("TMPDIR", "/tmp"))):
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="sharded-eden-similar-", dir=scratch)
    with temporary as folder:
        similar = similar_contigs(
            databases,
            Path(folder),
            threshold=threshold,
            wanted=_different_samples if key != CONTIG_ID else None,
            engine=engine,
            progress=progress,
        )
    return _components(similar, key, threshold, largest)


def _different_samples(contigs: pl.DataFrame) -> Wanted:
    sample = contigs[SAMPLE].rank("dense").to_numpy()
    return lambda one, other: sample[one] != sample[other]


def _components(similar: Similar, key: str, threshold: float, largest: float) -> Grouping:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    units = similar.contigs.group_by(key).agg(pl.col(LENGTH).sum()).sort(key)
    names = units[key]
    number = (
        similar.contigs[key].replace_strict(names, pl.Series(np.arange(len(names))), return_dtype=pl.Int64).to_numpy()
    )
    one, other = (number[similar.pairs[column].to_numpy()] for column in (ONE, OTHER))
    matrix = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(len(names), len(names)))
    _, labels = connected_components(matrix, directed=False)
    groups = (
        units.with_columns(pl.Series("group", labels, dtype=pl.Int64))
        .group_by("group")
        .agg(pl.col(key).min().alias("first"), pl.len().alias("members"), pl.col(LENGTH).sum().alias("bases"))
        .sort(["bases", "first"], descending=[True, False])
    )
    total = int(units[LENGTH].sum())
    linked = groups.filter(pl.col("members") > 1)
    first, members, bases = ("", 1, 0) if linked.is_empty() else linked.select("first", "members", "bases").row(0)
    share = bases / total if total else 0.0
    what = "contigs" if key == CONTIG_ID else "samples"
    if share > largest:
        raise UsageError(
            f"{members:,} {what}, {shown(first)} among them, resemble each other and would fill one split: {share:.1%} of all "
            f"bases, and --largest-group allows {largest:.0%}. Raise --threshold (now {threshold:g}), so that fewer are joined"
            + (", or divide contigs (--by contig)" if key != CONTIG_ID else "")
            + ", or allow more with --largest-group"
        )
    firsts = dict(groups.select("group", "first").iter_rows())
    return Grouping(
        group_of={name: firsts[label] for name, label in zip(names, labels.tolist(), strict=True)},
        groups=linked.height,
        largest=members,
        largest_bases=bases,
        largest_share=share,
        pairs=similar.pairs.height,
        not_compared=similar.not_compared,
    )
