"""The manual: its blocks run and print what is shown, generated pages are up to date, the API has every public name."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import printed
import pytest
import torch
from cli_page import page
from dark_figures import dark

import sharded_eden
from sharded_eden.train.mixture_file import mixture_config

DOCS = Path(__file__).resolve().parent.parent / "docs"
if not DOCS.is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)

CONTINUE = (
    "batch", "tokenizers", "change-during-training", "slow-loading", "wrong-data", "glossary", "packing", "objectives",
    "window-lengths", "inspect", "recipes",
)  # fmt: skip
"""The pages whose blocks run in the folder that the tutorial leaves."""


def test_the_page_of_commands_is_what_the_commands_say():
    if f"typer=={version('typer')}\n" not in (DOCS.parent / "constraints.txt").read_text():
        pytest.skip("another Typer writes another page")
    assert (DOCS / "cli.md").read_text() == page(), "make cli-page"


def test_every_public_name_is_on_the_page_of_the_api():
    text = (DOCS / "api.md").read_text()
    named = set(re.findall(r"^::: sharded_eden\.(\w+)$|^`sharded_eden\.(\w+)`", text, flags=re.MULTILINE))
    assert {a or b for a, b in named} == set(sharded_eden.__all__) - {"__version__"}


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory):
    """The folder in which the tutorial has run."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "sharded-eden").symlink_to(DOCS.parent)
    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        printed.run(DOCS / "tutorial.md", folder)
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUE)
def test_pages_that_continue_the_tutorial(name, after_tutorial, tmp_path, monkeypatch):
    for folder in ("sequence_db_dir", "splits", "windows"):
        shutil.copytree(after_tutorial / folder, tmp_path / folder, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    printed.run(DOCS / f"{name}.md", tmp_path)


def test_the_mixture_of_recipes_is_valid(tmp_path):
    (block,) = [block.text for block in printed.blocks_of(DOCS / "recipes.md") if block.language == "toml"]
    (tmp_path / "pretrain.toml").write_text(block)
    mixture = mixture_config(tmp_path / "pretrain.toml")
    assert len(mixture.sources) == 9
    weights = "0.18 0.24 0.03 0.02 0.09 0.09 0.35 0.0003 0.005"  # those of the file that the page names
    assert [float(weight) for weight in mixture.weights.values()] == [float(weight) for weight in weights.split()]


def test_output_that_differs_is_found():
    printed.compare("loss 1.37\nmany words\n", "loss 1.36\n...\n", "")
    for shown in ("loss 1.5\n...\n", "loss 1.36\n", "many ...\n"):
        with pytest.raises(AssertionError, match="the page shows"):
            printed.compare("loss 1.37\nmany words\n", shown, "")


def test_the_dark_figure_is_the_light_one_in_other_colours():
    assert (DOCS / "flow-dark.svg").read_text() == dark((DOCS / "flow.svg").read_text()), (
        "tests/helpers/dark_figures.py"
    )


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page):
    if page.stem in {*CONTINUE, "tutorial", "cli"}:  # cli.md holds no command to run: it lists what can follow each
        return
    for block in printed.blocks_of(page):
        if block.language in {"console", "python", "py", "bash"}:
            assert block.reason is not None, f"{page.name}: mark this block as not run, or name its test:\n{block.text}"
            if block.reason.startswith("run by: "):
                assert page.name in (DOCS.parent / block.reason.removeprefix("run by: ")).read_text()
