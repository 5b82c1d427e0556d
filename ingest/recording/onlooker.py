"""A process that shows what is recorded in a Rerun viewer while a policy drives.

It is ``attnstore record watch``, which reads the journals: nothing of it runs in the robot's process, which
neither waits for it nor hands it anything. A viewer that hangs keeps Rerun's own library waiting for ever, also
when its process is to end; this one is ended then.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from attnstore.store.errors import MissingExtraError, UsageError

GRACE = 8.0
"""Seconds that a viewer has, after the last episode, to be shown the rest."""
START = 30.0
"""Seconds that is waited for it to begin."""
SPAWN = "spawn"


def check_rerun(where: bool | str | os.PathLike[str] | None) -> str | None:
    """Return where to show a recording, as ``attnstore record watch --rerun`` takes it; None: nowhere.

    Raises
    ------
    UsageError
        If it is an address that no Rerun viewer has.
    MissingExtraError
        If rerun-sdk is not installed.
    """
    if where is None or where is False:
        return None
    target = SPAWN if where is True else os.fspath(where)
    if "://" in target and not (
        target.startswith(("rerun://", "rerun+http://", "rerun+https://"))
        and target.endswith("/proxy")
    ):
        raise UsageError(
            f"a Rerun viewer is at rerun+http://HOST:9876/proxy; got {target!r} ({SPAWN} starts one, "
            "a directory takes an .rrd file an episode)"
        )
    if find_spec("rerun") is None:
        raise MissingExtraError("--rerun needs rerun-sdk: pip install 'attnstore[rerun]'")
    return target


class Onlooker:
    """The process that watches one recorder.

    Parameters
    ----------
    store, recording
        The store, and the recording's name in it.
    target
        As `check_rerun` returns it.
    """

    def __init__(self, store: Path, recording: str, target: str) -> None:
        command = [
            sys.executable, "-m", "attnstore", "record", "watch", str(store.absolute()),
            "--rerun", target, "--recording", recording,
            "--until-closed", "--since", repr(time.time() - 1), "--json",
        ]  # fmt: skip
        # Not of this terminal: Ctrl-C ends the policy's loop, and then this by `close`.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        # Before the policy moves: what it does first is to be seen, too.
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], START)[0]:
            self._process.stdout.readline()

    def close(self, told: Callable[[str], None]) -> None:
        """Let it show the rest, for a moment, and end it; `told` is told of what was not shown."""
        try:
            said, _ = self._process.communicate(timeout=GRACE)
            watched = json.loads(said.splitlines()[-1])
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            told(f"the Rerun viewer did not read what was recorded last within {GRACE:g} s")
            return
        except (OSError, ValueError, IndexError):
            told(f"what shows it in Rerun ended with exit code {self._process.wait()}")
            return
        if watched["left_out"] or watched["faults"]:
            told(f"in Rerun {watched['said']}")
