"""position -> (epoch, window): endless, and the same for every way to index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracle
from sharded_eden import ArrayStream, Stream
from sharded_eden.errors import UsageError
from sharded_eden.load.encode.batch import collate
from sharded_eden.load.encode.example import is_reversed
from sharded_eden.train.order import Order
from sharded_eden.train.stream import EvaluationStream, RepeatedEvaluation


def test_positions_run_through_pass_after_pass(small):
    with small.dataset() as dataset:
        stream, length = Stream(dataset), len(dataset)
        visits = stream.windows_at(range(3 * length))
        for epoch in range(3):
            one_pass = visits[epoch * length : (epoch + 1) * length]
            assert one_pass == [(epoch, i) for i in Order(length, 42, epoch)(np.arange(length)).tolist()]
            assert sorted(i for _, i in one_pass) == list(range(length))
        assert visits[:length] != visits[length : 2 * length]
        scattered = [2 * length + 1, 0, length - 1, length, 0]
        assert stream.windows_at(scattered) == [visits[p] for p in scattered]


def test_examples_depend_on_seed_epoch_and_window_alone(small):
    with small.dataset(rc_aug=True, seed=5) as dataset:
        stream, length = Stream(dataset), len(dataset)
        positions = [0, length + 3, 2 * length + 7, length - 1]
        batch = stream.collate_fn(stream.__getitems__(positions))
        for k, (epoch, window_idx) in enumerate(stream.windows_at(positions)):
            wanted = oracle.item(
                small.sequence_db_dir, small.window_db, window_idx, seq_length=64, stride=50,
                reverse=is_reversed(5, epoch, window_idx),
            )  # fmt: skip
            assert batch["tokens"][k].tolist() == wanted["tokens"]
            assert torch.equal(stream[positions[k]]["tokens"], batch["tokens"][k])


def test_ends_and_errors(small):
    with small.dataset() as dataset:
        endless, finite = Stream(dataset), Stream(dataset, num_samples=130)
        assert len(endless) == len(dataset)
        assert len(finite) == 130
        assert endless[10**12]["tokens"].shape == (64,)
        for position in (-1, 130, "a", 1.5):
            with pytest.raises(IndexError):
                finite[position]
        with pytest.raises(UsageError, match="num_samples must not be negative"):
            Stream(dataset, num_samples=-1)


def test_evaluation_is_one_fixed_pass_that_says_which_rows_count(small):
    with small.dataset() as dataset:
        stream, length = EvaluationStream(dataset), len(dataset)
        batch = collate(stream.__getitems__([0, 1, length, length + 1]))
        assert batch["row_counts"].tolist() == [True, True, False, False]
        assert torch.equal(batch["tokens"][:2], batch["tokens"][2:])
        again = EvaluationStream(dataset)
        assert torch.equal(again[3]["tokens"], stream[3]["tokens"])
        assert again[3]["row_counts"].item() is True
        visited = [window_idx for _, window_idx in stream.windows_at(range(length))]
        assert sorted(visited) == list(range(length))
        assert visited != list(range(length)), "a cut-off pass must not be the first contigs by name"


def test_evaluations_that_are_counted_on_and_on_repeat_their_rows(small):
    with small.dataset() as dataset:
        length, plain = len(dataset), EvaluationStream(dataset)
        stream = RepeatedEvaluation(dataset, 100, rows_each=7)
        assert len(stream) == 100
        batch = collate(stream.__getitems__([6, 7, 99]))
        for row, position in enumerate((6, 0, 1)):
            assert torch.equal(batch["tokens"][row], plain[position]["tokens"])
        assert batch["row_counts"].all()
        longer = RepeatedEvaluation(dataset, 10 * length, rows_each=length + 2)
        assert [longer[p]["row_counts"].item() for p in (length - 1, length, length + 1, length + 2)] == [1, 0, 0, 1]
        for position in (-1, 100):
            with pytest.raises(IndexError, match="outside evaluations of 100 rows"):
                stream[position]


@pytest.mark.parametrize("kind", [Stream, ArrayStream])
def test_numbers_that_are_no_integers_are_refused(small, kind):
    with small.dataset() as dataset:
        for number in (1.5, "8"):
            with pytest.raises(UsageError, match="num_samples must be an integer"):
                kind(dataset, num_samples=number)
            with pytest.raises(UsageError, match="seed must be an integer"):
                kind(dataset, seed=number)
