"""How openpi configurations of many robots take observations: found out, compared with by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from ingest_fixtures import picture
from openpi_architecture import IMAGE_KEYS
from openpi_fixture import (
    DroidInputs,
    InjectDefaultPrompt,
    Normalize,
    PadStatesAndActions,
    PaligemmaTokenizer,
    ResizeImages,
    TokenizePrompt,
)

from attnstore.ingest.policies.base import Observation, ObservationError, PolicyError
from attnstore.ingest.policies.openpi.layout import WritingSequence
from attnstore.ingest.policies.openpi.observation import Sight
from attnstore.ingest.policies.openpi.robot import Asked, flatten
from attnstore.store.errors import UsageError

Data = dict[str, Any]
Robot = Callable[[Data], Data]
SIDE, HAND, OTHER = picture(1, 72, 128), picture(2, 72, 128), picture(3, 60, 90)
STATE = np.arange(1, 8, dtype=np.float32)


def output(state: Any, *images: Any, prompt: Any) -> Data:
    """What openpi's robot transforms return: None is an input that the robot has no camera for."""
    black = np.zeros_like(np.asarray(images[0]))
    filled = [black if image is None else np.asarray(image) for image in images]
    return {
        "state": np.asarray(state),
        "image": dict(zip(IMAGE_KEYS, filled, strict=True)),
        "image_mask": {k: np.bool_(i is not None) for k, i in zip(IMAGE_KEYS, images, strict=True)},
        "prompt": prompt,
    }


def own_keys(data: Data) -> Data:
    """A copy of a transform with a lab's keys, as openpi's comments ask for."""
    return output(data["q"], data["front_rgb"], data["palm_rgb"], None, prompt=data["prompt"])


def two_parts(data: Data) -> Data:
    state = np.concatenate([data["joints"], data["gripper"]])
    return output(state, data["base_rgb"], data["wrist_rgb"], None, prompt=data["prompt"])


def gripper_first(data: Data) -> Data:
    state = np.concatenate([data["gripper_position"], data["joint_position"]])
    return output(state, data["base_rgb"], data["wrist_rgb"], None, prompt=data["prompt"])


def two_arms(data: Data) -> Data:
    parts = [data[f"{side}/{part}"] for side in ("left", "right") for part in ("arm", "gripper")]
    images = (data["image/top"], data["image/left"], data["image/right"])
    return output(np.concatenate(parts), *images, prompt=data["prompt"])


def nested(data: Data) -> Data:
    seen = data["observation"]
    images = (seen["images"]["top"], seen["images"]["wrist"], None)
    return output(seen["state"], *images, prompt=data["instruction"])


def of_a_copy(data: Data) -> Data:
    return own_keys(dict(data))


def if_there(data: Data) -> Data:
    """The second camera may be missing."""
    palm = data["palm_rgb"] if "palm_rgb" in data else None  # noqa: SIM401
    return output(data["q"], data["front_rgb"], palm, None, prompt=data["prompt"])


def unspeaking(data: Data) -> Data:
    return output(data["c"], data["a"], data["b"], None, prompt=data["prompt"])


def looked_at_and_left(data: Data) -> Data:
    """One image is asked for and used by nothing."""
    assert data["unused_rgb"].ndim == 3
    return own_keys(data)


def one_twice(data: Data) -> Data:
    front = data["front_rgb"]
    return output(data["q"], front, data["palm_rgb"], front, prompt=data["prompt"])


@dataclass(frozen=True)
class LabsDroid(DroidInputs):
    """A subclass that scales what its parent returns."""

    def __call__(self, data: Data) -> Data:
        made = super().__call__(data)
        return {**made, "state": made["state"] * 2}


class TwoArms:
    """Pictures by name, channels first; a camera that is not there is black and masked."""

    EXPECTED_CAMERAS: ClassVar = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")

    def __call__(self, data: Data) -> Data:
        images = {name: np.transpose(image, (1, 2, 0)) for name, image in data["images"].items()}
        data["images"] = images
        if set(images) - set(self.EXPECTED_CAMERAS):
            raise ValueError(f"got {tuple(images)}")
        wrists = [images.get(f"cam_{side}_wrist") for side in ("left", "right")]
        return output(data["state"], images["cam_high"], *wrists, prompt=data["prompt"])


