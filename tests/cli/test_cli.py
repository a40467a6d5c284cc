"""The command line, the compatibility module, and the specification's own snippets, run as they are printed."""

from __future__ import annotations

import os
import random
import shlex
import sqlite3
import subprocess
import sys
import textwrap
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

import oracle
import sharded_eden
from sharded_eden import cli
from sharded_eden.cli import progress

COMPATIBILITY_MODULE = "bionemo.evo2.run.sharded_eden_dataloader"


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)


def letters(n: int, seed: int = 1) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=n))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with two FASTA files in `in/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / f"in/{name}.fa").write_text(f">c1\n{letters(20_000)}\n>c2\n{letters(500)}\n")
    return tmp_path


def test_the_three_commands_each_name_the_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "in", "--out", "db"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("samples", "41,000", "db/contigs.parquet", "kB", "bytes a base"):
        assert words in out
    assert out.splitlines()[-1] == "Next: sharded-eden split db --out splits --by contig"

    assert (
        cli.main(["split", "db", "--out", "splits", "--by", "contig", "--val", "0.4", "--test", "0", "--seed", "4"])
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    following = [line.removeprefix("Next: sharded-eden ") for line in out.splitlines() if line.startswith("Next: ")]
    assert following == [
        "precompute splits/train_split.parquet splits/train_windows.db",
        "precompute splits/val_split.parquet splits/val_windows.db",
    ]
    for command, name in zip(following, ("train", "val"), strict=True):
        assert cli.main(shlex.split(command)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "windows/s" in out
        assert "in no window" in out
        assert out.splitlines()[-1].startswith(
            f"Next: ShardedEdenDataModule({name}_window_db_path='splits/{name}_windows.db', seq_length=8192"
        )
    databases = [sqlite3.connect(f"splits/{name}_windows.db") for name in ("train", "val")]
    with closing(databases[0]) as train, closing(databases[1]) as val:
        query = "SELECT sequence_id FROM window_mappings"
        ids = {row[0] for database in (train, val) for row in database.execute(query)}
    assert ids == {f"BCR__ECT-{sample}__CT1-{i}" for sample in "ab" for i in (1, 2)}


def test_options_arrive(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "in/a.fa", "in/b.fa", "--out", "db", "--tag", "EUK", "--sample", "POOL"]) != 0
    assert "'c1' is taken within sample 'POOL'" in capsys.readouterr().err
    assert cli.main(["build", "in/a.fa", "--out", "db", "--tag", "EUK", "--sample", "POOL"]) == 0
    assert cli.main(["build", "in/a.fa", "--out", "db", "--tag", "EUK", "--sample", "POOL", "--force"]) == 0
    capsys.readouterr()
    assert cli.main(["build", "in/a.fa", "--out", "db", "--tag", "EUK", "--sample", "POOL"]) == 0
    assert "nothing to do\n1 samples were there already" in capsys.readouterr().out
    Path("val.txt").write_text("POOL\n")
    assert cli.main(["build", "in/b.fa", "--out", "db"]) == 0
    assert cli.main(["split", "db", "--out", "s", "--val-samples", "val.txt", "--test", "0"]) == 0
    assert pl.read_parquet("s/val_split.parquet")["contig_id"].to_list() == [
        "EUK__ECT-POOL__CT1-1",
        "EUK__ECT-POOL__CT1-2",
    ]
    options = "--window-size 100 --stride 90 --window-min-length-threshold 20 --keep-tail --special-tokens 2"
    assert cli.main(["precompute", "s/val_split.parquet", "w.db", *options.split()]) == 0
    with closing(sqlite3.connect("w.db")) as connection:
        metadata = dict(connection.execute("SELECT * FROM metadata"))
    assert (
        metadata.items()
        >= {
            "window_size": 100,
            "stride": 90,
            "window_min_length_threshold": 20,
            "keep_tail": 1,
            "special_tokens": 2,
        }.items()
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["build", "nothing.fa", "--out", "db"], "error: nothing.fa: no such file"),
        (["build", "in", "--out", "in/a.fa"], "error: in/a.fa: cannot be written to"),
        (["split", "nowhere", "--out", "s"], "error: nowhere: no such folder"),
        (["precompute", "none.parquet", "w.db"], "error: none.parquet: no such file"),
        (["precompute", "in/a.fa", "w.db"], "error: in/a.fa: cannot be read as Parquet"),
    ],
)
def test_an_error_is_one_message_and_status_1(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "argv",
    [
        ["build", "in"],
        ["precompute", "s.parquet", "w.db", "--stride", "many"],
        ["split", "db", "--out", "s", "--by", "genus"],
        ["frobnicate"],
    ],
)
def test_a_wrong_command_line_is_status_2(here: Path, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert cli.main(argv) == 2
    assert "Usage: sharded-eden" in capsys.readouterr().err


def test_errors_from_below_end_in_one_line_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    causes = [OSError(28, "No space left on device"), cli.apsw.FullError("disk is full"), KeyboardInterrupt()]
    for cause, status, message in zip(
        causes, [1, 1, 130], ["No space left", "disk is full", "interrupted"], strict=True
    ):

        def fail(*_: object, cause: BaseException = cause, **__: object) -> None:
            raise cause

        monkeypatch.setattr(cli.build, "build_sequence_dbs", fail)
        assert cli.main(["build", "in", "--out", "db"]) == status
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err


def test_warnings_are_told_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame({"contig_id": ["a"], "length": [20_000]}).write_parquet("s.parquet")
    assert cli.main(["precompute", "s.parquet", "w.db", "--stride", "9000"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: stride=9000 is more than the 8189 bases")
    assert len(err.splitlines()) == 1
    assert "windows" in out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sharded-eden {sharded_eden.__version__}\n"
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("build", "split", "precompute"):
        assert command in out
        assert cli.main([command, "--help"]) == 0
        assert f"sharded-eden {command}" in capsys.readouterr().out


def test_progress_bar_on_a_terminal_only(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich treats it as a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["build", "in", "--out", "db"]) == 0
    assert "records" in capsys.readouterr().err


def test_a_line_a_minute_where_there_is_no_terminal() -> None:
    written: list[str] = []
    now = [0.0]
    shown = progress.Shown("reading", progress.Lines(written.append, lambda: now[0]).show)
    for seconds in (1, 30, 59, 60, 61, 119, 121):
        now[0] = seconds
        shown.note(f"{seconds} records, S{seconds}")
        shown(seconds, 240)
    assert written == ["25%, 60 records, S60, 3 min left\n", "50%, 121 records, S121, 2 min left\n"]


def test_preparing_does_not_import_torch(here: Path) -> None:
    pl.DataFrame({"contig_id": ["a"], "length": [20_000]}).write_parquet("s.parquet")
    script = textwrap.dedent("""
        import sys
        import bionemo.evo2.run.sharded_eden_dataloader
        from sharded_eden.cli import main
        assert main(["build", "in", "--out", "db"]) == 0
        assert main(["split", "db", "--out", "s", "--val", "0", "--test", "0"]) == 0
        assert main(["precompute", "s/train_split.parquet", "w.db"]) == 0
        sys.exit(", ".join({"torch", "lightning", "pytorch_lightning"} & set(sys.modules)) or 0)
    """)
    done = run("-c", script, cwd=here)
    assert done.returncode == 0, done.stderr


def test_bionemo_is_a_namespace_package() -> None:
    for name in ("bionemo", "bionemo/evo2", "bionemo/evo2/run"):
        assert not (Path(sharded_eden.__file__).parents[1] / name / "__init__.py").exists()


def test_compatibility_module_has_the_names_of_the_specification() -> None:
    from bionemo.evo2.run import sharded_eden_dataloader as module

    assert module.extract_sample_id("BCR__ECT-SAMPLE1__CT1-1") == "SAMPLE1"
    for name in dir(module):
        assert getattr(module, name) is getattr(sharded_eden, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


SPECIFICATION_SCRIPT = '''
from bionemo.evo2.run.sharded_eden_dataloader import extract_sample_id

import sqlite3
import os


def create_sample_database(sample_id, sequences, output_dir):
    """Create SQLite database for a single sample."""
    # Create sample directory
    sample_dir = os.path.join(output_dir, sample_id)
    os.makedirs(sample_dir, exist_ok=True)

    # Create database
    db_path = os.path.join(sample_dir, f"glm_dataset_{sample_id}.sqlite")
    conn = sqlite3.connect(db_path)
    cursor = conn.cursor()

    # Create table
    cursor.execute(
        """
        CREATE TABLE sequences (
            contig_id TEXT PRIMARY KEY,
            nt_sequence TEXT NOT NULL
        )
    """
    )

    # Insert sequences for this sample
    for seq_id, sequence in sequences:
        cursor.execute(
            "INSERT INTO sequences (contig_id, nt_sequence) VALUES (?, ?)",
            (seq_id, sequence),
        )

    conn.commit()
    conn.close()


# Example usage
# Group sequences by sample_id
from collections import defaultdict

sequences_by_sample = defaultdict(list)
for seq_id, sequence in all_sequences:  # all_sequences is your data
    sample_id = extract_sample_id(seq_id)
    sequences_by_sample[sample_id].append((seq_id, sequence))

# Create database for each sample
for sample_id, sequences in sequences_by_sample.items():
    create_sample_database(sample_id, sequences, "path/to/sequence_db_dir")
'''

SPECIFICATION_COMMAND = """
python -m bionemo.evo2.run.sharded_eden_dataloader precompute \\
    train_split.parquet \\
    train_windows.db \\
    --window-size 8192 \\
    --stride 7992
"""


def test_the_snippets_of_the_specification(here: Path) -> None:
    contigs = {f"BCR__ECT-SAMPLE{s}__CT1-{i}": letters(1_500 + 9_000 * i, seed=i) for s in (1, 2, 3) for i in (1, 2)}
    exec(SPECIFICATION_SCRIPT, {"all_sequences": list(contigs.items())})
    train_data = pl.DataFrame(
        {
            "contig_id": ["BCR__ECT-SAMPLE1__CT1-1", "BCR__ECT-SAMPLE1__CT1-2"],
            "length": [10500, 19500],  # sequence lengths
        }
    )
    train_data.write_parquet("train_split.parquet")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        SPECIFICATION_COMMAND, shell=True, cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect("train_windows.db")) as connection:
        rows = connection.execute("SELECT * FROM window_mappings ORDER BY window_idx").fetchall()
    assert rows == [
        (0, "BCR__ECT-SAMPLE1__CT1-1", 0),
        (1, "BCR__ECT-SAMPLE1__CT1-2", 0),
        (2, "BCR__ECT-SAMPLE1__CT1-2", 1),
    ]
    # The package reads what the snippet wrote, and the replacement of the snippet writes the same.
    sharded_eden.write_splits("path/to/sequence_db_dir", "splits", val=0, test=0)
    assert dict(pl.read_parquet("splits/train_split.parquet").iter_rows()) == {c: len(s) for c, s in contigs.items()}
    by_sample = defaultdict(list)
    for contig_id, sequence in contigs.items():
        by_sample[oracle.sample_of(contig_id)].append((contig_id, sequence))
    for sample_id, sequences in by_sample.items():
        ours = sharded_eden.create_sample_database(sample_id, sequences, "ours")
        theirs = Path("path/to/sequence_db_dir") / ours.relative_to("ours")
        dumps = []
        for path in (ours, theirs):
            with closing(sqlite3.connect(path)) as connection:
                columns = connection.execute("SELECT * FROM pragma_table_info('sequences')").fetchall()
                dumps.append((columns, connection.execute("SELECT * FROM sequences").fetchall()))
        assert dumps[0] == dumps[1]


def test_help_under_the_module_s_name(here: Path) -> None:
    done = run("-m", COMPATIBILITY_MODULE, "--help", cwd=here)
    assert done.returncode == 0, done.stderr
    assert f"Usage: python -m {COMPATIBILITY_MODULE}" in done.stdout
    assert "precompute" in done.stdout
    done = run("-m", COMPATIBILITY_MODULE, "precompute", "none.parquet", "w.db", cwd=here)
    assert (done.returncode, done.stderr) == (1, "error: none.parquet: no such file\n")
