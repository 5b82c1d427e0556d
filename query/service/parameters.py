"""Parameters of requests: the selection names of the Python API, as text."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnstore.store import rules
from attnstore.store.format import weighting as weightings
from attnstore.store.reader.blocks import Index
from attnstore.store.reader.selection import Group

from .guard.refusal import Refusal

Indices = Annotated[
    str | None,
    Field(
        max_length=2000,
        description="An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or "
        "nothing for all. Negative ones count from the end.",
    ),
]
Tokens = Annotated[
    str | None,
    Field(
        max_length=2000,
        description="A group of tokens: a kind (`text`, `image`, `action`), a role (`task`, `state`), a span "
        "(`image:hand_camera`), a word (`word:cube`), a range in one (`action:0:5`), or indices.",
    ),
]
Version = Annotated[
    str | None,
    Field(
        max_length=80,
        description="The episode's `version`. If it is the current one, the answer may be kept "
        "for ever.",
    ),
]
Number = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
"""An index; negative ones count from the end."""
Step = Annotated[
    Number | None,
    Field(
        description="Denoising step, negative ones from the end. By default the last; of decode the "
        "first, which every keyframe has."
    ),
]
Weighting = Annotated[
    weightings.Weighting,
    Field(
        description="`value`: attention times the norm of what each key would add through the head, rows "
        "made to sum to 1 again; of episodes with value norms."
    ),
]
Active = Annotated[
    rules.Active,
    Field(
        description="What makes a head the active one: the variance of its map over the patches that "
        "show image, or (`lab`) over the whole grid, letterbox included."
    ),
]
_NUMBERS = re.compile(r"-?\d{1,9}(,-?\d{1,9})*")
_RANGE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?(:(-?\d{1,9}))?")


class Parameters(BaseModel):
    """Parameters of one endpoint; unknown ones are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid")


class OfEpisode(Parameters):
    """What every question about an episode takes."""

    v: Version = None


class SliceParameters(OfEpisode):
    """Which attention weights."""

    phase: str = Field(max_length=80, examples=["prefix"], description="prefix, suffix, ...")
    keyframe: Indices = Field(None, examples=["0"])
    frame: Number | None = Field(None, description="Frame of the recording, instead of keyframe.")
    step: Indices = None
    layer: Indices = Field(None, examples=["1"])
    head: Indices = Field(None, examples=["0"])
    query: Tokens = Field(None, examples=["task"])
    key: Tokens = Field(None, examples=["image:hand_camera"])
    weighting: Weighting = "raw"
    format: Literal["npy", "json"] | None = Field(None, description="Instead of Accept.")


class MapParameters(OfEpisode):
    """Which maps of attention over a camera's patches."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    layer: Indices = Field(None, examples=["1"])
    head: str | None = Field(
        None,
        max_length=2000,
        examples=["active"],
        description="As for attention; `active` is the head whose map, as it is asked for here, "
        "varies most: at the keyframe or, without one, over the episode; `mean` is the mean of all.",
    )
    step: Step = None
    reduce: Literal["max", "mean"] = Field("max", description="Over the query tokens.")
    keyframe: Indices = Field(None, examples=["0"])
    query: Tokens = Field(None, examples=["task"])
    sink_corrected: bool = Field(False, description="Take attention sinks out.")
    active: Active = "image"
    weighting: Weighting = "raw"
    format: Literal["npy", "json"] | None = Field(None, description="Instead of Accept.")


class RolloutParameters(OfEpisode):
    """Of which keyframe and layer the rollout is asked."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    keyframe: Number = Field(examples=[0])
    layer: Number = Field(examples=[1], description="Up to this layer, from the first.")
    step: Number = Field(-1, description="Denoising step, negative ones from the end.")
    query: Tokens = Field(None, examples=["task"], description="Averaged over these tokens.")
    format: Literal["npy", "json"] | None = Field(None, description="Instead of Accept.")


class ActiveHeadParameters(OfEpisode):
    """Of which map of a layer the active head is asked."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    layer: Number = Field(examples=[1])
    step: Step = None
    reduce: Literal["max", "mean"] = Field("max", description="Over the query tokens.")
    keyframe: Number | None = Field(None, description="One keyframe; else over the episode.")
    query: Tokens = Field(None, examples=["text"])
    sink_corrected: bool = Field(False, description="Take attention sinks out.")
    active: Active = "image"
    weighting: Weighting = "raw"


class MatrixParameters(OfEpisode):
    """A metric of every head."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    query: str | None = Field(None, max_length=200, description="A stored query group.")
    step: Step = None
    keyframe: Number | None = Field(None, description="One keyframe; else over the episode.")
    reduce: Literal["mean", "max"] = Field("mean", description="Over the keyframes.")
    weighting: Weighting = "raw"


class TraceParameters(OfEpisode):
    """A metric along an episode."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    query: str | None = Field(None, max_length=200, description="A stored query group.")
    step: Step = None
    layer: Number = Field(examples=[1])
    head: Number | Literal["active", "all"] = Field("active", description="`all`: a trace each.")
    weighting: Weighting = "raw"


class EpisodesParameters(Parameters):
    """Which episodes to list."""

    run: str | None = Field(None, max_length=128)
    outcome: Literal["success", "failure", "unknown"] | None = None
    task: str | None = Field(None, max_length=400)
    date: str | None = Field(None, max_length=80)
    name: str | None = Field(None, max_length=400, description="Part of the name.")
    instruction: str | None = Field(None, max_length=400, description="Part of the instruction.")
    text: str | None = Field(
        None, max_length=400, description="Part of the name, instruction, task or run."
    )
    where: str | None = Field(
        None,
        max_length=4000,
        examples=["keyframes >= 3 and outcome = 'success'"],
        description="SQL condition on table `episodes`.",
    )
    order: Literal["name", "date", "outcome", "task", "keyframes", "committed"] = "name"
    descending: bool = False
    limit: int = Field(100, ge=1, le=10_000)
    offset: int = Field(0, ge=0, lt=1 << 31)


def parse_index(text: str | None, what: str) -> Index:
    """Read ``3``, ``0,2``, ``0:8`` or nothing.

    Raises
    ------
    Refusal
        If it is none of these.

    Examples
    --------
    >>> parse_index("3", "layer"), parse_index("0,2", "layer"), parse_index("1:", "layer")
    (3, [0, 2], slice(1, None, None))
    """
    if text is None or text in ("", "all"):
        return None
    if _NUMBERS.fullmatch(text):
        numbers = [int(n) for n in text.split(",")]
        return numbers if "," in text else numbers[0]
    if found := _RANGE.fullmatch(text):
        start, stop, step = (None if g is None else int(g) for g in found.group(1, 2, 4))
        if step == 0:
            raise Refusal(400, f"{what}: a range's step is not 0; got {text!r}")
        return slice(start, stop, step)
    raise Refusal(400, f"{what} is an index, indices such as 0,3 or a range 0:8; got {text!r}")


def parse_group(text: str | None, what: str) -> Group | None:
    """Read a group of tokens: a name, or indices.

    Examples
    --------
    >>> parse_group("word:cube", "query"), parse_group("5", "query"), parse_group("1,2", "key")
    ('word:cube', 5, [1, 2])
    """
    if text is None or text == "":
        return None
    if _NUMBERS.fullmatch(text) or _RANGE.fullmatch(text):
        return parse_index(text, what)
    return text
