"""Rows of codes, one byte a token. Compact batches consist of codes; full batches are made from them in blocks of rows.

    codes       1    4  ...   3   A   C   g  ...   T    2    0    0
    tokens     BOS  tag...   SEP  65  67  71 ...   84  EOS  PAD  PAD

The code of a base is its letter, on the chosen strand; codes below 32 are special tokens. In compact batches, the codes of
characters such as `-`, which only databases of other tools hold, are higher by 128: so codes from `A` on count in the loss,
and stitch marks do not. So tokens and loss mask are one lookup each in a table of 256 entries. Where letters equal their ids,
they are only widened. A block of rows is one call of NumPy, which costs half as much as the same rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError
from sharded_eden.format.schema import STITCH_MARKS
from sharded_eden.load.encode.example import COMPLEMENT, RowFormat, letters_within
from sharded_eden.load.encode.masking import masked_codes
from sharded_eden.load.encode.stitch_marks import LEAST_PLAIN, marks_alone_are_below, weighs_plainly
from sharded_eden.load.encode.tokenizer import UNKNOWN, Encoding

LEAST_LETTER = 32
"""The first byte that can be a letter in a tokenizer's table."""

BLOCK_BYTES = 1 << 18
"""Codes that are converted to tensors at once: they stay in a core's cache between reading and use."""

_COMPLEMENT_BYTES = COMPLEMENT.tobytes()


