"""Reading a committed part: its description, its arrays, its tables, its integrity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .commits import ARRAYS, Commit, StoredFile, StorePaths, hash_file, read_json
from .engine import Block, Index, open_block, shard_shape
from .episode import EpisodeSpec, spec_from_json
from .errors import IntegrityError, NotFoundError
from .precision import decode
from .shards import NeedingBlock, touched


class Part:
    """A committed part of an episode, opened lazily; safe to share between threads.

    Parameters
    ----------
    paths
        The store.
    commit
        Which revision to read.
    engine
        ``tensorstore`` or ``zarr``; None is the default of this process.
    """

    def __init__(self, paths: StorePaths, commit: Commit, *, engine: str | None = None) -> None:
        self.commit = commit
        self._paths = paths
        self.path = commit.directory(paths)
        self._engine = engine
        self._blocks: dict[str, Block] = {}
        self._tables: dict[str, pa.Table] = {}

    @property
    def paths(self) -> StorePaths:
        """The store that the part is in."""
        return self._paths

    def __getstate__(self) -> dict[str, Any]:
        # Open arrays stay in their process; another one opens its own.
        return {**self.__dict__, "_blocks": {}}

    @cached_property
    def spec(self) -> EpisodeSpec:
        """Description of the episode, from the root group's attributes."""
        path = self.path / ARRAYS / "zarr.json"
        self._need(f"{ARRAYS}/zarr.json")
        if not path.is_file():
            raise IntegrityError(f"{self._name}: {ARRAYS}/zarr.json is missing")
        attributes = read_json(path).get("attributes", {})
        try:
            return spec_from_json(attributes["attnstore_episode"])
        except KeyError:
            raise IntegrityError(f"{path}: no episode description in it") from None

    def block(self, path: str) -> Block:
        """Open an array by its path in ``attention.zarr``.

        Raises
        ------
        NotFoundError
            If this part has no such array.
        IntegrityError
            If one of its files is missing or has another size than was committed.
        """
        block = self._blocks.get(path)
        if block is None:
            directory = self.path / ARRAYS / path
            self._need(f"{ARRAYS}/{path}/zarr.json")
            if not (directory / "zarr.json").is_file():
                raise NotFoundError(f"{self._name}: no array {path}")
            if not self._paths.partial:
                self._check_sizes(f"{ARRAYS}/{path}/")
            block = open_block(directory, engine=self._engine)
            if self._paths.partial:
                block = NeedingBlock(block, shard_shape(directory), partial(self._need_block, path))
            self._blocks[path] = block
        return block

    def absent(self, path: str, shard: Sequence[int], index: Index) -> list[StoredFile]:
        """Files that reading a block would have to bring first; none in a whole store.

        Parameters
        ----------
        path
            Array, by its path in ``attention.zarr``.
        shard
            Shape of its shards.
        index
            Of the block.
        """
        files = touched(self.commit.files, f"{ARRAYS}/{path}", shard, index)
        return [f for f in files if self._paths.partial and not (self.path / f.path).is_file()]

    def _need_block(self, path: str, shard: Sequence[int], index: Index) -> None:
        files = touched(self.commit.files, f"{ARRAYS}/{path}", shard, index)
        self._paths.need(self.commit, files)

    def _need(self, file: str) -> None:
        self._paths.need(self.commit, [f for f in self.commit.files if f.path == file])

    def attention(self, phase: str, index: Index) -> NDArray[np.floating]:
        """Weights of a block of a phase's attention, decoded; absent tokens are NaN."""
        return decode(self.block(f"{phase}/attention").read(index), self.spec.precision)

    def map(
        self, phase: str, group: str, camera: str, reduction: str, index: Index
    ) -> NDArray[np.floating]:
        """Values of a block of an overview map, rounded to `attnstore.store.arrays.MAP_BITS`.

        Raises
        ------
        NotFoundError
            If this part has no such map.
        IntegrityError
            If its files are damaged, or an attnstore wrote it that is older than the format.
        """
        path = f"maps/{phase}/{group}/{camera}/{reduction}"
        block = self.block(path)
        if block.dtype != np.float32:
            raise IntegrityError(
                f"{self._name}: {path} holds {block.dtype}, overview maps are float32; a development "
                "version of attnstore wrote it: ingest the episode again"
            )
        return block.read(index)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet table; whole tables are kept."""
        if name in self._tables:
            table = self._tables[name]
            return table.select(list(columns)) if columns else table
        path = self.path / f"{name}.parquet"
        self._need(f"{name}.parquet")
        if not path.is_file():
            raise IntegrityError(f"{self._name}: {name}.parquet is missing")
        try:
            table = pq.read_table(path, columns=list(columns) if columns else None)
        except (pa.ArrowInvalid, OSError) as error:
            raise IntegrityError(f"{path}: {str(error).splitlines()[0]}") from None
        if columns is None:
            self._tables[name] = table
        return table

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check every committed file's presence, size and hash; yield (file, reason)."""
        for file in self.commit.files:
            path = self.path / file.path
            try:
                size = path.stat().st_size
                if size != file.size:
                    yield file.path, f"{size} bytes, {file.size} were committed"
                elif hash_file(path) != file.sha256:
                    yield file.path, "its bytes differ from what was committed (SHA-256)"
            except FileNotFoundError:
                if self._paths.expects(self.commit, file):
                    yield file.path, "missing"
            except OSError as error:
                yield file.path, f"cannot be read: {error.strerror or error}"

    def _check_sizes(self, below: str) -> None:
        # To a Zarr reader a shard that is missing (or empty, for zarr-python) is full of NaN.
        for file in self.commit.files:
            if file.path.startswith(below):
                try:
                    size = (self.path / file.path).stat().st_size
                except OSError:
                    raise IntegrityError(f"{self._name}: {file.path} is missing") from None
                if size != file.size:
                    raise IntegrityError(
                        f"{self._name}: {file.path} has {size} bytes, {file.size} were committed"
                    )

    @property
    def _name(self) -> str:
        name: Any = self.commit.summary.get("name", self.commit.episode)
        return f"{name} ({self.commit.run}, {self.commit.part}, revision {self.commit.revision})"


def resolve(path: Path, root: Path) -> Path:
    """Resolve `path` and refuse one that leaves `root` through a link."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise IntegrityError(f"{path} leaves the store")
    return resolved
