"""Pieces of a mirror's files: of a shard elsewhere, its index and the chunks that were asked for.

A file of which pieces are here lies under ``pieces/``, as long as the whole one and with holes; beside it
``<name>.have`` lists what it has, a start and a stop of 8 bytes each, appended once the bytes are there.
Nothing under ``data/`` is ever incomplete. Files never change, so processes that fetch the same piece
write the same bytes.

Of a piece no SHA-256 is known: its CRC-32C is compared instead, which chunks and indexes end with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..commits import StoredFile
from ..errors import AttnstoreError, NotFoundError
from .fetching import at_once, one_at_a_time
from .transport import Transport

GAP = 64 << 10
"""Bytes between two pieces that are fetched along with them rather than in a request of its own."""
LARGEST = 8 << 20
"""Most bytes of a request for several pieces."""

Piece = tuple[int, int]
"""Start and stop of bytes in a file."""
Check = Callable[[int, bytes], None]


@dataclass(frozen=True)
class PiecesOf:
    """What is here of the files of one part.

    Parameters
    ----------
    transport
        Access to the store.
    source
        The part's directory at the source, relative to the store.
    directory
        Where its files are, with holes.
    whole
        Has a whole file here, for a server that answers with nothing less; returns its path.
    """

    transport: Transport
    source: str
    directory: Path
    whole: Callable[[StoredFile], Path]
    _known: dict[str, set[Piece]] = field(default_factory=dict)

    def missing(self, file: StoredFile, pieces: Iterable[Piece]) -> list[Piece]:
        """Return the pieces that are not here."""
        pieces = list(pieces)
        known = self._known.get(file.path, set())
        if not known.issuperset(pieces):
            known = self._known[file.path] = self._read(file)
        return [] if (0, file.size) in known else [p for p in pieces if p not in known]

    def bring(self, file: StoredFile, pieces: Iterable[Piece], check: Check) -> None:
        """Have pieces of a file here.

        Parameters
        ----------
        check
            Raises `IntegrityError` if the bytes of the piece at a start are not what was written.

        Raises
        ------
        NotFoundError
            If the source does not have the file any more.
        IntegrityError
            If what came is not what was committed.
        AttnstoreError
            If it cannot be had.
        """
        with one_at_a_time(str(self.directory / file.path)):
            missing = self.missing(file, pieces)
            if not missing:
                return
            groups = list(together(missing))
            came = at_once(lambda group: self._fetch(file, group, check), groups)
            try:
                if not all(came):
                    self._take_whole(file)
                    return
                self._keep(file, [piece for group in came if group for piece in group])
            except OSError as error:
                raise AttnstoreError(
                    f"{self.directory / file.path} cannot be written: {error.strerror or error}"
                ) from None

    def _fetch(
        self, file: StoredFile, group: Sequence[Piece], check: Check
    ) -> list[tuple[int, bytes]] | None:
        """Fetch pieces in one request; None if the server does not give parts of files."""
        start, stop = group[0][0], group[-1][1]
        path = f"{self.source}/{file.path}"
        for last in (False, True):
            try:
                data = self.transport.fetch_range(path, start, stop, file.size)
                if data is None:
                    return None
                found = [(a, data[a - start : b - start]) for a, b in group]
                for at, piece in found:
                    check(at, piece)
                return found
            except NotFoundError as error:
                raise NotFoundError(
                    f"{error}: it was replaced or removed, or is not copied there yet; "
                    "open the store again"
                ) from None
            except AttnstoreError as error:
                # Once more: what broke on the way is whole the second time.
                if last:
                    raise type(error)(f"{self.transport.url}/{path}: {error}") from None
        raise AssertionError("unreachable")

    def _keep(self, file: StoredFile, pieces: Sequence[tuple[int, bytes]]) -> None:
        target = self.directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size != file.size:
                os.truncate(descriptor, file.size)
            for start, data in pieces:
                rest = memoryview(data)
                while len(rest):
                    written = os.pwrite(descriptor, rest, start)
                    start, rest = start + written, rest[written:]
        finally:
            os.close(descriptor)
        self._record(file, [(start, start + len(data)) for start, data in pieces])

    def _take_whole(self, file: StoredFile) -> None:
        whole, target = self.whole(file), self.directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(whole)
        self._record(file, [(0, file.size)])

    def _record(self, file: StoredFile, pieces: Sequence[Piece]) -> None:
        # One write of an appended file: records of two processes do not mix.
        with self._list(file).open("ab", buffering=0) as stream:
            stream.write(np.asarray(pieces, "<u8").tobytes())
        self._known.setdefault(file.path, set()).update(pieces)

    def _read(self, file: StoredFile) -> set[Piece]:
        if not (self.directory / file.path).exists():
            return set()
        try:
            data = self._list(file).read_bytes()
        except FileNotFoundError:
            return set()
        pairs = np.frombuffer(data[: len(data) // 16 * 16], "<u8").reshape(-1, 2)
        return {(start, stop) for start, stop in pairs.tolist()}

    def _list(self, file: StoredFile) -> Path:
        target = self.directory / file.path
        return target.with_name(f"{target.name}.have")


def together(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group pieces that are fetched in one request, in the order of the file.

    Examples
    --------
    >>> list(together([(200_000, 200_100), (0, 100), (100, 300)]))
    [[(0, 100), (100, 300)], [(200000, 200100)]]
    """
    group: list[Piece] = []
    for start, stop in sorted(pieces):
        if group and (start - group[-1][1] > GAP or stop - group[0][0] > LARGEST):
            yield group
            group = []
        group.append((start, stop))
    if group:
        yield group
