"""Every kind of tokenizer, with and without a table of ids: the rows are the same."""

from __future__ import annotations

import string
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tokenizers
import torch
import worlds
from tokenizers import Regex, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from worlds import T, as_lists, expected

import oracle
from sharded_eden import NucleotideTokenizer
from sharded_eden.errors import DatabaseError, EdenWarning, UsageError
from sharded_eden.format.schema import NUCLEOTIDES
from sharded_eden.load.encode.example import is_reversed
from sharded_eden.load.encode.tokenizer import UNKNOWN, encoding_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


class Bytes:
    """The built-in tokenizer's ids under `text_to_ids`, as another class would have them."""

    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> Any:
        return list(text.encode("ascii"))


class Slow:
    """The same tokenizer without the properties that allow a table."""

    def __init__(self, tokenizer: Any) -> None:
        self._encoding = encoding_of(tokenizer)
        self.bos_id, self.eos_id = self._encoding.bos, self._encoding.eos
        self.sep_id, self.pad_id = self._encoding.sep, self._encoding.pad
        self.calls = 0

    def text_to_ids(self, text: str) -> list[int]:
        self.calls += 1
        return [] if len(text) == 1 else self._encoding.text_to_ids(text)


def words(*texts: str) -> dict[str, int]:
    return {text: k for k, text in enumerate(texts)}


SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[SEP]", "[UNK]")
NAMES = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def character_tokenizer(letters: str = string.ascii_letters + "<>_-*") -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words(*SPECIALS, *letters), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return tokenizer


def pair_tokenizer() -> tokenizers.Tokenizer:
    """Byte-pair encoding, learnt from DNA."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=80, special_tokens=list(SPECIALS), initial_alphabet=list(NUCLEOTIDES), show_progress=False
    )
    tokenizer.train_from_iterator([worlds.random_sequence(400, k, "AACGGTTT") for k in range(20)], trainer)
    return tokenizer


def hugging_face(tokenizer: tokenizers.Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names or NAMES))


def row(ids: list[int], header: list[int], eos: int, pad: int) -> list[int]:
    """The documented row: header, as many ids as fit, EOS, padding."""
    whole = [*header, *ids[: T - len(header) - 1], eos]
    return whole + [pad] * (T - len(whole))


def shown(folder: Path, window_idx: int) -> str:
    """The bases of a window that a row has room for, without control tag."""
    sequence_id, k = worlds.rows_of(folder)[window_idx]
    return worlds.CONTIGS[sequence_id][k * worlds.STRIDE : k * worlds.STRIDE + T - 3].upper()


# ---- the built-in ----


def test_the_built_in_tokenizer_is_one_id_per_byte(folder):
    built_in = NucleotideTokenizer()
    assert (built_in.pad_id, built_in.bos_id, built_in.eos_id, built_in.sep_id) == (0, 1, 2, 3)
    assert built_in.text_to_ids("ACGTn<") == [65, 67, 71, 84, 110, 60]
    assert built_in.ids_to_text([1, 3, 65, 67, 2, 0]) == "AC"
    with pytest.raises(UnicodeEncodeError):
        built_in.text_to_ids("é")
    table = encoding_of(None).table
    assert table is not None
    for byte in range(256):
        printable = 32 <= byte < 127
        assert table[byte] == (ord(chr(byte).upper()) if printable else UNKNOWN), byte
    with worlds.dataset(folder) as nameless, worlds.dataset(folder, built_in) as named:
        assert as_lists(nameless[0]) == as_lists(named[0]) == expected(folder, 0)


# ---- the interface of a tokenizer ----


class Tokenizes:
    """As Megatron's: `tokenize` returns ids, `eod` ends a document."""

    eod, bos_id, pad_id = 90, 91, 92

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) - 60 for letter in text]


class TokenizesToText(Tokenizes):
    """As Hugging Face's: `tokenize` returns pieces, `encode` ids."""

    def tokenize(self, text: str) -> Any:
        return list(text)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [ord(letter) - 60 for letter in text]
        return [999, *ids, 999] if add_special_tokens else ids


