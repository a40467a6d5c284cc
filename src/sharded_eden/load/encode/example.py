"""The definition of a row: bases of one window -> tokens, labels and loss mask; reverse complement; choice of the strand. Pure.

tokens      BOS  tag...  SEP   A   C   G  ...   T   EOS  PAD  PAD
labels      tag...  SEP   A    C   G  ...   T  EOS  PAD  PAD  PAD     (tokens shifted left)
loss_mask    0  ...  0    1    1   1  ...   1   0    0    0    0      (1 where the label is a base)

Stitch marks (`@` and `#`) are tokens whose labels never count. A packed row holds several windows one after another, each with
its own header and EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, printable
from sharded_eden.format.commands import pack_by_tokens_command, precompute_command
from sharded_eden.format.schema import NUCLEOTIDES, STITCH_MARKS
from sharded_eden.load.encode.masking import Masking
from sharded_eden.load.encode.stitch_marks import (
    LEAST_PLAIN,
    has_stitch_marks,
    marks_alone_are_below,
    refuse_stitch_marks,
    weighs_plainly,
)
from sharded_eden.load.encode.tokenizer import UNKNOWN, Encoding, fingerprint_of
from sharded_eden.shuffle import FEW, MASK64, derive_keys, mix64, mix64_many

_PAIRS = dict(zip("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN", strict=True))
COMPLEMENT = np.arange(256, dtype=np.uint8)
"""(256,) uint8: byte -> byte of its complement, case kept, other bytes unchanged. IUPAC letters, U taken as T."""
for _base, _partner in _PAIRS.items():
    COMPLEMENT[ord(_base)] = ord(_partner)
    COMPLEMENT[ord(_base.lower())] = ord(_partner.lower())
_COMPLEMENT_TEXT = {i: int(c) for i, c in enumerate(COMPLEMENT) if i != c}

LARGEST_WEIGHT = 1e30
"""The largest weight of a letter in the loss: a larger one would be infinite in a float32, or its sum over a batch."""


def reverse_complement(sequence: str) -> str:
    """Return the other strand of a sequence, read in its own direction: `ATCN` -> `NGAT`. Case is kept."""
    return sequence.translate(_COMPLEMENT_TEXT)[::-1]


def is_reversed(seed: int, epoch: int, window_idx: int) -> bool:
    """Return whether a row holds the reverse complement: with probability 1/2, from (seed, epoch, window index) alone."""
    (key,) = derive_keys(1, "strand", seed, epoch)
    return bool(mix64((window_idx * 0x9E3779B97F4A7C15 + key) & MASK64) >> 63)


def strands(seed: int, wanted: Sequence[tuple[int, int]]) -> list[bool]:
    """Return `is_reversed` of many (epoch, window index) pairs."""
    if len(wanted) <= FEW:
        return [is_reversed(seed, epoch, window_idx) for epoch, window_idx in wanted]
    epochs = {epoch for epoch, _ in wanted}
    keys = {epoch: derive_keys(1, "strand", seed, epoch)[0] for epoch in epochs}
    key = np.array([keys[epoch] for epoch, _ in wanted], dtype=np.uint64)
    windows = np.array([window_idx for _, window_idx in wanted], dtype=np.uint64)
    flags: list[bool] = (
        (mix64_many(windows * np.uint64(0x9E3779B97F4A7C15) + key) >> np.uint64(63)).astype(bool).tolist()
    )
    return flags


@dataclass(frozen=True)
class RowFormat:
    """The layout of a row of `seq_length` tokens, and the weights of its labels in the loss.

    Raises:
        UsageError: the tokenizer lacks a special id that the row needs.
    """

    seq_length: int
    encoding: Encoding
    include_bos: bool = True
    include_sep: bool = True
    include_eos: bool = True
    packed_bases: int | None = None
    """The most bases of a window in a packed row, as the packs assume; None: as many as fit."""
    window_bases: int | None = None
    """The bases of a window where they do not depend on the tokens of a row; None: one token for each base."""
    special_tokens: int = 3
    """With `window_bases`: the special tokens that packs count for each window."""
    rebuild: str = precompute_command("WINDOWS.db", pack=True)
    """The command that packs the windows again, without `--special-tokens`."""
    mask_ambiguous: bool = False
    """No loss on labels other than A, C, G and T."""
    soft_mask_weight: float = 1.0
    """The weight of lower-case letters (repeats) in the loss."""
    loss_on_eos: bool = False
    """The label EOS counts in the loss."""
    masking: Masking | None = None
    """Masked language modelling; None for causal rows."""

    def __post_init__(self) -> None:
        if not 0 <= self.soft_mask_weight <= LARGEST_WEIGHT:
            raise UsageError(
                f"soft_mask_weight must be a number from 0 on, at most {LARGEST_WEIGHT:g}, not {self.soft_mask_weight}"
            )
        if self.loss_on_eos and not self.include_eos:
            raise UsageError("loss_on_eos=True needs rows with an EOS token: leave include_eos=True")
        if self.weighs_letters and self.encoding.table is None:
            raise UsageError(
                "mask_ambiguous and soft_mask_weight need a tokenizer with one id per letter, so that each label is one letter"
            )
        if self.masking is not None:
            self._check_masking(self.masking)
        for name, wanted in (("bos", self.include_bos), ("sep", self.include_sep), ("eos", self.include_eos)):
            if wanted and getattr(self.encoding, name) is None:
                raise UsageError(f"the tokenizer has no {name.upper()} id: pass {name}_id=, or include_{name}=False")

    def _check_masking(self, masking: Masking) -> None:
        table = self.encoding.table
        if table is None:
            raise UsageError(
                'objective="mlm" needs a tokenizer with one id per letter, so that each masked token is one base. Mask the '
                "tokens of others in the collate function, for instance by transformers.DataCollatorForLanguageModeling"
            )
        if masking.mask_id in self.encoding.special or (table == masking.mask_id).any():
            raise UsageError(
                f"mask_id={masking.mask_id} is also the id of another token: MASK needs an id of its own, because a model "
                "cannot tell them apart"
            )

    @cached_property
    def letters(self) -> int:
        """An integer that tells the ids of letters apart, in [0, 2**63)."""
        return fingerprint_of(self.encoding.text_to_ids)

    @property
    def special_ids(self) -> dict[str, int | None]:
        """The ids of `bos`, `sep`, `eos` and `pad`; None for tokens that rows do not have."""
        ids = self.encoding
        return {
            "bos": ids.bos if self.include_bos else None,
            "sep": ids.sep if self.include_sep else None,
            "eos": ids.eos if self.include_eos else None,
            "pad": ids.pad,
        }

    @property
    def buffer_bases(self) -> int:
        """Bytes of memory in which a window and its special tokens have room as letters."""
        return self.seq_length + (self.window_bases or 0)

    @property
    def weighs_letters(self) -> bool:
        """Whether letters have different weights in the loss."""
        return self.mask_ambiguous or self.soft_mask_weight != 1

    @property
    def weighs_labels(self) -> bool:
        """Whether some letters are no labels that count."""
        return self.weighs_letters or self.masking is not None

    def loss_weights(self) -> NDArray[np.float32] | None:
        """Return the weight of each letter as a label, (256,) float32; None for a tokenizer without one id per letter.

        Source of the weight of repeats: Brixi et al., "Genome modeling and design across all domains of life with Evo 2",
        2025, where it is 0.1.
        """
        table = self.encoding.table
        if table is None:
            return None
        weights = np.ones(256, dtype=np.float32)
        weights[ord("a") : ord("z") + 1] = self.soft_mask_weight
        if self.mask_ambiguous:
            weights[[byte for byte in range(256) if byte not in b"ACGTacgt"]] = 0
        weights[list(STITCH_MARKS.encode())] = 0
        weights[np.isin(table, list(self.encoding.special))] = 0
        return weights

    def header(self, tag_ids: list[int]) -> NDArray[np.int64]:
        """Return BOS, the ids of the control tag, SEP: (H,) int64."""
        bos = [self.encoding.bos] if self.include_bos else []
        sep = [self.encoding.sep] if self.include_sep else []
        return np.array([*bos, *tag_ids, *sep], dtype=np.int64)

    def tag_of(self, header: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of the control tag in a header."""
        return header[int(self.include_bos) : len(header) - self.include_sep]

    def room(self, header: NDArray[np.int64]) -> int:
        """Return how many bases fit into a row with this header.

        Raises:
            UsageError: no base fits.
        """
        room = self.seq_length - len(header) - self.include_eos
        if self.window_bases is not None and room >= 1:
            if self.packed_bases is not None and self.seq_length - room > self.special_tokens:
                raise UsageError(
                    f"the windows were packed for {self.special_tokens} special tokens each, but header and EOS take "
                    f"{self.seq_length - room}. Precompute them with --special-tokens {self.seq_length - room}, and pack again"
                )
            return self.window_bases
        if self.packed_bases is not None and self.window_bases is None:
            if room < self.packed_bases:
                taken, counted = self.seq_length - room, self.seq_length - self.packed_bases
                raise UsageError(
                    f"the windows were packed for {counted} special tokens each, but header and EOS take {taken}. Pack "
                    f"them for as many: {self.rebuild} --special-tokens {taken}"
                )
            return self.packed_bases
        if room < 1:
            raise UsageError(
                f"seq_length={self.seq_length} leaves no room for a base beside {len(header)} header tokens"
                f"{' and EOS' if self.include_eos else ''}: use a longer seq_length, or no control tags"
            )
        return room


