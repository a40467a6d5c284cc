"""Allowed imports between packages, read from the source with `ast`, and the cost of importing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sharded_eden

ROOT = Path(sharded_eden.__file__).parent
MODULES = {
    ".".join(["sharded_eden", *path.relative_to(ROOT).with_suffix("").parts]): path for path in ROOT.rglob("*.py")
}
PACKAGES = (
    "format",
    "storage",
    "build",
    "windows",
    "load",
    "train",
    "checks",
    "doctor",
    "describe",
    "similar",
    "report",
)


def package_of(module: str) -> str:
    """The package of a module: one of `PACKAGES`, a single file with its own rules, or `root` for the other files."""
    parts = module.split(".")
    return (
        parts[1]
        if len(parts) > 1 and parts[1] in (*PACKAGES, "split", "throughput", "export", "derive", "token_packs")
        else "root"
    )


def imports(path: Path, *, at_run_time: bool = True) -> set[str]:
    """Every module that a file imports, at any level; those under `if TYPE_CHECKING` unless `at_run_time`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found.add(node.module)
            found.update(
                f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_packages_exist():
    assert {package_of(module) for module in MODULES} >= {"root", *PACKAGES}
    assert len(MODULES) > 25


MAY_IMPORT = {
    "root": {"root"},
    "format": {"format", "root"},
    "build": {"build", "format", "root"},
    "storage": {"storage", "format", "root"},
    "windows": {"windows", "storage", "format", "root"},
    "similar": {"similar", "format", "root"},
    "split": {"build", "windows", "similar", "format", "root"},
    "token_packs": {"windows", "load", "format", "root"},
    "derive": {"windows", "format", "root"},
    "load": {"load", "derive", "storage", "format", "root"},
    "train": {"train", "load", "format", "root"},
    "checks": {"checks", "similar", "train", "load", "windows", "build", "storage", "format", "root"},
    "throughput": {"train", "load", "storage", "format", "root"},
    "export": {"train", "load", "format", "root"},
    "doctor": {"doctor", "load", "format", "root"},
    "report": {"report", "describe", "format", "root"},
    "describe": {"describe", "checks", "windows", "train", "load", "format", "root"},
}
FRONT_DOORS = {
    "sharded_eden.__init__",
    "sharded_eden.__main__",
    *(name for name in MODULES if name.startswith("sharded_eden.cli")),
}
"""These import all packages, lazily."""


@pytest.mark.parametrize("module", sorted(MODULES.keys() - FRONT_DOORS))
def test_package_imports_only_allowed_packages(module):
    for name in imports(MODULES[module], at_run_time=False):
        if name.split(".")[0] == "sharded_eden":
            assert package_of(name) in MAY_IMPORT[package_of(module)], f"{module} imports {name}"
            assert not name.startswith("sharded_eden.cli"), f"{module} imports the command line"


def test_the_package_itself_imports_lazily():
    at_once = [
        node
        for node in ast.parse(MODULES["sharded_eden.__init__"].read_text()).body
        if isinstance(node, ast.ImportFrom)
    ]
    assert {node.module for node in at_once if str(node.module).startswith("sharded_eden")} <= {"sharded_eden.errors"}


def test_heavy_packages_are_imported_only_where_allowed():
    by_package: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for package in packages(path):
            by_package.setdefault(package, set()).add(module)
    assert by_package["lightning"] == {
        "sharded_eden.train.lightning.datamodule",
        "sharded_eden.train.lightning.accumulation",
        "sharded_eden.train.lightning.statistics",
    }
    assert "pytorch_lightning" not in by_package
    assert by_package["megatron"] == {"sharded_eden.train.bridge", "sharded_eden.export"}, (
        "train.megatron looks it up, but does not load it"
    )
    assert not any("sharded_eden.train.bridge" in imports(path) for path in MODULES.values())
    assert by_package["transformers"] == {"sharded_eden.train.hugging_face"}
    torch_users = {package_of(module) for module in by_package["torch"]}
    assert torch_users <= {"load", "train", "checks", "throughput", "export"}
    assert "typer" not in {
        package for module in MODULES if package_of(module) != "root" for package in packages(MODULES[module])
    }
    assert all(name.startswith("sharded_eden.cli") for name in by_package["typer"])


PURE = [
    "sharded_eden.format.geometry",
    "sharded_eden.shuffle",
    "sharded_eden.shuffle",
    "sharded_eden.train.order",
    "sharded_eden.load.encode.example",
]


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_open_no_files(module):
    tree = ast.parse(MODULES[module].read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not {
        call for call in calls if call in {"open", "print"} or call.startswith(("os.", "Path", "apsw.", "time."))
    }
    assert not packages(MODULES[module]) & {"apsw", "os", "pathlib", "random", "time", "torch"}


def test_nothing_prints_or_asserts_on_what_a_user_passes():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        names = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert "print" not in names or module.startswith("sharded_eden.cli"), module


def test_every_module_has_a_docstring():
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{module} has no docstring"


def test_bionemo_stays_a_namespace():
    assert not list((ROOT.parent / "bionemo").rglob("__init__.py"))


HEAVY = (
    "obstore",
    "torch",
    "lightning",
    "transformers",
    "megatron",
    "torchdata",
    "matplotlib",
    "ray",
    "sourmash",
    "scipy",
    "plotly",
)


@pytest.mark.parametrize(
    "code",
    [
        "import sharded_eden; dir(sharded_eden)",
        "import sharded_eden.cli",
        "from sharded_eden import build_sequence_dbs, create_sample_database, extract_sample_id, precompute_window_database",
        "from sharded_eden import write_splits, WindowGeometry, compute_num_windows",
    ],
    ids=["sharded_eden", "cli", "prepare", "splits"],
)
def test_preparing_data_loads_no_torch(code):
    program = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_data_loads_no_lightning():
    program = (
        "import sys\nfrom sharded_eden import ShardedEdenDataset, Stream, NucleotideTokenizer\n"
        "import sharded_eden.train.sampler, sharded_eden.train.megatron\n"
        "print([name for name in ('lightning', 'megatron', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_sorted_and_exist():
    assert sharded_eden.__all__ == sorted(sharded_eden.__all__)
    assert dir(sharded_eden) == sharded_eden.__all__
    for name in sharded_eden.__all__:
        assert getattr(sharded_eden, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sharded_eden.nothing


def test_a_missing_extra_names_itself():
    program = (
        "import sys; sys.modules['lightning'] = None\n"
        "from sharded_eden.errors import MissingExtra\n"
        "try:\n    from sharded_eden import ShardedEdenDataModule\n"
        "except MissingExtra as error:\n    assert isinstance(error, ImportError); print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (
        done.stdout.strip()
        == "lightning is not installed. Install it, in the clone of this package: pip install '.[train]'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program.replace("'lightning'", "'torch'")], capture_output=True, text=True, check=False
    )
    assert "pip install '.[train]'" in done.stdout + done.stderr


def test_megatron_bridge_names_its_extra():
    program = (
        "import sys; sys.modules['megatron'] = None\n"
        "from sharded_eden.errors import MissingExtra\n"
        "try:\n    import sharded_eden.train.bridge\n"
        "except MissingExtra as error:\n    print(error)"
    )
    for code in (
        program,
        program.partition("\n")[2],
    ):  # without Megatron, and as here: with Megatron core, without Bridge
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("Install it, in the clone of this package: pip install '.[bridge]'")
