"""Micro batches from Megatron's calculator, the data module with it, and the hooks that NeMo's strategy calls."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core import num_microbatches_calculator as calculators
from megatron.core import parallel_state
from resume import assert_same_stream, row_hashes

from sharded_eden import ShardedEdenDataModule, Stream
from sharded_eden.errors import UsageError
from sharded_eden.train.megatron import DataParallel, MegatronBatchSampler, data_parallel_of, plan_of_job
from sharded_eden.train.sampler import BatchPlan, MicroBatches

HELPERS = Path(__file__).resolve().parent.parent / "helpers"


@pytest.fixture(autouse=True)
def megatron_is_left_as_it_was():
    yield
    calculators.destroy_num_microbatches_calculator()
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def initialize(size=16, micro=2, ranks=2, rampup=None, **options) -> None:
    calculators.destroy_num_microbatches_calculator()
    calculators.init_num_microbatches_calculator(0, rampup, size, micro, ranks, **options)


def initialize_parallel_state(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()


@st.composite
def rampups(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int]]:
    """Micro batch size, ranks, and a ramp-up to four increments above its first size."""
    micro, ranks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    first, increment = (draw(st.integers(1, 3)) * micro * ranks for _ in range(2))
    return micro, ranks, (first, increment, draw(st.integers(1, 300)))


@settings(max_examples=100, deadline=None)
@given(sizes=rampups(), begin=st.integers(0, 120))
def test_a_training_loop_of_megatrons_own_gets_the_stream(sizes, begin):
    micro, ranks, (first, increment, samples) = sizes
    full = first + 4 * increment
    initialize(full, micro, ranks, [first, increment, samples])
    plan = plan_of_job(micro_batch_size=micro, global_batch_size=full, data_parallel_size=ranks)
    each = [MicroBatches(plan, rank=r, consumed_samples=begin) for r in range(ranks)]
    consumed, fed = begin, []
    for step in range(25):
        calculators.update_num_microbatches(consumed, consistency_check=True)
        before = [micro_batches.state_dict() for micro_batches in each]
        fed += [p for _ in range(calculators.get_num_microbatches()) for rank in each for p in next(rank)]
        consumed += calculators.get_current_running_global_batch_size()
        assert step == 0 or all(state["consumed_samples"] < consumed for state in before)
        assert plan.after(begin, step + 1) == consumed
        assert plan.micro_steps_within(begin, consumed - begin) == len(fed) // plan.per_micro_step
        assert plan.micro_steps_within(begin, consumed - begin - 1) < len(fed) // plan.per_micro_step
    assert fed == list(range(begin, consumed))


@settings(max_examples=50, deadline=None)
@given(sizes=rampups(), begin=st.integers(0, 400), steps=st.integers(0, 30))
def test_own_ramp_up_counts_as_megatrons(sizes, begin, steps):
    micro, ranks, rampup = sizes
    full = rampup[0] + 4 * rampup[1]
    initialize(full, micro, ranks, list(rampup))
    own = BatchPlan(micro_batch_size=micro, global_batch_size=full, data_parallel_size=ranks, rampup_batch_size=rampup)
    theirs = plan_of_job(
        micro_batch_size=micro, global_batch_size=full, data_parallel_size=ranks, rampup_batch_size=rampup
    )
    assert type(theirs) is not BatchPlan
    assert own.after(begin, steps) == theirs.after(begin, steps)
    assert own.micro_steps_within(begin, steps * full) == theirs.micro_steps_within(begin, steps * full)


def test_megatrons_calculator_stays_where_it_is():
    initialize(16, rampup=[4, 4, 60])
    plan = plan_of_job(micro_batch_size=2, global_batch_size=16, data_parallel_size=2)
    calculators.update_num_microbatches(20)
    assert (plan.global_batch_size_at(0), plan.global_batch_size_at(20), plan.global_batch_size_at(10**9)) == (4, 8, 16)
    assert calculators.get_current_global_batch_size() == 8


def test_a_batch_that_megatron_decreases_is_decreased():
    initialize(18, micro=2, ranks=2, decrease_batch_size_if_needed=True)
    plan = plan_of_job(micro_batch_size=2, global_batch_size=18, data_parallel_size=2)
    assert (plan.global_batch_size, plan.num_microbatches, plan.global_batch_size_at(100)) == (16, 4, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"micro_batch_size": 4}, "micro_batch_size is 4 here, but 2 in Megatron's num_microbatches_calculator"),
        ({"global_batch_size": 8}, "global_batch_size is 8 here, but 16 in Megatron's"),
        ({"data_parallel_size": 4}, "the data-parallel size is 4 here, but 2 in Megatron's"),
        ({"rampup_batch_size": (4, 4, 61)}, r"\[4, 4, 61\]: the global batch at consumed_samples=20 is 4 here, but 8 in"),
        ({"rampup_batch_size": (8, 4, 60)}, "consumed_samples=0 is 8 here, but 4 in Megatron's"),
        ({"rampup_batch_size": (4, 6, 60)}, "consumed_samples=29 is 4 here, but 8 in Megatron's"),
        ({"rampup_batch_size": (16, 4, 60)}, "consumed_samples=0 is 16 here, but 4 in Megatron's"),
    ],
)  # fmt: skip
def test_other_sizes_than_megatrons_are_refused(given, message):
    initialize(16, micro=2, ranks=2, rampup=[4, 4, 60])
    sizes = {"micro_batch_size": 2, "global_batch_size": 16, "data_parallel_size": 2, "rampup_batch_size": (4, 4, 60)}
    plan_of_job(**sizes)
    with pytest.raises(UsageError, match=message):
        plan_of_job(**{**sizes, **given})


def test_sizes_that_do_not_fit_are_listed_under_megatron_too():
    initialize(12, micro=2, ranks=3)
    with pytest.raises(
        UsageError, match="Nearest global batch sizes that fit: 8 and 16; micro batch sizes that fit: 1, 3"
    ):
        plan_of_job(micro_batch_size=2, global_batch_size=12, data_parallel_size=4)
    initialize(16, micro=2, ranks=2, rampup=[6, 10, 60])  # Megatron itself says so when training comes to it
    plan = plan_of_job(micro_batch_size=2, global_batch_size=16, data_parallel_size=2)
    with pytest.raises(UsageError, match="global_batch_size=6 is not a multiple of micro_batch_size=2 times"):
        plan.global_batch_size_at(0)


def test_a_sampler_with_all_sizes_from_megatron(small, tmp_path):
    with small.dataset() as dataset:
        stream = Stream(dataset)
        with pytest.raises(UsageError, match="Megatron is not initialized: call"):
            MegatronBatchSampler(stream)
        initialize(16, micro=2, ranks=1, rampup=[4, 4, 60])
        with pytest.raises(UsageError, match="Megatron is not initialized"):
            MegatronBatchSampler(stream)
        initialize_parallel_state(tmp_path)
        sampler = MegatronBatchSampler(stream)
        assert [p for batch in islice(sampler, 30) for p in batch] == list(range(60))
        state = sampler.state_dict(consumed_samples=40)
        resumed = MegatronBatchSampler(stream)
        resumed.load_state_dict(state)
        assert next(iter(resumed)) == [40, 41]
        assert resumed.plan.global_batch_size_at(40) == 12


def module_of(small, **options) -> ShardedEdenDataModule:
    return ShardedEdenDataModule(
        small.sequence_db_dir, small.window_db, small.window_db, seq_length=small.seq_length, stride=small.stride,
        num_workers=0, **{"micro_batch_size": 2, "global_batch_size": 16, **options},
    )  # fmt: skip


def test_the_data_module_ramps_up_with_megatron(small, tmp_path):
    initialize_parallel_state(tmp_path)
    initialize(16, micro=2, ranks=1, rampup=[4, 4, 60])
    assert data_parallel_of(None) == DataParallel(0, 1)
    module = module_of(small)
    module.setup("fit")
    loader = module.train_dataloader()
    fed = [row for batch in loader for row in row_hashes(batch["tokens"])]
    assert len(loader) * 2 == len(fed)
    dataset = small.dataset()
    stream = Stream(dataset)
    consumed = 0
    while consumed + (size := module.batch_plan().global_batch_size_at(consumed)) <= len(dataset):
        consumed += size
    assert_same_stream([fed], [row_hashes(stream[p]["tokens"][None])[0] for p in range(consumed)])
    with pytest.raises(UsageError, match="global_batch_size is 8 here, but 16 in Megatron's"):
        module_of(small, global_batch_size=8).train_dataloader()


@dataclass
class Step:
    """What is read or set of NeMo's `MegatronStep`: NeMo excludes the Lightning of this environment, see docs/nemo.md."""

    forward_only: bool
    seq_length: int | None = None
    micro_batch_size: int | None = None
    num_microbatches: int | None = None


