"""Reading a committed part: its description, its arrays, its tables, its integrity."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays.engine import Block, Index, open_block
from ..arrays.groups import MAP_REDUCTIONS, VALUE_NORM
from ..arrays.shards import Grid
from ..errors import IntegrityError, NotFoundError
from ..format.axes import STEPPED_PHASES
from ..format.episode import EpisodeSpec, spec_from_json
from ..format.hidden import Form, hidden_form, hidden_path, hidden_shape
from ..format.precision import decode
from ..format.version import described
from ..image import MOST_PIXELS
from . import ARRAYS, Commit, StoredFile, StorePaths, hash_file, replace_file
from .checked import CheckedBlock
from .vetting import (
    REPAIR,
    TABLE_BYTES,
    Places,
    check_shape,
    check_table,
    description,
)


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
        name = f"{ARRAYS}/zarr.json"
        where = f"{self._name}: {name}"
        with described(self.description(name), "attnstore_episode", where) as raw:
            spec = spec_from_json(raw)
        for camera, geometry in spec.geometry.items():
            height, width = geometry.source
            if height * width > MOST_PIXELS:
                raise IntegrityError(
                    f"{self._name}: an image of {width}x{height} of camera {camera} is too large"
                )
        return spec

    def description(self, path: str) -> dict[str, Any]:
        """Read one of the part's ``zarr.json``; see `vetting.description`.

        Raises
        ------
        NotFoundError
            If this part has no such file.
        IntegrityError
            If it is not what was committed, or asks for what no reader does.
        """
        file = self._listed(path)
        return description(self._places.read(file), f"{self._name}: {path}")

    def block(self, path: str) -> Block:
        """Open an array by its path in ``attention.zarr``.

        Raises
        ------
        NotFoundError
            If this part has no such array.
        IntegrityError
            If one of its files is missing, has another size than was committed, or is a link; or
            if the array is none that a reader opens.
        """
        return self.array(f"{ARRAYS}/{path}", self._expected_shape(path))

    def array(self, path: str, expected: Sequence[int] | None = None) -> Block:
        """Open an array by its path in the part; errors are those of `block`.

        Parameters
        ----------
        expected
            Shape that it must have.
        """
        block = self._blocks.get(path)
        if block is None:
            name = f"{path}/zarr.json"
            array = self.description(name) if name in self._files else {}
            if "shape" not in array:
                raise NotFoundError(f"{self._name}: no array {path.removeprefix(f'{ARRAYS}/')}")
            if expected is not None:
                check_shape(f"{self._name}: {path}", array["shape"], expected)
            block = self._checked_block(path, array)
            self._blocks[path] = block
        return block

    def _expected_shape(self, path: str) -> list[int] | None:
        """Shape of an array that the episode's description fixes; None of others."""
        if (of_hidden := hidden_form(path)) is not None:
            return self._hidden_shape(*of_hidden)
        folder, _, name = path.rpartition("/")
        if folder.startswith("maps/") and name in MAP_REDUCTIONS and folder.count("/") == 3:
            _, phase, _, camera = folder.split("/")
            inner: tuple[int, ...] | None
            spec, geometry = self.spec.phases.get(phase), self.spec.geometry.get(camera)
            inner = None if geometry is None else geometry.grid
        elif name == "attention":
            spec = self.spec.phases.get(folder)
            inner = None if spec is None else (len(spec.query), len(spec.key))
        elif name == VALUE_NORM:
            spec = self.spec.phases.get(folder)
            inner = None if spec is None else (len(spec.key),)
        else:
            return None
        if spec is None or inner is None:
            return None
        steps = [spec.steps or 0] if spec.phase in STEPPED_PHASES else []
        return [len(self.spec.frames), *steps, spec.layers, spec.heads, *inner]

    def _hidden_shape(self, phase: str, form: Form) -> list[int] | None:
        spec = self.spec.phases.get(phase)
        if spec is None or spec.hidden is None:
            return None
        count = len(self.spec.frames)
        shape = hidden_shape(count, spec.steps, spec.layers, spec.query, spec.hidden, form)
        return list(shape)

    def _checked_block(self, path: str, array: Mapping[str, Any]) -> Block:
        grid, directory = Grid.of(array), self.path / path
        below = len(path) + 1
        files = {f.path[below:]: f for f in self.commit.files if f.path.startswith(f"{path}/")}
        need, pieces = None, None
        if self._paths.partial:
            need = self._need_files
            if grid.sharded and (of_part := self._paths.pieces(self.commit)) is not None:
                pieces, directory = of_part, of_part.directory / path
                # zarr-python reads the description itself.
                replace_file(directory / "zarr.json", self._places.read(files["zarr.json"]))
        else:
            self._check_places(f"{path}/")
        block = open_block(directory, engine=self._engine, description=array)
        if need is None and not grid.framed:
            return block
        return CheckedBlock(block, grid, directory, files, f"{self._name}: {path}", need, pieces)

    def grid(self, path: str) -> Grid:
        """How an array is cut into files and chunks, by its path in ``attention.zarr``."""
        return Grid.of(self.description(f"{ARRAYS}/{path}/zarr.json"))

    def absent_bytes(self, path: str, index: Index) -> int:
        """Bytes that reading a block would have to bring first; see `CheckedBlock.absent_bytes`."""
        block = self.block(path)
        return block.absent_bytes(index) if isinstance(block, CheckedBlock) else 0

    def _need_files(self, files: Sequence[StoredFile]) -> None:
        self._paths.need(self.commit, files)
        for file in files:
            self._places.status(file)

    @cached_property
    def _files(self) -> Mapping[str, StoredFile]:
        return {file.path: file for file in self.commit.files}

    @cached_property
    def _places(self) -> Places:
        return Places(self._paths.root, self.path, self._name)

    def _listed(self, path: str) -> StoredFile:
        """Have a file that the commit lists here; what it does not list does not exist."""
        file = self._files.get(path)
        if file is None:
            raise NotFoundError(f"{self._name}: its commit lists no {path}")
        self._paths.need(self.commit, [file])
        return file

    def attention(self, phase: str, index: Index) -> NDArray[np.floating]:
        """Weights of a block of a phase's attention, decoded; absent tokens are NaN."""
        return decode(self.block(f"{phase}/attention").read(index), self.spec.precision)

    def map(
        self, phase: str, group: str, camera: str, reduction: str, index: Index
    ) -> NDArray[np.floating]:
        """Values of a block of an overview map, rounded to `attnstore.store.arrays.groups.MAP_BITS`.

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

    def check_norms(self, phase: str) -> None:
        """Check that a phase has value norms.

        Raises
        ------
        NotFoundError
            If the episode was captured without them.
        """
        if not self.spec.phases[phase].values:
            raise NotFoundError(
                f"{self._name}: {phase} has no value norms; ingest it again, by a policy that shows "
                "them and without --no-values"
            )

    def norms(self, phase: str, index: Index) -> NDArray[np.floating]:
        """Value norms of a block of a phase's keys; absent tokens are NaN.

        Raises
        ------
        NotFoundError
            If the episode was captured without them.
        """
        self.check_norms(phase)
        return self.block(f"{phase}/{VALUE_NORM}").read(index)

    def hidden(self, phase: str, form: Form, index: Index) -> NDArray[np.floating]:
        """Hidden states of a block of a phase's array; absent tokens are NaN.

        Raises
        ------
        NotFoundError
            If the episode was captured without them.
        """
        self.check_hidden(phase, form)
        return self.block(hidden_path(phase, form)).read(index)

    def check_hidden(self, phase: str, form: Form) -> None:
        """Check that a phase has a form of hidden states.

        Raises
        ------
        NotFoundError
            If the episode was captured without them.
        """
        hidden = self.spec.phases[phase].hidden
        if hidden is None:
            raise NotFoundError(
                f"{self._name}: {phase} has no hidden states; ingest it again, by a policy that shows "
                "them and without --no-hidden"
            )
        if form not in hidden.forms:
            repair = {
                "last": "its policy makes no actions in this phase",
                "tokens": "ingest it again with --hidden LAYERS[:SPANS]",
            }.get(form)
            raise NotFoundError(f"{self._name}: {phase} has no hidden states {form!r}; {repair}")

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet table; whole tables are kept."""
        if name in self._tables:
            table = self._tables[name]
            return table.select(list(columns)) if columns else table
        path = self.table_file(name)
        try:
            table = pq.read_table(path, columns=list(columns) if columns else None)
        except (pa.ArrowException, OSError) as error:
            raise IntegrityError(f"{path}: {str(error).splitlines()[0]}") from None
        if columns is None:
            self._tables[name] = table
        return table

    def table_file(self, name: str) -> Path:
        """Return a table's Parquet file, compared with the commit, to be read now.

        Raises
        ------
        IntegrityError
            If it is not what was committed, or claims to be larger than any table.
        """
        try:
            path = self._places.check(self._listed(f"{name}.parquet"))
        except NotFoundError as error:
            if f"{name}.parquet" in self._files:
                raise
            raise IntegrityError(f"{self._name}: {name}.parquet is missing") from error
        return path

    def check(self, table_bytes: int = TABLE_BYTES) -> None:
        """Check everything that readers would act on, arrays' chunks apart, before they do.

        Parameters
        ----------
        table_bytes
            Largest table, uncompressed.

        Raises
        ------
        IntegrityError
            With the file, and the rule that it breaks.
        """
        for file in self.commit.files:
            path = self.path / file.path
            if self._paths.partial and not path.exists():
                continue  # checked when it comes
            self._places.status(file)
            if path.name == "zarr.json":
                self.description(file.path)
            elif path.suffix == ".parquet":
                check_table(path, table_bytes)
        for name in self._files:
            folder, _, last = name.removeprefix(f"{ARRAYS}/").rpartition("/")
            if last == "zarr.json" and (expected := self._expected_shape(folder)) is not None:
                found = self.description(name).get("shape", ())
                check_shape(f"{self._name}: {folder}", found, expected)

    def problems(self, *, quick: bool = False) -> Iterator[tuple[str, str]]:
        """Check every committed file: its place, its size and its hash; yield (file, reason).

        Parameters
        ----------
        quick
            Read none of them: places and sizes alone.
        """
        for file in self.commit.files:
            try:
                if self._paths.partial and not (
                    os.path.lexists(f"{self.path}/{file.path}")
                    or self._paths.expects(self.commit, file)
                ):
                    continue
                self._places.status(file)
                if quick:
                    continue
                path = self.path / file.path
                if hash_file(path) != file.sha256:
                    yield file.path, "its bytes differ from what was committed (SHA-256)"
                elif path.name == "zarr.json":
                    self.description(file.path)
            except IntegrityError as error:
                reason = (
                    str(error)
                    .removeprefix(f"{self._name}: {file.path}")
                    .lstrip(": ")
                    .partition(REPAIR)[0]
                )
                yield file.path, reason.removeprefix("is ").removeprefix("has ")
            except OSError as error:
                yield file.path, f"cannot be read: {error.strerror or error}"

    def _check_places(self, below: str) -> None:
        # To a Zarr reader a shard that is missing (or empty, for zarr-python) is full of NaN.
        for file in self.commit.files:
            if file.path.startswith(below):
                self._places.status(file)

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
