"""A pulled copy of a store: some episodes of it, each up to a tier.

``pulled/source.json`` names where it came from, and ``pulled/<run>/<episode>/<part>.<attempt>``
holds the tier that is here. A part that was committed in the copy itself has no such file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ..commits import (
    PULLED,
    Commit,
    StoredFile,
    StorePaths,
    read_bounded,
    read_document,
    replace_file,
)
from ..errors import IntegrityError, NotPulledError
from .tiers import TIERS, Tier, includes, tier_of

SOURCE = "source.json"


@dataclass(frozen=True, slots=True)
class PulledPaths(StorePaths):
    """A pulled copy of a store."""

    @property
    def partial(self) -> bool:
        """Only the pulled tier of a part is here."""
        return True

    @property
    def pulled(self) -> Path:
        """What was pulled."""
        return self.root / PULLED

    def source(self) -> str:
        """Path or URL that this was pulled from, last."""
        try:
            return str(read_document(self.pulled / SOURCE, "source")["source"])
        except (OSError, IntegrityError):
            return "SOURCE"

    def tier(self, commit: Commit) -> Tier | None:
        """Return the tier of a part that is here whole; None if it was committed in this copy."""
        try:
            text = read_bounded(self._record(commit), 64).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        for tier in TIERS:
            if tier == text:
                return tier
        raise IntegrityError(f"{self._record(commit)}: a tier is {', '.join(TIERS)}; got {text!r}")

    def set_tier(self, commit: Commit, tier: Tier) -> None:
        """Record that every file of a tier of a part is here."""
        replace_file(self._record(commit), tier.encode())

    def _record(self, commit: Commit) -> Path:
        return self.pulled / self.data_of(commit).relative_to(self.data)

    def data_of(self, commit: Commit) -> Path:
        """Directory of a commit's files."""
        return commit.directory(self)

    def expects(self, commit: Commit, file: StoredFile) -> bool:
        """Whether a file was pulled, or committed here."""
        tier = self.tier(commit)
        return tier is None or includes(tier, file.path)

    def need(self, commit: Commit, files: Iterable[StoredFile]) -> None:
        """Check that files are here.

        Raises
        ------
        NotPulledError
            If only a cheaper tier was pulled; the message has the command that brings them.
        IntegrityError
            If one was pulled and is missing, or has another size than was committed.
        """
        name = commit.summary.get("name", commit.episode)
        for file in files:
            try:
                size = (self.data_of(commit) / file.path).stat().st_size
            except OSError:
                if self.expects(commit, file):
                    raise IntegrityError(
                        f"{name} ({commit.run}, {commit.part}): {file.path} is missing; "
                        f"it was pulled: {self.command(tier_of(file.path), commit)} again repairs it"
                    ) from None
                raise NotPulledError(
                    f"{name} ({commit.run}, {commit.part}): {file.path} is not here, only tier "
                    f"{self.tier(commit)} was pulled; get it with: "
                    f"{self.command(tier_of(file.path), commit)}"
                ) from None
            if size != file.size:
                raise IntegrityError(
                    f"{name} ({commit.run}, {commit.part}): {file.path} has {size} bytes, "
                    f"{file.size} were committed"
                )

    def how_to_get(self) -> str:
        """Return the command that brings tables of keyframes."""
        return f"get it with: {self.command('maps')}"

    def command(self, tier: Tier, commit: Commit | None = None) -> str:
        """Return the command that brings a tier: of a part's episode, or of all."""
        # An id needs no quoting within.
        where = "" if commit is None else f" --where \"episode = '{commit.episode}'\""
        return f"attnstore pull {quote(self.source())} {quote(str(self.root.resolve()))} --tier {tier}{where}"