class BothWays(Tokenizes):
    def text_to_ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(("kind", "offset"), [(Tokenizes, 60), (TokenizesToText, 60), (BothWays, 0)])
def test_the_first_method_that_gives_ids_is_used(folder, kind, offset):
    encoding = encoding_of(kind())
    assert (encoding.bos, encoding.eos, encoding.sep, encoding.pad) == (91, 90, 90, 92)
    assert encoding.table is not None
    with worlds.dataset(folder, kind()) as dataset:
        for i in range(len(dataset)):
            ids = [ord(letter) - offset for letter in shown(folder, i)]
            assert dataset[i]["tokens"].tolist() == row(ids, [91, 90], 90, 92)


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor, lambda ids: [np.int64(i) for i in ids]])
def test_ids_may_come_as_any_sequence_of_integers(folder, convert):
    class Converts(Bytes):
        def text_to_ids(self, text: str) -> Any:
            return convert(super().text_to_ids(text))

    for tokenizer in (Converts(), Slow(Converts())):
        with worlds.dataset(folder, tokenizer) as dataset:
            assert as_lists(dataset[3]) == expected(folder, 3)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("ACGT", "it returned str"),
        (["A", "C"], "it returned list"),
        (None, "it returned NoneType"),
        ([1.0], "it returned list"),
    ],
)
def test_what_is_no_tokenizer(folder, returned, reason):
    class Odd:
        def text_to_ids(self, text: str) -> Any:
            return returned

    with pytest.raises(UsageError) as caught:
        worlds.dataset(folder, Odd())
    assert "Odd is not a tokenizer: expected text_to_ids(text) -> ints" in str(caught.value)
    assert f"text_to_ids: {reason}" in str(caught.value)
    with pytest.raises(UsageError, match=r"object is not a tokenizer.*it has none of these methods"):
        worlds.dataset(folder, object())


# ---- the mocks of existing callers ----


def mock(**attributes: Any) -> Mock:
    tokenizer = Mock()
    tokenizer.bos_id, tokenizer.eos_id, tokenizer._sep_id, tokenizer.pad_id = 1, 2, 3, 0
    tokenizer.tokenize.return_value = [10, 11, 12]
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize("tags", [False, True])
def test_a_mock_as_existing_callers_have_it(folder, tags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EdenWarning)  # the mock's tag has the ids of its bases: see the next but one
        dataset = worlds.dataset(folder, mock(), use_control_tags=tags)
    with dataset:
        header = [1, 10, 11, 12, 3] if tags else [1, 3]
        if tags:
            assert dataset.ctrl_ids_map["BCR__ECT-S0__CT1-1"] == [10, 11, 12]
        for i in range(len(dataset)):
            item = dataset[i]
            assert item["tokens"].tolist() == row([10, 11, 12], header, 2, 0)
            assert item["labels"].tolist() == [*item["tokens"].tolist()[1:], 0]
            first = len(header) - 1
            assert item["loss_mask"].tolist() == [0.0] * first + [1.0] * 3 + [0.0] * (T - 3 - first)


def test_a_mock_whose_text_to_ids_is_set(folder):
    tokenizer = mock()
    tokenizer.text_to_ids.return_value = [20, 21]
    with worlds.dataset(folder, tokenizer) as dataset:
        assert dataset[0]["tokens"].tolist() == row([20, 21], [1, 3], 2, 0)
    tokenizer = mock(text_to_ids=Mock(side_effect=lambda text: list(text.encode())))
    with worlds.dataset(folder, tokenizer) as dataset:
        assert as_lists(dataset[0]) == expected(folder, 0)


def test_a_tag_that_a_mock_encodes_as_it_encodes_bases_warns(folder):
    tokenizer = mock(tokenize=Mock(side_effect=lambda text: [10] * len(text)))
    with pytest.warns(EdenWarning, match="is encoded with ids that also stand for bases"):
        dataset = worlds.dataset(folder, tokenizer, use_control_tags=True)
    with dataset:
        tag = len("<ctrl_bcr>")
        assert dataset[0]["loss_mask"].tolist() == [0.0] * (tag + 1) + [1.0] * (T - tag - 3) + [0.0, 0.0]


# ---- special ids ----


