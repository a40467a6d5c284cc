"""The objects below a URL, and byte ranges of them, with retries and with checks of what the server answers.

Input: a URL. Output: sizes, ETags and bytes. Cost: one request per range; one per 1,000 objects of a listing. obstore is
imported on first use. Its threads do not survive a fork: `sharded_eden.storage.fetcher` uses it in a process of its own.

Every range is checked: the status must be 206, `Content-Range` must name the requested bytes of an object of the expected size,
ETag or modification time must be the expected ones, and the body must have the expected length.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from sharded_eden.errors import DatabaseError, MissingDatabase, MissingExtra, UsageError, printable

LISTING_SECONDS = 120.0
"""How long a listing is tried."""
REQUEST_SECONDS = 300.0
"""How long the request of a part of an object is tried."""
LISTED_AT_ONCE = 1000
HEADS_AT_ONCE = 32
ATTEMPT_SHARE = 3
"""An attempt may take this part of the time of a request, so that there is time for two more."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
PIECE_BYTES = 256 << 10
"""A larger range that does not arrive in the time of an attempt is read in pieces of this size."""
MOST_RETRIES = 10_000
"""Retries of one page of a listing: the time ends them, not their number."""
PIECES_SECONDS = 600.0
"""How long larger ranges are then read in pieces at once."""

RETRIED = frozenset({408, 425, 429, *range(500, 600)})
"""Statuses that a later attempt may change."""


class StorageError(DatabaseError):
    """The storage cannot be asked, does not answer, or refuses: nothing is known of the object."""


class Version(NamedTuple):
    """What distinguishes an object from another one under the same name."""

    size_bytes: int
    etag: str
    """Without quotes; empty if the server sends none."""
    modified: str
    """The modification time in ISO format; compared where there is no ETag, or a weak one."""

    @property
    def has_strong_etag(self) -> bool:
        """Whether the ETag is another one for any other bytes. Source: RFC 9110, section 8.8.1."""
        return bool(self.etag) and not self.etag.startswith("W/")

    def is_same_object(self, other: Version) -> bool:
        """Return whether both are the same object, as far as sizes, ETags and modification times tell."""
        is_same = self.size_bytes == other.size_bytes and self.etag == other.etag
        return is_same and (self.has_strong_etag or self.modified == other.modified)


UNKNOWN_TIME = "1970-01-01"
"""What obstore takes for the modification time where a server sends none."""


def check_is_versioned(where: str, version: Version) -> None:
    """Refuse an object whose replacement would not be noticed.

    Raises:
        DatabaseError: the server sends neither an ETag nor a modification time.
    """
    if not version.etag and version.modified.startswith(UNKNOWN_TIME):
        raise DatabaseError(
            f"{printable(where)}: the server sends neither an ETag nor a modification time. A file that is replaced while "
            "it is read would not be detected. Use a server that sends one of them"
        )


class Range(NamedTuple):
    """Bytes of an object to read."""

    name: str
    start: int
    size_bytes: int
    version: Version


