"""Alarm scores over time as one picture: every episode's score, the band, and how well scores rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.query.failure.part import RESULTS, SCORES, rows_of
from attnstore.query.failure.prediction import BASELINES
from attnstore.store.format.weighting import described

from ..picture import label
from ..picture.label import Color
from ..picture.look import BACKGROUND, MUTED, TEXT
from .head_table import HIGH, LINE, LOW, RULE

if TYPE_CHECKING:
    from attnstore.query.sql.store import Store
    from attnstore.store.commits import Commit

Image = NDArray[np.uint8]
Point = tuple[float, float]
WIDTH, HEIGHT, MARGIN, LEFT, GAP = 560, 300, 32, 60, 48
_SHIFT = 4
_COLOURS: tuple[Color, ...] = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))


def draw_failure(store: Store, commit: Commit) -> Image:
    """Draw the results of `attnstore.query.failure.part.predict_failures`, a row for each split.

    Left: the score of every test episode by the cumulative model on the first features that are no
    baseline, with the median band. Right: the area under the receiver operating characteristic at each
    call, with its interval, beside the trivial baseline.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    results = rows_of(store, commit, RESULTS)
    features = next(r["features"] for r in results if r["features"] not in BASELINES)
    splits = list(dict.fromkeys(r["split"] for r in results))
    unit = str(results[0]["unit"])
    width = 2 * MARGIN + 2 * (LEFT + WIDTH) + GAP
    row = HEIGHT + 4 * LINE
    canvas: Image = np.full((2 * MARGIN + LINE + row * len(splits), width, 3), BACKGROUND, np.uint8)
    weighting = described(commit.summary["weighting"])
    title = (
        f"{commit.summary['episodes']} episodes, {commit.summary['failures']} failed: score by "
        f"{weighting}{features} so far"
    )
    label.write(canvas, title, MARGIN, MARGIN, size=22, color=TEXT, room=width - 2 * MARGIN)
    for number, split in enumerate(splits):
        top = MARGIN + 2 * LINE + row * number + LINE
        scores = rows_of(
            store,
            commit,
            f"{SCORES} JOIN (SELECT run, episode, outcome FROM episodes) USING (run, episode)",
            f"split = '{split}' AND features = '{features}' AND model = 'cumulative'",
        )
        _scores(canvas, MARGIN + LEFT, top, split, scores, unit, float(commit.summary["alpha"]))
        ranked = [r for r in results if r["split"] == split and r["model"] == "cumulative"]
        _ranking(canvas, MARGIN + 2 * LEFT + WIDTH + GAP, top, split, ranked, features, unit)
    return canvas


def _scores(
    canvas: Image, left: int, top: int, split: str, rows: Sequence[Any], unit: str, alpha: float
) -> None:
    label.write(
        canvas, f"unseen {split}: scores; orange failed, blue succeeded; white: band, alpha {alpha:g}",
        left, top - LINE // 2, size=15, color=TEXT, room=WIDTH,
    )  # fmt: skip
    last = max((float(r["elapsed"]) for r in rows), default=1.0) or 1.0
    _frame(canvas, left, top, (0.0, last), (0.0, 1.0), f"since the first call, {unit}")

    def at(x: float, y: float) -> Point:
        return left + WIDTH * x / last, top + HEIGHT * (1 - min(max(y, 0.0), 1.0))

    by: dict[str, list[Any]] = {}
    for each in rows:
        by.setdefault(each["episode"], []).append(each)
    ink = canvas.copy()
    for own in sorted(by.values(), key=lambda each: str(each[0]["outcome"]) == "failure"):
        own.sort(key=lambda each: each["keyframe"])
        points = [at(float(r["elapsed"]), float(r["score"])) for r in own]
        _polyline(ink, points, HIGH if own[0]["outcome"] == "failure" else LOW, 1)
        alarm = next((p for p, r in zip(points, own, strict=True) if r["alarm"]), None)
        if alarm is not None:
            _disc(ink, alarm, 3, HIGH if own[0]["outcome"] == "failure" else LOW)
    canvas[:] = (ink.astype(np.uint16) * 6 // 10 + canvas.astype(np.uint16) * 4 // 10).astype(
        np.uint8
    )
    bands: dict[int, list[tuple[float, float]]] = {}
    for each in rows:
        if each["band"] is not None:
            bands.setdefault(each["keyframe"], []).append(
                (float(each["elapsed"]), float(each["band"]))
            )
    line = [at(*np.median(np.array(bands[k]), 0).tolist()) for k in sorted(bands)]
    _polyline(canvas, line, TEXT, 2)


