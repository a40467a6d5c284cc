"""`verify` and `bench` of sequence databases at a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import TRAIN, VAL, found, write_windows
from object_storage import Answer, Proxy, delete, environment, put, upload
from worlds import execute

import oracle
from sharded_eden import bench, cli, verify
from sharded_eden.checks import remote
from sharded_eden.errors import EdenWarning, UsageError
from sharded_eden.format.index import IndexFile, index_path, write_index
from sharded_eden.load.options import ExampleOptions
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote

pytest.importorskip("obstore")
pytest.importorskip("moto")


@pytest.fixture
def world(tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two splits, whose sequence databases are also in a bucket."""
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    oracle.write_sequence_dbs(tmp_path / "seqs", TRAIN | VAL)
    upload(proxy.endpoint, tmp_path / "seqs", tmp_path.name)
    for name, contigs in (("train", TRAIN), ("val", VAL)):
        write_windows(tmp_path / f"{name}.db", contigs, pack=name == "train")
        index_window_database(tmp_path / "seqs", tmp_path / f"{name}.db")
        add_remote(tmp_path / f"{name}.db", url_of(tmp_path))
        for path in (tmp_path / f"{name}.db", index_path(tmp_path / f"{name}.db")):
            put(proxy.endpoint, f"{tmp_path.name}/{path.name}", path.read_bytes())
    proxy.fault = None
    proxy.requests.clear()
    return tmp_path


def url_of(folder: Path) -> str:
    return f"s3://bucket/{folder.name}"


def splits(world: Path) -> list[Path]:
    return [world / "train.db", world / "val.db"]


def test_sound_data_are_clean_and_windows_are_read(world, proxy):
    result = verify(url_of(world), splits(world))
    assert result.findings == []
    local = verify(world / "seqs", splits(world))
    assert (result.samples, result.windows) == (local.samples, local.windows) == (5, 50)
    assert result.windows_read == local.windows_read == 50
    names = {path.rpartition("/")[2] for path, _ in proxy.requests}
    assert names == {f"glm_dataset_{sample}.sqlite" for sample in ("S0", "S1", "S2", "V0", "V1")}


def test_window_databases_at_urls(world, capsys):
    urls = [f"{url_of(world)}/{name}.db" for name in ("train", "val")]
    assert verify(url_of(world), urls).findings == []
    assert cli.main(["verify", url_of(world), *urls, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows_read"] == 50
    assert cli.main(["verify", url_of(world), *urls]) == 0
    assert "copies made by sharded-eden fetch" in capsys.readouterr().out


def test_a_file_url(world):
    add_remote(world / "val.db", f"file://{world}/seqs")
    assert verify(f"file://{world}/seqs", [world / "val.db"]).findings == []


def test_missing_and_replaced_objects_are_found_and_the_others_read(world, proxy):
    key = f"{world.name}/V0/glm_dataset_V0.sqlite"
    body = (world / "seqs/V0/glm_dataset_V0.sqlite").read_bytes()
    put(proxy.endpoint, key, body[:-1] + bytes([body[-1] ^ 1]))
    delete(proxy.endpoint, f"{world.name}/S1/glm_dataset_S1.sqlite")
    result = verify(url_of(world), splits(world))
    assert found(result) == {("addresses", "val.db.index"), ("sample", "train.db")}
    missing, replaced = result.findings
    assert "1 sequence databases that its windows name are missing" in missing.what
    assert "S1/glm_dataset_S1.sqlite" in missing.what
    assert "1 objects at s3://bucket" in replaced.what
    assert "V0/glm_dataset_V0.sqlite had 12,288 bytes" in replaced.what
    assert f"index --at {url_of(world)}" in replaced.fix
    assert 0 < result.windows_read < 50


def with_runs(window_db: Path, **changes: object) -> None:
    """Change columns of an index; its checksums are those of the changed index."""
    file = IndexFile(index_path(window_db))
    runs = file.runs.copy()
    for name, change in changes.items():
        runs[name] = change(runs[name])  # type: ignore[operator]
    write_index(index_path(window_db), file.meta, file.samples.copy(), [runs])


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("sample", lambda old: old[::-1], "is of sample 'S0', here of 'S2'"),
        ("length", lambda old: old + 1, "is of a contig of 200 bases, here of 201"),
        ("first_in_contig", lambda old: old + 1, "begins at base 0, here at 50"),
        ("tag", lambda old: old + 1, "S"),
        ("at", lambda old: old * 0 - 1, "has no address"),
    ],
)
def test_a_wrong_index_is_found(world, column, change, words):
    with_runs(world / "train.db", **{column: change})
    result = verify(url_of(world), splits(world))
    assert found(result) <= {("addresses", "train.db.index"), ("alphabet", "glm_dataset_S2.sqlite")}
    if column != "tag":  # there is one tag, and a number without a tag is not compared
        assert words in result.findings[0].what