class Specials(NamedTuple):
    """The codes of special tokens: control characters, which no sequence holds."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    sep: int = 3
    tag: int = 4


ODD = np.array([byte for byte in range(LEAST_LETTER, LEAST_PLAIN) if chr(byte) not in STITCH_MARKS])
"""The bytes that are neither letters nor stitch marks, and below letters."""

LIFT = 128
"""How much higher their codes are in compact batches."""

SENT = Specials()
"""The codes of compact batches."""


def specials_as_ids(form: RowFormat) -> Specials:
    """Return codes that are the ids of the tokenizer, where its special ids are small enough; else those of compact batches."""
    encoding = form.encoding
    pad, bos, eos, sep = (
        encoding.pad if i is None else i for i in (encoding.pad, encoding.bos, encoding.eos, encoding.sep)
    )
    if not all(0 <= i < LEAST_LETTER for i in (pad, bos, eos, sep)) or (form.loss_on_eos and eos in {pad, bos, sep}):
        return SENT
    return Specials(pad, bos, eos, sep, tag=pad)


def check_compact(row_format: RowFormat) -> None:
    """Raise an error for a layout that has no compact form.

    Raises:
        UsageError: the tokenizer does not have one id per letter, so its tokens cannot be made on a device.
    """
    if row_format.encoding.table is None:
        raise UsageError(
            "compact=True needs a tokenizer with one id per letter; this one must be called on the text of each window: "
            "leave compact=False"
        )


Ints = NDArray[np.int64]


def reverse_complement_in_place(letters: NDArray[np.uint8]) -> None:
    """Replace letters, (n,) uint8, by their reverse complement."""
    # bytes.translate is twice as fast as a lookup in NumPy, which widens bytes to indices first.
    letters[::-1] = np.frombuffer(letters.tobytes().translate(_COMPLEMENT_BYTES), dtype=np.uint8)


class CodeTables:
    """Codes -> ids and weights in the loss.

    Args:
        row_format: the layout of a row; its tokenizer is a table.
        specials: the codes of what is not a base.
    """

    def __init__(self, row_format: RowFormat, specials: Specials = SENT) -> None:
        encoding = row_format.encoding
        assert encoding.table is not None  # noqa: S101 - callers see to it
        self.ids: NDArray[np.int64] = _ids(encoding, encoding.table, specials)
        """(256,) int64: code -> id; `UNKNOWN` for codes of tags and bytes that the tokenizer does not encode alone."""
        weights = row_format.loss_weights()
        assert weights is not None  # noqa: S101 - the tokenizer is a table
        self.weights = weights
        """(256,) float32: code -> its weight as a label."""
        self.weights[:LEAST_LETTER] = 0
        if row_format.loss_on_eos:
            self.weights[specials.eos] = 1
        same = (self.ids == np.arange(256)) | (self.ids == UNKNOWN)  # codes without an id are in no row
        self._are_ids = np.logical_and.accumulate(same)  # (256,) bool: codes up to this one are their own ids
        self._pad = encoding.pad
        for table in (self.ids, self.weights):
            table[ODD + LIFT] = table[ODD]
        # After the lift: where the id of `-` is PAD, say, the weight of its higher code is 0.
        self._weighs_plainly = weighs_plainly(self.weights) and not self.weights[:LEAST_LETTER].any()
        self.labels: NDArray[np.int64] | None = None
        """(256,) int64: code -> its label, at its own place; None for causal rows, whose labels are the next tokens."""
        if row_format.masking is not None:
            codes, letters, tokens = masked_codes(encoding.table, row_format.masking.mask_id)
            self.labels = self.ids.copy()
            self.labels[codes] = self.ids[letters]
            self.ids[codes] = tokens
            masked_weights = self.weights[letters]
            self.weights[:] = 0
            self.weights[codes] = masked_weights

    def expand(
        self,
        codes: NDArray[np.uint8],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
        *,
        is_plain: bool = True,
    ) -> None:
        """Make tokens, labels and loss mask of rows, without tags and without the ends of windows inside a packed row.

        Args:
            codes: (B, T) uint8.
            tokens: (B, T) int64, written.
            labels: (B, T) int64, written: tokens shifted left, PAD last; of masked rows, the tokens before masking.
            loss_mask: (B, T) float32, written.
            is_plain: whether codes from 32 to 64 are stitch marks only; true in compact batches.
        """
        if self.labels is not None:
            for table, out in ((self.ids, tokens), (self.labels, labels), (self.weights, loss_mask)):
                np.take(table, codes, out=out, mode="clip")
            return
        if self._are_ids[codes.max(initial=0)]:
            tokens[...] = codes
            labels[:, :-1] = codes[:, 1:]
        else:
            np.take(self.ids, codes, out=tokens, mode="clip")
            labels[:, :-1] = tokens[:, 1:]
        labels[:, -1] = self._pad
        if self._weighs_plainly and is_plain:
            loss_mask[:, :-1] = codes[:, 1:] >= LEAST_PLAIN
        else:
            loss_mask[:, :-1] = np.take(self.weights, codes[:, 1:], mode="clip")
        loss_mask[:, -1] = 0

    def any_loss(self, codes: NDArray[np.uint8], cu_seqlens: NDArray[np.int32] | None = None) -> bool:
        """Return whether any label of rows (B, T) uint8 counts in the loss; packed rows have `cu_seqlens` (B, S)."""
        earning: NDArray[np.bool_] = (self.weights > 0)[codes]
        if self.labels is not None:
            return bool(earning.any())
        earning[:, 0] = False  # the first token of a window is not a label
        if cu_seqlens is not None:
            row, boundary = np.nonzero(cu_seqlens < codes.shape[1])
            earning[row, cu_seqlens[row, boundary]] = False
        return bool(earning.any())


def _ids(encoding: Encoding, table: NDArray[np.int64], specials: Specials) -> NDArray[np.int64]:
    ids = table.copy()
    ids[:LEAST_LETTER] = UNKNOWN
    for code, token in zip(specials, (encoding.pad, encoding.bos, encoding.eos, encoding.sep), strict=False):
        ids[code] = encoding.pad if token is None else token
    return ids


def _are_within(limits: tuple[int, int], codes: NDArray[np.uint8], letters: int) -> bool:
    """Return whether rows (B, T), which hold so many letters, hold only such from the first to the last of these."""
    least, most = limits
    return bool(codes.max(initial=0) <= most and np.count_nonzero(codes >= least) == letters)


def lift_odd(codes: NDArray[np.uint8]) -> None:
    """Raise the codes of odd characters in compact rows (B, T), in place."""
    if not marks_alone_are_below(codes):
        codes[np.isin(codes, ODD)] += np.uint8(LIFT)


class CodeEncoder:
    """Completes rows of codes that hold the letters already.

    Args:
        row_format: the layout of a row; its tokenizer is a table.
        specials: the codes of what is not a base.
    """

    def __init__(self, row_format: RowFormat, specials: Specials = SENT) -> None:
        table = row_format.encoding.table
        assert table is not None  # noqa: S101 - callers see to it
        self._specials = specials
        self._has_bos, self._has_sep = row_format.include_bos, row_format.include_sep
        self._has_eos = row_format.include_eos
        self._untagged = row_format.include_bos + row_format.include_sep
        self._known = table != UNKNOWN
        self._known[:LEAST_LETTER] = False
        self._all_known = letters_within(self._known)
        self._all_plain = letters_within(self._known & (np.arange(256) >= LEAST_PLAIN))

    def frame(
        self,
        codes: NDArray[np.uint8],
        rows: Sequence[int],
        starts: Sequence[int],
        firsts: Sequence[int],
        ends: Sequence[int],
        *,
        tagged: bool,
    ) -> None:
        """Write the special tokens around the letters of windows. Letters are not checked.

        Args:
            codes: (B, T) uint8, written.
            rows: (n,), the row of each window.
            starts: (n,), where it begins: with BOS, control tag and SEP.
            firsts: (n,), where its letters begin.
            ends: (n,), where they end.
            tagged: whether there are control tags.
        """
        flat, length = memoryview(codes.reshape(-1)), codes.shape[1]  # type: ignore[arg-type]
        _, bos, eos, sep, tag = self._specials
        if tagged:
            for row, start, first in zip(rows, starts, firsts, strict=True):
                codes[row, start:first] = tag
        if self._has_bos:
            for row, start in zip(rows, starts, strict=True):
                flat[row * length + start] = bos
        if self._has_sep:
            for row, first in zip(rows, firsts, strict=True):
                flat[row * length + first - 1] = sep
        if self._has_eos:
            for row, end in zip(rows, ends, strict=True):
                flat[row * length + end] = eos

    def is_plain(self, codes: NDArray[np.uint8], letters: int) -> bool:
        """Tell whether the tokenizer knows every letter of these rows (B, T), which hold so many, and none is below `A`."""
        return _are_within(self._all_plain, codes, letters)

    def knows_all(self, codes: NDArray[np.uint8], letters: int) -> bool:
        """Tell whether the tokenizer knows every letter of these rows (B, T), which hold so many letters."""
        if _are_within(self._all_known, codes, letters):
            return True
        # Letters among the control characters are none that a tokenizer's table knows.
        return int(np.count_nonzero(np.take(self._known, codes, mode="clip"))) == letters

    def check(self, letters: NDArray[np.uint8]) -> None:
        """Raise an error for letters of a window that are not in the tokenizer's table.

        Raises:
            UnicodeError: with the first one.
        """
        known = np.take(self._known, letters, mode="clip")
        if not known.all():
            unknown = letters[~known][0]
            raise UnicodeError(f"byte {unknown} ({chr(unknown)!r}) has no id of its own in the tokenizer")
