"""Records with named fields: a JSON object, or a row of a table -> an entry.

Input: (name, value) pairs, or Arrow record batches. Output: entries. A field that is missing, appears twice or has a value of
another type is an error that names the file and the line or row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sharded_eden.build.fasta import Entry
from sharded_eden.build.skipped import BadRecord
from sharded_eden.errors import InputError, printable, shown
from sharded_eden.format.parquet_batches import decoded_if_short

if TYPE_CHECKING:
    import pyarrow as pa

    from sharded_eden.build.formats import ReadOptions

TEXT_FIELDS = ("text", "sequence", "seq", "nt_sequence")
ID_FIELDS = ("record", "id", "name", "contig_id", "accession")
"""The first names are those of the OpenGenome2 releases, in which some files have no `record`."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object as (name, value) pairs; a name may appear twice."""


JSON = json.JSONDecoder(strict=False, object_pairs_hook=Pairs)


def choose(names: list[str], options: ReadOptions, where: str) -> tuple[str, str | None]:
    """Return the fields of the sequence and of the name, None where there is none.

    Raises:
        BadRecord: a field that was asked for is missing, or there are two of that name.
    """
    texts = TEXT_FIELDS if options.text_field is None else (options.text_field,)
    ids = ID_FIELDS if options.id_field is None else (options.id_field,) if options.id_field else ()
    text = next((name for name in texts if name in names), None)
    if text is None:
        fields = " or ".join(shown(name) for name in texts)
        raise _bad(f"{where}: has no field {fields}, but {shown(names, 300)}. Name it: --text-field NAME")
    name = next((name for name in ids if name in names), None)
    if name is None and options.id_field:
        raise _bad(
            f"{where}: has no field {shown(options.id_field)}, but {shown(names, 300)}. Name it: --id-field NAME"
        )
    for chosen, option in ((text, "--text-field"), (name, "--id-field")):
        if chosen is not None and names.count(chosen) > 1:
            raise _bad(f"{where}: has {names.count(chosen)} fields {shown(chosen)}. Name another one: {option} NAME")
    return text, name


def _bad(message: str) -> BadRecord:
    return BadRecord(message, "field")


def sample_at(pairs: Pairs, path: str, where: str) -> str:
    """Return the sample in a JSON object: the field of this name, or what a path of names divided by dots leads to.

    Raises:
        BadRecord: there is none, there are two fields of that name, or its value is not text.
    """
    value: object = pairs
    for name in [path] if any(key == path for key, _ in pairs) else path.split("."):
        found = [each for key, each in value if key == name] if isinstance(value, Pairs) else []
        if len(found) != 1:
            what = f"has {len(found)} fields {shown(name)}" if found else f"has no field {shown(path)}"
            raise _bad(f"{where}: {what}, which --sample-field names as the sample")
        value = found[0]
    return _sample_text(value, where, path)


def sample_column(names: list[str], options: ReadOptions, called: str) -> str | None:
    """Return the column of the sample.

    Raises:
        InputError: it is missing, or there are two of that name.
    """
    column = options.sample_field
    if column is not None and names.count(column) != 1:
        count = names.count(column) or "no"
        raise InputError(
            f"{called}: has {count} columns {shown(column)}, but {shown(names, 300)}. Name another one: --sample-field NAME"
        )
    return column


def _sample_text(value: object, where: str, field: str) -> str:
    """Return a sample's name as a record gives it.

    Raises:
        BadRecord: it is not text, or empty.
    """
    if isinstance(value, bytes):
        value = _decoded(value, where, field)
    if isinstance(value, str) and value:
        return value
    found = "empty" if value == "" else f"not text, but {'an object' if isinstance(value, Pairs) else shown(value)}"
    raise _bad(f"{where}: its field {shown(field)}, which --sample-field names as the sample, is {found}")


def entry_of_object(pairs: Pairs, options: ReadOptions, where: str) -> Entry:
    """Return the entry of a JSON object.

    Raises:
        BadRecord: a field is missing, appears twice, or has a value of another type.
    """
    text, name = choose([key for key, _ in pairs], options, where)
    fields = dict(pairs)
    sample = "" if options.sample_field is None else sample_at(pairs, options.sample_field, where)
    return entry(fields[name] if name is not None else None, fields[text], where, text, name, sample)


def entry(name: object, text: object, where: str, text_field: str, name_field: str | None, sample: str = "") -> Entry:
    """Return an entry from the values of a row.

    Raises:
        BadRecord: the sequence is not text, or the name is neither text nor an integer.
    """
    if isinstance(text, bytes):
        text = _decoded(text, where, text_field)
    if not isinstance(text, str):
        raise _bad(f"{where}: its field {shown(text_field)} is not text, but {type(text).__name__}")
    if isinstance(name, bytes):
        name = _decoded(name, where, str(name_field))
    if name is None:
        return "", "", text, False, sample
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise _bad(
            f"{where}: its field {shown(name_field)} is neither text nor an integer, but {type(name).__name__}. Name another "
            "one: --id-field NAME"
        )
    first, *description = str(name).split(None, 1) or [""]
    return first, description[0] if description else "", text, False, sample


def _decoded(value: bytes, where: str, field: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _bad(
            f"{where}: its field {shown(field)} is bytes that are not text in UTF-8: byte 0x{value[error.start]:02x} at "
            f"position {error.start + 1}"
        ) from None


def entries_of_rows(
    batches: Iterator[pa.RecordBatch], text: str, name: str | None, sample: str | None, called: str
) -> Iterator[Entry | BadRecord]:
    """Yield an entry for each row of some record batches, or the error of the row.

    Args:
        batches: read once.
        text: the column of the sequence.
        name: the column of the record's name, None where there is none.
        sample: the column of the sample, None where none was asked for.
        called: the file's name in messages.
    """
    row = 0
    for batch in batches:
        batch.validate(full=True)  # offsets in a damaged file could otherwise point outside its buffers
        texts = decoded_if_short(batch.column(text))
        names = None if name is None else decoded_if_short(batch.column(name))
        samples = None if sample is None else decoded_if_short(batch.column(sample))
        for i in range(batch.num_rows):
            row += 1
            where = f"{called}: row {row}"
            made: Entry | BadRecord
            try:
                value = texts[i].as_py()
                called_by = None if names is None else names[i].as_py()
                of = "" if sample is None or samples is None else _sample_text(samples[i].as_py(), where, sample)
                made = entry(called_by, value, where, text, name, of)
            except BadRecord as error:
                made = error
            except Exception as error:  # such as a time outside Python's range
                made = _bad(f"{where}: cannot be read ({printable(str(error), 300)})")
            yield made
