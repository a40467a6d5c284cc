"""Tags from a table: sample or contig -> text such as `|d__Bacteria;p__Bacillota|` -> the header of its rows.

Input: a Parquet, CSV or TSV file with a key column and the columns that a template names. Output: headers. Opening reads the
table, looks for the key of every sample (one index seek each) or contig (one pass over their IDs), and encodes every tag.

With dropout, each field of the template is replaced by `None` with this probability, by (seed, epoch, window index) alone.
Source of lineage tags: Brixi et al., "Genome modeling and design across all domains of life with Evo 2", 2025.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import InputError, UsageError, printable, shown
from sharded_eden.format.schema import extract_sample_id
from sharded_eden.format.sqlite import READ_ERRORS, unreadable
from sharded_eden.load.encode.example import RowFormat
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.shuffle import MASK64, derive_keys, mix64

if TYPE_CHECKING:
    import polars as pl

SAMPLE_KEYS, CONTIG_KEYS = ("sample", "sample_id"), ("contig_id", "contig")
"""The names of key columns; a column of contigs counts before one of samples."""

DEFAULT_TEMPLATE = "{tag}"
DROPPED = "None"
"""What stands for a field that was dropped, or that is empty in the table."""

MAX_CACHED_TAGS = 65_536
KEYS_SHOWN = 5

Values = tuple[str, ...]
"""The fields of one tag, in the order of the template."""


class TableTags:
    """The tags of one split.

    Args:
        index: its windows.
        row_format: the layout of a row.
        path: the table.
        template: text with the names of columns in braces; None is `{tag}`.
        dropout: the probability that a field is replaced by `None`.
        seed: decides which.

    Raises:
        InputError: the table cannot be read, lacks a column, has a key twice, or lacks keys of the split.
        UsageError: the template is invalid, or a tag cannot be encoded or leaves no room for bases.
    """

    def __init__(
        self, index: WindowIndex, row_format: RowFormat, path: str, template: str | None, dropout: float, seed: int
    ) -> None:
        self._index, self._format, self._path = index, row_format, Path(path)
        self._template = _parsed(DEFAULT_TEMPLATE if template is None else template)
        self._dropout, self._seed = dropout, seed
        self._headers: dict[str, tuple[NDArray[np.int64], int]] = {}
        table = _read(self._path)
        self._by_contig, keys, values = _columns(table, self._path, [field for _, field in self._template if field])
        self._values, numbers = _distinct(values)
        self._number = dict(zip(keys, numbers, strict=True))
        self.digest = self._digest_of(keys, values)
        """An integer that checkpoints record: the same for the same tags, template and dropout."""
        used = self._numbers_of_split()
        self._tokens_of: dict[str, int] = {}
        self.least_room = min(map(self._least_room, sorted(used)), default=row_format.seq_length)
        """The smallest number of bases in a row, over all tags of the split."""
        self._tokens_of.clear()

    def of_windows(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[NDArray[np.int64], int]]:
        """Return the header (H,) int64 of each (epoch, window index), and how many bases fit after it."""
        rows = self._index.names([window for _, window in wanted])
        keys: dict[int, int] = {}
        headers = []
        for (epoch, window), (sequence_id, _) in zip(wanted, rows, strict=True):
            values = self._values[self._number[self._key(sequence_id)]]
            if self._dropout:
                if epoch not in keys:
                    (keys[epoch],) = derive_keys(1, "tags", self._seed, epoch)
                values = self._dropped(values, keys[epoch], window)
            headers.append(self._header(values))
        return headers

    def header(self, sequence_id: str) -> tuple[NDArray[np.int64], int]:
        """Return the header of a contig without dropout."""
        return self._header(self._values[self._number[self._key(sequence_id)]])

    def _key(self, sequence_id: str) -> str:
        return sequence_id if self._by_contig else extract_sample_id(sequence_id)

    def _dropped(self, values: Values, key: int, window: int) -> Values:
        state = mix64((window * 0x9E3779B97F4A7C15 + key) & MASK64)
        kept = []
        for number, value in enumerate(values, start=1):
            draw = mix64((state + number * 0xD1B54A32D192ED03) & MASK64)
            kept.append(DROPPED if draw < self._dropout * 2**64 else value)
        return tuple(kept)

    def _text(self, values: Values) -> str:
        fields = iter(values)
        return "".join(literal + (next(fields) if field else "") for literal, field in self._template)

    def _header(self, values: Values) -> tuple[NDArray[np.int64], int]:
        text = self._text(values)
        known = self._headers.get(text)
        if known is None:
            try:
                if not text.isprintable():
                    raise ValueError("it has control characters")
                ids = self._format.encoding.text_to_ids(text)
            except Exception as error:
                raise UsageError(
                    f"{printable(self._path)}: the tokenizer cannot encode the tag {shown(text, 200)} ({error})"
                ) from error
            header = self._format.header(ids)
            try:
                known = header, self._format.room(header)
            except UsageError as error:
                raise UsageError(
                    f"{printable(self._path)}: the tag {shown(text, 200)} has {len(ids)} tokens, which is too long: {error}"
                ) from error
            if len(self._headers) >= MAX_CACHED_TAGS:
                self._headers.clear()
            self._headers[text] = known
        return known

    def _least_room(self, number: int) -> int:
        """Return the fewest bases beside any form of a tag: with dropout, of each field or `None` what has more tokens.

        It is exact where the tokens of a tag are those of its parts. A form that is longer is an error when it is drawn.
        """
        values = self._values[number]
        room = self._header(values)[1]
        if self._dropout:
            longest = tuple(max(value, DROPPED, key=self._tokens) for value in values)
            room = min(self._header(form)[1] for form in (values, longest, (DROPPED,) * len(values)))
        return room

    def _tokens(self, text: str) -> int:
        found = self._tokens_of.get(text)
        if found is None:
            try:
                found = len(self._format.encoding.text_to_ids(text))
            except Exception:  # part of a tag that can be encoded as a whole
                found = len(text)
            self._tokens_of[text] = found
        return found

    def _numbers_of_split(self) -> set[int]:
        """Return the distinct tags of the split.

        Raises:
            InputError: keys are missing.
        """
        used: set[int] = set()
        examples: list[str] = []
        missing = total = 0
        for key in self._keys_of_split():
            total += 1
            number = self._number.get(key)
            if number is not None:
                used.add(number)
                continue
            missing += 1
            if len(examples) < KEYS_SHOWN:
                examples.append(shown(key))
        if missing:
            what = "contigs" if self._by_contig else "samples"
            raise InputError(
                f"{printable(self._path)}: has no row for {missing:,} of {total:,} {what} of {self._index.path}: "
                f"{', '.join(examples)}{', ...' if missing > len(examples) else ''}. Add a row for each"
            )
        return used

    def _keys_of_split(self) -> Iterator[str]:
        if not self._by_contig:
            yield from sorted({extract_sample_id(sequence_id) for sequence_id in self._index.sequence_ids_by_prefix(2)})
            return
        try:
            for (sequence_id,) in self._index.connection.execute("SELECT DISTINCT sequence_id FROM window_mappings"):
                yield sequence_id
        except READ_ERRORS as error:
            raise unreadable(self._index.path, error) from error

    def _digest_of(self, keys: Sequence[str], values: Sequence[Values]) -> int:
        digest = blake2b(repr((self._template, self._dropout, self._by_contig)).encode(), digest_size=8)
        for row in sorted(zip(keys, values, strict=True)):
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "little") >> 1


def _parsed(template: str) -> list[tuple[str, str]]:
    """Return a template as (text, name of the field after it or "") pairs.

    Raises:
        UsageError: it is not one, or names no field.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"tag_template {shown(template)} is invalid: {error}") from error
    for _, field, spec, conversion in parts:
        if field is not None and (not field or spec or conversion or "." in field or "[" in field):
            raise UsageError(
                f"tag_template {shown(template)}: a field is the name of a column in braces, as {{phylum}}"
            )
    if not any(field for _, field, _, _ in parts):
        raise UsageError(f"tag_template {shown(template)} names no column: write it in braces, as {{phylum}}")
    return [(literal, field or "") for literal, field, _, _ in parts]


