"""A second training pass gives other rows, or a warning; evaluations repeat their rows."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import warnings
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_datamodule import Model, folder, module_of, one_thread, pytestmark, stream_rows, trainer_of  # noqa: F401
from torch.utils.data import DataLoader

from sharded_eden import Mixture, Stream
from sharded_eden.errors import EdenWarning, StateError, UsageError
from sharded_eden.train.sampler import StreamBatchSampler
from sharded_eden.train.stream import EvaluationStream

AGAIN = "begins with the same rows, order and strands"


def rows(loader) -> list[list[int]]:
    return [row for batch in loader for row in batch["tokens"].tolist()]


def at(dataset, positions) -> list[list[int]]:
    stream = Stream(dataset)
    return [stream[p]["tokens"].tolist() for p in positions]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["main", "workers", "persistent"],
)
@pytest.mark.parametrize("samples", [None, 20])
def test_a_plain_loop_is_warned_and_set_epoch_goes_on(small, options, samples):
    with small.dataset(rc_aug=True) as dataset:
        n = samples or len(dataset)
        stream = Stream(dataset, num_samples=samples)
        loader = DataLoader(stream, batch_size=7, collate_fn=stream.collate_fn, **options)
        first = rows(loader)
        with pytest.warns(EdenWarning, match=AGAIN):
            assert rows(loader) == first
        for epoch in (1, 2, 0):
            stream.set_epoch(epoch)
            assert rows(loader) == at(dataset, range(epoch * n, epoch * n + n))
        del loader


def test_the_documented_loop_trains_on_three_passes_of_the_stream(small):
    page = (Path(__file__).resolve().parents[2] / "docs" / "one-stream.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    batches = []
    with small.dataset(rc_aug=True) as dataset, warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(example, {"dataset": dataset, "Stream": Stream, "DataLoader": DataLoader, "train_step": batches.append})
        assert rows(batches) == at(dataset, range(3 * len(dataset)))


def test_evaluations_repeat_without_a_warning(small):
    with small.dataset() as dataset, small.dataset(split="validation") as held_out, warnings.catch_warnings():
        warnings.simplefilter("error")
        for stream in (EvaluationStream(dataset), Stream(held_out), Stream(dataset, shuffle=False)):
            loader = DataLoader(stream, batch_size=7, collate_fn=stream.collate_fn)
            assert rows(loader) == rows(loader)
        stream = EvaluationStream(dataset)
        stream.set_epoch(3)
        assert stream[0]["tokens"].tolist() == EvaluationStream(dataset)[0]["tokens"].tolist()
        stream = Stream(dataset)
        loader = DataLoader(stream, batch_size=7, collate_fn=stream.collate_fn)
        len(loader)
        assert len(rows(loader)) == len(stream)
        with torch.no_grad():
            rows(loader)


@pytest.mark.parametrize("samples", [None, 24])
def test_the_batch_sampler_is_warned_and_set_epoch_goes_on(small, samples):
    with small.dataset(rc_aug=True) as dataset:
        n = samples or len(dataset)
        stream = Stream(dataset, num_samples=samples)
        sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8, consumed_samples=8)
        loader = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)
        first = rows(islice(loader, 4))
        assert first == at(dataset, range(8, 16))
        with pytest.warns(EdenWarning, match=AGAIN):
            assert rows(islice(loader, 4)) == first
        sampler.set_epoch(0)  # the same epoch: continues
        assert sampler.consumed_samples == 8
        sampler.set_epoch(1)
        assert rows(islice(loader, 4)) == at(dataset, range(n, n + 8))
        sampler.consumed_samples = 16
        assert rows(islice(loader, 4)) == at(dataset, range(n + 16, n + 24))


def test_a_state_holds_its_epoch(small):
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset, num_samples=24)
        sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8)
        sampler.set_epoch(2)
        state = sampler.state_dict(consumed_samples=8)
        other = StreamBatchSampler(Stream(dataset, num_samples=24), micro_batch_size=2, global_batch_size=8)
        other.load_state_dict(state)
        other.set_epoch(2)
        assert rows(DataLoader(other.stream, batch_sampler=other)) == at(dataset, range(56, 72))
        with pytest.raises(StateError, match="version 1, this program"):
            other.load_state_dict({**state, "version": 1})
        with pytest.raises(StateError, match="epoch=-1"):
            other.load_state_dict({**state, "epoch": -1})


def test_a_state_with_an_epoch_of_another_length_is_refused(small):
    with small.dataset() as dataset:

        def sampler(samples: int | None) -> StreamBatchSampler:
            stream = Stream(dataset, num_samples=samples)
            return StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8)

        saving = sampler(24)
        first = saving.state_dict(consumed_samples=8)
        saving.set_epoch(1)
        state = saving.state_dict(consumed_samples=8)
        without = {name: value for name, value in state.items() if name != "samples_of_an_epoch"}
        for samples in (32, 16, None):
            other = sampler(samples)
            length = samples or len(dataset)
            with pytest.raises(StateError, match=f"samples_of_an_epoch was 24, is {length}"):
                other.load_state_dict(state)
            for accepted in (first, without):  # positions of epoch 0 do not depend on it; older states leave it out
                other.load_state_dict(accepted)
                assert other.consumed_samples == 8
        of_pass = sampler(None)
        of_pass.set_epoch(1)
        state = of_pass.state_dict(consumed_samples=8)
        sampler(None).load_state_dict(state)
        sampler(len(dataset)).load_state_dict(state)


@pytest.mark.parametrize("epoch", [-1, 1.5, None, "1", 1 << 40])
def test_an_invalid_epoch_is_refused(small, epoch):
    with small.dataset() as dataset, pytest.raises(UsageError, match="epoch must"):
        Stream(dataset).set_epoch(epoch)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
@pytest.mark.parametrize("kind", [Stream, EvaluationStream, lambda dataset: Mixture([(dataset, 1)])])
def test_a_copy_has_an_epoch_of_its_own(small, copied, kind):
    with small.dataset() as dataset:
        stream = kind(dataset)
        Stream._start_pass(stream, 1)  # an evaluation ignores set_epoch
        stream.set_end(8)
        other = copied(stream)
        assert (type(other), other.epoch, other._end_of_asking()) == (type(stream), 1, stream._end_of_asking())
        assert other.windows_at([3, 9]) == stream.windows_at([3, 9])
        Stream._start_pass(other, 2)
        other.set_end(16)
        assert (stream.epoch, other.epoch) == (1, 2)
        assert (int(stream._end), int(other._end)) == (8, 16)
        other.dataset.close()


def test_lightning_with_the_loader_alone_sees_other_rows_in_each_epoch(folder):  # noqa: F811
    model = Model()
    trainer_of(folder, max_epochs=3).fit(model, train_dataloaders=module_of(folder).train_dataloader())
    trained = [row for batch in model.batches for row in batch["tokens"].tolist()]
    assert trained == _tokens(folder, range(60))


def _tokens(folder, positions):  # noqa: F811
    import worlds

    with worlds.dataset(folder, rc_aug=True) as dataset:
        return at(dataset, positions)


def test_a_plain_loop_over_the_data_modules_loader_is_warned(folder):  # noqa: F811
    loader = module_of(folder).train_dataloader()
    first = rows(loader)
    with pytest.warns(EdenWarning, match=AGAIN):
        assert rows(loader) == first
    loader.sampler.set_epoch(1)
    assert rows(loader) == _tokens(folder, range(20, 40))


def test_the_tuner_scales_the_micro_batch_size_and_training_begins_at_the_start(folder):  # noqa: F811
    from lightning.pytorch.tuner import Tuner

    model, module = Model(), module_of(folder, micro_batch_size=1, val_window_db_path=folder / "held_out.db")
    trainer = trainer_of(folder, max_epochs=1)
    size = Tuner(trainer).scale_batch_size(
        model, datamodule=module, batch_arg_name="micro_batch_size", init_val=1, max_trials=2, steps_per_trial=5
    )
    assert size in (2, 4)
    assert module.micro_batch_size == size
    trained = Model()
    trainer.fit(trained, datamodule=module)
    assert [row for step in trained.steps for row in step] == stream_rows(folder, range(20))
    assert {len(batch["tokens"]) for batch in trained.batches} == {size}


HOSTILE = [
    None, [], "state", 7, {}, {"consumed_samples": None}, {"consumed_samples": "8"}, {"consumed_samples": 8.0},
    {"consumed_samples": -8}, {"consumed_samples": True}, {"consumed_samples": 1 << 70}, {"consumed_samples": [8]},
]  # fmt: skip


@pytest.mark.parametrize("state", HOSTILE, ids=str)
@pytest.mark.parametrize("accept", [False, True])
def test_hostile_states_are_refused(small, folder, state, accept):  # noqa: F811
    with small.dataset() as dataset:
        sampler = StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=8, accept_other_data=accept)
        with pytest.raises(StateError):
            sampler.load_state_dict(state)
        with pytest.raises(StateError):
            iter(sampler).load_state_dict(state)
    module = module_of(folder, accept_other_data=accept)
    with pytest.raises(StateError):
        module.load_state_dict(state)
    module.setup("fit")
    with pytest.raises(StateError):
        module.load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", "1"), ("version", True), ("version", [1]), ("version", None), ("seed", "42"), ("seed", None),
     ("fingerprint", "x" * 10**6), ("geometry", None), ("geometry", []), ("geometry", {1: 2}), ("epoch", 1)],
)  # fmt: skip
def test_states_of_wrong_types_are_refused(small, key, value):
    with small.dataset() as dataset:
        sampler = StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=8)
        with pytest.raises(StateError) as refused:
            sampler.load_state_dict({**sampler.state_dict(), key: value})
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("consumed", [-8, 1.5, None, "8"])
def test_an_invalid_position_is_refused(small, consumed):
    with small.dataset() as dataset, pytest.raises(UsageError, match="consumed_samples must"):
        StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=8, consumed_samples=consumed)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_is_what_iterating_gives(small, drop_last):
    with small.dataset() as dataset:
        for samples in range(0, 60, 7):
            for consumed in (0, 8, 40):
                for rampup in (None, (4, 4, 20)):
                    sampler = StreamBatchSampler(
                        Stream(dataset, num_samples=samples), micro_batch_size=2, global_batch_size=16, rank=1,
                        data_parallel_size=2, consumed_samples=consumed, rampup_batch_size=rampup, drop_last=drop_last,
                    )  # fmt: skip
                    assert len(sampler) == sum(1 for _ in iter(sampler)), (samples, consumed, rampup)


def test_the_default_number_of_workers_fits_this_machine(folder):  # noqa: F811
    import os

    from sharded_eden import ShardedEdenDataModule

    module = ShardedEdenDataModule(folder / "seqs", folder / "windows.db", seq_length=64, stride=50)
    assert module.num_workers == min(8, len(os.sched_getaffinity(0)))
    assert module_of(folder, num_workers=8).num_workers == 8


def in_workers(stream, epochs) -> list[list[list[int]]]:
    """The rows of passes over persistent forked workers; None: without `set_epoch`."""
    loader = DataLoader(
        stream, batch_size=7, collate_fn=stream.collate_fn,
        num_workers=1, persistent_workers=True, multiprocessing_context="fork",
    )  # fmt: skip
    passes = []
    for epoch in epochs:
        if epoch is not None:
            stream.set_epoch(epoch)
        passes.append(rows(loader))
    return passes


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_running_workers_follow_a_copy(small, copied):
    with small.dataset(rc_aug=True) as dataset:
        n, other = len(dataset), copied(Stream(dataset))
        assert in_workers(other, (0, 1)) == [at(dataset, range(n)), at(dataset, range(n, 2 * n))]
        other.dataset.close()


def test_running_workers_follow_the_rank_that_was_forked_with_the_stream(small):
    with small.dataset(rc_aug=True) as dataset:
        n, stream = len(dataset), Stream(dataset)
        here, there = multiprocessing.get_context("fork").Pipe()
        rank = multiprocessing.get_context("fork").Process(
            target=lambda: there.send((in_workers(stream, (None, 1)), stream.epoch))
        )
        rank.start()
        assert here.poll(60)
        passes, epoch = here.recv()
        rank.join()
        assert passes == [at(dataset, range(n)), at(dataset, range(n, 2 * n))]
        assert (epoch, stream.epoch) == (1, 0), "ranks may be in other epochs"


def test_workers_get_the_memory_of_the_rank_that_pickles_the_stream(small):
    with small.dataset() as dataset:
        stream = Stream(dataset)
        of_parent, stream._epoch_owner = stream._epoch, 1  # as in another process, which was spawned with the stream
        of_worker = stream.__getstate__()["_epoch"]
        stream.set_epoch(2)
        assert (int(of_worker), int(of_parent)) == (2, 0)


def test_the_data_module_goes_on_in_the_pass_of_a_state(folder):  # noqa: F811
    import worlds

    with worlds.dataset(folder, rc_aug=True) as dataset:
        sampler = StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=4)
        sampler.set_epoch(2)
        state = sampler.state_dict(consumed_samples=8)
    for is_open in (True, False):
        module = module_of(folder)
        if is_open:
            module.setup("fit")
        module.load_state_dict(state)
        assert rows(islice(module.train_dataloader(), 2)) == _tokens(folder, range(2 * 23 + 8, 2 * 23 + 12))
        assert module.state_dict() == state


@pytest.mark.parametrize("epochs", [1.5, "2", None])
def test_a_number_of_passes_that_is_no_integer_is_refused(folder, epochs):  # noqa: F811
    with pytest.raises(UsageError, match="num_epochs must be an integer"):
        module_of(folder, num_epochs=epochs)
