"""From FASTA files to one SQLite sequence database per sample, and the table of all contigs beside them.

Enter: files, folders, patterns. Leave, in the output folder: `<sample>/glm_dataset_<sample>.sqlite` and `contigs.parquet`.

    records ──name──▶ (sample, contig ID) ──▶ buffers, 64 MB ──▶ OUT/.partial-build/ ──rename──▶ OUT/

Costs one pass over the input and some 200 MB beside the longest record, however the samples are mixed and however many
there are: buffers are emptied together, each into its database, and no database stays open. Whatever goes wrong, the
output folder is left as it was.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import apsw
import polars as pl

from sharded_eden import schema
from sharded_eden.errors import DatabaseError, InputError, UsageError
from sharded_eden.prepare import records
from sharded_eden.prepare.records import Record, describe
from sharded_eden.prepare.staging import move_all, workplace
from sharded_eden.progress import Meter, Progress
from sharded_eden.sqlite import create_database, is_mutable_now, publishing

BUFFER_BYTES = 64 << 20
"""Bases, and what Python adds to a record, that wait in memory before they are written."""

RECORD_OVERHEAD_BYTES = 600
"""What a waiting record costs beside its bases: its strings, its tuple and its row of the contig table."""

MAX_CONTIG_BASES = 999_999_000
"""SQLite holds values of at most 1,000,000,000 bytes, the row's other column included."""

CONTIG_COLUMNS: dict[str, type[pl.DataType]] = {
    "contig_id": pl.String,
    "original_id": pl.String,
    "description": pl.String,
    "sample": pl.String,
    "length": pl.Int64,
    "source_file": pl.String,
}
"""The columns of `contigs.parquet`."""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What one build added."""

    samples: int
    contigs: int
    bases: int
    bytes_on_disk: int
    """The size of the sequence databases written, in bytes."""
    contigs_parquet: Path


def create_sample_database(
    sample_id: str, sequences: Iterable[tuple[str, str]], output_dir: str | os.PathLike[str]
) -> Path:
    """Write the sequence database of one sample.

    Args:
        sample_id: the sample; its database becomes `output_dir/<sample_id>/glm_dataset_<sample_id>.sqlite`.
        sequences: (contig ID, sequence) pairs, read once.
        output_dir: the folder of all sequence databases.

    Returns:
        The path of the database.

    Raises:
        UsageError: the sample has a database already, or a name that sequence IDs cannot carry.
        InputError: an ID is empty, appears twice or names another sample; a sequence is empty or holds other
            characters than IUPAC nucleotide letters.
    """
    schema.check_sample_id(sample_id, "sample_id")
    path = schema.sample_database_path(output_dir, sample_id)
    if path.exists():
        raise UsageError(f"{path} exists already. Remove it first, or give the sample another name")
    folder_is_new = not path.parent.exists()
    try:
        with publishing(path) as unfinished, closing(create_database(unfinished)) as database:
            database.execute(schema.CREATE_SEQUENCES)
            database.execute("BEGIN")
            for ordinal, (contig_id, sequence) in enumerate(sequences, start=1):
                where = f"sample {sample_id}: sequence {ordinal} ({contig_id})"
                records.check_name(contig_id, where)
                records.check_residues(sequence, where)
                if schema.has_sequence_id_form(contig_id) and schema.extract_sample_id(contig_id) != sample_id:
                    raise InputError(f"{where}: its ID names sample {schema.extract_sample_id(contig_id)!r}")
                try:
                    database.execute("INSERT INTO sequences VALUES (?, ?)", (contig_id, sequence))
                except apsw.ConstraintError as error:
                    first = database.execute("SELECT rowid FROM sequences WHERE contig_id = ?", (contig_id,)).get
                    raise InputError(f"{where}: sequence {first} has the same ID") from error
            database.execute("COMMIT")
    except BaseException:
        if folder_is_new:
            with suppress(OSError):
                path.parent.rmdir()
        raise
    return path


def build_sequence_dbs(
    inputs: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    tag: str = "BCR",
    sample: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Write the sequence databases of all samples found in FASTA files, and `contigs.parquet` beside them.

    A record whose name has the form of a sequence ID (`BCR__ECT-SAMPLE1__CT1-1`) keeps it and goes to the sample that it
    names. Any other goes to the sample of its file and gets an ID of that form, numbered within the sample.

    Args:
        inputs: FASTA files, folders or glob patterns, plain or compressed.
        out_dir: where the databases go. It may hold other samples, which are kept.
        tag: what the IDs given begin with, before the first `__`.
        sample: the sample of all records; without it, the name of each file stands for one.
        force: replace the databases of samples that are there already.
        progress: called with bytes of input read and their total.

    Raises:
        UsageError: a sample exists already, two files stand for the same sample, a record names another sample than
            `sample`, a name cannot be used, or the folder cannot be written to.
        InputError: an input is no sound FASTA file, or two records share a name or an ID.
    """
    schema.check_tag(tag)
    if sample is not None:
        schema.check_sample_id(sample, "--sample")
    files = records.find_inputs(inputs)
    out = Path(out_dir)
    with workplace(out) as staging, closing(_Build(out, staging, tag=tag, sample=sample, force=force)) as build:
        sizes = [file.stat().st_size for file in files]
        meter = Meter(progress, sum(sizes))
        for file, before in zip(files, accumulate(sizes, initial=0), strict=False):
            for record in records.read_records(file, position=partial(meter.reach, before)):
                build.add(record, file)
        meter.finish()
        return build.publish()


