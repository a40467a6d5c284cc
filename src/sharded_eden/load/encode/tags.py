"""Control tags: contig ID -> the header of its rows. The tag is the part of the ID before the first `__`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, warn
from sharded_eden.format.schema import control_name, control_tag
from sharded_eden.load.encode.example import RowFormat, tag_ids_are_bases
from sharded_eden.load.locate.windows import WindowIndex

NAMES_CHECKED_AT_START = 256
MAX_CACHED_NAMES = 65_536


class ControlTags(Mapping[str, list[int]]):
    """{sequence ID or name: ids of its control tag}.

    A tag is encoded on first use, so memory does not grow with the number of contigs. Iterating yields the names in the window
    database; it takes one index lookup per name.

    Args:
        index: the windows.
        row_format: the layout of a row; the constructor checks that the first names fit into it.

    Raises:
        UsageError: a tag leaves no room for bases, or the tokenizer cannot encode it.
    """

    def __init__(self, index: WindowIndex, row_format: RowFormat) -> None:
        self._index = index
        self._format = row_format
        self._headers: dict[str, tuple[NDArray[np.int64], int]] = {}
        self._warned = False
        # The longest tag first: an error then states the room that all of them need.
        names = sorted(islice(self, NAMES_CHECKED_AT_START), key=lambda name: len(self[name]), reverse=True)
        self.least_room = min((self.header(name)[1] for name in names), default=row_format.seq_length)
        """The smallest number of bases in a row, over the first names."""

    def header(self, sequence_id: str) -> tuple[NDArray[np.int64], int]:
        """Return the header of a row, (H,) int64, and how many bases fit after it."""
        name = control_name(sequence_id)
        known = self._headers.get(name)
        if known is None:
            if len(self._headers) >= MAX_CACHED_NAMES:
                self._headers.clear()
            ids = self[name]
            if not self._warned and tag_ids_are_bases(self._format.encoding, ids):
                self._warned = True
                warn(
                    f"the control tag {control_tag(name)} is encoded with ids that also stand for bases. Its tokens "
                    "do not count in the loss, because of their position; a tokenizer with a separate id for each tag avoids "
                    "the ambiguity."
                )
            header = self._format.header(ids)
            known = self._headers[name] = (header, self._format.room(header))
        return known

    def __getitem__(self, sequence_id: str) -> list[int]:
        tag = control_tag(control_name(sequence_id))
        try:
            return self._format.encoding.text_to_ids(tag)
        except Exception as error:
            raise UsageError(
                f"the tokenizer cannot encode the control tag {tag} ({error}). Add it to the tokenizer, or pass "
                "use_control_tags=False"
            ) from error

    def __iter__(self) -> Iterator[str]:
        seen = set()
        for sequence_id in self._index.sequence_ids_by_prefix(1):
            name = control_name(sequence_id)
            if name not in seen:
                seen.add(name)
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)
