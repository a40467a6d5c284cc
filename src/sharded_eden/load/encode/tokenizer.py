"""Any tokenizer -> four special ids, and a table of 256 ids if the tokenizer allows one.

If a tokenizer gives each letter one id, whatever the letters beside it, the loader uses a table: one lookup per base instead of
one call per window. The table is first compared with the tokenizer on random texts. Every other tokenizer is called once for
each window.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError
from sharded_eden.format.schema import NUCLEOTIDES
from sharded_eden.load.encode.special_ids import mask_id_of as _mask_id_of
from sharded_eden.load.encode.special_ids import special_ids_of

logger = logging.getLogger(__name__)

UNKNOWN = np.iinfo(np.int64).min
"""The table's entry for a byte that the tokenizer does not encode on its own."""

PROBE_LENGTHS = (1, 2, 3, 7, 64, 501, 4096)
"""Lengths of the random texts on which a table must agree with its tokenizer."""


class NucleotideTokenizer:
    """The built-in tokenizer: one id per byte, as in Evo 2. PAD, BOS, EOS, SEP and MASK are 0 to 4.

    Source of the one-byte vocabulary: Brixi et al., "Genome modeling and design across all domains of life with Evo 2", 2025.

    Example:
        >>> from sharded_eden import NucleotideTokenizer
        >>> NucleotideTokenizer().text_to_ids("ACGT")
        [65, 67, 71, 84]
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2
    sep_id = 3
    mask_id = 4
    eod = eos_id
    vocab_size = 256

    def text_to_ids(self, text: str) -> list[int]:
        """Return the bytes of an ASCII text as ids.

        Raises:
            UnicodeEncodeError: the text holds other characters.
        """
        return list(text.encode("ascii"))

    def ids_to_text(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return bytes(i for i in ids if i > self.mask_id).decode("ascii")


@dataclass(frozen=True)
class Encoding:
    """What the loader needs to know about a tokenizer."""

    text_to_ids: Callable[[str], list[int]]
    """Text -> ids, no special tokens added."""
    bos: int | None
    eos: int | None
    sep: int | None
    pad: int
    table: NDArray[np.int64] | None
    """(256,) int64: byte -> id, lower case as upper case, `UNKNOWN` for bytes not in the table; None: no table."""
    ids_of_0_1: Mapping[str, int | None]
    """`bos`, `sep`, `eos` and `pad` as version 0.1 of this package took them: from attributes alone."""

    @property
    def special(self) -> frozenset[int]:
        """The ids that do not count in the loss, except EOS with `loss_on_eos`."""
        return frozenset(i for i in (self.bos, self.eos, self.sep, self.pad) if i is not None)


def encoding_of(
    tokenizer: Any,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    sep_id: int | None = None,
    pad_id: int | None = None,
) -> Encoding:
    """Return how a tokenizer encodes.

    A special id is the given one, else an attribute of the tokenizer, else (SEP and PAD) the id of `<SEP>` or `<PAD>` in its
    vocabulary, else (SEP and PAD) EOS.

    Args:
        tokenizer: with `text_to_ids`, or a `tokenize` that returns ints (Megatron), or of Hugging Face; None for the built-in.
        bos_id: the id of BOS; None: that of the tokenizer, as for all that follow.
        eos_id: the id of EOS.
        sep_id: the id of SEP.
        pad_id: the id of PAD.

    Raises:
        UsageError: it has no way to encode, neither a PAD nor an EOS id, or two different ids for SEP or PAD; or a given id
            stands for a base, or is not in the vocabulary.

    Example: `encoding_of(None).sep` is 3, `encoding_of(None, sep_id=7).sep` is 7.
    """
    tokenizer = NucleotideTokenizer() if tokenizer is None else tokenizer
    text_to_ids = _find_text_to_ids(tokenizer)
    given = {"bos": bos_id, "eos": eos_id, "sep": sep_id, "pad": pad_id}
    special = special_ids_of(tokenizer, text_to_ids, given)
    is_built_in = type(tokenizer) is NucleotideTokenizer and not vars(tokenizer)
    table = _built_in_table().copy() if is_built_in else _table(text_to_ids)
    if table is None:
        logger.warning(
            "%s is not one id per letter: it is called once for each window, which is many times slower than a table",
            _name(tokenizer),
        )
    return Encoding(
        text_to_ids=text_to_ids,
        bos=special.bos,
        eos=special.eos,
        sep=special.sep,
        pad=special.pad,
        table=table,
        ids_of_0_1=special.of_0_1,
    )


def text_to_ids_of(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return the function text -> ids of a tokenizer, which adds no special tokens; None is the built-in one.

    Raises:
        UsageError: it has no way to encode.
    """
    return _find_text_to_ids(NucleotideTokenizer() if tokenizer is None else tokenizer)


