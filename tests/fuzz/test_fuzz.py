"""Changed inputs and databases: the outcome is an EdenError or right data. See "Fuzzing" in docs/reliability.md."""

from __future__ import annotations

import pytest
from inputs import CORPUS, fasta_records, genbank_records, json_records, placed

import fuzz
from sharded_eden import build_sequence_dbs

FIRST_SEED = 5_000_000
"""Of the slow tests, so that a run can be repeated; `make test-fuzz` takes another one each time."""


def failed(report: fuzz.Report) -> str:
    return "\n".join(
        f"{each['outcome']}: {fuzz.replay_command(each['target'], each['seed'])}\n{each['what']}"
        for each in report.findings
    )


def test_a_few_hundred_cases():
    report = fuzz.run(240, targets={fuzz.ALL: 1}, batch=120, jobs=2)
    assert not report.findings, failed(report)
    assert report.cases == 240
    assert min(report.outcomes["data"], report.outcomes["error"]) >= 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", fuzz.WEIGHTS)
def test_20_000_cases(target):
    share = round(20_000 * fuzz.WEIGHTS[target] / sum(fuzz.WEIGHTS.values()))
    report = fuzz.run(share, first_seed=FIRST_SEED, targets={target: 1}, jobs=2)
    assert not report.findings, failed(report)
    assert report.cases == share


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.[fjg]*")), ids=lambda path: path.name)
def test_files_of_the_corpus_are_read_as_the_judge_reads_them(path, tmp_path):
    from inputs import built

    judge = {".fa": fasta_records, ".jsonl": json_records, ".gb": genbank_records}[path.suffix]
    (tmp_path / f"S{path.suffix}").write_bytes(path.read_bytes())
    build_sequence_dbs([tmp_path / f"S{path.suffix}"], tmp_path / "out")
    found = {s: [(i, q.lower()) for i, q in rows] for s, rows in built(tmp_path / "out").items()}
    assert found == {s: [(i, q.lower()) for i, q in rows] for s, rows in placed(judge(path.read_bytes()), "S").items()}
