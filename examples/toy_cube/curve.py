"""``python -m examples.toy_cube.curve CURVE.json OUT.png``: draw a training curve."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LOSSES = ("flow", "words", "place")
ERRORS = ("xy_start", "xy_approach", "xy_near", "xy_held", "word_cube")


def main() -> None:
    """Draw the losses of training and the errors on held-out states."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    points = json.loads(given.curve.read_text())
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axes, names, label in ((left, LOSSES, "loss"), (right, ERRORS, "error, cm")):
        for name in names:
            steps, values = series(points, name)
            axes.plot(steps, values, label=name, linewidth=1)
        axes.set(xlabel="step", ylabel=label, yscale="log")
        axes.legend(fontsize=7, frameon=False)
        axes.grid(linewidth=0.3)
    figure.savefig(given.out, dpi=90)


def series(points: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one name, without the steps in which that part was not trained."""
    known = [(point["step"], point[name]) for point in points if point.get(name)]
    return [step for step, _ in known], [value for _, value in known]


if __name__ == "__main__":
    main()