def fingerprint_of(text_to_ids: Callable[[str], list[int]]) -> int:
    """Return an integer in [0, 2**63) that tells tokenizers apart: a hash of the ids of fixed random texts."""
    choose, digest = random.Random(0), hashlib.blake2b(digest_size=8)
    for letters in ("ACGT", "ACGTN"):
        text, ids = "".join(choose.choices(letters, k=1999)), None
        with suppress(Exception):  # a tokenizer need not know N
            ids = [int(each) for each in text_to_ids(text)]
        digest.update(repr(ids).encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def mask_id_of(tokenizer: Any, mask_id: int | None = None) -> int:
    """Return the id of MASK: the given one, an attribute of the tokenizer (`mask_id`, `mask_token_id`), or in its vocabulary.

    Raises:
        UsageError: there is none, or it stands for a base or is not in the vocabulary.

    Example: `mask_id_of(None)` is 4.
    """
    tokenizer = NucleotideTokenizer() if tokenizer is None else tokenizer
    return _mask_id_of(tokenizer, _find_text_to_ids(tokenizer), mask_id)


def _name(tokenizer: Any) -> str:
    return type(tokenizer).__name__


def _find_text_to_ids(tokenizer: Any) -> Callable[[str], list[int]]:
    tried = []
    for name, make in (("text_to_ids", _method), ("tokenize", _method), ("encode", _hugging_face)):
        if not callable(getattr(tokenizer, name, None)):
            continue
        function = make(tokenizer, name)
        try:
            function("ACGT")
        except Exception as error:
            tried.append(f"{name}: {error}")
        else:
            return function
    raise UsageError(
        f"{_name(tokenizer)} is not a tokenizer: expected text_to_ids(text) -> ints, tokenize(text) -> ints, or a Hugging Face "
        f"tokenizer ({'; '.join(tried) or 'it has none of these methods'})"
    )


class _method:
    """Calls a method that turns text into ids."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name

    def __call__(self, text: str) -> list[int]:
        return _as_ints(getattr(self._tokenizer, self._name)(text))


class _hugging_face(_method):
    """Calls `encode` of `transformers` or `tokenizers`, without special tokens."""

    def __call__(self, text: str) -> list[int]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return _as_ints(getattr(encoded, "ids", encoded))


def _as_ints(values: Any) -> list[int]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    # A few types instead of thousands of values.
    if not isinstance(values, list | tuple) or not all(
        issubclass(kind, int | np.integer) for kind in set(map(type, values))
    ):
        raise TypeError(f"it returned {type(values).__name__}, not a list of integers")
    return cast("list[int]", list(values))


def _table(text_to_ids: Callable[[str], list[int]]) -> NDArray[np.int64] | None:
    """Return the table of a per-character tokenizer, None for any other."""
    table = np.full(256, UNKNOWN, dtype=np.int64)
    try:
        for letter in NUCLEOTIDES:
            (table[ord(letter)],) = text_to_ids(letter)
    except Exception:  # none or several ids for one letter, or it does not know the letter
        return None
    if not _agrees(text_to_ids, table, NUCLEOTIDES):
        return None
    others = {}
    for byte in range(32, 127):
        if chr(byte).upper() == chr(byte) and chr(byte) not in NUCLEOTIDES:
            try:
                (others[byte],) = text_to_ids(chr(byte))
            except Exception:
                continue
    with_others = table.copy()
    with_others[list(others)] = list(others.values())
    if others and _agrees(text_to_ids, with_others, NUCLEOTIDES + "".join(map(chr, others))):
        table = with_others
    for byte in range(ord("a"), ord("z") + 1):
        table[byte] = table[byte - 32]
    return table


@cache
def _built_in_table() -> NDArray[np.int64]:
    """Return the table of the built-in tokenizer: trying it on texts takes most of the time of opening a small data set."""
    table = _table(NucleotideTokenizer().text_to_ids)
    assert table is not None  # noqa: S101 - it has one id per letter
    return table


def _agrees(text_to_ids: Callable[[str], list[int]], table: NDArray[np.int64], alphabet: str) -> bool:
    choose = random.Random(0)
    for length in PROBE_LENGTHS:
        for letters in (alphabet, "ACGT", "ACGTN", "N"):
            text = "".join(choose.choices(letters, k=length))
            try:
                ids = text_to_ids(text)
            except Exception:
                return False
            if ids != table[np.frombuffer(text.encode(), dtype=np.uint8)].tolist():
                return False
    return True
