"""`ShardedEdenDatasetProvider` under the real Megatron Bridge: exact counts, its ranks' batches, resuming, evaluations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.bridge.data.loaders import build_pretraining_data_loader
from megatron.bridge.data.utils import get_dataset_provider
from megatron.bridge.training.config import DatasetProvider
from megatron.bridge.training.tokenizers.config import TokenizerConfig
from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer
from megatron.bridge.training.utils.config_utils import _ConfigContainerBase
from megatron.bridge.utils.instantiate_utils import instantiate
from resume import assert_same_stream, row_hashes

from sharded_eden import Mixture, ShardedEdenDataset, Stream
from sharded_eden.errors import UsageError
from sharded_eden.train.bridge import ShardedEdenDatasetProvider
from sharded_eden.train.stream import EvaluationStream

GLOBAL = 8


def provider_of(splits, **options) -> ShardedEdenDatasetProvider:
    options = {"val_window_db_path": splits.val, "test_window_db_path": splits.test, "rc_aug": True, **options}
    given = {"sequence_db_dir": splits.sequences, "train_window_db_path": splits.train, "seq_length": 64, "stride": 50}
    return ShardedEdenDatasetProvider(**{**given, "num_workers": 0, "pin_memory": False, **options})


def datasets_of(provider, train: int, valid: int, test: int, tokenizer=None) -> tuple[Any, Any, Any]:
    """As Bridge's setup builds them."""
    return get_dataset_provider(provider)([train, valid, test], provider, tokenizer)


def dataset_of(sequences: str, windows: str, **options: Any) -> ShardedEdenDataset:
    """As the provider opens a split by default."""
    return ShardedEdenDataset(None, sequences, windows, 64, stride=50, include_sep="with_tags", **options)


def rows_of(stream: Stream, positions: range) -> list[str]:
    return [row_hashes(stream[p]["tokens"][None])[0] for p in positions]


def on_ranks(ranks: int, folder: Path, function: Callable[[int, int], Any]) -> list[Any]:
    """Fork the ranks of a gloo job; return what the function returned for each data-parallel rank and size."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                torch.distributed.init_process_group(
                    "gloo", init_method=f"file://{folder}/rendezvous{ranks}", rank=rank, world_size=ranks
                )
                answer = function(torch.distributed.get_rank(), torch.distributed.get_world_size())
                (folder / f"{rank}.txt").write_text(repr(answer))
                torch.distributed.barrier()
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * ranks
    return [eval((folder / f"{rank}.txt").read_text()) for rank in range(ranks)]


def batches(provider, dataset, rank: int, ranks: int, *, micro: int, consumed: int = 0) -> list[list[str]]:
    """All micro batches of a rank, from Bridge's loader."""
    loader = build_pretraining_data_loader(
        dataset, consumed, provider.dataloader_type, micro, provider.num_workers, provider.data_sharding,
        collate_fn=dataset.collate_fn if hasattr(dataset, "collate_fn") else None, pin_memory=provider.pin_memory,
        persistent_workers=provider.persistent_workers, data_parallel_rank=rank, data_parallel_size=ranks,
        global_batch_size=GLOBAL,
    )  # fmt: skip
    assert {key for batch in loader for key in batch} >= {"tokens", "labels", "loss_mask", "position_ids"}
    return [row_hashes(batch["tokens"]) for batch in loader]


def in_documented_order(each_rank: list[list[list[str]]]) -> list[str]:
    return [row for step in zip(*each_rank, strict=True) for micro in step for row in micro]


def mixture_of(splits) -> dict[str, Any]:
    sources = {
        "a": {"window_db_path": splits.train, "weight": 3},
        "b": {"window_db_path": splits.val, "sequence_db_dir": splits.sequences, "weight": 1, "rc_aug": False},
    }
    return {"sources": sources, "phases": [[60, [1, 1]]], "skip": [[8, 15]]}


def test_a_mixture_is_the_training_stream(splits, tmp_path):
    provider = provider_of(splits, mixture=mixture_of(splits), train_window_db_path=None)
    train, _, _ = datasets_of(provider, 200, 0, 0)
    sources = [
        dataset_of(splits.sequences, path, rc_aug=aug) for path, aug in ((splits.train, True), (splits.val, False))
    ]
    wanted = Mixture({"a": (sources[0], 3), "b": (sources[1], 1)}, phases=[(60, [1, 1])], skip=[(8, 15)])
    assert len(train) == 200
    assert rows_of(train, range(200)) == rows_of(wanted, range(200))
    each = [batches(provider, train, rank, 2, micro=2, consumed=80) for rank in range(2)]
    assert_same_stream([in_documented_order(each)], rows_of(wanted, range(80, 200)))


