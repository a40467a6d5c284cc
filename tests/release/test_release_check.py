"""The checks of a release find what is missing. `make release-check` itself installs packages, so `.ci/run` runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import release_check

import sharded_eden

CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
READY = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-11-27\n\n- new\n\n## [0.1.0] - 2026-11-23\n"


@pytest.mark.skipif(not CHANGELOG.is_file(), reason="only in a checkout")
def test_the_changelog_has_this_version() -> None:
    first = re.findall(r"^## \[(\d.*?)\] - ", CHANGELOG.read_text(), re.MULTILINE)[0]
    assert first == sharded_eden.__version__ == release_check.VERSION


def test_a_version_that_is_ready_has_no_problems() -> None:
    assert release_check.problems("0.2.0", READY, "v0.1.0\n", "") == []


@pytest.mark.parametrize(
    ("version", "changelog", "tags", "changed", "problem"),
    [
        ("0.3.0", READY, "", "", r"has no section \[0.3.0\]"),
        ("0.2.0", READY.replace("[Unreleased]\n", "[Unreleased]\n\n- more\n"), "", "", r"entries under \[Unreleased\]"),
        ("0.2.0", READY, "v0.1.0\nv0.2.0\n", "", "tag v0.2.0 exists"),
        ("0.2.0", READY, "", " M README.md\n", "changes without a commit"),
    ],
)
def test_problems_are_found(version: str, changelog: str, tags: str, changed: str, problem: str) -> None:
    (found,) = release_check.problems(version, changelog, tags, changed)
    assert re.search(problem, found)
