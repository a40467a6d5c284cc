"""Batches sent from a worker: the receiver gets equal tensors in its own memory."""

from __future__ import annotations

import multiprocessing
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import DataLoader

from sharded_eden.load.encode import sent
from sharded_eden.load.encode.sent import SentBatch

BATCH = {
    "tokens": torch.arange(12).view(3, 4),
    "moved": torch.arange(12, dtype=torch.int32).view(3, 4).T,
    "mask": torch.tensor([[0.5, 1.0]]),
    "apart": torch.tensor([[True, False]]),
    "one": torch.tensor(7, dtype=torch.uint8),
    "none": torch.zeros((3, 0), dtype=torch.int64),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "weight": torch.tensor([1.5], requires_grad=True),
    "text": "BCR",
    "pair": (b"x", "|u1", (1,)),
}


def through_pickle(batch: SentBatch) -> dict:
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader, writer:
        writer.send_bytes(bytes(ForkingPickler.dumps(batch)))
        received = reader.recv()
    assert type(received) is dict
    return received


@pytest.mark.parametrize("most_bytes", [0, 40, 1 << 19])
def test_what_arrives_is_what_was_sent(monkeypatch, most_bytes):
    monkeypatch.setattr(sent, "MOST_BYTES", most_bytes)
    received = through_pickle(SentBatch(BATCH))
    assert list(received) == list(BATCH)
    for name, value in BATCH.items():
        if not isinstance(value, torch.Tensor):
            assert received[name] == value
            continue
        assert torch.equal(received[name], value), name
        assert received[name].dtype == value.dtype
        assert received[name].requires_grad == value.requires_grad
        if value.dtype in sent.DTYPES and not value.requires_grad:
            received[name].zero_()


def test_small_tensors_leave_no_shared_memory():
    small, large = torch.zeros(8), torch.zeros(sent.MOST_BYTES // 4 + 1)
    through_pickle(SentBatch(small=small, large=large))
    assert not small.is_shared()
    assert large.is_shared()


@pytest.mark.parametrize("options", [{}, {"compact": True}])
def test_workers_send_what_this_process_makes(small, options):
    with small.dataset(rc_aug=True, **options) as dataset:
        here = [dataset.collate_fn(dataset.__getitems__([i, i + 1])) for i in range(0, 8, 2)]
        loader = DataLoader(dataset, batch_size=2, sampler=range(8), num_workers=1, collate_fn=dataset.collate_fn)
        for made, received in zip(here, loader, strict=True):
            assert type(made) is type(received) is dict
            assert not any(tensor.is_shared() for tensor in received.values())
            assert all(torch.equal(made[name], received[name]) for name in made)


class ManyTensors:
    """What the thread that sends a batch frees for some tenths of a second; PyTorch gives up the lock of Python at each."""

    def __init__(self) -> None:
        self.tensors = [torch.zeros(1) for _ in range(200_000)]

    def __reduce__(self) -> tuple:
        return int, (0,)


def sent_with_many_tensors(rows: list) -> SentBatch:
    return SentBatch(many=ManyTensors())


def plain_with_many_tensors(rows: list) -> dict:
    return {"many": ManyTensors()}


@pytest.mark.parametrize("collate", [sent_with_many_tensors, plain_with_many_tensors])
def test_a_spawned_worker_that_is_stopped_while_it_sends_is_not_aborted(small, collate):
    with small.dataset() as dataset:
        rows = dataset if collate is plain_with_many_tensors else range(1000)
        loader = DataLoader(rows, batch_size=4, num_workers=1, multiprocessing_context="spawn", collate_fn=collate)
        batches = iter(loader)
        next(batches)
        workers = batches._workers
        batches._shutdown_workers()
        assert [worker.exitcode for worker in workers] == [0]
