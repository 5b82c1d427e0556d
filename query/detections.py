"""What a detector's JSON files say: which object is at which frame, and where its mask is.

``dinox_info.json``
    ``{"25": [{"bbox": ..., "mask_file": "00025_cube_0.npy", "category": "cube", "score": 0.9}]}``.
    The key is the frame; ``mask_file`` is a bool array of the image's size. An entry may hold
    ``"segmentation": {"size": [height, width], "counts": ...}`` instead of ``mask_file``: COCO's
    run lengths, as a list or as its string.
``coco_masks.json``
    A COCO data set: ``images`` (``id``, ``file_name``; the digits that end its stem are the
    frame), ``categories`` (``id``, ``name``) and ``annotations`` (``image_id``, ``category_id``,
    ``segmentation`` in run lengths, ``score`` if there is one). Polygons are refused.
``white_list.json``
    ``[0, 25, 50]``: the frames whose masks a person has checked; only they are trusted.

Functions raise ValueError with a reason that names the place within the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_FRAME = "[0-9]{1,9}"


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector found at one frame."""

    category: str
    score: float | None
    """Confidence, usually 0..1; None if the detector gives none."""
    file: Path | None
    """The mask as a NumPy array file; None if `segmentation` has it."""
    segmentation: Any
    """The mask in COCO's run lengths, as the JSON file has it; not checked yet."""
    where: str
    """Place in the JSON file, for messages."""


Detections = Mapping[int, list[Detection]]
"""Frame to what was found; a frame may have been looked at and hold nothing."""


def read_detector_file(file: Path, folder: Path) -> Detections:
    """Read a ``dinox_info.json``.

    Parameters
    ----------
    folder
        Where the mask files are; their names must stay below it.

    Raises
    ------
    ValueError
        If it is not what the module's text says.
    """
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise ValueError("not an object whose keys are frames")
    found: dict[int, list[Detection]] = {}
    for key, entries in raw.items():
        if not re.fullmatch(_FRAME, key):
            raise ValueError(f"{key!r} is not a frame index")
        if not isinstance(entries, list):
            raise ValueError(f"frame {key}: not a list of detections")
        detections = found.setdefault(int(key), [])
        for index, entry in enumerate(entries):
            where = f"frame {key}, detection {index}"
            if not isinstance(entry, dict) or not {"mask_file", "segmentation"} & entry.keys():
                raise ValueError(f"{where}: has neither mask_file nor segmentation")
            named = "mask_file" in entry
            detections.append(
                Detection(
                    _category(entry.get("category"), where),
                    _score(entry.get("score"), where),
                    _mask_path(folder, entry["mask_file"], where) if named else None,
                    entry.get("segmentation"),
                    where,
                )
            )
    return found


def read_coco_file(file: Path) -> Detections:
    """Read a COCO data set.

    Raises
    ------
    ValueError
        If it is not what the module's text says.
    """
    raw = read_json(file)
    try:
        images = {image["id"]: str(image["file_name"]) for image in raw["images"]}
        names = {category["id"]: category["name"] for category in raw["categories"]}
        annotations = [
            (a["image_id"], a["category_id"], a["segmentation"], a.get("score"))
            for a in raw["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a COCO data set with masks ({error!r})") from None
    frames: dict[Any, int] = {}
    for image, name in images.items():
        digits = re.search(f"{_FRAME}$", PurePosixPath(name).stem)
        if digits is None:
            raise ValueError(f"image {name!r}: its name does not end with the frame's number")
        frames[image] = int(digits[0])
    found: dict[int, list[Detection]] = {frame: [] for frame in frames.values()}
    for index, (image, category, segmentation, score) in enumerate(annotations):
        where = f"annotation {index}"
        if image not in frames:
            raise ValueError(f"{where}: there is no image {image!r}")
        if category not in names:
            known = ", ".join(f"{i} {n}" for i, n in names.items()) or "none"
            raise ValueError(f"{where}: there is no category {category!r}; there are: {known}")
        found[frames[image]].append(
            Detection(
                _category(names[category], where), _score(score, where), None, segmentation, where
            )
        )
    return found


def read_white_list(file: Path) -> frozenset[int] | None:
    """Read the trusted frames; None if there is no such file, and every frame is trusted.

    Raises
    ------
    ValueError
        If it is not a list of frame indices.
    """
    if not file.is_file():
        return None
    raw = read_json(file)
    # JSON's true is an int in Python.
    if not isinstance(raw, list) or any(type(n) is not int or n < 0 for n in raw):
        raise ValueError("not a list of frame indices")
    return frozenset(raw)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not readable as JSON ({' '.join(str(error).split())})") from None


def _mask_path(folder: Path, name: Any, where: str) -> Path:
    pure = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
    inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts
    if not inside or "\\" in name or "\0" in name:
        raise ValueError(f"{where}: mask_file {name!r} is not a name below {folder.name}/")
    # A link may lead elsewhere: caches (git-annex, Hugging Face's hub) keep all their files so.
    return folder / pure


def _category(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: the category is a text, not empty; got {value!r}")
    return " ".join(value.split())


def _score(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: the score is a number; got {value!r}")
    return float(value)
