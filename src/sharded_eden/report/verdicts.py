"""What the access logs of a split mean, in words: what the sampler promises, and where the reads differ from it.

Input: `Reads`. Output: sentences. The sampler promises that each pass reads every window exactly once over all ranks, in an
order that is random over the whole split. Splits for evaluation are read in one fixed order, any number of times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sharded_eden.report.reads import NEAR, RUN, Pass, Reads

Level = Literal["good", "note", "fault"]

LEAST_SPREAD = 0.9
"""Runs of reads whose spread is below this share of a random order's are no global shuffle: over 100 runs, a "
"random order is within
2% of 1."""
MOST_NEAR = 3.0
"""How many times more neighbouring reads than in a random order are no global shuffle."""
LEAST_PAIRS = 500
"""Fewer reads say nothing about the order."""
ONE_SIDED = 0.9
COPIES = 0.9
"""From this share of its reads on, a rank reads what another one reads."""
LEAST_PAUSE = 1.0
"""Shorter pauses, in seconds, are not called stalls."""
NUMBERS = {1: "once", 2: "twice"}


@dataclass(frozen=True)
class Verdict:
    """A sentence about the reads of a split."""

    level: Level
    text: str


def times(count: int) -> str:
    """Return how often, in words: once, twice, 3 times."""
    return NUMBERS.get(count, f"{count:,} times")


def verdicts(reads: Reads) -> list[Verdict]:
    """Return what to say about the reads of a split, faults first."""
    if not reads.rows:
        return [Verdict("note", "The access logs hold no read.")]
    found = [_how_often(reads)]
    if not reads.is_evaluation:
        found += [*_repeats(reads), *_gaps(reads), *_order(reads)]
    else:
        found.append(
            Verdict("note", "This is a split for evaluation: it is read in one fixed order, in each evaluation again.")
        )
    found.append(_pauses(reads))
    rank = {"fault": 0, "good": 1, "note": 2}
    return sorted(found, key=lambda each: rank[each.level])


def _how_often(reads: Reads) -> Verdict:
    often = sorted(reads.times_read)
    if len(often) == 1:
        repeats = sum(state.repeats for state in reads.passes) if not reads.is_evaluation else 0
        return Verdict("note" if repeats else "good", f"Every window was read exactly {times(often[0])}.")
    unread = reads.times_read.get(0, 0)
    read = [times_read for times_read in often if times_read]
    most = max(read)
    text = (
        f"Windows were read between {read[0]} and {most} times" if len(read) > 1 else f"Windows were read {times(most)}"
    )
    return Verdict("note", text + (f"; {unread:,} of {reads.windows:,} were never read." if unread else "."))


def _repeats(reads: Reads) -> list[Verdict]:
    repeats = sum(state.repeats for state in reads.passes)
    if not repeats:
        return [Verdict("good", "No window was read more than once in a pass.")]
    found = []
    for (first, again), count in sorted(reads.repeated_by.items(), key=lambda item: -item[1])[:5]:
        if first == again:
            found.append(
                Verdict(
                    "fault",
                    f"Rank {first} read {count:,} windows again in the same pass. A job that resumes from a "
                    f"checkpoint reads again "
                    "what its workers had read ahead; otherwise the sampler repeats windows.",
                )
            )
            continue
        share = count / reads.reads_by_rank[again]
        other = reads.reads_by_rank[first]
        copies = "repeats the windows of" if share >= COPIES else "repeats windows of"
        found.append(
            Verdict(
                "fault",
                f"Rank {again} {copies} rank {first}: {count:,} of its {reads.reads_by_rank[again]:,} reads are "
                f"windows that rank "
                f"{first} (with {other:,} reads) had read in the same pass. That is right for ranks of one "
                f"tensor-parallel or "
                "pipeline-parallel group, and wrong for data-parallel ranks.",
            )
        )
    return found


def _gaps(reads: Reads) -> list[Verdict]:
    found = []
    last = max(state.number for state in reads.passes)
    whole = True
    for state in reads.passes:
        first, end = state.longest_gap
        if end - first > max(1, state.gaps_expected) and state.unread < reads.windows:
            whole = False
            found.append(
                Verdict(
                    "fault",
                    f"Pass {state.number} has a gap: the windows {first:,} to {end - 1:,} were not read "
                    f"({end - first:,} in a row; a "
                    f"random order leaves {state.gaps_expected:,} in a row at most). {_unread(state, reads)}",
                )
            )
        elif state.unread and state.number < last:
            whole = False
            found.append(
                Verdict(
                    "fault",
                    f"Pass {state.number} ended with gaps, although a later pass began. {_unread(state, reads)}",
                )
            )
        elif state.unread:
            whole = False
            found.append(Verdict("note", f"Pass {state.number} is not complete. {_unread(state, reads)}"))
    if whole:
        count = len(reads.passes)
        found.append(
            Verdict(
                "good",
                f"{'The pass is' if count == 1 else f'All {count:,} passes are'} complete: no window is missing.",
            )
        )
    return found


def _unread(state: Pass, reads: Reads) -> str:
    return f"In all, {state.unread:,} of {reads.windows:,} windows were not read in it."


def _order(reads: Reads) -> list[Verdict]:
    if reads.rows < LEAST_PAIRS or reads.windows < LEAST_PAIRS or reads.near is None:
        return [Verdict("note", f"There are fewer than {LEAST_PAIRS} reads or windows: too few to judge the order.")]
    if reads.in_order >= ONE_SIDED:
        return [Verdict("fault", "The windows were read in order: they are not shuffled.")]
    random_step = (1 - 0.5**0.5) * reads.windows
    expected_near = 2 * NEAR - NEAR**2
    apart = [rank for rank, spread in reads.spread_by_rank.items() if spread < LEAST_SPREAD]
    if len(apart) == len(reads.spread_by_rank) > 1 and not any(state.repeats for state in reads.passes):
        least = min(reads.spread_by_rank.values())
        return [
            Verdict(
                "fault",
                "The shuffle is not global: each rank reads a part of the split only. The spread of the windows "
                "of one rank is "
                f"{least:.0%} of that of the whole split.",
            )
        ]
    if reads.near > MOST_NEAR * expected_near:
        return [
            Verdict(
                "fault",
                f"The shuffle is not global but block-wise: two reads in a row of one process are "
                f"{reads.typical_step:,.0f} windows "
                f"apart (median), and in a random order over all windows {random_step:,.0f}.",
            )
        ]
    if reads.spread is not None and reads.spread < LEAST_SPREAD:
        return [
            Verdict(
                "fault",
                f"The shuffle is not global: {RUN} reads in a row of one process cover a part of the split only. "
                f"Their spread is "
                f"{reads.spread:.0%} of that of a random order over all windows.",
            )
        ]
    spread = (
        ""
        if reads.spread is None
        else f" (the spread of {RUN} reads in a row is {reads.spread:.0%} of a random order's)"
    )
    return [Verdict("good", f"The shuffle is global: reads in a row come from all of the split{spread}.")]


def _pauses(reads: Reads) -> Verdict:
    seconds, rank, worker, when = reads.longest_pause
    where = f"rank {rank}, " + ("main process" if worker < 0 else f"worker {worker}")
    if seconds < LEAST_PAUSE:
        return Verdict("good", f"No process paused for more than {LEAST_PAUSE:.0f} s between two batches.")
    return Verdict(
        "note",
        f"The longest pause between two batches of one process was {seconds:,.1f} s ({where}, {when:,.0f} s after "
        f"the first read). The "
        "pause may be a stall of the disk, or the trainer did something else.",
    )
