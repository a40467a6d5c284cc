"""Mixtures: position -> example, equal however it is asked for; what a state holds, and which past is refused."""

from __future__ import annotations

import json
import pickle
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from mixtures import PHASES, WEIGHTS, mixture_of, open_sources, write_sources
from torch.utils.data import DataLoader

from sharded_eden import Mixture, Stream
from sharded_eden.errors import EdenWarning, StateError, UsageError
from sharded_eden.shuffle import Permutation, permute_each
from sharded_eden.train.sampler import StreamBatchSampler
from sharded_eden.windows.pack import pack_window_database


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sources(tmp_path_factory.mktemp("mixture"))


def sampler_of(stream: Stream, accept_other_data: Any = False) -> StreamBatchSampler:
    return StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=4, accept_other_data=accept_other_data)


def loaded(stream: Stream, state: dict[str, Any], **options: Any) -> int:
    sampler = sampler_of(stream, **options)
    sampler.load_state_dict(json.loads(json.dumps(state)))
    return sampler.consumed_samples


def test_a_position_is_a_row_of_its_source_in_the_order_of_a_stream(folders):
    mixture = mixture_of(folders, rc_aug=True)
    datasets = mixture.dataset.datasets
    items = mixture.windows_at(range(3000))
    for k, dataset in enumerate(datasets):
        shown = [(epoch, index) for source, epoch, index in items if source == k]
        own = Stream(dataset, seed=mixture._seeds[k])
        assert shown == own.windows_at(range(len(shown))), "each source is read in its own order, without a gap"
    counts = np.bincount([source for source, _, _ in items], minlength=3)
    first = np.bincount([source for source, _, _ in items[:70]], minlength=3)
    assert counts.sum() == 3000
    assert (counts - first)[2] == 0, "weight 0 from position 70 on"
    scattered = [2999, 0, 71, 1023, 1024, 0, 70]
    assert mixture.windows_at(scattered) == [items[p] for p in scattered]
    batch = mixture.collate_fn(mixture.__getitems__(range(50)))
    for p in range(50):
        source, epoch, index = items[p]
        expected = datasets[source][epoch, index]
        for key in expected:
            assert torch.equal(batch[key][p], expected[key])
            assert torch.equal(mixture[p][key], expected[key])


def test_no_positions_and_cold_data(folders):
    mixture, warm = mixture_of(folders, rc_aug=True), mixture_of(folders, rc_aug=True)
    assert mixture.windows_at([]) == []
    assert len(mixture.__getitems__([])) == len(warm.dataset.datasets[0].__getitems__([])) == 0
    reader = mixture.dataset._fetchers[0]._joint._joint._readers.get()
    for first in range(0, 400, 8):
        reader.cold_batches = 9
        assert mixture.dataset.items_ahead == 64
        rows = mixture.collate_fn(mixture.__getitems__(range(first, first + 8)))
        assert torch.equal(rows["tokens"], warm.collate_fn(warm.__getitems__(range(first, first + 8)))["tokens"])
    mixture.dataset.close()
    assert mixture[0]["tokens"].shape == (worlds.T,), "it opens again where it is read again"


def test_one_source_is_its_stream(folders):
    dataset = worlds.dataset(folders[0], rc_aug=True)
    mixture, stream = Mixture([(dataset, 0.5)]), Stream(dataset)
    assert len(mixture) == len(stream)
    assert [item[1:] for item in mixture.windows_at(range(3000))] == stream.windows_at(range(3000))
    mixture.set_epoch(3)
    stream.set_epoch(3)
    assert [item[1:] for item in mixture.windows_at([5, 0])] == stream.windows_at([5, 0])


