"""Reading Octo's token groups off a trace of the model: names, counts, masks, image stems.

An interceptor lets the tokenizers run and stops at the block transformer. Classes are known by name,
because Octo is installed from its repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..convolution import SEQUENTIAL, Convolution
from .layout import Group

TRANSFORMER = "BlockTransformer"
IMAGES = "ImageTokenizer"
_OWNER = re.compile(r"(observation|task)_tokenizers_(.+)")


@dataclass(frozen=True, slots=True)
class Stem:
    """The image encoder of one group of tokens."""

    encoder: str
    """Class name."""
    grid: tuple[int, int]
    convolutions: tuple[Convolution, ...]
    """In order; empty if one is padded in a way whose geometry is not known."""


@dataclass(slots=True)
class Survey:
    """What a trace of the model's tokenizers showed."""

    groups: list[Group] = field(default_factory=list)
    stems: dict[str, Stem] = field(default_factory=dict)
    """Per slot."""


class Tokenizers:
    """An interceptor that reads the tokenizers' results and leaves the transformer out."""

    def __init__(self, survey: Survey, observations: Sequence[str]) -> None:
        self.masks: list[Any] = []
        self._survey, self._observed = survey, observations
        self._made: dict[str, tuple[str, str | None]] = {}
        self._encoder: list[Convolution | None] | None = None

    def __call__(self, following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Take one call of a module's method; `following` goes on with it."""
        import flax.linen as nn

        module, kind = context.module, type(context.module).__name__
        if context.method_name != "__call__":
            return following(*args, **kwargs)
        if kind == TRANSFORMER:
            return self._finish(_arguments(args, kwargs))
        if isinstance(module, nn.Conv) and self._encoder is not None:
            self._encoder.append(_convolution(module))
        owner = _OWNER.fullmatch(module.path[-1]) if module.path else None
        if owner is not None:
            prefix = "obs" if owner[1] == "observation" else "task"
            slot = self._slot(module) if kind == IMAGES and prefix == "obs" else None
            self._made[f"{prefix}_{owner[2]}"] = (kind, slot)
            return following(*args, **kwargs)
        parent = _OWNER.fullmatch(module.path[-2]) if len(module.path) > 1 else None
        if parent is not None and parent[1] == "observation":
            return self._stem(f"obs_{parent[2]}", kind, following, args, kwargs)
        return following(*args, **kwargs)

    def _slot(self, tokenizer: Any) -> str | None:
        keys = [
            key for key in self._observed
            if any(re.match(pattern, key) for pattern in tokenizer.obs_stack_keys)
        ]  # fmt: skip
        single = len(keys) == 1 and not getattr(tokenizer, "use_token_learner", False)
        return keys[0].removeprefix("image_") if single else None

    def _stem(self, group: str, kind: str, following: Any, args: Any, kwargs: Any) -> Any:
        slot = self._made[group][1]
        if slot is None:
            return following(*args, **kwargs)
        self._encoder = []
        output = following(*args, **kwargs)
        grid = (int(output.shape[1]), int(output.shape[2]))
        known = tuple(conv for conv in self._encoder if conv is not None)
        complete = len(known) == len(self._encoder)
        self._survey.stems[slot] = Stem(kind, grid, known if complete else ())
        self._encoder = None
        return output

    def _finish(self, groups: tuple[Any, Any]) -> tuple[Any, Any]:
        for found, timed in zip(groups, (False, True), strict=True):
            for group in found:
                kind, slot = self._kind(group.name)
                stem = self._survey.stems.get(slot) if slot is not None else None
                grid = stem.grid if stem is not None else None
                self._survey.groups.append(
                    Group(
                        group.name,
                        int(group.tokens.shape[-2]),
                        int(group.tokens.shape[1]) if timed else None,
                        kind,
                        slot if grid is not None else None,
                        grid,
                    )
                )
                self.masks.append(group.mask)
        return groups

    def _kind(self, name: str) -> tuple[str, str | None]:
        if name.startswith("readout_"):
            return "readout", None
        if name in self._made:
            return self._made[name]
        # the repeated task tokens: obs_task_language of task_language
        return self._made.get(name.removeprefix("obs_"), ("unknown", None))


def understood(stem: Stem) -> bool:
    """Whether a stem's convolutions follow one another, so that its geometry is known."""
    return stem.encoder in SEQUENTIAL and bool(stem.convolutions)


def _arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    given = dict(zip(("prefix_groups", "timestep_groups"), args, strict=False)) | dict(kwargs)
    return given["prefix_groups"], given["timestep_groups"]


def _convolution(module: Any) -> Convolution | None:
    kernel, stride = _pair(module.kernel_size), _pair(module.strides or 1)
    padding = module.padding
    if isinstance(padding, str):
        return Convolution(kernel, stride, (0, 0)) if padding == "VALID" else None
    top, left = (side if isinstance(side, int) else int(side[0]) for side in _pair(padding))
    return Convolution(kernel, stride, (top, left))


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)
