"""Compact batches: small between processes, and equal bit for bit after expansion."""

from __future__ import annotations

import pytest
import torch
from test_lightning_resume import Recorder, data_module, trainer
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataModule, Stream
from sharded_eden.errors import DatabaseError, UsageError


class SlowTokenizer:
    """Two ids a base: no table."""

    bos_id, eos_id, sep_id, pad_id = 1, 2, 3, 0

    def text_to_ids(self, text: str) -> list[int]:
        return [i for letter in text for i in (ord(letter), 9)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_a_loader_of_compact_batches_gives_the_same_batches(small, workers, masks):
    options = {"rc_aug": True, "use_control_tags": True, "create_attention_mask": masks}
    with small.dataset(**options) as full, small.dataset(**options, compact=True) as compact:
        expand = compact.expander()
        loaders = [
            DataLoader(Stream(dataset), batch_size=7, num_workers=workers, collate_fn=dataset.collate_fn)
            for dataset in (full, compact)
        ]
        batches = 0
        for wanted, codes in zip(*loaders, strict=True):
            assert codes["codes"].dtype == torch.uint8
            assert (
                sum(tensor.nbytes for tensor in codes.values()) < sum(tensor.nbytes for tensor in wanted.values()) / 5
            )
            batch = expand(codes)
            assert batch.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert torch.equal(batch[name], tensor), name
                assert batch[name].dtype == tensor.dtype
                assert batch[name].is_contiguous()
                tensor.zero_()  # a batch is its user's to write to
                batch[name].zero_()
            batches += 1
        assert batches == -(-len(full) // 7)


class Hooked(Recorder):
    """Has its own hook, which must still be called."""

    seen = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        assert "tokens" in batch
        Hooked.seen += 1
        return batch


@pytest.mark.parametrize("compact", [False, True])
def test_lightning_expands_and_keeps_the_hook_of_the_users_module(small, tmp_path, compact):
    plain, hooked, Hooked.seen = Recorder(), Hooked(), 0
    trainer(tmp_path, 3).fit(plain, data_module(small, 2))
    module = ShardedEdenDataModule(
        small.sequence_db_dir, small.window_db, seq_length=64, stride=50, micro_batch_size=2, global_batch_size=8,
        num_workers=0, rc_aug=True, compact=compact,
    )  # fmt: skip
    trainer(tmp_path, 3).fit(hooked, module)
    assert hooked.global_batches == plain.global_batches
    assert Hooked.seen == 12


def test_what_cannot_be_compact_is_refused(small, tmp_path):
    from sharded_eden import ShardedEdenDataset

    with pytest.raises(UsageError, match="compact=True needs a tokenizer with one id per letter"):
        ShardedEdenDataset(
            SlowTokenizer(), small.sequence_db_dir, small.window_db, 64, stride=small.stride, compact=True
        )
    import oracle

    oracle.write_sequence_dbs(tmp_path / "s", {"BCR__ECT-S__CT1-1": "ACGT\x02ACGT"})
    oracle.write_window_db(tmp_path / "w.db", {"BCR__ECT-S__CT1-1": "ACGT\x02ACGT"}, 64, 50)
    dataset = ShardedEdenDataset(None, tmp_path / "s", tmp_path / "w.db", 64, stride=50, compact=True)
    with pytest.raises(DatabaseError, match=r"CT1-1.*cannot be encoded near base 0: .*byte 2"):
        dataset[0]
    dataset.close()


def test_pickling_an_expander(small):
    import pickle

    with small.dataset(compact=True) as dataset:
        expand = pickle.loads(pickle.dumps(dataset.expander()))
        batch = dataset.collate_fn(dataset.__getitems__([0, 1]))
        assert torch.equal(expand(batch)["tokens"], dataset.expander()(batch)["tokens"])