def test_a_source_smaller_than_its_share_is_repeated_in_another_order(folders):
    mixture = mixture_of(folders, [0, 1, 0], phases=())
    items = mixture.windows_at(range(40))
    length = len(mixture.dataset.datasets[1])
    assert [epoch for _, epoch, _ in items] == [p // length for p in range(40)]
    passes = [[index for _, epoch, index in items if epoch == each] for each in range(40 // length)]
    assert all(sorted(each) == list(range(length)) for each in passes)
    assert len(set(map(tuple, passes))) > 1


def test_sources_of_equal_length_have_different_orders(folders):
    one, other = (worlds.dataset(folders[2]) for _ in range(2))
    items = Mixture([(one, 1), (other, 1)]).windows_at(range(400))
    orders = [[index for source, epoch, index in items if (source, epoch) == (k, 0)] for k in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(one)))


def test_far_positions(folders):
    mixture = mixture_of(folders)
    for position in (10**12, 10**15):
        source, epoch, index = mixture.windows_at([position])[0]
        assert mixture.schedule.counts(position)[source] == epoch * len(mixture.dataset.datasets[source]) + _place(
            mixture, source, epoch, index
        )
        assert mixture[position]["tokens"].shape == (worlds.T,)


def _place(mixture: Mixture, source: int, epoch: int, index: int) -> int:
    length = len(mixture.dataset.datasets[source])
    order = mixture._order_of((source, epoch))
    return order(np.arange(length)).tolist().index(index)


def test_each_position_under_its_own_permutation():
    permutations = [Permutation(length, "test", length) for length in (1, 2, 3, 5, 11, 64, 1000, 1 << 40)] * 3
    positions = np.array([k % permutation.length for k, permutation in enumerate(permutations)])
    wanted = [int(p([x])[0]) for p, x in zip(permutations, positions.tolist(), strict=True)]
    assert permute_each(permutations, positions).tolist() == wanted
    assert permute_each(permutations[:3], positions[:3]).tolist() == wanted[:3]
    with pytest.raises(IndexError, match="outside of its order"):
        permute_each(permutations[:2], np.array([0, 2]))


# ---- processes and samplers ----


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_workers_read_one_stream(folders, ranks, workers):
    mixture = mixture_of(folders, rc_aug=True, num_samples=160)
    whole = mixture.collate_fn(mixture.__getitems__(range(160)))["tokens"]
    rows = {}
    for rank in range(ranks if workers == 0 else 1):
        sampler = StreamBatchSampler(
            mixture, micro_batch_size=2, global_batch_size=16, rank=rank, data_parallel_size=ranks
        )
        loader = DataLoader(mixture, batch_sampler=sampler, collate_fn=mixture.collate_fn, num_workers=workers)
        for positions, batch in zip(sampler, loader, strict=True):
            rows.update(zip(positions, batch["tokens"], strict=True))
    for position, row in rows.items():
        assert torch.equal(row, whole[position])
    assert len(rows) == 160 if workers == 0 else 160 // ranks


def test_a_mixture_can_be_pickled(folders):
    mixture = mixture_of(folders, skip=[(3, 5)])
    mixture.set_epoch(1)
    copy = pickle.loads(pickle.dumps(mixture))
    assert copy.windows_at(range(200)) == mixture.windows_at(range(200))
    assert torch.equal(copy[7]["tokens"], mixture[7]["tokens"])


def test_a_repeated_training_pass_is_a_warning(folders):
    loader = DataLoader(mixture := mixture_of(folders), batch_size=4, collate_fn=mixture.collate_fn)
    list(loader)
    with pytest.warns(EdenWarning, match="another pass over the train split begins with the same rows"):
        list(loader)


# ---- skipping ----


def test_skipped_positions_are_left_out(folders):
    plain, skipping = mixture_of(folders), mixture_of(folders, skip=[(60, 99), (10, 12), (13, 13)])
    kept = [p for p in range(200) if not 10 <= p <= 13 and not 60 <= p <= 99]
    assert skipping.windows_at(range(len(kept))) == plain.windows_at(kept)


# ---- states ----


def test_a_state_holds_sources_and_schedule_and_resumes(folders):
    mixture = mixture_of(folders, skip=[(2, 3)])
    state = sampler_of(mixture).state_dict(consumed_samples=24)
    assert state["version"] == 4
    assert state["phases"] == [[0, WEIGHTS], [70, [2, 1, 0]]]
    assert state["skip"] == [[2, 3]]
    assert [source["fingerprint"] for source in state["sources"]] == [d.fingerprint for d in mixture.dataset.datasets]
    sampler = sampler_of(mixture_of(folders, [10, 2, 6], phases=[(70, {"source 0": 4, "source 1": 2})], skip=[(2, 3)]))
    sampler.load_state_dict(json.loads(json.dumps(state)))
    assert list(islice(sampler, 2)) == [[24, 25], [26, 27]]


def test_phases_and_skips_may_be_added_from_the_position_on(folders):
    state = sampler_of(mixture_of(folders)).state_dict(consumed_samples=80)
    for phases, skip in (
        ([*PHASES, (80, [0, 0, 1])], []),
        ([*PHASES, (81, [1, 1, 1]), (500, [1, 1, 2])], []),
        (PHASES, [(80, 99)]),
        ([*PHASES, (90, [9, 1, 1])], [(80, 99), (1000, 1000)]),
    ):
        mixture = mixture_of(folders, WEIGHTS, phases=phases, skip=skip)
        assert loaded(mixture, state) == 80
        assert mixture.windows_at(range(80)) == mixture_of(folders).windows_at(range(80))
    later = sampler_of(mixture).state_dict(consumed_samples=84)  # position 104
    assert loaded(mixture_of(folders, WEIGHTS, phases=phases, skip=[(80, 99)]), later) == 84
    with pytest.raises(StateError, match=r"passed position 104, .* skip was \[\(80, 99\)\] before it, is \[\]"):
        loaded(mixture_of(folders, WEIGHTS, phases=phases), later)


@pytest.mark.parametrize(
    ("weights", "options", "words"),
    [
        ([5, 1, 4], {"phases": PHASES}, r"the share of 'source 0' from position 0 on was 5/9, is 1/2"),
        (WEIGHTS, {"phases": [(70, [2, 1, 1])]}, r"the share of 'source 0' from position 70 on was 2/3, is 1/2"),
        (WEIGHTS, {"phases": []}, r"phases began at \[0, 70\] before it, now at \[0\]"),
        (WEIGHTS, {"phases": [(70, [2, 1, 0]), (79, [1, 1, 1])]}, r"phases began at \[0, 70\] .* now at \[0, 70, 79\]"),
        (WEIGHTS, {"phases": PHASES, "skip": [(79, 90)]}, r"skip was \[\] before it, is \[\(79, 90\)\]"),
        (WEIGHTS, {"phases": PHASES, "seed": 7}, r"seed was 42, is 7"),
        (WEIGHTS, {"phases": PHASES, "include_sep": False}, r"'rows'\['sep'\] was 3, is None: that of 'source 0'"),
    ],
)
def test_another_past_is_refused_with_both_values(folders, weights, options, words):
    state = sampler_of(mixture_of(folders)).state_dict(consumed_samples=80)
    other = mixture_of(folders, weights, **options)
    with pytest.raises(StateError, match=words):
        loaded(other, state)
    assert loaded(other, state, accept_other_data=True) == 80
    assert loaded(other, state, accept_other_data="restart") == 0


def test_other_data_of_a_source_are_refused(folders, tmp_path):
    state = sampler_of(mixture_of(folders)).state_dict(consumed_samples=8)
    swapped = [folders[0], folders[2], folders[1]]
    with pytest.raises(StateError, match=r"'fingerprint' was \d+, is \d+: that of 'source 1'"):
        loaded(mixture_of(swapped), state)
    for part in ("geometry", "rows"):
        damaged = json.loads(json.dumps(state))
        damaged["sources"][2][part] = {}
        with pytest.raises(StateError, match="another stream"):
            loaded(mixture_of(folders), damaged)


def test_sources_may_be_added_with_a_later_phase(folders):
    old = mixture_of(folders[:2], [5, 1], phases=[(70, [1, 1])])
    state = sampler_of(old).state_dict(consumed_samples=80)
    new = mixture_of(folders, [5, 1, 0], phases=[(70, [1, 1, 0]), (80, [1, 1, 4])])
    assert loaded(new, state) == 80
    assert new.windows_at(range(80)) == old.windows_at(range(80))
    with pytest.raises(StateError, match=r"the share of 'source 0' from position 70 on was 1/2, is 1/6"):
        loaded(mixture_of(folders, [5, 1, 0], phases=[(70, [1, 1, 4])]), state)
    with pytest.raises(StateError, match=r"the share of 'source 1' from position 0 on was 1/6, is 0"):
        loaded(mixture_of([folders[0], folders[2], folders[1]], [5, 0, 1], phases=[(70, [1, 0, 1])]), state)
    unused = mixture_of([*folders[:2], folders[0]], [5, 1, 0], phases=[(70, [1, 1, 0])])
    assert loaded(unused, sampler_of(new).state_dict(consumed_samples=80)) == 80, "a source is compared once it is used"


def test_a_stream_of_one_dataset_goes_on_as_a_mixture(folders):
    one, other = open_sources(folders[:2], rc_aug=True)
    state = sampler_of(Stream(one)).state_dict(consumed_samples=40)
    assert loaded(Mixture([(one, 1), (other, 0)], phases=[(40, [1, 1])]), state) == 40
    with pytest.raises(StateError, match=r"share of 'source 0' from position 0 on was 1, is 1/2"):
        loaded(Mixture([(one, 1), (other, 1)]), state)
    with pytest.raises(StateError, match=r"'fingerprint' was \d+, is \d+"):
        loaded(Mixture([(other, 1)]), state)
    of_mixture = sampler_of(Mixture([(one, 1)])).state_dict(consumed_samples=40)
    with pytest.raises(StateError, match="version 4"):
        loaded(Stream(one), of_mixture)
    with pytest.raises(StateError, match="nor one of a stream of one dataset"):
        loaded(Mixture([(one, 1)]), {"consumed_samples": 40})


def test_a_state_with_an_epoch(folders):
    mixture = mixture_of(folders)
    sampler = sampler_of(mixture)
    sampler.set_epoch(2)
    state = sampler.state_dict(consumed_samples=4)
    again = sampler_of(mixture_of(folders))
    again.load_state_dict(state)
    assert (again.stream.epoch, again.consumed_samples) == (2, 4)
    with pytest.raises(StateError, match=r"an epoch was 31 samples, is 30"):
        loaded(mixture_of(folders, num_samples=30), state)
    with pytest.raises(StateError, match=r"passed position 66, .* is \[\(65, 65\)\]"):
        loaded(mixture_of(folders, skip=[(65, 65)]), state)


def test_a_state_of_one_stream_with_an_epoch_goes_on_in_a_mixture_of_epochs_of_its_length(folders):
    dataset = worlds.dataset(folders[0])
    sampler = sampler_of(Stream(dataset))
    sampler.set_epoch(2)
    state = sampler.state_dict(consumed_samples=4)
    mixture = sampler_of(Mixture([(dataset, 1)]))
    mixture.load_state_dict(state)
    assert (mixture.stream.epoch, mixture.consumed_samples) == (2, 4)
    with pytest.raises(StateError, match=rf"an epoch was {len(dataset)} samples, is 30: the positions of epoch 2"):
        loaded(Mixture([(dataset, 1)], num_samples=30), state)
    del state["samples_of_an_epoch"]  # as version 0.2 saved it
    loaded(Mixture([(dataset, 1)], num_samples=30), state)


@pytest.mark.parametrize("part", ["sources", "phases", "skip", "seed"])
@pytest.mark.parametrize("value", [None, 7, "x" * 10**6, [[]], [[1]], {}, [[0, [0, 0, 0]]], [[5, 2]]], ids=repr)
def test_damaged_states_are_refused(folders, part, value):
    state = sampler_of(mixture_of(folders)).state_dict(consumed_samples=8)
    with pytest.raises(StateError) as refused:
        loaded(mixture_of(folders), {**state, part: value})
    assert len(str(refused.value)) < 1500


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seq_length": 32, "stride": 20}, "source 1 has seq_length 32, but source 0 has 64"),
        ({"packed": True}, "has packed True, but source 0 has False"),
        ({"compact": True}, "has compact True"),
        ({"create_attention_mask": True}, "has create_attention_mask True"),
        ({"pad_id": 8}, r"has the special ids \(BOS, EOS, SEP, PAD\) \(1, 2, 3, 8\), but source 0 has \(1, 2, 3, 0\)"),
    ],
)
def test_sources_whose_rows_do_not_fit_are_refused(folders, tmp_path, options, words):
    geometry = {"window_size": options.get("seq_length", worlds.T), "stride": options.get("stride", worlds.STRIDE)}
    other = worlds.write(tmp_path, **geometry)
    if "packed" in options:
        pack_window_database(other / "windows.db", sequences=other / "seqs")
    with pytest.raises(UsageError, match=words):
        Mixture([(worlds.dataset(folders[0]), 1), (worlds.dataset(other, **options), 1)])