def test_the_data_sampler_that_nemos_strategy_asks_for(small):
    module = module_of(small, rampup_batch_size=[4, 4, 60])
    sampler = module.data_sampler
    assert sampler.dataloader_type == "single"
    sampler.setup(global_rank=0)
    assert (calculators.get_current_global_batch_size(), calculators.get_micro_batch_size()) == (4, 2)
    sampler.setup(global_rank=0)  # NeMo does it twice
    sampler.connect(trainer=None)
    module.setup()
    loader = module.train_dataloader()
    assert sampler.transform_dataloader(loader) is loader

    assert sampler.on_megatron_step_start(Step(forward_only=False)) == Step(False, small.seq_length, 2, 2)
    module.load_state_dict({**module.state_dict(), "consumed_samples": 40})
    assert sampler.on_megatron_step_start(Step(forward_only=True)).num_microbatches == 8
    assert calculators.get_current_global_batch_size() == 4
    assert sampler.on_megatron_step_start(Step(forward_only=False)).num_microbatches == 6

    with pytest.raises(UsageError, match="micro_batch_size is 4 here, but 2 in Megatron's"):
        module_of(small, micro_batch_size=4).data_sampler.setup(global_rank=0)


@pytest.mark.slow
def test_every_layout_of_four_ranks(small):
    """tensor, pipeline and context parallelism, a ramp-up by Megatron's calculator, a restart in the middle of it."""
    job = HELPERS / "megatron_ranks.py"
    done = subprocess.run(
        [sys.executable, str(job), str(small.sequence_db_dir), str(small.window_db)], capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = eval(done.stdout.splitlines()[-1])
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)
        expected = [row_hashes(stream[p]["tokens"][None])[0] for p in range(200)]
    assert set(report) == {"dp=4", "tp=2", "pp=2", "cp=2", "tp=2 pp=2", "pp=2 cp=2", "pp=4"}
    for layout, ranks in report.items():
        by_place: dict[tuple[int, int], list] = {}
        for place, micro_steps in ranks:
            assert by_place.setdefault(place, micro_steps) == micro_steps, f"{layout}: peers differ"
        size = next(iter(by_place))[1]
        assert sorted(by_place) == [(rank, size) for rank in range(size)]
        assert size == {"dp=4": 4, "tp=2": 2, "pp=2": 2, "cp=2": 2}.get(layout, 1)
        steps = zip(*(by_place[rank, size] for rank in range(size)), strict=True)
        fed = [row for step in steps for micro in step for row in micro]
        assert len(set(fed[: len(stream)])) == len(stream), f"{layout}: a pass visits each window once"
        assert_same_stream([fed], expected[: len(fed)])
        assert len(fed) > 150
