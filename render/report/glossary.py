"""Definitions of every column that a report's tables have."""

# ruff: noqa: E501 - one line per definition, however long

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attnstore.store.tables.base import METRICS
from attnstore.store.tables.linear_probes import LINEAR_PROBE_TABLES
from attnstore.store.tables.objects import OBJECT_METRICS
from attnstore.store.tables.probes import ACTION_METRICS

from .document import Section, Table

_OWN = {
    "interval": (
        "in brackets: 95 %, percentiles of a bootstrap that resamples episodes, then the keyframes "
        "of each; keyframes of an episode are alike. There is none below 4 episodes, and below 10 "
        "intervals are too narrow (of 4 against 4 normal values 95 % intervals hold the truth in 86 %)",
        "",
    ),
    "change, points": ("last third minus first third of each episode's keyframes, in percentage points of all attention", "points"),
    "on the camera": ("camera_mass: share of the query group's attention on what the camera shows; mean over heads, keyframes, then episodes; last step", "share of attention"),
    "on its letterbox": ("letterbox_mass: share on the camera's padding, which shows no image", "share of attention"),
    "weighting": ("raw: the attention; value: attention times the norm of what each token adds through the head, rows made to sum to 1 again", ""),
    "fidelity": ("metric of the masked top of a layer's map minus that of its control, as many pixels elsewhere, keyframe by keyframe; positive: the action depends more on what the layer looks at", "of the metric"),
    "masked map": ("metric where the hottest pixels of the layer's map are replaced", "of the metric"),
    "control": ("metric where as many pixels with little attention are replaced, mean over repeats", "of the metric"),
    "pixel change": ("mean absolute difference of the replaced pixels, masked map and control: a control that blacks out black changes nothing", "0..255"),
    "area under: map": ("area under the curve of si_mse over the share of pixels, by the trapezoidal rule (RISE, Petsiuk et al. 2018)", "0..1"),
    "area under: random": ("the same, patches in random order, mean over repeats", "0..1"),
    "gain": ("of the map's order over random order: deletion map − random, insertion random − map; positive: the map's order is the better one", "area"),
    "direction": ("si_mse: what differs after the best change of length", "share of |a|²"),
    "length": ("|b − a|² / |a|² − si_mse: what a change of length would mend; |b − a|² / |a|² = 1 + s² − 2 s c for scale s and cosine c", "share of |a|²"),
    "direction's share": ("direction over direction + length, of both means", "0..1"),
    "Cliff's δ": ("share of pairs of episodes in which the first group's is larger, minus that in which it is smaller (Cliff 1993)", "-1..1"),
    "p": ("two-sided permutation p within strata, (b + 1) / (B + 1)", "0..1"),
    "q": ("Benjamini & Hochberg 1995, over all tests of the table's family", "0..1"),
    "first in": ("episodes in which the head has the largest variance of its layer", "episodes"),
    "other": ("the same head or map on objects that the instruction does not name: the control that matters", "lift"),
    "effect": ("si_mse of removing the region", "0..1"),
    "effect_lift": ("effect over area, relative to the mean region of its kind, map and camera", "ratio"),
    "target": ("the object that the instruction names first", ""),
    "goal": ("the last other object that it names", ""),
    "background": ("pixels that the policy sees and that are on no object and not on the gripper", ""),
}  # fmt: skip

_PROBED = {
    c.name: (c.definition, c.unit)
    for c in LINEAR_PROBE_TABLES["linear_probes"].columns
    if c.name in ("shuffled", "shuffled_high", "p_holm")
} | {
    "knows": ("whether a layer's probe says more than the trivial baseline (p_holm < 0.05) and than 95 % of shuffled targets", ""),
    "gain over trivial": ("score minus that of the same regression from time, robot state and instruction", "of the score"),
}  # fmt: skip


def glossary(sections: Iterable[Section]) -> Mapping[str, tuple[str, str]]:
    """Find the definitions of every heading in the sections' tables, sorted by name."""
    known = {
        **{name: (words, unit) for name, (words, unit) in METRICS.items()},
        **OBJECT_METRICS,
        **ACTION_METRICS,
        **_PROBED,
        **_OWN,
    }
    heads = {
        name
        for section in sections
        for block in section.blocks
        if isinstance(block, Table)
        for name in block.head
    }
    used = {name: known[name] for name in sorted(heads, key=str.lower) if name in known}
    return {"interval": known["interval"], **used}
