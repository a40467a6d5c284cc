"""The questions of docs/questions.md are answered on other pages. `python tests/test_questions.py` prints page and line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)

ANSWERS = tomllib.loads((ROOT / "tests" / "data" / "questions.toml").read_text())
PAGE = (DOCS / "questions.md").read_text()


def line_of(page: str, passage: str) -> int:
    """Return the 1-based line where a passage begins; line breaks in it count as spaces."""
    text = (DOCS / page).read_text()
    found = list(re.finditer(r"\s+".join(map(re.escape, passage.split())), text))
    assert found, f"{page} does not say: {passage}"
    return text.count("\n", 0, found[0].start()) + 1


def anchors_of(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_there_are_20_questions_and_each_has_an_answer():
    questions = re.findall(r"^\*\*(.*)\*\*$", PAGE, flags=re.MULTILINE)
    assert len(questions) == 20
    assert questions == list(ANSWERS)


@pytest.mark.parametrize("question", ANSWERS)
def test_the_page_that_is_named_answers(question):
    page, passage = ANSWERS[question]
    assert line_of(page, passage)
    entry = PAGE[PAGE.index(f"**{question}**") :].split("\n\n")[0]
    target, _, anchor = re.search(r"\[More\]\(([^)]+)\)", entry)[1].partition("#")
    assert target == page
    assert not anchor or anchor in anchors_of(page)


if __name__ == "__main__":
    for question, (page, passage) in ANSWERS.items():
        sys.stdout.write(f"{question:75s} docs/{page}:{line_of(page, passage)}\n")
