"""`doctor`: examines packages, machine and a folder, and writes the result as a table or as JSON.

Only needed packages are imported (NumPy, Polars, apsw and those of the command line), so `python -m sharded_eden.doctor` also
works where one of them is broken.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sharded_eden import __version__
from sharded_eden.doctor.folder import examine_folder, reading_mode
from sharded_eden.doctor.machine import file_descriptors, gpus, sqlite_features
from sharded_eden.doctor.packages import (
    FRAMEWORKS,
    HOME,
    INSTALL,
    SPECIFIED,
    Package,
    import_problem,
    location,
    packages,
    specified_path,
    version_of,
)
from sharded_eden.errors import printable
from sharded_eden.jobs import usable_processors

FEW_DATABASES = 64
"""With fewer databases open at a time, a thread opens files again and again."""


@dataclass(frozen=True)
class Report:
    """What `doctor` found. The names of the fields are the keys of `--json`."""

    versions: dict[str, str | None]
    """Python, this package, what it needs and what it can use; None for what is missing."""
    sqlite: dict[str, Any] | None
    """`version`, `longest_value_bytes` and `features`: {feature: why it fails, or empty}. None where apsw is broken."""
    file_descriptors: dict[str, int | None]
    """`soft` and `hard` limit, None for no limit; `databases_a_thread`: how many databases a thread keeps open."""
    processors: dict[str, int | None]
    """`usable` by this process, and of the `machine`."""
    gpus: list[str]
    """The models that the drivers list."""
    found: dict[str, str | None]
    """{module: where it would be loaded from, or None}."""
    specified_path: dict[str, Any]
    """What has the import path of the specification (`SPECIFIED`): `path`, None where nothing has, and `is_ours`."""
    folder: dict[str, Any] | None
    """The given folder; None where there is none."""
    broken: list[str]
    """What must be fixed before anything works, with the command that does."""
    missing: list[str]
    """What is not installed or too old, with the command that installs it."""
    notes: list[str]
    """What works, but not as it could."""

    @property
    def is_ok(self) -> bool:
        """Whether nothing needed is broken."""
        return not self.broken

    def json(self) -> str:
        """Return the report as JSON: the fields of this class and `ok`."""
        return json.dumps({"ok": self.is_ok, **asdict(self)}, indent=2) + "\n"

    def text(self) -> str:
        """Return the report as a table, and what is broken or missing."""
        rows = list(self._rows())
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {printable(value)}".rstrip() for name, value in rows]
        for title, entries in (("broken", self.broken), ("not installed", self.missing), ("notes", self.notes)):
            lines += ["", f"{title}:", *(f"  {printable(each)}" for each in entries)] if entries else []
        lines += ["", "what is needed works" if self.is_ok else f"{len(self.broken)} broken"]
        return "\n".join(lines) + "\n"

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield from ((name, version or "-") for name, version in self.versions.items())
        if self.sqlite is not None:
            failing = [name for name, problem in self.sqlite["features"].items() if problem]
            works = [name for name in self.sqlite["features"] if name not in failing]
            without = f"; without {', '.join(failing)}" if failing else ""
            longest = f"contigs up to {self.sqlite['longest_value_bytes']:,} bases"
            yield "SQLite", f"{self.sqlite['version']} with {', '.join(works)}{without}; {longest}"
        limits = self.file_descriptors
        soft, hard = ("no limit" if limits[name] is None else f"{limits[name]:,}" for name in ("soft", "hard"))
        kept = limits["databases_a_thread"]
        means = "" if kept is None else f"; a thread keeps up to {kept:,} databases open"
        yield "file descriptors", f"soft {soft}, hard {hard}{means}"
        yield "processors", f"{self.processors['usable']} usable of {self.processors['machine'] or 'unknown'}"
        yield "GPUs", ", ".join(self.gpus) or "-"
        yield from ((f"module {name}", path or "-") for name, path in self.found.items())
        where = self.specified_path
        whose = "this package" if where["is_ours"] else "another package" if where["path"] else "nothing"
        yield "bionemo.evo2", f"{whose} {where['path'] or ''}"
        if (folder := self.folder) is not None:
            yield "folder", folder["path"]
            if folder["file_system"] is not None:
                yield "file system", f"{folder['file_system']} ({folder['mounted_from']} at {folder['mount_point']})"
            yield "free", f"{folder['free_bytes'] / 1e9:,.1f} GB"
            yield (
                "databases",
                f"{folder['sequence_databases']:,} of sequences, {folder['window_databases']:,} of windows",
            )
            yield from (("reading", line) for line in reading_mode(folder))


def examine(folder: str | os.PathLike[str] | None = None) -> Report:
    """Examine this installation and this machine.

    Example: `examine("windows").is_ok`.

    Args:
        folder: a folder of databases, of folders with databases, or one database; None examines none.

    Raises:
        MissingDatabase: there is no such folder.
        UsageError: it is a URL.
    """
    listed = packages()
    needed = [each for each in listed if not each.extra]
    broken = [problem for each in needed if (problem := each.problem or import_problem(each.name))]
    notes = [] if listed else [f"the metadata of this package are not installed: what it needs is not known. {INSTALL}"]
    if not listed:
        needed = [Package(name, "", "", version_of(name)) for name in ("apsw", "numpy", "polars")]
        broken = [problem for each in needed if (problem := import_problem(each.name))]
    sqlite, limits = None, {**file_descriptors(), "databases_a_thread": None}
    if not broken:
        from sharded_eden.load.read.connections import connection_budget

        sqlite = sqlite_features()
        broken += [f"SQLite lacks {name}: {why}. {INSTALL}" for name, why in sqlite["features"].items() if why]
        limits["databases_a_thread"] = connection_budget()
    examined = None if folder is None or broken else examine_folder(Path(folder))
    versions = {"python": platform.python_version(), "sharded-eden": __version__}
    report = Report(
        versions={**versions, **{each.name: each.version for each in listed or needed}, **_other_versions()},
        sqlite=sqlite,
        file_descriptors=limits,
        processors={"usable": usable_processors(), "machine": os.cpu_count()},
        gpus=gpus(),
        found={name: None if (path := location(name)) is None else str(path) for name in FRAMEWORKS},
        specified_path=dict(zip(("path", "is_ours"), _specified(), strict=True)),
        folder=examined,
        broken=broken,
        missing=[each.problem for each in listed if each.extra and each.problem],
        notes=notes,
    )
    notes += _notes(report)
    return report


def _specified() -> tuple[str | None, bool]:
    path, is_ours = specified_path()
    return None if path is None else str(path), is_ours


def _other_versions() -> dict[str, str | None]:
    """Return the versions of frameworks that no extra installs."""
    return {name: version_of(name) for name in ("nemo-toolkit", "bionemo-core", "bionemo-evo2", "bionemo-recipeutils")}


def _notes(report: Report) -> Iterator[str]:
    """Yield what works, but not as it could."""
    if (installed := version_of("sharded-eden")) not in {None, __version__}:
        yield f"sharded-eden {__version__} is imported from {HOME}, pip lists {installed}. {INSTALL}"
    if not report.specified_path["is_ours"]:
        yield f"{SPECIFIED} is not that of this package: import from sharded_eden"
    torch = report.versions.get("torch")
    if report.gpus and torch is not None and torch.endswith("+cpu"):
        yield f"torch {torch} was built for processors only and does not use the GPUs"
    kept = report.file_descriptors["databases_a_thread"]
    if kept is not None:
        samples = 0 if report.folder is None else report.folder["sequence_databases"]
        if kept < FEW_DATABASES or kept < samples:
            has = f"the folder has {samples:,}" if kept < samples else "that is few"
            yield (
                f"a thread keeps up to {kept:,} databases open, {has}: the least recently used are closed and opened again. "
                "Raise the hard limit on file descriptors (ulimit -Hn)"
            )
