"""Which checkpoints a stream accepts: its own, those of version 0.1, those of the original loader, and of other rows."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from test_datamodule import fit, module_of
from test_datamodule import folder as folder_of_module  # noqa: F401 - a fixture
from torch.utils.data import DataLoader

from sharded_eden import Mixture, Stream
from sharded_eden.errors import StateError, UsageError
from sharded_eden.load.encode.tokenizer import fingerprint_of
from sharded_eden.train.sampler import StreamBatchSampler

OF_0_1 = {
    "version": 1,
    "consumed_samples": 24,
    "seed": 42,
    "fingerprint": 8994706989702231571,
    "geometry": {
        "window_size": 64,
        "stride": 50,
        "window_min_length_threshold": 0,
        "special_tokens": 3,
        "keep_tail": 0,
    },
}
"""Recorded: what version 0.1.0 saved after 24 samples of `worlds.CONTIGS`."""

OF_THE_ORIGINAL = {"consumed_samples": 24}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def sampler_of(folder: Path, accept_other_data: Any = False, **options: Any) -> StreamBatchSampler:
    stream = Stream(worlds.dataset(folder, options.pop("tokenizer", None), **options))
    return StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=4, accept_other_data=accept_other_data)


def first_rows(sampler: StreamBatchSampler) -> list[list[int]]:
    batch = next(iter(DataLoader(sampler.stream, batch_sampler=sampler, collate_fn=sampler.stream.collate_fn)))
    return batch["tokens"].tolist()


def test_a_state_of_version_0_1_resumes_with_the_rows_of_then(folder):
    sampler = sampler_of(folder, rc_aug=True)
    expected = [sampler.stream[position]["tokens"].tolist() for position in (24, 25)]
    sampler.load_state_dict(OF_0_1)
    assert first_rows(sampler) == expected
    tagged = sampler_of(folder, use_control_tags=True, include_sep="with_tags")  # with tags, there is no other row
    tagged.load_state_dict(OF_0_1)
    assert tagged.consumed_samples == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include_sep": "with_tags"}, r"rows\['sep'\] was 3 in version 0.1, is None"),
        ({"include_sep": False}, r"rows\['sep'\] was 3 in version 0.1, is None"),
        ({"include_bos": False}, r"rows\['bos'\] was 1 in version 0.1, is None"),
        ({"include_eos": False}, r"rows\['eos'\] was 2 in version 0.1, is None"),
        (
            {"sep_id": 9, "pad_id": 8},
            r"rows\['sep'\] was 3 in version 0.1, is 9; rows\['pad'\] was 0 in version 0.1, is 8",
        ),
    ],
)
def test_a_state_of_version_0_1_is_refused_for_other_rows(folder, options, words):
    sampler = sampler_of(folder, **options)
    with pytest.raises(StateError, match=words):
        sampler.load_state_dict(OF_0_1)
    assert sampler.consumed_samples == 0


class Letters:
    """A tokenizer with SEP and PAD in its vocabulary, and EOS as its only attribute."""

    bos_id = eos_id = 2

    def get_vocab(self) -> dict[str, int]:
        return {"<SEP>": 3, "<PAD>": 1}

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.encode("ascii"))


def test_ids_that_version_0_1_did_not_find_are_another_identity(folder):
    sampler = sampler_of(folder, tokenizer=Letters())
    assert sampler.stream[0]["tokens"][:2].tolist() == [2, 3]
    with pytest.raises(
        StateError, match=r"rows\['sep'\] was 2 in version 0.1, is 3; rows\['pad'\] was 2 in version 0.1, is 1"
    ):
        sampler.load_state_dict(OF_0_1)
    as_then = sampler_of(folder, tokenizer=Letters(), sep_id=2, pad_id=2)
    as_then.load_state_dict(OF_0_1)
    assert as_then.stream[0]["tokens"][:2].tolist() == [2, 2]


OTHER_ROWS: list[dict[str, Any]] = [
    {"include_sep": False}, {"include_bos": False}, {"include_eos": False}, {"use_control_tags": True}, {"rc_aug": True},
    {"sep_id": 9}, {"bos_id": 9}, {"eos_id": 9}, {"pad_id": 9}, {"include_sep": "with_tags"},
]  # fmt: skip


@pytest.mark.parametrize("options", OTHER_ROWS, ids=str)
def test_what_decides_the_rows_is_part_of_a_state(folder, options):
    plain, other = sampler_of(folder), sampler_of(folder, **options)
    for here, there in ((plain, other), (other, plain)):
        state = json.loads(json.dumps(here.state_dict(consumed_samples=8)))
        with pytest.raises(StateError, match="another stream: rows"):
            there.load_state_dict(state)
        here.load_state_dict(state)
        assert here.consumed_samples == 8
    state = other.state_dict(consumed_samples=8)
    is_unknown_to_0_1 = not {"use_control_tags", "rc_aug"} & set(options)
    assert state["version"] == (3 if is_unknown_to_0_1 else 1), "programs that ignore `rows` refuse version 3"
    del state["rows"]
    if is_unknown_to_0_1:
        with pytest.raises(StateError, match="version 3"):
            other.load_state_dict(state)


def test_what_does_not_decide_the_tokens_is_none(folder):
    sampler = sampler_of(folder, mask_ambiguous=True, compact=True, io="read", log_windows=False)
    sampler.load_state_dict(sampler_of(folder, soft_mask_weight=0.5).state_dict(consumed_samples=8))
    assert sampler.consumed_samples == 8
    with_tags = sampler_of(folder, include_sep="with_tags", include_bos="with_tags", use_control_tags=True)
    with_tags.load_state_dict(sampler_of(folder, use_control_tags=True).state_dict(consumed_samples=8))


@pytest.mark.parametrize("rows", [None, 7, [], {"bos": "x" * 10**6}, {}, {str(k): k for k in range(1000)}], ids=type)
def test_rows_of_other_types_are_refused(folder, rows):
    sampler = sampler_of(folder)
    with pytest.raises(StateError, match="rows") as refused:
        sampler.load_state_dict({**sampler.state_dict(), "rows": rows})
    assert len(str(refused.value)) < 1500


# ---- the original loader, and other data ----


def test_a_state_of_the_original_is_refused_with_what_can_be_kept(folder):
    sampler = sampler_of(folder)
    with pytest.raises(StateError) as refused:
        sampler.load_state_dict(OF_THE_ORIGINAL)
    for words in (
        "a bare consumed_samples, as the original loader saves it",
        "accept_other_data=True keeps the position, 24 consumed samples, ",
        "but neither the order of the windows nor their strands",
        "ShardedEdenDataModule, StreamBatchSampler or MegatronBatchSampler",
        'accept_other_data="restart" begins a new stream at 0',
    ):
        assert words in str(refused.value)
    accepting = sampler_of(folder, accept_other_data=True)
    accepting.load_state_dict(OF_THE_ORIGINAL)
    assert list(islice(accepting, 2)) == [[24, 25], [26, 27]]


@pytest.mark.parametrize(
    "state", [OF_THE_ORIGINAL, {**OF_0_1, "seed": 7}, {**OF_0_1, "version": 2, "epoch": 3, "seed": 7}]
)
def test_restart_begins_a_new_stream(folder, state):
    sampler = sampler_of(folder, accept_other_data="restart")
    sampler.load_state_dict(state)
    assert (list(islice(sampler, 2)), sampler.stream.epoch) == ([[0, 1], [2, 3]], 0)
    own = sampler.state_dict(consumed_samples=8)
    again = sampler_of(folder, accept_other_data="restart")
    again.load_state_dict(own)
    assert again.consumed_samples == 8, "a state of this stream is resumed, or each restart would begin at 0"
    with pytest.raises(StateError, match="holds no position"):
        again.load_state_dict({"consumed_samples": "24"})


@pytest.mark.parametrize("value", ["Restart", "yes", 1, None])
def test_an_unknown_value_is_refused(folder, value):
    words = "accept_other_data must be True, False or 'restart', not "
    with pytest.raises(UsageError, match=words):
        sampler_of(folder, accept_other_data=value)
    with pytest.raises(UsageError, match=words):
        module_of(folder, accept_other_data=value)


def test_the_same_under_lightning(folder_of_module, tmp_path):  # noqa: F811
    import torch

    _, trainer, _ = fit(folder_of_module, max_steps=3, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "original.ckpt")
    checkpoint = torch.load(tmp_path / "original.ckpt", weights_only=False)
    checkpoint["ShardedEdenDataModule"] = {"consumed_samples": 12}
    torch.save(checkpoint, tmp_path / "original.ckpt")
    options = {"ckpt_path": tmp_path / "original.ckpt", "max_steps": 5, "max_epochs": -1}
    with pytest.raises(StateError, match="a bare consumed_samples"):
        fit(folder_of_module, **options)
    fresh, _, _ = fit(folder_of_module, max_steps=2, max_epochs=-1)
    model, _, module = fit(folder_of_module, **options, accept_other_data="restart")
    assert model.steps == fresh.steps
    assert module.consumed_samples == 8


@pytest.mark.parametrize("options", [{"rc_aug": True}, {"objective": "mlm"}], ids=["strands", "masks"])
def test_another_seed_of_strands_and_masks_is_another_stream(folder, options):
    """The order has the seed of the stream, strands and masks have that of the dataset."""

    def sampler(of_rows: int) -> StreamBatchSampler:
        stream = Stream(worlds.dataset(folder, seed=of_rows, **options), seed=5)
        return StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=4)

    same, seven, eight = sampler(5), sampler(7), sampler(8)
    assert first_rows(seven) != first_rows(eight)
    states = [json.loads(json.dumps(each.state_dict(consumed_samples=8))) for each in (same, seven, eight)]
    assert "seed" not in states[0]["rows"], "the usual state is that of earlier versions"
    assert states[1]["rows"]["seed"] == 7
    assert states[1]["version"] == 3
    for here in (same, seven, eight):
        for there, state in zip((same, seven, eight), states, strict=True):
            if here is there:
                here.load_state_dict(state)
                assert here.consumed_samples == 8
            else:
                was, now = (each.stream.dataset.seed for each in (there, here))
                with pytest.raises(StateError, match=rf"rows\['seed'\] was {was}, is {now}"):
                    here.load_state_dict(state)
    mixtures = [Mixture([(each.stream.dataset, 1)], seed=5) for each in (same, seven)]
    assert mixtures[1].position_of(states[1]) == (8, 0)
    assert mixtures[0].position_of(states[0]) == (8, 0)
    for mixture, state in ((mixtures[0], states[1]), (mixtures[1], states[0]), (mixtures[0], mixtures[1].state(8))):
        with pytest.raises(StateError, match="strand_seed"):
            mixture.position_of(state)


def test_the_seed_of_a_dataset_without_random_rows_may_change(folder):
    states = [Stream(worlds.dataset(folder, seed=seed), seed=5).state(8) for seed in (5, 7)]
    assert states[0] == states[1]


# ---- the ids of letters, and the order without shuffling ----


class Shifted(Letters):
    """Special ids as `Letters`, and letters 100 further."""

    def text_to_ids(self, text: str) -> list[int]:
        return [letter + 100 for letter in text.encode("ascii")]


class Joined(Letters):
    """A tokenizer without a table: AC is one token."""

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.replace("AC", "~").encode("ascii"))


class KnowsNoN(Letters):
    def text_to_ids(self, text: str) -> list[int]:
        return ["xxACGT".index(letter) for letter in text]


def test_other_ids_of_letters_are_another_stream(folder):
    samplers = [sampler_of(folder, tokenizer=make()) for make in (Letters, Shifted, Joined, KnowsNoN)]
    for here in samplers:
        for there in samplers:
            state = json.loads(json.dumps(there.state_dict(consumed_samples=8)))
            if here is there:
                here.load_state_dict(state)
                assert here.consumed_samples == 8
                continue
            with pytest.raises(StateError, match=r"another stream: letters was \d+, is \d+"):
                here.load_state_dict(state)
            del state["letters"]  # as saved before
            here.load_state_dict(state)
    mixtures = [Mixture([(each.stream.dataset, 1)]) for each in samplers[:2]]
    state = json.loads(json.dumps(mixtures[0].state(8)))
    assert mixtures[0].position_of(state) == (8, 0)
    for of_other in (state, samplers[0].state_dict(consumed_samples=8)):
        with pytest.raises(StateError, match=r"letters' was \d+, is \d+: that of 'source 0'"):
            mixtures[1].position_of(of_other)
    del state["sources"][0]["letters"]
    assert mixtures[1].position_of(state) == (8, 0)


def test_a_list_of_numpy_integers_has_the_digest_of_its_values():
    as_numpy = fingerprint_of(lambda text: [np.int64(letter) for letter in text.encode()])
    assert as_numpy == fingerprint_of(lambda text: list(text.encode()))


def test_an_order_without_shuffling_is_another_stream(folder):
    dataset = worlds.dataset(folder)
    streams = {shuffle: Stream(dataset, shuffle=shuffle) for shuffle in (True, False)}
    for shuffle, stream in streams.items():
        state = json.loads(json.dumps(stream.state(8)))
        assert stream.position_of(state) == (8, 0)
        with pytest.raises(StateError, match=f"another stream: shuffle was {shuffle}, is {not shuffle}"):
            streams[not shuffle].position_of(state)
        for strange in (1, None, "yes"):
            with pytest.raises(StateError, match="shuffle was"):
                stream.position_of({**state, "shuffle": strange})
        del state["shuffle"]  # as saved before
        assert streams[not shuffle].position_of(state) == (8, 0)
    mixture = Mixture([(dataset, 1)])
    assert mixture.position_of(streams[True].state(8)) == (8, 0)
    with pytest.raises(StateError, match="'shuffle' was False"):
        mixture.position_of(streams[False].state(8))