class RowEncoder:
    """Fills rows of int64 tokens, int64 labels and float32 loss masks.

    A row is a sequence of windows, each with its own header and EOS, and then padding. Without packing, it is one window.

    Args:
        row_format: the layout.
    """

    def __init__(self, row_format: RowFormat) -> None:
        self.format = row_format
        encoding = row_format.encoding
        self._text_to_ids: Callable[[str], list[int]] = encoding.text_to_ids
        self._specials = np.array(sorted(encoding.special), dtype=np.int64)
        self._pad = encoding.pad
        self._eos = encoding.eos if row_format.include_eos else None
        self._table = encoding.table
        self._weights: NDArray[np.float32] | None = row_format.loss_weights()
        self._weighs_plainly = weighs_plainly(self._weights)
        self._as_it_is = self._known = 1, 0  # between these bytes, letters are their own ids, or have ids
        if encoding.table is not None:
            self._table_of_complement = encoding.table[COMPLEMENT]
            self._as_it_is = letters_within(encoding.table == np.arange(256))
            self._known = letters_within(encoding.table != UNKNOWN)

    def fill(
        self,
        bases: NDArray[np.uint8],
        reverse: bool,
        header: NDArray[np.int64],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> None:
        """Fill one row with one window.

        Args:
            bases: (n,) uint8, the letters of the window, n at most `RowFormat.room(header)`.
            reverse: use the reverse complement.
            header: (H,) int64, from `RowFormat.header`.
            tokens: (T,) int64, written.
            labels: (T,) int64, written: tokens shifted left, PAD last.
            loss_mask: (T,) float32, written: 1 where the label is a base.

        Raises:
            UnicodeError: the bases are not printable ASCII, or the tokenizer cannot encode them.
        """
        end = self.add(0, len(tokens), bases, reverse, header, tokens, labels, loss_mask)
        self.pad(end, tokens, labels, loss_mask)

    def add(
        self,
        start: int,
        limit: int,
        bases: NDArray[np.uint8],
        reverse: bool,
        header: NDArray[np.int64],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
    ) -> int:
        """Write one window into a row, from `start` on and before `limit`; return where it ends. See `fill` for the rest."""
        first = start + len(header)
        end = first + len(bases)
        least = None if self._table is None else self._take(bases, reverse, tokens[first:end])
        by_table = least is not None
        if not by_table:
            room = tokens[first : limit - self.format.include_eos]
            end = first + self._tokenize(bases, reverse, room, is_first=start == 0)
        tokens[start:first] = header
        stop = end
        if self._eos is not None:
            tokens[end] = self._eos
            stop += 1
        if stop == start:  # no header, no EOS, and a tokenizer that makes nothing of so few bases
            return stop
        labels[start : stop - 1] = tokens[start + 1 : stop]
        labels[stop - 1] = self._pad
        earning, last = max(first - 1, start), max(end - 1, start)
        loss_mask[start:earning] = 0
        if least is not None and self._weighs_plainly and least >= LEAST_PLAIN:
            loss_mask[earning:last] = 1
        elif by_table and self._weighs_plainly and marks_alone_are_below(bases):
            shown = bases[::-1] if reverse else bases
            loss_mask[earning:last] = shown[earning + 1 - first :] >= LEAST_PLAIN
        elif by_table or self._is_by_letter(bases):
            shown = COMPLEMENT[bases[::-1]] if reverse else bases
            loss_mask[earning:last] = self._weights[shown[earning + 1 - first :]]  # type: ignore[index]
        else:
            loss_mask[earning:last] = ~np.isin(labels[earning:last], self._specials)
        loss_mask[last:stop] = 0
        if self.format.loss_on_eos and end > start:
            loss_mask[end - 1] = 1
        return stop

    def pad(
        self, end: int, tokens: NDArray[np.int64], labels: NDArray[np.int64], loss_mask: NDArray[np.float32]
    ) -> None:
        """Fill a row from `end` on with padding."""
        tokens[end:] = self._pad
        labels[end:] = self._pad
        loss_mask[end:] = 0

    def _take(self, bases: NDArray[np.uint8], reverse: bool, out: NDArray[np.int64]) -> int | None:
        """Look bases up in the table; return the least byte of them, None where the table lacks any."""
        assert self._table is not None  # noqa: S101 - narrows the type
        if not len(out):
            return LEAST_PLAIN
        least, most = int(np.minimum.reduce(bases)), int(np.maximum.reduce(bases))
        if reverse:
            np.take(self._table_of_complement, bases[::-1], out=out, mode="clip")
        elif least >= self._as_it_is[0] and most <= self._as_it_is[1]:
            out[:] = bases
            return least
        else:
            np.take(self._table, bases, out=out, mode="clip")
        is_known = (least >= self._known[0] and most <= self._known[1]) or np.minimum.reduce(out) != UNKNOWN
        return least if is_known else None

    def _is_by_letter(self, bases: NDArray[np.uint8]) -> bool:
        """Return whether labels of bases count by their letters, and not by their ids."""
        return self.format.weighs_letters or has_stitch_marks(bases)

    def _tokenize(self, bases: NDArray[np.uint8], reverse: bool, out: NDArray[np.int64], *, is_first: bool) -> int:
        """Write the ids that the tokenizer returns, up to the end of `out`; return their number."""
        text = bases.tobytes().decode("ascii").upper()
        if not text.isprintable():  # zeros of a damaged file, line breaks: ids of special tokens, were they encoded
            raise UnicodeError(f"{next(c for c in text if not c.isprintable())!r} is a control character")
        if self._table is None:
            refuse_stitch_marks(bases)
        try:
            ids = np.array(self._text_to_ids(reverse_complement(text) if reverse else text), dtype=np.int64)
        except UnicodeError:
            raise
        except Exception as error:  # of the user's tokenizer: any
            raise UnicodeError(
                f"the tokenizer cannot encode them ({type(error).__name__}: {printable(str(error), 200)})"
            ) from error
        if len(ids) != len(text) and self._is_by_letter(bases):
            raise UnicodeError("the tokenizer gives them another number of ids, so that no label is one letter")
        by_tokens = self.format.window_bases is not None
        if self.format.packed_bases is not None and by_tokens and len(ids) > len(out) and not is_first:
            raise UsageError(
                "the windows of a pack make more tokens than fit into their row, so they were packed with another tokenizer. "
                f"Pack again: {pack_by_tokens_command('WINDOWS.db', self.format.seq_length, force=True)}"
            )
        if self.format.packed_bases is not None and not by_tokens and len(ids) > len(out):
            raise UsageError(
                f"packed=True leaves room for one id per base; the tokenizer makes {len(ids)} ids of {len(text)} bases. "
                "Use packed=False, or a tokenizer with at most one id per base"
            )
        ids = ids[: len(out)]
        out[: len(ids)] = ids
        return len(ids)


def letters_within(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the first and last byte of the run of set flags around `A`; (1, 0) where that one is not set.

    With it, two reductions over a window show whether all of its letters are set, in a quarter of the time of one lookup
    per letter.
    """
    least = most = ord("A")
    if not flags[least]:
        return 1, 0
    while least > 0 and flags[least - 1]:
        least -= 1
    while most < len(flags) - 1 and flags[most + 1]:
        most += 1
    return least, most


def tag_ids_are_bases(encoding: Encoding, tag_ids: list[int]) -> bool:
    """Return whether some ids of a control tag are also ids of bases, so that the values cannot distinguish them."""
    bases: set[int] = set()
    for letter in NUCLEOTIDES:
        with suppress(Exception):  # a tokenizer need not know every letter
            bases.update(encoding.text_to_ids(letter))
    return not bases.isdisjoint(tag_ids)
