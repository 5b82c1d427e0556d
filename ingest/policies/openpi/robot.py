"""How an openpi configuration takes a robot's observations: read off its input transforms.

A lab writes an input transform of its own for each robot, with keys of its own. Which keys it
reads is learned by running it: an observation that says what it was asked for is put through,
and what was missing is added until the transforms are content. Where a picture ends up is seen by
its colour. Hints come from the configuration's own ``RepackTransform``, which names the dataset's
column for each key, and from the keys' names; options overrule them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ...datasets.lerobot.metadata import camera_name
from ..base import ObservationError, PolicyError
from ..checkpoint import one_line

Key = tuple[str, ...]
"""Where an observation holds a value: ``("observation/image",)``, ``("images", "cam_high")``."""
Kind = Literal["image", "state", "text"]
State = NDArray[np.float32]
Through = Callable[[dict[str, Any]], dict[str, Any]]
"""openpi's input transforms, in order."""

ROLES = {
    "base_0_rgb": "base", "base_1_rgb": "base_1", "left_wrist_0_rgb": "wrist", "wrist_0_rgb": "wrist",
    "right_wrist_0_rgb": "right_wrist",
}  # fmt: skip
"""What options call the model's image inputs; those of Pi0-FAST have other names for DROID."""
_WRIST = re.compile("hand|wrist", re.IGNORECASE)
_IMAGE = re.compile("image|img|rgb|cam|view|pixel|picture|photo", re.IGNORECASE)
_TEXT = re.compile("prompt|task|instruction|language", re.IGNORECASE)
_CONTAINERS = ("images", "cameras", "observation", "observations", "obs")
_ENOUGH = 40
"""Keys that a transform may ask for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say of a robot; what they leave out is found."""

    roles: Mapping[str, str]
    """Camera by role: ``{"wrist": "hand_camera"}``."""
    images: Mapping[str, str]
    """Key by camera: ``{"top": "images/cam_high"}``."""
    state: Sequence[tuple[str, int | None]] = ()
    """Keys of the robot state with their lengths, in the order of the dataset's state."""

    @classmethod
    def parse(cls, options: Mapping[str, str | None]) -> Asked:
        """Read ``base=``, ``base_1=``, ``wrist=``, ``right_wrist=``, ``cameras=`` and ``state=``.

        Raises
        ------
        UsageError
            If a value does not read ``CAMERA:KEY,...`` or ``KEY:LENGTH,...``.
        """
        roles = {r: c for r in ROLES.values() if (c := options.get(r)) is not None}
        images: dict[str, str] = {}
        for pair in _listed(options.get("cameras")):
            camera, colon, key = pair.partition(":")
            if not colon or not camera or not key or camera in images:
                raise UsageError(
                    "cameras says which camera is which key of openpi's transform, each once: "
                    f"cameras=top:observation/image,hand:observation/wrist_image; got {pair!r}"
                )
            images[camera] = key
        state: list[tuple[str, int | None]] = []
        for part in _listed(options.get("state")):
            key, colon, length = part.rpartition(":") if ":" in part else (part, "", "")
            if not key or (colon and (not length.isdecimal() or not int(length))):
                raise UsageError(
                    "state names the keys of the robot state with their lengths, in the dataset's "
                    f"order: state=observation/joints:6,observation/gripper:1; got {part!r}"
                )
            state.append((key, int(length) if colon else None))
        return cls(roles, images, tuple(state))


@dataclass(frozen=True, slots=True)
class Robot:
    """The keys in which openpi's transforms take an observation, and where its images end up."""

    inputs: Mapping[str, Key]
    """Key of the picture that each valid image input of the model shows, in the model's order."""
    optional: frozenset[Key]
    """Pictures without which the transforms do, too."""
    ignored: tuple[Key, ...]
    """Pictures that are asked for and reach no image input."""
    state: Mapping[Key, slice]
    """Components of the dataset's state."""
    text: tuple[Key, ...]
    channels_first: bool
    """Whether pictures are (3, height, width)."""

    def observation(
        self, pictures: Mapping[Key, NDArray[np.uint8]], state: State, text: str
    ) -> dict[str, Any]:
        """Return an observation in openpi's form, from pictures of (height, width, 3)."""
        blank = np.zeros_like(next(iter(pictures.values())))
        values: dict[Key, Any] = {**dict.fromkeys(self.ignored, blank), **pictures}
        if self.channels_first:
            values = {key: np.moveaxis(value, -1, 0) for key, value in values.items()}
        for key, part in self.state.items():
            values[key] = state[part].copy()
        values |= dict.fromkeys((("prompt",), *self.text), text)
        return _nested(values)


