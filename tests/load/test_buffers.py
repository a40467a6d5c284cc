"""Buffers are reused only when nothing refers to them."""

from __future__ import annotations

import pickle

import pytest
import torch

from sharded_eden.load.encode.buffers import BATCH_DTYPES, LABELS_OFFSET_BYTES, LOOKS, PAGE_BYTES, RowBuffers, positions


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_a_buffer_is_used_again_once_every_view_of_it_is_gone(rows):
    buffers = RowBuffers(16)

    def make() -> torch.Tensor:
        return torch.from_numpy(buffers.get(rows)[0])

    first = make()
    place = first.data_ptr()
    views = [first[..., 2:], first.numpy(), first.view(-1)[3], first.detach()[None]]
    del first
    while views:
        assert make().data_ptr() != place
        views.pop()
    assert place in {make().data_ptr() for _ in range(LOOKS)}


def test_many_at_once_all_have_memory_of_their_own():
    buffers = RowBuffers(16)
    held = [[torch.from_numpy(array) for array in buffers.get(2)] for _ in range(5 * LOOKS)]
    places = {tensor.data_ptr() for tensors in held for tensor in tensors}
    assert len(places) == 3 * len(held)


def test_items_and_batches_may_be_written_to(small):
    with small.dataset() as dataset, small.dataset() as other:
        for item in (dataset[0], dataset.collate_fn([dataset[0]]), dataset.collate_fn(dataset.__getitems__([0, 1]))):
            for tensor in item.values():
                tensor[..., 2:].add_(5)
        with torch.inference_mode():
            dataset[0]["position_ids"].zero_()
        for each in (dataset, other):
            assert each[0]["position_ids"].tolist() == list(range(small.seq_length))
            assert each.collate_fn(each.__getitems__([1]))["position_ids"].tolist() == [list(range(small.seq_length))]


def test_a_mask_that_was_written_to_is_replaced(small):
    causal = torch.ones((1, small.seq_length, small.seq_length), dtype=torch.bool).triu(1)
    with small.dataset(create_attention_mask=True) as dataset:
        for each in (dataset, pickle.loads(pickle.dumps(dataset))):
            kept = each.attention_mask
            assert each[0]["attention_mask"] is each[1]["attention_mask"] is kept
            for write in (lambda mask: mask.fill_(True), lambda mask: mask[0, 3:].zero_()):
                write(each[0]["attention_mask"])
                with torch.inference_mode():
                    assert torch.equal(each[1]["attention_mask"], causal)
                assert torch.equal(each.collate_fn(each.__getitems__([1]))["attention_mask"], causal[None])
            assert each.attention_mask is not kept


def test_items_and_batches_that_are_kept_do_not_change(small):
    with small.dataset(rc_aug=True) as dataset:
        kept = [dataset[i] for i in range(len(dataset))]
        batches = [dataset.collate_fn(dataset.__getitems__([i, 0, i])) for i in range(len(dataset))]
        for i, (item, batch) in enumerate(zip(kept, batches, strict=True)):
            for name, tensor in dataset[i].items():
                assert torch.equal(item[name], tensor), name
                assert torch.equal(batch[name][0], tensor), name
                assert torch.equal(batch[name][2], tensor), name


@pytest.mark.parametrize("length", [1, 16, 1000, 8192])
def test_what_is_copied_lies_half_a_page_from_where_it_goes(length):
    source = positions(length)
    assert source.tolist() == list(range(length))
    assert not source.flags.writeable
    for rows in (1, 32):
        tokens, labels, _, position_ids = (array.ctypes.data for array in RowBuffers(length, BATCH_DTYPES).get(rows))
        assert (labels - tokens) % PAGE_BYTES == LABELS_OFFSET_BYTES
        assert (position_ids - source.ctypes.data) % PAGE_BYTES == LABELS_OFFSET_BYTES
