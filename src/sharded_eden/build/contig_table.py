"""The table of all contigs, `contigs.parquet`: sorted by sample, in input order within each.

Enter: the table there is, and the rows of samples that were built since. Leaves: the table, written anew in one pass that
holds a few blocks of each. It depends on what the samples are, not on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import polars as pl

from sharded_eden.build.manifest import Receipt
from sharded_eden.build.sample import CONTIG_COLUMNS
from sharded_eden.errors import DatabaseError
from sharded_eden.format import schema
from sharded_eden.format.sqlite import publishing

FILES_AT_ONCE = 500
"""Receipts that are read together."""

_SAMPLE = pl.col("sample")


def check_contig_table(out: Path) -> None:
    """Refuse a `contigs.parquet` that new rows cannot be added to.

    Raises:
        DatabaseError: it cannot be read, or has other columns.
    """
    table = out / schema.CONTIGS_FILE
    if not table.exists():
        return
    try:
        found = dict(pl.read_parquet_schema(table))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatabaseError(f"{table}: cannot be read ({error}). Remove it: split works without it") from error
    if found != CONTIG_COLUMNS:
        raise DatabaseError(
            f"{table}: its columns are {found}, those that build writes {CONTIG_COLUMNS}. Remove it: split works without it"
        )


def update_contig_table(out: Path, receipts: Sequence[tuple[Path, Receipt]], folder: Path) -> None:
    """Write a table in which the rows of these receipts stand for their samples.

    Args:
        out: the output folder.
        receipts: their files, which hold the rows, and what they say. The later one of two for the same sample counts.
        folder: for files in between.
    """
    table = out / schema.CONTIGS_FILE
    latest = {built.result.sample: number for number, (_, receipt) in enumerate(receipts) for built in receipt.built}
    merged = []
    if table.exists():
        old = pl.scan_parquet(table)
        if not old.select(_SAMPLE.is_sorted()).collect().item():
            old = old.sort("sample", maintain_order=True)
        merged.append(_without(old, list(latest)))
    parts: list[Path] = []
    for layer in _layers([receipt for _, receipt in receipts]):
        of_layer = []
        for start in range(0, len(layer), FILES_AT_ONCE):
            rows = []
            for number in layer[start : start + FILES_AT_ONCE]:
                path, receipt = receipts[number]
                replaced = [b.result.sample for b in receipt.built if latest[b.result.sample] != number]
                rows.append(_without(pl.scan_parquet(path), replaced).select(list(CONTIG_COLUMNS)))
            of_layer.append(pl.concat(rows))
            if len(layer) > FILES_AT_ONCE:
                parts.append(folder / f"rows{len(parts):08}.parquet")
                of_layer[-1].sink_parquet(parts[-1], maintain_order=True)
                of_layer[-1] = pl.scan_parquet(parts[-1])
        merged.append(pl.concat(of_layer))
    with publishing(table) as unfinished:
        rows_of_all = reduce(lambda one, other: one.merge_sorted(other, key="sample", maintain_order=True), merged)
        rows_of_all.sink_parquet(unfinished, maintain_order=True)
    for part in parts:
        part.unlink()


def _layers(receipts: Sequence[Receipt]) -> list[list[int]]:
    """Divide receipts, each sorted by sample, into as few sequences as are sorted as a whole: two, as builds write them."""
    layers: list[list[int]] = []
    ends: list[str] = []
    samples = [[built.result.sample for built in receipt.built] for receipt in receipts]
    for number in sorted(range(len(receipts)), key=lambda number: samples[number][0]):
        first, last = samples[number][0], samples[number][-1]
        fitting = next((i for i, end in enumerate(ends) if end < first), None)
        if fitting is None:
            layers.append([number])
            ends.append(last)
        else:
            layers[fitting].append(number)
            ends[fitting] = last
    return layers


def _without(rows: pl.LazyFrame, samples: list[str]) -> pl.LazyFrame:
    """Leave out the rows of some samples."""
    if not samples:
        return rows
    left_out = pl.LazyFrame({"sample": samples}, schema={"sample": pl.String})
    return rows.join(left_out, on="sample", how="anti", maintain_order="left")
