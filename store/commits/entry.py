"""What the commit log's entries say, and the JSON that says it.

========= =========================================================================
commit    a revision of a part of an episode, with its files' sizes and SHA-256
removal   a part of an episode is taken out of the store; it is a revision as well
run       a run was recorded: ``runs/<run>.json``, whose id is its configuration's digest
discard   attempts that will never be committed, for their files are about to be
          deleted; entries of the log that cannot be read and were given up
========= =========================================================================

Every entry names the SHA-256 of the one before (null if that cannot be read): who knows the digest
of one entry knows that everything up to it is as it was. The last line of an entry is its own
`seal`, by which a changed byte in the newest one shows, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import IntegrityError
from ..format.documents import check
from ..format.version import check_version, explained, is_newer, written
from .files import to_json
from .layout import Key, Layout, check_id, check_relative

Kind = Literal["commit", "removal", "run", "discard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')
PLACE = ("number", "previous", "sha256")
"""Keys that say where in its log an entry stands; the others say what it says."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    return {"format": written(), "kind": kind, "created": created, **content}


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


def sealed(value: Mapping[str, Any]) -> bytes:
    """Spell an entry, with the SHA-256 of all that stands before as its last line.

    Examples
    --------
    >>> sealed({"number": 1}).decode().splitlines()[-2:]
    [' "sha256": "1b80ec6fa07428d12d191fa716f668363a48e11b76c5330e71376755052741ba"', '}']
    """
    body = to_json({key: said for key, said in value.items() if key != "sha256"})
    digest = hashlib.sha256(body).hexdigest()
    return body.removesuffix(b"\n}\n") + f',\n "sha256": "{digest}"\n}}\n'.encode()


def check_seal(data: bytes) -> None:
    """Compare an entry with its own last line.

    Raises
    ------
    IntegrityError
        If it has none, or the bytes before it are not those that were written.
    """
    seal = _SEAL.search(data)
    if seal is None:
        raise IntegrityError("it does not end with its own SHA-256")
    if hashlib.sha256(data[: seal.start()] + b"\n}\n").hexdigest() != seal[1].decode():
        raise IntegrityError("its bytes are not those that were written: their SHA-256 differs")


def facts(raw: Mapping[str, Any], number: int) -> list[Fact]:
    """Take from an entry what it says; its files are looked at when they are asked for.

    A kind that is not known, of an entry of a newer minor version, says nothing of parts.

    Raises
    ------
    IntegrityError
        If it is not the entry of this number, of a kind that is not known, or names ids that
        would leave the store.
    UnsupportedFormatError
        If a newer major version wrote it.
    """
    version = check_version(raw, "it")
    try:
        check({**raw, "files": []} if "files" in raw else raw, "entry", "it")
        if raw["number"] != number:
            raise IntegrityError(f"it says that it is number {raw['number']}")
        kind = raw["kind"]
        if kind not in KINDS and not is_newer(version):
            raise IntegrityError(f"kind {kind[:40]!r} is not one of {', '.join(KINDS)}")
    except IntegrityError as error:
        raise explained(error, version) from None
    match kind:
        case "commit" | "removal":
            attempt = raw["attempt"] if kind == "commit" else None
            return [Fact(number, kind, *ids(raw), int(raw["revision"]), attempt)]
        case "run":
            return [Fact(number, kind, raw["run"])]
        case "discard":
            gone = [Fact(number, kind, attempt=attempt) for attempt in raw["attempts"]]
            return gone + [Fact(number, kind, target=int(entry)) for entry in raw["entries"]]
    return []


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
    UnsupportedFormatError
        If a newer major version wrote it.
    """
    version = check_version(raw, "it")
    try:
        check(raw, "entry", "it")
        run, episode, part = ids(raw)
        return Commit(
            run=run,
            episode=episode,
            part=part,
            revision=int(raw["revision"]),
            attempt=raw["attempt"],
            created=raw["created"],
            summary=raw["summary"],
            files=tuple(StoredFile(check_relative(p), int(n), sha) for p, n, sha in raw["files"]),
        )
    except IntegrityError as error:
        raise explained(error, version) from None


def previous_of(raw: Mapping[str, Any]) -> str | None:
    """SHA-256 of the entry before, as an entry names it; None if it names none."""
    value = raw.get("previous")
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None
