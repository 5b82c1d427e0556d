"""Episodes that are being recorded, in a viewer of Rerun's while they go on.

It reads the journals that the recorder writes, in a process that is not the robot's: whatever the viewer
does, no policy call waits for it. What is logged is what `attnstore.render.export.rerun` logs of a stored episode,
to the same entities, but for what is known only when an episode is over: the ends of the colours are those of the
calls so far, and a layer's active head is each call's own. Beside it:

::

    metrics/active_head/<phase>/<camera>/L05    the head whose heat is shown
    metrics/camera_share/<phase>/L05            every camera's share of the attention, the mean over heads
    status                                      what is shown, and what was left out

Timelines: ``keyframe`` (calls that were recorded), ``frame`` (the environment's steps), ``time``.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import AttnstoreError, IntegrityError
from attnstore.store.recordings.call import SeenCall, read_call
from attnstore.store.recordings.journal import SPOOL, SUFFIX, Mark, read_entry
from attnstore.store.recordings.progress import Tail
from attnstore.store.recordings.spool import CallMaps, read_maps

from ..picture import heatmap
from ..picture.scale import Limits, data_limits
from .rerun import METRICS, Entities, layer_name, load_rerun

SPAWN = "spawn"
"""Instead of an address: start a viewer on this machine."""
MASS, ACTIVE, SHARE = "camera_mass", "active_head", "camera_share"
assert MASS in METRICS
BEHIND = 32
"""Calls of an episode that may wait to be shown; of more, only the newest is."""
PATIENCE = 1.0
"""Seconds that a viewer may take to read a call, before calls are left out until it has."""
PAUSE = 0.03
"""Seconds between looks at the journals."""


@dataclass(slots=True)
class Watched:
    """What was shown."""

    episodes: int = 0
    shown: int = 0
    left_out: int = 0
    """Calls that the viewer was too slow for."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        calls = f"{self.shown} of {self.shown + self.left_out} calls of {self.episodes} episodes"
        slow = f"; the viewer was too slow for {self.left_out}" if self.left_out else ""
        return f"{calls} were shown{slow}{''.join(f'; {f}' for f in self.faults)}"