def test_an_object_of_other_bytes_is_found(world, proxy):
    """Its ETag is recorded after it was exchanged: only its bytes show it."""
    key = f"{world.name}/S1/glm_dataset_S1.sqlite"
    body = (world / "seqs/S1/glm_dataset_S1.sqlite").read_bytes()
    put(proxy.endpoint, key, body.replace(b"A", b"!"))
    add_remote(world / "train.db", url_of(world))
    assert found(verify(url_of(world), splits(world))) == {("alphabet", "glm_dataset_S1.sqlite")}


def test_what_cannot_be_opened_is_a_finding(world, proxy, monkeypatch):
    index_path(world / "val.db").unlink()
    (world / "train.db").write_bytes((world / "train.db").read_bytes()[:5000])
    result = verify(url_of(world), splits(world))
    assert {(check, name) for check, name in found(result)} >= {("addresses", "val.db.index")}
    assert any(name == "train.db" for _, name in found(result))
    assert "sharded-eden index --at" in next(f for f in result.findings if f.file.endswith("val.db.index")).fix
    assert result.windows_read == 0


def test_a_storage_that_refuses_is_a_finding(world, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(remote, "LISTING_SECONDS", 0.5)
    result = verify(url_of(world), splits(world))
    assert {finding.check for finding in result.findings} == {"file"}
    assert "its objects cannot be listed" in result.findings[0].what


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are tried for a second."""
    monkeypatch.setattr(remote, "ExampleOptions", lambda: ExampleOptions(request_seconds=1.0))


def asked(proxy: Proxy) -> set[str]:
    return {path.split("/")[-2] for path, _ in proxy.requests}


def test_a_server_that_serves_no_ranges_after_the_listing_is_one_finding(world, proxy, monkeypatch):
    quick(monkeypatch)
    proxy.fault = lambda *_: Answer(503, {}, b"<Code>SlowDown</Code>")
    monkeypatch.setattr(remote, "STOPS_AFTER", 2)
    result = verify(url_of(world), splits(world))
    (finding,) = result.findings
    assert (finding.check, finding.file) == ("file", url_of(world))
    assert "2 windows cannot be read, the last 2 one after the other, and no others were tried: s3://" in finding.what
    assert "S0/glm_dataset_S0.sqlite: bytes " in finding.what
    assert "(status 503, SlowDown)" in finding.what
    assert finding.fix == "look at the address, the credentials and the network"
    assert result.windows_read == 0
    assert not asked(proxy) & {"V0", "V1"}, "no window of the next split is tried"


def test_an_object_that_the_server_does_not_serve_does_not_end_the_others(world, proxy, monkeypatch):
    monkeypatch.setattr(remote, "STOPS_AFTER", 2)

    def fault(number, path, headers, forward):
        return Answer(403, {}, b"<Code>AccessDenied</Code>") if "/S1/" in path else forward(headers)

    proxy.fault = fault
    result = verify(url_of(world), splits(world))
    (finding,) = result.findings
    assert (finding.check, finding.file) == ("file", url_of(world))
    assert "1 windows cannot be read, and no others of their sequence databases were tried" in finding.what
    assert "S1/glm_dataset_S1.sqlite: bytes " in finding.what
    assert result.windows_read > 0
    assert asked(proxy) == {"S0", "S1", "S2", "V0", "V1"}


def test_objects_that_are_missing_after_the_listing_do_not_end_the_others(world, proxy, monkeypatch):
    monkeypatch.setattr(remote, "STOPS_AFTER", 2)
    proxy.fault = lambda *_: Answer(404, {}, b"<Code>NoSuchKey</Code>")
    result = verify(url_of(world), splits(world))
    assert found(result) == {("addresses", "train.db.index"), ("addresses", "val.db.index")}
    assert asked(proxy) == {"S0", "S1", "S2", "V0", "V1"}


def test_a_sample_in_two_splits(world):
    write_windows(world / "val.db", VAL | {"BCR__ECT-S1__CT1-3": TRAIN["BCR__ECT-S1__CT1-3"]})
    index_window_database(world / "seqs", world / "val.db")
    add_remote(world / "val.db", url_of(world))
    assert found(verify(url_of(world), splits(world))) == {("shared-sample", "val.db")}
    assert verify(url_of(world), splits(world), by="contig").findings == []


def test_findings_of_a_window_database_at_a_url_name_the_url(world, proxy):
    execute(world / "val.db", "UPDATE metadata SET value = value + 1 WHERE key = 'total_windows'")
    delete(proxy.endpoint, f"{world.name}/val.db.index")
    put(proxy.endpoint, f"{world.name}/val.db", (world / "val.db").read_bytes())
    url = f"{url_of(world)}/val.db"
    (finding,) = verify(world / "seqs", [url]).findings
    assert finding.file == url
    assert finding.fix.endswith(f"val.db --window-size 64 --stride 50 --force, then upload it to {url}")
    assert str(world) not in finding.what + finding.fix


def test_a_mixture_at_urls(world):
    path = world / "m.toml"
    source = "[sources.{0}]\nwindow_db_path = '{1}/{0}.db'\nsequence_db_dir = '{1}'\nweight = 1\n"
    path.write_text("".join(source.format(name, url_of(world)) for name in ("train", "val")))
    result = verify(url_of(world), [path])
    assert (result.findings, result.windows_read) == ([], 50)
    measured = bench(url_of(world), path, seconds=0.01, max_workers=0, batch_size=2)
    assert measured.storage is not None


def test_what_needs_files_is_refused_with_the_commands(world, capsys):
    url = url_of(world)
    copy = f"sharded-eden fetch {url} DIR --windows {world / 'val.db'} && sharded-eden index DIR {world / 'val.db'} && "
    for option in ("--full", "--near-duplicates"):
        with pytest.raises(UsageError, match=f"{option} reads every base, which needs local files") as refused:
            verify(url, [world / "val.db"], **{option[2:].replace("-", "_"): True})
        assert f"{copy}sharded-eden verify DIR {world / 'val.db'} {option}" in str(refused.value)
    with pytest.raises(UsageError, match="SEQDB is a URL: its objects are compared with the index"):
        verify(url)
    assert cli.main(["verify", "s3://me:secret@bucket/x", str(world / "val.db")]) == 2
    assert "secret" not in capsys.readouterr().err


def test_bench_reports_what_the_storage_costs(world, capsys, proxy):
    line = ["bench", url_of(world), f"{url_of(world)}/train.db", "--seconds", "0.2", "--max-workers", "0"]
    line += ["--batch-size", "4"]
    proxy.delay_seconds = 0.02
    assert cli.main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    proxy.delay_seconds = 0.0
    storage = result["storage"]
    assert result["cold_windows_per_second"] is None
    assert 0 < storage["requests_per_window"] <= 1.1
    assert 0 < storage["bytes_per_window"] <= 1.5 * 64
    assert 0.2 < storage["waiting_share"] <= 1
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "of the time is spent waiting for data from the storage" in out
    assert "  cold " not in out


def test_bench_measures_while_copying_and_from_copies(world, tmp_path, capsys):
    line = [
        "bench",
        url_of(world),
        f"{url_of(world)}/train.db",
        "--seconds",
        "0.1",
        "--max-workers",
        "0",
        "--batch-size",
        "4",
    ]
    line += ["--cache-dir", str(tmp_path / "here"), "--cache-bytes"]
    assert cli.main([*line, "1000000"]) == 0
    out = capsys.readouterr().out
    samples = len({oracle.sample_of(each) for each in TRAIN})
    assert f"{samples} of {samples} sequence databases are read from copies" in out
    assert all(f"\n  {name} " in out for name in ("storage", "while copying", "copies"))
    made = [path for path in (tmp_path / "here" / "sequences").iterdir() if not path.name.startswith(".")]
    assert len(made) == samples


def test_bench_of_copies_that_do_not_fit_or_of_a_folder(world, tmp_path):
    options = {"seconds": 0.01, "max_workers": 0, "batch_size": 2, "cache_bytes": 1, "cache_dir": tmp_path / "here"}
    with pytest.warns(EdenWarning, match="cache_bytes=1 is less than the smallest sequence database"):
        measured = bench(url_of(world), world / "train.db", **options)
    assert measured.copies is not None
    assert measured.copies.copied == 0
    assert measured.copies.copying_windows_per_second is None
    assert measured.as_dict()["copies"]["windows_per_second"] > 0
    with pytest.raises(UsageError, match="cache_bytes=1 limits copies"):
        bench(world / "seqs", world / "train.db", **options)


def test_bench_of_local_files_has_no_storage(world):
    assert bench(world / "seqs", world / "train.db", seconds=0.01, max_workers=0, batch_size=2).storage is None