def learn(
    through: Through,
    inputs: Sequence[str] | None,
    cameras: Sequence[str],
    components: int,
    *,
    asked: Asked,
    columns: Mapping[Key, str],
    expected: Sequence[str] = (),
) -> Robot:
    """Find out how transforms take an observation.

    Parameters
    ----------
    through
        openpi's input transforms.
    inputs
        The model's image inputs; None: all that the transforms make.
    cameras
        The dataset's cameras.
    components
        Length of the dataset's state.
    asked
        What the options say.
    columns
        The dataset's column by key, from the configuration's ``RepackTransform``.
    expected
        Names of the pictures that the transform says to take, if it does.

    Raises
    ------
    UsageError
        If an option names a key that is not asked for, or the state has several parts whose
        lengths are not known.
    ObservationError
        If the state does not fit the norm stats.
    PolicyError
        If it cannot be found out.
    """
    refused: ObservationError | PolicyError | None = None
    for channels_first in (False, True):
        questions = _Questions(
            through, inputs, cameras, components, asked, columns, expected, channels_first
        )
        try:
            return questions.robot()
        except (ObservationError, PolicyError) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def assign(
    robot: Robot, cameras: Sequence[str], asked: Asked, columns: Mapping[Key, str]
) -> dict[str, str]:
    """Say which of the dataset's cameras each image input of the model shows.

    Options decide; then the configuration's columns, a key of the camera's name, and ``hand`` or
    ``wrist`` in it.

    Returns
    -------
    The camera by image input, in the model's order.

    Raises
    ------
    UsageError
        If that is not clear, or a camera would be left out.
    """  # fmt: skip
    roles = {ROLES.get(name, name): key for name, key in robot.inputs.items()}
    said = _said(roles, cameras, asked)
    needed = [role for role, key in roles.items() if key not in robot.optional]
    if not len(needed) <= len(cameras) <= len(roles):
        count = str(len(roles)) if len(needed) == len(roles) else f"{len(needed)} to {len(roles)}"
        shown = ", ".join(f"{role} from {'/'.join(key)}" for role, key in roles.items())
        raise UsageError(
            f"this policy sees {count} cameras ({shown}); the dataset gives {len(cameras)}: "
            f"{', '.join(cameras)}"
        )

    def todo() -> list[str]:
        return [role for role in roles if role not in said]

    def left() -> list[str]:
        return [camera for camera in cameras if camera not in said.values()]

    for role in todo():
        for name in (camera_name(columns.get(roles[role], "")), roles[role][-1].rpartition("/")[2]):
            if role not in said and name in left():
                said[role] = name
    hands = [camera for camera in left() if _WRIST.search(camera)]
    wrists = [role for role in todo() if _WRIST.search(role)]
    if len(hands) == len(wrists) == 1:
        said[wrists[0]] = hands[0]
    elif len(hands) == len(wrists) == 2:
        sided = {
            role: [c for c in hands if ("right" in c.lower()) == (role == "right_wrist")]
            for role in wrists
        }
        if all(len(found) == 1 for found in sided.values()):
            said |= {role: found[0] for role, found in sided.items()}
    open_roles = [role for role in todo() if role in needed] or todo()
    if len(left()) == len(open_roles) == 1 and (
        _WRIST.search(open_roles[0]) or not _WRIST.search(left()[0])
    ):
        said[open_roles[0]] = left()[0]
    if left() or [role for role in todo() if role in needed]:
        role = next((r for r in todo() if _WRIST.search(r)), (todo() or ["base"])[0])
        raise UsageError(
            f"which of {', '.join(cameras)} is the {role.replace('_', ' ')} camera? Say it with "
            f"--policy-option {role}=NAME"
        )
    return {
        name: said[role]
        for name, key in robot.inputs.items()
        if (role := ROLES.get(name, name)) in said
    }


