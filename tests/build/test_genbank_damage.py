"""A GenBank record that cannot be recognised is refused, never skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharded_eden import build_sequence_dbs
from sharded_eden.errors import InputError

RECORD = """LOCUS       AB00000{k}                  12 bp    DNA     linear   BCT 01-JAN-2000
DEFINITION  Test.
ACCESSION   AB00000{k}
VERSION     AB00000{k}.1
FEATURES             Location/Qualifiers
ORIGIN
        1 acgtacgtac gt
//
"""


def test_a_record_with_a_damaged_first_line_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    whole = "".join(RECORD.format(k=k) for k in (1, 2, 3))
    path = tmp_path / "S.gb"
    path.write_text(whole)
    assert build_sequence_dbs([path], tmp_path / "whole").contigs == 3
    for damaged in ("LOCUT       AB000002", " LOCUS      AB000002"):
        path.write_text(whole.replace("LOCUS       AB000002", damaged))
        with pytest.raises(InputError, match="belongs to no record"):
            build_sequence_dbs([path], tmp_path / "out")
