"""A real S3 server (moto, in a process of its own), and an HTTP proxy that delays, damages and refuses answers."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEKEY", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret", "AWS_REGION": "us-east-1",
}  # fmt: skip


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a server with one empty bucket; yield its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # An unread pipe would block it, so its log goes nowhere.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto has ended"
                assert time.monotonic() < until, "moto does not answer"
                time.sleep(0.05)
        put(endpoint, "", b"")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def put(endpoint: str, key: str, body: bytes, *, public: bool = False) -> None:
    """Write an object into the bucket, and let anybody read it if it is public; an empty key makes the bucket."""
    _change("PUT", endpoint, key, body, {"x-amz-acl": "public-read"} if public else {})


def delete(endpoint: str, key: str) -> None:
    """Remove an object from the bucket."""
    _change("DELETE", endpoint, key, None, {})


def _change(method: str, endpoint: str, key: str, body: bytes | None, headers: dict[str, str]) -> None:
    signature = f"AWS4-HMAC-SHA256 Credential={CREDENTIALS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4_request"
    url = f"{endpoint}/{BUCKET}" + (f"/{key}" if key else "")
    headers = {"Authorization": signature, "Content-Type": "application/octet-stream", **headers}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


def upload(endpoint: str, folder: Path, prefix: str, *, public: bool = False) -> str:
    """Write the sequence databases of a folder into the bucket; return their URL."""
    for path in folder.glob("*/*.sqlite"):
        put(endpoint, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes(), public=public)
    return f"s3://{BUCKET}/{prefix}"


def environment(endpoint: str) -> dict[str, str]:
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}


class Answer:
    """What the server answered, for a fault to change."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body
        self.cut: int | None = None
        """Close the connection after so many bytes of the body."""
        self.reset = False
        self.hang_seconds = 0.0


Fault = Callable[[int, str, dict[str, str], Callable[[dict[str, str]], Answer]], Answer]
"""(number of the request for an object, path, its headers, forward) -> the answer."""


class Proxy:
    """Forwards requests to a server.

    Attributes:
        delay_seconds: added to each request.
        fault: changes answers to GET requests for objects; None: no change.
        requests: the path and Range of each GET of an object.
        body_bytes: of their answers.
    """

    def __init__(self, upstream: str) -> None:
        self.delay_seconds = 0.0
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        self.body_bytes = 0
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        host = upstream.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                proxy._handle(self, host)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

            def handle_error(self, *_: Any) -> None:  # clients close connections as they like
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def _handle(self, handler: BaseHTTPRequestHandler, host: str) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in {"connection", "host"}}
        headers["Host"] = host

        def forward(sent: dict[str, str]) -> Answer:
            upstream = http.client.HTTPConnection(host, timeout=60)
            try:
                upstream.request(handler.command, handler.path, body=body or None, headers=sent)
                response = upstream.getresponse()
                dropped = {"connection", "transfer-encoding", "content-length"}
                kept = {k: v for k, v in response.getheaders() if k.lower() not in dropped}
                answer = Answer(response.status, kept, response.read())
                if handler.command == "HEAD":
                    answer.headers["Content-Length"] = response.getheader("Content-Length") or "0"
                return answer
            finally:
                upstream.close()

        is_object = handler.command == "GET" and handler.path.split("?")[0].endswith((".sqlite", ".db", ".index"))
        with self._lock:
            number = len(self.requests)
            if is_object:
                self.requests.append((handler.path, handler.headers.get("Range", "")))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            time.sleep(self.delay_seconds)
            fault = self.fault if is_object else None
            answer = forward(headers) if fault is None else fault(number, handler.path, headers, forward)
        finally:
            with self._lock:
                self.in_flight -= 1
        time.sleep(answer.hang_seconds)
        if answer.reset:
            with suppress(OSError):  # RST instead of FIN
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.connection.close()
            handler.close_connection = True
            return
        if is_object:
            with self._lock:
                self.body_bytes += len(answer.body)
        handler.send_response_only(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        handler.wfile.flush()
        if answer.cut is not None:
            handler.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