class Other:
    """A tokenizer with the special ids of the built-in one and other ids of letters."""

    bos_id, eos_id, sep_id, pad_id, vocab_size = 1, 2, 3, 0, 512

    def text_to_ids(self, text: str) -> list[int]:
        return [byte + 200 for byte in text.encode("ascii")]


def test_sources_with_other_token_ids_are_refused(folders):
    with pytest.raises(UsageError, match="source 1 has other token ids for letters than source 0"):
        Mixture([(worlds.dataset(folders[0]), 1), (worlds.dataset(folders[1], Other()), 1)])


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ([], {}, "a mixture takes"),
        ("ab", {}, "a mixture takes"),
        ([1], {}, r"source 0 of a mixture must be \(ShardedEdenDataset, weight\), not 1"),
        ({"a": ("b", 1)}, {}, r"a of a mixture must be"),
        (None, {"phases": [(0, [1, 1])]}, "a phase begins at position 1 or later, not 0"),
        (None, {"phases": [(5, [1])]}, "a phase takes one weight for each of the 2 sources"),
        (None, {"phases": [(5, {"x": 1})]}, "there is no source 'x': the sources are"),
        (None, {"phases": [5]}, r"a phase must be \(position, weights\), not 5"),
        (None, {"phases": [(5, [1, 1]), (5, [1, 2])]}, "phases must ascend"),
        (None, {"phases": [(5.0, [1, 1])]}, "the position of a phase must be an integer"),
        (None, {"skip": [(5, 1)]}, "skip takes"),
        (None, {"skip": [(0, 2**70)]}, "skip takes"),
    ],
)
def test_invalid_arguments_are_refused(folders, sources, options, words):
    if sources is None:
        sources = [(dataset, 1) for dataset in open_sources(folders[:2])]
    with pytest.raises(UsageError, match=words):
        Mixture(sources, **options)


