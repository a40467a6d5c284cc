"""The command `show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sharded_eden.cli.command import Output
from sharded_eden.errors import UsageError, printable

if TYPE_CHECKING:
    from sharded_eden.describe.row import ShownRow
    from sharded_eden.describe.step import StepWindow
    from sharded_eden.load.dataset import ShardedEdenDataset
    from sharded_eden.train.stream import Stream

BASES_A_LINE = 60
JOB = "Options of the training job"
COLOURS = {"A": "green", "C": "blue", "G": "yellow", "T": "red", "U": "red"}


def show(
    seqdb: Annotated[Path, typer.Argument(metavar="SEQDB", help="The folder of sequence databases.")],
    windows_db: Annotated[
        Path | None, typer.Argument(metavar="WINDOWS.db", help="The window database of a split; none with --mixture.")
    ] = None,
    index: Annotated[
        int | None, typer.Argument(metavar="INDEX", help="The window, or with --pack the pack, from 0.")
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(metavar="N", help="List the windows of this training step, from 0; with --global-batch-size."),
    ] = None,
    global_batch_size: Annotated[
        int | None, typer.Option(metavar="G", help="Samples of one optimizer step on all ranks.")
    ] = None,
    mixture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=JOB, help="The TOML or YAML file of the mixture of the job; with --step."
        ),
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", rich_help_panel=JOB, help="Rows are packs: several windows in one row.")
    ] = False,
    epoch: Annotated[int, typer.Option(help="The pass over the data, which decides the strand; with INDEX.")] = 0,
    seed: Annotated[
        int, typer.Option(rich_help_panel=JOB, help="The seed of the job: decides order and strands.")
    ] = 42,
    rc_aug: Annotated[
        bool, typer.Option("--rc-aug", rich_help_panel=JOB, help="Half of the rows are reverse complements.")
    ] = False,
    control_tags: Annotated[
        bool, typer.Option("--control-tags", rich_help_panel=JOB, help="Rows have control tags after BOS.")
    ] = False,
    mask_ambiguous: Annotated[
        bool,
        typer.Option("--mask-ambiguous", rich_help_panel=JOB, help="No loss on labels other than A, C, G and T."),
    ] = False,
    soft_mask_weight: Annotated[
        float, typer.Option(rich_help_panel=JOB, help="The weight of lower-case labels in the loss.")
    ] = 1.0,
    loss_on_eos: Annotated[
        bool, typer.Option("--loss-on-eos", rich_help_panel=JOB, help="The label EOS counts in the loss.")
    ] = False,
) -> Output:
    """Show one row as the model gets it, or list the windows of a training step.

    Give the options that the job has: seed, --rc-aug, --control-tags, --pack. No log is needed.
    """
    from sharded_eden.load.dataset import ShardedEdenDataset  # loads torch
    from sharded_eden.train.mixture_file import mixture_config
    from sharded_eden.train.stream import Stream

    options: dict[str, Any] = {
        "packed": pack,
        "seed": seed,
        "rc_aug": rc_aug,
        "use_control_tags": control_tags,
        "mask_ambiguous": mask_ambiguous,
        "soft_mask_weight": soft_mask_weight,
        "loss_on_eos": loss_on_eos,
    }
    if mixture is not None and (step is None or windows_db is not None):
        raise typer.BadParameter("--mixture belongs to --step, and takes the place of WINDOWS.db")
    if mixture is None and windows_db is None:
        raise typer.BadParameter("give WINDOWS.db, or --mixture with --step")
    if (index is None) == (step is None):
        raise typer.BadParameter("give either INDEX, for a row, or --step, for a training step")
    if (step is None) != (global_batch_size is None):
        raise typer.BadParameter("--step and --global-batch-size belong together")
    try:
        if windows_db is None:
            config = mixture_config(mixture)
            opened = config.open(tokenizer=None, sequence_db_dir=str(seqdb), seq_length=config.window_size(), **options)
            with closing(opened.dataset):
                return _step(opened, step or 0, global_batch_size or 0, packed=pack)
        with ShardedEdenDataset.open(seqdb, windows_db, **options) as dataset:
            if step is None:
                return _row(dataset, index or 0, epoch)
            return _step(Stream(dataset), step, global_batch_size or 0, packed=pack)
    except IndexError as error:
        raise UsageError(str(error)) from error


def _row(dataset: ShardedEdenDataset, index: int, epoch: int) -> Output:
    from sharded_eden.describe.row import row_of

    row = row_of(dataset, index, epoch)
    return Output(lines=row_lines(row), data=row.as_dict, indent=None)


def _step(stream: Stream, step: int, size: int, *, packed: bool) -> Output:
    from sharded_eden.describe.step import windows_of_step

    windows = list(windows_of_step(stream, step, size))  # they are read while the dataset is open
    first = step * size
    title = f"step {step:,}: positions {first:,} to {first + size - 1:,} of the stream, seed {stream.seed}"
    return Output(
        lines=[title, *step_lines(windows, packed=packed, sources=getattr(stream, "names", ()))],
        data=lambda: {
            "step": step,
            "global_batch_size": size,
            "seed": stream.seed,
            "windows": [window.as_dict() for window in windows],
        },
    )


def step_lines(windows: Sequence[StepWindow], *, packed: bool, sources: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each window of a step, with its source in a mixture of these sources."""
    kind = "pack" if packed else "window"
    width = max(len(printable(name)) for name in (*sources, "source")) + 1 if sources else 0
    of_source = f"{'source':<{width}}" if sources else ""
    of_pack = f"{'window':>13}" if packed else " "
    yield f"{of_source}{'position':>12} {'epoch':>5} {kind:>12}{of_pack} strand  bases"
    for window in windows:
        of_source = f"{printable(window.source):<{width}}" if sources else ""
        of_pack = f" {window.window_idx:>12,}" if packed else " "
        yield (
            f"{of_source}{window.position:>12,} {window.epoch:>5} {window.index:>12,}{of_pack} {window.strand:^6}  "
            f"{printable(window.contig_id)}:{window.start:,}-{window.end:,}"
        )


