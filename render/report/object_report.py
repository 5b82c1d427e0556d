"""What `attnstore objects add --out` writes: numbers, charts, pictures, and two reports.

::

    results.json          every number but the single keyframes
    report.html           charts, tables and some pictures in one file that needs no other
    report.md             the same as Markdown
    report_figures/       its charts: summary.svg is mean ± sd per layer, by object; outcomes.svg every
                          episode's lift, by object and outcome; heat.svg the mean lift per layer and
                          object: successes, failures, difference
    {outcome}/{date}/{episode}/...   pictures and videos; see `attnstore.render.files.object_pictures`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from attnstore.query.objects.results import (
    NOTE,
    ObjectResults,
    Row,
    load_object_results,
)
from attnstore.query.sql.store import Store
from attnstore.store.format.weighting import WEIGHTINGS, Weighting
from attnstore.store.reader.episode import Episode
from attnstore.store.tables.objects import OBJECT_METRICS

from ..charts.objects import Curve, heat_table, layer_chart, legend, outcome_chart
from ..charts.svg import Chart, stack
from ..files.object_pictures import draw_episode, object_colours
from ..picture import image_file
from ..picture.drawing import component
from .document import Figure, Page, Section, Table, note
from .glossary import glossary
from .html import html_page
from .markdown import write_markdown

SHOWN = ("overlap_ratio", "lift", "iou", "nss")
"""Metrics with a chart of their own."""
CHANCE: Mapping[str, float] = {"lift": 1.0, "nss": 0.0, "concentration": 1.0}
"""What uniform attention gives, where it does not depend on the object."""
EXAMPLES = 6
"""Pictures in the page."""


def write_report(
    store: Store,
    parts: Sequence[tuple[Episode, str]],
    out: Path,
    *,
    pictures: bool = True,
    missing: Mapping[str, str] | None = None,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> list[Path]:
    """Write results, charts, pictures and reports of committed object parts.

    Parameters
    ----------
    parts
        Episodes and names of their parts; all of one camera.
    pictures
        Draw every keyframe and a video of every layer.
    missing
        Names of episodes without numbers, and why.
    progress
        Called with the share that is done, 0 to 1, and the episode that is at its turn.

    Returns
    -------
    The files written.
    """
    results = load_object_results(store, parts, missing)
    camera = str(results.parts[0].commit.summary["camera"])
    drawn = _pictures(results, camera, out, progress) if pictures else []
    text = json.dumps(results.to_json(), ensure_ascii=False, allow_nan=False, indent=1)
    return [
        image_file.write_text(out / "results.json", text + "\n"),
        image_file.write_text(out / "report.html", html_page(_page(results, camera, drawn))),
        *write_markdown(_page(results, camera, []), out / "report.md"),
        *drawn,
    ]


def _page(results: ObjectResults, camera: str, drawn: Sequence[Path]) -> Page:
    said = results.parts[0].commit.summary
    captions = {
        "summary": "Mean over episodes, by layer and object; the last denoising step, mean over heads, raw attention.",
        "outcomes": "Each episode counts once. Differences between successes and failures are shown, not "
        "tested: that is what `attnstore compare` is for.",
        "heat": "Mean lift of the raw attention by layer and object: successes, failures, and their difference.",
    }
    charts = tuple(Figure(n, c, captions[n]) for n, c in _charts(results).items())
    pictures = tuple(
        Figure(f"picture-{i}", path.read_bytes(), "/".join(path.parts[-3:]))
        for i, path in enumerate(_examples(drawn))
    )
    threshold = note(
        f"iou takes patches of at least {float(said['threshold']):g} of a map's maximum. Maps are means "
        "over the query tokens."
    )
    sections = (
        Section("charts", "By layer, object and outcome", (note(NOTE), threshold, *charts)),
        *((Section("pictures", "Pictures", pictures),) if pictures else ()),
        Section("numbers", "Numbers", (_objects_table(results), _heads_table(results))),
        Section("episodes", "Episodes", (_episodes_table(results),)),
    )
    lead = f"{len(results.parts)} episodes; how much of the attention on {camera} lies on objects."
    known = {name: said for name, said in glossary(sections).items() if name != "interval"}
    return Page(f"Attention on objects, {camera}", lead, sections, known)


def _pictures(
    results: ObjectResults, camera: str, out: Path, progress: Callable[[float, str], None]
) -> list[Path]:
    episodes = {(p.episode.run, p.episode.id): p.episode for p in results.parts}
    runs = {run for run, _ in episodes}
    colours = object_colours([r["object"] for r in results.layers])
    drawn: list[Path] = []
    for number, ((run, _), episode) in enumerate(episodes.items()):
        progress(number / len(episodes), episode.name)
        masks = results.masks(episode)
        if not masks:
            continue
        phases = [p for p in episode.phases if camera in episode.phase(p, camera).cameras]
        root = out / component(run) if len(runs) > 1 else out
        drawn += draw_episode(episode, camera, masks, root, colours, phases)
    return drawn


def _last(rows: Sequence[Row], kind: str = "mean", weighting: Weighting = "raw") -> list[Row]:
    """Rows of the last denoising step, of one kind of map."""
    return [
        r
        for r in rows
        if (r["head_kind"], r["weighting"]) == (kind, weighting) and r["step"] == r["standing"]
    ]


def _charts(results: ObjectResults) -> dict[str, Chart]:
    rows = _last(results.layers)
    objects = sorted({r["object"] for r in rows})
    panels = []
    for phase in dict.fromkeys(r["phase"] for r in rows):
        of_phase = [r for r in rows if r["phase"] == phase]
        for metric in SHOWN:
            unit = f"{OBJECT_METRICS[metric][1]}; band: ± sd"
            curves = [_curve(of_phase, name, metric) for name in objects]
            title = f"{phase}: {metric}"
            panels.append(layer_chart(title, unit, curves, CHANCE.get(metric)))
    names = legend(objects)
    return {
        "summary": stack([names, stack(panels)], columns=1),
        "outcomes": _outcomes_chart(results),
        "heat": _heat_chart(results),
    }


def _curve(rows: Sequence[Row], name: str, metric: str) -> Curve:
    found = {r["layer"]: r for r in rows if r["object"] == name}
    layers = range(1 + max((r["layer"] for r in rows), default=0))
    mean = [found[i][f"{metric}_mean"] if i in found else None for i in layers]
    # Over episodes; of a single episode there is only the spread over its keyframes.
    sd = [
        None if i not in found
        else found[i][f"{metric}_sd"] if found[i]["episodes"] > 1
        else found[i][f"{metric}_keyframe_sd"]
        for i in layers
    ]  # fmt: skip
    return Curve(name, mean, sd)


def _outcomes_chart(results: ObjectResults) -> Chart:
    charts = []
    rows = [r for r in _last(results.episodes) if r["lift"] is not None]
    for phase in dict.fromkeys(r["phase"] for r in rows):
        values: dict[str, dict[str, list[float]]] = {}
        for name in sorted({r["object"] for r in rows}):
            values[name] = {}
            of_object = [r for r in rows if r["phase"] == phase and r["object"] == name]
            for outcome in ("success", "failure", "unknown"):
                lifts: dict[tuple[str, str], list[float]] = {}
                for row in (r for r in of_object if r["outcome"] == outcome):
                    lifts.setdefault((row["run"], row["episode"]), []).append(row["lift"])
                if lifts:
                    # One number an episode: the mean over its layers.
                    values[name][outcome] = [sum(v) / len(v) for v in lifts.values()]
        title = f"{phase}: lift of each episode, mean over layers (head mean)"
        charts.append(outcome_chart(title, values, CHANCE["lift"]))
    return stack(charts, columns=1)


def _heat_chart(results: ObjectResults) -> Chart:
    rows = [r for r in _last(results.episodes) if r["lift"] is not None]
    charts = []
    for phase in dict.fromkeys(r["phase"] for r in rows):
        of_phase = [r for r in rows if r["phase"] == phase]
        objects = sorted({r["object"] for r in of_phase})
        layers = range(1 + max(r["layer"] for r in of_phase))
        groups: dict[tuple[int, str, str], list[float]] = {}
        for row in of_phase:
            groups.setdefault((row["layer"], row["object"], row["outcome"]), []).append(row["lift"])
        means = {key: sum(v) / len(v) for key, v in groups.items()}
        table: dict[str, list[list[float | None]]] = {
            outcome: [[means.get((i, o, outcome)) for o in objects] for i in layers]
            for outcome in ("success", "failure")
        }
        difference = [
            [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]
            for one, other in zip(table["success"], table["failure"], strict=True)
        ]
        names = [f"L{i:02d}" for i in layers]
        columns = [o.replace(" ", "\n", 1) for o in objects]
        for title, values, centre in (
            (f"{phase}: lift, successes", table["success"], 1.0),
            (f"{phase}: lift, failures", table["failure"], 1.0),
            (f"{phase}: success − failure", difference, 0.0),
        ):
            charts.append(heat_table(title, names, columns, values, centre=centre, reach=1.0))
    return stack(charts, columns=3)


def _objects_table(results: ObjectResults) -> Table:
    rows = []
    # A stable mean over layers: which layer is best belongs in the table below.
    for key in dict.fromkeys((r["object"], r["source"], r["phase"]) for r in results.layers):
        of_key = [r for r in results.layers if (r["object"], r["source"], r["phase"]) == key]
        for kind, weighting in product(("mean", "max"), WEIGHTINGS):
            found = _last(of_key, kind, weighting)
            if not found:
                continue
            means = [_mean([r[f"{metric}_mean"] for r in found]) for metric in OBJECT_METRICS]
            counts = str(found[0]["episodes"]), str(found[0]["keyframes"])
            rows.append((*key, kind, weighting, *counts, *(_number(m) for m in means)))
    head = (
        "object", "source", "phase", "heads", "weighting", "episodes", "keyframes",
        *OBJECT_METRICS,
    )  # fmt: skip
    return Table("Mean over layers, last step", head, tuple(rows))


def _heads_table(results: ObjectResults) -> Table:
    """The heads with the largest lift, by object and phase."""
    lifts: dict[tuple[str, str, str, int, int], list[float]] = {}
    for row in results.episodes:
        if (
            row["head_kind"] == "head"
            and row["step"] == row["standing"]
            and row["lift"] is not None
        ):
            key = row["object"], row["phase"], row["weighting"], row["layer"], row["head"]
            lifts.setdefault(key, []).append(row["lift"])
    means = {key: (sum(v) / len(v), len(v)) for key, v in lifts.items()}
    rows = []
    for group in dict.fromkeys(key[:3] for key in means):
        of_group = sorted((k for k in means if k[:3] == group), key=lambda k: -means[k][0])
        for key in of_group[:3]:
            lift, count = means[key]
            rows.append((*group, f"L{key[3]:02d} H{key[4]:02d}", str(count), _number(lift)))
    return Table(
        "Heads with the largest lift",
        ("object", "phase", "weighting", "head", "episodes", "lift"),
        tuple(rows),
    )


def _episodes_table(results: ObjectResults) -> Table:
    seen: dict[tuple[str, ...], int] = {}
    for part in results.parts:
        said = part.commit.summary
        objects = ", ".join(said["objects"]) or "nothing in view"
        key = (part.episode.name, part.episode.outcome, said["source"], objects)
        seen[key] = int(said["keyframes"])
    rows = [(*key, str(count)) for key, count in seen.items()]
    rows += [(name, "", "", reason, "0") for name, reason in results.missing.items()]
    head = ("episode", "outcome", "source", "objects", "keyframes")
    return Table("", head, tuple(rows))


def _examples(drawn: Sequence[Path]) -> list[Path]:
    """Pick some pictures, spread over all."""
    stills = [path for path in drawn if path.suffix == ".jpg"]
    step = max(1, len(stills) // EXAMPLES)
    return stills[::step][:EXAMPLES]


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
