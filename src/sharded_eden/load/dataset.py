"""`ArrayDataset`: window index -> training example, as NumPy arrays. Calls locate, read, encode and the access log.

Input: integers. Output: dicts of arrays. Opening costs a fixed number of queries and one index seek for each sample.
`ShardedEdenDataset` (`load/tensors.py`) makes tensors of them. Nothing here imports torch.
"""

from __future__ import annotations

import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np

from sharded_eden.errors import EdenError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.load.access_log import AccessLog
from sharded_eden.load.encode.example import reverse_complement
from sharded_eden.load.encode.rows import Arrays, RowMaker
from sharded_eden.load.encode.tag_table import TableTags
from sharded_eden.load.encode.tags import ControlTags
from sharded_eden.load.locate.cached import local_window_db
from sharded_eden.load.locate.derived import window_db_to_open
from sharded_eden.load.locate.packs import PackIndex
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.opening import row_format_of, tags_of, warn_of_rows
from sharded_eden.load.options import ExampleOptions, Include, boolean, path_or_url, takes_options
from sharded_eden.load.read.databases import Connections
from sharded_eden.load.read.fetch import Wanted, Window, WindowFetcher
from sharded_eden.load.read.samples import check_samples
from sharded_eden.load.source import addresses_of, open_sequences
from sharded_eden.shuffle import EPOCHS

if TYPE_CHECKING:
    from typing_extensions import Self

    from sharded_eden.load.tensors import ShardedEdenDataset as ShardedEdenDataset  # noqa: PLC0414 - may be imported from here

logger = logging.getLogger(__name__)

Index = Any
"""A window index, or (epoch, window index): Python or NumPy integers, negative indices count from the end."""


