"""The documentation site in headless Chromium: every page at the width of a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser, open_page

import sharded_eden

ROOT = Path(sharded_eden.__file__).resolve().parents[2]

LOADED = "document.readyState === 'complete'"
TOO_WIDE = """[...document.querySelectorAll('.md-content img, .md-content svg, .md-content picture')]
.filter((each) => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
.map((each) => each.outerHTML.slice(0, 100))"""
NOT_LOADED = """[...document.querySelectorAll('.md-content img')]
.filter((each) => each.getBoundingClientRect().width && !each.naturalWidth).map((each) => each.src)"""


@pytest.mark.slow
def test_no_page_overflows_and_all_pictures_are_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--no-directory-urls"]
    subprocess.run([*command, "--site-dir", str(tmp_path / "site")], cwd=ROOT, check=True)
    pages = [page for page in sorted((tmp_path / "site").rglob("*.html")) if page.name != "404.html"]
    assert len(pages) > 30
    with browser() as started:
        page = open_page(started, pages[0], width=390, ready=LOADED).page
        for path in pages:
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
            assert page.evaluate(TOO_WIDE) == [], path.name
            assert page.evaluate(NOT_LOADED) == [], path.name
