"""A damaged `WINDOWS.db.index` is detected before it gives a wrong base."""

from __future__ import annotations

import logging
import random

import pytest
import worlds

from sharded_eden.errors import EdenError
from sharded_eden.format.index import IndexFile, write_index
from sharded_eden.windows.index import index_window_database


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = worlds.write(
        tmp_path_factory.mktemp("indexed"), {f"BCR__ECT-S{i % 2}__CT1-{i}": "ACGTTGCA" * i for i in range(5, 90)}
    )
    index_window_database(folder / "seqs", folder / "windows.db")
    return folder


def rows(folder, batch: int):
    with worlds.dataset(folder) as dataset:
        if batch == 1:
            return [dataset[i]["tokens"].tolist() for i in range(len(dataset))]
        indices = [list(range(i, min(i + batch, len(dataset)))) for i in range(0, len(dataset), batch)]
        return [row for some in indices for row in dataset.collate_fn(dataset.__getitems__(some))["tokens"].tolist()]


@pytest.mark.parametrize("names", [["S0", "S1", "S0"], ["S0"], [], {}])
def test_an_index_with_other_names_than_samples_is_not_used(indexed, caplog, names):
    path = indexed / "windows.db.index"
    sound, expected, file = path.read_bytes(), rows(indexed, 1), IndexFile(path)
    try:
        write_index(indexed / "other.index", {**file.meta, "samples": names}, file.samples, [file.runs])
        (indexed / "other.index").rename(path)  # the old file is mapped
        assert rows(indexed, 1) == expected
    finally:
        path.write_bytes(sound)
    assert f"{len(names)} names of 2 samples" in caplog.text


@pytest.mark.parametrize("batch", [1, 32])
def test_a_changed_bit_in_an_index_gives_the_same_rows_or_an_error(indexed, caplog, batch):
    caplog.set_level(logging.CRITICAL)
    path = indexed / "windows.db.index"
    sound, expected, choose = path.read_bytes(), rows(indexed, batch), random.Random(batch)
    refused = []
    try:
        for _ in range(60):
            data = bytearray(sound)
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            path.write_bytes(data)
            try:
                assert rows(indexed, batch) == expected
            except EdenError as error:
                refused.append(str(error))
    finally:
        path.write_bytes(sound)
    assert refused
    assert all("sharded-eden index" in message for message in refused)
