"""Batches for other trainers: the losses of real models prove the position of each label."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.utils import attention_mask_func
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sharded_eden import NucleotideTokenizer, Stream, pack_window_database
from sharded_eden.errors import UsageError
from sharded_eden.train.batch_formats import IGNORED_LABEL, to_flash_attention, to_hugging_face, to_megatron
from sharded_eden.train.stream import EvaluationStream

LLAMA = LlamaConfig(
    vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small lose more than they gain by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches(dataset, stream=Stream):
    expand = dataset.expander() if dataset.compact else dict
    stream = stream(dataset)
    return [expand(batch) for batch in DataLoader(stream, batch_size=5, collate_fn=stream.collate_fn)]


@pytest.fixture(scope="module", params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def model(request):
    torch.manual_seed(0)
    kinds = {LlamaConfig: LlamaForCausalLM, GPT2Config: GPT2LMHeadModel}
    return kinds[type(request.param)](request.param).double().eval()


def masked_mean(logits, batch, loss_mask):
    losses = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    return (losses * loss_mask.flatten()).sum() / loss_mask.sum()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_control_tags": True, "create_attention_mask": True, "rc_aug": True}])
def test_the_loss_of_a_real_model_is_the_masked_mean(small, model, compact, options, monkeypatch):
    """In float64: the models' own loss otherwise rounds logits to float32, so `Tensor.float` keeps what it is given."""
    with small.dataset(**options, compact=compact) as dataset, torch.no_grad():
        for batch in batches(dataset)[:2]:
            theirs = to_hugging_face(batch)
            rounded = model(**theirs).loss
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "float", torch.Tensor.double)
                found = model(**theirs)
                shifted_twice = model(**{**theirs, "labels": batch["labels"]}).loss
            by_hand = masked_mean(found.logits, batch, batch["loss_mask"].double())
            assert abs(found.loss - by_hand) <= 1e-10
            assert abs(rounded - by_hand) <= 1e-5
            assert abs(shifted_twice - by_hand) > 1e-3


def test_the_loss_does_not_depend_on_padding(small, model):
    """Padding is at the end of a row, so causal attention alone hides it from every token that counts in the loss."""
    with small.dataset() as dataset, torch.no_grad():
        batch = to_hugging_face(next(b for b in batches(dataset) if (b["tokens"][:, -1] == 0).any()))
        seen = model(**batch).loss
        real = batch["attention_mask"].bool()
        other = {**batch, "input_ids": torch.where(real, batch["input_ids"], 77)}
        assert model(**other).loss == seen
        del other["attention_mask"]
        assert torch.allclose(model(**other).loss, seen, atol=1e-6)


@pytest.mark.parametrize("compact", [False, True])
def test_what_hugging_face_gets(small, compact):
    with small.dataset(compact=compact, create_attention_mask=True) as dataset:
        batch = batches(dataset)[0]
        before = {name: tensor.clone() for name, tensor in batch.items()}
        theirs = to_hugging_face(batch)
        assert list(theirs) == ["input_ids", "labels", "attention_mask", "position_ids"]
        for name, tensor in theirs.items():
            assert tensor.dtype == torch.int64, name
            assert tensor.shape == (5, 64), name
        assert theirs["input_ids"].data_ptr() == batch["tokens"].data_ptr(), "copied for nothing"
        assert all(torch.equal(batch[name], tensor) for name, tensor in before.items()), "written to"
        earning = theirs["labels"] != IGNORED_LABEL
        assert torch.equal(theirs["labels"][earning], theirs["input_ids"][earning])
        assert earning.sum() == batch["loss_mask"].sum()
        assert not earning[:, 0].any()
        letters = torch.isin(theirs["input_ids"], torch.tensor(list(b"ACGT")))
        assert torch.equal(earning, letters)
        assert torch.equal(theirs["attention_mask"], (batch["tokens"] != NucleotideTokenizer.pad_id).long())


