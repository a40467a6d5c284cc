"""The slow reference implementation: stdlib sqlite3 and plain Python, directly from the specification. Imports nothing of the
package. The fast implementation must equal it bit for bit.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

PAD, BOS, EOS, SEP, MASK = 0, 1, 2, 3, 4
COMPLEMENT = {
    "A": "T", "C": "G", "G": "C", "T": "A", "U": "A", "R": "Y", "Y": "R", "S": "S", "W": "W", "K": "M", "M": "K",
    "B": "V", "V": "B", "D": "H", "H": "D", "N": "N",
}  # fmt: skip


def sample_of(sequence_id: str) -> str:
    return ".".join(sequence_id.split("__")[1].split("-")[1:])


def write_sequence_dbs(folder: Path, contigs: dict[str, str]) -> None:
    """Write sequence databases like the specification's snippet: one folder and one database for each sample."""
    by_sample: dict[str, list[tuple[str, str]]] = {}
    for sequence_id, sequence in contigs.items():
        by_sample.setdefault(sample_of(sequence_id), []).append((sequence_id, sequence))
    for sample, rows in by_sample.items():
        (folder / sample).mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / sample / f"glm_dataset_{sample}.sqlite")
        connection.execute("CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)")
        connection.executemany("INSERT INTO sequences (contig_id, nt_sequence) VALUES (?, ?)", rows)
        connection.commit()
        connection.close()


def windows_of(
    length: int, window_size: int, stride: int, threshold: int = 0, special_tokens: int = 3, keep_tail: bool = False
) -> list[int]:
    """The window_in_seq_idx of a contig's windows, one by one."""
    count = 1 if length < window_size else 1 + (length - window_size) // stride
    if keep_tail:
        usable = window_size - special_tokens
        while (count - 1) * stride + usable < length and count * stride < length:
            count += 1
    kept = []
    for i in range(count):
        if min(window_size, length - i * stride) >= threshold:
            kept.append(i)
    return kept


def write_window_db(
    path: Path, contigs: dict[str, str], window_size: int, stride: int, threshold: int = 0, totals: bool = False
) -> list[tuple[str, int]]:
    """Write a window database like another tool: the specified tables, with only the specified metadata."""
    rows = []
    for sequence_id in sorted(contigs, key=str.encode):
        rows += [(sequence_id, i) for i in windows_of(len(contigs[sequence_id]), window_size, stride, threshold)]
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)")
    metadata = {"window_size": window_size, "stride": stride}
    if threshold:
        metadata["window_min_length_threshold"] = threshold
    if totals:
        metadata |= {"total_windows": len(rows), "distinct_sequences": len({s for s, _ in rows})}
    connection.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
    connection.execute(
        "CREATE TABLE window_mappings "
        "(window_idx INTEGER PRIMARY KEY, sequence_id TEXT NOT NULL, window_in_seq_idx INTEGER NOT NULL)"
    )
    connection.executemany("INSERT INTO window_mappings VALUES (?, ?, ?)", [(k, *row) for k, row in enumerate(rows)])
    connection.execute("CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)")
    connection.commit()
    connection.close()
    return rows


def reverse_complement(sequence: str) -> str:
    return "".join(COMPLEMENT.get(base, base) for base in reversed(sequence))


