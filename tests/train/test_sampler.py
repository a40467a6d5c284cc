"""Which rank reads which positions: the semantics of docs/one-stream.md, and any history of crashes."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resume import assert_same_stream, row_hashes
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sharded_eden import ArrayDataset, ArrayStream, Mixture, Stream
from sharded_eden.errors import StateError, UsageError
from sharded_eden.train.sampler import BatchPlan, MicroBatches, StreamBatchSampler, evaluation_positions


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    micro, ranks, steps = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return BatchPlan(micro_batch_size=micro, global_batch_size=micro * ranks * steps, data_parallel_size=ranks)


def of_all_ranks(plan: BatchPlan, consumed: int, global_batches: int, **end) -> list[list[int]]:
    """The positions of each global batch, the ranks' micro batches put together in the order of the design."""
    ranks = [iter(MicroBatches(plan, rank=r, consumed_samples=consumed, **end)) for r in range(plan.data_parallel_size)]
    return [
        [position for _ in range(plan.num_microbatches) for rank in ranks for position in next(rank)]
        for _ in range(global_batches)
    ]


@given(plan=plans(), start=st.integers(0, 100), batches=st.integers(1, 5))
def test_a_global_batch_is_the_next_positions(plan, start, batches):
    size = plan.global_batch_size
    expected = [list(range(start + k * size, start + (k + 1) * size)) for k in range(batches)]
    assert of_all_ranks(plan, start, batches) == expected


@given(plan=plans(), total=st.integers(0, 60))
def test_a_finite_end_drops_the_incomplete_global_batch_or_repeats_from_the_start(plan, total):
    ranks = range(plan.data_parallel_size)
    dropped = [list(MicroBatches(plan, rank=r, consumed_samples=0, end=total)) for r in ranks]
    assert {len(micro) for micro in dropped} == {total // plan.global_batch_size * plan.num_microbatches}
    kept = [list(MicroBatches(plan, rank=r, consumed_samples=0, end=total, drop_last=False)) for r in ranks]
    assert len({len(micro) for micro in kept}) == 1, "ranks must take the same number of micro steps"
    rows = [position for step in zip(*kept, strict=True) for micro in step for position in micro]
    assert rows[:total] == list(range(total))
    assert rows[total:] == [k % total for k in range(total, len(rows))]


@given(total=st.integers(0, 40), micro=st.integers(1, 4), ranks=st.integers(1, 4))
def test_evaluation_drops_nothing_and_ranks_stay_in_step(total, micro, ranks):
    parts = [
        evaluation_positions(total, micro_batch_size=micro, rank=r, data_parallel_size=ranks) for r in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    everything = sorted(position for part in parts for position in part)
    assert everything[:total] == list(range(total))
    assert everything == list(range(len(everything)))


def test_sizes_that_do_not_fit_name_those_that_do():
    with pytest.raises(
        UsageError, match=r"Nearest global batch sizes that fit: 8 and 16; micro batch sizes that fit: 1, 3"
    ):
        BatchPlan(micro_batch_size=2, global_batch_size=12, data_parallel_size=4)
    with pytest.raises(UsageError, match="micro_batch_size must be an integer of at least 1, not 0"):
        BatchPlan(micro_batch_size=0, global_batch_size=4)
    with pytest.raises(UsageError, match=r"rank must lie in \[0, 2\), not 2"):
        MicroBatches(
            BatchPlan(micro_batch_size=1, global_batch_size=2, data_parallel_size=2), rank=2, consumed_samples=0
        )
    with pytest.raises(UsageError, match="does not lead to global_batch_size=16"):
        BatchPlan(micro_batch_size=1, global_batch_size=16, rampup_batch_size=(4, 5, 100))


@settings(deadline=None)
@given(consumed=st.integers(0, 200), samples=st.integers(1, 150))
def test_rampup_equals_megatrons_calculator(consumed, samples):
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    plan = BatchPlan(micro_batch_size=2, global_batch_size=16, data_parallel_size=2, rampup_batch_size=(4, 4, samples))
    theirs = RampupBatchsizeNumMicroBatchesCalculator(
        global_batch_size=16, micro_batch_size=2, data_parallel_size=2, decrease_batch_size_if_needed=False,
        rank=1, start_global_batch_size=4, batch_size_increment=4, ramup_samples=samples,
    )  # fmt: skip
    theirs.update(consumed, consistency_check=False, verbose=False)
    assert plan.global_batch_size_at(consumed) == theirs.get_current_global_batch_size()


def test_rampup_leaves_the_stream_as_it_is():
    plan = BatchPlan(micro_batch_size=2, global_batch_size=16, data_parallel_size=2, rampup_batch_size=(4, 4, 60))
    ranks = [iter(MicroBatches(plan, rank=r, consumed_samples=0)) for r in range(2)]
    assert [p for _ in range(40) for rank in ranks for p in next(rank)] == list(range(160))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_histories_equal_the_uninterrupted_stream(seed):
    """Run some steps, lose everything but the state, resume with other ranks and micro batches: 200 histories."""
    choose = random.Random(seed)
    size, consumed, trained = 24, 0, []
    while consumed < 20 * size:
        ranks = choose.choice([1, 2, 3, 4])
        micro = choose.choice([m for m in (1, 2, 3, 4, 6) if size % (m * ranks) == 0])
        plan = BatchPlan(micro_batch_size=micro, global_batch_size=size, data_parallel_size=ranks)
        steps = choose.randrange(1, 6)
        trained += of_all_ranks(plan, consumed, steps)
        if choose.random() < 0.5:  # a crash inside a global batch: its samples do not count
            next(MicroBatches(plan, rank=0, consumed_samples=consumed + steps * size))
        consumed += steps * size
    assert_same_stream(trained, list(range(consumed)))


def test_state_goes_over_to_another_number_of_ranks_and_is_refused_for_other_data(small):
    with small.dataset() as dataset, small.dataset(seed=7) as other_seed:
        stream = Stream(dataset)
        sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8)
        state = sampler.state_dict(consumed_samples=24)
        assert set(state) == {
            "version",
            "consumed_samples",
            "seed",
            "fingerprint",
            "geometry",
            "rows",
            "letters",
            "shuffle",
        }
        resumed = StreamBatchSampler(stream, micro_batch_size=1, global_batch_size=8, rank=1, data_parallel_size=2)
        resumed.load_state_dict(state)
        assert list(islice(resumed, 3)) == [[25], [27], [29]]

        other = StreamBatchSampler(Stream(other_seed), micro_batch_size=2, global_batch_size=8)
        with pytest.raises(StateError, match="seed was 42, is 7"):
            other.load_state_dict(state)
        with pytest.raises(StateError, match=f"fingerprint was 5, is {dataset.fingerprint}"):
            sampler.load_state_dict({**state, "fingerprint": 5})
        with pytest.raises(StateError, match=r"geometry was .*'stride': 1"):
            sampler.load_state_dict({**state, "geometry": {**state["geometry"], "stride": 1}})
        with pytest.raises(StateError, match="version 9, this program reads version 1"):
            sampler.load_state_dict({**state, "version": 9})
        with pytest.raises(StateError, match="bare consumed_samples, as the original loader saves it"):
            sampler.load_state_dict({"consumed_samples": 24})
        with pytest.raises(StateError, match="holds no position"):
            sampler.load_state_dict({})
        accepting = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8, accept_other_data=True)
        accepting.load_state_dict({"consumed_samples": 24})
        assert next(iter(accepting)) == [24, 25]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop_with_torchdata_resumes_exactly(small, workers):
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)

        def loader() -> StatefulDataLoader:
            sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8)
            return StatefulDataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=stream.collate_fn)

        expected = [row_hashes(stream[p]["tokens"][None])[0] for p in range(120)]
        first = loader()
        trained = [row_hashes(batch["tokens"]) for batch in islice(first, 23)]
        state = first.state_dict()
        del first
        second = loader()
        second.load_state_dict(state)
        trained += [row_hashes(batch["tokens"]) for batch in islice(second, 37)]
        assert_same_stream(trained, expected)


