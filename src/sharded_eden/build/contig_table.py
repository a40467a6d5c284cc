"""The table of all contigs, `contigs.parquet`: sorted by sample, in input order within each.

Input: the existing table, and the rows of newly built samples. Output: the new table, written in one pass that holds a
few blocks of each. It depends on the samples alone, not on the order in which they were built.

The table is right as long as nothing else writes the databases. The contigs of databases that are newer than the table are
read and compared: a copy of a folder may be newer, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import polars as pl

from sharded_eden.build.contig_rows import CONTIG_COLUMNS, polars_path, scan_rows
from sharded_eden.build.manifest import Receipt
from sharded_eden.build.records import PHYLO_SEPARATOR
from sharded_eden.build.skipped import contigs_only
from sharded_eden.errors import DatabaseError, EdenError, printable, shown, warn
from sharded_eden.format import schema
from sharded_eden.format.lengths import contigs_of_database
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import CONTIG_ID, LENGTH

FILES_AT_ONCE = 500
"""Receipts, or databases, read at once."""

_SAMPLE = pl.col("sample")

PHYLO_TAG = "phylo_tag"
"""A column of `contigs.parquet` where a build kept lineage tags. Before the table is written, `description` holds the tag."""


def check_contig_table(out: Path) -> None:
    """Refuse a `contigs.parquet` that new rows cannot be added to.

    Raises:
        DatabaseError: it cannot be read, or has other columns.
    """
    table = out / schema.CONTIGS_FILE
    if not table.exists():
        return
    try:
        with table.open("rb") as file:  # Polars would treat some names as patterns
            found = dict(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatabaseError(
            f"{printable(table)}: cannot be read ({printable(str(error), 300)}). Remove it: split works without it"
        ) from error
    with_tags = {**CONTIG_COLUMNS, PHYLO_TAG: pl.String}
    if found != (with_tags if PHYLO_TAG in found else CONTIG_COLUMNS):
        raise DatabaseError(
            f"{printable(table)}: its columns are {shown(found, 300)}, those that build writes {CONTIG_COLUMNS}. Remove it: "
            "split works without it"
        )


def update_contig_table(out: Path, receipts: Sequence[tuple[Path, Receipt]], folder: Path) -> None:
    """Write a table in which the rows of these receipts replace earlier rows of the same samples.

    Args:
        out: the output folder.
        receipts: their files, which hold the rows, and their contents. Of two for the same sample, the later one counts.
        folder: for temporary files.

    Raises:
        DatabaseError: the table or a receipt is damaged.
    """
    try:
        _merge(out / schema.CONTIGS_FILE, receipts, folder)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DatabaseError(
            f"{printable(out / schema.CONTIGS_FILE)}, or a receipt in {printable(folder)}, is damaged "
            f"({printable(str(error), 300)}). Remove both; samples that are there are then built again only with --force"
        ) from error


def changed_samples(table: Path, rows: pl.LazyFrame, databases: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield each sample whose database was changed after the table was written: its name, and what differs.

    Reads the contig IDs and lengths of databases that are as new as the table or newer, no sequence.

    Args:
        table: the file.
        rows: its rows.
        databases: {sample ID: sequence database}.
    """
    written = table.stat().st_mtime_ns
    # A file that was put in the place of another one keeps its own mtime_ns, but gets a new ctime_ns.
    states = {sample: path.stat() for sample, path in databases.items()}
    newer = [sample for sample, state in states.items() if max(state.st_mtime_ns, state.st_ctime_ns) >= written]
    for start in range(0, len(newer), FILES_AT_ONCE):
        some = newer[start : start + FILES_AT_ONCE]
        listed = _with(rows.select(CONTIG_ID, LENGTH, "sample"), some).collect().partition_by("sample", as_dict=True)
        for sample in some:
            if (expected := listed.get((sample,))) is None:
                continue
            try:
                found = contigs_of_database(databases[sample])
            except EdenError as error:
                yield sample, str(error)
                continue
            if what := _difference(expected.drop("sample"), found):
                yield sample, what


def _difference(listed: pl.DataFrame, found: pl.DataFrame) -> str:
    """Return how the contigs of a database differ from those that the table lists; nothing where they do not."""
    listed, found = listed.sort(CONTIG_ID, LENGTH), found.sort(CONTIG_ID, LENGTH)
    if listed.equals(found):
        return ""
    if listed.height != found.height:
        return f"{listed.height:,} contigs then, {found.height:,} now"
    at = (listed[CONTIG_ID].ne_missing(found[CONTIG_ID]) | listed[LENGTH].ne_missing(found[LENGTH])).arg_max() or 0
    (name, length), (name_now, length_now) = listed.row(at), found.row(at)
    return f"contig {shown(name)} of {length:,} bases then, {shown(name_now)} of {length_now:,} now"


