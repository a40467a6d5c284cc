"""Metadata, CI files and documentation agree with one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")


if not (ROOT := Path(__file__).resolve().parent.parent).joinpath("docs").is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)

PYPROJECT = (ROOT / "pyproject.toml").read_text()
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def pins(path):
    return dict(
        line.strip().split("==") for line in (ROOT / path).read_text().splitlines() if re.match(r"\w\S*==", line)
    )


def test_oldest_dependencies_are_the_lower_bounds():
    declared = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)"', PYPROJECT[: PYPROJECT.index("dev = [")]))
    declared = {name: bound for name, bound in declared.items() if name not in {"hatchling", "megatron-bridge", "ray"}}
    oldest = pins(".github/oldest.txt")
    assert oldest.keys() - declared.keys() == {"click"}
    for name, bound in declared.items():
        assert re.fullmatch(re.escape(bound) + r"(\.0)*", oldest[name]), name


def test_pre_commit_uses_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert config["repos"][0]["rev"] == "v" + pins("constraints.txt")["ruff"]


def test_workflow_covers_the_supported_versions():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"]
    for version in re.findall(r"Python :: (3\.\d+)", PYPROJECT):
        assert f'"{version}"' in workflow, version
    makefile = (ROOT / "Makefile").read_text()
    for job in jobs.values():
        for step in job["steps"]:
            for target in re.findall(r"^make (.*)$", step.get("run", "")):
                assert all(f"\n{name}:" in makefile for name in target.split())


def test_version_is_in_one_place():
    assert 'dynamic = ["version"]' in PYPROJECT
    assert "\nversion = " not in PYPROJECT
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem[:4])
def test_decision_has_date_and_status_and_is_listed(path):
    text = path.read_text()
    assert re.match(
        rf"# {path.stem[:4]} .+\n\n- Date: 20\d\d-\d\d-\d\d\n- Status: (accepted|replaced by|proposed)", text
    )
    assert f"({path.name})" in (path.parent / "README.md").read_text()


def test_every_experiment_in_the_log_has_question_and_verdict():
    entries = re.split(r"^## ", (ROOT / "docs/log.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    for entry in entries:
        title = entry.splitlines()[0]
        assert re.match(r"20\d\d-\d\d-\d\d ", title), title
        assert "\n**Question.** " in entry, title
        assert "\n**Verdict.** " in entry, title
        assert "\n|" in entry, title


def test_changelog_has_the_usual_headings():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\[.+?\])", text, flags=re.MULTILINE)[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds


def test_files_named_in_the_documentation_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\s((?:tests\w*|demo)/[\w/.]*\w)", makefile):
        assert (ROOT / name).exists(), f"Makefile: {name}"
    for page in PAGES:
        if page.name != "log.md":
            for name in re.findall(r"`((?:src|tests|benchmarks|examples|docs|demo)/[\w/.-]+)`", page.read_text()):
                assert (ROOT / name).exists(), f"{page.name}: {name}"
            for name in re.findall(r"`((?:build|checks|cli|format|load|train|windows)/[\w/]+\.py)`", page.read_text()):
                assert (ROOT / "src/sharded_eden" / name).exists(), f"{page.name}: {name}"
