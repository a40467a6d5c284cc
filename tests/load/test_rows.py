"""Rows encoded in blocks equal the same windows encoded one by one, bit for bit, for any tokenizer and letters."""

from __future__ import annotations

import dataclasses
import string
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_eden.errors import DatabaseError, UsageError
from sharded_eden.load.encode import rows as rows_module
from sharded_eden.load.encode.codes import CodeTables
from sharded_eden.load.encode.example import RowEncoder, RowFormat
from sharded_eden.load.encode.rows import RowMaker
from sharded_eden.load.encode.tokenizer import encoding_of
from sharded_eden.load.read.fetch import One, Placed, Window

T = 40
BASES = 30


class Characters:
    """A per-character tokenizer over some letters; any other letter becomes `others`."""

    def __init__(self, specials: tuple[int, int, int, int], first: int | None, letters: str, others: list[int]) -> None:
        self.pad_id, self.bos_id, self.eos_id, self.sep_id = specials
        self._ids = {c: [ord(c) if first is None else first + k] for k, c in enumerate(letters)}
        self._others = others

    def text_to_ids(self, text: str) -> list[int]:
        return [i for c in text for i in self._ids.get(c, self._others)]


NUCLEOTIDES = "ACGTURYSWKMBDHVN"
TOKENIZERS = {
    "built in": None,
    "end is padding": Characters((0, 1, 0, 0), None, string.ascii_uppercase, []),
    "other small ids": Characters((1, 30, 31, 7), None, string.ascii_uppercase, [9, 9]),
    "large special ids": Characters((500, 501, 502, 503), None, string.ascii_uppercase, []),
    "ids of its own": Characters((0, 1, 2, 3), 5, NUCLEOTIDES, [4]),
    "nothing for others": Characters((0, 1, 2, 3), None, NUCLEOTIDES, []),
    "two for others": Characters((0, 1, 2, 3), None, NUCLEOTIDES, [8, 9]),
    "no table": SimpleNamespace(
        pad_id=0, bos_id=1, eos_id=2, sep_id=3,
        text_to_ids=lambda text: [4 + len(text[k : k + 3]) for k in range(0, len(text), 3)],
    ),
}  # fmt: skip
ENCODINGS = {name: encoding_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}


class Fetcher:
    """A fetcher whose windows are in a dictionary."""

    least_room = 1

    def __init__(self, rows: list[list[Window]]) -> None:
        self._windows = {(0, window.window_idx): window for row in rows for window in row}

    def fill(self, wanted: Any, sizes: Any, rows: np.ndarray) -> Placed:
        placed, each = [], iter(wanted)
        for k, size in enumerate(sizes):
            at = 0
            for _ in range(size):
                window = self._windows[next(each)]
                first = at + len(window.header)
                end = first + len(window.bases)
                self.check_fits(end, rows.shape[1])
                rows[k, first:end] = window.bases
                placed.append((k, at, first, end, window.header, window.reverse))
                at = end + self.has_eos
        *numbers, headers, reverse = zip(*placed, strict=True) if placed else [()] * 6
        return Placed(*map(list, numbers), list(headers), list(reverse))

    def one(self, wanted: Any, memory: np.ndarray) -> One:
        window = self._windows[wanted]
        memory[: len(window.bases)] = window.bases
        return One(memory[: len(window.bases)], window.header, window.reverse)

    def unreadable_letters(self, window_idx: int, error: UnicodeError) -> DatabaseError:
        return DatabaseError(f"{window_idx}: {error}")

    def check_fits(self, tokens: int, seq_length: int) -> None:
        if tokens > seq_length:
            raise DatabaseError(f"{tokens} > {seq_length}")

    def check_loss(self, any_loss: bool, *, masked: bool = False) -> None:
        """Nothing to report."""


def maker(form: RowFormat, rows: list[list[Window]], **options: Any) -> RowMaker:
    fetcher: Any = Fetcher(rows)
    fetcher.has_eos = form.include_eos
    packed = form.packed_bases is not None
    return RowMaker(form, fetcher, **{"compact": False, "packed": packed, "reuse": True, **options})


def made(of: RowMaker, rows: list[list[Window]]) -> dict[str, np.ndarray]:
    wanted = [(0, window.window_idx) for row in rows for window in row]
    return of.make(wanted, list(map(len, rows)))