def _ranking(
    canvas: Image, left: int, top: int, split: str, rows: Sequence[Any], features: str, unit: str
) -> None:
    names = [features, "trivial"]
    label.write(
        canvas, f"unseen {split}: AUROC among those still running, 95 % interval; dashed line: chance",
        left, top - LINE // 2, size=15, color=TEXT, room=WIDTH,
    )  # fmt: skip
    known = [r for r in rows if r["moment"] is not None and r["auroc"] is not None]
    last = max((float(r["elapsed"]) for r in known), default=1.0) or 1.0
    _frame(canvas, left, top, (0.0, last), (0.0, 1.0), f"since the first call, {unit}")

    def at(x: float, y: float) -> Point:
        return left + WIDTH * x / last, top + HEIGHT * (1 - y)

    for x in range(0, WIDTH, 12):
        _polyline(
            canvas, [(left + x, top + HEIGHT / 2), (left + x + 6, top + HEIGHT / 2)], MUTED, 1
        )
    for number, name in enumerate(names):
        colour = _COLOURS[number]
        own = sorted((r for r in known if r["features"] == name), key=lambda r: int(r["moment"]))
        points = [at(float(r["elapsed"]), float(r["auroc"])) for r in own]
        _polyline(canvas, points, colour, 2)
        for each, point in zip(own, points, strict=True):
            _disc(canvas, point, 4, colour)
            if each["low"] is not None:
                ends = [at(float(each["elapsed"]), float(each[e])) for e in ("low", "high")]
                _polyline(canvas, ends, colour, 1)
        label.write(
            canvas, name, left + 12 + 130 * number, top + HEIGHT - LINE, size=15, color=colour
        )


def _frame(canvas: Image, left: int, top: int, x: Point, y: Point, name: str) -> None:
    for tick in np.linspace(*y, 5):
        at = top + HEIGHT * (1 - (tick - y[0]) / (y[1] - y[0]))
        _polyline(canvas, [(left, at), (left + WIDTH, at)], RULE, 1)
        label.write(canvas, f"{tick:g}", left - 8, round(at), size=14, color=MUTED, anchor="right")
    for tick in np.linspace(*x, 5):
        at = left + WIDTH * (tick - x[0]) / (x[1] - x[0])
        label.write(
            canvas, f"{tick:.3g}", round(at), top + HEIGHT + LINE // 2, size=14, color=MUTED,
            anchor="center",
        )  # fmt: skip
    middle = left + WIDTH // 2
    label.write(
        canvas, name, middle, top + HEIGHT + 3 * LINE // 2, size=14, color=MUTED, anchor="center"
    )


def _polyline(canvas: Image, points: Sequence[Point], colour: Color, thickness: int) -> None:
    if len(points) == 1:
        _disc(canvas, points[0], 1, colour)
    if len(points) > 1:
        scaled = (np.array(points) * (1 << _SHIFT)).round().astype(np.int32)
        cv2.polylines(canvas, [scaled], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _disc(canvas: Image, point: Point, radius: int, colour: Color) -> None:
    centre = (round(point[0] * (1 << _SHIFT)), round(point[1] * (1 << _SHIFT)))
    cv2.circle(canvas, centre, radius << _SHIFT, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
