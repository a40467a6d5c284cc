"""Stitch marks, `@` and `#`: refused or kept by `build`, tokens of their own, and never counted in the loss, on any path."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
import worlds

import oracle
from sharded_eden import (
    ArrayDataset,
    ArrayStream,
    Mixture,
    ShardedEdenDataset,
    Stream,
    build_sequence_dbs,
    cli,
    create_sample_database,
    precompute_window_database,
)
from sharded_eden.build import fasta as fasta_module
from sharded_eden.errors import DatabaseError, InputError, UsageError
from sharded_eden.load.encode.example import is_reversed
from sharded_eden.token_packs import pack_by_tokens

T, STRIDE = 64, 50
LONG = "ACGTacgtNRYK"
RECORDS = {
    "S1.a": "@" + LONG * 6 + "@#" + LONG * 5 + "#",
    "S1.b": "ACGT" * 40,
    "S2.a": "#ACG@TTTT@@AC",
    "S2.b": "AC" * 35 + "@" + "g" * 40,
}


def fasta(path: Path, width: int) -> Path:
    lines = []
    for name, text in RECORDS.items():
        lines += [f">{name}", *(text[k : k + width] for k in range(0, len(text), width))]
    path.write_text("\n".join(["# a comment", "##", *lines, ""]))
    return path


def sequences(out: Path) -> list[str]:
    return [
        text
        for sample in ("S1", "S2")
        for (text,) in worlds.query(
            out / sample / f"glm_dataset_{sample}.sqlite", "SELECT nt_sequence FROM sequences ORDER BY rowid"
        )
    ]


@pytest.mark.parametrize("width", [1, 2, 7, 73, 75, 1000])
def test_fasta_keeps_them_also_at_the_start_of_lines(tmp_path, monkeypatch, width):
    """In a line of 75 bases, the second line of a record begins with `#`: it is no comment."""
    path = fasta(tmp_path / "og2.fa", width)
    options: dict[str, Any] = {"sample_regex": r"(?P<sample>S\d)"}
    with pytest.raises(InputError, match=r"holds '[@#]'.*--stitch-marks keep allows it"):
        build_sequence_dbs([path], tmp_path / "refused", **options)
    build_sequence_dbs([path], tmp_path / "out", stitch_marks="keep", **options)
    assert sequences(tmp_path / "out") == list(RECORDS.values())
    for block_bytes in range(1, 90, 4):
        monkeypatch.setattr(fasta_module, "BLOCK_BYTES", block_bytes)
        entries = fasta_module.fasta_entries(io.BytesIO(path.read_bytes()), "og2.fa", stitch_marks=True)
        assert [(name, text) for name, _, text, *_ in entries] == list(RECORDS.items())


def test_a_line_of_bases_after_a_hash_is_no_comment(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text(">a\nACGT\n#ACGT\n")
    with pytest.raises(InputError, match="position 5 holds '#'"):
        build_sequence_dbs([path], tmp_path / "out", sample="S")
    path.write_text(">a\nACGT\n#|d__Bacteria;|ACGT\n")
    with pytest.raises(InputError, match="position 5 holds '#'"):
        build_sequence_dbs([path], tmp_path / "out", sample="S", phylo_tags="strip")
    path.write_text(">a\nACGT\n# says who\n#\nACGT\n")
    assert build_sequence_dbs([path], tmp_path / "out", sample="S").bases == 8
    with pytest.raises(InputError, match="position 6 holds ' '"):
        build_sequence_dbs([path], tmp_path / "kept", sample="S", stitch_marks="keep")


def test_other_formats_and_one_sample(tmp_path):
    path = tmp_path / "og2.jsonl"
    path.write_text("".join(json.dumps({"record": name, "text": text}) + "\n" for name, text in RECORDS.items()))
    words = ["build", str(path), "--out", str(tmp_path / "out"), "--sample-regex", r"(?P<sample>S\d)"]
    assert cli.main(words) == 1
    assert cli.main([*words, "--stitch-marks", "keep"]) == 0
    assert sequences(tmp_path / "out") == list(RECORDS.values())
    with pytest.raises(UsageError, match="--stitch-marks 'all' is not one of refuse, keep"):
        build_sequence_dbs([path], tmp_path / "out", stitch_marks="all")
    pairs = [("BCR__ECT-S__CT1-1", "AC@GT")]
    with pytest.raises(InputError, match="--stitch-marks keep"):
        create_sample_database("S", pairs, tmp_path / "one")
    create_sample_database("S", pairs, tmp_path / "one", stitch_marks="keep")
    assert cli.main(["verify", str(tmp_path / "out"), "--full"]) == 0
    assert cli.main(["stats", str(tmp_path / "out")]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Databases of another tool: they are read as those of `build`, which are not marked in any way."""
    folder = tmp_path_factory.mktemp("stitched")
    contigs = {f"BCR__ECT-S{k % 2}__CT1-{k}": text for k, text in enumerate(RECORDS.values())}
    oracle.write_sequence_dbs(folder / "seqs", contigs)
    split = pl.DataFrame({"contig_id": list(contigs), "length": [len(text) for text in contigs.values()]})
    split.write_parquet(folder / "split.parquet")
    precompute_window_database(folder / "split.parquet", folder / "windows.db", T, STRIDE, pack=True)
    return folder


