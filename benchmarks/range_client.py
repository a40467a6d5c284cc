"""`python -m benchmarks.range_client URL SIZE_BYTES IN_FLIGHT SECONDS`: requests random ranges of a file, and no more.

Prints ranges per second: what the server, this machine and a bare client reach together.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from urllib.parse import urlsplit

RANGE_BYTES = 8192


async def _connection(host: str, port: int, path: str, size_bytes: int, until: float) -> int:
    """Send one request after the other; return how many were answered."""
    reader, writer = await asyncio.open_connection(host, port)
    count = 0
    while time.perf_counter() < until:
        start = random.randrange(max(1, size_bytes - RANGE_BYTES))
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{start + RANGE_BYTES - 1}\r\n\r\n"
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
        await reader.readexactly(int(length.split()[1]))
        count += 1
    writer.close()
    return count


async def main(url: str, size_bytes: int, in_flight: int, seconds: float) -> None:
    """Print the rate."""
    parts = urlsplit(url)
    began = time.perf_counter()
    connections = (
        _connection(parts.hostname or "", parts.port or 80, parts.path, size_bytes, began + seconds)
        for _ in range(in_flight)
    )
    count = sum(await asyncio.gather(*connections))
    print(count / (time.perf_counter() - began))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
