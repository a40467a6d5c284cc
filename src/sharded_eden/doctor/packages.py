"""Which packages are installed, what each needs, and where a module would be loaded from. Only needed packages are imported.

What is needed comes from the metadata of this package, which pip writes from `pyproject.toml`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from pathlib import Path

import sharded_eden
from sharded_eden.errors import MissingExtra

NAME = "sharded-eden"
HOME = Path(sharded_eden.__file__).resolve().parent
"""The folder of this package."""

SPECIFIED = "bionemo.evo2.run.sharded_eden_dataloader"
"""The import path of the specification, which this package provides."""

FRAMEWORKS = (
    "bionemo.core",
    "bionemo.llm",
    "bionemo.recipeutils",
    "megatron.core",
    "megatron.bridge",
    "nemo",
    "ray",
)
"""Modules that may be used together with this package."""


@dataclass(frozen=True)
class Package:
    """A package that this one needs or can use."""

    name: str
    """The name of the distribution."""
    extra: str
    """The extra that installs it; empty for what is always needed."""
    at_least: str
    """The lowest version that works; empty where any does."""
    version: str | None
    """The installed version, None where it is missing."""

    @property
    def problem(self) -> str:
        """What is wrong with it and the command that installs it; empty where it can be used."""
        if self.version is None:
            return (
                str(MissingExtra(self.name, self.extra)) if self.extra else f"{self.name} is not installed. {INSTALL}"
            )
        if release(self.version) < release(self.at_least):
            what = f"{self.name} {self.version} is older than {self.at_least}. "
            return f"{what}{install(self.extra)}"
        return ""


def install(extra: str = "") -> str:
    """Return the sentence that names the command which installs an extra, or this package itself."""
    return str(MissingExtra("", extra)).partition("installed. ")[2] if extra else INSTALL


INSTALL = install("x").replace("'.[x]'", ".")
"""The sentence that names the command which installs this package and what it needs."""


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version for comparisons: `release("2.13.0+cpu")` is `(2, 13)`; `()` where there are none."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(each) for each in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages() -> list[Package]:
    """Return the packages that this one needs, then those of its extras; none where its metadata are not installed."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, condition = line.partition(";")
        parts = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?", requirement.strip())
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        name = extra[1] if extra else ""
        if parts is not None and name != "dev" and _is_for_this_python(condition):
            found.append(Package(parts[1], name, parts[2] or "", version_of(parts[1])))
    return sorted(found, key=lambda each: bool(each.extra))


def _is_for_this_python(condition: str) -> bool:
    """Return whether a condition of a requirement, such as `python_version >= "3.11"`, allows this Python."""
    found = re.search(r"python_version (>=|<) ['\"]([\d.]+)['\"]", condition)
    if found is None:
        return True
    return (sys.version_info[:2] >= release(found[2])) == (found[1] == ">=")


def import_problem(name: str) -> str:
    """Import a needed package and return why that fails; empty where it works."""
    try:
        import_module(name)
    except Exception as error:  # a damaged package may raise anything
        return f"{name} cannot be imported: {type(error).__name__}: {error}. {INSTALL}"
    return ""


def location(module: str) -> Path | None:
    """Return the file or folder that a module would be loaded from, None where there is none. Nothing is imported."""
    name, *inner = module.split(".")
    spec = next((found for each in sys.meta_path if (found := each.find_spec(name, None)) is not None), None)
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its last part alone: for a full name, Python looks for the imported parents.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    if spec is None:
        return None
    if spec.has_location and spec.origin is not None:
        return Path(spec.origin)
    folders = list(spec.submodule_search_locations or [])
    return Path(folders[0]) if folders else None


def specified_path() -> tuple[Path | None, bool]:
    """Return where the specification's import path would be loaded from, and whether that is this package."""
    path = location(SPECIFIED)
    return path, path is not None and path.resolve() == HOME.parent.joinpath(*SPECIFIED.split(".")).with_suffix(".py")
