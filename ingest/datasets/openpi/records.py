"""Folders that openpi's ``PolicyRecorder`` writes: ``step_0.npy``, one file a policy call.

A file is a NumPy array with one object in it, a pickled dictionary: the client's message under
``inputs/...``, the server's answer under ``outputs/...``. Pickles can run any code when they are read, so
these are read by an unpickler that knows NumPy's arrays and numbers and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from attnstore.store.commits import read_bounded
from attnstore.store.episode_names import names_episode
from attnstore.store.errors import EpisodeError, IntegrityError, NotFoundError, UsageError

from ..base import OUTCOMES, CameraFrame, EpisodeInfo, Frame, VideoFrames
from ..video import check_kept, encode
from .message import Message, read_message

MAX_BYTES = 256 << 20
"""Bytes that one step's file may have."""
MAX_VALUES = 100_000
"""Values that a step's dictionary may have, arrays counted as one."""
_STEP = re.compile(r"step_(\d{1,9})\.npy")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


class RecordsDataset:
    """The policy calls of one folder, an episode wherever the prompt or the cameras change.

    Parameters
    ----------
    directory
        With ``step_N.npy`` files: openpi's ``policy_records``.
    begins
        Steps at which an episode begins, too: the files have no mark of it.
    pause
        Seconds between two files' times after which an episode begins; None: times do not count.
    outcome
        Only episodes of this outcome; none has another than ``unknown``.
    episodes
        Only episodes of these names; globs are allowed.
    limit
        At most so many.
    video_frames
        What is kept of the images, ``jpeg`` or ``png``; the policy sees them exactly.
    name
        Name of the dataset; the directory's if None.

    Raises
    ------
    NotFoundError
        If there is no such file.
    UsageError
        If a step of `begins` has no file.
    """

    kind = "openpi-records"

    def __init__(
        self,
        directory: Path,
        *,
        begins: Sequence[int] = (),
        pause: float | None = None,
        outcome: str | None = None,
        episodes: Sequence[str] = (),
        limit: int | None = None,
        video_frames: VideoFrames = "jpeg",
        name: str | None = None,
    ) -> None:
        check_kept(video_frames)
        self.directory, self.name = directory, name or directory.absolute().name
        self._outcome = outcome
        self._patterns, self._limit, self._kept = tuple(episodes), limit, video_frames
        found = {
            int(m[1]): p for p in directory.glob("step_*.npy") if (m := _STEP.fullmatch(p.name))
        }
        if not found:
            raise NotFoundError(
                f"{directory}: no step_N.npy in it, as openpi's PolicyRecorder writes"
            )
        unknown = [step for step in begins if step not in found]
        if unknown:
            raise UsageError(
                f"{directory} has no step_{unknown[0]}.npy at which an episode could begin; it has "
                f"steps {min(found)} to {max(found)}"
            )
        self._episodes = {e.name: e for e in _split(found, frozenset(begins), pause)}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras of the first step that can be read."""
        return next((e.cameras for e in self._episodes.values() if e.cameras), ())

    def episode_names(self) -> Sequence[str]:
        """Names of the episodes after the filters: ``step_000042`` begins with step 42."""
        names = [
            name
            for name in sorted(self._episodes if self._outcome in (None, OUTCOMES[2]) else ())
            if not self._patterns or any(names_episode(p, name) for p in self._patterns)
        ]
        if not names:
            asked = ", ".join((*self._patterns, *([self._outcome] if self._outcome else ())))
            raise NotFoundError(
                f"{self.directory}: none of {len(self._episodes)} episodes is {asked}; the first is "
                f"{min(self._episodes)}, and outcomes are not recorded"
            )
        return names[: self._limit]

    def file_of(self, name: str) -> str | None:
        """Return None: an episode has files of its own."""
        return None

    def info(self, name: str) -> EpisodeInfo:
        """Describe an episode; its outcome is not recorded.

        Raises
        ------
        EpisodeError
            If one of its files cannot be read.
        """
        episode = self._episodes[name]
        if episode.broken is not None:
            raise EpisodeError(name, episode.broken)
        first = episode.steps[0]
        return EpisodeInfo(
            name=name,
            outcome=OUTCOMES[2],
            instruction=episode.prompt,
            frames=episode.steps[-1] - first + 1,
            date=datetime.fromtimestamp(episode.time, UTC).date().isoformat(),
            attributes={"first_step": first, "last_step": episode.steps[-1]},
            keyframes=tuple(step - first for step in episode.steps),
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield policy calls; the action is the first one of the chunk that the client got.

        Raises
        ------
        EpisodeError
            If a file cannot be read.
        """
        episode = self._episodes[name]
        for index in indices:
            step = episode.steps[0] + index
            if step not in episode.files:
                raise UsageError(f"episode {name} has no step_{step}.npy (frame {index})")
            try:
                content = read_step(episode.files[step])
                message = _message(content)
                actions = np.asarray(content["outputs/actions"], np.float32)
                if actions.ndim != 2 or not actions.size:
                    raise IntegrityError(
                        f"outputs/actions has shape {actions.shape}, (steps, components) is expected"
                    )
            except (IntegrityError, KeyError, TypeError, ValueError, OSError) as error:
                raise EpisodeError(name, f"step_{step}.npy: {_told(error)}") from error
            pictures = message.pictures()
            cameras: tuple[CameraFrame, ...] = tuple(
                encode(camera, picture, self._kept) for camera, picture in pictures.items()
            )
            state = np.concatenate([np.zeros(0, np.float32), *message.numbers.values()])
            yield Frame(index, cameras, state, actions[0].copy())


@dataclass(slots=True)
class _Episode:
    name: str
    prompt: str
    cameras: tuple[str, ...]
    structure: Any
    time: float
    files: dict[int, Path] = field(default_factory=dict)
    broken: str | None = None

    @property
    def steps(self) -> list[int]:
        return list(self.files)


