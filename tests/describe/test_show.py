"""`show`: one row against the reference implementation, and the windows of a step against what samplers read."""

from __future__ import annotations

import json
import re
from contextlib import closing

import numpy as np
import pytest
import worlds
from faults import World
from typer.testing import CliRunner

import sharded_eden
from sharded_eden import DatabaseError, ShardedEdenDataset, Stream, StreamBatchSampler, UsageError, cli
from sharded_eden.describe.row import loss_text, other_weights, row_of
from sharded_eden.describe.step import windows_of_step
from sharded_eden.train.mixture_file import mixture_config


@pytest.fixture
def folder(tmp_path):
    return worlds.write(tmp_path)


def bases_of(folder, window):
    """The letters that a window shows, on the strand of the row."""
    sequence = worlds.CONTIGS[window.contig_id][window.start : window.end].upper()
    return sequence if window.strand == "+" else sharded_eden.ShardedEdenDataset.reverse_complement(sequence)


@pytest.mark.parametrize(
    "options", [{}, {"rc_aug": True, "use_control_tags": True}, {"mask_ambiguous": True, "soft_mask_weight": 0.25}]
)
def test_a_row_is_that_of_the_reference_implementation(folder, options):
    with worlds.dataset(folder, **options) as dataset:
        for index in range(len(dataset)):
            row = row_of(dataset, index, epoch=3)
            item = worlds.as_lists(dataset[3, index])
            assert row.tokens.tolist() == item["tokens"]
            assert row.labels.tolist() == item["labels"]
            assert row.loss_mask.tolist() == item["loss_mask"]
            if not options.get("rc_aug"):
                expected = worlds.expected(folder, index)
                assert row.tokens.tolist() == expected["tokens"]
            (window,) = row.windows
            assert (window.contig_id, window.start) == (
                worlds.rows_of(folder)[index][0], worlds.rows_of(folder)[index][1] * worlds.STRIDE
            )  # fmt: skip
            assert row.text(row.tokens[window.first_base : window.end_of_bases]) == bases_of(folder, window)
            for place in range(window.first_base, window.end_of_bases):
                base = worlds.CONTIGS[window.contig_id][window.base_at(place)].upper()
                shown = row.text(row.tokens[place : place + 1])
                assert shown == (base if window.strand == "+" else ShardedEdenDataset.reverse_complement(base))


def test_both_strands_are_shown(folder):
    with worlds.dataset(folder, rc_aug=True) as dataset:
        strands = {row_of(dataset, index, epoch).windows[0].strand for index in range(5) for epoch in range(4)}
    assert strands == {"+", "-"}


def test_a_pack_shows_its_windows_in_order(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train, packed=True, rc_aug=True) as dataset:
        for index in range(len(dataset)):
            row = row_of(dataset, index)
            starts = dataset[0, index]["cu_seqlens"].tolist()
            assert [window.at for window in row.windows] == starts[: len(row.windows)]
            assert row.padding_from in {*starts, len(row.tokens)}
            assert set(row.text(row.tokens[row.padding_from :])) <= {"."}
        assert max(len(row_of(dataset, index).windows) for index in range(len(dataset))) > 1


def test_what_is_shown_is_what_is_trained_on(folder, monkeypatch):
    with worlds.dataset(folder) as dataset:
        item = dataset[0]
        item["tokens"][10] = 65 if item["tokens"][10] != 65 else 67
        monkeypatch.setattr(type(dataset), "__getitem__", lambda self, index: item)
        with pytest.raises(DatabaseError, match="are not window 0"):
            row_of(dataset, 0)


def test_datasets_that_cannot_be_shown(folder):
    with worlds.dataset(folder, compact=True) as dataset, pytest.raises(UsageError, match="built-in tokenizer"):
        row_of(dataset, 0)


def test_weights_in_the_loss():
    weights = np.array([1, 0, 0.1, 0.25], dtype=np.float32)
    assert loss_text(weights) == "10~~"
    assert other_weights(weights) == [0.1, 0.25]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_lists_what_the_ranks_read(clean_world: World, ranks, packed):
    size, steps = 8, 13
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train, packed=packed, rc_aug=True, seed=7) as dataset:
        stream = Stream(dataset)
        read: dict[int, list] = {step: [] for step in range(steps)}
        for rank in range(ranks):
            sampler = StreamBatchSampler(
                stream, micro_batch_size=2, global_batch_size=size, rank=rank, data_parallel_size=ranks
            )
            per_step = size // (2 * ranks)
            for number, batch in zip(range(steps * per_step), sampler, strict=False):
                for item in stream.windows_at(batch):
                    read[number // per_step] += [
                        (item[0], window.window_idx, window.reverse) for window in dataset.fetch_many([item])
                    ]
        for step in range(steps):
            listed = [(w.epoch, w.window_idx, w.strand == "-") for w in windows_of_step(stream, step, size)]
            assert sorted(listed) == sorted(read[step])
    assert max(epoch for step in read.values() for epoch, _, _ in step) >= 2


