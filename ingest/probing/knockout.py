"""Knock-out: what the policy does when some tokens must not attend to some others.

Blocked before the softmax, so that the attention goes elsewhere, in every head and step of the
chosen layers. With background patches blocked for every query in every layer, it is as if
irrelevant patches had never been embedded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, SelectionError, UsageError
from attnstore.store.format.episode import EpisodeSpec
from attnstore.store.format.naming import find_tokens, lacks_word, not_found
from attnstore.store.format.pixels import UNSEEN, patch_of_pixels
from attnstore.store.format.tokens import AlignedAxis, Axis

from ..policies.blocking import Blocked
from .choices import chosen_layers
from .keyframe import StoredKeyframe
from .variant import Probe, Variant

ALL = "all"
OBJECT, BACKGROUND, LETTERBOX = "object", "background", "letterbox"
At = Literal["together", "each"]


@dataclass(frozen=True, slots=True)
class Knockout(Probe):
    """Options of `attnstore probe knockout`."""

    kind: ClassVar[str] = "knockout"
    shifts: ClassVar[bool] = True

    keys: tuple[str, ...]
    """A variant each: tokens by name as in `attnstore.store.format.naming` (``image``,
    ``image:hand_camera``, ``task``, ``word:cube``), ``all``, ``object:NAME``, ``background`` (patches
    that show image and no object) or ``letterbox``; the last three also of one camera:
    ``background@hand_camera``."""
    query: str = ALL
    """Name of the tokens that must not attend to them; ``all``."""
    phases: tuple[str, ...] = ()
    """Empty: every phase that has both."""
    layers: tuple[int, ...] | None = None
    """None: all."""
    at: At = "together"
    """All layers at once, or a variant each."""

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("a knock-out needs the tokens that are not to be seen: --key")
        if self.at not in ("together", "each"):
            raise UsageError(f"layers are blocked together or each; got {self.at!r}")

    @property
    def needs_objects(self) -> bool:
        """Whether a key is an object, or what is none."""
        return any(re.match(f"({OBJECT}|{BACKGROUND})([:@]|$)", key) for key in self.keys)

    def check(self, spec: EpisodeSpec) -> None:
        """Check phases, layers and tokens.

        Raises
        ------
        SelectionError
            If the episode has no such phase, layer, camera or kind of tokens.
        EpisodeError
            If its prompt has not the word.
        """
        for phase in self._phases(spec):
            chosen_layers(spec, phase, self.layers)
        for key in self.keys:
            if key.partition("@")[0].partition(":")[0] not in (OBJECT, BACKGROUND, LETTERBOX):
                self._with_both(spec, key)
            elif (camera := key.partition("@")[2]) and camera not in spec.geometry:
                raise SelectionError(
                    f"{spec.name} has no camera {camera!r}; it has: {', '.join(spec.geometry)}"
                )

    def forwards(self, spec: EpisodeSpec) -> int:
        """Count the variants of a keyframe; without its objects at most."""
        if self.at == "together":
            return len(self.keys)
        layers = {n for p in self._phases(spec) for n in chosen_layers(spec, p, self.layers)}
        return len(self.keys) * len(layers)

    def variants(self, keyframe: StoredKeyframe) -> Iterator[Variant]:
        """Yield a variant for each of the keys, and layer; keys that are absent here are left out."""
        spec = keyframe.spec
        for key in self.keys:
            blocked: list[Blocked] = []
            for phase in self._phases(spec):
                layout = keyframe.layouts[phase]
                query = _tokens(layout.query, self.query)
                keys = _keys(layout.key, key, keyframe)
                if not len(query) or not len(keys):
                    continue
                at = (tuple(query.tolist()), tuple(keys.tolist()))
                layers = chosen_layers(spec, phase, self.layers)
                blocked += [Blocked(phase, layer, *at) for layer in layers]
            if not blocked:
                continue
            detail = f"{self.query} > {key}"
            columns = {"target": "attention from > to", "detail": detail}
            columns |= {"query_group": self.query, "heads": "all"}
            phases = {b.phase for b in blocked}
            if len(phases) == 1:
                columns["phase"] = blocked[0].phase
            if self.at == "together":
                yield Variant(
                    f"knockout/{detail}", keyframe.observation, columns, blocked=tuple(blocked)
                )
                continue
            for layer in sorted({b.layer for b in blocked}):
                here = tuple(b for b in blocked if b.layer == layer)
                yield Variant(
                    f"knockout/{detail}/L{layer:02d}", keyframe.observation,
                    {**columns, "layer": layer}, blocked=here,
                )  # fmt: skip

    def _phases(self, spec: EpisodeSpec) -> list[str]:
        if wrong := [p for p in self.phases if p not in spec.phases]:
            raise SelectionError(
                f"{spec.name} has no phase {wrong[0]!r}; it has: {', '.join(spec.phases)}"
            )
        return [p for p in self.phases or spec.phases if spec.phases[p].camera is None]

    def _with_both(self, spec: EpisodeSpec, key: str) -> None:
        phases = [spec.phases[p] for p in self._phases(spec)]
        for what, name in (("query", self.query), ("key", key)):
            axes: list[AlignedAxis] = [getattr(p, what) for p in phases]
            if name == ALL or any(len(find_tokens(axis, name)) for axis in axes):
                continue
            where = f"{', '.join(self._phases(spec))} {what}"
            spans = list({s.name: s for axis in axes for s in axis}.values())
            error = not_found(spans, name, where)
            if any(lacks_word(axis, name) for axis in axes):
                # Other episodes may have another prompt.
                raise EpisodeError(spec.name, str(error))
            raise SelectionError(f"{spec.name}: {error}")


def _tokens(axis: Axis, name: str) -> NDArray[np.intp]:
    """Indices of the named tokens in the model's own sequence."""
    parts = [np.arange(s.model_start, s.model_start + len(s), dtype=np.intp) for s in axis]
    places = np.concatenate(parts)
    return places if name == ALL else places[find_tokens(axis, name)]


def _keys(axis: Axis, key: str, keyframe: StoredKeyframe) -> NDArray[np.intp]:
    what, _, only = key.partition("@")
    what, _, name = what.partition(":")
    if what not in (OBJECT, BACKGROUND, LETTERBOX):
        return _tokens(axis, key)
    found = []
    for span in axis:
        if span.camera is None or span.camera not in keyframe.cameras:
            continue
        if only and span.camera != only:
            continue
        patches = patches_of(keyframe, span.camera, what, name)
        found.append(span.model_start + patches)
    return np.concatenate(found).astype(np.intp) if found else np.empty(0, np.intp)


def patches_of(
    keyframe: StoredKeyframe, camera: str, what: str, name: str = ""
) -> NDArray[np.intp]:
    """Find the patches of a camera that show an object, no object, or no image.

    A patch shows an object if one of its pixels does; where no object is known, no patch is
    background.

    Returns
    -------
    Row-major indices in the grid.
    """
    geometry = keyframe.geometry(camera)
    if what == LETTERBOX:
        return np.flatnonzero(geometry.coverage().reshape(-1) <= 0)
    patch = patch_of_pixels(geometry)
    masks = keyframe.objects(camera)
    wanted = [mask for known, mask in masks.items() if what == BACKGROUND or known == name]
    if not wanted:
        return np.empty(0, np.intp)
    on = np.unique(patch[np.logical_or.reduce(wanted) & (patch != UNSEEN)])
    if what == OBJECT:
        return np.asarray(on, np.intp)
    return np.setdiff1d(np.unique(patch[patch != UNSEEN]), on).astype(np.intp)
