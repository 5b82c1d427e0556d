"""Octo's inputs from observations: images in their slots, the window, the task, random keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.tokens import PADDING, TASK, Token
from attnstore.store.format.views import earlier, goal

from ..base import Observation, ObservationError, PolicyError
from ..prompt import token_text
from .layout import Word

IMAGE = "image_"
LEFT_OUT, MASKED = "none", "masked"
SIDES = ("varied_camera_1", "varied_camera_2")
Arrays = dict[str, Any]


def camera_slots(
    example: Mapping[str, Any], options: Mapping[str, str], others: Sequence[str]
) -> dict[str, str | None]:
    """Return the camera of each of the model's slots; None stands for DROID's usual one.

    Raises
    ------
    UsageError
        If an option names no slot, or no slot has a camera.
    """
    slots = [key.removeprefix(IMAGE) for key in sorted(example) if key.startswith(IMAGE)]
    known = [*slots, *others]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"octo has the options {', '.join(known)}; got {unknown[0]!r}")
    usual = {"primary", "wrist"}
    for slot in slots:
        if slot not in usual and slot not in options:
            raise UsageError(
                f"which camera is the model's {slot!r}? Say --policy-option {slot}=CAMERA, or "
                f"{slot}=none; its slots are {', '.join(slots)}"
            )
    chosen = {slot: options.get(slot) for slot in slots}
    if all(camera in (LEFT_OUT, MASKED) for camera in chosen.values()):
        raise UsageError(f"no camera is given to octo; its slots are {', '.join(slots)}")
    return chosen


@dataclass(slots=True)
class OctoInputs:
    """How observations become arrays; cameras are settled by the first observation."""

    model: Any
    slots: Mapping[str, str | None]
    window: int
    goal: bool
    language: bool
    statistics: Mapping[str, Any] | None
    """Mean and standard deviation of the state, if the model takes one."""
    cameras: dict[str, str]
    """Camera per slot that has one."""

    @classmethod
    def of(
        cls,
        model: Any,
        slots: Mapping[str, str | None],
        *,
        window: str | None,
        statistics: str | None,
        goal: bool,
        language: bool,
    ) -> OctoInputs:
        """Check the options against the model.

        Raises
        ------
        UsageError
            If the window is longer than the model's, or the statistics are not in the checkpoint.
        PolicyError
            If the model has no text processor, or takes a state and has no statistics for it.
        """
        example = model.example_batch["observation"]
        length = int(example["timestep_pad_mask"].shape[1])
        if window is not None:
            longest = int(model.module.octo_transformer.max_horizon)
            if not window.isdecimal() or not 1 <= int(window) <= longest:
                raise UsageError(f"window is 1 to {longest} observations; got {window!r}")
            length = int(window)
        if language and model.text_processor is None:
            raise PolicyError("the checkpoint has no text processor: say --policy-option task=goal")
        if goal and not any(key.startswith(IMAGE) for key in model.example_batch["task"]):
            raise PolicyError("the checkpoint takes no goal images: leave the option task out")
        found = None
        if "proprio" in example:
            found = _statistics(model.dataset_statistics, statistics)
            if length > 1:
                raise PolicyError(
                    "the checkpoint takes the state of every observation in its window, and only "
                    "the keyframe's is known: say --policy-option window=1"
                )
        elif statistics is not None:
            raise UsageError("the checkpoint takes no state, so the option statistics has no use")
        given = {s: c for s, c in slots.items() if c not in (None, LEFT_OUT, MASKED)}
        return cls(
            model, slots, length, goal, language, found, {s: str(c) for s, c in given.items()}
        )

    @property
    def present(self) -> list[str]:
        """Slots that get a camera's image."""
        return [s for s, camera in self.slots.items() if camera not in (LEFT_OUT, MASKED)]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of the model's image in each slot."""
        example = self.model.example_batch["observation"]
        return {s: (int(h), int(w)) for s in self.slots for h, w in [example[IMAGE + s].shape[2:4]]}

    def example(self) -> tuple[Arrays, Arrays]:
        """Return inputs of one sample without content, for shapes."""
        seen, tasks = self._arrays(1)
        texts = [""] if self.model.text_processor is not None else []
        return seen, self._task(tasks, texts, {})

    def batch(self, observations: Sequence[Observation]) -> tuple[Arrays, Arrays]:
        """Return the model's observations and tasks.

        Raises
        ------
        ObservationError
            If a camera is missing, or the state does not fit.
        """
        self._settle(observations[0])
        seen, tasks = self._arrays(len(observations))
        goals: dict[str, NDArray[Any]] = {}
        for row, observation in enumerate(observations):
            for at in range(self.window):
                back = self.window - 1 - at
                # Before the first frame the first one is repeated, and masked: Octo's own rule.
                first = self.cameras[self.present[0]]
                there = not back or earlier(first, back) in observation.images
                seen["timestep_pad_mask"][row, at] = there
                for slot in self.present:
                    view = earlier(self.cameras[slot], back if there else 0)
                    if not there:
                        view = self._oldest(observation, slot)
                    seen[IMAGE + slot][row, at] = self._image(observation, view, slot)
                if self.statistics is not None:
                    seen["proprio"][row, at] = self._state(observation)
            if self.goal:
                for slot in self.present:
                    image = self._image(observation, goal(self.cameras[slot]), slot)
                    blank = np.zeros((len(observations), *image.shape), np.uint8)
                    goals.setdefault(IMAGE + slot, blank)[row] = image
        return seen, self._task(tasks, [o.instruction for o in observations], goals)

    def _settle(self, observation: Observation) -> None:
        for slot, camera in self.slots.items():
            if camera is None and slot not in self.cameras:
                usual = ("hand_camera",) if slot == "wrist" else SIDES
                found = [c for c in usual if c in observation.images]
                if not found:
                    raise ObservationError(
                        f"which camera is octo's {slot!r}? Say --policy-option {slot}=CAMERA; the "
                        f"dataset has {', '.join(observation.images)}"
                    )
                self.cameras[slot] = found[0]

    def _arrays(self, count: int) -> tuple[Arrays, Arrays]:
        lead = (count, self.window)
        seen: Arrays = {"timestep_pad_mask": np.ones(lead, bool), "pad_mask_dict": {}}
        for slot, camera in self.slots.items():
            if camera != LEFT_OUT:
                seen[IMAGE + slot] = np.zeros((*lead, *self.sizes[slot], 3), np.uint8)
                given = np.full(lead, camera != MASKED)
                seen["pad_mask_dict"][IMAGE + slot] = given
        if self.statistics is not None:
            dof = self.model.example_batch["observation"]["proprio"].shape[-1]
            seen["proprio"] = np.zeros((*lead, dof), np.float32)
        return seen, {"pad_mask_dict": {}}

    def _task(self, tasks: Arrays, texts: list[str], goals: Mapping[str, NDArray[Any]]) -> Arrays:
        count = max(len(texts), 1)
        for key, value in self.model.example_batch["task"].items():
            if key.startswith(IMAGE):
                blank = np.zeros((count, *value.shape[1:]), value.dtype)
                tasks[key] = goals.get(key, blank)
                tasks["pad_mask_dict"][key] = np.full(count, key in goals)
        if self.model.text_processor is not None:
            said = texts if self.language else [""] * count
            tasks["language_instruction"] = self.model.text_processor.encode(said)
            tasks["pad_mask_dict"]["language_instruction"] = np.full(count, self.language)
        return tasks

    def _oldest(self, observation: Observation, slot: str) -> str:
        views = [earlier(self.cameras[slot], back) for back in range(self.window)]
        there = [view for view in views if view in observation.images]
        return there[-1] if there else self.cameras[slot]

    def _image(self, observation: Observation, view: str, slot: str) -> NDArray[np.uint8]:
        image = observation.images.get(view)
        if image is None:
            raise ObservationError(
                f"no image of {view}, octo's {slot!r}; there are {', '.join(observation.images)}"
            )
        return resize(image, self.sizes[slot])

    def _state(self, observation: Observation) -> NDArray[np.float32]:
        assert self.statistics is not None
        mean, deviation = (np.asarray(self.statistics[k], np.float32) for k in ("mean", "std"))
        if observation.state.shape != mean.shape:
            raise ObservationError(
                f"the robot state has {observation.state.size} components, octo's proprio {mean.size}"
            )
        return np.asarray((observation.state - mean) / (deviation + 1e-8), np.float32)


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch an image as Octo's data pipeline does: Lanczos of 3 lobes, anti-aliased, rounded."""
    import jax

    if image.shape[:2] == size:
        return image
    shape = (*size, image.shape[2])
    values = jax.image.resize(image.astype(np.float32), shape, "lanczos3", antialias=True)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def random_keys(seeds: Sequence[int]) -> NDArray[np.uint32]:
    """Return a random key for each seed, (batch, 2): the one that jax makes of 64 bits."""
    return np.array([[seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF] for seed in seeds], np.uint32)


