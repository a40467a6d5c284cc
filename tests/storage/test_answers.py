"""Listings of several pages, redirects, and names that a URL encodes: a server of the test, and moto."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from object_storage import BUCKET, CREDENTIALS, Proxy, environment, put

from sharded_eden.errors import DatabaseError
from sharded_eden.storage.objects import Objects, Range, Version

pytest.importorskip("obstore")
pytest.importorskip("moto")

VERSION = Version(10, "etag", "2025-01-01T00:00:00+00:00")
Reply = Callable[[dict[str, list[str]]], tuple[int, str]]


@contextmanager
def answering(reply: Reply) -> Iterator[str]:
    """Start a server that answers GET and HEAD by status and body; yield its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            code, body = reply(parse_qs(urlsplit(self.path).query))
            self.send_response_only(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def page(number: int, is_last: bool) -> str:
    following = "" if is_last else f"<NextContinuationToken>{number + 1}</NextContinuationToken>"
    return (
        f"<ListBucketResult><IsTruncated>{str(not is_last).lower()}</IsTruncated>{following}<Contents><Key>x/{number}</Key>"
        "<LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;a&quot;</ETag><Size>1</Size></Contents>"
        "</ListBucketResult>"
    )


def at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)


def test_one_page_of_a_listing_is_tried_again_and_not_the_whole(monkeypatch):
    asked: list[int] = []

    def reply(query: dict[str, list[str]]) -> tuple[int, str]:
        number = int(query.get("continuation-token", ["0"])[0])
        asked.append(number)
        return (503, "") if asked.count(2) == 1 and number == 2 else (200, page(number, number == 3))

    with answering(reply) as endpoint:
        at(endpoint, monkeypatch)
        found = Objects("s3://bucket/x", 20.0).listed()
    assert sorted(found) == ["0", "1", "2", "3"]
    assert asked == [0, 1, 2, 2, 3]


def test_a_listing_that_fails_ends_in_the_stated_time(monkeypatch):
    with answering(lambda query: (503, "")) as endpoint:
        at(endpoint, monkeypatch)
        began = time.monotonic()
        with pytest.raises(DatabaseError, match=r"its objects cannot be listed: .* \(status 503"):
            Objects("s3://bucket/x", 3.0).listed()
    assert time.monotonic() - began < 8


REQUESTS = {
    "list": lambda objects: objects.listed(),
    "head": lambda objects: objects.head("x"),
    "read": lambda objects: objects.read(Range("x", 0, 5, VERSION)),
}


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=list(REQUESTS))
def test_another_region_is_an_error_at_once_that_names_the_setting(monkeypatch, request_of):
    with answering(lambda query: (301, "")) as endpoint:
        at(endpoint, monkeypatch)
        began = time.monotonic()
        with pytest.raises(
            DatabaseError, match=r"s3://bucket/x.*: the bucket is in another region. Set AWS_REGION to it"
        ):
            request_of(Objects("s3://bucket/x", 20.0))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("name", "words"), [("a\udc80/x", r"a\\x80/x: .*surrogates not allowed"), ("a\nb", "Could not parse path")]
)
def test_a_name_that_no_object_can_have_is_an_error_at_once(monkeypatch, name, words):
    at("http://127.0.0.1:1", monkeypatch)
    began = time.monotonic()
    with pytest.raises(DatabaseError, match=words):
        Objects("s3://bucket/x", 20.0).read(Range(name, 0, 5, VERSION))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("folder", ["run%201", "run 1", "a+b", "grün"])
def test_the_folder_of_a_url_is_taken_as_it_is_written(proxy: Proxy, monkeypatch, folder):
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    for other in ("run%201", "run 1", "a+b", "a b", "grün"):
        put(proxy.endpoint, quote(f"{other}/S1/x"), other.encode())
    objects = Objects(f"s3://{BUCKET}/{folder}", 5.0)
    (name,), (version,) = objects.listed().keys(), objects.listed().values()
    assert name == "S1/x"
    body = folder.encode()
    assert objects.read(Range(name, 0, len(body), version)) == body