class Objects:
    """The objects below a URL.

    Args:
        url: a folder, see `sharded_eden.storage.urls.folder_url`.
        seconds: how long a request is tried, with all attempts.

    Raises:
        MissingExtra: obstore is not installed.
        UsageError: the URL or the settings in the environment are not valid.
    """

    def __init__(self, url: str, seconds: float) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("obstore", "cloud") from error
        self.url, self._seconds, self._obstore = url, seconds, obstore
        self._in_pieces_until = 0.0
        attempt = seconds / ATTEMPT_SHARE
        options: dict[str, Any] = {
            "timeout": timedelta(seconds=attempt),
            "connect_timeout": timedelta(seconds=min(attempt, 10)),
        }
        endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"))
        if (
            url.startswith("http://")
            or (url.startswith("s3://") and any(each.startswith("http://") for each in endpoints))
            or (url.startswith("gs://") and os.environ.get("GOOGLE_ALLOW_HTTP", "").lower() == "true")
        ):
            options["allow_http"] = True
        opened: Any = from_url  # its overloads differ by the storage
        scheme, rest = url.split("://", 1)
        if not scheme.startswith("http"):  # from_url decodes percent signs
            bucket, slash, path = rest.partition("/")
            rest = f"{bucket}{slash}{quote(path)}"

        def store(**retries: Any) -> Any:
            if scheme == "file":
                return opened(f"file://{rest}")
            return opened(f"{scheme}://{rest}", client_options=options, retry_config=retries)

        try:
            self._store = store(max_retries=0)
            # A listing is of many requests: after an error, one is sent again and not all.
            self._listing_store = store(
                max_retries=MOST_RETRIES,
                backoff={
                    "init_backoff": timedelta(seconds=FIRST_PAUSE_SECONDS),
                    "max_backoff": timedelta(
                        seconds=max(2 * FIRST_PAUSE_SECONDS, min(LONGEST_PAUSE_SECONDS, seconds / 10))
                    ),
                },
                retry_timeout=timedelta(seconds=seconds - attempt),
            )
        except Exception as error:  # obstore raises its own errors, ValueError and others
            raise UsageError(f"{printable(url)}: it cannot be opened ({_brief(error)})") from None

    def versions(self, names: Iterable[str]) -> dict[str, Version]:
        """Return the version of each object that exists: by one listing, for http(s) by one HEAD request each.

        Raises:
            DatabaseError: the storage cannot be listed.
        """
        wanted = set(names)
        if self.url.startswith(("http://", "https://")):
            with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
                found = zip(wanted, pool.map(self.head, wanted), strict=True)
                return {name: version for name, version in found if version is not None}
        return {name: version for name, version in self.listed().items() if name in wanted}

    def listed(self) -> dict[str, Version]:
        """Return the version of every object.

        Raises:
            DatabaseError: the storage cannot be listed.
        """

        def all_pages() -> dict[str, Version]:
            pages = self._obstore.list(self._listing_store, chunk_size=LISTED_AT_ONCE)
            return {each["path"]: _version(each) for page in pages for each in page}

        return self._tried(all_pages, "its objects cannot be listed")  # type: ignore[no-any-return]

    def head(self, name: str) -> Version | None:
        """Return the version of an object; None where there is none."""
        try:
            return self._tried(lambda: _version(self._obstore.head(self._store, name)), name)  # type: ignore[no-any-return]
        except MissingDatabase:
            return None

    def read(self, wanted: Range, arrived: Callable[[], object] = lambda: None) -> memoryview:
        """Return bytes of an object.

        Args:
            wanted: the bytes.
            arrived: called after each piece, where the range is read in pieces; its errors end the reading.

        Raises:
            MissingDatabase: there is no such object.
            DatabaseError: it was replaced, the server answers something else than the range, or does not answer in time.
        """
        began = time.monotonic()
        if wanted.size_bytes <= PIECE_BYTES:
            return self._tried_range(wanted, began)
        if began >= self._in_pieces_until:
            try:
                return self._tried_range(wanted, began, is_large=True)
            except _Slow:
                self._in_pieces_until = time.monotonic() + PIECES_SECONDS
        body = memoryview(bytearray(wanted.size_bytes))
        for at in range(0, wanted.size_bytes, PIECE_BYTES):
            piece = wanted._replace(start=wanted.start + at, size_bytes=min(PIECE_BYTES, wanted.size_bytes - at))
            body[at : at + piece.size_bytes] = self._tried_range(piece, began)
            arrived()
            began = time.monotonic()  # what has arrived shows that the server answers
        return body

    def _tried_range(self, wanted: Range, began: float, *, is_large: bool = False) -> memoryview:
        what = f"{wanted.name}: bytes {wanted.start:,} to {wanted.start + wanted.size_bytes - 1:,}"
        return self._tried(lambda: self._attempt(wanted), what, began=began, is_large=is_large)  # type: ignore[no-any-return]

    def _attempt(self, wanted: Range) -> memoryview:
        start, end, version = wanted.start, wanted.start + wanted.size_bytes, wanted.version
        options: dict[str, Any] = {"range": (start, end)}
        if version.has_strong_etag:  # weak ones never match
            options["if_match"] = f'"{version.etag}"'
        answer = self._obstore.get(self._store, wanted.name, options=options)  # type: ignore[arg-type]
        found = _version(answer.meta)
        if not found.is_same_object(version):
            raise _Replaced(_replaced(version, found))
        if tuple(answer.range) != (start, end):
            raise _Final(f"the server sent bytes {answer.range[0]:,} to {answer.range[1] - 1:,}")
        body = memoryview(answer.bytes())
        if len(body) != wanted.size_bytes:
            raise _Transient(f"the server sent {len(body):,} bytes instead of {wanted.size_bytes:,}")
        return body

    def _tried(self, attempt: Any, what: str, *, began: float | None = None, is_large: bool = False) -> Any:
        """Return what `attempt` returns; errors that may pass are retried with growing pauses until the time is over.

        Args:
            attempt: a function without arguments.
            what: it gets, for messages.
            began: when the time began; now unless given.
            is_large: raise `_Slow` if an attempt takes all of its time, and there is time for another.
        """
        began = time.monotonic() if began is None else began
        pause, tries = FIRST_PAUSE_SECONDS, 0
        no_later_than = began + self._seconds * (1 - 1 / ATTEMPT_SHARE)
        where = printable(f"{self.url}: {what}" if " " in what.split(":", maxsplit=1)[0] else f"{self.url}/{what}")
        while True:
            tries += 1
            attempted = time.monotonic()
            try:
                return attempt()
            except FileNotFoundError:
                raise MissingDatabase(f"{where}: no such object, or no such bucket") from None
            except Exception as error:  # obstore raises its own errors, and built-in ones of many kinds
                now = time.monotonic()
                # Without an answer to a connection, the attempt ends much earlier.
                took_all = "kind: Timeout" in str(error) and now - attempted > 0.9 * self._seconds / ATTEMPT_SHARE
                if is_large and took_all and now <= no_later_than:
                    raise _Slow from None
                if _is_final(error) or now + pause > no_later_than:
                    times = f" ({tries} attempts in {time.monotonic() - began:.0f} s)" if tries > 1 else ""
                    kind = DatabaseError if _is_replaced(error) else StorageError
                    raise kind(f"{where}: {_brief(error)}{times}") from None
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class _Final(Exception):
    """An answer that another attempt would not change."""


