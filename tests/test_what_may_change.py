"""The table "What may change" of docs/change-during-training.md: each row is tried, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
import torch
import worlds
from torch.utils.data import DataLoader

from sharded_eden import (
    NucleotideTokenizer,
    ShardedEdenDataModule,
    StateError,
    Stream,
    StreamBatchSampler,
    precompute_window_database,
)
from sharded_eden.windows.pack import pack_window_database

PAGE = Path(__file__).resolve().parent.parent / "docs" / "change-during-training.md"
if not PAGE.is_file():
    pytest.skip("only in a checkout", allow_module_level=True)

GLOBAL, CONSUMED = 4, 8
CUT = {"window_size": worlds.T, "stride": worlds.STRIDE}
BASE = {"rc_aug": True, "seed": 42}


def rows_after(
    folder, state=None, *, micro=2, ranks=1, size=GLOBAL, workers=0, shuffle=True, tokenizer=None, **options
):
    """The 16 rows of a job from a state on, in the order of positions: (tokens, loss mask) of each."""
    dataset = worlds.dataset(folder, tokenizer, **{**BASE, **options})
    expand = dataset.expander() if options.get("compact") else lambda batch: batch
    iterators = []
    for rank in range(ranks):
        stream = Stream(dataset, shuffle=shuffle)
        sampler = StreamBatchSampler(
            stream, micro_batch_size=micro, global_batch_size=size, rank=rank, data_parallel_size=ranks
        )
        if state is None:
            sampler.consumed_samples = CONSUMED
        else:
            sampler.load_state_dict(state)
        loader = DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=stream.collate_fn)
        iterators.append(iter(loader))
    batches = [expand(next(each)) for _ in range(16 // (micro * ranks)) for each in iterators]
    return [
        (tokens.tolist(), mask.tolist())
        for batch in batches
        for tokens, mask in zip(batch["tokens"], batch["loss_mask"], strict=True)
    ]


def state_of(folder, **options):
    stream = Stream(worlds.dataset(folder, **{**BASE, **options}))
    sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=GLOBAL)
    return sampler.state_dict(consumed_samples=CONSUMED)


def other_contigs(**changed):
    return {**worlds.CONTIGS, **{f"BCR__ECT-S0__CT1-{name}": bases for name, bases in changed.items()}}


class OtherIds(NucleotideTokenizer):
    def __repr__(self):
        return "OtherIds()"

    def text_to_ids(self, text):
        return [byte + 100 for byte in super().text_to_ids(text)]


SAME = {
    "number of ranks": [{"ranks": 2}, {"ranks": 2, "micro": 1}],
    "number of workers": [{"workers": 2}],
    "micro batch size": [{"micro": 1}, {"micro": 4}],
    "`compact`": [
        {"compact": True},
        {"io": "mmap"},
        {"read_with": "substr"},
        {"read_ahead": False},
        {"log_windows": True},
    ],
    "global batch size": [{"size": 8}, {"size": 2}],
}
ERROR = {
    "seed": [{"seed": 1}],
    "`rc_aug`": [{"rc_aug": False}],
    "ids of letters": [{"tokenizer": OtherIds()}],
    "`shuffle`": [{"shuffle": False}],
    "`objective`": [{"objective": "mlm", "mask_id": 4}],
    "`use_control_tags`": [
        {"use_control_tags": True},
        {"tags": "tags.csv"}, {"include_bos": False}, {"include_sep": False}, {"include_eos": False}, {"sep_id": 9}
    ],
}  # fmt: skip
OTHER_WINDOWS = {
    "window size": [
        {"window_size": 60}, {"stride": 49}, {"window_min_length_threshold": 30}, {"keep_tail": True}, {"special_tokens": 5}
    ],
    "split": [
        {"contigs": other_contigs(**{"7": "ACGT" * 30})},
        {"contigs": other_contigs(**{"1": worlds.random_sequence(201, 1)})},
    ],
}  # fmt: skip
ELSEWHERE = {
    "the place of the files",
    "`mask_ambiguous`",
    "packed or not",
    "from a checkpoint of version 0.1 or 0.2",
    "bases of a contig",
}


def test_every_row_of_the_page_is_tried():
    table = PAGE.read_text().split("## What may change")[1].split("\nThe weights of")[0]
    rows = re.findall(r"^\| (?!change|---)(.*?) \| (.*?) \|", table, flags=re.MULTILINE)
    assert len(rows) == 18
    keys = [
        next(key for key in [*SAME, *ERROR, *OTHER_WINDOWS, *ELSEWHERE] if change.startswith(key)) for change, _ in rows
    ]
    assert len(set(keys)) == 18
    for key, (_, outcome) in zip(keys, rows, strict=True):
        assert not (key in SAME or key in {"the place of the files", "`mask_ambiguous`"}) or outcome.startswith(
            "same windows"
        )
        assert not (key in ERROR or key in OTHER_WINDOWS or key == "packed or not") or outcome == "error"
        assert key not in {"from a checkpoint of version 0.1 or 0.2", "bases of a contig"} or outcome.startswith(
            "**not detected**"
        )


@pytest.mark.parametrize("change", [change for changes in SAME.values() for change in changes], ids=str)
def test_the_same_windows(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worlds.write(tmp_path)
    assert rows_after(tmp_path, state_of(tmp_path), **change) == rows_after(tmp_path)


@pytest.mark.parametrize("change", [change for changes in ERROR.values() for change in changes], ids=str)
def test_another_stream_is_an_error(change, tmp_path, monkeypatch):
    monkeypatch.chdir(worlds.write(tmp_path))
    Path("tags.csv").write_text("sample,tag\nS0,a\nS1,b\nS2.X,c\n")
    with pytest.raises(StateError, match="belongs to another stream"):
        rows_after(tmp_path, state_of(tmp_path), **change)


def precomputed(folder, contigs=worlds.CONTIGS, **geometry):
    """Databases whose windows `precompute` made: their fingerprint covers every contig and length."""
    worlds.write(folder, contigs)
    split = folder / "split.parquet"
    lengths = {name: len(bases) for name, bases in contigs.items()}
    polars.DataFrame({"contig_id": list(lengths), "length": list(lengths.values())}).write_parquet(split)
    precompute_window_database(split, folder / "windows.db", overwrite=True, **{**CUT, **geometry})
    return folder


@pytest.mark.parametrize("change", [change for changes in OTHER_WINDOWS.values() for change in changes], ids="".join)
def test_other_windows_are_an_error(change, tmp_path):
    state = state_of(precomputed(tmp_path / "before"))
    geometry = {**CUT, **change}
    options = {"seq_length": geometry["window_size"], "stride": geometry["stride"]}
    assert rows_after(precomputed(tmp_path / "again"), state) == rows_after(tmp_path / "before")
    with pytest.raises(StateError, match="belongs to another stream"):
        rows_after(precomputed(tmp_path / "after", **change), state, **options)


def test_files_in_another_place(tmp_path):
    state = state_of(worlds.write(tmp_path / "here"))
    assert rows_after(worlds.write(tmp_path / "there"), state) == rows_after(tmp_path / "here")


def test_weights_of_labels(tmp_path):
    worlds.write(tmp_path)
    before = rows_after(tmp_path)
    after = rows_after(tmp_path, state_of(tmp_path), mask_ambiguous=True, soft_mask_weight=0.5, loss_on_eos=True)
    assert [tokens for tokens, _ in after] == [tokens for tokens, _ in before]
    assert [mask for _, mask in after] != [mask for _, mask in before]


def test_packs(tmp_path):
    worlds.write(tmp_path)
    state = state_of(tmp_path)
    pack_window_database(tmp_path / "windows.db", seed=1, sequences=tmp_path / "seqs")
    with pytest.raises(StateError, match="pack_fingerprint"):
        rows_after(tmp_path, state, packed=True)
    packed = state_of(tmp_path, packed=True)
    with pytest.raises(StateError, match="pack_fingerprint"):
        rows_after(tmp_path, packed)
    pack_window_database(tmp_path / "windows.db", seed=3, sequences=tmp_path / "seqs", overwrite=True)
    with pytest.raises(StateError, match="pack_fingerprint"):
        rows_after(tmp_path, packed, packed=True)


def test_what_is_not_detected(tmp_path):
    """Each of these resumes without an error, and gives other rows: the page says so."""
    worlds.write(tmp_path / "here")
    state, before = state_of(tmp_path / "here"), rows_after(tmp_path / "here")
    of_0_2 = {name: value for name, value in state.items() if name not in {"letters", "shuffle"}}
    assert rows_after(tmp_path / "here", of_0_2) == before
    assert rows_after(tmp_path / "here", of_0_2, tokenizer=OtherIds()) != before
    assert rows_after(tmp_path / "here", of_0_2, shuffle=False) != before
    changed = {name: bases[::-1] for name, bases in worlds.CONTIGS.items()}
    assert rows_after(worlds.write(tmp_path / "there", changed), state) != before


class Seen(pl.LightningModule):
    """Keeps the rows that it was trained on."""

    def __init__(self):
        super().__init__()
        self.rows, self.weight = [], torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        self.rows += batch["tokens"].tolist()
        return self.weight * batch["loss_mask"].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_another_global_batch_size_under_lightning(tmp_path):
    worlds.write(tmp_path)

    def train(steps, micro, size, checkpoint=None):
        data = ShardedEdenDataModule(
            tmp_path / "seqs", tmp_path / "windows.db", seq_length=worlds.T, stride=worlds.STRIDE, micro_batch_size=micro,
            global_batch_size=size, num_workers=0, rc_aug=True, num_epochs=10, pin_memory=False,
        )  # fmt: skip
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", **quiet)
        model = Seen()
        trainer.fit(model, data, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return model.rows

    whole = train(12, 2, 4)
    before = train(6, 2, 4)
    assert before + train(9, 4, 8, tmp_path / "last.ckpt") == whole