def _merge(table: Path, receipts: Sequence[tuple[Path, Receipt]], folder: Path) -> None:
    latest = {built.result.sample: number for number, (_, receipt) in enumerate(receipts) for built in receipt.built}
    merged = []
    keeps = [json.loads(receipt.settings).get("phylo_tags") == "keep" for _, receipt in receipts]
    has_tags = any(keeps)
    if table.exists():
        old = scan_rows(table)
        has_tags = has_tags or PHYLO_TAG in old.collect_schema()
        old = _joined(old) if has_tags else old
        if not old.select(_SAMPLE.is_sorted()).collect().item():
            old = old.sort("sample", maintain_order=True)
        # Without a row in the table, `split` reads the database itself.
        changed = dict(changed_samples(table, old, _kept_databases(table.parent, latest)))
        if changed:
            sample, what = next(iter(changed.items()))
            warn(
                f"{printable(schema.sample_database_path(table.parent, sample))}: was changed after {printable(table)} was "
                f"written ({printable(what, 300)}). Such samples ({len(changed):,}) are left out of the table; verify says "
                "what is wrong with them"
            )
        merged.append(_without(old, [*latest, *changed]))
    parts: list[Path] = []
    for layer in _layers([receipt for _, receipt in receipts]):
        of_layer = []
        for start in range(0, len(layer), FILES_AT_ONCE):
            rows = []
            for number in layer[start : start + FILES_AT_ONCE]:
                path, receipt = receipts[number]
                wanted = [b.result.sample for b in receipt.built if latest[b.result.sample] == number]
                of_receipt = _with(contigs_only(scan_rows(path)), wanted).select(list(CONTIG_COLUMNS))
                rows.append(_joined(of_receipt) if has_tags and not keeps[number] else of_receipt)
            of_layer.append(pl.concat(rows))
            if len(layer) > FILES_AT_ONCE:
                parts.append(folder / f"rows{len(parts):08}.parquet")
                of_layer[-1].sink_parquet(polars_path(parts[-1]), maintain_order=True)
                of_layer[-1] = scan_rows(parts[-1])
        merged.append(pl.concat(of_layer))
    with publishing(table) as unfinished:
        rows_of_all = reduce(lambda one, other: one.merge_sorted(other, key="sample", maintain_order=True), merged)
        if has_tags:
            rows_of_all = _divided(rows_of_all)
        rows_of_all.sink_parquet(polars_path(unfinished), maintain_order=True)
    for part in parts:
        part.unlink()


def _joined(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return rows with their tags in `description`, an empty one where there is none."""
    tag = pl.col(PHYLO_TAG).fill_null("") if PHYLO_TAG in rows.collect_schema() else pl.lit("")
    both = pl.concat_str(tag, pl.lit(PHYLO_SEPARATOR), pl.col("description"))
    return rows.with_columns(both.alias("description")).select(list(CONTIG_COLUMNS))


def _divided(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return rows with the tags in `description` in a column of their own, null where there is none."""
    description = pl.col("description")
    is_joined = description.str.contains(PHYLO_SEPARATOR, literal=True)
    parts = description.str.splitn(PHYLO_SEPARATOR, 2)
    tag = parts.struct.field("field_0")
    return rows.with_columns(
        pl.when(is_joined).then(parts.struct.field("field_1")).otherwise(description).alias("description"),
        pl.when(is_joined & (tag != "")).then(tag).alias(PHYLO_TAG),
    )


def _kept_databases(out: Path, built: Mapping[str, int]) -> dict[str, Path]:
    """Return {sample ID: database} of the samples that were not built now."""
    return {sample: path for sample, path in schema.discover_sample_databases(out).items() if sample not in built}


def _layers(receipts: Sequence[Receipt]) -> list[list[int]]:
    """Divide receipts, each sorted by sample, into as few sorted sequences as possible: two, as builds write them."""
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
    """Return the rows without those of some samples."""
    if not samples:
        return rows
    left_out = pl.LazyFrame({"sample": samples}, schema={"sample": pl.String})
    return rows.join(left_out, on="sample", how="anti", maintain_order="left")


def _with(rows: pl.LazyFrame, samples: list[str]) -> pl.LazyFrame:
    """Return only the rows of some samples."""
    wanted = pl.LazyFrame({"sample": samples}, schema={"sample": pl.String})
    return rows.join(wanted, on="sample", how="semi", maintain_order="left")
