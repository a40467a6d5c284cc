"""Write the files of `corpus/` that mutations begin from: `python tests/fuzz/make_corpus.py`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
from mutations import table_bytes

CORPUS = Path(__file__).parent / "corpus"


def bases(length: int, seed: int, letters: str = "ACGT") -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


def wrapped(text: str, width: int, end: str) -> str:
    return "".join(text[i : i + width] + end for i in range(0, len(text), width))


def genbank(name: str, sequence: str) -> str:
    lines = [
        f"LOCUS       {name:<16} {len(sequence):>11} bp    DNA     linear   BCT 01-JAN-2000",
        "DEFINITION  A made-up contig.",
        f"ACCESSION   {name}",
        f"VERSION     {name}.1",
        "FEATURES             Location/Qualifiers",
        f"     source          1..{len(sequence)}",
        '                     /organism="none"',
        "ORIGIN",
    ]
    for start in range(0, len(sequence), 60):
        row = sequence[start : start + 60].lower()
        lines.append(f"{start + 1:>9} " + " ".join(row[i : i + 10] for i in range(0, len(row), 10)))
    return "\n".join([*lines, "//", ""])


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    texts = {
        "plain.fa": "".join(f">c{i} contig {i}\n{wrapped(bases(90 + 7 * i, i), 60, chr(10))}" for i in range(3)),
        "ids.fa": "".join(
            f">BCR__ECT-{s}__CT1-{i}\n{bases(40, i)}\n" for s, i in (("S", 1), ("S", 2), ("T", 1), ("U.V", 1))
        ),
        "odd.fa": "# comment\n\n>a\tdescription é\n"
        + bases(30, 5, "ACGTNacgtn")
        + "\n \n>b > c\n"
        + bases(20, 6, "ACGTRYKMSWBDHVNU"),
        "crlf.fa": "".join(f">c{i}\r\n{wrapped(bases(50, i), 20, chr(13) + chr(10))}" for i in range(3)),
        "records.jsonl": "".join(
            json.dumps({"record": f"c{i}", "text": bases(30 + i, i), "more": [i, {"a": None}]}) + "\n" for i in range(4)
        ),
        "unnamed.jsonl": "".join(json.dumps({"sequence": bases(20, i)}) + "\n" for i in range(3)),
        "records.gb": genbank("AB000001", bases(130, 1)) + genbank("AB000002", bases(61, 2)),
        "samples.txt": "# validation\nS1\n\nS3  # the last\n",
    }
    for name, text in texts.items():
        (CORPUS / name).write_bytes(text.encode())
    records = pa.table(
        {"id": [f"c{i}" for i in range(5)], "sequence": [bases(20 + i, i) for i in range(5)], "n": list(range(5))}
    )
    for kind in ("parquet", "arrow", "stream", "feather", "feather1"):
        name = "records.parquet" if kind == "parquet" else f"records-{kind}.arrow"
        (CORPUS / name).write_bytes(table_bytes(records, kind))
    (CORPUS / "records-named.parquet").write_bytes(
        table_bytes(
            pa.table({"contig_id": [f"BCR__ECT-{s}__1" for s in "STU"], "seq": [bases(25, i) for i in range(3)]}),
            "parquet",
        )
    )
    lengths = [200, 0, 164, 63, 165, 64]
    split = pa.table({"contig_id": [f"BCR__ECT-S{i % 3}__CT1-{i}" for i in range(6)], "length": lengths})
    (CORPUS / "split.parquet").write_bytes(table_bytes(split, "parquet"))
    (CORPUS / "split-unsorted.parquet").write_bytes(
        table_bytes(split.take([5, 2, 0, 3, 1, 4]).append_column("more", pa.array(lengths, pa.int32())), "parquet")
    )


if __name__ == "__main__":
    main()
