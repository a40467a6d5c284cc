"""`python -m benchmarks.range_server FOLDER DELAY_SECONDS [BYTES_PER_SECOND]`: serves files over HTTP and as S3 does.

Each request is answered after a delay; all answers share a link of so many bytes per second. Prints its port. `/FOLDER/...` are
files; S3 clients take the first part of a path for the bucket, and `GET /BUCKET?list-type=2` lists one. Signatures are not
checked. `GET /-/counts` returns {requests, bytes, in_flight}: since the last call, and how many were served at the same time.
One event loop: requests that wait cost nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

MODIFIED, MODIFIED_ISO = "Thu, 01 Jan 2026 00:00:00 GMT", "2026-01-01T00:00:00.000Z"


PART_BYTES = 1 << 16
"""Answers take turns on the link after so many bytes."""


class Server:
    """Serves the files of a folder."""

    def __init__(self, folder: Path, delay_seconds: float, bytes_per_second: float) -> None:
        self._folder, self._delay_seconds, self._bytes_per_second = folder, delay_seconds, bytes_per_second
        self._link_is_free_at = 0.0
        self._files: dict[str, tuple[int, int, str]] = {}
        self._clear()

    def _clear(self) -> None:
        self._requests = self._bytes = self._now = self._most = 0

    def _file(self, path: str) -> tuple[int, int, str]:
        """Return the descriptor, size and ETag of a file."""
        if path not in self._files:
            descriptor = os.open(self._folder / unquote(path).lstrip("/"), os.O_RDONLY)
            found = os.fstat(descriptor)
            self._files[path] = descriptor, found.st_size, _etag(found)
        return self._files[path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode("latin-1"), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        path, _, query = target.partition("?")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        if path == "/-/counts":
            body = json.dumps({"requests": self._requests, "bytes": self._bytes, "in_flight": self._most}).encode()
            self._clear()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        self._now += 1
        self._most = max(self._most, self._now)
        await asyncio.sleep(self._delay_seconds)
        self._now -= 1
        self._requests += 1
        if "list-type=2" in query:
            body = self._listing(unquote(path).strip("/"), parse_qs(query).get("prefix", [""])[0])
            self._bytes += len(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        try:
            descriptor, size_bytes, etag = self._file(path)
        except OSError:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        start, end, status = 0, size_bytes, "200 OK"
        if "range" in headers:
            begin, last = headers["range"].removeprefix("bytes=").split("-")
            start, status = int(begin), "206 Partial Content"
            end = min(int(last) + 1, size_bytes) if last else size_bytes
        answer = f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nETag: {etag}\r\nLast-Modified: {MODIFIED}\r\n"
        if status.startswith("206"):
            answer += f"Content-Range: bytes {start}-{end - 1}/{size_bytes}\r\n"
        body = b"" if method == "HEAD" else os.pread(descriptor, end - start, start)
        self._bytes += len(body)
        await self._send(answer.encode() + b"\r\n" + body, writer)

    async def _send(self, answer: bytes, writer: asyncio.StreamWriter) -> None:
        """Send an answer: at once, or in parts where the link is limited."""
        if math.isinf(self._bytes_per_second):
            writer.write(answer)
            await writer.drain()
            return
        for at in range(0, len(answer), PART_BYTES):
            part = answer[at : at + PART_BYTES]
            self._link_is_free_at = max(self._link_is_free_at, time.monotonic()) + len(part) / self._bytes_per_second
            await asyncio.sleep(self._link_is_free_at - time.monotonic())
            writer.write(part)
            await writer.drain()

    def _listing(self, bucket: str, prefix: str) -> bytes:
        """Return all objects of a bucket below a prefix, in one page."""
        root = self._folder / bucket
        entries = []
        for path in sorted(each for each in root.rglob("*") if each.is_file()):
            key = path.relative_to(root).as_posix()
            if key.startswith(prefix):
                found = path.stat()
                entries.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED_ISO}</LastModified>"
                    f"<ETag>{escape(_etag(found))}</ETag><Size>{found.st_size}</Size></Contents>"
                )
        return (
            f"<ListBucketResult><Name>{escape(bucket)}</Name><IsTruncated>false</IsTruncated>"
            f"<KeyCount>{len(entries)}</KeyCount>{''.join(entries)}</ListBucketResult>"
        ).encode()


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'


async def main(folder: Path, delay_seconds: float, bytes_per_second: float = math.inf) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(
        Server(folder, delay_seconds, bytes_per_second).serve, "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(float, sys.argv[2:])))