def row_lines(row: ShownRow) -> Iterator[Text]:
    """Yield the lines of a row: for each window its contig, then tokens, labels and loss mask under one another."""
    from sharded_eden.describe.row import other_weights

    kind = "pack" if row.packed else "window"
    yield Text(f"{kind} {row.index:,} in epoch {row.epoch}: {len(row.tokens):,} tokens", style="bold")
    yield Text("^ BOS   | SEP   $ EOS   . PAD   loss: 1 counts, 0 does not" + "".join(
        f", ~ counts {weight:g}" for weight in other_weights(row.loss_mask)
    ), style="dim")  # fmt: skip
    width = max(len(f"{window.end:,}") for window in row.windows)
    for number, window in enumerate(row.windows):
        yield Text()
        strand = "forward strand" if window.strand == "+" else "reverse complement"
        before = f"{number + 1} of {len(row.windows)}: " if row.packed else ""
        yield Text(
            f"{before}window {window.window_idx:,}, {printable(window.contig_id)}, bases {window.start:,} to {window.end:,} "
            f"(0-based, the end is not included), {strand}",
            style="bold",
        )
        yield Text(f"tokens {window.at:,} to {window.end_in_row:,} of the row", style="dim")
        if window.first_base > window.at:
            yield from _block(row, "header".rjust(width), window.at, window.first_base)
        for place in range(window.first_base, window.end_of_bases, BASES_A_LINE):
            end = min(place + BASES_A_LINE, window.end_of_bases)
            yield from _block(row, f"{window.base_at(place):,}".rjust(width), place, end)
        if window.end_in_row > window.end_of_bases:
            yield from _block(row, "end".rjust(width), window.end_of_bases, window.end_in_row)
    padding = len(row.tokens) - row.padding_from
    yield Text()
    yield Text(f"padding: {padding:,} tokens" if padding else "no padding", style="dim")


def _block(row: ShownRow, name: str, start: int, end: int) -> Iterator[Text]:
    from sharded_eden.describe.row import loss_text

    rows = (
        (name, row.text(row.tokens[start:end])),
        ("labels", row.text(row.labels[start:end])),
        ("loss", loss_text(row.loss_mask[start:end])),
    )
    width = max(len(name), len("labels"))
    for label, letters in rows:
        line = Text(f"{label.rjust(width)}  ", style="dim" if label != name else "")
        for letter in letters:
            line.append(letter, style="dim" if label == "loss" else COLOURS.get(letter, "magenta"))
        yield line
