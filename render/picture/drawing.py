"""What of a phase is drawn, and how names of files say it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from attnstore.store.errors import UsageError
from attnstore.store.format.axes import PHASES
from attnstore.store.format.weighting import Weighting, check_weighting

from .label import printable

Reduction = Literal["max", "mean"]

LONGEST = 120
"""Characters of one folder name."""


def component(name: str) -> str:
    """One safe folder name from one part of a name: equal when already safe, else with a digest.

    Raises
    ------
    UsageError
        If the part is empty, ``.`` or ``..``, or holds a separator or a NUL.

    Examples
    --------
    >>> component("2025-12-10_09-00-39"), component("a b")
    ('2025-12-10_09-00-39', 'a_b-c8687a08')
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise UsageError(f"{printable(name)!r} cannot name a folder: it would leave its place")
    safe = re.sub(r"[^\w.+=@-]", "_", name, flags=re.ASCII)
    safe = re.sub(r"^[.-]+|\.+$", "_", safe)[:LONGEST]
    if safe == name:
        return name
    # without it two names could fall together
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What of a phase is drawn, as far as file names show it."""

    phase: str
    reduce: Reduction = "max"
    step: int | None = None
    """Denoising step, when it is not the last one."""
    sink_corrected: bool = False
    query: str | None = None
    """Query group, when it is not the phase's own."""
    weighting: Weighting = "raw"
    """Whether maps are weighted by value norms."""

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UsageError(f"a phase is one of {', '.join(PHASES)}; got {self.phase!r}")
        if self.reduce not in ("max", "mean"):
            raise UsageError(f"reduce is max or mean; got {self.reduce!r}")
        check_weighting(self.weighting)
        if self.step is not None and self.step < 0:
            raise UsageError(f"a step in a file name is 0 or more; got {self.step}")

    @property
    def _marks(self) -> str:
        step = "" if self.step is None else f"_step{self.step:02d}"
        query = ""
        if self.query is not None:
            # a word may hold what a folder's name may not
            safe = "".join("|" if c in "/\\\0" else c for c in self.query.replace(":", "-"))
            query = f"_query-{component(safe)}"
        carried = "" if self.weighting == "raw" else f"_{self.weighting}"
        return query + step + carried + ("_nosink" if self.sink_corrected else "")

    @property
    def _reduced_marks(self) -> str:
        return ("" if self.reduce == "max" else f"_{self.reduce}") + self._marks