def _split(
    found: Mapping[int, Path], begins: frozenset[int], pause: float | None
) -> Iterator[_Episode]:
    episode: _Episode | None = None
    last = 0.0
    for step in sorted(found):
        path, broken = found[step], None
        message: Message | None = None
        try:
            time = path.stat().st_mtime
            message = _message(read_step(path))
        except (IntegrityError, OSError) as error:
            time, broken = last, f"{path.name}: {_told(error)}"
        same = episode is not None and (
            message is None or (message.prompt, message.structure) == (episode.prompt, episode.structure)
        )  # fmt: skip
        waited = pause is not None and time - last > pause
        if episode is None or not same or step in begins or waited:
            if episode is not None:
                yield episode
            prompt, cameras = (message.prompt, tuple(message.cameras)) if message else ("", ())
            structure = message.structure if message else None
            episode = _Episode(f"step_{step:06d}", prompt, cameras, structure, time)
        episode.files[step] = path
        episode.broken, last = episode.broken or broken, time
    if episode is not None:
        yield episode


def _message(content: Mapping[str, Any]) -> Message:
    message = read_message(
        {key.removeprefix("inputs/"): v for key, v in content.items() if key.startswith("inputs/")}
    )
    if not message.images:
        raise IntegrityError(
            "no camera image below inputs/: was this written by openpi's PolicyRecorder?"
        )
    return message


def read_step(path: Path) -> dict[str, Any]:
    """Read a file of ``PolicyRecorder``: values by flat key, without running code of the file's.

    Raises
    ------
    IntegrityError
        If it is none, is cut, or holds anything but texts, numbers, containers and arrays of numbers.
    """
    stream = io.BytesIO(read_bounded(path, MAX_BYTES))
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise IntegrityError(f"an array of shape {shape} and {dtype}; one object is expected")
        content = _Contents().plain(_Unpickler(stream).load())
    except IntegrityError:
        raise
    except Exception as error:  # a pickle can fail in any way
        raise IntegrityError(f"it cannot be read ({_told(error)}): copy the file again") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise IntegrityError("no dictionary with texts as keys")
    return content


_NDARRAY = object()
"""Stands for NumPy's class in a pickle; it cannot be called."""


_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE,
    pickle.BUILD, pickle.MARK, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2,
    pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT,
    pickle.SETITEM, pickle.SETITEMS, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
    pickle.BINGET, pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINBYTES8,
)  # fmt: skip
"""What a pickle of arrays, numbers, texts and containers is made of."""


class _Unpickler(pickle._Unpickler):
    """Lets a pickle name what NumPy's arrays are made of, and makes no object of NumPy.

    Python's own and not C's, which makes room for as many objects as a file of a few bytes says to have.
    """

    dispatch = {  # noqa: RUF012  # as the base class has it
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def load_build(self) -> None:
        stack = self.stack  # type: ignore[attr-defined]  # typeshed leaves it out
        state, built = stack.pop(), stack[-1]
        if not isinstance(built, _Array | _Dtype):
            raise IntegrityError("it changes something that is no array")
        built.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if module in _MODULES and name == "_reconstruct":
            return _Array
        if module in _MODULES and name == "scalar":
            return _Scalar
        raise IntegrityError(
            f"it asks for {module}.{name} when it is read, which could run any code, and is refused; "
            "only arrays, numbers and texts are read"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise IntegrityError("it refers to objects of another file")


class _Dtype:
    def __init__(self, name: Any, *_: Any) -> None:
        self._name, self._order = name, "|"

    def __setstate__(self, state: Any) -> None:
        self._order, named = state[1], state[2:5]
        if self._order not in ("<", ">", "|", "=") or any(part is not None for part in named):
            raise IntegrityError("an array with named fields")

    def value(self) -> np.dtype[Any]:
        if not isinstance(self._name, str):
            raise IntegrityError(f"a data type of {type(self._name).__name__}")
        dtype = np.dtype(self._name)
        if dtype.kind not in "biufcOUS":
            raise IntegrityError(f"an array of {dtype}")
        return dtype.newbyteorder(">") if self._order == ">" else dtype


class _Array:
    def __init__(self, *_: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def value(self, contents: _Contents) -> Any:
        _, shape, dtype, by_column, data = self._state
        made = dtype.value()
        if made.kind == "O":
            # NumPy's own form of one object, as np.save writes a dictionary
            if shape != () or not isinstance(data, list):
                raise IntegrityError(f"an array of objects, of shape {shape}")
            return contents.plain(data[0])
        if not isinstance(data, bytes):
            raise IntegrityError("an array without its bytes")
        return np.frombuffer(data, made).reshape(shape, order="F" if by_column else "C").copy()


class _Scalar:
    def __init__(self, dtype: Any, data: Any = None) -> None:
        self._dtype, self._data = dtype, data

    def value(self) -> Any:
        made = self._dtype.value()
        if made.kind == "O" or not isinstance(self._data, bytes):
            raise IntegrityError("a number that is made in another way than NumPy's")
        return np.frombuffer(self._data, made, 1)[0]


class _Contents:
    """Makes arrays of what stands for them, of so many values at most: a container may hold itself."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def plain(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise IntegrityError(f"more than {MAX_VALUES} values")
        if isinstance(value, _Array):
            return value.value(self)
        if isinstance(value, _Scalar):
            return value.value()
        if isinstance(value, dict):
            return {key: self.plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(each) for each in value]
        if value is None or isinstance(value, str | bytes | int | float | complex):
            return value
        raise IntegrityError(f"a {type(value).__name__}")


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())[:240]
    return text if isinstance(error, IntegrityError) else f"{type(error).__name__}: {text}"