def item(
    sequence_db_dir: Path,
    window_db: Path,
    window_idx: int,
    *,
    seq_length: int,
    stride: int,
    reverse: bool = False,
    control_tags: bool = False,
    bos: bool = True,
    sep: bool = True,
    eos: bool = True,
    table: str = "sequences",
) -> dict[str, list[float]]:
    """One training example with the built-in tokenizer, as lists; `sequences NOT INDEXED` finds the contig without an index."""
    connection = sqlite3.connect(window_db)
    sequence_id, k = connection.execute(
        "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = ?", (window_idx,)
    ).fetchone()
    connection.close()
    sample = sample_of(sequence_id)
    connection = sqlite3.connect(sequence_db_dir / sample / f"glm_dataset_{sample}.sqlite")
    (sequence,) = connection.execute(f"SELECT nt_sequence FROM {table} WHERE contig_id = ?", (sequence_id,)).fetchone()
    connection.close()
    if isinstance(sequence, bytes):  # a BLOB of the same bytes holds the same bases
        sequence = sequence.decode("latin-1")

    tag = [ord(c) for c in f"<ctrl_{sequence_id.split('__')[0].lower()}>"] if control_tags else []
    header = [BOS] * bos + tag + [SEP] * sep
    footer = [EOS] * eos
    start = k * stride
    shown = sequence[start : start + seq_length].upper()[: seq_length - len(header) - len(footer)]
    if reverse:
        shown = reverse_complement(shown)
    row = header + [ord(base) for base in shown] + footer
    is_base = [False] * len(header) + [base not in "@#" for base in shown] + [False] * len(footer)
    row += [PAD] * (seq_length - len(row))
    is_base += [False] * (seq_length - len(is_base))
    return {
        "tokens": row,
        "labels": [*row[1:], PAD],
        "loss_mask": [float(b) for b in [*is_base[1:], False]],
        "position_ids": list(range(seq_length)),
    }


def packed_item(windows: list[dict[str, list[float]]], seq_length: int) -> dict[str, Any]:
    """One packed row from items that `item` made without padding."""
    row: dict[str, Any] = {"tokens": [], "labels": [], "loss_mask": [], "position_ids": [], "cu_seqlens": [0]}
    padding = seq_length - sum(len(window["tokens"]) for window in windows)
    assert padding >= 0
    for window in windows:
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            row[name] += window[name]
        row["cu_seqlens"].append(len(row["tokens"]))
    if padding:
        row["tokens"] += [PAD] * padding
        row["labels"] += [PAD] * padding
        row["loss_mask"] += [0.0] * padding
        row["position_ids"] += range(padding)
        row["cu_seqlens"].append(seq_length)
    ends = row["cu_seqlens"]
    row["max_seqlen"] = max(b - a for a, b in pairwise(ends))
    return row


def mix64(value: int) -> int:
    """The finalizer of SplitMix64, with the constants of Stafford's variant 13."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def masked_item(
    row: dict[str, list[float]],
    shown: str,
    first: int,
    *,
    seed: int,
    epoch: int,
    window_idx: int,
    share: float,
    span: int,
    soft: float = 1.0,
) -> dict[str, list[float]]:
    """One row of `item` as masked language modelling shows it, base by base.

    `shown` are the bases of the row in the case of the database, on the strand of the row; `first` is the place of the first.
    """  # fmt: skip
    golden = 0x9E3779B97F4A7C15
    key = int.from_bytes(blake2b(repr(("mlm", seed, epoch)).encode(), digest_size=8, salt=bytes(16)).digest(), "little")
    state = mix64((window_idx * golden + key) % 2**64)
    numbers = {place: mix64((state + (place + span) * golden) % 2**64) for place in range(1 - span, len(shown))}
    below = max(1, round((1 - (1 - share) ** (1 / span)) * 2**32))
    masked = {name: list(values) for name, values in row.items()}
    masked["labels"] = list(row["tokens"])
    masked["loss_mask"] = [0.0] * len(row["tokens"])
    masked["padding_mask"] = [token == PAD for token in row["tokens"]]
    for place, base in enumerate(shown):
        begun = [at for at in range(place, place - span, -1) if numbers[at] >> 32 < below]
        if not begun or base not in "ACGTacgt":
            continue
        decision = (numbers[begun[0]] >> 8) % 2**24 / 2**24
        if decision < round(0.8 * 2**24) / 2**24:
            masked["tokens"][first + place] = MASK
        elif decision < round(0.9 * 2**24) / 2**24:
            masked["tokens"][first + place] = ord("ACGT"[numbers[place] % 4])
        masked["loss_mask"][first + place] = soft if base.islower() else 1.0
    return masked