def watch(
    recordings: Path,
    target: str,
    *,
    ended: Callable[[], bool],
    since: float,
    recording: str = "*",
    layers: Sequence[int] | None = None,
    ready: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Watched:
    """Show episodes while they are recorded.

    Parameters
    ----------
    recordings
        Directory of a store's recordings; it may come later.
    target
        ``spawn``, the address of a viewer, or a directory, in which every episode becomes an ``.rrd`` file.
    ended
        Whether nothing more will come; what is there then is still shown.
    since
        Episodes that were over before, in seconds since 1970, are not shown.
    recording
        Directory of the one recording that is shown.
    layers
        Whose heat is drawn; None: of each phase the middle one's. Maps and metrics are of all.
    ready
        Called when it looks: what begins from then on is seen.
    say
        Is told what a user wants to know at once.

    Raises
    ------
    MissingExtraError
        If rerun-sdk is not installed.
    """
    rr = load_rerun("showing a recording while it goes on")
    ready()
    watched, live = Watched(), dict[Path, _LiveEpisode]()
    over: set[Path] = set()
    while True:
        last = ended()
        busy = False
        for path in sorted(set(recordings.glob(f"{recording}/*{SUFFIX}")) - over):
            if path not in live:
                if _was_over(path, since):
                    over.add(path)
                    continue
                live[path] = _LiveEpisode(rr, Tail(path), target, layers, watched, say)
            busy |= live[path].follow(last)
            if live[path].over:
                live.pop(path).close()
                over.add(path)
        if last and not busy:
            for each in live.values():
                each.close()
            return watched
        if not busy:
            time.sleep(PAUSE)


def _was_over(path: Path, since: float) -> bool:
    tail = Tail(path)
    tail.follow()
    return tail.written < since and tail.end is not None


class _LiveEpisode:
    """One episode, and the stream that it goes to."""

    def __init__(
        self, rr: Any, tail: Tail, target: str, layers: Sequence[int] | None, watched: Watched,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.over = False
        self._rr, self._tail, self._target, self._layers = rr, tail, target, layers
        self._watched, self._say = watched, say
        self._entities: Entities | None = None
        self._waiting: list[tuple[int, Mark]] = []
        self._calls = self._left_out = 0
        self._spool = -1
        self._stalled = False
        self._limits: dict[tuple[str, str, int], Limits] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def follow(self, last: bool) -> bool:
        """Show a call if there is one; say whether there was anything to do."""
        for mark in self._tail.follow():
            self._waiting.append((self._calls, mark))
            self._calls += 1
        if self._tail.head is None:
            return False
        self._hold_spool()
        if self._entities is None:
            self._entities = self._opened(self._tail.head)
        if self._stalled and not self._flushed():
            if last:
                self._leave_out(len(self._waiting))
                self._waiting.clear()
                self.over = True
            elif len(self._waiting) > BEHIND:
                self._leave_out(len(self._waiting) - 1)
                del self._waiting[:-1]
            return False
        if len(self._waiting) > BEHIND:
            self._leave_out(len(self._waiting) - 1)
            del self._waiting[:-1]
        if not self._waiting:
            if self._tail.end is not None:
                self._close_with(self._tail.end)
                self.over = True
            return False
        keyframe, mark = self._waiting.pop(0)
        try:
            with self._tail.opened() as file:
                call = read_call(read_entry(file, mark))
            self._show(keyframe, call, read_maps(self._spool, call) if self._spool >= 0 else [])
            self._watched.shown += 1
        except (IntegrityError, OSError, RuntimeError) as error:
            self._fault(f"{type(error).__name__}: {error}")
            self._leave_out(1)
        self._flushed()
        return True

    def close(self) -> None:
        """Let go of what is open."""
        if self._spool >= 0:
            os.close(self._spool)
            self._spool = -1
        # A viewer that does not read would keep a stream's own end waiting.
        if self._entities is not None and not self._stalled:
            self._entities.stream.disconnect()

    def _leave_out(self, calls: int) -> None:
        self._left_out += calls
        self._watched.left_out += calls

    def _fault(self, text: str) -> None:
        if text not in self._watched.faults:
            self._watched.faults.append(text)
            self._say(text)

    def _flushed(self) -> bool:
        """Wait a moment until the viewer has what was logged; say whether it has."""
        assert self._entities is not None
        try:
            self._entities.stream.flush(timeout_sec=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:
            if not self._stalled:
                self._say(
                    f"{self._target} does not read ({error}): calls are left out until it does"
                )
            self._stalled = True
            return False
        self._stalled = False
        return True

    def _opened(self, head: Any) -> Entities:
        folder = self._tail.path.parent.name
        entities = Entities(self._rr, f"{folder}/{self._tail.path.stem}")
        if self._target == SPAWN:
            if shutil.which("rerun") is None:  # of an environment that is not activated
                os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"
            entities.stream.spawn()
        elif "://" in self._target:
            entities.stream.connect_grpc(self._target)
        else:
            out = Path(self._target)
            out.mkdir(parents=True, exist_ok=True)
            entities.stream.save(out / f"{self._tail.path.stem}.rrd")
        entities.name(str(head["name"]))
        self._watched.episodes += 1
        return entities

    def _hold_spool(self) -> None:
        """Open the spool, and keep it open: the file is deleted when the episode is committed."""
        if self._spool < 0:
            path = self._tail.path.with_suffix(SPOOL)
            with suppress(OSError):
                self._spool = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _show(self, keyframe: int, call: SeenCall, maps: Sequence[CallMaps]) -> None:
        entities = self._entities
        assert entities is not None
        if keyframe == 0 or not self._known:
            self._describe(entities, call, maps)
        stream = entities.stream
        stream.set_time("keyframe", sequence=keyframe)
        stream.set_time("frame", sequence=call.step)
        stream.set_time("time", duration=call.at)
        for picture in call.pictures:
            entities.image(picture.camera, picture.data)
        lines = [f"keyframe {keyframe}, step {call.step}"]
        for each in maps:
            lines += self._show_maps(entities, each, call)
        self._show_shares(entities, maps)
        if not maps:
            lines.append(f"no attention: {self._why_none(call)}")
        lines.append(f"{call.dropped} calls not recorded, {self._left_out} not shown")
        entities.text("status", lines)
        for name, values in (("actions", call.actions[0]), ("state", call.state)):
            if (name,) not in self._known:
                self._known[(name,)] = entities.components(name, len(values))
            entities.scalars(self._known[(name,)], values)

    def _why_none(self, call: SeenCall) -> str:
        if self._tail.head is not None and self._tail.head["mode"] == "replay":
            return "a replay mode recording has it after attnstore ingest recording"
        return "this call was not captured" if call.shown is None else "the episode was committed"

    def _show_maps(self, entities: Entities, each: CallMaps, call: SeenCall) -> list[str]:
        entities.maps(each.phase, each.camera, each.maps)
        draw = heatmap.sampler(call.geometry[each.camera]).draw
        count, lines = len(each.maps), []
        for layer in range(count):
            self._metric(entities, MASS, each, layer, each.camera_mass[layer])
            self._metric(entities, ACTIVE, each, layer, each.active[layer : layer + 1])
            if layer not in self._drawn(count):
                continue
            head = int(each.active[layer])
            where = each.phase, each.camera, layer
            now = data_limits(each.maps[layer, head])
            before = self._limits.get(where, now)
            now = Limits(min(before.vmin, now.vmin), max(before.vmax, now.vmax))
            self._limits[where] = now
            entities.heat(*where, draw(each.maps[layer, head]), now)
            share = each.camera_mass[layer, head]
            lines.append(
                f"{each.phase} {layer_name(layer)} H{head:02d} of {each.query} on {each.camera}: "
                f"share {share:.3f}"
            )
        return lines

    def _drawn(self, count: int) -> Sequence[int]:
        """Layers, of so many, whose heat is drawn."""
        return self._layers or (count // 2,)

    def _show_shares(self, entities: Entities, maps: Sequence[CallMaps]) -> None:
        """Log how much of a phase's attention every camera has, the mean over a drawn layer's heads."""
        for phase in dict.fromkeys(each.phase for each in maps):
            own = [each for each in maps if each.phase == phase]
            for layer in self._drawn(len(own[0].maps)):
                key = SHARE, phase, layer
                if key not in self._known:
                    self._known[key] = entities.path("metrics", SHARE, phase, layer_name(layer))
                    names = [f"{phase} {layer_name(layer)}, {each.camera}" for each in own]
                    entities.series(self._known[key], names)
                shares = np.array([each.camera_mass[layer].mean() for each in own])
                entities.scalars(self._known[key], shares)

    def _metric(
        self, entities: Entities, metric: str, each: CallMaps, layer: int, values: NDArray[Any]
    ) -> None:
        key = (metric, each.phase, each.camera, layer)
        if key not in self._known:
            if metric == ACTIVE:
                self._known[key] = entities.path("metrics", *key[:3], layer_name(layer))
            else:
                self._known[key] = entities.heads(*key, len(values))
        entities.scalars(self._known[key], values)

    def _describe(self, entities: Entities, call: SeenCall, maps: Sequence[CallMaps]) -> None:
        self._instruction(call.instruction, "under way")
        heat: tuple[str, int] | None = None
        series: dict[str, list[str]] = {}
        if maps:
            heat = maps[0].phase, self._drawn(len(maps[0].maps))[0]
            shown = [(each, layer_name(self._drawn(len(each.maps))[0])) for each in maps]
            shares = [entities.path("metrics", SHARE, each.phase, layer) for each, layer in shown]
            series["camera shares, mean over heads"] = list(dict.fromkeys(shares))
            series["active head"] = [
                entities.path("metrics", ACTIVE, each.phase, each.camera, layer)
                for each, layer in shown
            ]
        cameras = [p.camera for p in call.pictures if p.camera in call.geometry]
        entities.stream.send_blueprint(
            entities.blueprint(cameras, heat, series, "instruction", "status"),
            make_active=True, make_default=True,
        )  # fmt: skip

    def _instruction(self, instruction: str, outcome: str) -> None:
        head = self._tail.head
        assert head is not None
        assert self._entities is not None
        self._entities.text(
            "instruction",
            [
                instruction or "(no instruction)", "", f"episode {head['name']}", f"outcome {outcome}",
                f"policy {head['policy']['policy']}", f"recorded {head['mode']}",
            ],
            static=True,
        )  # fmt: skip

    def _close_with(self, end: Any) -> None:
        head = self._tail.head
        assert head is not None
        reward = "" if end.get("reward") is None else f", reward {end['reward']:g}"
        try:
            instruction = str(head.get("instruction") or self._tail.call(-1).instruction)
        except (AttnstoreError, OSError):
            instruction = ""
        self._instruction(instruction, f"{end['outcome']}{reward}")
        self._flushed()