@given(st.data())
def test_every_row_that_can_be(data):
    """Any ids, any padding id, any zeros in the loss mask, padding ids inside of a row too."""
    pad = data.draw(st.integers(0, 3))
    length = data.draw(st.integers(2, 12))
    rows = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=length), min_size=1, max_size=4))
    rows = [[*row[:-1], row[-1] + 10] if row else row for row in rows]  # the row does not end with padding
    tokens = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    labels = torch.cat([tokens[:, 1:], torch.full((len(rows), 1), pad)], 1)
    loss_mask = torch.zeros(tokens.shape)
    for k, row in enumerate(rows):
        for t in range(len(row) - 1):
            loss_mask[k, t] = data.draw(st.integers(0, 1))
    counts = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    position_ids = torch.arange(length).repeat(len(rows), 1)
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
    theirs = to_hugging_face({**batch, "row_counts": counts, "name": "kept"})
    assert theirs["name"] == "kept"
    assert "row_counts" not in theirs
    for k, row in enumerate(rows):
        assert theirs["attention_mask"][k].tolist() == [1] * len(row) + [0] * (length - len(row))
        for i in range(length):
            earns = i > 0 and loss_mask[k, i - 1] == 1 and counts[k]
            assert theirs["labels"][k, i] == (tokens[k, i] if earns else IGNORED_LABEL)
        item = to_hugging_face({name: tensor[k] for name, tensor in batch.items()} | {"row_counts": counts[k]})
        assert all(torch.equal(tensor, theirs[name][k]) for name, tensor in item.items())
    megatron = to_megatron({**batch, "row_counts": counts})
    assert torch.equal(megatron["loss_mask"], loss_mask * counts[:, None])


def test_rows_that_do_not_count_earn_no_loss(small, model):
    """The repeated rows that make every rank's share of a validation equally long."""
    with small.dataset() as dataset, torch.no_grad():
        stream = EvaluationStream(dataset)
        last = len(stream) - 2
        batch = stream.collate_fn(stream.__getitems__(range(last, last + 4)))
        assert batch["row_counts"].tolist() == [True, True, False, False]
        counted = {name: tensor[:2] for name, tensor in batch.items()}
        assert torch.allclose(model(**to_hugging_face(batch)).loss, model(**to_hugging_face(counted)).loss, atol=1e-6)
        assert to_megatron(batch)["loss_mask"].sum() == counted["loss_mask"].sum()
        assert torch.equal(to_megatron(batch)["loss_mask"][:2], counted["loss_mask"])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_what_megatron_gets(small, masks, compact):
    with small.dataset(compact=compact, create_attention_mask=masks) as dataset:
        batch = batches(dataset)[0]
        theirs = to_megatron(batch)
        assert theirs.keys() == {"tokens", "labels", "loss_mask", "position_ids", "attention_mask"}
        for name in ("tokens", "labels", "position_ids"):
            assert theirs[name] is batch[name]
        assert theirs["loss_mask"] is batch["loss_mask"]
        assert theirs["loss_mask"].dtype == torch.float32
        assert theirs["attention_mask"] is (batch["attention_mask"] if masks else None)


def test_windows_of_a_packed_row_do_not_see_one_another(model):
    """The logits of each window equal those of the same window in a separate row; padding at the end has no effect."""
    torch.manual_seed(1)
    windows = [torch.randint(4, 200, (1, length)) for length in (11, 20, 7)]
    tokens = torch.cat([*windows, torch.zeros(1, 26, dtype=torch.long)], 1)
    batch = {
        "tokens": tokens,
        "labels": torch.cat([tokens[:, 1:], torch.zeros(1, 1, dtype=torch.long)], 1),
        "loss_mask": torch.ones(1, 64),
        "position_ids": torch.cat([torch.arange(n) for n in (11, 20, 7, 26)])[None],
        "cu_seqlens": torch.tensor([[0, 11, 31, 38, 64]], dtype=torch.int32),
    }
    with torch.no_grad():
        packed = model(**to_hugging_face(batch)).logits
        alone = torch.cat([model(input_ids=window).logits for window in windows], 1)
    assert (packed[:, :38] - alone).abs().max() < 1e-9


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """A packed batch, the lengths of its windows, and each window in a separate row, cut to its tokens."""
    contigs = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(9 + 7 * k % 40, k) for k in range(20)}
    folder = worlds.write(tmp_path_factory.mktemp("packs"), contigs)
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    with worlds.dataset(folder, packed=True) as dataset, worlds.dataset(folder) as windows:
        batch = dataset.collate_fn(dataset.__getitems__(range(len(dataset))))
        members = [w for pack in range(len(dataset)) for w in dataset._packs.windows([pack])[0]]
        ends = [row["cu_seqlens"].tolist() for row in dataset.__getitems__(range(len(dataset)))]
        counts = [len(dataset._packs.windows([pack])[0]) for pack in range(len(dataset))]
        lengths = [e[k + 1] - e[k] for e, n in zip(ends, counts, strict=True) for k in range(n)]
        alone = [{name: t[:n] for name, t in windows[w].items()} for w, n in zip(members, lengths, strict=True)]
    return batch, ends, counts, alone