def sight(
    robot: Robot, options: Mapping[str, str], columns: Any = None, stats: int | None = None
) -> Sight:
    known = SimpleNamespace(mean=np.zeros(stats or 1), std=np.ones(stats or 1))
    transforms = (
        InjectDefaultPrompt(None), robot, *([Normalize({"state": known})] if stats else []),
        ResizeImages(224, 224), TokenizePrompt(PaligemmaTokenizer(48)), PadStatesAndActions(32),
    )  # fmt: skip
    columns = {} if columns is None else flatten(columns)
    return Sight(transforms, IMAGE_KEYS, 14, asked=Asked.parse(options), columns=columns)


def seen(images: Mapping[str, Any], state: Any = STATE) -> Observation:
    return Observation(dict(images), "pick up the cube", np.asarray(state, np.float32), 1)


TWO = {"front": SIDE, "wrist": HAND}
HALVES = np.arange(1, 15, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    robot: Robot
    observation: Observation
    by_hand: Data
    """The observation in the robot's own keys; the prompt is added."""
    cameras: tuple[str, ...]
    """In the order of the model's inputs."""
    options: Mapping[str, str]
    columns: Any = None


def case(
    robot: Robot, images: Mapping[str, Any], by_hand: Data, cameras: str, *, state: Any = STATE,
    columns: Any = None, **options: str,
) -> Case:  # fmt: skip
    return Case(robot, seen(images, state), by_hand, tuple(cameras.split()), options, columns)


MINE: Data = {"q": STATE, "front_rgb": SIDE, "palm_rgb": HAND}
PARTS: Data = {"base_rgb": SIDE, "wrist_rgb": HAND}
HIGH = SIDE.transpose(2, 0, 1)
ARMS: Data = {"left/arm": HALVES[:6], "left/gripper": HALVES[6:7], "right/arm": HALVES[7:13],
              "right/gripper": HALVES[13:]}  # fmt: skip
CASES = {
    "own keys": case(own_keys, TWO, MINE, "front wrist"),
    "cameras in another order": case(
        own_keys, dict(reversed(TWO.items())), MINE, "front wrist"
    ),
    "joints and gripper": case(
        two_parts, TWO, {"joints": STATE[:6], "gripper": STATE[6:], **PARTS}, "front wrist"
    ),
    "the gripper asked for first": case(
        gripper_first, TWO,
        {"joint_position": STATE[:6], "gripper_position": STATE[6:], **PARTS}, "front wrist",
    ),
    "a gripper of two numbers": Case(
        two_parts, seen(TWO), {"joints": STATE[:5], "gripper": STATE[5:], **PARTS},
        ("front", "wrist"), {"state": "joints:5,gripper:2"},
    ),
    "two arms": Case(
        two_arms, seen({"top": SIDE, "left": HAND, "right": OTHER}, HALVES),
        {**ARMS, "image/top": SIDE, "image/left": HAND, "image/right": OTHER},
        ("top", "left", "right"),
        {"state": "left/arm:6,left/gripper:1,right/arm:6,right/gripper:1"},
    ),
    "nested": case(
        nested, TWO,
        {"observation": {"images": {"top": SIDE, "wrist": HAND}, "state": STATE},
         "instruction": "pick up the cube"}, "front wrist",
    ),
    "a copy of the observation": case(of_a_copy, TWO, MINE, "front wrist"),
    "an optional camera": case(if_there, TWO, MINE, "front wrist"),
    "without the optional camera": case(
        if_there, {"front": SIDE}, {"q": STATE, "front_rgb": SIDE}, "front"
    ),
    "keys that say nothing": Case(
        unspeaking, seen(TWO), {"c": STATE, "a": SIDE, "b": HAND}, ("front", "wrist"),
        {"cameras": "front:a,wrist:b", "state": "c"},
    ),
    "keys that the configuration explains": case(
        unspeaking, {"x": HAND, "y": SIDE}, {"c": STATE, "a": SIDE, "b": HAND}, "y x",
        columns={"a": "observation.images.y", "b": "observation.images.x", "c": "observation.state"},
    ),
    "the other way round": case(
        own_keys, TWO, {"q": STATE, "front_rgb": HAND, "palm_rgb": SIDE}, "wrist front",
        base="wrist", wrist="front",
    ),
    "one image is for nothing": case(
        looked_at_and_left, TWO, {**MINE, "unused_rgb": OTHER}, "front wrist"
    ),
    "three cameras by name": case(
        TwoArms(), {"cam_right_wrist": OTHER, "cam_high": SIDE, "cam_left_wrist": HAND},
        {"images": {"cam_high": HIGH, "cam_left_wrist": HAND.transpose(2, 0, 1),
                    "cam_right_wrist": OTHER.transpose(2, 0, 1)}, "state": HALVES},
        "cam_high cam_left_wrist cam_right_wrist", state=HALVES,
    ),
    "wrists told apart by side": case(
        TwoArms(), {"over": SIDE, "wrist_r_right": OTHER, "wrist_l_left": HAND},
        {"images": {"cam_high": HIGH, "cam_left_wrist": HAND.transpose(2, 0, 1),
                    "cam_right_wrist": OTHER.transpose(2, 0, 1)}, "state": HALVES},
        "over wrist_l_left wrist_r_right", state=HALVES,
    ),
    "one of three cameras": case(
        TwoArms(), {"top": SIDE}, {"images": {"cam_high": HIGH}, "state": HALVES}, "top",
        state=HALVES,
        columns={"images": {"cam_high": "observation.images.top"}, "state": "observation.state"},
    ),
    "a subclass": case(
        LabsDroid(), {"hand_camera": HAND, "varied_camera_1": SIDE},
        {"observation/exterior_image_1_left": SIDE, "observation/wrist_image_left": HAND,
         "observation/joint_position": STATE[:6], "observation/gripper_position": STATE[6:]},
        "varied_camera_1 hand_camera",
    ),
}  # fmt: skip


def same(one: Any, other: Any) -> None:
    assert set(one) == set(other)
    for key, value in one.items():
        if isinstance(value, dict):
            same(value, other[key])
        else:
            np.testing.assert_array_equal(value, other[key], err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_observations_are_what_one_would_write_by_hand(name: str) -> None:
    own = CASES[name]
    ours = sight(own.robot, own.options, own.columns)
    data: Any = {"prompt": "pick up the cube", **own.by_hand}
    for transform in ours.transforms:
        data = transform(data)
    for _ in range(2):  # the second time, nothing is asked any more
        same(ours.inputs(own.observation), data)
    slots = ours.slots(own.observation)
    assert tuple(s.camera for s in slots) == own.cameras
    valid = [i for i, key in enumerate(IMAGE_KEYS) if data["image_mask"][key]]
    assert [s.index for s in slots] == valid
    for slot in slots:
        assert slot.geometry.source == own.observation.images[slot.camera].shape[:2]


@pytest.mark.parametrize(
    ("robot", "observation", "options", "kind", "message"),
    [
        (unspeaking, seen(TWO), {}, PolicyError, r"they read c \(state\).*cameras=CAMERA:KEY.*state="),
        (two_arms, seen({"top": SIDE, "left": HAND, "right": OTHER}, HALVES), {}, UsageError,
         r"in 4 parts.* 14 components.*state=left/arm:N,right/arm:N,left/gripper:N,right/gripper:N"),
        (two_parts, seen(TWO), {"state": "joints:5,gripper:1"}, UsageError,
         "option state has 6 components, the dataset's robot state 7"),
        (own_keys, seen(TWO), {"state": "qq:7"}, UsageError,
         "never read qq; they read front_rgb, palm_rgb, q"),
        (own_keys, seen(TWO), {"cameras": "front"}, UsageError, "cameras=top:observation/image.*got 'front'"),
        (own_keys, seen(TWO), {"state": "q:x"}, UsageError, "state=observation/joints:6.*got 'q:x'"),
        (own_keys, seen(TWO), {"right_wrist": "wrist"}, UsageError,
         r"right_wrist=wrist: that shows in none.*base \(front_rgb\), wrist \(palm_rgb\)"),
        (own_keys, seen({"front": SIDE}), {}, UsageError,
         r"sees 2 cameras \(base from front_rgb, wrist from palm_rgb\); the dataset gives 1: front"),
        (TwoArms(), seen({"a": SIDE, "b": HAND, "c": SIDE, "d": SIDE}, HALVES), {}, UsageError,
         "sees 1 to 3 cameras.*gives 4: a, b, c, d"),
        (TwoArms(), seen({"top": SIDE, "my_wrist": HAND}, HALVES), {}, UsageError,
         "which of top, my_wrist is the wrist camera.*--policy-option wrist=NAME"),
        (if_there, seen({"hand": SIDE}), {}, UsageError, "which of hand is the base camera"),
        (one_twice, seen(TWO), {}, PolicyError, "each camera should fill one image input"),
        (lambda data: {"state": data["q"]}, seen(TWO), {}, PolicyError, "openpi's ResizeImages"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_said(
    robot: Robot, observation: Observation, options: Data, kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        sight(robot, options).inputs(observation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("components", [6, 8])
def test_a_state_of_another_robot(components: int) -> None:
    """Also where the dataset's state would fit the keys, and statistics would be stretched."""
    with pytest.raises(
        ObservationError, match=f"has {components} components.* norm stats are of 7"
    ):
        sight(own_keys, {}, stats=7).inputs(seen(TWO, np.zeros(components)))


def test_statistics_may_be_padded() -> None:
    """openpi's base checkpoints have them as long as the model's state; only 7 vary."""
    ours = sight(own_keys, {}, stats=32)
    stats = next(t for t in ours.transforms if hasattr(t, "norm_stats")).norm_stats["state"]
    stats.std[7:] = 0
    made = ours.inputs(seen(TWO))["state"]
    np.testing.assert_allclose(made[:7], STATE / (1 + 1e-6))
    assert not made[7:].any()


def test_it_is_asked_once() -> None:
    calls = []

    def counted(data: Data) -> Data:
        calls.append(1)
        return own_keys(data)

    ours = sight(counted, {})
    first = seen(TWO)
    ours.inputs(first)
    asked = len(calls)
    for i in range(3):
        ours.inputs(replace(first, seed=i))
    assert len(calls) == asked + 3


class TestPi0Fast:
    """A black image that is not masked, and a sequence that ends where the padded one would."""

    NAMES = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")

    def robot(self, data: Data) -> Data:
        made = output(data["q"], data["front_rgb"], None, data["palm_rgb"], prompt=data["prompt"])
        images = dict(zip(reversed(self.NAMES), reversed(made["image"].values()), strict=True))
        return {**made, "image": images, "image_mask": dict.fromkeys(self.NAMES, np.True_)}

    def prepared(self) -> tuple[Data, Any, WritingSequence]:
        """What the transforms make, the slots, and the sequence."""
        words = TokenizePrompt(PaligemmaTokenizer(90), discrete_state_input=True)
        transforms = (self.robot, ResizeImages(224, 224), words)
        own = Sight(transforms, None, 14, asked=Asked.parse({}), columns={})
        look = seen(TWO, STATE / 8)
        return own.inputs(look), own.slots(look), WritingSequence(SimpleNamespace(), transforms, 5)

    def test_the_layout(self) -> None:
        made, slots, sequence = self.prepared()
        layouts = sequence.sample(made, slots).layouts
        spans, count = layouts["prefix"].key.spans, int(made["tokenized_prompt_mask"].sum())
        moved = 90 - count
        assert moved > 0
        assert [(s.name, s.kind, s.model_start) for s in spans[:4]] == [
            ("image:front", "image", moved), ("empty:base_1_rgb", "other", 256 + moved),
            ("image:wrist", "image", 512 + moved), ("bos", "text", 768 + moved),
        ]  # fmt: skip
        assert spans[-1].model_start + len(spans[-1]) == 768 + 90
        assert len(layouts["prefix"].key) == 768 + count
        written = layouts["decode"].key.spans[-1]
        assert (written.name, written.model_start, len(written)) == ("generated", 768 + 90, 4)

    def test_a_masked_input_is_refused(self) -> None:
        made, slots, sequence = self.prepared()
        masked = {**made, "image_mask": {**made["image_mask"], "base_1_rgb": np.False_}}
        with pytest.raises(PolicyError, match="base_1_rgb is masked, and openpi's Pi0-FAST writes"):
            sequence.sample(masked, slots)