def micro_batches(micro: int, size: int = 8, ranks: int = 1, rank: int = 0) -> MicroBatches:
    plan = BatchPlan(micro_batch_size=micro, global_batch_size=size, data_parallel_size=ranks)
    return MicroBatches(plan, rank=rank, consumed_samples=0)


@pytest.mark.parametrize("saved", [(4, 8, 1), (2, 8, 1), (1, 8, 1), (2, 8, 2), (1, 8, 4)])
@pytest.mark.parametrize("resumed", [(4, 8, 1), (2, 8, 1), (1, 8, 1), (2, 8, 2), (1, 8, 4), (2, 4, 1), (4, 16, 2)])
def test_a_state_of_micro_batches_goes_over_to_other_sizes(saved, resumed):
    """The ranks go on where those of another layout ended: no position twice, none left out."""
    for steps in range(7):
        before = [micro_batches(*saved, rank) for rank in range(saved[2])]
        done = [p for _ in range(steps) for each in before for p in next(each)]
        states = [json.loads(json.dumps(each.state_dict())) for each in before]
        assert all(state == states[0] for state in states)
        after = [micro_batches(*resumed, rank) for rank in range(resumed[2])]
        if states[0]["micro_step"] * saved[0] * saved[2] % (resumed[0] * resumed[2]):
            with pytest.raises(StateError, match=r"no multiple of the \d samples of a micro step now"):
                after[0].load_state_dict(states[0])
            continue
        for each in after:
            each.load_state_dict(states[0])
        done += [p for _ in range(5) for each in after for p in next(each)]
        assert done == list(range(len(done)))


