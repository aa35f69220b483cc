"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Share:
    """How far the run is with one data set and variant.

    Attributes:
        data, variant: Names.
        prompts: All of them.
        done: Those that the method answered for.
        dropped: Those that it left out, by reason.
        failed: Those at which it failed.
    """

    data: str
    variant: str
    prompts: int
    done: int
    dropped: dict[str, int]
    failed: int

    @property
    def open(self) -> int:
        """Prompts that are still to be computed."""
        return self.prompts - self.done - sum(self.dropped.values()) - self.failed


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        shares: By data set and variant.
        pieces, finished: How many pieces there are, and are finished.
        seconds: That workers spent on the finished ones.
        holder: The process that runs it now (``"host, process 123, since …"``), or None.
    """

    shares: tuple[Share, ...]
    pieces: int
    finished: int
    seconds: float
    holder: str | None

    @property
    def complete(self) -> bool:
        """Whether every piece is finished."""
        return self.finished == self.pieces

    @property
    def failed(self) -> int:
        """Prompts at which the method failed."""
        return sum(share.failed for share in self.shares)
