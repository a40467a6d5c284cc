"""What `verify` returns: counts and findings, as values and as a dictionary."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sharded_eden.checks.findings import Finding


@dataclass(kw_only=True)
class VerifyResult:
    """What was checked, and the findings."""

    full: bool
    samples: int
    window_databases: int
    windows: int
    """The number of windows of all usable window databases."""
    windows_read: int
    """The number of windows that were read as training reads them."""
    addresses_compared: int
    """The number of windows whose bases were read by their address and by SQLite."""
    contigs: int
    """The number of contigs that were read; 0 unless `full`."""
    bases: int
    near_duplicates: int | None = None
    """The pairs of similar contigs in different splits; None where they were not searched for."""
    not_compared: int = 0
    """The contigs with windows that are too short to be compared with other splits."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"is_clean": self.is_clean, **asdict(self)}