@st.composite
def batches(draw: st.DrawFn) -> tuple[RowFormat, list[list[Window]]]:
    """A layout, and the windows of some rows."""
    encoding = ENCODINGS[draw(st.sampled_from(sorted(ENCODINGS)))]
    packed = draw(st.booleans())
    options = {name: draw(st.booleans()) for name in ("include_bos", "include_sep", "include_eos")}
    if encoding.table is not None:
        options |= {name: draw(st.sampled_from([False, False, True])) for name in ("mask_ambiguous", "loss_on_eos")}
        soft = draw(st.sampled_from([1, 1, 0.5]))
    else:
        soft = 1
    options["loss_on_eos"] = options.get("loss_on_eos", False) and options["include_eos"]
    form = RowFormat(T, encoding, soft_mask_weight=soft, packed_bases=BASES if packed else None, **options)
    letters = draw(
        st.sampled_from(["ACGT", "ACGTN", "ACGTacgtn", "ACGTRYKMXQ", "ACGT*-", "ACGTN@#", "ACGT@#-", "AC#*"])
    )
    if packed and any(len(encoding.text_to_ids(letter.upper())) > 1 for letter in letters):
        letters = "ACGT"  # a pack has room for one id per letter, see test_packs.py
    rows = []
    for k in range(draw(st.integers(1, 5))):
        row, at = [], 0
        while len(row) < (6 if packed else 1):
            header = form.header(draw(st.sampled_from([[], [], [33], [700, 701, 702]])))
            specials = len(header) + form.include_eos
            room = T - at - specials if packed else T - specials
            if room < 1 or (row and draw(st.booleans())):
                break
            text = draw(st.text(letters, min_size=1, max_size=room))
            bases = np.frombuffer(text.encode(), dtype=np.uint8)
            row.append(Window(bases, draw(st.booleans()), header, 10 * k + len(row), "B__E-S__C", 0, 0))
            at += specials + len(bases)
        rows.append(row)
    return form, rows


def arrays(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return (
        rng.integers(0, 99, (rows, T)), rng.integers(0, 99, (rows, T)), rng.random((rows, T), dtype=np.float32)
    )  # fmt: skip


def one_by_one(form: RowFormat, rows: list[list[Window]]) -> tuple[Any, ...]:
    """Return the rows as `RowEncoder` makes them, and where their windows end."""
    encoder = RowEncoder(form)
    tokens, labels, loss_mask = arrays(len(rows))
    ends = []
    for k, row in enumerate(rows):
        at, of_row = 0, []
        for window in row:
            packed_limit = at + len(window.header) + len(window.bases) + form.include_eos
            limit = T if form.packed_bases is None else packed_limit
            at = encoder.add(at, limit, window.bases, window.reverse, window.header, tokens[k], labels[k], loss_mask[k])
            of_row.append(at)
        encoder.pad(at, tokens[k], labels[k], loss_mask[k])
        ends.append(of_row)
    return tokens, labels, loss_mask, ends


@given(batches(), st.integers(1, 4))
def test_a_block_is_its_rows(batch, block_rows):
    form, rows = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", T * block_rows)
        of = maker(form, rows)
    try:
        wanted = one_by_one(form, rows)
    except UnicodeError:  # letters that cannot be weighed
        with pytest.raises(DatabaseError):
            made(of, rows)
        return
    found = made(of, rows)
    for name, right in zip(("tokens", "labels", "loss_mask"), wanted[:3], strict=True):
        assert (found[name] == right).all(), (name, found[name].tolist(), right.tolist())
    if form.packed_bases is not None:
        for boundaries, row in zip(found["cu_seqlens"], wanted[3], strict=True):
            assert {0, *row, T} == set(boundaries.tolist())


@given(batches())
def test_codes_expand_to_the_same_or_are_refused(batch):
    form, rows = batch
    if form.encoding.table is None:
        return
    rows = [[w._replace(header=form.header([])) for w in row] for row in rows]  # tags travel beside the codes
    of = maker(form, rows, compact=True)
    known = all(
        (form.encoding.table[window.bases if not window.reverse else COMPLEMENT[window.bases]] >= 0).all()
        for row in rows
        for window in row
    )
    if not known:
        with pytest.raises(DatabaseError, match="has no id of its own"):
            made(of, rows)
        return
    found = made(of, rows)
    tokens, labels, loss_mask = arrays(len(rows))
    CodeTables(form).expand(found["codes"], tokens, labels, loss_mask)
    wanted = one_by_one(form, rows)
    assert (tokens == wanted[0]).all()
    if form.packed_bases is None:
        assert (labels == wanted[1]).all()
        assert (loss_mask == wanted[2]).all()
    assert CodeTables(form).any_loss(found["codes"], found.get("cu_seqlens")) == bool(wanted[2].any())


COMPLEMENT = np.arange(256, dtype=np.uint8)
for _one, _other in zip("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN", strict=True):
    COMPLEMENT[[ord(_one), ord(_one.lower())]] = ord(_other), ord(_other.lower())


def test_a_pack_that_does_not_fit_is_refused():
    form = RowFormat(T, ENCODINGS["built in"], packed_bases=BASES)
    windows = [Window(np.full(BASES, 65, dtype=np.uint8), False, form.header([]), k, "B__E-S__C", 0, 0) for k in (0, 1)]
    with pytest.raises(DatabaseError, match="65 > 40"):
        made(maker(form, [windows]), [windows])
    with pytest.raises(UsageError, match="packed for 10 special tokens"):
        dataclasses.replace(form).room(form.header(list(range(20))))