def test_wrong_steps(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        for step, size in ((-1, 4), (0, 0)):
            with pytest.raises(UsageError, match="step must be at least 0"):
                windows_of_step(Stream(dataset), step, size)
        with pytest.raises(UsageError, match="is beyond the stream, which ends at 10"):
            windows_of_step(Stream(dataset, num_samples=10), 2, 4)


# ---- the command ----


def show(capsys, world, *arguments):
    status = cli.main(["show", str(world.seqs), str(world.train), *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_prints_a_row(clean_world: World, capsys):
    status, out, _ = show(capsys, clean_world, 1, "--control-tags")
    assert status == 0
    assert "\x1b" not in out, "no colours in a pipe"
    lines = out.splitlines()
    (header,) = [line for line in lines if line.startswith("header")]
    assert header.split() == ["header", "^<ctrl_bcr>|"]
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train, use_control_tags=True) as dataset:
        row = row_of(dataset, 1)
    shown = "".join(re.findall(r"^ *[\d,]+  ([A-Z]+)$", out, flags=re.MULTILINE))
    (window,) = row.windows
    assert shown == row.text(row.tokens[window.first_base : window.end_of_bases])
    blocks = [k for k, line in enumerate(lines) if re.match(r" *[\d,]+  [A-Z]", line)]
    assert all(len(lines[k]) == len(lines[k + 1]) == len(lines[k + 2]) for k in blocks), "aligned"
    status, out, _ = show(capsys, clean_world, 1, "--control-tags", "--json")
    assert json.loads(out) == row.as_dict()


def test_the_command_lists_a_step(clean_world: World, capsys):
    status, out, _ = show(capsys, clean_world, "--step", 3, "--global-batch-size", 5, "--json", "--rc-aug", "--pack")
    assert status == 0
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train, packed=True, rc_aug=True) as dataset:
        expected = [window.as_dict() for window in windows_of_step(Stream(dataset), 3, 5)]
    assert json.loads(out) == {"step": 3, "global_batch_size": 5, "seed": 42, "windows": expected}
    status, out, _ = show(capsys, clean_world, "--step", 3, "--global-batch-size", 5, "--rc-aug", "--pack")
    assert [line.split()[:4] for line in out.splitlines()[2:]] == [
        [f"{w['position']:,}", str(w["epoch"]), f"{w['index']:,}", f"{w['window_idx']:,}"] for w in expected
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either INDEX"),
        ([1, "--step", 1, "--global-batch-size", 1], "give either INDEX"),
        (["--step", 1], "belong together"),
        ([99999], "out of range"),
        ([0, "--soft-mask-weight", "-1"], "soft_mask_weight must be"),
    ],
)
def test_wrong_arguments(clean_world: World, capsys, arguments, message):
    status, _, err = show(capsys, clean_world, *arguments)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_of_a_mixture_lists_the_windows_of_its_sources(clean_world: World, tmp_path, packed):
    file = tmp_path / "mixture.toml"
    file.write_text(
        f"""[sources.first]
window_db_path = "{clean_world.train}"
weight = 3
[sources.second]
window_db_path = "{clean_world.train if packed else clean_world.val}"
weight = 1
[[phases]]
position = 20
weights = {{ second = 1 }}
"""
    )
    command = ["show", str(clean_world.seqs), "--mixture", str(file), "--global-batch-size", "8", "--rc-aug", "--json"]
    listed = []
    for step in range(5):
        result = CliRunner().invoke(cli.app, [*command, "--step", str(step), *["--pack"] * packed])
        assert result.exit_code == 0, result.output
        listed += json.loads(result.output)["windows"]
    config = mixture_config(file)
    mixture = config.open(
        tokenizer=None, sequence_db_dir=str(clean_world.seqs), seed=42, seq_length=config.window_size(), rc_aug=True,
        packed=packed,
    )  # fmt: skip
    with closing(mixture.dataset):
        expected = []
        for position, (source, epoch, index) in enumerate(mixture.windows_at(range(40))):
            for window in mixture.dataset.datasets[source].fetch_many([(epoch, index)]):
                expected.append((mixture.names[source], position, window.sequence_id, "-" if window.reverse else "+"))
    assert [(each["source"], each["position"], each["contig_id"], each["strand"]) for each in listed] == expected
    assert {each["source"] for each in listed if each["position"] >= 20} == {"second"}
    plain = CliRunner().invoke(cli.app, [*command[:-1], "--step", "0", *["--pack"] * packed])
    assert plain.output.splitlines()[1].split()[:2] == ["source", "position"]


def test_mixture_and_window_database_are_not_given_together(clean_world: World):
    both = ["show", str(clean_world.seqs), str(clean_world.train), "--mixture", "m.toml", "--step", "0"]
    for words in (
        both,
        ["show", str(clean_world.seqs), "--step", "0"],
        ["show", str(clean_world.seqs), "--mixture", "m.toml"],
    ):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 2
        assert "--mixture" in result.output
