"""Tags from a table: where they are in a row, dropout of fields, errors of tables."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import worlds
from torch.utils.data import DataLoader

from sharded_eden import Mixture, ShardedEdenDataModule, ShardedEdenDataset, Stream
from sharded_eden.errors import EdenWarning, InputError, StateError, UsageError
from sharded_eden.train.statistics import Totals
from sharded_eden.windows.precompute import precompute_window_database

T = 128
CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(60 + 40 * k, k, "ACGTacgt") for k in range(9)}
LINEAGES = {
    "S0": {"domain": "Bacteria", "phylum": "Bacillota", "genus": "Bacillus"},
    "S1": {"domain": "Archaea", "phylum": None, "genus": "Sulfolobus"},
    "S2": {"domain": "Viruses", "phylum": "Uroviricota", "genus": " "},
}
TEMPLATE = "|d__{domain};p__{phylum};g__{genus}|"
TAGS = {
    "S0": "|d__Bacteria;p__Bacillota;g__Bacillus|",
    "S1": "|d__Archaea;p__None;g__Sulfolobus|",
    "S2": "|d__Viruses;p__Uroviricota;g__None|",
}


@pytest.fixture(params=["", ".index"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Databases, with and without the index of windows."""
    worlds.oracle.write_sequence_dbs(tmp_path / "seqs", CONTIGS)
    pl.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(
        tmp_path / "split.parquet"
    )
    sequences = tmp_path / "seqs" if request.param else None
    precompute_window_database(
        tmp_path / "split.parquet", tmp_path / "windows.db", T, 50, special_tokens=48, pack=True, sequences=sequences
    )
    assert (tmp_path / "windows.db.index").is_file() == bool(request.param)
    by_sample().write_parquet(tmp_path / "samples.parquet")
    return tmp_path


