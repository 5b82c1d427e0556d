"""What ``features.json`` and ``dataset_info.json`` say of an RLDS dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attnstore.store.errors import AttnstoreError, NotFoundError, UsageError
from attnstore.store.json_text import parse_json

from ..base import copy_again

FEATURES = "features.json"
INFO = "dataset_info.json"
STEPS = "steps"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Feature:
    """One value of an episode or of each of its steps."""

    path: str
    """In the record: ``steps/observation/state``."""
    kind: Literal["image", "tensor", "text"]
    shape: tuple[int | None, ...]
    """Of one step's value; None where it is free."""
    dtype: str
    """As TensorFlow Datasets names it: ``float32``, ``uint8``, ``string``."""
    encoding: str = "none"
    """Of a tensor: ``none``, ``bytes`` or ``zlib``."""

    @property
    def numeric(self) -> bool:
        """Whether it is a number or a vector of numbers of a fixed length."""
        fixed = len(self.shape) <= 1 and None not in self.shape
        return self.kind == "tensor" and self.dtype not in ("string", "object") and fixed

    @property
    def pictures(self) -> bool:
        """Whether it is a picture with colour, 8 bits a channel."""
        return self.kind == "image" and self.dtype == "uint8" and self.shape[-1:] == (3,)


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a dataset: its files, and how many episodes each has."""

    name: str
    files: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """A dataset as its two JSON files describe it."""

    root: Path
    """Folder of one version."""
    name: str
    version: str
    features: Mapping[str, Feature]
    """By path, those of the steps without ``steps/``."""
    episode: Mapping[str, Feature]
    """By path, those of the episode."""
    splits: tuple[Split, ...]


def read_description(root: Path) -> Description:
    """Read what describes a dataset.

    Parameters
    ----------
    root
        Folder of a version (``droid/1.0.0``), or one with a single version in it.

    Raises
    ------
    NotFoundError
        If there is no such folder, or it is no RLDS dataset.
    UsageError
        If it has several versions.
    AttnstoreError
        If one of the files cannot be read, or says what cannot be read here.
    """
    folder = _version_of(root)
    features = dict(_walk("", _json(folder / FEATURES), folder / FEATURES))
    info = _json(folder / INFO)
    where = folder / INFO
    if not isinstance(info, dict):
        raise AttnstoreError(f"{where}: an object is expected; {copy_again(where)}")
    form = str(info.get("fileFormat", "tfrecord")).lower()
    if form != "tfrecord":
        raise AttnstoreError(f"{where}: files are read in the format tfrecord; these are {form}")
    name = str(info.get("name") or folder.parent.name)
    splits = info.get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise AttnstoreError(f"{where}: `splits` is a list of objects; {copy_again(where)}")
    steps = {
        path.removeprefix(f"{STEPS}/"): feature
        for path, feature in features.items()
        if path.startswith(f"{STEPS}/")
    }
    if not steps:
        raise AttnstoreError(
            f"{folder / FEATURES}: RLDS has `steps`, a dataset of its own in each episode; there are "
            f"{', '.join(features) or 'none'}: it is another dataset of TensorFlow Datasets"
        )
    return Description(
        folder, name, str(info.get("version", folder.name)), steps,
        {path: f for path, f in features.items() if not path.startswith(f"{STEPS}/")},
        tuple(_split(split, name, where) for split in splits),
    )  # fmt: skip


def _version_of(root: Path) -> Path:
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such directory; expected an RLDS dataset, with {FEATURES}")
    if (root / FEATURES).is_file():
        return root
    versions = sorted(p.name for p in root.iterdir() if (p / FEATURES).is_file())
    if len(versions) == 1:
        return root / versions[0]
    if versions:
        raise UsageError(f"{root} has the versions {', '.join(versions)}: name one of them")
    hint = ""
    if _VERSION.fullmatch(root.name) or any(root.glob("*.tfrecord*")):
        hint = f"; TensorFlow Datasets wrote it beside the records: copy {FEATURES} and {INFO}, too"
    raise NotFoundError(f"{root}: no {FEATURES}, so it is no RLDS dataset{hint}")


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"{path} is missing; TensorFlow Datasets wrote it: copy it, too"
        ) from None
    except (OSError, ValueError) as error:
        raise AttnstoreError(f"{path} cannot be read: {error}; {copy_again(path)}") from error


def _walk(path: str, feature: Any, where: Path) -> Iterator[tuple[str, Feature]]:
    """Walk the tree of ``feature.proto`` of TensorFlow Datasets, in JSON."""
    feature = _object(feature, path, where)
    if "featuresDict" in feature:
        inner = _object(feature["featuresDict"], path, where).get("features", {})
        for key, each in _object(inner, path, where).items():
            yield from _walk(f"{path}/{key}" if path else key, each, where)
    elif "sequence" in feature:
        # A sequence within a step is ragged: no vector of a fixed length, and not read.
        if path == STEPS:
            inner = _object(feature["sequence"], path, where)
            yield from _walk(path, inner.get("feature"), where)
    elif "text" in feature:
        yield path, Feature(path, "text", (), "string")
    elif "image" in feature or "tensor" in feature:
        yield path, _numbers(path, feature, where)
    elif "content" in feature and "type" in feature:
        raise AttnstoreError(
            f"{where} is of TensorFlow Datasets before 4.6: load the dataset once with a newer "
            "release, which writes the file anew"
        )


def _numbers(path: str, feature: Mapping[str, Any], where: Path) -> Feature:
    picture = "image" in feature
    said = _object(feature["image" if picture else "tensor"], path, where)
    shape = _object(said.get("shape") or {}, path, where).get("dimensions", ())
    dtype = str(said.get("dtype", "uint8" if picture else ""))
    try:
        sizes = tuple(None if int(n) < 0 else int(n) for n in shape)
    except (TypeError, ValueError, OverflowError):
        raise AttnstoreError(
            f"{where}: the shape of {path} is whole numbers; got {shape!r:.100}; {copy_again(where)}"
        ) from None
    if picture:
        return Feature(path, "image", sizes, dtype)
    text = dtype in ("string", "object")
    return Feature(
        path, "text" if text else "tensor", sizes, dtype, str(said.get("encoding") or "none")
    )


def _object(value: Any, path: str, where: Path) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise AttnstoreError(
        f"{where}: an object is expected for {path or 'the whole'}; got {value!r:.100}; "
        f"{copy_again(where)}"
    )


def _split(split: Mapping[str, Any], dataset: str, where: Path) -> Split:
    name = str(split.get("name"))
    try:
        lengths = tuple(int(length) for length in split.get("shardLengths", ()))
    except (TypeError, ValueError, OverflowError):
        raise AttnstoreError(f"{where}: shardLengths of {name} are counts") from None
    template = str(split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    files = tuple(
        Path(
            template.replace("{DATASET}", dataset)
            .replace("{SPLIT}", name)
            .replace("{FILEFORMAT}", "tfrecord")
            .replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{len(lengths):05d}")
            .replace("{SHARD_INDEX}", f"{i:05d}")
            .replace("{NUM_SHARDS}", f"{len(lengths):05d}")
        ).name
        for i in range(len(lengths))
    )
    return Split(name, files, lengths)