def _said(roles: Mapping[str, Key], cameras: Sequence[str], asked: Asked) -> dict[str, str]:
    said: dict[str, str] = {}
    by_key = {"/".join(key): role for role, key in roles.items()}
    pairs = [(f"{role}={camera}", role, camera) for role, camera in asked.roles.items()]
    for camera, key in asked.images.items():
        pairs.append((f"cameras={camera}:{key}", by_key.get(key, ""), camera))
    for option, role, camera in pairs:
        if camera not in cameras:
            raise UsageError(
                f"option {option}: no such camera; the dataset gives {', '.join(cameras)}"
            )
        if role not in roles:
            raise UsageError(
                f"option {option}: that shows in none of the model's image inputs; they show "
                f"{', '.join(f'{r} ({k})' for k, r in by_key.items())}"
            )
        if said.get(role, camera) != camera:
            raise UsageError(f"option {option}: {role} is {said[role]} already")
        said[role] = camera
    twice = sorted({c for c in said.values() if list(said.values()).count(c) > 1})
    if twice:
        names = [role for role, camera in said.items() if camera == twice[0]]
        raise UsageError(f"{' and '.join(names)} are two cameras; got {twice[0]} for both")
    return said


class _Log:
    """What an observation was asked for and had not."""

    def __init__(self) -> None:
        self.missing: list[Key] = []
        self.tested: list[Key] = []


class _Asking(dict[str, Any]):
    """A dictionary that takes note of the keys that it lacks."""

    def __init__(self, content: Mapping[str, Any], path: Key, log: _Log) -> None:
        super().__init__(content)
        self._path, self._log = path, log

    def __missing__(self, key: str) -> Any:
        self._log.missing.append((*self._path, key))
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        if not found:
            self._log.tested.append((*self._path, str(key)))
        return found

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  # it is noted there


