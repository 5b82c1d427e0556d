"""Timing, and what a benchmark reports."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    baseline: str = ""
    """What it was measured against, in the same run."""
    aim: str = ""
    """``<= 1.1``, ``>= 40``; empty where there is none."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without an aim."""
        if not self.aim:
            return None
        sign, limit = self.aim.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True, slots=True)
class Setting:
    """How large and where."""

    directory: Path
    """Scratch space; about 5 GB at full size."""
    toy: bool = False
    """Seconds instead of minutes; the figures mean nothing then."""

    def repeats(self, full: int) -> int:
        return 1 if self.toy else full


@dataclass(slots=True)
class Times:
    """Samples of one operation, in seconds."""

    cpu: list[float] = field(default_factory=list)
    """Of the whole process, all threads."""
    wall: list[float] = field(default_factory=list)

    def add(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Call the operation and note what it took; return its result."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = operation(*arguments)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return result

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    @property
    def wall_median(self) -> float:
        return statistics.median(self.wall)


def timed(operation: Callable[[], Any], repeats: int) -> Times:
    """Time an operation several times."""
    times = Times()
    for _ in range(repeats):
        times.add(operation)
    return times


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(p.stat().st_size for p in paths if p.is_file())


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {}
    for name in (
        "numpy",
        "torch",
        "transformers",
        "zarr",
        "tensorstore",
        "h5py",
        "av",
        "opencv-python-headless",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    flags = next((x for x in lines if x.startswith("flags")), "").split()
    extras = [f for f in ("avx2", "avx512f", "amx_bf16", "sha_ni") if f in flags]
    return f"{models[0] if models else platform.machine()} ({', '.join(extras)})"
