"""The same rows from servers of Google Cloud Storage, of Azure Blob Storage and of plain HTTP as from local files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import worlds
from gs_az import Server, azure_server, gcs_server
from object_storage import BUCKET, s3_server, upload

from sharded_eden import ShardedEdenDataset, cli
from sharded_eden.errors import DatabaseError, MissingDatabase
from sharded_eden.format.index import index_path
from sharded_eden.windows.index import index_window_database

pytest.importorskip("obstore")


@pytest.fixture(
    scope="module", params=[gcs_server, pytest.param(azure_server, marks=pytest.mark.slow)], ids=["gs", "az"]
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as server:
        yield server


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    worlds.write(tmp_path)
    index_window_database(tmp_path / "seqs", tmp_path / "windows.db")
    url = server.upload(tmp_path / "seqs", tmp_path.name)
    assert cli.main(["index", "--at", url, str(tmp_path / "windows.db")]) == 0
    for path in (tmp_path / "windows.db", index_path(tmp_path / "windows.db")):
        server.put(f"{tmp_path.name}/{path.name}", path.read_bytes())
    return url


def tokens(dataset: ShardedEdenDataset) -> torch.Tensor:
    with dataset:
        return torch.stack([dataset[k]["tokens"] for k in range(len(dataset))])


def test_rows_and_commands(url, tmp_path, capsys):
    expected = tokens(worlds.dataset(tmp_path))
    assert torch.equal(tokens(ShardedEdenDataset.open(url, tmp_path / "windows.db")), expected)
    assert torch.equal(tokens(ShardedEdenDataset.open(url, f"{url}/windows.db")), expected)
    assert cli.main(["verify", url, f"{url}/windows.db"]) == 0
    assert cli.main(["fetch", url, str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy/S1/glm_dataset_S1.sqlite").read_bytes() == worlds.sample_db(tmp_path, "S1").read_bytes()


def test_an_index_of_the_objects(url, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy2(tmp_path / "windows.db", tmp_path / "other")
    assert cli.main(["index", url, str(tmp_path / "other/windows.db")]) == 0
    found = tokens(ShardedEdenDataset.open(url, tmp_path / "other/windows.db"))
    assert torch.equal(found, tokens(worlds.dataset(tmp_path)))


def test_a_replaced_object_is_an_error(url, server, tmp_path):
    body = worlds.sample_db(tmp_path, "S1").read_bytes()
    server.put(f"{tmp_path.name}/S1/glm_dataset_S1.sqlite", body[:-1] + bytes([body[-1] ^ 1]))
    with (
        ShardedEdenDataset.open(url, tmp_path / "windows.db") as dataset,
        pytest.raises(DatabaseError, match="replaced"),
    ):
        [dataset[k] for k in range(len(dataset))]
    assert cli.main(["verify", url, str(tmp_path / "windows.db")]) == 1


def test_what_is_not_there(url, server, tmp_path):
    with pytest.raises(MissingDatabase, match="no such object"):
        ShardedEdenDataset.open(url, f"{url}/nothing.db")
    if server.scheme == "gs":
        return  # this server answers 500 for a bucket that does not exist, which is tried again for two minutes
    nothing = f"{server.scheme}://{server.scheme}-nothing/x"
    assert cli.main(["index", "--at", nothing, str(tmp_path / "windows.db")]) == 1


def test_plain_http(tmp_path):
    """moto answers requests for public objects without a signature."""
    pytest.importorskip("moto")
    worlds.write(tmp_path)
    window_db = tmp_path / "windows.db"
    index_window_database(tmp_path / "seqs", window_db)
    with s3_server() as endpoint:
        upload(endpoint, tmp_path / "seqs", "seqs", public=True)
        url = f"{endpoint}/{BUCKET}/seqs"
        assert cli.main(["index", "--at", url, str(window_db)]) == 0
        assert torch.equal(tokens(ShardedEdenDataset.open(url, window_db)), tokens(worlds.dataset(tmp_path)))
        assert cli.main(["verify", url, str(window_db)]) == 0
        assert cli.main(["fetch", url, str(tmp_path / "copy"), "--windows", str(window_db)]) == 0
    assert (tmp_path / "copy/S1/glm_dataset_S1.sqlite").read_bytes() == worlds.sample_db(tmp_path, "S1").read_bytes()