class Attributes:
    """Special ids as given."""

    def __init__(self, **ids: Any) -> None:
        self.__dict__.update(ids)

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.encode("ascii"))


class Raises(Attributes):
    eos_id = 5

    @property
    def pad_id(self) -> int:
        raise NotImplementedError

    @property
    def sep_id(self) -> int:
        raise AttributeError


@pytest.mark.parametrize(
    ("tokenizer", "bos", "eos", "sep", "pad"),
    [
        (Attributes(bos_id=7, eos_id=8, sep_id=9, pad_id=10), 7, 8, 9, 10),
        (Attributes(bos_id=7, eos_id=8, _sep_id=9, sep_id=11, pad_id=10), 7, 8, 9, 10),
        (Attributes(bos_token_id=7, eos_token_id=8, sep_token_id=9, pad_token_id=10), 7, 8, 9, 10),
        (Attributes(bos_id=7, bos_token_id=1, eos_id=8, eos_token_id=1, eod=1, sep_id=9, sep_token_id=1, pad_id=10,
                    pad_token_id=1), 7, 8, 9, 10),
        (Attributes(bos_id=None, bos_token_id=7, eos_id=None, eos_token_id=8), 7, 8, 8, 8),
        (Attributes(bos_id="1", bos_token_id=7, eos_id=8.0, eod=8, sep_id=True, pad_id=[1]), 7, 8, 8, 8),
        (Attributes(bos_id=np.int64(7), eos_id=np.int32(8), sep_id=np.uint8(9), pad_id=np.int16(10)), 7, 8, 9, 10),
        (Attributes(bos_id=lambda: 7, eod_id=8), None, 8, 8, 8),
        (Attributes(bos_id=-1, eos_id=8, pad_id=-1, pad_token_id=10), None, 8, 8, 10),  # SentencePiece: -1 is none
        (Attributes(pad_id=0), None, None, None, 0),
        (Attributes(bos_id=0, eos_id=0), 0, 0, 0, 0),
        (Raises(bos_id=7), 7, 5, 5, 5),
        (mock(bos_id=Mock()), None, 2, 3, 0),
        (mock(_sep_id=Mock(), sep_id=Mock()), 1, 2, 2, 0),
        (mock(pad_id=Mock()), 1, 2, 3, 2),
    ],
)  # fmt: skip
def test_special_ids_and_their_stand_ins(tokenizer, bos, eos, sep, pad):
    encoding = encoding_of(tokenizer)
    assert (encoding.bos, encoding.eos, encoding.sep, encoding.pad) == (bos, eos, sep, pad)
    assert encoding.special == {i for i in (bos, eos, sep, pad) if i is not None}
    assert all(type(i) is int for i in encoding.special)


def test_ids_that_a_row_needs_and_the_tokenizer_lacks(folder):
    with pytest.raises(UsageError, match=r"Attributes has neither a PAD nor an EOS id .* give it an integer pad_id"):
        worlds.dataset(folder, Attributes(bos_id=1))
    only_pad = Attributes(pad_id=0)
    for name in ("bos", "sep", "eos"):
        options = {f"include_{other}": False for other in ("bos", "sep", "eos") if other != name}
        with pytest.raises(UsageError, match=rf"no {name.upper()} id: pass {name}_id=, or include_{name}=False"):
            worlds.dataset(folder, only_pad, **options)
    with worlds.dataset(folder, only_pad, include_bos=False, include_sep=False, include_eos=False) as dataset:
        assert as_lists(dataset[0]) == expected(folder, 0, bos=False, sep=False, eos=False)


def test_a_padding_that_is_eos_earns_no_loss(folder):
    with worlds.dataset(folder, Attributes(bos_id=1, eos_id=2)) as dataset:
        for i in range(len(dataset)):
            wanted = expected(folder, i)
            item = as_lists(dataset[i])
            assert item["tokens"] == [2 if id_ in (0, 3) else id_ for id_ in wanted["tokens"]]
            assert item["labels"][-1] == 2
            assert item["loss_mask"] == wanted["loss_mask"]