class ArrayDataset:
    """The windows of one split, as NumPy arrays: everything of `ShardedEdenDataset` that needs no torch.

    Processes may be forked, spawned or come from a fork server: connections are opened where they are used.

    Args:
        tokenizer: see `sharded_eden.load.encode.tokenizer.encoding_of`; None is the built-in `NucleotideTokenizer`.
        sequence_db_dir: the folder of per-sample sequence databases, or its URL in object storage.
        window_db_path: the window database of the split, or its URL: it is then copied to `cache_dir` with its index.
        seq_length: tokens of a row; must be the window size of the window database.
        rc_aug: use the reverse complement of half of the windows, by (seed, epoch, window index).
        stride: bases between windows; must be that of the window database. None takes it from there.
        split: the name of the split, for messages and logs.
        seed: decides strands.
        rank: for the access log; None: that of torch.distributed, or the environment variable RANK.
        options: all others, see `sharded_eden.load.options.ExampleOptions`.

    Paths are made absolute here: workers read the same files after the process changes its folder.

    Raises:
        MissingDatabase: a folder, the window database or the database of a sample is missing.
        GeometryMismatch: the window database was built for other windows.
        DatabaseError: a database is damaged or has other tables.
        UsageError: the tokenizer lacks an id, a row has no room for bases, or an argument has the wrong type.

    Example:
        >>> from sharded_eden import ArrayDataset
        >>> with ArrayDataset.open("sequence_db_dir", "windows/train_windows.db") as dataset:
        ...     print(dataset.seq_length, len(dataset))
        1024 81
    """

    @takes_options
    def __init__(
        self,
        tokenizer: Any,
        sequence_db_dir: str | os.PathLike[str],
        window_db_path: str | os.PathLike[str],
        seq_length: int,
        create_attention_mask: bool = False,
        rc_aug: bool = False,
        stride: int | None = None,
        window_min_length_threshold: int | None = None,
        use_control_tags: bool = False,
        split: str = "train",
        log_windows: bool = False,
        log_dir: str | os.PathLike[str] | None = None,
        skip_stats: bool = True,
        include_bos: Include = True,
        include_sep: Include = True,
        include_eos: bool = True,
        seed: int = 42,
        *,
        rank: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = opts = ExampleOptions(
            window_min_length_threshold=window_min_length_threshold, create_attention_mask=create_attention_mask,
            use_control_tags=use_control_tags, include_bos=include_bos, include_sep=include_sep, include_eos=include_eos,
            log_windows=log_windows, log_dir=log_dir, skip_stats=skip_stats, **options,
        )  # fmt: skip
        vars(self).update(vars(opts))  # every option is an attribute; some are replaced below by what they come to
        self.include_bos, self.include_sep = opts.has_bos, opts.has_sep
        self.tokenizer = tokenizer
        self.sequence_db_dir = path_or_url(sequence_db_dir, "sequence_db_dir")
        self.seq_length = seq_length = integer(seq_length, "seq_length")
        self.rc_aug = boolean(rc_aug, "rc_aug")
        stride = None if stride is None else integer(stride, "stride")
        self.split = split
        self.seed = integer(seed, "seed")
        rank = None if rank is None else integer(rank, "rank")

        window_size = seq_length if opts.window_size is None else opts.window_size
        self.window_db_path = window_db_to_open(
            opts, local_window_db(window_db_path, self.sequence_db_dir, opts), self.sequence_db_dir, window_size, stride
        )
        self._reader = open_sequences(self.sequence_db_dir, self.window_db_path, opts)
        self._index = WindowIndex(self.window_db_path, io=opts.io)
        self.sample_db_mapping = {sample_id: str(path) for sample_id, path in self._reader.paths.items()}
        try:
            self._index.check_geometry(
                window_size=window_size,
                stride=stride,
                min_length=opts.window_min_length_threshold,
                called="seq_length" if opts.window_size is None else "window_size",
            )
            self.stride = self._index.geometry.stride
            self.window_min_length_threshold = self._index.geometry.min_length
            self._packs = PackIndex(self._index) if opts.packed else None
            self._length = self._index.total_windows if self._packs is None else self._packs.total
            self._addresses = addresses_of(
                self._index, self._reader, sequence_db_dir=self.sequence_db_dir, stride=self.stride, options=opts
            )
            if self._addresses is None or not self._addresses.has_every_sample:
                check_samples(self._index, self._reader, self.sequence_db_dir)
            self.db_connections = Connections(self._reader, self.window_db_path)

            self._format = row_format_of(opts, seq_length, tokenizer, self._index, seed=self.seed)
            ids = self._format.encoding
            self.bos_id, self.eos_id, self.sep_id, self.pad_id = ids.bos, ids.eos, ids.sep, ids.pad
            # `index` has read the databases that have addresses. All others show now whether SQLite can read them.
            is_sound = frozenset[str]() if self._addresses is None else self._addresses.sound_samples
            self._reader.open_all(is_sound if opts.read_with == "auto" else frozenset())
            tags = tags_of(opts, self._index, self._format, self.seed)
            self._tags_digest = tags.digest if isinstance(tags, TableTags) else None
            self.ctrl_ids_map: Mapping[str, list[int]] = tags if isinstance(tags, ControlTags) else {}
            self._fetcher = WindowFetcher(
                self._index, self._reader, self._addresses, self._format,
                tags=tags, split=split, seed=self.seed, rc_aug=rc_aug,
            )  # fmt: skip
            warn_of_rows(self._index, self._fetcher, self._format, packed=opts.packed)
            self._array_rows = self._array_maker(self._fetcher)
            self._prepare()
        except BaseException:
            self.close()
            raise

        self._access_log = AccessLog.of(opts, split, rank, self._reader.only_sample) if opts.log_windows else None
        if not opts.skip_stats:
            counts = self.length, self.distinct_sequences, len(self._reader.paths)
            logger.info("%s: %d windows of %d contigs in %d samples", split, *counts)

    @classmethod
    def open(
        cls,
        sequence_db_dir: str | os.PathLike[str],
        window_db_path: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        **options: Any,
    ) -> Self:
        """Open a split with the window size and stride of its window database; arguments and errors as for the class.

        Example: `ShardedEdenDataset.open("seqdb", "windows/train.db", rc_aug=True)`.
        """
        given = {name: options[name] for name in ("io", "cache_dir", "request_seconds") if name in options}
        folder = path_or_url(sequence_db_dir, "sequence_db_dir")
        index = WindowIndex(
            local_window_db(window_db_path, folder, ExampleOptions(**given)), io=options.get("io", "auto")
        )
        geometry, row_tokens = index.geometry, index.metadata.get("pack_row_tokens")
        index.close()
        if options.get("packed") and row_tokens is not None:
            options = {"seq_length": row_tokens, "window_size": geometry.window_size, **options}
        options = {"seq_length": geometry.window_size, **options}
        is_same_size = (options.get("window_size") or options["seq_length"]) == geometry.window_size
        if is_same_size or options.get("derive_windows", False) is False:  # another size has a default of its own
            options = {"stride": geometry.stride, **options}
        return cls(tokenizer, sequence_db_dir, window_db_path, **options)

    # ---- properties ----

    def __len__(self) -> int:
        return self._length

    @property
    def length(self) -> int:
        """The number of items: windows, or packs."""
        return self._length

    @property
    def distinct_sequences(self) -> int:
        """The number of contigs that have a window."""
        return self._index.distinct_sequences

    @property
    def has_table(self) -> bool:
        """Whether the tokenizer has one id per letter, so that encoding is a table lookup."""
        return self._format.encoding.table is not None

    @property
    def fingerprint(self) -> int:
        """The integer that ties checkpoints to this split and its geometry."""
        return self._index.fingerprint

    @property
    def geometry(self) -> dict[str, int]:
        """How the windows were cut and packed, from the metadata of the window database."""
        geometry = self._index.geometry.as_metadata()
        if self._format.window_bases is not None:
            geometry["seq_length"] = self.seq_length  # what the window size does not say
        return geometry if self._packs is None else {**geometry, "pack_fingerprint": self._packs.fingerprint}

    @property
    def rows(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """What decides the tokens of a row beside its window, and what it was in version 0.1 for the same tokenizer.

        Special ids (None where rows lack the token), `control_tags`, `rc_aug`, `tags` for those of a table, and how masked
        rows are masked. Rows of 0.1 had BOS, SEP and EOS.
        """
        flags = {"control_tags": bool(self.options.use_control_tags), "rc_aug": bool(self.rc_aug)}
        masking = {} if self._format.masking is None else self._format.masking.as_rows
        tags = {} if self._tags_digest is None else {"tags": self._tags_digest}
        return {**self._format.special_ids, **flags, **tags, **masking}, {**self._format.encoding.ids_of_0_1, **flags}

    @property
    def letters(self) -> int:
        """An integer that tells the ids of letters apart, in [0, 2**63)."""
        return self._format.letters

    @property
    def random_seed(self) -> int | None:
        """The seed of strands, masks and dropped fields of tags; None where rows have none of these."""
        draws = self.rc_aug or self._format.masking is not None or self.options.tag_dropout
        return self.seed if draws else None

    @property
    def window_db_conn(self) -> apsw.Connection:
        """This thread's connection to the window database."""
        return self._index.connection

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(split={self.split!r}, windows={self.length}, seq_length={self.seq_length}, "
            f"stride={self.stride}, samples={len(self.sample_db_mapping)})"
        )

    # ---- items ----

    def _array_maker(self, fetcher: Any) -> RowMaker:
        """Return what makes arrays of this dataset's layout from the windows of a fetcher: its own, or that of a mixture."""
        return RowMaker(self._format, fetcher, compact=False, packed=self.options.packed, reuse=False)

    def _prepare(self) -> None:
        """Make what the rows of a subclass need; called when everything is open."""

    def arrays(self, indices: Sequence[Index]) -> Arrays:
        """Return the items of many indices as NumPy arrays, bit-identical to the tensors of `ShardedEdenDataset`.

        Returns:
            `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32; with `objective="mlm"` also
            `padding_mask` (B, T) bool; of packed rows also `cu_seqlens` (B, S) and `max_seqlen` (B,) int32. With `compact`,
            too. There is no `attention_mask`. The arrays are new memory.

        Raises:
            IndexError: an index is out of range.
            MissingSequence: a contig is absent, or too short.
            DatabaseError: a database cannot be read, or letters cannot be encoded.

        Example: `dataset.arrays([0, (1, 5)])["tokens"]` holds window 0 in epoch 0 and window 5 in epoch 1.
        """
        wanted, sizes = self._windows_of(indices)
        self._log(wanted)  # before they are read: a window that fails is in the log, too
        return self._array_rows.make(wanted, sizes)

    @property
    def items_ahead(self) -> int:
        """The most items to `announce` beyond a batch: 0 while what is read is in the page cache."""
        return self._fetcher.windows_ahead * self._length // max(1, self._index.total_windows)

    def announce(self, indices: Sequence[Index]) -> None:
        """Tell the kernel which items are read soon. An error is raised when they are read."""
        with suppress(EdenError):
            self._fetcher.announce([window_idx for _, window_idx in self._windows_of(indices)[0]])

    def _log(self, wanted: Sequence[Wanted]) -> None:
        if self._access_log is not None:
            self._access_log.write(wanted, self._index, self._addresses)

    def _windows_of(self, indices: Sequence[Index]) -> tuple[list[Wanted], list[int]]:
        """Return (epoch, window index) of every window of these items, and how many each item has."""
        what = "windows" if self._packs is None else "packs"
        length = self._length
        resolved = [
            (0, key)
            if type(key) is int and 0 <= key < length
            else key
            if type(key) is tuple and [*map(type, key)] == [int, int] and 0 <= key[0] < EPOCHS and 0 <= key[1] < length
            else self._resolve(key, length, what)
            for key in indices
        ]
        if self._packs is None:
            return resolved, [1] * len(resolved)
        packs = self._packs.windows([pack_idx for _, pack_idx in resolved])
        wanted = [(epoch, window) for (epoch, _), windows in zip(resolved, packs, strict=True) for window in windows]
        return wanted, [len(windows) for windows in packs]

    def locate_many(self, window_indices: Sequence[int]) -> list[tuple[str, int]]:
        """Return the (sequence ID, window_in_seq_idx) of windows."""
        total = self._index.total_windows
        return self._index.names([self._resolve(index, total, "windows")[1] for index in window_indices])

    def fetch(self, index: Index) -> Window:
        """Return a window as it is in the database.

        With packs, the index is that of a window in `fetch`, and that of a pack in `fetch_many`.
        """
        return next(self._fetch([self._resolve(index, self._index.total_windows, "windows")]))

    def fetch_many(self, indices: Sequence[Index]) -> Iterator[Window]:
        """Yield the windows of many items."""
        return self._fetch(self._windows_of(indices)[0])

    def _fetch(self, wanted: Sequence[Wanted]) -> Iterator[Window]:
        letters = np.empty((len(wanted), self._format.buffer_bases), dtype=np.uint8)
        placed = self._fetcher.fill(wanted, [1] * len(wanted), letters)
        located = self._index.locate_many([window_idx for _, window_idx in wanted])
        for k, ((epoch, window_idx), (sequence_id, window_in_seq_idx, _)) in enumerate(
            zip(wanted, located, strict=True)
        ):
            header = self._format.header([]) if placed.headers is None else placed.headers[k].copy()
            bases = letters[k, placed.first[k] : placed.end[k]]
            yield Window(bases, placed.reverse[k], header, window_idx, sequence_id, window_in_seq_idx, epoch)

    def _resolve(self, index: Index, length: int, what: str) -> tuple[int, int]:
        """Return (epoch, index >= 0) of one of `length` windows or packs."""
        try:
            epoch, window_idx = index if isinstance(index, (tuple, list)) else (0, index)
            epoch, window_idx = operator.index(epoch), operator.index(window_idx)
        except (TypeError, ValueError):
            raise IndexError(f"{shown(index)} is neither a window index nor (epoch, window index)") from None
        if not 0 <= epoch < EPOCHS:
            raise IndexError(f"{shown(index)} is out of range: an epoch is 0 or more, and below 2**63")
        if not -length <= window_idx < length:
            raise IndexError(f"{shown(index)} is out of range: the {self.split} split has {length} {what}")
        return epoch, window_idx % length

    # ---- methods of the original loader ----

    @staticmethod
    def reverse_complement(seq: str) -> str:
        """Return the reverse complement of a sequence; case is kept."""
        return reverse_complement(seq)

    # ---- closing ----

    def close(self) -> None:
        """Close every database and log that this process has opened for this dataset. It may be called again."""
        with ExitStack() as parts:  # the last one first; all are closed, also after an error
            for name in ("_index", "_addresses", "_reader", "_access_log"):
                if (part := self.__dict__.get(name)) is not None:
                    parts.callback(part.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # at interpreter exit, the modules that closing needs may be unloaded
            self.close()


def __getattr__(name: str) -> Any:
    if name != "ShardedEdenDataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sharded_eden.load.tensors import ShardedEdenDataset

    return ShardedEdenDataset
