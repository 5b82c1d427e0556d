"""Everything that the viewer may ask of an episode whose maps tier is here.

The viewer's own list is ``viewer/questions.js``; a question that is missing here is answered by "not
in this pack", which a test that goes through the page would see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, quote_plus

from attnstore.store.format.episode import PhaseSpec
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step
from attnstore.store.tables.base import METRICS

TOGETHER, AVERAGED = 24 << 20, 56 << 20
"""Bytes up to which the viewer asks for all heads of a layer at once; and where it takes their mean."""
ROWS = 4000
"""Tokens that it asks for at once."""
PAGE = 200
"""Episodes that it lists."""

Form = Literal["json", "array", "blob"]


@dataclass(frozen=True, slots=True)
class Question:
    """A path of the service and its parameters."""

    path: str
    parameters: Mapping[str, str | int]
    form: Form = "json"
    group: str | None = None
    """Query group that is meant where none is named; to name it is the same question."""

    @property
    def query(self) -> str:
        """Its parameters as a URL has them."""
        return _query(self.parameters)

    @property
    def keys(self) -> list[str]:
        """Its names, as ``keyOf`` of ``viewer/kept.js`` spells them."""
        every = [self.parameters]
        if self.group is not None:
            every.append({**self.parameters, "query": self.group})
        return [f"{self.path}?{_query(each)}" if each else self.path for each in every]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of an episode a pack has; None: all."""

    phases: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    all_steps: bool = False
    """Every step of denoising, and not only the last."""


def of_store(store: str) -> Iterator[Question]:
    """Yield what is asked of a store as a whole."""
    yield Question("/v1/stores", {})
    yield Question("/v1/metrics", {})
    yield Question(f"{_store(store)}/queries", {})
    yield Question(f"{_store(store)}/episodes", {"limit": PAGE, "order": "name"})


def of_episode(store: str, episode: Episode, chosen: Chosen) -> Iterator[Question]:
    """Yield what is asked of one episode."""
    base = f"{_store(store)}/episodes/{_part(episode.run)}/{_part(episode.id)}"
    keyframes = range(len(episode.frames))
    yield Question(base, {})
    for camera in episode.spec.geometry:
        for keyframe in keyframes:
            yield Question(f"{base}/frames/{keyframe}/{_part(camera)}", {}, "blob")
    for path, spec in phases_of(episode, chosen).items():
        top = path.partition("/")[0]
        yield Question(f"{base}/sinks", {"phase": top})
        texts = [span for span in spec.query if span.kind == "text"]
        count = len(keyframes) * sum(len(span) for span in texts)
        which = [{"limit": ROWS}] if count <= ROWS else [{"keyframe": k} for k in keyframes]
        for each in which if count else ():
            yield Question(f"{base}/tokens", {"phase": top, "axis": "query", **each})
        for camera in spec.cameras:
            yield from _of_camera(base, episode, path, camera, chosen)


def phases_of(episode: Episode, chosen: Chosen) -> dict[str, PhaseSpec]:
    """Phases that have maps, by path."""
    return {
        path: spec
        for path, spec in episode.spec.phases.items()
        if spec.query_groups and (chosen.phases is None or spec.phase in chosen.phases)
    }


def layers_of(spec: PhaseSpec, chosen: Chosen) -> Sequence[int]:
    """Layers of a phase whose maps are there."""
    if chosen.layers is None:
        return range(spec.layers)
    return [layer for layer in chosen.layers if layer < spec.layers]


def steps_of(spec: PhaseSpec, chosen: Chosen) -> list[dict[str, int]]:
    """Steps as the viewer names them: -1 is the last of a suffix; none in a one-pass phase."""
    if spec.steps is None:
        return [{}]
    standing = standing_step(spec.phase, spec.steps)
    others = [s for s in range(spec.steps) if s != standing] if chosen.all_steps else []
    return [{"step": -1 if standing else 0}, *({"step": s} for s in others)]


def _of_camera(
    base: str, episode: Episode, path: str, camera: str, chosen: Chosen
) -> Iterator[Question]:
    spec, keyframes = episode.spec.phases[path], range(len(episode.frames))
    first, *others = spec.query_groups
    groups: list[tuple[dict[str, str], str | None]] = [({}, first)]
    groups += [({"query": group}, None) for group in others]
    layers = layers_of(spec, chosen)
    rows, cols = episode.spec.geometry[camera].grid
    size = 4 * len(keyframes) * spec.heads * rows * cols
    heads: list[dict[str, int]] = [{}] if size <= AVERAGED else []
    if size > TOGETHER:
        heads += [{"head": head} for head in range(spec.heads)]
    for step in steps_of(spec, chosen):
        at: dict[str, Any] = {"phase": path, "camera": camera, **step}
        for group, meant in groups:
            given = {**at, **group}
            for layer in layers:
                for head in heads:
                    for reduce in ("max", "mean"):
                        asked = {**given, **head, "layer": layer, "reduce": reduce}
                        yield Question(f"{base}/maps", asked, "array", meant)
                for reduce in ("max", "mean"):
                    asked = {**given, "layer": layer, "reduce": reduce}
                    yield Question(f"{base}/active-head", asked, group=meant)
            for metric in METRICS:
                measured = f"{base}/metrics/{_part(metric)}"
                yield Question(f"{measured}/matrix", given, group=meant)
                for keyframe in keyframes:
                    yield Question(
                        f"{measured}/matrix", {**given, "keyframe": keyframe}, group=meant
                    )
                for layer in layers:
                    asked = {**given, "layer": layer, "head": "all"}
                    yield Question(f"{measured}/trace", asked, group=meant)


def _store(store: str) -> str:
    return f"/v1/stores/{_part(store)}"


def _part(name: str) -> str:
    """As JavaScript's ``encodeURIComponent``."""
    return quote(name, safe="!'()*-._~")


def _query(parameters: Mapping[str, str | int]) -> str:
    pairs = sorted((name, str(value)) for name, value in parameters.items())
    return "&".join(f"{_form(name)}={_form(value)}" for name, value in pairs)


def _form(text: str) -> str:
    """As JavaScript's ``URLSearchParams``."""
    return quote_plus(text, safe="*").replace("~", "%7E")