def test_what_a_provider_cannot_give_is_refused(splits):
    with pytest.raises(UsageError, match="one dataset for each split"):
        provider_of(splits, val_window_db_path={"a": splits.val})
    with pytest.raises(UsageError, match="give either train_window_db_path or mixture"):
        provider_of(splits, mixture=mixture_of(splits))


def test_counts_are_exact_and_what_is_not_asked_for_is_none(splits):
    provider = provider_of(splits)
    assert isinstance(provider, DatasetProvider)
    train, valid, test = datasets_of(provider, 1000, 24, 12)
    assert (len(train), len(valid), len(test)) == (1000, 24, 12)
    assert isinstance(train, Stream)
    for stream in (train, valid, test):
        assert stream[len(stream) - 1]["tokens"].shape == (64,)
        with pytest.raises(IndexError):
            stream[len(stream)]
    assert datasets_of(provider, 0, 0, 0) == (None, None, None)
    train, valid, test = datasets_of(provider_of(splits, val_window_db_path=None, test_window_db_path=None), 8, 8, 8)
    assert (len(train), valid, test) == (8, None, None)


@pytest.mark.parametrize("workers", [0, 1])
def test_two_ranks_get_the_stream_in_its_order_and_resume_anywhere(splits, tmp_path, workers):
    provider = provider_of(splits)
    provider.num_workers = workers
    dataset = dataset_of(splits.sequences, splits.train, rc_aug=True)
    total = len(dataset) * 2 // GLOBAL * GLOBAL + GLOBAL  # more than two passes
    expected = rows_of(Stream(dataset), range(total))

    def feed(ranks: int, micro: int, consumed: int) -> list[str]:
        def of_rank(rank: int, size: int) -> list[list[str]]:
            train, _, _ = datasets_of(provider, total, 0, 0)
            return batches(provider, train, rank, size, micro=micro, consumed=consumed)

        folder = tmp_path / f"{ranks}-{micro}-{consumed}"
        folder.mkdir()
        return in_documented_order(on_ranks(ranks, folder, of_rank))

    whole = feed(2, 2, 0)
    assert_same_stream([whole], expected)
    assert len(set(whole)) > len(dataset), "the second pass shows other strands"
    assert_same_stream([feed(2, 1, 3 * GLOBAL)], expected[3 * GLOBAL :])
    if not workers:
        assert_same_stream([feed(1, 4, 5 * GLOBAL)], expected[5 * GLOBAL :])


def test_each_evaluation_sees_the_same_fair_sample(splits, tmp_path):
    provider = provider_of(splits)
    dataset = dataset_of(splits.sequences, splits.val)
    assert len(dataset) > 2 * GLOBAL
    sample = rows_of(EvaluationStream(dataset), range(2 * GLOBAL))

    def of_rank(rank: int, size: int) -> tuple[list, list, list]:
        _, valid, test = datasets_of(provider, 800, 3 * 2 * GLOBAL, 2 * GLOBAL)
        resumed = batches(provider, valid, rank, size, micro=2, consumed=2 * 2 * GLOBAL)
        return batches(provider, valid, rank, size, micro=2), resumed, batches(provider, test, rank, size, micro=2)

    ranks = on_ranks(2, tmp_path, of_rank)
    evaluations, resumed, test = (in_documented_order([rank[k] for rank in ranks]) for k in range(3))
    assert_same_stream([evaluations], sample * 3)
    assert_same_stream([resumed], sample)
    assert not set(test) & set(sample)
    indices = [window for _, window in EvaluationStream(dataset).windows_at(range(2 * GLOBAL))]
    assert indices != sorted(indices), "not the first contigs by name"

    _, valid, _ = datasets_of(provider_of(splits, evaluation_samples=5), 800, 48, 16)
    assert_same_stream([rows_of(valid, range(10))], sample[:5] * 2)
    _, valid, _ = datasets_of(provider_of(splits, evaluation_samples=len(dataset) + 3), 800, 4 * len(dataset), 16)
    counts = [bool(valid[p]["row_counts"]) for p in range(2 * len(dataset) + 6)]
    assert counts == ([True] * len(dataset) + [False] * 3) * 2