@pytest.mark.parametrize("slow", [False, True])
def test_bases_whose_id_is_also_special_earn_no_loss(folder, slow):
    """By value, as documented: nothing else could tell an N that is encoded as padding from padding."""

    class Collides(Bytes):
        def text_to_ids(self, text: str) -> list[int]:
            return [{"N": self.pad_id, "T": self.eos_id}.get(letter, ord(letter)) for letter in text]

    tokenizer = Slow(Collides()) if slow else Collides()
    with worlds.dataset(folder, tokenizer) as dataset:
        seen = 0
        for i in range(len(dataset)):
            item = as_lists(dataset[i])
            bases = shown(folder, i)
            assert item["tokens"][: len(bases) + 3] == [1, 3, *Collides().text_to_ids(bases), 2]
            earning = [float(base not in "NT") for base in bases]
            assert item["loss_mask"] == [0.0, *earning] + [0.0] * (T - 1 - len(earning))
            seen += "N" in bases
        assert seen


class RefusesStar(Bytes):
    """Encodes what it does not know as PAD, but only where it is asked for more than one letter."""

    def text_to_ids(self, text: str) -> list[int]:
        if text in {"*", "~"}:
            raise KeyError(text)
        return [self.pad_id if letter == "~" else ord(letter) for letter in text]


