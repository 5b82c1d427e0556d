"""Recordings as a dataset: what policies saw while they drove, an episode a journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnstore.store.commits import MARKER, now, slug
from attnstore.store.episode_names import names_episode
from attnstore.store.errors import EpisodeError, IntegrityError, NotFoundError, UsageError
from attnstore.store.format.views import is_current
from attnstore.store.recordings.journal import (
    SPOOL,
    SUFFIX,
    Contents,
    Journal,
    Place,
    read_bodies,
    read_contents,
    read_head,
)
from attnstore.store.recordings.progress import being_recorded

from ..datasets.base import OUTCOMES, EpisodeInfo, Frame
from ..policies.base import Policy
from .call import unpack_call

RECORDINGS = "recordings"
"""Directory of a store's recordings."""
REST = ".rest"
"""Suffix of a file with the bytes that a recovery cut off a journal."""
RECOVERED = "recovered: its process ended without finish"


def recording_directories(source: Path, name: str | None = None) -> list[Path]:
    """Directories with journals: of a store, each of its recordings; else the directory itself.

    Parameters
    ----------
    name
        Only the recording of this name.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    if not source.is_dir():
        raise NotFoundError(f"{source}: no such directory")
    if (source / MARKER).exists():
        below = source / RECORDINGS
        found = sorted(p for p in below.iterdir() if p.is_dir()) if below.is_dir() else []
        if not found:
            raise NotFoundError(f"{source}: the store has no recordings")
        chosen = [p for p in found if name in (None, p.name) or p.name == slug(name or "")]
        if not chosen:
            known = ", ".join(p.name for p in found)
            raise NotFoundError(f"{source}: no recording is called {name!r}; it has: {known}")
        return chosen
    if not any(source.glob(f"*{SUFFIX}")):
        raise NotFoundError(f"{source}: neither a store nor a directory with *{SUFFIX} files")
    return [source]


class RecordingDataset:
    """The episodes of one recording.

    Parameters
    ----------
    directory
        With its journals.
    outcome
        Only episodes of this outcome.
    episodes
        Only episodes of these names; globs are allowed.
    limit
        At most so many.

    Raises
    ------
    NotFoundError
        If there is no journal, or none has the asked name.
    """

    kind = "recording"

    def __init__(
        self,
        directory: Path,
        *,
        outcome: str | None = None,
        episodes: Sequence[str] = (),
        limit: int | None = None,
    ) -> None:
        self.directory, self.name = directory, directory.absolute().name
        self._outcome, self._patterns, self._limit = outcome, tuple(episodes), limit
        self._last: tuple[Path, Contents] | None = None
        self._files: dict[str, Path] = {}
        self.unreadable: dict[str, str] = {}
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            try:
                head = read_head(path)
                self._files.setdefault(str(head["name"]), path)
            except (IntegrityError, KeyError) as error:
                self.unreadable[path.name] = str(error)
        if not self._files and not self.unreadable:
            raise NotFoundError(f"{directory}: no *{SUFFIX} files")
        for pattern in self._patterns:
            if not any(names_episode(pattern, name) for name in self._files):
                raise NotFoundError(f"{directory}: no recorded episode is called {pattern!r}")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras of the first recorded call.

        Raises
        ------
        NotFoundError
            If no call was recorded.
        """
        for name in sorted(self._files):
            first = next((p for p in self._contents(name).places if p.kind == "call"), None)
            if first is not None:
                names = [str(c["camera"]) for c in first.head["cameras"]]
                return tuple(n for n in names if is_current(n))
        raise NotFoundError(f"{self.directory}: no policy call was recorded")

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters, sorted; journals that cannot be read by their file."""
        names = sorted(
            name
            for name in [*self._files, *self.unreadable]
            if not self._patterns or any(names_episode(p, name) for p in self._patterns)
        )
        if self._outcome is not None:
            names = [n for n in names if self._outcome_of(n) == self._outcome]
        return names[: self._limit]

    def file_of(self, name: str) -> str | None:
        """Return None: an episode has a journal of its own."""
        return None

    def _outcome_of(self, name: str) -> str:
        if name in self.unreadable:
            return "unknown"
        return outcome_of(self._contents(name).places)

    def numbers(self, name: str) -> list[int]:
        """Numbers of an episode's recorded calls."""
        return [int(p.head["number"]) for p in self._contents(name).places if p.kind == "call"]

    def policy_of(self, name: str) -> Mapping[str, Any]:
        """What drove an episode: adapter, checkpoint, its digest, data type."""
        policy: Mapping[str, Any] = self._contents(name).places[0].head["policy"]
        return policy

    def check_policy(self, policy: Policy, tolerance: float) -> None:
        """Check that a policy is the one that drove.

        Raises
        ------
        UsageError
            If its weights are others, or its data type is and `tolerance` is 0.
        """
        for name in sorted(self._files):
            drove = self.policy_of(name)
            if drove["checkpoint_digest"] != policy.digest:
                raise UsageError(
                    f"{name} was recorded with checkpoint {drove['checkpoint']} of digest "
                    f"{drove['checkpoint_digest'][:12]}, {policy.checkpoint} has "
                    f"{policy.digest[:12]}: replay it with the checkpoint that drove"
                )
            if drove["dtype"] != policy.dtype and not tolerance:
                raise UsageError(
                    f"{name} was recorded with weights of {drove['dtype']}, these are "
                    f"{policy.dtype}: give --dtype {drove['dtype']}, or a --tolerance"
                )

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it.

        Raises
        ------
        EpisodeError
            If its journal was not ended, is damaged, or has no calls.
        """
        if name in self.unreadable:
            raise EpisodeError(name, self.unreadable[name])
        path, contents = self._files[name], self._contents(name)
        repair = f"attnstore record recover {self.directory} keeps the calls before"
        if contents.reason is not None:
            raise EpisodeError(
                name,
                f"{path.name}: {contents.reason}, {contents.size - contents.good} bytes of "
                f"{contents.size} are not read; {repair}",
            )
        head = contents.places[0].head
        calls = [p for p in contents.places if p.kind == "call"]
        end = next((p.head for p in contents.places if p.kind == "end"), None)
        if end is None:
            alive = "it is being recorded" if being_recorded(head) else "its process was killed"
            raise EpisodeError(name, f"{path.name} has no end: {alive}; {repair}")
        if not calls:
            raise EpisodeError(
                name, f"no policy call was recorded in it, {end['dropped']} were dropped"
            )
        last = latest(contents.places)
        steps = _frames(calls)
        attributes = {
            **head.get("attributes", {}),
            **last.get("attributes", {}),
            "dropped": end["dropped"],
        }
        for key, value in (
            ("seed", head.get("seed")),
            ("reward", last.get("reward")),
            ("ended", end.get("reason")),
        ):
            if value is not None:
                attributes[key] = value
        return EpisodeInfo(
            name=name,
            outcome=outcome_of(contents.places),
            instruction=str(head["instruction"] or calls[0].head["instruction"]),
            frames=max(int(end["step"]), steps[-1] + 1),
            task=head.get("task"),
            date=str(head["created"])[:10],
            rate=head.get("rate"),
            attributes=attributes,
            keyframes=steps,
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield calls by their environment step; of several at one step, one after the other.

        Raises
        ------
        EpisodeError
            If a call cannot be read.
        """
        path, contents = self._files[name], self._contents(name)
        calls = [p for p in contents.places if p.kind == "call"]
        steps = _frames(calls)
        end = next((int(p.head["step"]) for p in contents.places if p.kind == "end"), None)
        asked: Counter[int] = Counter()
        chosen = []
        for index in indices:
            at = [i for i, step in enumerate(steps) if step == index]
            if not at:
                raise UsageError(f"episode {name}: the policy was not called at frame {index}")
            # `indices` that begin again count from the first call at a step
            chosen.append(at[asked[index] % len(at)])
            asked[index] += 1
        bodies = read_bodies(path, [calls[i] for i in chosen], name)
        for i, entry in zip(chosen, bodies, strict=True):
            try:
                yield unpack_call(entry, steps[i], _executed(calls, i, end), path.name)
            except IntegrityError as error:
                raise EpisodeError(name, str(error)) from error

    def _contents(self, name: str) -> Contents:
        path = self._files[name]
        if self._last is None or self._last[0] != path:
            self._last = path, read_contents(path)
        return self._last[1]


