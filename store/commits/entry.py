"""What the commit log's entries say, and the JSON that says it.

========= =========================================================================
commit    a revision of a part of an episode, with its files' sizes and SHA-256
removal   a part of an episode is taken out of the store; it is a revision as well
run       a run was recorded: ``runs/<run>.json``, whose id is its configuration's digest
discard   attempts that will never be committed, for their files are about to be
          deleted; entries of the log that cannot be read and were given up
========= =========================================================================

Every entry names the SHA-256 of the one before (null if that cannot be read): who knows the digest
of one entry knows that everything up to it is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import IntegrityError
from ..format.version import FORMAT_MAJOR, FORMAT_MINOR
from .layout import Key, Layout, check_id, check_relative

Kind = Literal["commit", "removal", "run", "discard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 53
"""Largest number that JSON's readers agree on."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a committed part."""

    path: str
    """Relative to the attempt's directory, with ``/``."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of a part of an episode."""

    run: str
    episode: str
    """Id (a slug); the dataset's own name is in ``summary["name"]``."""
    part: str
    revision: int
    attempt: str
    created: str
    summary: Mapping[str, Any]
    """What lists and catalogs need without opening the data: name, outcome, instruction, counts."""
    files: tuple[StoredFile, ...] = field(repr=False)

    @property
    def key(self) -> Key:
        """(run, episode, part)."""
        return self.run, self.episode, self.part

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def directory(self, paths: Layout) -> Path:
        """Where this revision's files are."""
        return paths.attempt(self.run, self.episode, self.part, self.attempt)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that an entry says, without its files: what a catalog keeps of the log."""

    number: int
    kind: Kind
    run: str | None = None
    episode: str | None = None
    part: str | None = None
    revision: int | None = None
    attempt: str | None = None
    """Of a commit; of a discard, the attempt that is given up."""
    target: int | None = None
    """Of a discard, the entry that is given up."""

    @property
    def key(self) -> Key:
        """(run, episode, part) of a commit or a removal."""
        assert self.run is not None
        assert self.episode is not None
        assert self.part is not None
        return self.run, self.episode, self.part


def draft(kind: Kind, created: str, **content: Any) -> dict[str, Any]:
    """Make an entry's JSON object, without the number and the digest that it gets at last."""
    version = {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR}
    return {"format": version, "kind": kind, "created": created, **content}


def commit_draft(commit: Commit) -> dict[str, Any]:
    """Make the JSON object of a commit's entry."""
    return draft(
        "commit",
        commit.created,
        run=commit.run,
        episode=commit.episode,
        part=commit.part,
        revision=commit.revision,
        attempt=commit.attempt,
        summary=dict(commit.summary),
        files=[[f.path, f.size, f.sha256] for f in commit.files],
    )


def facts(raw: Mapping[str, Any], number: int) -> list[Fact]:
    """Take from an entry what it says; its files are looked at when they are asked for.

    Raises
    ------
    IntegrityError
        If it is not the entry of this number, of a kind that is not known, or names ids that
        would leave the store.
    """
    if _count(raw.get("number"), "number") != number:
        raise IntegrityError(f"it says that it is number {raw.get('number')!r}")
    kind = raw.get("kind")
    if kind in ("commit", "removal"):
        run, episode, part = ids(raw)
        revision = _count(raw.get("revision"), "revision", least=1)
        attempt = check_id(raw.get("attempt", ""), "attempt id") if kind == "commit" else None
        return [Fact(number, kind, run, episode, part, revision, attempt)]
    if kind == "run":
        return [Fact(number, "run", check_id(raw.get("run", ""), "run id"))]
    if kind == "discard":
        attempts, entries = raw.get("attempts"), raw.get("entries")
        if not isinstance(attempts, list) or not isinstance(entries, list):
            raise IntegrityError("lists of attempts and of entries are expected")
        gone = [Fact(number, "discard", attempt=check_id(a, "attempt id")) for a in attempts]
        return gone + [Fact(number, "discard", target=_count(n, "entry", least=1)) for n in entries]
    raise IntegrityError(
        f"kind {str(kind)[:40]!r} is not one of {', '.join(KINDS)}: a newer attnstore may read it"
    )


def ids(raw: Mapping[str, Any]) -> Key:
    """Take the ids out of an entry.

    Raises
    ------
    IntegrityError
        If they would leave the store.
    """
    run, episode, part = (raw.get(name, "") for name in ("run", "episode", "part"))
    return check_id(run, "run id"), check_id(episode, "episode id"), check_id(part, "part")


def commit_of(raw: Mapping[str, Any]) -> Commit:
    """Read a commit out of its entry.

    Raises
    ------
    IntegrityError
        If it names ids or paths that would leave the store, or has values of wrong types.
    """
    run, episode, part = ids(raw)
    summary, listed = raw.get("summary"), raw.get("files")
    if not isinstance(summary, dict) or not isinstance(listed, list):
        raise IntegrityError("a commit has an object 'summary' and a list 'files'")
    return Commit(
        run=run,
        episode=episode,
        part=part,
        revision=_count(raw.get("revision"), "revision", least=1),
        attempt=check_id(raw.get("attempt", ""), "attempt id"),
        created=str(raw.get("created")),
        summary=summary,
        files=tuple(map(stored_file, listed)),
    )


def stored_file(value: Any) -> StoredFile:
    """Read a file's path, size and SHA-256.

    Raises
    ------
    IntegrityError
        If it is something else.
    """
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str):
        raise IntegrityError(f"a file is [path, size, SHA-256]; got {str(value)[:200]}")
    path, size, digest = value
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise IntegrityError(f"{path[:200]!r}: {str(digest)[:80]!r} is not a SHA-256")
    return StoredFile(check_relative(path), _count(size, "size"), digest)


def previous_of(raw: Mapping[str, Any]) -> str | None:
    """SHA-256 of the entry before, as an entry names it; None if it names none."""
    value = raw.get("previous")
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


def _count(value: Any, what: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST:
        raise IntegrityError(f"{what} is a whole number of at least {least}; got {str(value)[:40]}")
    return value
