"""What is documented about each command: its place in the help, examples, exit status, Ctrl-C, and the keys of `--json`."""

from __future__ import annotations

import textwrap

GROUPS = {
    "Prepare": ("build", "split", "precompute", "pack", "index"),
    "Check and look": ("verify", "stats", "show", "report", "bench", "doctor"),
    "Copy and convert": ("fetch", "export"),
}
"""The commands, in the order and under the headings of `sharded-eden --help`."""

PRINTS_RESULT = {"verify", "stats", "show", "bench", "doctor"}
"""Commands that are run for what they print: `--quiet` keeps it."""

EXAMPLES = {
    "build": (
        "build genomes --out sequence_db_dir",
        "build reads.jsonl.zst --out sequence_db_dir --sample READS --text-field sequence",
        "build 'plasmids/*.fna' --out sequence_db_dir --tag PLASMID --jobs 8",
    ),
    "split": (
        "split sequence_db_dir --out splits --val 0.1 --test 0.1",
        "split sequence_db_dir --out splits --by contig",
    ),
    "precompute": (
        "precompute splits windows",
        "precompute splits/train_split.parquet train_windows.db --window-size 8192 --keep-tail --pack",
    ),
    "index": ("index sequence_db_dir windows", "index --at s3://bucket/sequence_db_dir windows"),
    "fetch": ("fetch s3://bucket/sequence_db_dir sequence_db_dir --windows windows/train_windows.db",),
    "export": (
        "export windows/train_windows.db train.parquet --sequences sequence_db_dir --to parquet",
        "export windows/train_windows.db train --sequences sequence_db_dir --to indexed --order stream",
    ),
    "pack": ("pack windows", "pack windows/train_windows.db --seed 7 --force"),
    "bench": ("bench sequence_db_dir windows/train_windows.db --max-workers 2",),
    "verify": (
        "verify sequence_db_dir windows",
        "verify sequence_db_dir windows --full --jobs 8 --json",
    ),
    "stats": ("stats sequence_db_dir windows", "stats sequence_db_dir --by sample --json"),
    "show": (
        "show sequence_db_dir windows/train_windows.db 17",
        "show sequence_db_dir windows/train_windows.db --step 100 --global-batch-size 8",
    ),
    "report": ("report report.html sequence_db_dir windows",),
    "doctor": ("doctor", "doctor sequence_db_dir --json"),
}
"""Command lines of each command, without the name of the program."""

FAILED = {
    "verify": "1 findings, or an error in the data or the machine",
    "doctor": "1 something needed is broken, or an error in the data or the machine",
}
"""What exit status 1 means, where it does not only mean an error."""

KEPT = {
    "build": "samples that are complete are kept",
    "fetch": "files that are complete are kept",
    "precompute": "window databases that are complete stay, and the command makes the others",
    "index": "indexes that are complete stay",
}
"""What a second run of a stopped command finds; other commands begin again."""

_INDEX = "path, windows, addressed_windows, contigs, without_address ({reason: contigs}), bytes_read"
_PACKS = "windows, packs, window_size, useful_tokens, fingerprint, useful_share_packed, useful_share_padded"