def outcome_of(places: Sequence[Place]) -> str:
    """Outcome of an episode as it was said last."""
    outcome = latest(places).get("outcome")
    return outcome if outcome in OUTCOMES else "unknown"


def latest(places: Sequence[Place]) -> Mapping[str, Any]:
    """What was said last of an episode's end."""
    said = [p.head for p in places if p.kind in ("end", "outcome")]
    return said[-1] if said else {}


def _frames(calls: Sequence[Place]) -> tuple[int, ...]:
    """Frame of each call: its environment step; its number where no steps were counted."""
    steps = [int(c.head["step"]) for c in calls]
    return tuple(steps) if any(steps) else tuple(int(c.head["number"]) for c in calls)


def _executed(calls: Sequence[Place], index: int, end: int | None) -> int | None:
    """Environment steps from a call to the next: NULL where none were counted, or a call was dropped."""
    if not end:
        return None
    here = calls[index].head
    if index + 1 == len(calls):
        return end - int(here["step"])
    after = calls[index + 1].head
    if int(after["number"]) != int(here["number"]) + 1:
        return None
    return int(after["step"]) - int(here["step"])


def recover(directory: Path) -> list[dict[str, Any]]:
    """End the journals of a recording whose processes were killed.

    What of a journal is no whole entry is moved to a file beside it. Journals that end as they should,
    and those of processes of this host that live, are left alone.

    Returns
    -------
    Of every journal that was not whole: its file, name, calls, and what was done.
    """
    done: list[dict[str, Any]] = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            contents = read_contents(path)
        except IntegrityError as error:
            done.append(
                {"file": path.name, "calls": 0, "status": "unreadable", "reason": str(error)}
            )
            continue
        places = contents.places
        said: dict[str, Any] = {
            "file": path.name,
            "name": str(places[0].head.get("name")) if places else None,
            "calls": sum(p.kind == "call" for p in places),
        }
        if not places:
            reason = contents.reason or "it has no entries"
            done.append({**said, "status": "unreadable", "reason": reason})
            continue
        ended = any(p.kind == "end" for p in places)
        if ended and contents.reason is None:
            continue
        if not ended and being_recorded(places[0].head):
            done.append({**said, "status": "recording", "reason": "its process lives"})
            continue
        path.with_suffix(SPOOL).unlink(missing_ok=True)
        cut = contents.size - contents.good
        if cut:
            with path.open("rb") as file:
                file.seek(contents.good)
                path.with_name(path.name + REST).write_bytes(file.read())
        journal = Journal(path, at=contents.good)
        try:
            if not ended:
                calls = [p.head for p in places if p.kind == "call"]
                journal.append(
                    {
                        "kind": "end",
                        "outcome": "unknown",
                        "reward": None,
                        "reason": RECOVERED,
                        "step": int(calls[-1]["step"]) if calls else 0,
                        "dropped": int(calls[-1]["dropped"]) if calls else 0,
                        "created": now(),
                    }
                )
            journal.sync()
        finally:
            journal.close()
        done.append({**said, "status": "recovered", "reason": f"{cut} bytes were no whole entry"})
    return done
