"""What servers do wrong: every answer that is not the requested bytes is retried or an error, in bounded time."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from object_storage import BUCKET, CREDENTIALS, Answer, Proxy, environment, put

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError
from sharded_eden.storage import objects as storage_objects
from sharded_eden.storage.fetcher import Fetcher
from sharded_eden.storage.objects import Objects, Range, Version, check_is_versioned
from sharded_eden.storage.urls import ObjectPath, folder_url, is_url

pytest.importorskip("obstore")
pytest.importorskip("moto")

NAME, BODY = "S1/glm_dataset_S1.sqlite", bytes(range(256)) * 400
URL = f"s3://{BUCKET}/seqdb"
SECONDS = 3.0


@pytest.fixture(scope="module")
def proxy(proxy: Proxy) -> Proxy:
    put(proxy.endpoint, f"seqdb/{NAME}", BODY)
    return proxy


@pytest.fixture
def objects(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Objects:
    proxy.fault, proxy.delay_seconds = None, 0.0
    proxy.requests.clear()
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    return Objects(URL, SECONDS)


@pytest.fixture
def version(objects: Objects) -> Version:
    return objects.versions([NAME])[NAME]


def wanted(version: Version, start: int = 1000, size_bytes: int = 5000) -> Range:
    return Range(NAME, start, size_bytes, version)


def status(code: int, body: bytes = b"<Error><Code>SlowDown</Code></Error>") -> Answer:
    return Answer(code, {"Content-Type": "application/xml"}, body)


def test_one_listing_gives_sizes_and_etags(objects: Objects, proxy: Proxy) -> None:
    found = objects.versions([NAME, "S2/glm_dataset_S2.sqlite"])
    assert list(found) == [NAME]
    assert found[NAME].size_bytes == len(BODY)
    assert re.fullmatch(r"[0-9a-f]{32}", found[NAME].etag)
    assert proxy.requests == []


def test_a_range_is_what_was_written(objects: Objects, version: Version) -> None:
    for start, size_bytes in ((0, 1), (1000, 5000), (len(BODY) - 7, 7), (0, len(BODY))):
        assert objects.read(wanted(version, start, size_bytes)) == BODY[start : start + size_bytes]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_status_that_may_pass_is_retried(objects: Objects, version: Version, proxy: Proxy, code: int) -> None:
    proxy.fault = lambda number, _, headers, forward: status(code) if number < 2 else forward(headers)
    assert objects.read(wanted(version)) == BODY[1000:6000]
    assert len(proxy.requests) == 3


def cut(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.cut = 100 if number == 0 else None
    return answer


def reset(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.reset = number == 0
    return answer


def hang(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.hang_seconds = SECONDS if number == 0 else 0
    return answer


@pytest.mark.parametrize("fault", [cut, reset, hang])
def test_a_broken_answer_is_retried(objects: Objects, version: Version, proxy: Proxy, fault) -> None:
    proxy.fault = fault
    assert objects.read(wanted(version)) == BODY[1000:6000]
    assert len(proxy.requests) >= 2


def changed(headers: dict[str, str], name: str, value: str | None) -> dict[str, str]:
    others = {key: each for key, each in headers.items() if key.lower() != name.lower()}
    return others if value is None else {**others, name: value}


def whole(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    return forward(changed(headers, "Range", None))


def some_with_status_200(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.status = 200
    return answer


def other_range(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    return forward(changed(headers, "Range", "bytes=2000-6999"))


def shorter(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    return forward(changed(headers, "Range", "bytes=1000-1099"))


def other_size(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.headers = changed(answer.headers, "Content-Range", "bytes 1000-5999/999999")
    return answer


def other_etag(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.headers = changed(answer.headers, "ETag", '"other"')
    return answer


def short_body(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.body = answer.body[:-1]
    return answer


FINAL = {
    "whole": (whole, "the server answers with the whole object: it does not support ranges"),
    "some bytes, status 200": (some_with_status_200, "does not support ranges"),
    "other range": (other_range, "Requested|range"),
    "shorter range": (shorter, "Requested|range|bytes 1,000 to 1,099"),
    "other size": (other_size, "the object was replaced"),
    "other ETag": (other_etag, "the object was replaced. It had .* the ETag .*; it has .* the ETag other"),
    "403": (lambda *_: status(403, b"<Code>AccessDenied</Code>"), r"access is denied \(status 403, AccessDenied\)"),
    "expired": (lambda *_: status(400, b"<Code>ExpiredToken</Code>"), r"\(status 400, ExpiredToken\)"),
    "401": (lambda *_: status(401), "does not accept the credentials"),
}


@pytest.mark.parametrize(("fault", "words"), FINAL.values(), ids=list(FINAL))
def test_an_answer_that_stays_wrong_is_an_error_at_once(
    objects: Objects, version: Version, proxy: Proxy, fault, words: str
) -> None:
    proxy.fault = fault
    began = time.monotonic()
    with pytest.raises(DatabaseError, match=words) as raised:
        objects.read(wanted(version))
    assert f"{URL}/{NAME}: bytes 1,000 to 5,999: " in str(raised.value)
    assert len(proxy.requests) == 1
    assert time.monotonic() - began < SECONDS / 2


UNENDING = {
    "503": (lambda *_: status(503), r"the server answers an error \(status 503, SlowDown\)"),
    "short body": (short_body, "the server sent 4,999 bytes instead of 5,000|cut short|Requested|range"),
    "hang": (lambda n, p, h, forward: hang(0, p, h, forward), "no answer in time"),
}


@pytest.mark.parametrize(("fault", "words"), UNENDING.values(), ids=list(UNENDING))
def test_an_error_that_does_not_pass_ends_in_the_stated_time(
    objects: Objects, version: Version, proxy: Proxy, fault, words: str
) -> None:
    proxy.fault = fault
    began = time.monotonic()
    with pytest.raises(DatabaseError, match=words) as raised:
        objects.read(wanted(version))
    assert f"{URL}/{NAME}: bytes 1,000 to 5,999: " in str(raised.value)
    assert time.monotonic() - began < SECONDS + 1


@pytest.fixture
def slow_link(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """All of the object takes 4.1 s, an attempt may take 3 s (of 9 s), and a piece takes 0.8 s."""
    monkeypatch.setattr(storage_objects, "PIECE_BYTES", 20_000)


def by_size(number: int, path: str, headers: dict[str, str], forward) -> Answer:
    answer = forward(headers)
    answer.hang_seconds = len(answer.body) / 25_000
    return answer


def test_on_a_slow_link_a_large_part_is_read_in_pieces(version: Version, proxy: Proxy, slow_link: None) -> None:
    proxy.fault = by_size
    objects = Objects(URL, 9.0)
    whole = wanted(version, 0, len(BODY))
    assert objects.read(whole) == BODY
    sizes = [
        1 + int(end) - int(start)
        for start, end in (range_.removeprefix("bytes=").split("-") for _, range_ in proxy.requests)
    ]
    assert sizes == [102_400, *[20_000] * 5, 2400]
    proxy.requests.clear()
    assert objects.read(whole) == BODY
    assert len(proxy.requests) == 6, "the next part is read in pieces at once"


def test_a_copy_on_a_slow_link_ends_between_two_pieces(version: Version, proxy: Proxy, slow_link: None) -> None:
    proxy.fault = by_size
    objects, pieces = Objects(URL, 9.0), []

    def arrived() -> None:
        pieces.append(1)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objects.read(wanted(version, 0, len(BODY)), arrived)
    assert len(proxy.requests) == 3


def test_a_large_part_of_a_server_that_hangs_ends_in_the_stated_time(
    objects: Objects, version: Version, proxy: Proxy, slow_link: None
) -> None:
    proxy.fault = lambda n, p, h, forward: hang(0, p, h, forward)
    began = time.monotonic()
    with pytest.raises(DatabaseError, match="bytes 0 to 19,999: no answer in time"):
        objects.read(wanted(version, 0, len(BODY)))
    assert time.monotonic() - began < SECONDS + 1


def test_a_missing_object_or_bucket_is_named(objects: Objects, version: Version) -> None:
    with pytest.raises(MissingDatabase, match="s3://bucket/seqdb/S9/x: bytes 0 to 0: no such object"):
        objects.read(Range("S9/x", 0, 1, version))
    with pytest.raises(EdenError, match="s3://missing-bucket/x: its objects cannot be listed"):
        Objects("s3://missing-bucket/x", 1.0).versions([NAME])


def test_nothing_listens(objects: Objects, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DatabaseError, match=r"no connection \(\d+ attempts in \d s\)"):
        Objects(URL, 1.0).read(wanted(version))


def test_messages_hold_no_credentials(objects: Objects, version: Version, proxy: Proxy) -> None:
    body = f"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{CREDENTIALS['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId></Error>"
    proxy.fault = lambda *_: status(403, body.encode())
    with pytest.raises(DatabaseError, match="InvalidAccessKeyId") as raised:
        objects.read(wanted(version))
    error: BaseException | None = raised.value
    assert error is not None
    assert error.__cause__ is None
    assert CREDENTIALS["AWS_ACCESS_KEY_ID"] not in str(error)


def test_requests_in_flight_are_limited_and_used(objects: Objects, version: Version, proxy: Proxy) -> None:
    proxy.delay_seconds, proxy.most_in_flight = 0.3, 0
    fetcher = Fetcher(URL, in_flight=8, seconds=20)
    try:
        fetcher.request([(k, wanted(version, k * 10, 10)) for k in range(24)])
        found = {}
        for _ in range(24):
            answer = fetcher.next_answer()
            assert answer.error is None
            assert answer.body is not None
            found[answer.number] = bytes(answer.body)
    finally:
        fetcher.close()
    assert found == {k: BODY[k * 10 : k * 10 + 10] for k in range(24)}
    assert proxy.most_in_flight == 8


def test_an_error_of_the_process_that_fetches_keeps_its_class(objects: Objects, version: Version) -> None:
    fetcher = Fetcher(URL, in_flight=2, seconds=5)
    try:
        fetcher.request([(7, Range("S9/x", 0, 1, version))])
        answer = fetcher.next_answer()
        assert answer.number == 7
        assert type(answer.error) is MissingDatabase
        assert "S9/x: bytes 0 to 0" in str(answer.error)
    finally:
        fetcher.close()


@pytest.mark.parametrize("etag", ['W/"a"', ""])
def test_without_a_strong_etag_the_modification_time_is_compared(objects: Objects, proxy: Proxy, etag: str) -> None:
    sent = {"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}

    def fault(number: int, path: str, headers: dict[str, str], forward: Any) -> Answer:
        assert not any(name.lower() == "if-match" for name in headers)
        answer = forward(headers)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in {"etag", "last-modified"}}
        answer.headers = {**kept, **sent, **({"ETag": etag} if etag else {})}
        return answer

    proxy.fault = fault
    version = Version(len(BODY), etag.replace('"', ""), "2025-01-01T00:00:00+00:00")
    assert objects.read(Range(NAME, 5, 3, version)) == BODY[5:8]
    sent["Last-Modified"] = "Wed, 01 Jan 2025 00:00:01 GMT"
    with pytest.raises(DatabaseError, match=r"the object was replaced.*the modification time 2025-01-01T00:00:01"):
        objects.read(Range(NAME, 5, 3, version))


def test_a_server_that_sends_neither_etag_nor_time_is_refused() -> None:
    check_is_versioned("s3://b/x", Version(5, "a", "1970-01-01T00:00:00+00:00"))
    check_is_versioned("s3://b/x", Version(5, "", "2025-01-01T00:00:00+00:00"))
    with pytest.raises(DatabaseError, match="s3://b/x: the server sends neither an ETag nor a modification time"):
        check_is_versioned("s3://b/x", Version(5, "", "1970-01-01T00:00:00+00:00"))


def test_a_local_file_that_is_replaced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "S 1/x.sqlite"
    path.parent.mkdir()
    path.write_bytes(BODY)
    objects = Objects(f"file://{tmp_path}", 5.0)
    version = objects.versions(["S 1/x.sqlite"])["S 1/x.sqlite"]
    assert objects.read(Range("S 1/x.sqlite", 5, 3, version)) == BODY[5:8]
    path.unlink()
    path.write_bytes(BODY)
    with pytest.raises(DatabaseError, match=r"x\.sqlite: bytes 5 to 7: the object was replaced"):
        objects.read(Range("S 1/x.sqlite", 5, 3, version))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://user:secret-word@bucket/x", "must not have a user, a password"),
        ("https://host/x?sig=secret-word", "must not have a user, a password"),
        ("s3:///x", "names no bucket"),
        ("http:///x", "names no host"),
        ("file://host/x", "must have an absolute path"),
        ("s3://bucket/../x", "must not contain"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        folder_url(url, "sequence_db_dir")
    assert "secret-word" not in str(raised.value)


def test_urls() -> None:
    assert folder_url("s3://bucket/seqdb//", "x") == "s3://bucket/seqdb"
    assert folder_url("file:///a/b/", "x") == "file:///a/b"
    assert is_url("gs://b")
    assert not any(map(is_url, ("ftp://b", "/s3://b", "C://b", Path("s3://b"), 3)))
    path = ObjectPath("s3://bucket/seqdb/S1/x.sqlite")
    assert str(path.parent.parent) == "s3://bucket/seqdb"
    assert str(ObjectPath("file:///a/b").parent) == "file:///a"
