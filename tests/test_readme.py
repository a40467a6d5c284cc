"""The README is true: its commands run, its example is the specification's, its tree is the tree."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

from sharded_eden import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


@pytest.mark.parametrize("page", ["README.md", "index.md"])
def test_its_commands_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose = random.Random(0)
    (tmp_path / "genomes").mkdir()
    for sample in range(80):  # enough samples that 5% of them are some
        contig = "".join(choose.choices("ACGT", k=9000))
        (tmp_path / "genomes" / f"sample{sample}.fa").write_text(f">contig1\n{contig}\n")
    lines = re.findall(r"^\$ sharded-eden (.*)$", PAGES[page], flags=re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["build", "split", "precompute"]
    for line in lines:
        assert cli.main(shlex.split(line)) == 0, line
    assert (tmp_path / "train_windows.db").is_file()


def test_the_file_tree_of_the_architecture_page_is_complete():
    page = PAGES["architecture.md"]
    tree = page[page.index("src/sharded_eden/\n") :]
    tree = tree[: tree.index("```")]
    folders, named = [], set()
    for line in tree.splitlines()[1:]:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        folders = folders[:depth]
        if name.endswith("/"):
            folders = [*folders, name.rstrip("/")]
        elif name.endswith(".py"):
            named.add("/".join([*folders, name]))
    source = ROOT / "src" / "sharded_eden"
    files = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if path.name != "__init__.py" or path.parent == source
    }
    assert named == files


def test_its_example_is_the_specifications():
    """Compared with the specification itself where that lies beside the project."""
    example = README[README.index("# Create the data module") :]
    example = example[: example.index("```")].strip()
    assert "rc_aug=True,\n    use_control_tags=True,\n)" in example
    specification = ROOT.parent / "shared" / "SPEC.txt"
    if specification.is_file():
        assert example in specification.read_text()


def test_make_targets_are_documented_and_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", "\n".join(PAGES.values())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_no_link_is_dead():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
