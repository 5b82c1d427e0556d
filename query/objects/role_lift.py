"""Lift on target, goal and distractors, per layer and head, with intervals over episodes.

Episodes name different objects; what they share is the role that an object has in the instruction
(`attnstore.query.objects.roles`). Distractors are the control that matters: a head that looks at every cube
does not know which one was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnstore.store.format.weighting import Weighting, check_weighting

from ..resampling import FEWEST
from ..sql.chosen import Chosen
from ..sql.store import Store
from ..statistics import Estimate, estimate
from .choice import latest_object_parts, of_parts
from .roles import find_roles

ROLES = ("target", "goal", "other", "gripper")
Where = tuple[str, str, str]
"""(phase, query group, camera)"""


@dataclass(frozen=True, slots=True)
class LayerLift:
    """One layer's map, averaged over heads, against objects of one role."""

    where: Where
    role: str
    layer: int
    lift: Estimate


@dataclass(frozen=True, slots=True)
class HeadLift:
    """The head with the largest lift on a role, measured on episodes that did not choose it."""

    where: Where
    role: str
    layer: int
    head: int
    lift: Estimate
    other: Estimate
    """The same head on objects that are not named, in the same episodes."""
    hit: Estimate
    """How often its largest value points at the role's object (pointing game)."""
    heads: int
    """From how many it was chosen."""
    held_out: bool
    """Whether choice and measurement had different episodes; else the lift is too large."""


@dataclass(frozen=True, slots=True)
class RoleLifts:
    """Every answer at once: the table is read once."""

    layers: tuple[LayerLift, ...]
    heads: tuple[HeadLift, ...]
    episodes: int
    """With objects."""
    named: int
    """In which the instruction names one of them."""


_Key = tuple[Where, str, int, int]
"""(where, role, layer, head); head -1 is the mean over heads"""


def role_lifts(store: Store, chosen: Chosen, *, weighting: Weighting = "raw") -> RoleLifts | None:
    """Sum up `object_stats` by role; None if no episode has objects, or none of this weighting.

    At the step that stands for the phase (`attnstore.store.rules`). An episode counts once, with the
    mean over its keyframes and objects.

    Parameters
    ----------
    weighting
        See `attnstore.store.format.weighting`.

    Raises
    ------
    SelectionError
        If there is no such weighting.
    """
    check_weighting(weighting)
    parts = latest_object_parts(store, chosen)
    if not parts:
        return None
    rows = store.sql(f"""
SELECT phase, query_group, camera, episode, source, object, layer, coalesce(head, -1),
       avg(lift), avg(pointing_hit)
FROM object_stats
WHERE {of_parts(parts.values())} AND head_kind IN ('mean', 'head') AND weighting = '{weighting}'
  AND stands_for_phase(run, phase, step)
GROUP BY ALL ORDER BY ALL""").fetchall()
    if not rows and weighting != "raw":
        return None
    instructions = dict(zip(chosen.episodes, chosen.instructions, strict=True))
    objects: dict[str, set[str]] = {}
    for row in rows:
        if row[4] != "gripper":
            objects.setdefault(row[3], set()).add(row[5])
    roles = {
        episode: find_roles(instructions[episode], names) for episode, names in objects.items()
    }
    values: dict[_Key, dict[str, list[tuple[float, float]]]] = {}
    for phase, group, camera, episode, source, name, layer, head, lift, hit in rows:
        role = "gripper" if source == "gripper" else roles[episode].role(name)
        if lift is not None:
            key: _Key = (phase, group, camera), role, layer, head
            values.setdefault(key, {}).setdefault(episode, []).append((lift, hit))
    means = {
        key: {episode: np.mean(v, axis=0) for episode, v in by.items()}
        for key, by in values.items()
    }
    layers = [
        LayerLift(where, role, layer, _of([v[0] for v in by.values()], list(by)))
        for (where, role, layer, head), by in means.items()
        if head < 0
    ]
    layers.sort(key=lambda each: (each.where, ROLES.index(each.role), each.layer))
    return RoleLifts(
        tuple(layers),
        tuple(_best(means)),
        len({commit.episode for commit in parts.values()}),
        sum(each.target is not None for each in roles.values()),
    )


def _best(
    means: dict[_Key, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]],
) -> list[HeadLift]:
    found = []
    places = sorted({key[:2] for key in means}, key=lambda p: (p[0], ROLES.index(p[1])))
    for where, role in places:
        if role not in ("target", "goal"):
            continue
        heads = {
            key[2:]: by for key, by in means.items() if key[:2] == (where, role) and key[3] >= 0
        }
        episodes = sorted({e for by in heads.values() for e in by})
        if not heads:
            continue
        held_out = len(episodes) >= 2 * FEWEST
        choosing, measuring = (episodes[::2], episodes[1::2]) if held_out else (episodes, episodes)
        size = {
            at: float(np.mean([by[e][0] for e in choosing if e in by] or [-np.inf]))
            for at, by in heads.items()
        }
        best = max(sorted(size), key=lambda at: size[at])
        own = {e: v for e, v in heads[best].items() if e in measuring}
        others = means.get((where, "other", *best), {})
        others = {e: v for e, v in others.items() if e in measuring}
        found.append(
            HeadLift(
                where, role, *best,
                _of([v[0] for v in own.values()], list(own)),
                _of([v[0] for v in others.values()], list(others)),
                _of([v[1] for v in own.values()], list(own)),
                len(heads), held_out,
            )
        )  # fmt: skip
    return found


def _of(values: Sequence[float], episodes: Sequence[str]) -> Estimate:
    return estimate([float(v) for v in values], np.array(episodes, dtype=np.str_))
