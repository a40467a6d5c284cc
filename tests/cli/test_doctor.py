"""`doctor`: what it reports is what is there, and what is broken decides the exit status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import apsw
import pytest
import worlds

import sharded_eden
from sharded_eden import cli
from sharded_eden.doctor.folder import examine_folder, reading_mode
from sharded_eden.doctor.machine import Mount, gpus, mount_of, tells_what_is_cached
from sharded_eden.doctor.packages import INSTALL, SPECIFIED, Package, location, packages, release, specified_path
from sharded_eden.doctor.report import Report, examine
from sharded_eden.errors import MissingDatabase, UsageError
from sharded_eden.format.commands import index_command
from sharded_eden.windows.index import index_window_database

KEYS = [
    "ok", "versions", "sqlite", "file_descriptors", "processors", "gpus", "found", "specified_path", "folder", "broken",
    "missing", "notes",
]  # fmt: skip


def in_a_process(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, **options
    )


WITHOUT = """
import sys
sys.modules[{name!r}] = None
from sharded_eden.doctor.__main__ import main
sys.exit(main(["--json"]))
"""


def test_keys_and_versions_are_those_of_the_installation(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == KEYS
    assert report["ok"] is True
    assert report["broken"] == []
    versions = report["versions"]
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["sharded-eden"] == sharded_eden.__version__
    for name in ("apsw", "numpy", "polars", "torch", "lightning"):
        assert versions[name] == metadata.version(name)
    assert report["sqlite"]["version"] == apsw.sqlite_lib_version()
    assert not any(report["sqlite"]["features"].values())
    assert report["folder"] is None
    assert report["processors"]["usable"] == len(os.sched_getaffinity(0))


def test_the_table_has_every_version_and_the_command_of_what_is_missing(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    report = examine()
    for name, version in report.versions.items():
        assert f"\n{name} " in f"\n{out}"
        assert version is None or version in out
    assert out.endswith("\nwhat is needed works\n")
    assert "\x1b" not in out
    for each in report.missing:
        assert each in out
        assert "pip install '.[" in each


@pytest.mark.parametrize("name", ["numpy", "apsw", "typer"])
def test_a_needed_package_that_is_broken_is_named_where_the_command_line_cannot_start(name):
    done = in_a_process(WITHOUT.format(name=name))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is False
    (problem,) = report["broken"]
    assert problem.startswith(f"{name} cannot be imported: ModuleNotFoundError")
    assert problem.endswith("pip install .")
    assert report["sqlite"] is None


def test_the_exit_status_is_1_where_something_needed_is_broken(tmp_path):
    (tmp_path / "xxhash.py").write_text("raise OSError('wrong architecture')\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"], str(Path(sharded_eden.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "sharded_eden.doctor"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken:\n  xxhash cannot be imported: OSError: wrong architecture. Install it" in done.stdout
    assert done.stdout.endswith("\n1 broken\n")


def test_the_module_and_the_command_print_the_same(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "sharded_eden.doctor", "--json"], capture_output=True, text=True, check=True
    )
    assert cli.main(["doctor", "--json"]) == 0
    ours, theirs = json.loads(capsys.readouterr().out), json.loads(done.stdout)
    for report in (ours, theirs):  # what the process has open
        report.pop("file_descriptors")
    assert ours == theirs


@pytest.mark.parametrize(("arguments", "status"), [(["a", "b"], 2), (["--other"], 2), (["nowhere"], 1)])
def test_wrong_arguments_of_the_module(arguments, status, tmp_path):
    command = [sys.executable, "-m", "sharded_eden.doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("usage: " if status == 2 else "error: nowhere: no such folder")


def test_no_framework_is_imported():
    code = (
        "import sys\nfrom sharded_eden.doctor.report import examine\nexamine('.').text()\n"
        "print([name for name in ('torch', 'lightning', 'megatron', 'ray', 'transformers', 'bionemo') if name in sys.modules])"
    )
    done = in_a_process(code)
    assert done.stdout.strip() == "[]", done.stderr


# ---- packages ----


def test_packages_are_those_of_the_metadata():
    found = {(each.name, each.extra): each.at_least for each in packages()}
    assert found["numpy", ""] == "1.26"
    assert found["torch", "train"] == "2.4"
    assert found["ray", "ray"] == "2.40"
    assert {extra for _, extra in found} == {
        "", "train", "megatron", "bridge", "mixture", "formats", "ray", "similar", "report", "cloud", "transformers",
        *(["grain"] if sys.version_info >= (3, 11) else []),
    }  # fmt: skip
    assert ("tomli", "mixture") not in found, "it is for Python 3.10"


@pytest.mark.parametrize(
    ("version", "at_least", "problem"),
    [
        ("2.4", "2.4.0", ""),
        ("2.13.0+cpu", "2.4", ""),
        (
            "2.3.9",
            "2.4",
            "torch 2.3.9 is older than 2.4. Install it, in the clone of this package: pip install '.[train]'",
        ),
        (None, "2.4", "torch is not installed. Install it, in the clone of this package: pip install '.[train]'"),
        ("1", "", ""),
    ],
)
def test_versions_are_compared_by_their_numbers(version, at_least, problem):
    assert Package("torch", "train", at_least, version).problem == problem


def test_what_is_always_needed_is_installed_with_this_package():
    assert Package("numpy", "", "1.26", None).problem == f"numpy is not installed. {INSTALL}"
    assert INSTALL == "Install it, in the clone of this package: pip install ."
    assert release("2.13.0rc1") == (2, 13)
    assert release("unknown") == ()


def test_modules_are_found_without_importing_them():
    assert location("numpy") == Path(sys.modules["numpy"].__file__)
    assert location("json.decoder") == Path(sys.modules["json.decoder"].__file__)
    assert location("json.decoder.nothing") is None
    assert location("no_such_package.inner") is None
    assert specified_path() == (location(SPECIFIED), True)


@pytest.mark.parametrize("layout", ["namespace", "regular", "without the module"])
def test_whose_specified_path_is_loaded(layout, tmp_path):
    """What `location` returns is what Python imports, whichever package comes first on the path."""
    run = tmp_path / "bionemo" / "evo2" / "run"
    run.mkdir(parents=True)
    if layout != "namespace":
        (tmp_path / "bionemo" / "evo2" / "__init__.py").touch()
        (run / "__init__.py").touch()
    if layout != "without the module":
        (run / "sharded_eden_dataloader.py").write_text("owner = 'other'\n")
    ours = str(Path(sharded_eden.__file__).parents[1])
    code = (
        "import sys, importlib\nsys.path[:0] = sys.argv[1:]\n"
        "from sharded_eden.doctor.packages import SPECIFIED, specified_path\nfrom sharded_eden.doctor.report import examine\n"
        "path, is_ours = specified_path()\nprint(is_ours, 'import from sharded_eden' in examine().text())\n"
        "try:\n    module = importlib.import_module(SPECIFIED)\nexcept ModuleNotFoundError:\n    assert path is None\n"
        "else:\n    assert str(path) == module.__file__, path\n    assert is_ours == hasattr(module, 'ShardedEdenDataset')\n"
    )
    for folders, is_ours in (
        ([str(tmp_path), ours], False),
        ([ours, str(tmp_path)], layout == "namespace"),  # a regular package hides namespaces before it
    ):
        done = in_a_process(code, *folders)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(is_ours), str(not is_ours)]


# ---- machine ----


def test_file_descriptors_are_the_limits_of_the_process():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = (
        "import json, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 120))\n"
        "from sharded_eden.doctor.report import examine\nprint(examine().json())"
    )
    done = in_a_process(code)
    report = json.loads(done.stdout)
    assert (report["file_descriptors"]["soft"], report["file_descriptors"]["hard"]) == (100, 120)
    assert 20 < report["file_descriptors"]["databases_a_thread"] <= 40
    assert [note for note in report["notes"] if "ulimit -Hn" in note]
    assert hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_gpus_are_those_that_the_drivers_list(tmp_path):
    """The files as the drivers write them."""
    assert gpus(tmp_path) == []
    for number, model in enumerate(["NVIDIA H100 80GB HBM3", "NVIDIA A100"]):
        folder = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 100\n")
    for number, units in enumerate([0, 304]):  # a processor, a GPU
        folder = tmp_path / "sys" / "class" / "kfd" / "kfd" / "topology" / "nodes" / str(number)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\nmem_banks_count 1\n")
    assert gpus(tmp_path) == ["NVIDIA H100 80GB HBM3", "NVIDIA A100", "AMD GPU"]


MOUNTS = r"""
22 28 0:20 / /proc rw,relatime shared:13 - proc proc rw
28 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 28 0:40 / {a} rw,noatime shared:2 master:3 - nfs4 server:/export\040one rw,vers=4.2
32 28 0:41 / {a}/deep rw - lustre mgs@tcp:/scratch rw
33 32 0:42 / {a}/deep rw - tmpfs tmpfs rw
34 28 0:43 / {a}/with\040space rw - xfs /dev/sdb rw
"""


def test_the_mount_of_a_path(tmp_path):
    mounts = MOUNTS.format(a=tmp_path)
    for name in ("deep/x", "deeper", "with space"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "with space")
    assert mount_of(tmp_path / "deeper", mounts) == Mount(str(tmp_path), "nfs4", "server:/export one")
    assert mount_of(tmp_path / "deep" / "x", mounts).type == "tmpfs", "a later mount hides the former"
    assert mount_of(tmp_path / "link", mounts) == Mount(f"{tmp_path}/with space", "xfs", "/dev/sdb")
    assert mount_of(Path("/"), mounts).type == "ext4"
    assert mount_of(tmp_path, "") is None


def test_the_mount_is_that_of_df(tmp_path):
    df = subprocess.run(["df", "--output=target,fstype", str(tmp_path)], capture_output=True, text=True, check=True)
    assert list(mount_of(tmp_path)[:2]) == df.stdout.splitlines()[1].split()


def test_whether_a_file_system_tells_what_is_cached(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(b"ACGT")
    assert tells_what_is_cached(tmp_path / "empty") is None
    assert tells_what_is_cached(tmp_path / "none") is None
    try:
        with (tmp_path / "file").open("rb") as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        expected = True
    except OSError:
        expected = False
    assert tells_what_is_cached(tmp_path / "file") is expected
    assert tells_what_is_cached(Path("/proc/self/mountinfo")) is False


# ---- a folder ----


def test_a_folder_of_databases(tmp_path):
    folder = worlds.write(tmp_path)
    (folder / "windows.db").rename(folder / "train_windows.db")
    windows = str(folder / "train_windows.db")
    found = examine_folder(folder)
    assert (found["sequence_databases"], found["window_databases"]) == (3, 1)
    assert found["indexes"] == {windows: "without an index"}
    (line, cached) = reading_mode(found)
    assert line.endswith(
        f"located and read by SQLite, without an index. Write an index: {index_command('SEQDB', windows)}"
    )
    assert "RWF_NOWAIT" in cached

    index_window_database(folder / "seqs", folder / "train_windows.db")
    for path in (folder, folder / "train_windows.db"):
        assert examine_folder(path)["indexes"] == {windows: ""}
        assert reading_mode(examine_folder(path))[0] == "1 of 1 window databases: one positioned read a window."
    assert examine_folder(folder / "seqs")["sequence_databases"] == 3
    assert examine_folder(folder / "seqs")["window_databases"] == 0

    os.utime(windows, ns=(1, 1))
    assert examine_folder(folder)["indexes"] == {windows: "its index describes another file"}
    Path(f"{windows}.index").write_bytes(b"PK")
    assert examine_folder(folder)["indexes"][windows].startswith("its index cannot be read (")


def test_the_report_of_a_folder_in_the_table(tmp_path, capsys):
    folder = worlds.write(tmp_path)
    assert cli.main(["doctor", str(folder / "seqs")]) == 0
    out = capsys.readouterr().out
    mount = mount_of(folder)
    assert f"{mount.type} ({mount.source} at {mount.point})" in out
    assert "3 of sequences, 0 of windows" in out


def test_more_samples_than_a_thread_keeps_open_is_a_note(tmp_path):
    for sample in range(30):
        made = tmp_path / f"s{sample}" / f"glm_dataset_s{sample}.sqlite"
        made.parent.mkdir()
        made.touch()
    code = (
        "import sys, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n"
        "from sharded_eden.doctor.report import examine\nprint(examine(sys.argv[1]).notes)"
    )
    assert "the folder has 30: the least recently used are closed" in in_a_process(code, str(tmp_path)).stdout


def test_a_folder_that_does_not_exist_and_a_url(tmp_path, capsys):
    with pytest.raises(MissingDatabase, match="no such folder"):
        examine_folder(tmp_path / "none")
    with pytest.raises(UsageError, match="is a URL"):
        examine_folder(Path("s3://bucket/data"))
    assert cli.main(["doctor", str(tmp_path / "none")]) == 1
    assert "error: " in capsys.readouterr().err


def test_pipes_links_to_themselves_and_folders_with_the_names_of_databases(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "train_windows.db").mkdir()
    for name in ("pipe", "val_windows.db"):
        os.mkfifo(tmp_path / name)  # opening one waits for a writer
    code = "import sys\nfrom sharded_eden.doctor.report import examine\nprint(examine(sys.argv[1]).text())"
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "val_windows.db"):
        assert "0 of sequences, 0 of windows" in in_a_process(code, str(path), timeout=60).stdout


def test_names_in_the_table_are_safe_for_a_terminal(tmp_path):
    folder = tmp_path / "a\x1b[31m"
    folder.mkdir()
    report: Report = examine(folder)
    assert "\x1b" not in report.text()
    assert json.loads(report.json())["folder"]["path"] == str(folder)