@pytest.mark.parametrize("flat", [False, True])
def test_packed_rows_cost_a_real_model_what_their_windows_cost(packs, model, flat, monkeypatch):
    batch, _, _, alone = packs
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())  # transformers rounds logits in its loss
    theirs = to_flash_attention(batch) if flat else to_hugging_face(batch)
    if flat:
        theirs = {name: part for name, part in theirs.items() if not name.startswith(("cu_seq_lens", "max_length"))}
    with torch.no_grad():
        logits = model(**{name: part for name, part in theirs.items() if name != "labels"}).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), theirs["labels"][:, 1:].flatten())
        total = count = 0.0
        for window in alone:
            losses = cross_entropy(
                model(input_ids=window["tokens"][None]).logits[0], window["labels"], reduction="none"
            )
            total += float((losses * window["loss_mask"]).sum())
            count += float(window["loss_mask"].sum())
    assert abs(float(loss) - total / count) < 1e-9


def test_what_flash_attention_and_megatron_are_told_of_packs(packs):
    batch, ends, counts, alone = packs
    starts = [0]
    for k, row in enumerate(ends):
        starts += [k * 64 + end for end in row[1:]]
    theirs = to_flash_attention(batch)
    assert theirs["cu_seq_lens_q"].tolist() == theirs["cu_seq_lens_k"].tolist() == starts
    assert theirs["cu_seq_lens_q"].dtype == torch.int32
    longest = max(b - a for a, b in pairwise(starts))
    assert theirs["max_length_q"] == theirs["max_length_k"] == longest
    assert isinstance(theirs["max_length_q"], int)
    assert theirs["input_ids"].shape == theirs["labels"].shape == theirs["position_ids"].shape == (1, 64 * len(ends))
    assert (theirs["labels"][0, starts[:-1]] == IGNORED_LABEL).all()
    assert theirs.keys() == {
        "input_ids", "labels", "position_ids", "use_cache",
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    }  # fmt: skip
    assert int((theirs["labels"] != IGNORED_LABEL).sum()) == int(sum(window["loss_mask"].sum() for window in alone))
    megatron = to_megatron(batch)
    params = megatron.pop("packed_seq_params")
    assert isinstance(params, PackedSeqParams)
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == starts
    assert params.max_seqlen_q == params.max_seqlen_kv == longest
    assert megatron.pop("attention_mask") is None
    assert megatron.keys() == {"tokens", "labels", "loss_mask", "position_ids"}
    assert all(torch.equal(megatron[name], batch[name].reshape(1, -1)) for name in megatron)
    assert max(counts) > 1
    with pytest.raises(UsageError, match="not packed"):
        to_flash_attention({name: part for name, part in batch.items() if name != "cu_seqlens"})


def test_megatron_masks_what_the_mask_forbids(small):
    """Its own function on attention scores; its GPT model as a whole needs CUDA."""
    with small.dataset(create_attention_mask=True) as dataset:
        theirs = to_megatron(batches(dataset)[0])
    scores = torch.randn(5, 2, 64, 64)
    weights = attention_mask_func(scores, theirs["attention_mask"]).softmax(-1)
    assert weights.triu(1).max() == 0, "a token sees what comes after it"
    assert (weights > 0).sum() == 5 * 2 * 64 * 65 / 2


@pytest.mark.parametrize("convert", [to_hugging_face, to_megatron])
def test_what_is_no_batch_of_ours_is_refused(small, convert):
    with small.dataset(compact=True) as dataset, pytest.raises(UsageError, match=r"compact.*expander"):
        convert(dataset[0])
    with pytest.raises(UsageError, match="lacks labels, loss_mask, position_ids: it has tokens"):
        convert({"tokens": torch.zeros(1, 3)})


def test_weights_that_labels_cannot_say_are_refused(small):
    with small.dataset() as dataset:
        batch = batches(dataset)[0]
    batch["loss_mask"] *= 0.5
    with pytest.raises(UsageError, match=r"soft_mask_weight.*loss_mask"):
        to_hugging_face(batch)
    assert to_megatron(batch)["loss_mask"].max() == 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_it_can_be_part_of_a_collate_function(small, workers):
    """It can be pickled, and works in workers."""
    with small.dataset() as dataset:
        stream = Stream(dataset)
        loader = DataLoader(stream, batch_size=8, num_workers=workers, collate_fn=partial(collate, stream))
        for theirs, batch in zip(loader, DataLoader(stream, batch_size=8, collate_fn=stream.collate_fn), strict=True):
            wanted = to_hugging_face(batch)
            assert theirs.keys() == wanted.keys()
            assert all(torch.equal(theirs[name], wanted[name]) for name in wanted)


def collate(stream, rows):
    return to_hugging_face(stream.collate_fn(rows))