class _Replaced(_Final):
    """The answer is of another object."""


class _Transient(Exception):
    """An answer that another attempt may change."""


class _Slow(Exception):
    """A large range has not arrived in the time of an attempt."""


_FINAL = frozenset({
    "InvalidPathError", "NotSupportedError", "PermissionDeniedError", "PreconditionError", "UnauthenticatedError",
    "UnknownConfigurationKeyError",
})  # fmt: skip
"""Errors of obstore that another attempt would not change."""


def _version(meta: Any) -> Version:
    etag = (meta.get("e_tag") or "").replace('"', "")
    return Version(meta["size"], etag, meta["last_modified"].isoformat())


def _replaced(was: Version, found: Version) -> str:
    return (
        f"the object was replaced. It had {was.size_bytes:,} bytes and {_named(was)}; it has {found.size_bytes:,} bytes and "
        f"{_named(found)}"
    )


def _named(version: Version) -> str:
    etag = f"the ETag {printable(version.etag, 80)}" if version.etag else ""
    return (
        etag if version.has_strong_etag else f"{etag}{' and ' if etag else ''}the modification time {version.modified}"
    )


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found.group(1)) if found else None


def _is_final(error: Exception) -> bool:
    if isinstance(error, (_Final, ValueError)):  # ValueError: obstore refuses the name
        return True
    if isinstance(error, _Transient):
        return False
    if type(error).__name__ in _FINAL or _OTHER_REGION in str(error):
        return True
    status = _status(error)
    return status not in RETRIED if status else _is_no_range(error)


def _is_replaced(error: Exception) -> bool:
    return isinstance(error, _Replaced) or "Precondition" in type(error).__name__ or _status(error) == 412


def _is_no_range(error: Exception) -> bool:
    """Return whether the server does not serve the range: obstore then raises a general error."""
    return any(words in str(error) for words in ("non-partial response", "equested range", "Requested "))


_OTHER_REGION = "redirect without LOCATION"
"""What obstore says where S3 answers that the bucket is elsewhere."""

_REASONS = {
    401: "the server does not accept the credentials",
    403: "access is denied",
    412: "the object was replaced: it has another ETag than in the index",
    416: "the object ends before these bytes",
}


def _brief(error: Exception) -> str:
    """Return an error of obstore in a few words: its text holds request headers, and answers that name access keys."""
    if isinstance(error, (_Final, _Transient)):
        return str(error)
    text = str(error)
    status = _status(error)
    if status:
        code = re.search(r"<Code>(\w{1,60})</Code>", text)
        reason = _REASONS.get(status, "the server answers an error")
        return f"{reason} (status {status}{f', {code.group(1)}' if code else ''})"
    if _OTHER_REGION in text:
        return "the bucket is in another region. Set AWS_REGION to it"
    if "non-partial response" in text:
        return "the server answers with the whole object: it does not support ranges"
    if kind := re.search(r"kind: (\w{1,40}),", text):
        causes = {"Timeout": "no answer in time", "Connect": "no connection", "Decode": "the answer is cut short"}
        return causes.get(kind.group(1), f"the request failed ({kind.group(1)})")
    if "Precondition" in type(error).__name__:
        return _REASONS[412]
    first = text.split("\n", 1)[0]
    return printable(re.sub(r"\S+://\S+|\?\S+", "...", first), 200) or type(error).__name__
