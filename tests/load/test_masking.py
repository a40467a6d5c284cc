"""Masked language modelling: against the oracle bit for bit, its frequencies, and the loss of transformers."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import STRIDE, T

import oracle
from sharded_eden import (
    ArrayDataset,
    Mixture,
    ShardedEdenDataset,
    Stream,
    StreamBatchSampler,
    flatten_rows,
    pack_window_database,
    precompute_window_database,
    to_hugging_face,
    to_megatron,
)
from sharded_eden.errors import DatabaseError, EdenWarning, StateError, UsageError
from sharded_eden.load.encode.example import is_reversed
from sharded_eden.load.encode.masking import FIRST_MASKED, LETTERS, Masking
from sharded_eden.train.stream import EvaluationStream

CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(1 + 23 * k % 150, k, "ACGTacgtNnRy") for k in range(9)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = worlds.write(tmp_path_factory.mktemp("masking"), CONTIGS)
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    return folder


def opened(folder: Path, cls: type = ShardedEdenDataset, **options: Any) -> Any:
    options = {"objective": "mlm", "mlm_share": 0.4, **options}
    return cls.open(folder / "seqs", folder / "windows.db", **options)


def expected(folder: Path, epoch: int, window_idx: int, *, seed: int, rc: bool, tags: bool, share: float, span: int,
             soft: float, length: int = T) -> dict[str, Any]:  # fmt: skip
    sequence_id, k = worlds.rows_of(folder)[window_idx]
    reverse = rc and is_reversed(seed, epoch, window_idx)
    row = oracle.item(
        folder / "seqs",
        folder / "windows.db",
        window_idx,
        seq_length=T,
        stride=STRIDE,
        control_tags=tags,
        reverse=reverse,
    )
    first = 2 + len("<ctrl_bcr>") * tags
    shown = CONTIGS[sequence_id][k * STRIDE :][: T - first - 1]
    if reverse:
        pairs = oracle.COMPLEMENT
        shown = "".join(pairs[c] if c in pairs else pairs[c.upper()].lower() for c in reversed(shown))
    return oracle.masked_item(
        row, shown, first, seed=seed, epoch=epoch, window_idx=window_idx, share=share, span=span, soft=soft
    )


def compare(batch: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    for name, dtype in {"labels": torch.int64, "tokens": torch.int64, "position_ids": torch.int64,
                        "loss_mask": torch.float32, "padding_mask": torch.bool}.items():  # fmt: skip
        right = torch.tensor([row[name] for row in wanted], dtype=dtype)
        assert batch[name].dtype == dtype
        assert torch.equal(batch[name], right), name


@settings(max_examples=12, deadline=None)
@given(
    epoch=st.integers(0, 3), seed=st.integers(0, 2**40), rc=st.booleans(), tags=st.booleans(),
    share=st.floats(0.01, 0.99), span=st.sampled_from([1, 1, 2, 5, 200]), soft=st.sampled_from([1.0, 0.25, 0.0]),
)  # fmt: skip
def test_rows_equal_the_oracle(folder, epoch, seed, rc, tags, share, span, soft):
    options = {
        "seed": seed,
        "rc_aug": rc,
        "use_control_tags": tags,
        "mlm_share": share,
        "mlm_span": span,
        "soft_mask_weight": soft,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EdenWarning)
        with opened(folder, **options) as dataset, opened(folder, **options, compact=True) as compact:
            windows = [(epoch, k) for k in range(len(dataset))]
            wanted = [
                expected(folder, *each, seed=seed, rc=rc, tags=tags, share=share, span=span, soft=soft)
                for each in windows
            ]
            compare(dataset.collate_fn(dataset.__getitems__(windows)), wanted)
            compare(dataset.collate_fn([dataset[each] for each in windows[:7]]), wanted[:7])
            codes = compact.collate_fn(compact.__getitems__(windows))
            assert codes["codes"].dtype == torch.uint8
            assert codes.keys() == {"codes", "tags"} if tags else codes.keys() == {"codes"}
            compare(compact.expander()(codes), wanted)
            expander = compact.expander()
            expander._on_cpu = expander._on_device  # the tensor operations that a GPU would run
            compare(expander(codes), wanted)


@pytest.mark.parametrize("tags", [False, True])
def test_packed_rows_hold_the_same_masked_windows(folder, tags, tmp_path):
    options = {"rc_aug": True, "mlm_span": 3, "soft_mask_weight": 0.5, "use_control_tags": tags}
    if tags:
        folder = worlds.write(tmp_path, CONTIGS)
        (folder / "windows.db").unlink()
        lengths = [len(sequence) for sequence in CONTIGS.values()]
        pl.DataFrame({"contig_id": list(CONTIGS), "length": lengths}).write_parquet(folder / "split.parquet")
        precompute_window_database(
            folder / "split.parquet", folder / "windows.db", T, STRIDE, pack=True, special_tokens=13
        )
    with (
        opened(folder, packed=True, **options) as packed,
        opened(folder, packed=True, compact=True, **options) as compact,
    ):
        packs = packed._packs.windows(range(len(packed)))
        batch = packed.collate_fn(packed.__getitems__([(2, k) for k in range(len(packed))]))
        again = compact.expander()(compact.collate_fn(compact.__getitems__([(2, k) for k in range(len(packed))])))
        for name, part in batch.items():
            assert torch.equal(part, again[name]), name
        usable = packed._index.geometry.usable
        for row, windows in enumerate(packs):
            for start, window in zip(batch["cu_seqlens"][row].tolist(), windows, strict=False):
                wanted = expected(
                    folder, 2, window, seed=42, rc=False, tags=tags, share=0.4, span=3, soft=0.5
                ) if not is_reversed(42, 2, window) else expected(
                    folder, 2, window, seed=42, rc=True, tags=tags, share=0.4, span=3, soft=0.5
                )  # fmt: skip
                length = T - sum(wanted["padding_mask"])
                sequence_id, k = worlds.rows_of(folder)[window]
                if len(CONTIGS[sequence_id]) - k * STRIDE > usable:
                    continue  # a packed row shows fewer bases of it
                for name in ("tokens", "labels", "loss_mask", "padding_mask"):
                    assert batch[name][row, start : start + length].tolist() == wanted[name][:length], name
        flat = flatten_rows(batch)
        assert torch.equal(flat["padding_mask"][0], batch["padding_mask"].reshape(-1))


def test_frequencies_of_masks():
    letters = np.frombuffer(LETTERS * 25_000, dtype=np.uint8)
    for share, span in ((0.15, 1), (0.15, 6), (0.5, 3)):
        kinds = np.zeros((8, 5))
        masked = []
        for window in range(10):
            codes = letters.copy()
            Masking(4, share, span).mask(codes, 0, window)
            chosen = codes >= FIRST_MASKED
            masked.append(chosen)
            letter, token = np.divmod(codes[chosen] - FIRST_MASKED, 5)
            assert np.array_equal(letter, np.tile(np.arange(8), 25_000)[chosen])
            np.add.at(kinds, (letter, token), 1)
        total = kinds.sum()
        assert abs(total / (10 * len(letters)) - share) < 0.005
        assert np.abs(kinds[:, 0].sum() / total - 0.8) < 0.01
        kept = sum(kinds[k, 1 + k % 4] for k in range(8)) / total
        assert abs(kept - 0.125) < 0.01  # 0.1 stay, and a quarter of the 0.1 at random
        others = [kinds[k, 1 + j] / kinds[k].sum() for k in range(8) for j in range(4) if j != k % 4]
        assert max(abs(np.array(others) - 0.025)) < 0.005
        overlap = (masked[0] & masked[1]).mean()
        assert abs(overlap - share**2) < 0.01  # windows are independent
        assert (
            abs(masked[0][0] + np.mean([m[:100].mean() for m in masked]) - masked[0][0] - share) < 0.06
        )  # the first bases, too
        runs = [len(list(run)) for is_masked, run in itertools.groupby(masked[0][100:-100]) if is_masked]
        assert min(runs[1:-1]) >= span


def test_validation_is_masked_the_same_each_time_and_epochs_are_not(folder):
    with opened(folder) as dataset:
        validation = EvaluationStream(dataset)
        first = validation.collate_fn(validation.__getitems__(range(8)))
        validation.set_epoch(3)
        assert torch.equal(first["tokens"], validation.collate_fn(validation.__getitems__(range(8)))["tokens"])
        one, two = (dataset.collate_fn(dataset.__getitems__([(e, k) for k in range(8)])) for e in (0, 1))
        assert torch.equal(one["labels"], two["labels"])
        assert not torch.equal(one["tokens"], two["tokens"])


def test_labels_are_the_row_without_masks(folder):
    with opened(folder) as dataset, ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as plain:
        windows = range(len(plain))
        batch, row = dataset.collate_fn(dataset.__getitems__(windows)), plain.collate_fn(plain.__getitems__(windows))
        assert torch.equal(batch["labels"], row["tokens"])
        changed = batch["tokens"] != batch["labels"]
        assert changed.any()
        assert (batch["loss_mask"][changed] > 0).all()
        assert set(row["tokens"][batch["loss_mask"] > 0].tolist()) == set(b"ACGT")
        assert set(batch["tokens"][changed].tolist()) <= {4, *b"ACGT"}


def test_the_loss_equals_that_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    with opened(folder) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__(range(11)))
    theirs = to_hugging_face(batch)
    # Their collator, given this mask: labels are -100 wherever it does not mask.
    masked = batch["loss_mask"].bool()
    labels = batch["labels"].clone()
    labels[~masked] = -100
    assert torch.equal(theirs["labels"], labels)
    assert torch.equal(theirs["input_ids"], batch["tokens"])
    assert torch.equal(theirs["attention_mask"], (batch["labels"] != oracle.PAD).long())
    config = transformers.BertConfig(
        vocab_size=256, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=T, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        out = model(**theirs)
    each = torch.nn.functional.cross_entropy(out.logits.transpose(1, 2), batch["labels"], reduction="none")
    ours = (each * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    assert torch.allclose(out.loss, ours, rtol=1e-6, atol=0)


def test_their_collator_makes_the_same_labels_of_the_same_mask(folder, monkeypatch):
    transformers = pytest.importorskip("transformers")
    with opened(folder) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__(range(11)))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=__import__("tokenizers").Tokenizer(
            __import__("tokenizers").models.WordLevel({"[PAD]": 0, "[MASK]": 4, "A": 65, "C": 67}, unk_token="[PAD]")
        ),
        pad_token="[PAD]", mask_token="[MASK]",
    )  # fmt: skip
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.5)
    masked = batch["loss_mask"].bool()
    is_mask = masked & (batch["tokens"] == 4)
    is_random = masked & ~is_mask & (batch["tokens"] != batch["labels"])
    draws = iter([masked, is_mask, is_random])  # what it draws, in its own order
    monkeypatch.setattr(torch, "bernoulli", lambda *_args, **_named: next(draws).float())
    monkeypatch.setattr(torch, "randint", lambda *_args, **_named: batch["tokens"])
    inputs, labels = collator.torch_mask_tokens(batch["labels"].clone(), special_tokens_mask=torch.zeros_like(masked))
    theirs = to_hugging_face(batch)
    assert torch.equal(inputs, theirs["input_ids"])
    assert torch.equal(labels, theirs["labels"])


def test_what_is_refused(folder):
    for options, text in (
        ({"mlm_share": 0.0}, "mlm_share must lie between 0 and 1"),
        ({"mlm_share": 1}, "mlm_share must lie between 0 and 1"),
        ({"mlm_span": 0}, "mlm_span must be at least 1"),
        ({"mlm_span": 2**70}, "mlm_span must be at most 1,048,576"),
        ({"mlm_span": 1.5}, "mlm_span must be an integer"),
        ({"objective": "bert"}, "objective must be one of causal, mlm"),
        ({"objective": "causal"}, "mlm_share needs objective"),
        ({"create_attention_mask": True}, "the mask is causal"),
        ({"loss_on_eos": True}, "EOS is never masked"),
        ({"mask_id": 65}, "mask_id=65 is the id of the letter A"),
        ({"mask_id": 2}, "mask_id=2 is also the id of another token"),
        ({"mask_id": 300}, "is not an id of the tokenizer"),
    ):
        with pytest.raises(UsageError, match=text):
            opened(folder, **options)

    class NoMask:
        pad_id, bos_id, eos_id = 0, 1, 2

        def text_to_ids(self, text: str) -> list[int]:
            return list(text.encode())

    class Pairs(NoMask):
        mask_id = 3

        def text_to_ids(self, text: str) -> list[int]:
            return [5 + hash(text[k : k + 2]) % 7 for k in range(0, len(text), 2)] or [5]

    with pytest.raises(UsageError, match="needs the id of MASK"):
        opened(folder, tokenizer=NoMask())
    assert opened(folder, tokenizer=NoMask(), mask_id=9)[0]["tokens"].max() > 9
    with pytest.raises(UsageError, match="one id per letter"):
        opened(folder, tokenizer=Pairs())
    with opened(folder, packed=True) as packed, opened(folder) as dataset:
        with pytest.raises(UsageError, match="attend across the windows"):
            to_hugging_face(packed.collate_fn([packed[0]]))
        with pytest.raises(UsageError, match="train causal models"):
            to_megatron(dataset.collate_fn([dataset[0]]))


def test_batches_without_a_masked_base_warn_and_unknown_letters_are_refused(tmp_path):
    few = worlds.write(tmp_path / "few", {"BCR__ECT-S__CT1-1": "N" * 30})
    with opened(few) as dataset:
        with pytest.warns(EdenWarning, match="no masked base of a batch"):
            rows = dataset.__getitems__([0])
        assert (rows[0]["tokens"] == rows[0]["labels"]).all()
    odd = worlds.write(tmp_path / "odd", {"BCR__ECT-S__CT1-1": "ACG\u00e9T" * 5})
    with opened(odd) as dataset, pytest.raises(DatabaseError, match="cannot be encoded"):
        dataset[0]


def test_nearly_all_bases_can_be_masked(folder):
    with opened(folder, mlm_share=1 - 1e-11) as dataset:
        row = dataset[0]
        is_base = torch.isin(row["labels"], torch.tensor(list(b"ACGT")))
        assert (row["loss_mask"][is_base] == 1).all()


def test_a_checkpoint_of_other_masks_is_refused(folder):
    def sampler(**options: Any) -> StreamBatchSampler:
        options = {"objective": "mlm", **options}
        dataset = ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", **options)
        return StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=2)

    state = sampler().state_dict(consumed_samples=4)
    sampler().load_state_dict(state)
    for options in ({"mlm_share": 0.2}, {"mlm_span": 2}, {"mask_id": 9}, {"objective": "causal"}):
        with pytest.raises(StateError, match="mlm_"):
            sampler(**options).load_state_dict(state)
    with pytest.raises(StateError, match="mlm_"):
        sampler().load_state_dict(sampler(objective="causal").state_dict(consumed_samples=4))


def test_workers_and_arrays_give_the_same_rows(folder):
    def hash_of(workers: int, **options: Any) -> list[list[int]]:
        dataset = opened(folder, rc_aug=True, packed=True, **options)
        stream = Stream(dataset)
        sampler = StreamBatchSampler(Stream(dataset, num_samples=16), micro_batch_size=4, global_batch_size=4)
        loader = torch.utils.data.DataLoader(
            stream, batch_sampler=sampler, num_workers=workers, collate_fn=dataset.collate_fn
        )
        expand = dataset.expander() if options else lambda batch: batch
        return [row for batch in loader for row in expand(batch)["tokens"].tolist()]

    rows = hash_of(0)
    assert rows == hash_of(2) == hash_of(1, compact=True)
    with opened(folder, ArrayDataset, rc_aug=True, packed=True) as plain:
        from sharded_eden import ArrayStream

        assert ArrayStream(plain).arrays(range(16))["tokens"].tolist() == rows


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"compact": True}])
def test_rows_of_a_mixture_are_those_of_their_sources(folder, options):
    sources = [opened(folder, **options, **other) for other in ({}, {"seed": 7}, {"mlm_span": 4})]
    mixture = Mixture([(source, 1) for source in sources])
    batch = mixture.collate_fn(mixture.__getitems__(range(12)))
    for k, (source, epoch, index) in enumerate(mixture.windows_at(range(12))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EdenWarning)  # a short window without a mask
            row = sources[source].collate_fn([sources[source][epoch, index]])
        for name in ("codes",) if "codes" in row else ("tokens", "labels", "loss_mask", "padding_mask"):
            assert torch.equal(batch[name][k], row[name][0]), name
    plain = ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", **options)
    for other in (plain, opened(folder, **options, mask_id=9)):
        with pytest.raises(UsageError, match=r"objective|the id of MASK"):
            Mixture([(sources[0], 1), (other, 1)])


def test_the_default_span_and_share_are_those_of_the_options():
    with tempfile.TemporaryDirectory() as name:
        folder = worlds.write(Path(name), CONTIGS)
        with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", objective="mlm") as dataset:
            assert dataset._format.masking == Masking(4, 0.15, 1, 42)