def test_an_older_state_of_micro_batches():
    """It does not say how large its micro steps were: they are those of now."""
    for micro_step, expected in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11])):
        resumed = micro_batches(4)
        resumed.load_state_dict({"consumed_samples": 0, "micro_step": micro_step})
        assert next(resumed) == expected
    with pytest.raises(StateError, match="holds no position: per_micro_step=-4"):
        resumed.load_state_dict({"consumed_samples": 0, "micro_step": 1, "per_micro_step": -4})


def test_a_plain_loop_over_one_pass_ends(small):
    with small.dataset() as dataset:
        one_pass = Stream(dataset, num_samples=len(dataset))
        sampler = StreamBatchSampler(one_pass, micro_batch_size=2, global_batch_size=8, drop_last=False)
        batches = list(DataLoader(one_pass, batch_sampler=sampler, collate_fn=one_pass.collate_fn))
        assert len(batches) == len(sampler) == -(-len(dataset) // 2)
        with pytest.raises(TypeError, match="endless"):
            len(StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=8))


@pytest.mark.parametrize("kind", ["one", "mixture"])
def test_what_is_saved_can_be_loaded(small, kind):
    with small.dataset() as dataset:

        def sampler(seed: int) -> StreamBatchSampler:
            stream = Stream(dataset, seed=seed) if kind == "one" else Mixture([(dataset, 1)], seed=seed)
            return StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8)

        saving = sampler(np.int64(1))
        saving.set_epoch(np.int64(2))
        state = json.loads(json.dumps(saving.state_dict(consumed_samples=np.int64(24))))
        resumed = sampler(1)
        resumed.load_state_dict(state)
        assert (resumed.consumed_samples, resumed.stream.epoch) == (24, 2)
        resumed.consumed_samples = np.int64(8)
        iterator = iter(resumed)
        iterator.load_state_dict(json.loads(json.dumps(iterator.state_dict())))
        for consumed in (12.0, -8, "8", 1 << 62):
            with pytest.raises(UsageError, match="consumed_samples must"):
                saving.state_dict(consumed_samples=consumed)


def test_an_array_stream_saves_integers_of_python(small):
    with ArrayDataset.open(small.sequence_db_dir, small.window_db) as dataset:
        stream = ArrayStream(dataset, np.int64(40), seed=np.int64(1))
        stream.set_epoch(np.int64(2))
        assert json.loads(json.dumps(stream.state(np.int64(8))))["epoch"] == 2
        assert len(stream) == 40


def test_sizes_far_too_large_are_refused_at_once():
    with pytest.raises(UsageError, match=r"micro batch sizes that fit: 1, 2, 4, .*, 16384$"):
        BatchPlan(micro_batch_size=3, global_batch_size=1 << 40)
    with pytest.raises(UsageError, match="micro batch sizes that fit: none, since 3 ranks do not divide it"):
        BatchPlan(micro_batch_size=1, global_batch_size=1 << 40, data_parallel_size=3)
    BatchPlan(micro_batch_size=1, global_batch_size=1 << 40, rampup_batch_size=(1, 1, 100))


@pytest.mark.parametrize("rampup", [(4, 4), (4, 4, 4, 4), (), (4, 0, 100)])
def test_a_ramp_up_that_is_none_is_refused(rampup):
    with pytest.raises(UsageError, match="does not lead to global_batch_size=16"):
        BatchPlan(micro_batch_size=1, global_batch_size=16, rampup_batch_size=rampup)


def test_numbers_of_a_ramp_up_are_integers():
    plan = BatchPlan(micro_batch_size=1, global_batch_size=16, rampup_batch_size=[np.int64(4), 4, 100])
    assert plan == BatchPlan(micro_batch_size=1, global_batch_size=16, rampup_batch_size=(4, 4, 100))
    assert plan.rampup_batch_size == (4, 4, 100)
    with pytest.raises(UsageError, match="rampup_batch_size must be an integer, not '4'"):
        BatchPlan(micro_batch_size=1, global_batch_size=16, rampup_batch_size=("4", 4, 100))
    with pytest.raises(UsageError, match=r"global_batch_size=6 is not a multiple"):
        BatchPlan(micro_batch_size=4, global_batch_size=16, rampup_batch_size=(4, 2, 100))


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_evaluation_keeps_no_list_of_its_positions(ranks):
    tracemalloc.start()
    try:
        positions = evaluation_positions(10**6, micro_batch_size=8, rank=ranks - 1, data_parallel_size=ranks)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    first = [*range(16, 24), *range(40, 48)] if ranks == 3 else list(range(16))
    assert list(islice(positions, 16)) == list(positions[:16]) == [positions[k] for k in range(16)] == first
    assert len(positions) == len(list(positions)) == (10**6 if ranks == 1 else -(-(10**6) // 24) * 8)
    with pytest.raises(IndexError):
        positions[len(positions)]