class _Questions:
    """Puts observations through transforms until it is known what they take."""

    def __init__(
        self,
        through: Through,
        inputs: Sequence[str] | None,
        cameras: Sequence[str],
        components: int,
        asked: Asked,
        columns: Mapping[Key, str],
        expected: Sequence[str],
        channels_first: bool,
    ) -> None:
        self._through, self._inputs, self._cameras = through, inputs, cameras
        self._components, self._asked, self._columns = components, asked, columns
        self._expected, self._channels_first = expected, channels_first
        self._found: dict[Key, Kind] = {}
        self._containers: list[Key] = []

    def robot(self) -> Robot:
        """Return what was found."""
        out = self._until_content()
        fills = self._fills(out)
        images = [key for key, kind in self._found.items() if kind == "image"]
        self._check_named()
        without = {key for key in images if self._does_without(key)}
        used = set(fills.values())
        if len(used) < len(fills):
            shown = ", ".join(f"{name} ({'/'.join(key)})" for name, key in fills.items())
            raise PolicyError(f"each camera should fill one image input; they show {shown}")
        return Robot(
            inputs=fills,
            optional=frozenset(without & used),
            ignored=tuple(key for key in images if key not in used and key not in without),
            state=self._split(strict=True),
            text=tuple(k for k, kind in self._found.items() if kind == "text"),
            channels_first=self._channels_first,
        )

    def _until_content(self) -> dict[str, Any]:
        for _ in range(_ENOUGH):
            log = _Log()
            try:
                out = self._through(self._observation(log))
            except Exception as error:
                cause = error.__cause__ if isinstance(error, ObservationError) else error
                key = next((k for k in reversed(log.missing) if not self._known(k)), None)
                if key is None and isinstance(cause, KeyError) and cause.args:
                    key = self._place(str(cause.args[0]))
                if key is None or self._known(key):
                    if isinstance(error, ObservationError) and cause is None:
                        self._split(strict=True)  # it may be the parts that are not known
                        raise
                    raise PolicyError(f"{self._so_far()}, and then {error}: {_SAY}") from error
                self._add(key)
                continue
            new = [k for k in log.tested if not self._known(k) and self._kind(k) == "image"]
            if not new:
                return out
            for key in new:
                self._add(key)
        raise PolicyError(f"{self._so_far()} and more: {_SAY}")

    def _known(self, key: Key) -> bool:
        return key in self._found or key in self._containers

    def _place(self, name: str) -> Key:
        """Where a key belongs that a copy of the observation lacked."""
        for key in self._columns:
            if "/".join(key) == name:
                return key
        if self._containers:
            return (*self._containers[-1], name)
        return (name,)

    def _add(self, key: Key) -> None:
        named = [tuple(k.split("/")) for k in (*self._asked.images.values(), *self._state_keys())]
        below = [k for k in (*named, *self._columns) if len(k) > len(key) and k[: len(key)] == key]
        plain = "/".join(key) in (*self._asked.images.values(), *self._state_keys())
        if plain or not (below or key[-1] in _CONTAINERS):
            self._found[key] = self._kind(key)
            return
        self._containers.append(key)
        names = [k[len(key)] for k in below if self._kind(k) == "image"]
        if key[-1] in ("images", "cameras"):
            names += self._expected or ([] if names else self._cameras)
        for name in dict.fromkeys(names):
            self._found[(*key, name)] = "image"

    def _kind(self, key: Key) -> Kind:
        joined = "/".join(key)
        if joined in self._asked.images.values():
            return "image"
        if joined in self._state_keys():
            return "state"
        if camera_name(self._columns.get(key, "")) in self._cameras:
            return "image"
        if _IMAGE.search(key[-1]) or (len(key) > 1 and key[-2] in ("images", "cameras")):
            return "image"
        return "text" if _TEXT.search(key[-1]) else "state"

    def _state_keys(self) -> list[str]:
        return [key for key, _ in self._asked.state]

    def _observation(self, log: _Log, leave_out: Key | None = None) -> dict[str, Any]:
        values: dict[Key, Any] = {("prompt",): "look"}
        for key, code in self._codes().items():
            if key != leave_out:
                picture = ramps((64, 96), code)
                values[key] = np.moveaxis(picture, -1, 0) if self._channels_first else picture
        state = np.zeros(self._components, np.float32)
        values |= {key: state[part].copy() for key, part in self._split(strict=False).items()}
        values |= {key: "look" for key, kind in self._found.items() if kind == "text"}
        content = _nested(values)
        for key in self._containers:
            parent = content
            for name in key:
                parent = parent.setdefault(name, {})
        return _asking(content, (), log)

    def _codes(self) -> dict[Key, int]:
        images = [key for key, kind in self._found.items() if kind == "image"]
        return codes(images)

    def _does_without(self, key: Key) -> bool:
        try:
            self._through(self._observation(_Log(), leave_out=key))
        except Exception:
            return False
        return True

    def _fills(self, out: Mapping[str, Any]) -> dict[str, Key]:
        try:
            shown = {
                name: np.asarray(out["image"][name]) for name in valid_inputs(out, self._inputs)
            }
        except (KeyError, TypeError) as error:
            raise PolicyError(
                f"openpi's transforms make no image inputs {', '.join(self._inputs or ())} "
                f"({one_line(error)}): is this a configuration of a Pi0, Pi0.5 or Pi0-FAST?"
            ) from error
        return {
            name: which(name, picture, self._codes())
            for name, picture in shown.items()
            if picture.any()
        }

    def _split(self, *, strict: bool) -> dict[Key, slice]:
        """Which components of the state go into which key."""
        keys = [key for key, kind in self._found.items() if kind == "state"]
        said = dict(self._asked.state)
        order = [key for name in said for key in keys if "/".join(key) == name]
        order += [key for key in keys if key not in order]
        # A gripper is one number, and stands behind the joints.
        order.sort(key=lambda k: "/".join(k) not in said and "gripper" in k[-1].lower())
        sizes: dict[Key, int | None] = {
            k: said.get("/".join(k)) or (1 if "gripper" in k[-1].lower() and len(keys) > 1 else None)
            for k in order
        }  # fmt: skip
        rest = [k for k, size in sizes.items() if size is None]
        known = sum(size for size in sizes.values() if size is not None)
        several = [k for k in order if "gripper" in k[-1].lower() and "/".join(k) not in said]
        if strict and (len(rest) > 1 or (len(several) > 1 and len(keys) > 1)):
            names = ",".join(f"{'/'.join(k)}:N" for k in order)
            raise UsageError(
                f"openpi's transform takes the robot state in {len(keys)} parts, and the dataset "
                f"has one of {self._components} components: say which come first with "
                f"--policy-option state={names}"
            )
        if strict and (known > self._components or (not rest and known != self._components)):
            if not self._asked.state:
                names = ", ".join("/".join(k) for k in order)
                raise ObservationError(
                    f"the robot state has {self._components} components, too few for {names}"
                )
            raise UsageError(
                f"option state has {known} components, the dataset's robot state {self._components}"
            )
        parts, start = {}, 0
        for key in order:
            size = sizes[key]
            length = max(0, self._components - known) if size is None and key == rest[0] else size
            stop = start + (1 if length is None else length)
            parts[key], start = slice(start, stop), stop
        return parts

    def _check_named(self) -> None:
        found = {"/".join(key) for key in self._found}
        for key in (*self._asked.images.values(), *self._state_keys()):
            if key not in found:
                raise UsageError(
                    f"openpi's transforms never read {key}; they read {', '.join(sorted(found))}"
                )

    def _so_far(self) -> str:
        read = ", ".join(f"{'/'.join(k)} ({kind})" for k, kind in self._found.items())
        return (
            f"attnstore cannot find out how openpi's transforms take observations: they read {read}"
        )


