"""Section on whether a failure is seen coming: ranking over time, alarms, and one that was raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attnstore.query.failure.part import (
    ALARMS,
    RESULTS,
    SCORES,
    latest_failure,
    rows_of,
)
from attnstore.query.failure.prediction import BASELINES
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.query.statistics import Estimate
from attnstore.store.catalog.rows import quoted
from attnstore.store.commits import Commit
from attnstore.store.format.axes import VISION
from attnstore.store.format.weighting import described

from ..charts.plots import Series, line_chart
from .document import Block, Figure, Section, Table, finding, missing, note, text
from .looking import drawn_keyframe
from .spelling import percent, with_interval

TITLE = "Whether a failure is seen coming"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MODEL = "cumulative"


def failure(store: Store, chosen: Chosen) -> Section:
    """Say how well failures are told from successes as they happen, and when the alarm rises."""
    commit = latest_failure(store, chosen)
    if commit is None:
        absent = (
            "No prediction. `attnstore failure STORE` fits one on some episodes, scores the others call by "
            "call, and sets an alarm; it needs episodes that succeeded and others that failed."
        )
        return Section("failure", TITLE, (missing(absent),))
    results, alarms = rows_of(store, commit, RESULTS), rows_of(store, commit, ALARMS)
    said = commit.summary
    blocks: list[Block] = [
        text(
            "A score of failure at a call is made of what was seen at that call and before it, by a "
            "logistic regression that was fitted on other episodes: on the mean so far of "
            f"{described(said['weighting'])}{', '.join(said['features'])}. AUROC is how often a failure's "
            "score is above a success', of those that are still running: 0.5 is chance. The trivial "
            "baseline knows time, robot state and the instruction's words."
        )
    ]
    for split in dict.fromkeys(r["split"] for r in results):
        own = [r for r in results if (r["split"], r["model"]) == (split, _MODEL)]
        blocks += _ranked(split, own)
    blocks += _alarms(alarms, float(said["alpha"]))
    blocks += _example(store, chosen, commit)
    return Section("failure", TITLE, tuple(blocks))


def _ranked(split: str, rows: Sequence[Any]) -> list[Block]:
    features = [f for f in dict.fromkeys(r["features"] for r in rows) if f not in BASELINES]
    lines = []
    for name, colour in zip((*features, "trivial"), _COLOURS, strict=False):
        own = [
            r
            for r in rows
            if r["features"] == name and r["moment"] is not None and r["auroc"] is not None
        ]
        own.sort(key=lambda r: int(r["moment"]))
        x = [float(r["elapsed"]) for r in own]
        each = [_estimate(r, "auroc", "low", "high") for r in own]
        lines.append(Series.of(name, x, each, colour, dashed=name == "trivial"))
    unit = str(rows[0]["unit"])
    told = []
    for name in features:
        (whole,) = (r for r in rows if r["features"] == name and r["moment"] is None)
        told.append(
            f"{name}: {with_interval(_estimate(whole, 'auroc', 'low', 'high'))}, "
            f"{with_interval(_estimate(whole, 'gain', 'gain_low', 'gain_high'))} more than the trivial "
            f"baseline, shuffled outcomes {_number(whole['shuffled'])}"
        )
    return [
        finding(f"Unseen {split}, all calls together, AUROC of {'; '.join(told)}."),
        Figure(
            f"failure_{split}",
            line_chart(
                f"unseen {split}: failures above successes", f"since the first call, {unit}", "AUROC",
                lines, reference=0.5, whole=False, top=1.0,
            ),
            f"Unseen {split}: AUROC at each call among episodes that were still running; bands are 95 % "
            "intervals over episodes; dashed at 0.5: chance.",
        ),
    ]  # fmt: skip


def _alarms(rows: Sequence[Any], alpha: float) -> list[Block]:
    table = tuple(
        (
            r["split"], r["features"], r["model"],
            f"{r['false_alarms']} of {r['successes']}", f"{r['detected']} of {r['failures']}",
            "" if r["at"] is None else f"{r['at']:.3g} {r['unit']}",
            "" if r["before_end"] is None else f"{r['before_end']:.3g} {r['unit']}",
        )
        for r in rows
        if r["features"] not in ("elapsed", "state", "instruction")
    )  # fmt: skip
    head = (
        "unseen",
        "features",
        "model",
        "false alarms",
        "failures detected",
        "at",
        "before the end",
    )
    return [
        Table("Alarms", head, table),
        note(
            f"The alarm is set so that at most {percent(alpha)} of the successes raise it, at any call. "
            "That is promised for unseen episodes of tasks that calibrated it; for unseen tasks it is "
            "only measured."
        ),
    ]


def _example(store: Store, chosen: Chosen, commit: Commit) -> list[Block]:
    """The detected failure whose alarm came earliest, and where the policy looked then."""
    features = next(f for f in commit.summary["features"])
    rows = rows_of(
        store, commit, SCORES,
        f"split = 'episodes' AND model = '{_MODEL}' AND features = {quoted(str(features))} AND "
        f"{chosen.condition}",
    )  # fmt: skip
    outcomes = dict(zip(chosen.episodes, chosen.outcomes, strict=True))
    raised = [r for r in rows if r["alarm"] and outcomes[r["episode"]] == "failure"]
    if not raised:
        return [note("No failure of the chosen episodes raised the alarm.")]
    first = min(raised, key=lambda r: (r["keyframe"], -(r["score"] - r["band"]), r["episode"]))
    own = sorted((r for r in rows if r["episode"] == first["episode"]), key=lambda r: r["keyframe"])
    episode = store.episode(first["episode"], run=chosen.run)
    x = [float(r["keyframe"]) for r in own]
    lines = [
        Series("score", x, [float(r["score"]) for r in own], colour=_COLOURS[1]),
        Series(
            "band", x, [None if r["band"] is None else float(r["band"]) for r in own], colour="#444"
        ),
    ]
    blocks: list[Block] = [
        Figure(
            "failure_example",
            line_chart(f"{episode.name}: score and band", "keyframe", "score", lines, top=1.0),
            f"{episode.name}, “{episode.instruction.strip()}”: a failure whose alarm rises at keyframe "
            f"{first['keyframe']}, frame {first['frame']}, of {len(own)} keyframes; below, where the policy "
            "looks then.",
        )
    ]
    for phase in (p for p in episode.phases if p != VISION):
        blocks.append(
            drawn_keyframe(episode, phase, int(first["keyframe"]), f"failure_look_{phase}")
        )
    return blocks


def _estimate(row: Any, value: str, low: str, high: str) -> Estimate:
    each = [np.nan if row[name] is None else float(row[name]) for name in (value, low, high)]
    return Estimate(each[0], each[1], each[2], 0)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