def by_sample(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame([{"sample": sample, **values} for sample, values in LINEAGES.items()])


def open_split(folder: Path, **options: Any) -> ShardedEdenDataset:
    options = {"tags": folder / "samples.parquet", "tag_template": TEMPLATE, **options}
    return ShardedEdenDataset(None, folder / "seqs", folder / "windows.db", T, stride=50, **options)


def tag_in(tokens: torch.Tensor) -> str:
    """The text between BOS and SEP."""
    ids = tokens.tolist()
    return bytes(ids[1 : ids.index(3)]).decode()


def sample_of(dataset: ShardedEdenDataset, window: int) -> str:
    return dataset.locate_many([window])[0][0].split("-")[1].split("__")[0]


def test_the_row_of_a_tagged_window(folder):
    with open_split(folder) as dataset:
        for window in range(len(dataset)):
            sequence_id, number = dataset.locate_many([window])[0]
            header = [1, *TAGS[sample_of(dataset, window)].encode(), 3]
            bases = CONTIGS[sequence_id][50 * number :][: T - 1 - len(header)].upper()
            tokens = [*header, *bases.encode(), 2]
            row = dataset[window]
            assert row["tokens"].tolist() == tokens + [0] * (T - len(tokens))
            mask = [0.0] * (len(header) - 1) + [1.0] * len(bases)
            assert row["loss_mask"].tolist() == mask + [0.0] * (T - len(mask))


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_text_files_and_contigs_as_keys(folder, ending):
    rows = [{"contig_id": contig, "tag": f"<{contig[-1]}>"} for contig in CONTIGS]
    path = folder / f"contigs.{ending}"
    pl.DataFrame(rows).write_csv(path, separator="," if ending == "csv" else "\t")
    with open_split(folder, tags=path, tag_template=None) as dataset:
        for window in range(len(dataset)):
            assert tag_in(dataset[window]["tokens"]) == f"<{dataset.locate_many([window])[0][0][-1]}>"


def test_dropout_is_a_function_of_seed_epoch_and_window(folder):
    fields = [("Bacteria", "Archaea", "Viruses", "None"), ("Bacillota", "Uroviricota", "None")]
    with open_split(folder, tag_dropout=0.5) as dataset, open_split(folder, tag_dropout=0.5, seed=43) as other:
        pairs = list(itertools.product(range(40), range(len(dataset))))
        tags = [tag_in(dataset[pair]["tokens"]) for pair in pairs]
        assert tags == [tag_in(row["tokens"]) for row in dataset.__getitems__(pairs)]
        assert tags == [tag_in(dataset[pair]["tokens"]) for pair in reversed(pairs)][::-1]
        assert tags != [tag_in(other[pair]["tokens"]) for pair in pairs]
        dropped = [tag.split(";")[0] == "|d__None" for tag in tags]
        assert 0.45 < sum(dropped) / len(dropped) < 0.55
        for tag in set(tags):
            domain, phylum, _ = tag.split(";")
            assert domain.removeprefix("|d__") in fields[0]
            assert phylum.removeprefix("p__") in fields[1]
        first = {tag for tag, (_, window) in zip(tags, pairs, strict=True) if window == 0}
        assert len(first) > 4
    with open_split(folder, tag_dropout=1.0) as dataset:
        assert tag_in(dataset[0]["tokens"]) == "|d__None;p__None;g__None|"


def rows_of(dataset: ShardedEdenDataset, **loading: Any) -> list[list[int]]:
    loader = DataLoader(Stream(dataset, num_samples=40), batch_size=5, collate_fn=dataset.collate_fn, **loading)
    expand = dataset.expander() if dataset.options.compact else None
    batches = [batch if expand is None else expand(batch) for batch in loader]
    return [[*row["t"]] for batch in batches for row in ({"t": tokens.tolist()} for tokens in batch["tokens"])]


@pytest.mark.parametrize("packed", [False, True])
def test_compact_batches_and_workers_make_the_same_rows(folder, packed):
    options = {"tag_dropout": 0.5, "packed": packed, "rc_aug": True}
    with open_split(folder, **options) as dataset, open_split(folder, compact=True, **options) as compact:
        expected = rows_of(dataset)
        assert rows_of(compact) == expected
        assert rows_of(dataset, num_workers=2) == expected
        assert rows_of(dataset, num_workers=1, multiprocessing_context="spawn") == expected


def test_a_mixture_of_tagged_and_other_sources(folder):
    with open_split(folder, tag_dropout=0.5) as tagged, open_split(folder, tags=None, tag_template=None) as plain:
        mixture = Mixture([(tagged, 0.5), (plain, 0.5)])
        rows = [mixture[k]["tokens"] for k in range(20)]
        assert {bool(row[1] == ord("|")) for row in rows} == {True, False}
        batch = mixture.__getitems__(list(range(20)))
        assert all(torch.equal(row["tokens"], expected) for row, expected in zip(batch, rows, strict=True))


def test_validation_has_no_dropout_and_a_checkpoint_knows_the_tags(folder):
    options = {
        "sequence_db_dir": folder / "seqs", "train_window_db_path": folder / "windows.db",
        "val_window_db_path": folder / "windows.db", "seq_length": T, "tags": folder / "samples.parquet",
        "tag_template": TEMPLATE, "tag_dropout": 1.0, "num_workers": 0,
    }  # fmt: skip
    module = ShardedEdenDataModule(**options)
    module.setup("fit")
    (train,), (val,) = (
        [tag_in(row) for row in next(iter(loader()))["tokens"]]
        for loader in (module.train_dataloader, module.val_dataloader)
    )
    assert train == "|d__None;p__None;g__None|"
    assert val in TAGS.values()
    state = module.state_dict()
    for change in (
        {"tag_dropout": 0.5},
        {"tag_template": "{genus}"},
        {"tags": None, "tag_template": None, "tag_dropout": 0.0},
    ):
        other = ShardedEdenDataModule(**{**options, **change})
        other.setup("fit")
        with pytest.raises(StateError, match=r"rows\['tags'\]"):
            other.load_state_dict(state)
    module.load_state_dict(state)


def test_errors_of_tables(folder):
    def refused(words: str, error: type[Exception] = InputError, **options: Any) -> None:
        with pytest.raises(error, match=words):
            open_split(folder, **options)

    def table(frame: pl.DataFrame) -> dict[str, Path]:
        frame.write_parquet(folder / "table.parquet")
        return {"tags": folder / "table.parquet"}

    lineages = by_sample()
    refused(r"has no row for 2 of 3 samples of .*windows.db: 'S1', 'S2'\. Add", **table(lineages[:1]))
    contigs = pl.DataFrame({"contig_id": list(CONTIGS)[:2], "tag": ["a", "b"]})
    refused(r"has no row for 7 of 9 contigs", **table(contigs), tag_template="{tag}")
    refused("1 rows repeat a sample", **table(pl.concat([lineages, lineages[:1]])))
    refused("1 rows have no sample", **table(pl.concat([lineages, lineages[:1].with_columns(sample=pl.lit(""))])))
    refused("names columns that are not there: 'order'", tag_template="{order}")
    refused("has none of the key columns", **table(lineages.rename({"sample": "x"})))
    refused("is not text", **table(lineages.with_columns(genus=pl.Series([[1], [2], [3]]))))
    refused("cannot be read as a table of tags", tags=folder / "absent.csv")
    (folder / "damaged.parquet").write_bytes(b"PAR1")
    refused("cannot be read as a table of tags", tags=folder / "damaged.parquet")
    refused("neither .parquet, .csv nor .tsv", UsageError, tags=folder / "windows.db")
    for template in ("{", "plain", "{}", "{a!r}", "{a.b}", "{a:3}"):
        refused("tag_template", UsageError, tag_template=template)
    refused("exclude each other", UsageError, use_control_tags=True)
    refused("need a table", UsageError, tags=None)
    refused("tag_dropout must be from 0 to 1", UsageError, tag_dropout=1.5)
    long = table(lineages.with_columns(genus=pl.lit("x" * T)))
    refused(r"the tag '.*' has \d+ tokens, which is too long", UsageError, **long)
    refused("cannot encode the tag", UsageError, **table(lineages.with_columns(genus=pl.lit("é"))))
    refused("control characters", UsageError, **table(lineages.with_columns(genus=pl.lit("a\nb"))))
    refused(
        r"which is too long: .*packed for 48 special",
        UsageError,
        packed=True,
        **table(lineages.with_columns(genus=pl.lit("x" * 30))),
    )


def test_a_tag_that_leaves_gaps_is_a_warning(folder):
    by_sample().with_columns(genus=pl.lit("x" * 60)).write_parquet(folder / "long.parquet")
    with pytest.warns(EdenWarning, match="bases between two windows are never seen"):
        open_split(folder, tags=folder / "long.parquet").close()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_counts_of_tagged_rows_are_those_of_the_rows(folder, packed, dropout):
    with open_split(folder, tag_dropout=dropout, packed=packed) as dataset:
        stream = Stream(dataset)
        totals = Totals(stream)
        totals.add(3, 90)
        bases = sum(
            len(window.bases) for item in stream.windows_at(range(3, 90)) for window in dataset.fetch_many([item])
        )
        tokens = sum(int((stream[position]["tokens"] != dataset.pad_id).sum()) for position in range(3, 90))
        assert (totals.bases, totals.tokens) == (bases, tokens)


class Utf8:
    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.encode())


