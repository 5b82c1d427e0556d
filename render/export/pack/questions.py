"""Everything that the viewer may ask of an episode whose maps tier is here.

The questions are the viewer's own, ``viewer/questions.json``: their paths, and by parameter which
values a pack has answers for. Here is what the names of those values mean for an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from attnstore.store.format.episode import PhaseSpec
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step
from attnstore.store.tables.base import METRICS

from ...serving import PAGE

_DECLARED = json.loads((PAGE / "questions.json").read_text(encoding="utf-8"))
LISTED: int = _DECLARED["limits"]["listed"]
"""Episodes that the viewer lists."""
TOGETHER: int = _DECLARED["limits"]["together"]
"""Bytes up to which the viewer asks for the maps of all heads of a layer at once."""
TOKENS: int = _DECLARED["limits"]["tokens"]
"""Tokens that it asks for at once."""
Parameter = str | int | None


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the viewer; equal questions have equal keys."""

    name: str
    parameters: Mapping[str, str | int]

    @property
    def form(self) -> str:
        """``json``, ``array`` or ``blob``."""
        return str(_DECLARED["questions"][self.name].get("form", "json"))

    @property
    def key(self) -> str:
        """Canonical name, as ``keyOf`` of ``viewer/kept.js`` spells it."""
        named = sorted((name, str(value)) for name, value in self.parameters.items())
        return json.dumps([self.name, *named], ensure_ascii=False, separators=(",", ":"))

    @property
    def address(self) -> tuple[str, str]:
        """Path of the service, and the query string."""
        template: str = _DECLARED["questions"][self.name]["path"]
        rest, path = dict(self.parameters), template
        for name in self.parameters:
            if f"{{{name}}}" in template:
                path = path.replace(f"{{{name}}}", quote(str(rest.pop(name)), safe=""))
        return path, urlencode(rest)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of an episode a pack has; None: all."""

    phases: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    all_steps: bool = False
    """Every step of denoising, and not only the one that stands for the phase."""


def of_store(store: str) -> Iterator[Question]:
    """Yield what is asked of a store as a whole."""
    return _of({"store": store}, _Values(None, Chosen()))


def of_episode(store: str, episode: Episode, chosen: Chosen) -> Iterator[Question]:
    """Yield what is asked of one episode."""
    place = {"store": store, "run": episode.run, "episode": episode.id}
    return _of(place, _Values(episode, chosen))


def list_of(store: str) -> Question:
    """Return the question whose answer is the list of all episodes."""
    return next(question for question in of_store(store) if question.name == "episodes")


def _of(place: Mapping[str, str], values: _Values) -> Iterator[Question]:
    asked = set()
    for name, declared in _DECLARED["questions"].items():
        path = declared["path"]
        about_episode = "{episode}" in path
        if "pack" not in declared or about_episode != (values.episode is not None):
            continue
        own = {key: value for key, value in place.items() if f"{{{key}}}" in path}
        for parameters in values.combinations(declared["pack"]):
            question = Question(name, {**own, **parameters})
            if question.key not in asked:
                asked.add(question.key)
                yield question


@dataclass(frozen=True, slots=True)
class _Values:
    """What parameters of questions may be, given those before them."""

    episode: Episode | None
    chosen: Chosen
    spec: PhaseSpec | None = None
    camera: str | None = None

    def combinations(self, pack: Mapping[str, Any]) -> Iterator[dict[str, str | int]]:
        """Yield every choice of a value for each parameter; None leaves the parameter out."""
        if not pack:
            yield {}
            return
        (name, which), *rest = pack.items()
        for value, given in self._of(which):
            for others in given.combinations(dict(rest)):
                yield others if value is None else {name: value, **others}

    def _of(self, which: Any) -> Iterable[tuple[Parameter, _Values]]:
        if isinstance(which, list):
            return ((value, self) for value in which)
        if which == "listed":
            return [(LISTED, self)]
        if which == "metrics":
            return ((name, self) for name in METRICS)
        assert self.episode is not None
        if which.startswith("phases"):
            return self._phases(self.episode, which)
        if which in ("policy arrays", "denoising"):
            kept = self.episode.policy_shapes()
            one = which == "denoising"
            return ((name, self) for name in kept if (name == "denoising") == one)
        if which == "cameras":
            found = self.spec.cameras if self.spec else self.episode.spec.geometry
            return ((camera, replace(self, camera=camera)) for camera in found)
        return ((value, self) for value in self._numbers(self.episode, which))

    def _phases(self, episode: Episode, which: str) -> Iterator[tuple[str, _Values]]:
        for path, spec in phases_of(episode, self.chosen).items():
            given = replace(self, spec=spec)
            if which == "phases":
                yield path, given
            elif (
                which == "phases by name"
                or (which == "phases with text" and _texts(spec))
                or (which == "phases that write" and spec.phase == "decode")
            ):
                yield spec.phase, given

    def _numbers(self, episode: Episode, which: str) -> Iterable[Parameter]:
        keyframes, spec = range(len(episode.frames)), self.spec
        if which == "keyframes":
            return keyframes
        if which == "keyframes or none":
            return [None, *keyframes]
        assert spec is not None
        if which == "keyframes if many tokens":
            return keyframes if len(keyframes) * _texts(spec) > TOKENS else [None]
        if which == "groups":
            return spec.query_groups
        if which == "layers":
            return layers_of(spec, self.chosen)
        if which == "steps":
            return steps_of(spec, self.chosen)
        assert which == "heads", which
        assert self.camera is not None
        rows, cols = episode.spec.geometry[self.camera].grid
        together = 4 * len(keyframes) * spec.heads * rows * cols <= TOGETHER
        return [None] if together else ["mean", *range(spec.heads)]


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


def steps_of(spec: PhaseSpec, chosen: Chosen) -> Sequence[int | None]:
    """Steps of a phase whose maps are there; None in a one-pass phase."""
    if spec.steps is None:
        return [None]
    return range(spec.steps) if chosen.all_steps else [standing_step(spec.phase, spec.steps)]


def _texts(spec: PhaseSpec) -> int:
    return sum(len(span) for span in spec.query if span.kind == "text")
