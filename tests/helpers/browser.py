"""Headless Chromium: opens a page and records all that it logs and requests. Installs the browser where it is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return the path of Chromium; None for the one that Playwright has installed itself."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], check=False, capture_output=True)
        found = shutil.which("chromium")
    if found is None:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True, capture_output=True)
    return found


@dataclass
class Opened:
    """A page that was loaded."""

    page: Any
    messages: list[str] = field(default_factory=list)
    """What the console and uncaught errors said."""
    requests: list[str] = field(default_factory=list)
    """Every request but that for the page itself."""


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


def open_page(
    started: Any,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    ready: str = "document.documentElement.dataset.drawn === 'yes'",
) -> Opened:
    """Open a local file, and wait until its figures are drawn, or until `ready` is true. Other machines are not asked."""
    page = started.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.route(re.compile("^https?:"), lambda route: route.abort())
    opened = Opened(page)
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.absolute().as_uri())
    page.wait_for_function(ready)
    page.wait_for_timeout(300)
    opened.requests = [url for url in opened.requests if url != path.absolute().as_uri()]
    return opened