def task_words(
    processor: Any, tasks: Mapping[str, Any], row: int, instruction: str
) -> tuple[Word, ...]:
    """List the instruction's tokens with their strings; empty if they cannot be told."""
    encoded = tasks.get("language_instruction")
    if encoded is None:
        return ()
    if not hasattr(encoded, "keys"):
        # One embedding of the whole instruction.
        single = np.ndim(encoded) == 2
        return (Word(Token(-1, instruction), TASK),) if single else ()
    tokenizer = processor.tokenizer
    ids = np.asarray(encoded["input_ids"])[row].tolist()
    valid = np.asarray(encoded["attention_mask"])[row].astype(bool).tolist()
    words = []
    for number, there in zip(ids, valid, strict=True):
        part = TASK if there else PADDING
        if there and number == tokenizer.eos_token_id:
            part = "eos"
        words.append(Word(Token(int(number), token_text(tokenizer, int(number))), part))
    return tuple(words)


def _statistics(known: Any, name: str | None) -> Mapping[str, Any]:
    own: Mapping[str, Any] = known or {}
    if name is not None:
        if name not in own:
            raise UsageError(
                f"the checkpoint has statistics of {', '.join(sorted(own)) or 'nothing'}; got {name!r}"
            )
        own = own[name]
    if "proprio" not in own:
        raise PolicyError(
            "the checkpoint takes a state: say --policy-option statistics=DATASET, one of "
            + (", ".join(sorted(own)) or "none")
        )
    return dict(own["proprio"])
