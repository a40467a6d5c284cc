"""`python -m benchmarks.range_server FOLDER DELAY_SECONDS`: serves byte ranges of files over HTTP, each after a delay.

Prints its port. `GET /-/counts` returns {requests, bytes, in_flight}: of ranges since the last call, and how many were
served at the same time. One event loop: requests that wait cost nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import unquote


class Server:
    """Serves the files of a folder."""

    def __init__(self, folder: Path, delay_seconds: float) -> None:
        self._folder, self._delay_seconds = folder, delay_seconds
        self._files: dict[str, tuple[int, int, str]] = {}
        self._clear()

    def _clear(self) -> None:
        self._requests = self._bytes = self._now = self._most = 0

    def _file(self, path: str) -> tuple[int, int, str]:
        """Return the descriptor, size and ETag of a file."""
        if path not in self._files:
            descriptor = os.open(self._folder / unquote(path).lstrip("/"), os.O_RDONLY)
            found = os.fstat(descriptor)
            self._files[path] = descriptor, found.st_size, f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
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
        method, path, _ = first.split(" ")
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
        try:
            descriptor, size_bytes, etag = self._file(path)
        except OSError:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        start, end, status = 0, size_bytes, "200 OK"
        if "range" in headers:
            begin, last = headers["range"].removeprefix("bytes=").split("-")
            start, end, status = int(begin), min(int(last) + 1, size_bytes), "206 Partial Content"
        answer = (
            f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nETag: {etag}\r\n"
            "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        )
        if status.startswith("206"):
            answer += f"Content-Range: bytes {start}-{end - 1}/{size_bytes}\r\n"
            self._requests += 1
            self._bytes += end - start
        body = b"" if method == "HEAD" else os.pread(descriptor, end - start, start)
        writer.write(answer.encode() + b"\r\n" + body)
        await writer.drain()


async def main(folder: Path, delay_seconds: float) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(Server(folder, delay_seconds).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
