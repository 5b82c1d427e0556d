"""Section on successes against failures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attnstore.query.groups.comparison import Comparison, compare
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.axes import VISION

from ..charts.matrix import matrix_chart
from .document import Block, Figure, Section, Table, finding, missing, note, text
from .spelling import interval, known, layer_names, number

METRIC = "entropy"
"""Asked before the data are seen: does a head look more sharply in successes?"""
SHOWN = 8


def outcomes(store: Store, chosen: Chosen) -> Section:
    """Say which heads differ between successes and failures, or why nothing can be said."""
    title = "Successes against failures"
    count = {o: chosen.outcomes.count(o) for o in ("success", "failure")}
    if not all(count.values()):
        said = (
            f"{count['success']} successes and {count['failure']} failures: there is nothing to compare. "
            "`attnstore ingest` of episodes with the other outcome brings it."
        )
        return Section("outcomes", title, (missing(said),))
    blocks: list[Block] = [
        text(
            f"`{METRIC}` of every head on the wrist camera (or the only one), one number per episode. "
            "Permutation within task and date, Benjamini-Hochberg over all heads of a phase at 5 %. Other "
            "metrics, cameras and steps: `attnstore compare`; each is another family of tests."
        )
    ]
    episode = store.episode(chosen.episodes[0], run=chosen.run)
    mine = f"run = {quoted(chosen.run)} AND episode IN ({', '.join(map(quoted, chosen.episodes))})"
    for phase in (p for p in episode.phases if p != VISION):
        try:
            found = compare(store, METRIC, by="outcome", where=mine, phase=phase)
        except (SelectionError, UsageError) as error:
            blocks.append(missing(f"{phase}: {error}. `attnstore compare` takes the options."))
            continue
        blocks += _phase(phase, found, count)
    return Section("outcomes", title, tuple(blocks))


def _phase(phase: str, found: Comparison, count: Mapping[str, int]) -> list[Block]:
    a = f"{count['success']} success{'es' if count['success'] > 1 else ''}"
    b = f"{count['failure']} failure{'s' if count['failure'] > 1 else ''}"
    passed = int(found.significant.sum())
    tests = int(np.isfinite(found.results["p"]).sum())
    if not found.attainable.conclusive:
        said = f"{phase}: with {a} against {b} nothing can be concluded about single heads, whatever they do."
    elif passed:
        said = (
            f"{phase}: {passed} of {tests} heads differ at q ≤ {found.attainable.alpha:g} ({a} against "
            f"{b}). A difference is no cause: masking what a head looks at asks that."
        )
    else:
        said = (
            f"{phase}: none of {tests} heads differs at q ≤ {found.attainable.alpha:g} ({a} against {b}). "
            "That is no proof that they are equal."
        )
    blocks: list[Block] = [finding(said), *(note(n[:1].upper() + n[1:] + ".") for n in found.notes)]
    keys = found.values
    layers, heads = int(keys.layer.max()) + 1, int(keys.head.max()) + 1
    delta = np.full((layers, heads), np.nan)
    delta[keys.layer, keys.head] = found.results["cliffs_delta"]
    framed = frozenset(
        (int(keys.layer[t]), int(keys.head[t])) for t in np.flatnonzero(found.significant)
    )
    caption = (
        f"{found.family}. Colour is Cliff's δ: +1 if every {found.groups.a} is above every "
        f"{found.groups.b}, −1 the reverse; a frame marks what the test calls significant."
    )
    if not found.attainable.conclusive:
        caption += " With so few episodes chance alone gives the strongest colours."
    chart = matrix_chart(
        f"{phase}: {keys.metric}, {found.groups.a} − {found.groups.b}",
        [known(row) for row in delta.tolist()],
        rows=layer_names(layers),
        columns=[str(i) for i in range(heads)],
        high=1.0,
        diverging=True,
        framed=framed,
        ends=("−1", "+1: Cliff's δ"),
    )
    blocks.append(Figure(f"outcomes_{phase}", chart, caption))
    blocks.append(_table(phase, found))
    return blocks


def _table(phase: str, found: Comparison) -> Table:
    results, keys = found.results, found.values
    rows = []
    for test in [t for t in found.ranked if np.isfinite(results["p"][t])][:SHOWN]:
        low, high = results["difference_low"][test], results["difference_high"][test]
        rows.append(
            (
                f"L{keys.layer[test]:02d} H{keys.head[test]:02d}",
                number(results["mean_a"][test]),
                number(results["mean_b"][test]),
                number(results["difference"][test]) + (f" ({interval(low, high)})" if np.isfinite(low) else ""),
                number(results["cliffs_delta"][test]),
                number(results["p"][test]),
                number(found.q[test]),
                "yes" if found.significant[test] else "no",
            )
        )  # fmt: skip
    head = (
        "head", f"mean, {found.groups.a}", f"mean, {found.groups.b}", "difference", "Cliff's δ", "p",
        "q", "significant",
    )  # fmt: skip
    return Table(f"{phase}: the {len(rows)} smallest p", head, tuple(rows))