def test_a_letter_outside_the_table_goes_to_the_tokenizer_and_its_loss_is_by_value(tmp_path):
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "ACGT~ACGT", "BCR__ECT-S1__CT1-1": "ACGT*ACGT"})
    table = encoding_of(RefusesStar()).table
    assert table is not None
    assert table[ord("*")] == table[ord("~")] == UNKNOWN
    with worlds.dataset(folder, RefusesStar()) as dataset:
        assert dataset[0]["tokens"].tolist()[:12] == [1, 3, *b"ACGT", 0, *b"ACGT", 2]
        assert dataset[0]["loss_mask"].tolist()[:12] == [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
        assert as_lists(dataset[1]) == expected(folder, 1)


# ---- Hugging Face ----


def test_a_character_tokenizer_of_hugging_face_becomes_a_table(folder, caplog):
    tokenizer = hugging_face(character_tokenizer())
    encoding = encoding_of(tokenizer)
    assert encoding.table is not None
    assert (encoding.pad, encoding.bos, encoding.eos, encoding.sep) == (0, 1, 2, 3)
    assert encoding.table[ord("a")] == encoding.table[ord("A")] == tokenizer.convert_tokens_to_ids("A")
    assert not caplog.records
    with worlds.dataset(folder, tokenizer, use_control_tags=True) as dataset:
        for i in range(len(dataset)):
            wanted = expected(folder, i, control_tags=True)
            ids = [id_ if id_ < 4 else tokenizer.convert_tokens_to_ids(chr(id_)) for id_ in wanted["tokens"]]
            item = as_lists(dataset[i])
            assert item["tokens"] == ids
            assert item["loss_mask"] == wanted["loss_mask"]


def test_tags_that_are_tokens_of_their_own(folder):
    plain = character_tokenizer()
    plain.add_special_tokens(["<ctrl_bcr>", "<ctrl_meta>", "<ctrl_tcr>"])
    with worlds.dataset(folder, hugging_face(plain), use_control_tags=True) as dataset:
        assert dataset.ctrl_ids_map["meta"] == [plain.token_to_id("<ctrl_meta>")]
        for i, (sequence_id, _) in enumerate(worlds.rows_of(folder)):
            tag = plain.token_to_id(f"<ctrl_{sequence_id.split('__')[0].lower()}>")
            ids = [plain.token_to_id(base) for base in shown(folder, i)]
            assert dataset[i]["tokens"].tolist() == row(ids, [1, tag, 3], 2, 0)


def test_letters_that_a_tokenizer_does_not_know_are_its_unknown(folder):
    tokenizer = hugging_face(character_tokenizer("ACGTN"))
    encoding = encoding_of(tokenizer)
    assert encoding.table is not None
    assert encoding.table[ord("R")] == encoding.table[ord("*")] == 4
    for wrapped in (tokenizer, Slow(tokenizer)):
        with worlds.dataset(folder, wrapped) as dataset:
            for i in range(len(dataset)):
                ids = [5 + "ACGTN".index(base) if base in "ACGTN" else 4 for base in shown(folder, i)]
                assert dataset[i]["tokens"].tolist() == row(ids, [1, 3], 2, 0)


def test_byte_pairs_stay_as_they_are_and_are_trimmed_to_fit(folder, caplog):
    plain = pair_tokenizer()
    assert len(plain.encode("AACGGTTT" * 8).ids) < 32
    tokenizer = hugging_face(plain)
    with worlds.dataset(folder, tokenizer, rc_aug=True) as dataset:
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert "is not one id per letter: it is called once for each window" in caplog.text
        assert (
            "31% of the tokens of a row are padding, because the tokenizer makes one token of 1.5 bases" in caplog.text
        )
        for i in range(len(dataset)):
            bases = shown(folder, i)
            if is_reversed(dataset.seed, 0, i):
                bases = oracle.reverse_complement(bases)
            ids = plain.encode(bases, add_special_tokens=False).ids
            item = dataset[i]
            assert item["tokens"].tolist() == row(ids, [1, 3], 2, 0)
            assert item["loss_mask"].tolist() == [0.0] + [1.0] * len(ids) + [0.0] * (T - 1 - len(ids))
        assert len(caplog.records) == 2  # not once for each window


def test_more_ids_than_bases_are_cut_and_eos_keeps_its_place(folder):
    class Doubles(Bytes):
        def text_to_ids(self, text: str) -> list[int]:
            return [id_ for letter in text.encode() for id_ in (letter, letter + 100)]

    for eos in (True, False):
        with worlds.dataset(folder, Doubles(), include_eos=eos) as dataset:
            for i in range(len(dataset)):
                ids = Doubles().text_to_ids(shown(folder, i) if eos else shown(folder, i) + "A")[: T - 2 - eos]
                tokens = dataset[i]["tokens"].tolist()
                if len(shown(folder, i)) * 2 >= T:
                    assert tokens == ([1, 3, *ids, 2] if eos else [1, 3, *ids])
                assert len(tokens) == T


class CarriesIds:
    """`tokenizers.Tokenizer` takes no attributes; this lends it special ids."""

    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.encode = tokenizer.encode


def test_a_bare_tokenizers_tokenizer_lacks_special_ids_and_says_so(folder):
    with pytest.raises(UsageError, match="Tokenizer has neither a PAD nor an EOS id"):
        worlds.dataset(folder, character_tokenizer())
    for plain in (character_tokenizer(), pair_tokenizer()):
        with worlds.dataset(folder, CarriesIds(plain)) as dataset:
            for i in range(len(dataset)):
                ids = plain.encode(shown(folder, i), add_special_tokens=False).ids
                assert dataset[i]["tokens"].tolist() == row(ids, [1, 3], 2, 0)


# ---- tokenizers that are not tables ----


class MergesPairs(Bytes):
    """One id per single letter, but AC has a separate id."""

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.replace("AC", "\x04").encode("latin-1"))


class BeginsDifferently(Bytes):
    """The first letter of a longer text has another id, as with SentencePiece's word mark."""

    def text_to_ids(self, text: str) -> list[int]:
        ids = super().text_to_ids(text)
        return ids if len(ids) < 2 else [ids[0] + 100, *ids[1:]]


class MergesRuns(Bytes):
    """Sixteen N are one id."""

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.replace("N" * 16, "\x04").encode("latin-1"))


class CutsOff(Bytes):
    """Takes 512 letters, as a tokenizer with truncation switched on."""

    def text_to_ids(self, text: str) -> list[int]:
        return super().text_to_ids(text)[:512]


class Complains(Bytes):
    """Refuses long texts."""

    def text_to_ids(self, text: str) -> list[int]:
        if len(text) > 600:
            raise OverflowError("too long")
        return super().text_to_ids(text)


class KnowsFive(Bytes):
    """A dictionary of five letters and no more."""

    def text_to_ids(self, text: str) -> list[int]:
        return [{"A": 10, "C": 11, "G": 12, "T": 13, "N": 14}[letter] for letter in text]


