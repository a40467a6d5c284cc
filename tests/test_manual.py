"""The manual: pages that are generated are up to date, and every public name is on the page of the API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_page import page

import sharded_eden

DOCS = Path(__file__).resolve().parent.parent / "docs"
if not DOCS.is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)


def test_the_page_of_commands_is_what_the_commands_say():
    assert (DOCS / "cli.md").read_text() == page(), "make cli-page"


def test_every_public_name_is_on_the_page_of_the_api():
    text = (DOCS / "api.md").read_text()
    named = set(re.findall(r"^::: sharded_eden\.(\w+)$|^`sharded_eden\.(\w+)`", text, flags=re.MULTILINE))
    assert {a or b for a, b in named} == set(sharded_eden.__all__) - {"__version__"}
