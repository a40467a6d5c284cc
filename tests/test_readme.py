"""README and docs: commands and code run as printed, the usage example is the specification's, the file tree is complete."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sharded_eden import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


@pytest.mark.parametrize("page", ["README.md", "index.md"])
def test_commands_and_code_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose = random.Random(0)
    (tmp_path / "genomes").mkdir()
    for sample in range(80):  # with the default shares of 5%, every split gets samples
        contig = "".join(choose.choices("ACGT", k=9000))
        (tmp_path / "genomes" / f"sample{sample}.fa").write_text(f">contig1\n{contig}\n")
    lines = re.findall(r"^\$ sharded-eden (.*)$", PAGES[page], flags=re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["build", "split", "precompute", "verify"]
    for line in lines:
        assert cli.main(shlex.split(line)) == 0, line
    assert (tmp_path / "windows" / "train_windows.db").is_file()
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
    code = next(block for block in blocks if "from sharded_eden import ShardedEdenDataset" in block)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(" ", 1)[0] for line in done.stdout.splitlines()] == ["0", "1", "2"]
    assert "torch.Size([4, 8192])" in done.stdout


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


def test_usage_example_equals_the_specification():
    """Compared with the specification itself where that file exists beside the project."""
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


def test_links_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
