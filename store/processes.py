"""Whether the process that wrote a file still lives, and what of the machine this one may use."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

CLOCK_SLACK = 2.0
"""Seconds that a process's start time may be off: the kernel counts it in ticks since boot."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container what it may use: microseconds of processor time, a period."""


def cores() -> int:
    """Count the cores that this process may use: of the machine, of its affinity, of its container's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        count = os.cpu_count() or 1
    try:
        used, period = QUOTA.read_text().split()
        count = min(count, max(1, int(used) // int(period)))
    except (OSError, ValueError):
        pass  # no quota: "max"
    return count


def lives(host: Any, pid: Any, created: Any) -> bool:
    """Whether a process of this host lives that wrote, at `created`, that it is `pid`.

    Raises
    ------
    ValueError
        If `pid` is no number, or `created` is no time.
    """
    number, began = int(pid), datetime.fromisoformat(str(created)).timestamp()
    if host != socket.gethostname():
        return False
    if number == os.getpid():
        return True
    try:
        psutil = import_module("psutil")
    except ModuleNotFoundError:  # of extra `ingest`: a laptop that only looks may lack it
        return _exists(number)
    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # After a reboot, or in a new container, the number may be another process's.
        return bool(process.create_time() <= began + CLOCK_SLACK)
    except psutil.NoSuchProcess:
        return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0