@pytest.mark.parametrize("kind", [MergesPairs, BeginsDifferently, MergesRuns, CutsOff, Complains, KnowsFive])
def test_a_tokenizer_that_only_looks_per_character_is_called_as_it_is(tmp_path, kind, caplog):
    contigs = {f"BCR__ECT-S{k}__CT1-1": worlds.random_sequence(150, k, "AACCGNT") + "N" * 30 for k in range(2)}
    folder = worlds.write(tmp_path, contigs)
    assert encoding_of(kind()).table is None
    caplog.clear()
    with worlds.dataset(folder, kind()) as dataset:
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        for i, (sequence_id, k) in enumerate(worlds.rows_of(folder)):
            bases = contigs[sequence_id][k * worlds.STRIDE :][: T - 3]
            assert dataset[i]["tokens"].tolist() == row(kind().text_to_ids(bases), [1, 3], 2, 0)


def test_a_tag_that_a_dictionary_does_not_know(folder):
    with pytest.raises(UsageError, match=r"the tokenizer cannot encode the control tag <ctrl_bcr> \('<'\)"):
        worlds.dataset(folder, KnowsFive(), use_control_tags=True)


class KnowsTags(KnowsFive):
    def text_to_ids(self, text: str) -> list[int]:
        return [50 + len(text)] if text.startswith("<") else super().text_to_ids(text)


def test_tags_of_a_tokenizer_that_knows_few_letters(tmp_path):
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "ACGTN" * 30, "Meta__ECT-S1__CT1-1": "ACGT"})
    with worlds.dataset(folder, KnowsTags(), use_control_tags=True) as dataset:
        assert dataset[0]["tokens"].tolist()[:6] == [1, 60, 3, 10, 11, 12]
        assert dataset[0]["loss_mask"].tolist()[:4] == [0, 0, 1, 1]


# ---- both paths ----


@pytest.mark.parametrize("make", [Bytes, Tokenizes, lambda: hugging_face(character_tokenizer()), NucleotideTokenizer])
@pytest.mark.parametrize("tags", [False, True])
def test_the_table_and_the_slow_path_give_the_same_rows(folder, make, tags):
    tokenizer = make()
    slow = Slow(tokenizer)
    assert encoding_of(tokenizer).table is not None
    assert encoding_of(slow).table is None
    for ends in ({}, {"include_bos": False}, {"include_sep": False, "include_eos": False}):
        options = {"rc_aug": True, "use_control_tags": tags, **ends}
        with worlds.dataset(folder, tokenizer, **options) as fast, worlds.dataset(folder, slow, **options) as called:
            before = slow.calls
            for epoch in range(2):
                for i in range(len(fast)):
                    assert as_lists(fast[epoch, i]) == as_lists(called[epoch, i])
            assert slow.calls == before + 2 * len(fast)


# ---- special ids in the vocabulary, and given ones ----