class Words(Utf8):
    """`None` is one token, as in a vocabulary of words; any other field has a token for each letter."""

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.replace("None", "\x7f").encode())


@pytest.mark.parametrize("kind", [Utf8, Words])
@pytest.mark.parametrize("tag", ["\u00e9\u00e9\u00e9", "ab", "\U0001f9ec", "None", "\u6c34\u6c34"])
def test_with_dropout_the_room_is_that_of_the_longest_form_in_tokens(folder, kind, tag):
    pl.DataFrame({"sample": list(LINEAGES), "a": tag, "b": "x"}).write_parquet(folder / "samples.parquet")
    forms = [f"{a}{b}" for a in (tag, "None") for b in ("x", "None")]
    longest = max(len(kind().text_to_ids(form)) for form in forms)
    given = {"stride": 50, "tags": folder / "samples.parquet", "tag_template": "{a}{b}", "tag_dropout": 0.5}
    with ShardedEdenDataset(kind(), folder / "seqs", folder / "windows.db", T, **given) as dataset:
        assert dataset._fetcher.least_room == T - longest - 3
        drawn = {tag_in(dataset[epoch, window]["tokens"]) for epoch in range(6) for window in range(len(dataset))}
    assert drawn == {kind().text_to_ids(form) and bytes(kind().text_to_ids(form)).decode() for form in forms}


def test_packs_without_room_for_a_dropped_tag_are_refused_when_they_are_opened(folder):
    """The packs leave 45 tokens for a tag. This one has 43 as it is, and 46 where only its second field was dropped."""
    pl.DataFrame({"sample": list(LINEAGES), "a": "\u00e9" * 3, "b": "x"}).write_parquet(folder / "samples.parquet")
    options = {"stride": 50, "tags": folder / "samples.parquet", "packed": True, "tag_template": "{a}{b}" + "-" * 36}
    ShardedEdenDataset(Utf8(), folder / "seqs", folder / "windows.db", T, **options).close()
    options["tag_dropout"] = 0.5
    with pytest.raises(UsageError, match=r"the tag .* has 46 tokens, which is too long"):
        ShardedEdenDataset(Utf8(), folder / "seqs", folder / "windows.db", T, **options)


def test_two_columns_of_one_name_are_refused(folder):
    for header in ("sample,tag,tag", "sample,tag,sample"):
        (folder / "twice.csv").write_text(f"{header}\n" + "".join(f"{sample},a,{sample}\n" for sample in LINEAGES))
        with pytest.raises(InputError, match=f"has several columns '{header.split(',')[2]}'"):
            open_split(folder, tags=folder / "twice.csv", tag_template="{tag}")
