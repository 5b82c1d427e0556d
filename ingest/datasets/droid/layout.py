"""Where a DROID dataset keeps things: episodes in a tree, facts in names, images of a camera."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from attnstore.store.errors import EpisodeError
from attnstore.store.json_text import parse_json

from ..base import OUTCOMES, VideoFrames
from ..outcome import outcome_of_path
from ..stills import SUFFIXES, Stills
from ..video import Video, open_video

_log = logging.getLogger(__name__)

HAND_CAMERA = "hand_camera"
SIDES = {"left": "varied_camera_1", "right": "varied_camera_2"}
OUTER = {"ext1": "varied_camera_1", "ext2": "varied_camera_2"}
"""What DROID's release calls them; which of them stands on the left differs from episode to episode."""
CAMERAS = (HAND_CAMERA, *SIDES.values())

EXPECTED = (
    "{outcome}/{date}/{episode}/ directories with instruction.txt, trajectory.h5 and recordings/, "
    "for example success/2025-12-10/2025-12-10_09-00-39/, or DROID's own with metadata_*.json and "
    "recordings/MP4/"
)

_MARKERS = ("instruction.txt", "trajectory.h5", "recordings")
_EPISODE_NAME = re.compile(
    r"\d{4}-\d{2}-\d{2}[_T]\d{2}-\d{2}-\d{2}$"
    r"|[A-Z][a-z]{2}_[A-Z][a-z]{2}_+\d{1,2}_\d{2}[:_]\d{2}[:_]\d{2}_\d{4}$"
)
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(?!\d)")
_DEPTH = 6  # outcome/date/episode and a few levels above; a wrong root such as / ends soon

_TASK_VERB = re.compile(
    "close|fold|grasp|insert|lift|move|open|pick|place|pour|press|pull|push|put|remove|rotate|"
    "slide|stack|sweep|take|turn|unfold|unstack|wipe"
)

Images = Stills | Video


def is_episode(directory: Path) -> bool:
    """Whether a directory is an episode, broken or not: a broken one must be reported, not lost."""
    return _EPISODE_NAME.match(directory.name) is not None or any(
        (directory / marker).exists() for marker in _MARKERS
    )


def base_of(root: Path) -> Path:
    """Directory that episode names are relative to.

    An episode has the same name whether `root` is the dataset, an outcome, a date or the episode.
    """
    if any((root / outcome).is_dir() for outcome in OUTCOMES):
        return root
    for directory in (root, *root.parents[:2]):
        if directory.name in OUTCOMES:
            return directory.parent
    return root.parent if is_episode(root) else root


def episode_directories(root: Path) -> list[Path]:
    """Return the episode directories at or below `root`, each recording once.

    Nothing inside an episode is searched. A link to a recording that is itself below `root` counts
    for nothing; of several links to one recording elsewhere the first counts.
    """
    found: dict[Path, Path] = {}
    for directory in sorted(_directories(root, _DEPTH)):
        real = directory.resolve()
        other = found.setdefault(real, directory)
        if real == directory:
            found[real] = directory
        elif other != real and outcome_of_path(str(other)) != outcome_of_path(str(directory)):
            _log.warning("%s and %s are one recording; the first counts", other, directory)
    return sorted(found.values())


def has_episode(root: Path) -> bool:
    """Whether there is an episode at or below a directory."""
    return next(_directories(root, _DEPTH), None) is not None


def _directories(root: Path, depth: int) -> Iterator[Path]:
    if is_episode(root):
        yield root
    elif depth > 0:
        for child in root.iterdir():
            if not child.name.startswith(".") and child.is_dir():
                yield from _directories(child, depth - 1)


def date_of(name: str) -> str | None:
    """Find the recording date, ``YYYY-MM-DD``: the date directory, else the episode's own name."""
    *directories, episode = name.split("/")
    for part in (*reversed(directories), episode):
        if match := _DATE.match(part):
            return match[1]
    return None


@dataclass(frozen=True, slots=True)
class CombinedVideo:
    """What the name of an episode's side-by-side video says."""

    policy: str | None
    """Policy that drove the robot: ``pi05_fm``."""
    task: str | None
    """``place the green cube into the pink bowl``."""


def combined_video(directory: Path, instruction: str) -> CombinedVideo:
    """Parse ``{outcome}_{policy}_{task}_{episode}.mp4``; both fields are None without such a file.

    Policy names contain underscores too, so the task starts where the instruction's words do, else
    at the first word that is a known verb of a task.
    """
    instructed = re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_")
    for path in sorted(directory.glob("*.mp4")):
        outcome, _, rest = path.stem.partition("_")
        middle = rest.removesuffix(f"_{directory.name}")
        if outcome not in OUTCOMES or middle == rest:
            continue
        words = middle.split("_")
        if f"_{middle.lower()}".endswith(f"_{instructed}"):
            start = len(words) - len(instructed.split("_"))
        else:
            verbs = [i for i, word in enumerate(words) if _TASK_VERB.fullmatch(word.lower())]
            start = verbs[0] if verbs else len(words)
        return CombinedVideo("_".join(words[:start]) or None, " ".join(words[start:]) or None)
    return CombinedVideo(None, None)