def opened(folder: Path, cls: Any = ShardedEdenDataset, **options: Any) -> Any:
    return cls(options.pop("tokenizer", None), folder / "seqs", folder / "windows.db", T, stride=STRIDE, **options)


def is_mark(labels: Any) -> Any:
    return (labels == ord("@")) | (labels == ord("#"))


@pytest.mark.parametrize("rc", [False, True])
def test_every_path_equals_the_oracle(folder, rc):
    with opened(folder, rc_aug=rc, seed=7) as dataset:
        wanted = [
            oracle.item(
                folder / "seqs",
                folder / "windows.db",
                k,
                seq_length=T,
                stride=STRIDE,
                reverse=rc and is_reversed(7, 0, k),
            )
            for k in range(len(dataset))
        ]
        assert sum(sum(map(is_mark, row["tokens"])) for row in wanted) > 5
        batch = dataset.collate_fn(dataset.__getitems__([(0, k) for k in range(len(dataset))]))
        stream = Stream(dataset)
        places = stream.windows_at(range(len(dataset)))
    with (
        opened(folder, rc_aug=rc, seed=7, compact=True) as compact,
        opened(folder, ArrayDataset, rc_aug=rc, seed=7) as plain,
        opened(folder, rc_aug=rc, seed=7) as one,
        opened(folder, rc_aug=rc, seed=7) as other,
    ):
        expanded = compact.expander()(compact.collate_fn(compact.__getitems__([(0, k) for k in range(len(wanted))])))
        arrays = ArrayStream(plain).arrays(range(len(wanted)))
        mixture = Mixture([(one, 0.5), (other, 0.5)]).arrays(range(20))
        assert (mixture["loss_mask"][is_mark(mixture["labels"])] == 0).all()
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            rows = [row[name] for row in wanted]
            assert batch[name].tolist() == expanded[name].tolist() == rows
            assert [one[k][name].tolist() for k in range(len(wanted))] == rows
            assert arrays[name].tolist() == [rows[place] for _, place in places]


@pytest.mark.parametrize(
    "options", [{}, {"compact": True}, {"soft_mask_weight": 0.5}, {"objective": "mlm", "mlm_share": 0.9}]
)
@pytest.mark.parametrize("packed", [False, True])
def test_their_labels_never_count_and_they_are_never_masked(folder, options, packed):
    with opened(folder, packed=packed, rc_aug=True, **options) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__([(0, k) for k in range(len(dataset))]))
        if "compact" in options:
            batch = dataset.expander()(batch)
    marks = is_mark(batch["labels"])
    assert marks.any()
    assert (batch["loss_mask"][marks] == 0).all()
    if "objective" in options:
        assert torch.equal(batch["tokens"][marks], batch["labels"][marks])
        assert not is_mark(batch["tokens"][~marks]).any()
    else:
        assert (batch["loss_mask"][(batch["labels"] == ord("A")) & (batch["position_ids"] > 2)] > 0).any()


def test_tokenizers(folder):
    """Ids of their own are masked; an id for several letters is an error."""
    ids = {letter: 40 + k for k, letter in enumerate("ACGTURYSWKMBDHVN@#")}
    letters = specials(lambda text: [ids[c] for c in text])
    with opened(folder, tokenizer=letters) as dataset:
        row = dataset[0]
        assert row["tokens"][2] == ids["@"]
        assert row["loss_mask"][1] == 0
        assert row["loss_mask"][2] == 1
    of_three = specials(lambda text: [5 + len(text[k : k + 3]) for k in range(0, len(text), 3)])
    with (
        opened(folder, tokenizer=of_three) as dataset,
        pytest.raises(DatabaseError, match=r"'@' joins parts.*one id per"),
    ):
        dataset[0]
    with pytest.raises(DatabaseError, match="one id per letter"):
        pack_by_tokens(folder / "windows.db", folder / "seqs", tokenizer=of_three, seq_length=T, overwrite=True)
    two = specials(lambda text: [i for c in text for i in ([9, 9] if c in "@#" else [ids[c]])])
    with opened(folder, tokenizer=two) as dataset, pytest.raises(DatabaseError, match="another number of ids"):
        dataset[0]


def test_compact_rows_of_a_tokenizer_that_gives_a_gap_the_id_of_pad(tmp_path):
    """The higher code of `-` does not count in the loss either."""
    oracle.write_sequence_dbs(tmp_path / "seqs", {"BCR__ECT-S__CT1-1": "-AC-GT@-" * 6})
    oracle.write_window_db(tmp_path / "windows.db", {"BCR__ECT-S__CT1-1": "-AC-GT@-" * 6}, T, STRIDE, 0)
    tokenizer = specials(lambda text: [0 if c == "-" else ord(c) for c in text.upper()])
    with opened(tmp_path, tokenizer=tokenizer) as dataset, opened(tmp_path, tokenizer=tokenizer, compact=True) as sent:
        row = dataset[0]
        expanded = sent.expander()(sent.collate_fn(sent.__getitems__([0])))
    assert row["loss_mask"][1:10].tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0]
    assert {name: expanded[name][0].tolist() for name in row} == {name: row[name].tolist() for name in row}


def specials(text_to_ids: Any) -> SimpleNamespace:
    return SimpleNamespace(pad_id=0, bos_id=1, eos_id=2, sep_id=3, text_to_ids=text_to_ids)