def test_samplers_that_would_change_the_order_are_refused(splits):
    for other in ("cyclic", "batch", "external"):
        with pytest.raises(UsageError, match=f"dataloader_type='{other}' would sample the stream in another order"):
            datasets_of(provider_of(splits, dataloader_type=other), 8, 0, 0)
    provider = provider_of(splits)
    provider.train_window_db_path = None
    with pytest.raises(UsageError, match="8 training samples are requested: set train_window_db_path"):
        datasets_of(provider, 8, 0, 0)


def test_bridges_tokenizer_encodes_unless_it_only_counts_the_vocabulary(splits, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "A": 3, "C": 4, "G": 5, "T": 6, "N": 7}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="N"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=letters, **special).save_pretrained(tmp_path)
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path)))
    train, _, _ = datasets_of(provider_of(splits), 8, 0, 0, tokenizer)
    assert set(train[0]["tokens"].tolist()) <= set(range(7))
    assert train.dataset.tokenizer is tokenizer

    counts = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=512))
    train, _, _ = datasets_of(provider_of(splits, nucleotide_tokenizer=True), 8, 0, 0, counts)
    plain, _, _ = datasets_of(provider_of(splits), 8, 0, 0)
    assert torch.equal(train[0]["tokens"], plain[0]["tokens"])


@pytest.mark.parametrize("legacy", [True, False])
def test_sep_and_pad_of_a_nucleotide_tokenizer(splits, tmp_path, legacy):
    """Bridge's tokenizers have no `_sep_id` and no `pad_id`; the vocabulary has both tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<EOS>", "<PAD>", "<BOS>", "<SEP>"]
    vocabulary = {name: k for k, name in enumerate(names)} | {f"unused{k}": k for k in range(4, 32)}
    letters = Tokenizer(models.WordLevel(vocabulary | {chr(code): code for code in range(32, 127)}))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.add_special_tokens(names)
    PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<BOS>", eos_token="<EOS>").save_pretrained(tmp_path)
    tokenizer = build_tokenizer(
        TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path), legacy_tokenizer=legacy)
    )
    train, _, _ = datasets_of(provider_of(splits, include_sep=True, rc_aug=False), 8, 0, 0, tokenizer)
    dataset = train.dataset
    assert (dataset.bos_id, dataset.eos_id, dataset.sep_id, dataset.pad_id) == (2, 0, 3, 1)
    with ShardedEdenDataset(None, splits.sequences, splits.train, 64, stride=50) as built_in:
        for window in range(8):
            expected = [{0: 1, 1: 2, 2: 0}.get(token, token) for token in built_in[window]["tokens"].tolist()]
            assert dataset[window]["tokens"].tolist() == expected


def test_what_bridge_asks_of_a_dataset_config(splits):
    provider = provider_of(splits, create_attention_mask=True)
    provider.tokenizer = object()  # as Bridge's setup does
    assert (provider.seq_length, provider.skip_getting_attention_mask_from_dataset) == (64, False)
    train, _, _ = datasets_of(provider, 8, 0, 0)
    assert "attention_mask" in train[0]
    del provider.tokenizer
    saved = _ConfigContainerBase._convert_value_to_dict(provider)  # what goes into a checkpoint's run_config.yaml
    assert saved["_target_"] == "sharded_eden.train.bridge.ShardedEdenDatasetProvider"
    assert instantiate(saved) == provider


def test_the_newer_home_of_dataset_provider_comes_first(splits):
    """Megatron Bridge 0.6 needs another Python: its module path, with a base as it has, in front of the real 0.3."""
    program = (
        "import sys, types, warnings; warnings.simplefilter('ignore'); import gpu_only; gpu_only.stand_in()\n"
        "from dataclasses import dataclass; from megatron.bridge.training import config\n"
        "home = types.ModuleType('megatron.bridge.data.base'); sys.modules[home.__name__] = home\n"
        "@dataclass(kw_only=True)\nclass DatasetProvider(config.DataloaderConfig):\n    drop_last: bool = True\n"
        "home.DatasetProvider = DatasetProvider\n"
        "from sharded_eden.train.bridge import ShardedEdenDatasetProvider as Ours\n"
        "assert Ours.__bases__ == (DatasetProvider,)\n"
        f"ours = Ours(sequence_db_dir={splits.sequences!r}, train_window_db_path={splits.train!r}, seq_length=64, stride=50)\n"
        "train, *_ = ours.build_datasets(config.DatasetBuildContext(8, 0, 0))\n"
        "print(len(train), ours.drop_last)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.stdout.split() == ["8", "True"], done.stderr