def read_instruction(episode: str, directory: Path) -> str:
    """Read ``instruction.txt``, white space folded to single spaces.

    Raises
    ------
    EpisodeError
        If it is missing, empty or not UTF-8.
    """
    repair = "write the sentence that the policy was given into it"
    try:
        text = " ".join((directory / "instruction.txt").read_text("utf-8-sig").split())
    except FileNotFoundError:
        raise EpisodeError(episode, f"instruction.txt is missing; {repair}") from None
    except OSError as error:
        raise EpisodeError(
            episode, f"instruction.txt is not readable ({error.strerror}); {repair}"
        ) from error
    except UnicodeDecodeError as error:
        raise EpisodeError(
            episode, f"instruction.txt is not UTF-8 at byte {error.start}; {repair}"
        ) from error
    if not text:
        raise EpisodeError(episode, f"instruction.txt is empty; {repair}")
    return text


def calibrated_serials(directory: Path) -> list[str] | None:
    """Camera serials in ``calibration.json``; None if it is absent or unreadable.

    Reading frames does not need the calibration, so a bad one does not break the episode.
    """
    try:
        calibration = parse_json((directory / "calibration.json").read_bytes())
    except (OSError, ValueError):
        return None
    return sorted(calibration) if isinstance(calibration, dict) else None


def find_images(episode: str, directory: Path, camera: str, kept: VideoFrames = "jpeg") -> Images:
    """Find a camera's images: numbered files if there are any, else its video.

    Parameters
    ----------
    kept
        What is kept of a video's frames.

    Raises
    ------
    EpisodeError
        If there is neither, the numbering has a gap, or the video is unreadable.
    """
    video = directory / "recordings" / f"{camera}.mp4"
    numbered = _numbered_files(directory / "recordings" / "frames" / camera)
    if numbered:
        _check_start(episode, camera, numbered)
        gap = next((i for i in range(len(numbered)) if i not in numbered), None)
        if gap is not None:
            path = numbered[min(index for index in numbered if index > gap)]
            missing = f"{gap:0{len(path.stem)}d}{path.suffix}"
            repair = f"restore {missing}"
            if video.exists():
                repair += f", or remove recordings/frames/{camera} to read recordings/{video.name}"
            raise EpisodeError(
                episode,
                f"frames are numbered from 0 without gaps: recordings/frames/{camera} has "
                f"{path.name} but not {missing}; {repair}",
            )
        return Stills(episode, camera, tuple(numbered[index] for index in sorted(numbered)))
    if video.is_file():
        return replace(open_video(episode, camera, video), kept=kept)
    raise EpisodeError(episode, _missing_camera(directory, camera))


def _check_start(episode: str, camera: str, numbered: Mapping[int, Path]) -> None:
    first, last = min(numbered), max(numbered)
    if first == 0 or len(numbered) != last - first + 1 or len(numbered) == 1:
        return
    path = numbered[first]
    zero = f"{0:0{len(path.stem)}d}{path.suffix}"
    what = "ffmpeg numbers from 1 unless told -start_number 0" if first == 1 else ""
    raise EpisodeError(
        episode,
        f"numbering starts at {first}: recordings/frames/{camera} has {path.name} to "
        f"{numbered[last].name}, and frames are numbered from 0{f' ({what})' if what else ''}; "
        f"subtract {first} from every name if {path.name} is the first frame recorded, so that it "
        f"becomes {zero}",
    )


def _missing_camera(directory: Path, camera: str) -> str:
    recordings = directory / "recordings"
    video = recordings / f"{camera}.mp4"
    if os.path.lexists(video):  # and no file, or it would have been read
        what = "a link to nothing" if not video.exists() else "no file"
        return f"recordings/{video.name} is {what}; restore the recording"
    there = [
        other
        for other in CAMERAS
        if (recordings / f"{other}.mp4").is_file() or _numbered_files(recordings / "frames" / other)
    ]
    reason = (
        f"no images of {camera}: neither recordings/frames/{camera}/00000.jpg nor "
        f"recordings/{camera}.mp4; the episode has {', '.join(there) or 'no camera'}"
    )
    if not there and (elsewhere := _other_videos(directory)):
        return f"{reason}; {elsewhere}"
    others = [side for side, name in SIDES.items() if name in there]
    if camera != HAND_CAMERA and others:
        return f"{reason}; pass --side {others[0]}, or restore the recording"
    return f"{reason}; restore the recording"


def _other_videos(directory: Path) -> str | None:
    """Say which videos there are under other names."""
    found = [
        path.relative_to(directory).as_posix()
        for path in sorted((directory / "recordings").rglob("*.mp4"))
        if not path.name.startswith(".")
    ]
    if not found:
        return None
    return (
        f"there is {', '.join(found)}: link or rename them to "
        f"{', '.join(f'recordings/{name}.mp4' for name in CAMERAS)}, and the wrist's is the first"
    )


def _numbered_files(directory: Path) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    found: dict[int, Path] = {}
    # reversed, so that of 00000.jpg and 00000.png the first in order wins on every file system
    for path in sorted(directory.iterdir(), reverse=True):
        if path.suffix.lower() in SUFFIXES and re.fullmatch("[0-9]+", path.stem):
            found[int(path.stem)] = path
    return found
