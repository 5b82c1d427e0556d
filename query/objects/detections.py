"""What a detector's JSON files say: which object is at which frame, and where its mask is.

``dinox_info.json``
    ``{"25": [{"bbox": ..., "mask_file": "00025_cube_0.npy", "category": "cube", "score": 0.9}]}``.
    The key is the frame; ``mask_file`` is a bool array of the image's size. An entry may hold
    ``"segmentation": {"size": [height, width], "counts": ...}`` instead of ``mask_file``: COCO's
    run lengths, as a list or as its string.
``coco_masks.json``
    A COCO data set of one camera: ``images`` (``id``, ``file_name``; see `frames_of_names` for
    what the frame's number in a name is), ``categories`` (``id``, ``name``) and ``annotations``
    (``image_id``, ``category_id``, ``segmentation`` in run lengths, ``score`` if there is one).
    Polygons are refused, and so are two images, categories or keys of which one could be meant.
``white_list.json``
    ``[0, 25, 50]``: the frames whose masks a person has checked; only they are trusted.

Functions raise ValueError with a reason that names the place within the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attnstore.store.json_text import parse_json

_FRAME = "[0-9]{1,9}"
_LARGEST = 10**9
_NUMBER = re.compile("[a-zA-Z]*([0-9]+)")
_CAMERA = re.compile("(?<![a-zA-Z0-9])(?:hand_camera|varied_camera_[0-9]+)(?![0-9])")
"""As a folder of a name, or a part of it: exports put all images into one folder."""
_EXPORT = re.compile(r"(_(?:jpe?g|png|bmp|webp))?\.rf\.[0-9a-zA-Z]+$")
"""What Roboflow's export puts behind a name: ``00008_png.rf.0a1b2c``."""


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
    keys: dict[int, str] = {}
    for key, entries in raw.items():
        if not re.fullmatch(_FRAME, key):
            raise ValueError(f"{key!r} is not a frame index")
        if (other := keys.setdefault(int(key), key)) != key:
            raise ValueError(
                f"{other!r} and {key!r} are both frame {int(key)}; keep the one that is meant"
            )
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


def read_coco_file(file: Path, camera: str) -> Detections:
    """Read a COCO data set.

    Parameters
    ----------
    camera
        Whose images it is of: a name in another camera's folder is refused.

    Raises
    ------
    ValueError
        If it is not what the module's text says.
    """
    raw = read_json(file)
    try:
        images = _by_id("image", [(i["id"], i["file_name"]) for i in raw["images"]])
        names = _by_id("category", [(c["id"], c["name"]) for c in raw["categories"]])
        annotations = [
            (a["image_id"], a["category_id"], a["segmentation"], a.get("score"))
            for a in raw["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a COCO data set with masks ({error!r})") from None
    for name in images.values():
        if not isinstance(name, str):
            raise ValueError(f"an image's file_name is a text; got {name!r}")
        other = next((found for found in _CAMERA.findall(name) if found != camera), camera)
        if other != camera:
            raise ValueError(
                f"image {name!r} is {other}'s, the file is {camera}'s; write a file per camera: "
                "coco_masks.json is hand_camera's, coco_masks_varied_camera_1.json another's"
            )
    # its camera's number is none of a frame
    own = [_CAMERA.sub("camera", name) for name in images.values()]
    frames = dict(zip(images, frames_of_names(own), strict=True))
    shown: dict[int, str] = {}
    for image, frame in frames.items():
        if frame in shown:
            raise ValueError(
                f"images {shown[frame]!r} and {images[image]!r} are both frame {frame}; a file "
                "holds one camera's images, each frame once"
            )
        shown[frame] = images[image]
    found: dict[int, list[Detection]] = {frame: [] for frame in frames.values()}
    for index, (image, category, segmentation, score) in enumerate(annotations):
        where = f"annotation {index}"
        if not _is_id(image) or image not in frames:
            raise ValueError(f"{where}: there is no image {image!r}")
        if not _is_id(category) or category not in names:
            known = ", ".join(f"{i} {n}" for i, n in names.items()) or "none"
            raise ValueError(f"{where}: there is no category {category!r}; there are: {known}")
        found[frames[image]].append(
            Detection(
                _category(names[category], where), _score(score, where), None, segmentation, where
            )
        )
    return found


def frames_of_names(names: Sequence[str]) -> list[int]:
    """Find the frame's number in the file names of one camera's images.

    It is the only number in the name (``frame_00008.png``), or the only one that differs between
    the names (``2025-12-10_00000.png``, ``2025-12-10_00008.png``), once the
    folder, the extension and the hash that Roboflow's export appends are left out. A number is
    digits, or a word that ends with them (``frame00008``): a size or a hash is none.

    Raises
    ------
    ValueError
        If a name has no number, or more than one could be meant.

    Examples
    --------
    >>> frames_of_names(["2025-12_00000_640x480.png", "2025-12_00008_640x480.png"])
    [0, 8]
    >>> frames_of_names(["00000_png.rf.9f3c.jpg", "00008_png.rf.0a10.jpg"])
    [0, 8]
    """
    stems = [_EXPORT.sub("", PurePosixPath(n.replace("\\", "/")).stem) for n in names]
    numbers = [
        [m[1] for word in re.findall("[0-9a-zA-Z]+", stem) if (m := _NUMBER.fullmatch(word))]
        for stem in stems
    ]
    for name, found in zip(names, numbers, strict=True):
        if not found:
            raise ValueError(f"image {name!r}: its name does not end with the frame's number")
    place = 0
    if any(len(found) > 1 for found in numbers):
        place = _differing(names, stems, numbers)
    chosen = [found[place] for found in numbers]
    for name, text in zip(names, chosen, strict=True):
        if int(text) >= _LARGEST:
            raise ValueError(f"image {name!r}: {text} is too large for a frame's number")
    return [int(text) for text in chosen]


def _differing(names: Sequence[str], stems: Sequence[str], numbers: Sequence[Sequence[str]]) -> int:
    """Which of several numbers in each name is the frame's."""
    most = max(numbers, key=len)
    example = names[list(numbers).index(most)]
    alike = len({re.sub("[0-9]+", "0", stem) for stem in stems}) == 1
    differ = [
        place
        for place in range(len(most))
        if alike and len({int(found[place]) for found in numbers}) > 1
    ]
    if len(differ) == 1:
        return differ[0]
    could = [most[place] for place in differ] or most
    raise ValueError(
        f"image {example!r}: the frame's number could be {' or '.join(dict.fromkeys(could))}; name "
        "the images 00025.png and the like"
    )


def _by_id(what: str, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not _is_id(key):
            raise ValueError(f"the id of {what} {value!r} is a number or a text; got {key!r}")
        if key in found:
            raise ValueError(
                f"{what} id {key!r} stands twice: {found[key]!r} and {value!r}; give each its own"
            )
        found[key] = value
    return found


def _is_id(value: Any) -> bool:
    # JSON's true is 1 in Python, and 1.0 is 1
    return isinstance(value, int | str) and not isinstance(value, bool)


def read_white_list(file: Path) -> frozenset[int] | None:
    """Read the trusted frames; None if there is no such file, and every frame is trusted.

    Raises
    ------
    ValueError
        If it is not a list of frame indices.
    """
    if not file.exists():
        return None
    if not file.is_file():
        raise ValueError("not a file")
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
        return parse_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"not readable ({error.strerror})") from None
    except ValueError as error:
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
    try:
        score = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: the score is a number; got {value!r:.40}")
    return score
