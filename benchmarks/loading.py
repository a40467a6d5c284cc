"""How fast windows become training examples: naive, limit, ours and peers, on every shape, in one run.

One process each, one core, warm page cache. Measured: window index in, a dict of four tensors out (`tokens`, `labels`,
`position_ids`, `loss_mask`), one by one or collated in batches of 32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import contenders as c
from benchmarks import guard
from benchmarks.contenders import BATCH
from benchmarks.data import World
from benchmarks.peers import BATCHES, SINGLES, STREAM, Peer, PeerFailed
from benchmarks.report import Result, Table, rate, ratio, small, verdict
from benchmarks.timing import Race, Rates, Timed, timed

NAIVE, NAIVE_HF = "naive, byte tokenizer", "naive, Hugging Face tokenizer"
FLAT, FLAT_BATCH = "flat memory map", "flat memory map, batches"
FLAT_CODES, FLAT_ONE = "flat memory map, batches of codes", "flat memory map, batches of 1"
OURS, OURS_HF, OURS_BATCH = "ours", "ours, Hugging Face tokenizer", "ours, batches"
OURS_TAGS, OURS_ONE = "ours, batches with control tags", "ours, batches of 1"
OURS_CODES, OURS_CODES_TAGS = "ours, batches of codes", "ours, batches of codes with control tags"
OURS_NO_AHEAD = "ours, batches of codes without read-ahead"

SINGLE_ITEMS = (NAIVE, NAIVE_HF, FLAT, OURS, OURS_HF)
GOALS: tuple[tuple[str, str, str, tuple[float, float, float]], ...] = (
    ("over naive, byte tokenizer, batches of 32", OURS_BATCH, NAIVE, (40, 170, 6000)),
    ("over naive, Hugging Face tokenizer, single items", OURS_HF, NAIVE_HF, (200, 600, 6000)),
    ("of the flat-file limit, single items", OURS, FLAT, (0.8,) * 3),
    ("of the flat-file limit, batches of 1", OURS_ONE, FLAT_ONE, (0.8,) * 3),
    ("of the flat-file limit, batches of 32", OURS_BATCH, FLAT_BATCH, (0.9,) * 3),
    ("the same with control tags", OURS_TAGS, FLAT_BATCH, (0.9,) * 3),
    ("of the flat-file limit, codes, batches of 32", OURS_CODES, FLAT_CODES, (0.65,) * 3),
    ("the same with control tags", OURS_CODES_TAGS, FLAT_CODES, (0.65,) * 3),
    ("with read-ahead over without, codes, batches of 32", OURS_CODES, OURS_NO_AHEAD, (0.95,) * 3),
    ("batches of 32 over single items", OURS_BATCH, OURS, (1.5,) * 3),
)
"""(title, contender, contender it is compared with, least ratio on each shape)."""
COSTLIEST_OVER_CHEAPEST = 1.25
OUR_ENCODER = "ours: table lookup into buffers that are used again"
OUR_CODES = "ours: special tokens around the letters, one byte a token"
ALTERNATING_OVER_STAYING = 1.3
OWN_REPEATS = 3
"""How many times as often the contenders of this process are measured as the peers, which take long."""

Key = tuple[str, str]
"""(shape, contender)."""


@dataclass
class Settings:
    """How long to measure."""

    seconds: float
    repeats: int
    say: Callable[[str], None]


def run(worlds: Sequence[World], peers: Sequence[Peer], settings: Settings) -> Result:
    """Measure every contender on every world, and return tables of ratios."""
    tokenizer = c.hugging_face_tokenizer()
    own: dict[Key, tuple[Timed, int]] = {}
    theirs: dict[Key, tuple[Timed, int]] = {}
    failures: dict[tuple[str, str], str] = {}
    titles = {world.shape.name: world.shape.title for world in worlds}
    for world in worlds:
        settings.say(f"{world.shape.name}: warming and checking")
        world.warm()
        own |= {(world.shape.name, name): timing for name, timing in _own(world, tokenizer).items()}
        checked = guard.windows_to_check(world)
        expected = [guard.digest(example) for example in map(c.NaiveDataset(world).__getitem__, checked)]
        for peer in peers:
            try:
                settings.say(f"{world.shape.name}: preparing {peer.name}")
                peer.open(world)
                if peer.same_example:
                    guard.compare(peer.name, expected, peer.digests(world, checked))
            except (PeerFailed, guard.NotTheSameExample) as error:
                failures[world.shape.name, peer.name] = str(error)
                continue
            for way in peer.ways:
                theirs[world.shape.name, f"{peer.name}, {way}"] = (peer.timed(world, way), BATCH)
    rates = Race(own, settings.seconds, OWN_REPEATS * settings.repeats, settings.say).run()
    against = {key: timing for key, timing in own.items() if key[1] in {FLAT, OURS, OURS_BATCH}} if theirs else {}
    race = Race(against | theirs, settings.seconds, settings.repeats, settings.say)
    peer_rates = race.run()
    failures |= {(shape, name.rsplit(", ", 1)[0]): text for (shape, name), text in race.failures.items()}
    tables = [_goals(rates, peer_rates, titles, peers), _all(rates, peer_rates, titles, peers, failures)]
    data = {
        "windows_per_second": {f"{shape}: {name}": r.each for (shape, name), r in rates.items()},
        "windows_per_second_among_peers": {f"{shape}: {name}": r.each for (shape, name), r in peer_rates.items()},
        "medians": {f"{shape}: {name}": round(r.median, 2) for (shape, name), r in (peer_rates | rates).items()},
        "windows_of_each_repeat": {f"{shape}: {name}": r.windows for (shape, name), r in (peer_rates | rates).items()},
        "failures": {f"{shape}: {name}": text for (shape, name), text in failures.items()},
        "peers": {p.name: {"stored": p.stored, "encoder": p.encoder, "versions": p.versions} for p in peers},
    }
    return Result("loading", "Loading", tables, data)


def _own(world: World, tokenizer: Any) -> dict[str, tuple[Timed, int]]:
    """Return the contenders of this process, checked."""
    naive = c.NaiveDataset(world)
    flat, ours = c.FlatDataset(world), c.ours(world)
    datasets = {
        NAIVE: naive,
        NAIVE_HF: c.NaiveDataset(world, c.hugging_face_ids(tokenizer)),
        FLAT: flat,
        OURS: ours,
        OURS_HF: c.ours(world, tokenizer),
        FLAT_BATCH: flat,
        OURS_BATCH: ours,
        OURS_TAGS: c.ours(world, use_control_tags=True),
        FLAT_ONE: flat,
        OURS_ONE: ours,
        FLAT_CODES: c.FlatDataset(world, compact=True),
        OURS_CODES: c.ours(world, compact=True),
        OURS_NO_AHEAD: c.ours(world, compact=True, read_ahead=False),
        OURS_CODES_TAGS: c.ours(world, compact=True, use_control_tags=True),
    }
    checked = guard.windows_to_check(world)
    expected = [guard.digest(naive[window]) for window in checked]
    for name in SINGLE_ITEMS:
        guard.compare(name, expected, (guard.digest(datasets[name][window]) for window in checked))
    for name in (FLAT_BATCH, OURS_BATCH):
        batch = c.collate(datasets[name].__getitems__(checked))
        guard.compare(
            name, expected, (guard.digest({k: t[row] for k, t in batch.items()}) for row in range(len(checked)))
        )
    codes = [
        c.collate(datasets[name].__getitems__(checked))["codes"] for name in (FLAT_CODES, OURS_CODES, OURS_NO_AHEAD)
    ]
    if not all(each.equal(codes[0]) for each in codes):
        raise guard.NotTheSameExample("batches of codes differ from those of the flat file")
    found: dict[str, tuple[Timed, int]] = {}
    for name, dataset in datasets.items():
        if name in SINGLE_ITEMS:
            found[name] = timed(c.singles(dataset), world.order), 1
        else:
            size = 1 if name in {FLAT_ONE, OURS_ONE} else BATCH
            found[name] = timed(c.batches(dataset, size), world.order), size
    return found


def _goals(
    rates: dict[Key, Rates], peer_rates: dict[Key, Rates], titles: dict[str, str], peers: Sequence[Peer]
) -> Table:
    note = (
        "Medians of the ratios of each repeat; bold where reached. The flat-file limit and ours use the same encoder, buffers "
        "and rows. Peers are used as their documentation advises, with an encoder in torch; see the column `encoder` below."
    )
    table = Table("What must be reached", note, ["", *titles.values()])
    of_shape = {"short": 0, "5mb": 1, "150mb": 2}
    for title, one, other, targets in GOALS:
        values = [rates[shape, one].over(rates[shape, other]) for shape in titles]
        table.rows.append(
            [title, *(verdict(v, targets[of_shape[shape]]) for v, shape in zip(values, titles, strict=True))]
        )
    for name, way in ((OURS, SINGLES), (OURS_BATCH, BATCHES)):
        rivals = [f"{p.name}, {w}" for p in peers if p.same_example for w in p.ways if w in {way, STREAM}]
        row = [f"over the fastest peer, {way}"]
        for shape in titles:
            over = {r: peer_rates[shape, name].over(peer_rates[shape, r]) for r in rivals if (shape, r) in peer_rates}
            if over:
                fastest = min(over, key=over.__getitem__)
                row.append(f"{verdict(over[fastest], 1)} {small(fastest)}")
        if len(row) > 1:
            table.rows.append(row)
    for name, title in ((OURS, "single items"), (OURS_BATCH, "batches of 32"), (OURS_CODES, "codes, batches of 32")):
        repeats = zip(*(rates[shape, name].each for shape in titles), strict=True)
        value = statistics.median(max(each) / min(each) for each in repeats)
        row = [f"costliest shape over cheapest, {title}", verdict(value, COSTLIEST_OVER_CHEAPEST, at_most=True)]
        table.rows.append(row + [""] * (len(titles) - 1))
    return table


def _all(
    rates: dict[Key, Rates],
    peer_rates: dict[Key, Rates],
    titles: dict[str, str],
    peers: Sequence[Peer],
    failures: dict[tuple[str, str], str],
) -> Table:
    note = (
        "Windows/s as a multiple of the flat memory map one by one (the limit for single items); small: the figure itself. "
        "Same windows, same random order, interleaved repeats; what says otherwise says so."
    )
    table = Table("All contenders", note, ["", *titles.values(), "how it stores bases", "encoder"])
    flat, sqlite = "one file of bytes; windows in arrays", "SQLite, as specified, and its index"
    stored = {
        NAIVE: ("SQLite, `substr()`", "a list of Python integers"),
        NAIVE_HF: ("SQLite, `substr()`", "transformers"),
        **dict.fromkeys((FLAT, FLAT_ONE, FLAT_BATCH), (flat, OUR_ENCODER)),
        FLAT_CODES: (flat, OUR_CODES),
        **dict.fromkeys((OURS, OURS_HF, OURS_ONE, OURS_BATCH, OURS_TAGS), (sqlite, OUR_ENCODER)),
        **dict.fromkeys((OURS_CODES, OURS_CODES_TAGS, OURS_NO_AHEAD), (sqlite, OUR_CODES)),
    }

    def cells(measured: dict[Key, Rates], name: str, unless: str) -> list[str]:
        found = [measured.get((shape, name)) for shape in titles]
        return [
            f"{ratio(r.over(measured[shape, FLAT]))} {rate(r.median)}"
            if r
            else small(failures.get((shape, unless), ""))
            for shape, r in zip(titles, found, strict=True)
        ]

    for name, described in stored.items():
        table.rows.append([name, *cells(rates, name, name), *described])
    for peer in peers:
        if all((shape, peer.name) in failures for shape in titles):
            table.rows.append([peer.name, *cells(peer_rates, "", peer.name), peer.stored, peer.encoder])
            continue
        for way in peer.ways:
            name = f"{peer.name}, {way}"
            table.rows.append([name, *cells(peer_rates, name, peer.name), peer.stored, peer.encoder])
    return table


def run_alternating(world: World, settings: Settings) -> Result:
    """Measure windows that alternate at random among long contigs against windows of one contig, after the first touch."""
    world.warm()
    contig = world.window_contigs[world.order]
    orders = {"staying in one": world.order[contig == contig[0]], "alternating": world.order}
    first_of_each = np.unique(world.window_contigs, return_index=True)[1]
    flat, ours = c.FlatDataset(world), c.ours(world)
    for window in (*first_of_each.tolist(), len(world.order) - 1):
        guard.compare("ours", [guard.digest(flat[window])], [guard.digest(ours[window])])
    racing: dict[Key, tuple[Timed, int]] = {}
    for way, order in orders.items():
        racing |= {
            (way, FLAT): (timed(c.singles(flat), order), 1),
            (way, OURS): (timed(c.singles(ours), order), 1),
            (way, FLAT_BATCH): (timed(c.batches(flat), order), BATCH),
            (way, OURS_BATCH): (timed(c.batches(ours), order), BATCH),
        }
    for order in orders.values():  # the first touch of every page
        c.singles(ours)(order)
    rates = Race(racing, settings.seconds, settings.repeats, settings.say).run()
    table = Table(
        f"Among {world.shape.title}: alternating at random over staying in one",
        "Time of a window, as a multiple of the time of a window where all are of one contig; warm, after the first touch.",
        ["", "single items", "batches of 32"],
    )
    for title, names in (("ours", (OURS, OURS_BATCH)), ("flat memory map", (FLAT, FLAT_BATCH))):
        slower = [rates["staying in one", name].over(rates["alternating", name]) for name in names]
        if title == "ours":
            table.rows.append([title, *(verdict(v, ALTERNATING_OVER_STAYING, at_most=True) for v in slower)])
        else:
            table.rows.append([title, *(ratio(v) for v in slower)])
    for way in orders:
        table.rows.append([f"ours, {way}", rate(rates[way, OURS].median), rate(rates[way, OURS_BATCH].median)])
    data = {"windows_per_second": {f"{way}: {name}": r.each for (way, name), r in rates.items()}}
    return Result("alternating", "Many long contigs in one database", [table], data)