KEYS: dict[str, dict[str, str]] = {
    "build": {
        "samples": "samples that were written",
        "contigs": "their contigs",
        "bases": "their bases",
        "bytes_on_disk": "the size of their databases",
        "unchanged": "samples that were there already, built from the same inputs",
        "grown": "names of the samples that have gained records and were built again",
        "contigs_parquet": "path of the table of contigs",
        "skipped": "records that skipped_parquet lists, by reason",
        "skipped_parquet": "path of the table of records that --skip-bad left out; null where there are none",
        "seconds": "how long the command took",
    },
    "split": {
        "splits": "for each split: path, samples, contigs, bases",
        "kept": "samples or contigs that were in these splits before and stayed there",
        "similar": "with --group-similar: groups, largest, largest_bases, largest_share, pairs, not_compared; else null",
    },
    "precompute": {
        "window_databases": "for each split: path, windows, sequences, contigs_left_out, bases, unseen_bases, shown_bases, "
        "ambiguous_windows, no_index (why there is no index), packs (as `pack`, or null) and index (as `index`, or null)",
        "window_size": "tokens of a row",
        "stride": "bases from the start of one window to the start of the next",
        "seconds": "how long the command took",
    },
    "pack": {
        "window_databases": f"a list: path, {_PACKS}",
        "seconds": "how long the command took",
    },
    "index": {
        "indexes": f"a list: {_INDEX}; with --at: path, url, objects, size_bytes",
        "seconds": "how long the command took",
    },
    "export": {
        "windows": "windows that were written",
        "tokens": "tokens (indexed) or bases (parquet) that were written",
        "digest": "the hash of the content",
        "paths": "the files that were written",
        "seconds": "how long the command took",
    },
    "fetch": {
        "files": "sequence databases that are needed",
        "copied_files": "those that were copied now",
        "copied_bytes": "their size",
        "folder": "where they are",
    },
    "report": {
        "path": "the HTML file",
        "verdicts": "with --logs, for each split a list of level (good, note or fault) and text",
    },
    "verify": {
        "is_clean": "whether nothing was found",
        "full": "whether --full was given",
        "samples": "sequence databases",
        "window_databases": "window databases",
        "windows": "windows of all usable window databases",
        "windows_read": "windows that were read as training reads them",
        "addresses_compared": "windows whose bases were read by their address and by SQLite",
        "contigs": "contigs that were read; 0 without --full",
        "bases": "bases that were read; 0 without --full",
        "near_duplicates": "pairs of similar contigs in different splits; null without --near-duplicates",
        "not_compared": "contigs that are too short to be compared with other splits",
        "findings": "a list: severity, check, file, what, fix",
    },
    "stats": {
        "is_exact": "false where shares of letters are estimates (--sample)",
        "sampled_share_of_contigs": "the share of the contigs whose letters were counted",
        "by": "what --by names, or null",
        "parts": "for each path: path, kind, samples, lengths, letters, windows, and groups with --by",
    },
    "bench": {
        "windows": "windows of the split",
        "seq_length": "tokens of a row",
        "batch_size": "windows of a batch",
        "cold_windows_per_second": "with the databases removed from the page cache; null where the system cannot do that",
        "warm_windows_per_second": "the same windows again, in one process",
        "mean_bases": "bases of a window, on average",
        "stage_microseconds": "time of a window in each stage, in one process",
        "storage": "at a URL: requests_per_window, bytes_per_window, waiting_share (0 to 1); for local files null",
        "copies": "with --cache-bytes: databases, copied, seconds, copying_windows_per_second, windows_per_second; else null",
        "loaders": "a list, one for each DataLoader: workers, start_method, compact, windows_per_second",
        "verdict": "what limits the rate, and what to change",
        "tokens_per_second": "tokens, padding included, warm, in one process",
        "megabytes_per_second": "bases that are read, in MB, warm, in one process",
    },
    "show": {
        "index": "with INDEX: the row",
        "epoch": "with INDEX: the pass over the data",
        "packed": "with INDEX: whether the row is a pack",
        "padding_from": "with INDEX: the first token of the padding",
        "windows": "the windows of the row, or of the step: contig, bases, strand and place",
        "tokens": "with INDEX: token ids",
        "labels": "with INDEX: the label of each token",
        "loss_mask": "with INDEX: the weight of each label",
        "step": "with --step: the step",
        "global_batch_size": "with --step: samples of the step",
        "seed": "with --step: the seed of the order",
    },
    "doctor": {
        "ok": "whether everything needed works",
        "versions": "{package: version, or null}",
        "sqlite": "version, longest_value_bytes, features ({feature: why it fails, or empty})",
        "file_descriptors": "soft, hard, databases_a_thread",
        "processors": "usable, machine",
        "gpus": "the models that the drivers list",
        "found": "{module: where it would be loaded from, or null}",
        "specified_path": "path, is_ours",
        "folder": "the given folder, or null",
        "broken": "what must be fixed before anything works",
        "missing": "what is not installed or too old",
        "notes": "what works, but not as it could",
    },
}
"""{command: {key of `--json`: its meaning}}. `tests/cli/test_json.py` compares them with what the commands print."""


def epilog(name: str) -> str:
    """Return the end of the help of a command: plain text that is also Markdown."""
    lines = "\n".join(f"    sharded-eden {line}" for line in EXAMPLES[name])
    failed = FAILED.get(name, "1 an error in the data or the machine")
    status = f"Exit status: 0 done; {failed}; 2 wrong use of the command; 130 stopped with Ctrl-C."
    return f"Examples:\n\n{lines}\n\n{textwrap.fill(status, 79)}"


def program_epilog() -> str:
    """Return the end of the help of the program."""
    lines = "\n".join(f"    sharded-eden {EXAMPLES[name][0]}" for name in ("build", "split", "precompute", "verify"))
    return (
        f"The usual order, then training:\n\n{lines}\n\n"
        "COMMAND --help explains a command. Exit status: 0 done; 1 findings, or an error\n"
        "in the data or the machine; 2 wrong use of the command; 130 stopped with Ctrl-C.\n"
    )