def nucleotide_tokenizer(*names: str) -> tokenizers.Tokenizer:
    """One id per character; EOS 0, PAD 1, BOS 2, SEP 3 of these names, as special tokens."""
    vocabulary = {chr(code): code for code in range(32, 127)} | {name: k for k, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="N"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(list(names))
    return tokenizer


NUCLEOTIDE_SPECIALS = ("<EOS>", "<PAD>", "<BOS>", "<SEP>")


class Wrapped:
    """A tokenizer of which only `text_to_ids` is seen, and these attributes."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, **ids: int) -> None:
        self._tokenizer = tokenizer
        vars(self).update(ids)

    def text_to_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


def special(encoding: Any) -> tuple[int, int, int, int]:
    return encoding.bos, encoding.eos, encoding.sep, encoding.pad


@pytest.mark.parametrize(
    "make",
    [
        lambda t: hugging_face(t, bos_token="<BOS>", eos_token="<EOS>"),
        lambda t: Wrapped(t, bos_id=2, eos_id=0),
        lambda t: Wrapped(t, bos_id=2, eos_id=0, sep_id=0, pad_token_id=0),
    ],
    ids=["listed", "encoded", "EOS as SEP"],
)
def test_sep_and_pad_of_the_vocabulary_come_before_eos(folder, make):
    tokenizer = make(nucleotide_tokenizer(*NUCLEOTIDE_SPECIALS))
    encoding = encoding_of(tokenizer)
    assert special(encoding) == (2, 0, 3, 1)
    assert encoding.ids_of_0_1 == {"bos": 2, "eos": 0, "sep": 0, "pad": 0}
    with worlds.dataset(folder, tokenizer) as dataset:
        assert (dataset.bos_id, dataset.eos_id, dataset.sep_id, dataset.pad_id) == (2, 0, 3, 1)
        row = dataset[3]["tokens"].tolist()
        assert row[:2] == [2, 3]
        assert dataset[0]["tokens"][-1] == 0
        assert 1 in [dataset[i]["tokens"][-1] for i in range(len(dataset))], "short rows end with PAD"


@pytest.mark.parametrize(
    "tokenizer",
    [
        Wrapped(nucleotide_tokenizer("<EOS>", "<PAD?>"), bos_id=2, eos_id=0),
        hugging_face(character_tokenizer(), bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"),
        hugging_face(pair_tokenizer(), bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"),
        Wrapped(tokenizers.Tokenizer(models.WordLevel({"A": 4, "ACGT": 5, "[UNK]": 6}, unk_token="[UNK]")), eos_id=0),
        Bytes(),
    ],
    ids=["characters", "character_tokenizer", "pairs", "unknown words", "bytes"],
)
def test_a_vocabulary_without_these_tokens_has_none(tokenizer):
    encoding = encoding_of(tokenizer)
    own = {"sep": 3, "pad": 0} if isinstance(tokenizer, Bytes) else {"sep": encoding.eos, "pad": encoding.eos}
    assert {"sep": encoding.sep, "pad": encoding.pad} == own


def test_attributes_come_before_the_vocabulary(folder):
    whole = nucleotide_tokenizer(*NUCLEOTIDE_SPECIALS)
    assert special(encoding_of(Wrapped(whole, bos_id=2, eos_id=0, _sep_id=7, pad_id=8))) == (2, 0, 7, 8)
    tokenizer = hugging_face(whole, bos_token="<BOS>", eos_token="<EOS>", sep_token="<BOS>")
    with pytest.raises(
        UsageError, match=r"has two ids for SEP: sep_token_id is 2, <SEP> in its vocabulary is 3.*sep_id="
    ):
        worlds.dataset(folder, tokenizer)
    with worlds.dataset(folder, tokenizer, sep_id=2) as dataset:
        assert dataset[0]["tokens"][:2].tolist() == [2, 2]


@pytest.mark.parametrize("make", [lambda t: hugging_face(t, bos_token="<BOS>", eos_token="<EOS>"), lambda t: None])
@pytest.mark.parametrize("compact", [False, True])
def test_given_ids_are_used(folder, make, compact):
    tokenizer = make(nucleotide_tokenizer(*NUCLEOTIDE_SPECIALS))
    ids = {"bos_id": 10, "eos_id": 11, "sep_id": 12, "pad_id": 13}
    with worlds.dataset(folder, tokenizer, **ids, compact=compact) as dataset:
        assert {name: getattr(dataset, name) for name in ids} == ids
        for window in range(len(dataset)):
            whole = dataset.collate_fn(dataset.__getitems__([window]))
            tokens = (dataset.expander()(whole) if compact else whole)["tokens"][0].tolist()
            known = expected(folder, window)["tokens"]
            assert tokens == [{0: 13, 1: 10, 2: 11, 3: 12}.get(token, token) for token in known]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"sep_id": 65}, "sep_id=65 is the id of the letter A in the tokenizer NucleotideTokenizer"),
        ({"pad_id": ord("N")}, "pad_id=78 is the id of the letter N"),
        ({"bos_id": 256}, "bos_id=256 is not an id of the tokenizer NucleotideTokenizer, which has 256"),
        ({"eos_id": -1}, "eos_id must be an integer from 0 on, not -1"),
        ({"sep_id": "<SEP>"}, "sep_id must be an integer from 0 on, not '<SEP>'"),
        ({"sep_id": True}, "sep_id must be an integer from 0 on, not True"),
        ({"sep_id": 3.0}, "sep_id must be an integer from 0 on, not 3.0"),
        ({"sep_id": np.array([3, 4])}, r"sep_id must be an integer from 0 on, not array\(\[3, 4\]\)"),
        ({"pad_id": torch.tensor([3, 4])}, r"pad_id must be an integer from 0 on, not tensor\(\[3, 4\]\)"),
        ({"pad_id": 1 << 63}, "pad_id must be an integer from 0 on, not 9223372036854775808"),
    ],
)
def test_given_ids_that_cannot_be_special_are_refused(folder, ids, words):
    with pytest.raises(UsageError, match=words):
        worlds.dataset(folder, **ids)


def test_given_ids_may_be_tokens_that_were_added(folder):
    tokenizer = hugging_face(character_tokenizer())
    tokenizer.add_tokens(["<sep>"])
    added = tokenizer.convert_tokens_to_ids("<sep>")
    assert added >= tokenizer.vocab_size
    with worlds.dataset(folder, tokenizer, sep_id=np.int64(added)) as dataset:
        assert dataset[0]["tokens"][1] == added
        assert type(dataset.sep_id) is int


# ---- tokenizers that fail, or are set up wrongly ----


class KnowsBases(Bytes):
    """A dictionary of A, C, G and T: other letters are a KeyError."""

    def text_to_ids(self, text: str) -> list[int]:
        return [{"A": 5, "C": 6, "G": 7, "T": 8}[letter] for letter in text]


class Huge(Bytes):
    def text_to_ids(self, text: str) -> list[int]:
        return [ord(letter) + 2**63 - 70 for letter in text]


@pytest.mark.parametrize(("tokenizer", "reason"), [(KnowsBases(), "KeyError: 'N'"), (Huge(), "OverflowError")])
def test_what_a_tokenizer_raises_names_the_contig(tmp_path, tokenizer, reason):
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "ACGTN", "BCR__ECT-S0__CT1-2": "AAAA"})
    with worlds.dataset(folder, tokenizer) as dataset:
        assert dataset[1]["tokens"].tolist()[2] in {5, 2**63 - 5}
        for read in (lambda: dataset[0], lambda: dataset.__getitems__([0, 1]), lambda: dataset.arrays([0])):
            with pytest.raises(DatabaseError, match=rf"CT1-1' cannot be encoded near base 0: .*{reason}"):
                read()


def test_a_special_id_beyond_int64(folder):
    with pytest.raises(UsageError, match="pad_id=9223372036854775808 of the tokenizer Attributes is beyond int64"):
        worlds.dataset(folder, Attributes(bos_id=1, eos_id=2, pad_id=2**63))


class AddsBoth(Bytes):
    """As `tokenize` of a Megatron tokenizer that wraps one of Hugging Face."""

    def text_to_ids(self, text: str) -> list[int]:
        return [self.bos_id, *text.encode(), self.eos_id]


@pytest.mark.parametrize("include", [True, False])
def test_a_tokenizer_that_adds_special_tokens_is_named(folder, caplog, include):
    with worlds.dataset(folder, AddsBoth(), include_bos=include, include_eos=include) as dataset:
        assert dataset[0]["tokens"].tolist().count(1) == 1 + include
    for token in ("BOS", "EOS"):
        assert (f"AddsBoth adds {token} to each text by itself" in caplog.text) == include


@pytest.mark.parametrize("token", ["bos", "eos", "sep", "pad"])
def test_a_base_with_the_id_of_a_special_token_is_named(folder, caplog, token):
    ids = {"bos_id": 1, "eos_id": 2, "sep_id": 3, "pad_id": 0, f"{token}_id": ord("G")}
    tokenizer = Bytes()
    vars(tokenizer).update(ids)
    with worlds.dataset(folder, tokenizer):
        assert f"Bytes encodes G with id 71, which is also that of {token.upper()}" in caplog.text
    caplog.clear()
    vars(tokenizer).update({f"{token}_id": ord("N")})
    with worlds.dataset(folder, tokenizer):
        assert not caplog.records