_SAY = "name the keys with --policy-option cameras=CAMERA:KEY,... and --policy-option state=KEY:LENGTH,..."


def model_inputs(made: Mapping[str, Any], inputs: Sequence[str] | None) -> list[str]:
    """Return the model's image inputs in their order; JAX sorts those that no model names (None)."""
    return sorted(made["image"]) if inputs is None else list(inputs)


def valid_inputs(made: Mapping[str, Any], inputs: Sequence[str] | None) -> list[str]:
    """Return those that are not masked; one of them may be wholly black, and is attended to then."""
    return [name for name in model_inputs(made, inputs) if np.all(made["image_mask"][name])]


def ramps(size: tuple[int, int], code: int) -> NDArray[np.uint8]:
    """Red grows from left to right, green from top to bottom, blue is `code`."""
    height, width = size
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = np.round(254 * (np.arange(width) + 0.5) / width)
    picture[..., 1] = np.round(254 * (np.arange(height)[:, None] + 0.5) / height)
    picture[..., 2] = code
    return picture


def codes(keys: Sequence[Key]) -> dict[Key, int]:
    """Blue of each key's test picture; 0 is the letterbox."""
    return {key: 255 * (i + 1) // (len(keys) + 1) for i, key in enumerate(keys)}


def which(name: str, shown: NDArray[Any], blue: Mapping[Key, int]) -> Key:
    """Tell by its colour which picture an image input shows.

    Raises
    ------
    PolicyError
        If it is none of them.
    """
    if shown.ndim == 3 and shown.shape[-1] == 3 and shown.size and blue:
        seen = int(shown[..., 2].max())
        key = min(blue, key=lambda k: abs(blue[k] - seen))
        if abs(blue[key] - seen) <= 2:
            return key
    raise PolicyError(f"image input {name} is valid, but shows none of the cameras")


def flatten(structure: Any, path: Key = ()) -> dict[Key, str]:
    """Flatten the structure of a ``RepackTransform``: the dataset's column by key."""
    if isinstance(structure, Mapping):
        return {k: v for name, s in structure.items() for k, v in flatten(s, (*path, name)).items()}
    return {path: str(structure)}


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text is not None else []


def _nested(values: Mapping[Key, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in values.items():
        parent = content
        for name in key[:-1]:
            parent = parent.setdefault(name, {})
        parent[key[-1]] = value
    return content


def _asking(content: Mapping[str, Any], path: Key, log: _Log) -> _Asking:
    inner = {
        name: _asking(value, (*path, name), log) if isinstance(value, dict) else value
        for name, value in content.items()
    }
    return _Asking(inner, path, log)