class _Build:
    """The records of one build on their way to the databases of their samples."""

    def __init__(self, out: Path, staging: Path, *, tag: str, sample: str | None, force: bool) -> None:
        self._out, self._staging = out, staging
        self._tag, self._sample, self._force = tag, sample, force
        self._table = out / schema.CONTIGS_FILE
        if self._table.exists():
            _check_table(self._table)
        self._files: list[Path] = []
        self._file_of_sample: dict[str, Path] = {}  # samples named after their file
        self._sample_of_this_file = ""  # asked for once a record, so kept
        self._contigs_of_sample: dict[str, int] = {}
        self._bases = 0
        self._buffers: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._rows: list[tuple[str, str, str, str, int, str]] = []
        self._buffered_bytes = 0
        self._chunks: list[Path] = []
        self._seen = create_database(staging / "seen.sqlite", cache_kib=16_384)
        self._seen.execute(
            "CREATE TABLE seen (sample TEXT, name TEXT, file INTEGER, ordinal INTEGER, PRIMARY KEY (sample, name)) "
            "WITHOUT ROWID; BEGIN"
        )

    def close(self) -> None:
        self._seen.close()

    def add(self, record: Record, file: Path) -> None:
        """Take in one record, and write all that waits when it has become too much."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._sample_of_this_file = ""
        where = describe(file, record.ordinal, record.name)
        bases = len(record.sequence)
        if bases > MAX_CONTIG_BASES:
            raise InputError(f"{where}: {bases:,} bases are more than SQLite holds in one value ({MAX_CONTIG_BASES:,})")
        sample, contig_id = self._identify(record, file, where)
        for name in dict.fromkeys((record.name, contig_id)):
            self._claim(sample, name, record.ordinal, where)
        self._buffers[sample].append((contig_id, record.sequence))
        self._rows.append((contig_id, record.name, record.description, sample, bases, str(file)))
        self._bases += bases
        self._buffered_bytes += bases + RECORD_OVERHEAD_BYTES
        if self._buffered_bytes >= BUFFER_BYTES:
            self._flush()

    def _identify(self, record: Record, file: Path, where: str) -> tuple[str, str]:
        """Return the sample and the contig ID of a record."""
        keeps_its_id = schema.has_sequence_id_form(record.name)
        if keeps_its_id:
            sample = schema.extract_sample_id(record.name)
            if self._sample not in {None, sample}:
                raise UsageError(
                    f"{where}: its ID names sample {sample!r}, --sample says {self._sample!r}. "
                    "Leave --sample out, or give these records other names"
                )
        else:
            sample = self._sample or self._sample_of(file)
        if sample not in self._contigs_of_sample:
            self._start(sample, where)
        self._contigs_of_sample[sample] += 1
        ordinal = self._contigs_of_sample[sample]
        return sample, record.name if keeps_its_id else schema.make_sequence_id(self._tag, sample, ordinal)

    def _sample_of(self, file: Path) -> str:
        if not self._sample_of_this_file:
            sample = records.default_sample_id(file)
            first = self._file_of_sample.setdefault(sample, file)
            if first != file:
                raise UsageError(
                    f"{first} and {file} both stand for sample {sample!r}. Rename one of them, or pool them: --sample NAME"
                )
            self._sample_of_this_file = sample
        return self._sample_of_this_file

    def _start(self, sample: str, where: str) -> None:
        schema.check_folder_name(sample, where)
        path = schema.sample_database_path(self._out, sample)
        if path.exists() and not self._force:
            raise UsageError(f"{path}: sample {sample!r} is there already. --force replaces it")
        if is_mutable_now(path):
            raise UsageError(f"{path} is being written to: a -wal or -journal file stands beside it")
        self._contigs_of_sample[sample] = 0

    def _claim(self, sample: str, name: str, ordinal: int, where: str) -> None:
        """Note a name as taken within a sample."""
        try:
            self._seen.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", (sample, name, len(self._files) - 1, ordinal))
        except apsw.ConstraintError as error:
            query = "SELECT file, ordinal FROM seen WHERE sample = ? AND name = ?"
            file, first = next(self._seen.execute(query, (sample, name)))
            raise InputError(
                f"{where}: {name!r} is taken within sample {sample!r} by record {first} of {self._files[file]}"
            ) from error

    def _flush(self) -> None:
        """Write what waits: to each sample's staged database, and a chunk of the contig table."""
        for sample, contigs in self._buffers.items():
            path = schema.sample_database_path(self._staging / "samples", sample)
            is_new = not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(create_database(path)) as database:
                database.execute(f"BEGIN; {schema.CREATE_SEQUENCES if is_new else ''}")
                database.executemany("INSERT INTO sequences VALUES (?, ?)", contigs)
                database.execute("COMMIT")
        if self._rows:
            self._chunks.append(self._staging / f"chunk{len(self._chunks):08}.parquet")
            pl.DataFrame(self._rows, schema=CONTIG_COLUMNS, orient="row").write_parquet(self._chunks[-1])
        self._buffers.clear()
        self._rows.clear()
        self._buffered_bytes = 0

    def publish(self) -> BuildResult:
        """Move the databases into place, the contig table last."""
        self._flush()
        moves = {
            schema.sample_database_path(self._staging / "samples", sample): schema.sample_database_path(
                self._out, sample
            )
            for sample in self._contigs_of_sample
        }
        bytes_on_disk = sum(staged.stat().st_size for staged in moves)
        moves[self._write_table()] = self._table
        move_all(moves, attic=self._staging)
        return BuildResult(
            samples=len(self._contigs_of_sample),
            contigs=sum(self._contigs_of_sample.values()),
            bases=self._bases,
            bytes_on_disk=bytes_on_disk,
            contigs_parquet=self._table,
        )

    def _write_table(self) -> Path:
        """Write the contig table: the rows of samples that stay, then those of this build."""
        parts = [pl.scan_parquet(self._chunks)]
        if self._table.exists():
            built = pl.LazyFrame({"sample": list(self._contigs_of_sample)})
            parts.insert(0, pl.scan_parquet(self._table).join(built, on="sample", how="anti", maintain_order="left"))
        path = self._staging / schema.CONTIGS_FILE
        pl.concat(parts).sink_parquet(path)
        return path


def _check_table(table: Path) -> None:
    """Refuse a `contigs.parquet` that new rows cannot be added to."""
    try:
        found = dict(pl.read_parquet_schema(table))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatabaseError(f"{table}: cannot be read ({error}). Remove it: split works without it") from error
    if found != CONTIG_COLUMNS:
        raise DatabaseError(
            f"{table}: its columns are {found}, those that build writes {CONTIG_COLUMNS}. Remove it: split works without it"
        )