def test_two_sources_of_one_name_are_refused(folders):
    first, second = open_sources(folders[:2])
    with pytest.raises(UsageError, match="two sources of a mixture are called '1'"):
        Mixture({1: (first, 1), "1": (second, 1)})


@pytest.mark.parametrize("options", [{"objective": "mlm"}, {"mask_ambiguous": True}], ids=["mlm", "ambiguous"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_batch_without_loss_warns_once_whatever_the_layouts(tmp_path, options, compact):
    unknown = worlds.write(tmp_path / "unknown", {"BCR__ECT-S__CT1-1": "N" * 300})
    known = worlds.write(tmp_path / "known", {"BCR__ECT-S__CT1-1": worlds.random_sequence(300)})
    options = {**options, "compact": compact}
    layouts = [{}, {"include_eos": False}]
    without = Mixture([(worlds.dataset(unknown, **options, **each), 1) for each in layouts])
    with pytest.warns(EdenWarning, match="the mean over them is NaN") as warned:
        without.__getitems__(range(8))
    assert len(warned) == 1
    folders = zip((unknown, known), layouts, strict=True)
    mixed = Mixture([(worlds.dataset(folder, **options, **each), 1) for folder, each in folders])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed.__getitems__(range(32))  # rows of one layout have no loss, those of the other do


def test_positions_beyond_those_of_a_checkpoint_are_refused(folders):
    mixture = mixture_of(folders)
    assert mixture.windows_at([(1 << 62) - 1])
    for position in (1 << 62, 1 << 63, 1 << 80):
        with pytest.raises(IndexError, match=f"position {position} of a mixture is not below"):
            mixture.windows_at([0, position])


@pytest.mark.parametrize("begin", [1 << 62, (1 << 65) + 1])
def test_a_phase_that_no_position_reaches_is_refused(small, begin):
    with (
        small.dataset() as one,
        small.dataset(seed=1) as two,
        pytest.raises(UsageError, match=f"below position 2\\*\\*62, not at {begin}"),
    ):
        Mixture([(one, 1), (two, 1)], phases=[(begin, [1, 2])])