def _read(path: Path) -> pl.DataFrame:
    """Return a table, all columns as text."""
    import polars as pl  # reading data without a table does not need it

    separators = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
    ending = path.suffix.lower()
    if ending not in {*separators, ".parquet", ".pq"}:
        raise UsageError(f"tags={shown(str(path))}: is neither .parquet, .csv nor .tsv")
    try:
        with path.open("rb") as file:
            if ending in separators:
                return pl.read_csv(file, separator=separators[ending], infer_schema=False)
            return pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{printable(path)}: cannot be read as a table of tags ({printable(str(error), 300)})"
        ) from error


def _columns(table: pl.DataFrame, path: Path, fields: Sequence[str]) -> tuple[bool, list[str], list[Values]]:
    """Return whether the key is that of contigs, the keys, and the fields of each.

    Raises:
        InputError: a column is missing or holds neither text nor numbers; or a key is empty, or there twice.
    """
    import polars as pl

    key = next((name for name in (*CONTIG_KEYS, *SAMPLE_KEYS) if name in table.columns), None)
    if key is None:
        known = ", ".join((*CONTIG_KEYS, *SAMPLE_KEYS))
        raise InputError(f"{printable(path)}: has none of the key columns {known}, but {shown(table.columns, 300)}")
    if absent := [field for field in fields if field not in table.columns]:
        raise InputError(
            f"{printable(path)}: tag_template names columns that are not there: {', '.join(map(shown, absent))}; it has "
            f"{shown(table.columns, 300)}"
        )
    if twice := [name for name in (key, *fields) if f"{name}_duplicated_0" in table.columns]:
        raise InputError(f"{printable(path)}: has several columns {shown(twice[0])}. Give each its own name")
    try:
        names = [key, *(field for field in dict.fromkeys(fields) if field != key)]
        texts = table.select(pl.col(names).cast(pl.String))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{printable(path)}: a column of tags is not text ({printable(str(error), 300)})") from error
    keys: list[str] = texts[key].to_list()
    empty = sum(not each for each in keys)
    again = len(keys) - len(set(keys))
    if empty or again:
        what = f"{empty:,} rows have no {key}" if empty else f"{again:,} rows repeat a {key} of an earlier row"
        raise InputError(f"{printable(path)}: {what}. Each needs exactly one row")
    rows = zip(*(texts[field] for field in fields), strict=True)
    values = [tuple((value or "").strip() or DROPPED for value in row) for row in rows]
    return key in CONTIG_KEYS, keys, values


def _distinct(values: Sequence[Values]) -> tuple[list[Values], list[int]]:
    """Return the distinct values, and the number of each row's."""
    number_of: dict[Values, int] = {}
    numbers = [number_of.setdefault(each, len(number_of)) for each in values]
    return list(number_of), numbers
