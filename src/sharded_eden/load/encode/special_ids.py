"""The special ids of a tokenizer: given, attributes, in the vocabulary, or EOS, in this order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from sharded_eden.errors import UsageError, shown
from sharded_eden.format.schema import NUCLEOTIDES

Ids = Mapping[str, int | None]
"""Ids of `bos`, `eos`, `sep` and `pad`."""

ATTRIBUTES = {
    "bos": ("bos_id", "bos_token_id"),
    "eos": ("eos_id", "eos_token_id", "eod", "eod_id"),
    "sep": ("_sep_id", "sep_id", "sep_token_id"),
    "pad": ("pad_id", "pad_token_id"),
}
"""The attributes of a tokenizer that may hold its special ids; the first integer from 0 on counts."""

MASK_ATTRIBUTES = ("mask_id", "mask_token_id")
MASK_TOKENS = ("[MASK]", "<mask>", "<MASK>")
"""The tokens that are looked for in the vocabulary of a tokenizer without an attribute for MASK."""

LARGEST_ID = (1 << 63) - 1
"""Tokens are int64."""

IN_VOCABULARY = {"sep": "<SEP>", "pad": "<PAD>"}
"""Special tokens that are looked for in the vocabulary of a tokenizer without such an attribute."""


class SpecialIds(NamedTuple):
    """The ids that rows are made of."""

    bos: int | None
    eos: int | None
    sep: int | None
    pad: int
    of_0_1: Ids
    """As version 0.1 of this package took them: from attributes alone."""


def special_ids_of(tokenizer: Any, text_to_ids: Callable[[str], list[int]], given: Ids) -> SpecialIds:
    """Return the special ids of a tokenizer.

    Args:
        tokenizer: any.
        text_to_ids: how it encodes.
        given: ids to use instead of its own; None: that of the tokenizer.

    Raises:
        UsageError: it has neither a PAD nor an EOS id, or two ids for SEP or PAD; or a given id stands for a base or is not
            in the vocabulary.
    """
    attributes = {name: _attributes(tokenizer, of) for name, of in ATTRIBUTES.items()}
    own = {name: next(iter(found.values()), None) for name, found in attributes.items()}
    of_0_1 = {**own, **{name: own["eos"] if own[name] is None else own[name] for name in IN_VOCABULARY}}
    given = _checked(tokenizer, text_to_ids, given)
    for name in IN_VOCABULARY:
        if given[name] is None:
            own[name] = _sep_or_pad(tokenizer, text_to_ids, name, attributes[name], own["eos"])
    bos, eos, sep, pad = (own[name] if given[name] is None else given[name] for name in ("bos", "eos", "sep", "pad"))
    pad = eos if pad is None else pad
    if pad is None:
        raise UsageError(
            f"the tokenizer {type(tokenizer).__name__} has neither a PAD nor an EOS id to fill short rows with: pass pad_id=, "
            "or give it an integer pad_id (or pad_token_id)"
        )
    return SpecialIds(bos, eos, eos if sep is None else sep, pad, of_0_1)


def mask_id_of(tokenizer: Any, text_to_ids: Callable[[str], list[int]], given: int | None) -> int:
    """Return the id of MASK: the given one, the attribute `mask_id` or `mask_token_id`, or a token of the vocabulary.

    Raises:
        UsageError: there is none, or it stands for a base or is not in the vocabulary.
    """
    if given is None:
        given = next(iter(_attributes(tokenizer, MASK_ATTRIBUTES).values()), None)
    for token in MASK_TOKENS:
        if given is None:
            given = _listed(tokenizer, token)
    if given is None:
        raise UsageError(
            f'objective="mlm" needs the id of MASK, and the tokenizer {type(tokenizer).__name__} has none: pass mask_id=, or '
            "give it an integer mask_id (or mask_token_id)"
        )
    checked = _checked(tokenizer, text_to_ids, {"mask": given})["mask"]
    assert checked is not None  # noqa: S101 - narrows the type
    return checked


def _attributes(tokenizer: Any, attributes: tuple[str, ...]) -> dict[str, int]:
    """Return the attributes of a tokenizer that hold a special id, and their values.

    Raises:
        UsageError: an id is beyond int64.
    """
    found = {}
    for attribute in attributes:
        try:
            value = getattr(tokenizer, attribute, None)
        except Exception:
            continue
        if (
            isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0
        ):  # SentencePiece: -1 is none
            if value > LARGEST_ID:
                raise UsageError(
                    f"{attribute}={shown(value)} of the tokenizer {type(tokenizer).__name__} is beyond int64"
                )
            found[attribute] = int(value)
    return found


def _sep_or_pad(
    tokenizer: Any, text_to_ids: Callable[[str], list[int]], name: str, attributes: Mapping[str, int], eos: int | None
) -> int | None:
    """Return the id of SEP or PAD that a tokenizer has, None where EOS stands in for it.

    Args:
        tokenizer: any.
        text_to_ids: how it encodes.
        name: `sep` or `pad`.
        attributes: its attributes that hold this id.
        eos: the id of EOS. An attribute equal to it is what a tokenizer without a token of its own says.

    Raises:
        UsageError: its vocabulary has the token with another id than the attribute, and the original loader would use that.
    """
    token = IN_VOCABULARY[name]
    for attribute, value in attributes.items():
        if attribute in {"_sep_id", "pad_id"}:  # the original loader asks for these first
            return value
        if value == eos:
            break
        listed = _listed(tokenizer, token)
        if listed not in {None, value}:
            raise UsageError(
                f"the tokenizer {type(tokenizer).__name__} has two ids for {name.upper()}: {attribute} is {value}, {token} in "
                f"its vocabulary is {listed}. Pass the right one: {name}_id="
            )
        return value
    found = _listed(tokenizer, token)
    return _encoded_alone(text_to_ids, token) if found is None else found


def _listed(tokenizer: Any, token: str) -> int | None:
    """Return the id of a token in the vocabulary that a tokenizer shows, a mapping or a list; None where there is none."""
    for attribute in ("get_vocab", "vocab"):
        with suppress(Exception):
            vocabulary = getattr(tokenizer, attribute)
            vocabulary = vocabulary() if callable(vocabulary) else vocabulary
            if isinstance(vocabulary, Mapping) and token in vocabulary:
                return int(vocabulary[token])
            if isinstance(vocabulary, list) and token in vocabulary:
                return vocabulary.index(token)
    return None


def _encoded_alone(text_to_ids: Callable[[str], list[int]], token: str) -> int | None:
    """Return the one id that a token such as `<SEP>` is encoded as, None where it is not one token."""
    others: set[int] = set()
    for text in (token[1:-1], "<>", f"<{token[1:-1]}?>"):  # an unknown token, or letters of the name alone, are not it
        with suppress(Exception):
            others.update(text_to_ids(text))
    with suppress(Exception):
        (found,) = text_to_ids(token)
        return None if found in others else found
    return None


def _checked(tokenizer: Any, text_to_ids: Callable[[str], list[int]], given: Ids) -> dict[str, int | None]:
    """Return given ids as plain integers; refuse those that stand for bases or are in no vocabulary."""
    letters: dict[int, str] = {}
    for letter in NUCLEOTIDES:
        with suppress(Exception):
            letters.update(dict.fromkeys(text_to_ids(letter), letter))
    sizes = [0]
    with suppress(Exception):
        sizes.append(operator.index(tokenizer.vocab_size))
    with suppress(Exception):
        sizes.append(len(tokenizer))  # with the tokens that were added
    checked: dict[str, int | None] = dict.fromkeys(given)
    for name, each in given.items():
        if each is None:
            continue
        value = -1
        with suppress(TypeError):  # no integer, or an array of them
            value = operator.index(each)
        if isinstance(each, bool) or not 0 <= value <= LARGEST_ID:
            raise UsageError(f"{name}_id must be an integer from 0 on, not {shown(each)}")
        checked[name] = value
        if value in letters:
            raise UsageError(
                f"{name}_id={value} is the id of the letter {letters[value]} in the tokenizer {type(tokenizer).__name__}: "
                "a special token needs an id of its own"
            )
        if value >= max(sizes) > 0:
            raise UsageError(
                f"{name}_id={value} is not an id of the tokenizer {type(tokenizer).__name__}, which has {max(sizes):,}"
            )
    return checked
