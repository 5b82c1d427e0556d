"""Which readers of datasets are installed beside attnstore's own, and how one is made.

They are found through the entry point group ``attnstore.datasets``; its value is a class with the
`DatasetType` constructor. attnstore's own readers have commands with options of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from attnstore.store.errors import NotFoundError

from .base import Dataset
from .selection import Selection

ENTRY_POINTS = "attnstore.datasets"


class DatasetType(Protocol):
    """How a reader is constructed by the command line."""

    def __call__(
        self,
        source: str,
        *,
        selection: Selection,
        name: str | None,
        options: Mapping[str, str],
    ) -> Dataset:
        """Open a dataset.

        Parameters
        ----------
        source
            As the user named it: a path, an id, an address.
        selection
            Which episodes; `Selection.of` applies it.
        name
            Name of the dataset, part of a run's identity; by default the reader's own choice.
        options
            ``--dataset-option KEY=VALUE``. An option that the reader does not have is refused by it.
        """
        ...


def reader_names() -> list[str]:
    """Names of the readers that other packages announce, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def load_reader(name: str) -> DatasetType:
    """Load a reader by its name.

    Raises
    ------
    NotFoundError
        If no such reader is installed; the message lists those that are.
    """
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return cast(DatasetType, point.load())
    raise NotFoundError(
        f"no dataset reader {name!r}; other packages bring {', '.join(reader_names()) or 'none'}"
    )


def recognised(source: str) -> list[str]:
    """Names of the readers, attnstore's and others', that say a dataset is theirs, by what lies there.

    One that others bring says so by a function ``recognises(source: str) -> bool`` of its class.
    """
    path = Path(source).expanduser()
    found = [name for name, recognises in _OWN.items() if recognises(path)]
    for name in reader_names():
        theirs = getattr(load_reader(name), "recognises", None)
        if theirs is not None and theirs(source):
            found.append(name)
    return found


def _droid(path: Path) -> bool:
    from .droid.layout import has_episode

    return path.is_dir() and has_episode(path)


def _lerobot(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def _rlds(path: Path) -> bool:
    return (path / "features.json").is_file() or any(path.glob("*.*.*/features.json"))


def _aloha(path: Path) -> bool:
    from .aloha import is_episode

    return is_episode(path) or any(map(is_episode, _hdf5(path)))


def _robomimic(path: Path) -> bool:
    return any(
        not _aloha(file) and file.name != "trajectory.h5"
        for file in [path, *_hdf5(path)]
        if file.is_file()
    ) and (path.is_dir() or path.suffix in (".hdf5", ".h5"))


def _hdf5(path: Path) -> list[Path]:
    # directly in it or in folders such as success/: deeper lie the files of other formats
    return [f for pattern in ("*.hdf5", "*/*.hdf5", "*.h5") for f in sorted(path.glob(pattern))]


def _openpi_records(path: Path) -> bool:
    return any(path.glob("step_*.npy"))


_OWN = {
    "lerobot": _lerobot,
    "rlds": _rlds,
    "openpi-records": _openpi_records,
    "aloha": _aloha,
    "robomimic": _robomimic,
    "droid": _droid,
}
