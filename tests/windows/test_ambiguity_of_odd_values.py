"""`precompute --max-ambiguous` on sequences that are not text."""

from __future__ import annotations

import polars as pl
import pytest
import worlds

from sharded_eden import precompute_window_database
from sharded_eden.errors import DatabaseError


@pytest.mark.parametrize("value", ["CAST(x'ff80' AS TEXT)", "5", "1.5"])
def test_a_sequence_that_is_not_text_is_an_error(tmp_path, value):
    worlds.write(tmp_path)
    worlds.execute(worlds.sample_db(tmp_path, "S0"), f"UPDATE sequences SET nt_sequence = {value}")
    split = tmp_path / "train_split.parquet"
    lengths = {"contig_id": list(worlds.CONTIGS), "length": [len(bases) for bases in worlds.CONTIGS.values()]}
    pl.DataFrame(lengths).write_parquet(split)
    with pytest.raises(DatabaseError, match="glm_dataset_S0"):
        precompute_window_database(split, tmp_path / "new.db", 64, 50, max_ambiguous=0.5, sequences=tmp_path / "seqs")
    assert not (tmp_path / "new.db").exists()


def test_ids_that_differ_in_case_only_are_two_contigs(tmp_path):
    table = "CREATE TABLE sequences (contig_id TEXT COLLATE NOCASE, nt_sequence TEXT NOT NULL)"
    (tmp_path / "seqs/S0").mkdir(parents=True)
    contigs = {"BCR__ECT-S0__CTG": "ACGT" * 30, "BCR__ECT-S0__ctg": "NNNN" * 30}
    worlds.execute(
        worlds.sample_db(tmp_path, "S0"),
        table,
        *(("INSERT INTO sequences VALUES (?, ?)", row) for row in contigs.items()),
    )
    split = tmp_path / "train_split.parquet"
    pl.DataFrame({"contig_id": list(contigs), "length": [120, 120]}).write_parquet(split)
    precompute_window_database(split, tmp_path / "new.db", 64, 50, max_ambiguous=0.5, sequences=tmp_path / "seqs")
    rows = worlds.query(tmp_path / "new.db", "SELECT DISTINCT sequence_id FROM window_mappings")
    assert rows == [("BCR__ECT-S0__CTG",)]
