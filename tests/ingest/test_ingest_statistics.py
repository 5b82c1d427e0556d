"""Statistics at ingest, each column against loops in float64, written here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ingest_fixtures import arrays_of, make_job
from numpy.typing import NDArray

from attnstore.ingest.aggregates import episode_stats
from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import keyframe_indices, observation
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.reduction import reduce
from attnstore.ingest.statistics import HeadStatistics, PhaseReductions, SinkStatistics
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.commits.part import Part
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import AlignedAxis, Axis, Span, Token, TokenLayout
from attnstore.store.tables.base import METRICS
from attnstore.store.tables.inventory import TABLES

Weights = NDArray[np.float64]
Row = dict[str, Any]
GEOMETRY = Geometry.letterbox((36, 64), (56, 56), (14, 14), anchor="top-left", resized=(31, 56))


def image_share(geometry: Geometry, row: int, col: int) -> float:
    """Fraction of a patch that shows source image, pixel by pixel."""
    shown = 0
    for y in range(int(row * 14), int(row * 14) + 14):
        for x in range(int(col * 14), int(col * 14) + 14):
            shown += y < geometry.resized[0] and x < geometry.resized[1]
    return shown / 196


def distribution(patches: Sequence[float], shares: Sequence[float]) -> list[float]:
    weighted = [a * w for a, w in zip(patches, shares, strict=True)]
    total = sum(weighted)
    return [v / total for v, w in zip(weighted, shares, strict=True) if w > 0]


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += 0.5 * (a * math.log2(a / m) if a > 0 else 0)
        total += 0.5 * (b * math.log2(b / m) if b > 0 else 0)
    return total


def oracle(
    weights: Weights, layout: TokenLayout, group: str, span: Span, geometry: Geometry
) -> Row:
    """Every metric of one head from its whole (query, key) matrix."""
    rows = [
        i for s in layout.query if group in (s.kind, s.role, s.name) for i in range(s.start, s.stop)
    ]
    mean = [sum(weights[q, k] for q in rows) / len(rows) for k in range(weights.shape[1])]
    patches = mean[span.start : span.stop]
    assert span.grid is not None
    cells = [(r, c) for r in range(span.grid[0]) for c in range(span.grid[1])]
    shares = [image_share(geometry, r, c) for r, c in cells]
    p = distribution(patches, shares)
    area = sum(shares)
    largest = sorted(p, reverse=True)[: math.ceil(len(p) / 10)]
    ordered = sorted(p)
    n = len(p)
    on_image = [a * w for a, w in zip(patches, shares, strict=True)]
    off_image = [a * (1 - w) for a, w in zip(patches, shares, strict=True)]
    best = on_image.index(max(on_image))
    mass: dict[str, float] = {}
    for s in layout.key:
        for k in range(s.start, s.stop):
            mass[s.role or s.name] = mass.get(s.role or s.name, 0) + mean[k]
    average = sum(patches) / len(patches)
    seen = sum(on_image) / area
    return {
        "camera_mass": sum(on_image),
        "letterbox_mass": sum(off_image),
        "letterbox_max": max(off_image),
        "variance": sum(w * (v - seen) ** 2 for v, w in zip(patches, shares, strict=True)) / area,
        "grid_variance": sum((v - average) ** 2 for v in patches) / len(patches),
        "max": max(on_image),
        "entropy": min(1.0, -sum(v * math.log(v) for v in p if v > 0) / math.log(area)),
        "top10_mass": sum(largest),
        "gini": sum((2 * (i + 1) - n - 1) * v for i, v in enumerate(ordered)) / n,
        "confidence": sum(max(weights[q]) for q in rows) / len(rows),
        "argmax_row": cells[best][0],
        "argmax_col": cells[best][1],
        "mass": mass,
        "p": p,
    }


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Part, DroidDataset]:
    dataset = DroidDataset(recordings)
    store = tmp_path_factory.mktemp("statistics") / "s"
    job = make_job(store, loaded, dataset, batch_size=2)
    return Part(
        job.paths, ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    ), dataset


def captured_rows(
    policy: Pi0Policy, dataset: DroidDataset
) -> Iterator[tuple[tuple[Any, ...], Row]]:
    """Head statistics of an episode by the oracle, from weights captured one keyframe at a time."""
    name = dataset.episode_names()[0]
    info = dataset.info(name)
    before: dict[tuple[Any, ...], list[float]] = {}
    for keyframe, frame in enumerate(dataset.frames(name, keyframe_indices(info.frames, 8))):
        batch = policy.prepare([observation(frame, info, 0)])
        with capture(policy) as session:
            policy.act(batch)
        earlier: dict[tuple[Any, ...], list[float]] = {}
        for record in session.records:
            layout = batch.samples[0].layouts[record.phase]
            query = [i for s in layout.query.model_slices for i in range(s.start, s.stop)]
            key = [i for s in layout.key.model_slices for i in range(s.start, s.stop)]
            weights = record.weights[0].double().numpy()[:, query][:, :, key]
            group = {"prefix": "task", "suffix": "action"}[record.phase]
            for head in range(weights.shape[0]):
                for span in (s for s in layout.key if s.kind == "image"):
                    camera = str(span.camera)
                    found = oracle(
                        weights[head], layout, group, span, batch.samples[0].geometry[camera]
                    )
                    p = found.pop("p")
                    which = (record.phase, record.layer, head, camera)
                    at = (*which, record.step)
                    found["drift"] = divergence(p, before[at]) if keyframe else None
                    found["step_drift"] = divergence(p, earlier[which]) if record.step else None
                    before[at] = earlier[which] = p
                    yield (keyframe, record.phase, record.step, record.layer, head, camera), found


def test_every_column_of_head_stats(loaded: Pi0Policy, ingested: tuple[Part, DroidDataset]) -> None:
    part, dataset = ingested
    names = ("keyframe", "phase", "step", "layer", "head", "camera")
    rows = {tuple(r[n] for n in names): r for r in part.table("head_stats").to_pylist()}
    count = 0
    for which, wanted in captured_rows(loaded, dataset):
        row = rows[which]
        count += 1
        for column, value in wanted.items():
            if column == "mass":
                continue
            if value is None:
                assert row[column] is None, (which, column)
            else:
                # captured keyframe by keyframe, ingested in batches of two
                assert row[column] == pytest.approx(value, rel=2e-4, abs=2e-6), (which, column)
        mass = dict(row["mass"])
        assert list(mass) == list(dict.fromkeys(mass))
        assert mass == pytest.approx(wanted["mass"], rel=2e-4, abs=2e-6)
        assert sum(mass.values()) == pytest.approx(1, abs=1e-5)
        assert row["letterbox_mass"] > 0
        assert row["frame"] == 8 * which[0]
        assert row["query_group"] == ("task" if which[1] == "prefix" else "action")
    assert count == len(rows) == part.table("head_stats").num_rows


def test_overview_maps_are_those_of_the_stored_attention(
    ingested: tuple[Part, DroidDataset],
) -> None:
    part, _ = ingested
    arrays = arrays_of(part)
    for phase, group in (("prefix", "task"), ("suffix", "action")):
        spec = part.spec.phases[phase]
        queries = [
            i for s in spec.query if group in (s.kind, s.role) for i in range(s.start, s.stop)
        ]
        values = arrays[f"{phase}/attention"].astype(np.float64)[..., queries, :]
        for camera in ("hand_camera", "varied_camera_1"):
            span = spec.key[f"image:{camera}"]
            block = values[..., span.start : span.stop]
            shape = (*block.shape[:-2], *(span.grid or ()))
            for reduction, wanted in (("mean", block.mean(-2)), ("max", block.max(-2))):
                found = part.map(phase, group, camera, reduction, (slice(None),))
                # maps of unrounded weights, against float16 weights
                rounding = 2.0**-11 + 2.0 ** -MAP_BITS[reduction]
                np.testing.assert_allclose(
                    found, wanted.reshape(shape), rtol=rounding, atol=2.0**-25
                )


def test_episode_stats(ingested: tuple[Part, DroidDataset]) -> None:
    part, _ = ingested
    check_episode_stats(part.table("head_stats"), part.table("episode_stats").to_pydict())


def check_episode_stats(rows: pa.Table, columns: dict[str, list[Any]]) -> None:
    keys = ("phase", "step", "layer", "head", "query_group", "weighting", "camera")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows.to_pylist():
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    found = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    ordered = sorted(groups, key=lambda k: tuple(-1 if v is None else v for v in k))
    assert [tuple(r[k] for k in keys) for r in found] == ordered
    for row, key in zip(found, ordered, strict=True):
        members = groups[key]
        assert row["keyframes"] == len(members)
        for metric in METRICS:
            values = np.array([m[metric] for m in members if m[metric] is not None], np.float64)
            for name, minimum, function in (
                ("mean", 1, np.mean), ("sd", 2, lambda v: np.std(v, ddof=1)), ("max", 1, np.max),
            ):  # fmt: skip
                wanted = function(values) if len(values) >= minimum else None
                ours = row[f"{metric}_{name}"]
                if wanted is None:
                    assert ours is None, (metric, name, members[0])
                else:
                    assert ours == pytest.approx(wanted, rel=1e-4, abs=1e-7), (metric, name)


def test_episode_stats_of_one_keyframe_have_no_deviation(
    ingested: tuple[Part, DroidDataset],
) -> None:
    rows = ingested[0].table("head_stats")
    only = rows.filter(pa.compute.equal(rows["keyframe"], 1))
    columns = {k: pa.array(v).to_pylist() for k, v in episode_stats(only).items()}
    check_episode_stats(only, columns)
    assert set(columns["entropy_sd"]) == {None}
    assert set(columns) == {c.name for c in TABLES["episode_stats"].columns} - {
        "run",
        "episode",
        "variant",
    }


def layouts_of(lengths: Sequence[int]) -> list[TokenLayout]:
    """Layouts of a phase with two cameras and a text of another length at every keyframe."""
    layouts = []
    for length in lengths:
        spans = [
            Span(f"image:{c}", "image", 16 * i, 16 * i + 16, 16 * i, camera=c, grid=(4, 4))
            for i, c in enumerate(("a", "b"))
        ]
        tokens = tuple(Token(100 + i, f"w{i}") for i in range(length))
        spans.append(Span("task", "text", 32, 32 + length, 40, role="task", tokens=tokens))
        after = 32 + length
        spans.append(
            Span("end", "text", after, after + 1, 70, role="template", tokens=(Token(9, "."),))
        )
        axis = Axis(tuple(spans))
        layouts.append(TokenLayout("prefix", axis, axis))
    return layouts


def describe(layouts: Sequence[TokenLayout], layers: int = 1, heads: int = 2) -> EpisodeSpec:
    query = AlignedAxis.over([x.query for x in layouts])
    phase = PhaseSpec("prefix", layers, heads, None, query, query, ("text",))
    count = len(layouts)
    return EpisodeSpec(
        "e", "success", "go", tuple(range(count)), tuple(range(count)), "float16",
        {"a": GEOMETRY, "b": GEOMETRY}, {"prefix": phase},
    )  # fmt: skip


def reductions(spec: EpisodeSpec, layout: TokenLayout, weights: Weights) -> PhaseReductions:
    """(head, query, key) of one layer, as the recorder would reduce it."""
    phase = PhaseReductions(spec.phases["prefix"], layout)
    values = torch.from_numpy(weights.astype(np.float32))
    phase.add(0, None, reduce(values, layout.query, ("text",)))
    return phase


def test_uniform_attention_has_entropy_1_and_no_drift() -> None:
    layouts = layouts_of([3, 5])
    spec = describe(layouts)
    statistics = HeadStatistics(spec)
    for keyframe, layout in enumerate(layouts):
        size = len(layout.key)
        phase = reductions(spec, layout, np.full((2, size, size), 1 / size))
        for block in statistics.rows(keyframe, phase):
            np.testing.assert_allclose(block["entropy"], 1, atol=1e-6)
            np.testing.assert_allclose(block["variance"], 0, atol=1e-12)
            np.testing.assert_allclose(block["max"], 1 / size, rtol=1e-6)
            image = sum(image_share(GEOMETRY, r, c) for r in range(4) for c in range(4))
            np.testing.assert_allclose(block["camera_mass"], image / size, rtol=1e-6)
            np.testing.assert_allclose(block["letterbox_mass"], (16 - image) / size, rtol=1e-6)
            np.testing.assert_allclose(block["drift"], 0 if keyframe else np.nan, atol=1e-7)
            assert np.isnan(block["step_drift"]).all()


def test_one_patch_has_entropy_0_and_moving_it_drifts_by_1() -> None:
    layouts = layouts_of([4, 2])
    spec = describe(layouts)
    statistics = HeadStatistics(spec)
    for keyframe, (layout, patch) in enumerate(zip(layouts, (5, 2), strict=True)):
        weights = np.zeros((2, len(layout.key), len(layout.key)))
        weights[:, :, patch] = 1
        blocks = list(statistics.rows(keyframe, reductions(spec, layout, weights)))
        block = blocks[0]
        assert block["camera"][0] == "a"
        np.testing.assert_allclose(block["entropy"], 0, atol=1e-7)
        np.testing.assert_allclose(block["top10_mass"], 1)
        np.testing.assert_allclose(block["confidence"], 1)
        np.testing.assert_array_equal(block["argmax_row"], patch // 4)
        np.testing.assert_array_equal(block["argmax_col"], patch % 4)
        if keyframe:
            np.testing.assert_allclose(block["drift"], 1)
        # the other camera got nothing at all: it has no distribution, which is not a uniform one
        assert blocks[1]["camera_mass"].tolist() == blocks[1]["max"].tolist() == [0, 0]
        for name in ("entropy", "gini", "top10_mass", "drift", "argmax_row", "argmax_col"):
            assert np.isnan(blocks[1][name]).all(), name


def test_the_letterbox_chooses_no_head() -> None:
    """Head 0 is bright on padding, head 1 on the image, of a 16:9 camera on a square grid.

    Golden numbers: 16 patches, of which row 2 shows image on 3 of 14 pixel rows and row 3 on none.
    """
    layouts = layouts_of([3])
    spec = describe(layouts)
    size = len(layouts[0].key)
    weights = np.full((2, size, size), 0.01)
    weights[0, :, 13] = 0.058  # row 3: letterbox
    weights[0, :, 9] = 0.042  # row 2: 3/14 image
    weights[1, :, 2] = 0.02  # row 0: image
    block = next(iter(HeadStatistics(spec).rows(0, reductions(spec, layouts[0], weights))))
    half = 3 / 14
    area = 8 + 4 * half
    spread = [half * 0.032**2 / area - (half * 0.032 / area) ** 2, 0.01**2 / area * (1 - 1 / area)]
    np.testing.assert_allclose(block["variance"], spread, rtol=1e-5)
    values = [[0.048, 0.032] + [0] * 14, [0.01] + [0] * 15]
    np.testing.assert_allclose(block["grid_variance"], np.var(values, axis=1), rtol=1e-5)
    assert int(np.argmax(block["grid_variance"])) == 0
    np.testing.assert_allclose(block["max"], [0.01, 0.02], rtol=1e-6)
    assert list(zip(block["argmax_row"], block["argmax_col"], strict=True)) == [(0, 0), (0, 2)]
    np.testing.assert_allclose(block["letterbox_max"], [0.058, 0.01], rtol=1e-6)
    np.testing.assert_allclose(
        block["letterbox_mass"],
        [0.01 * (3 + 3 * (1 - half)) + 0.058 + 0.042 * (1 - half), 0.01 * (4 + 4 * (1 - half))],
        rtol=1e-6,
    )


def planted(layout: TokenLayout, head: int, key: int, share: float) -> Weights:
    size = len(layout.key)
    weights = np.full((2, size, size), 1 / size)
    weights[head] = (1 - share) / (size - 1)
    weights[head, :, key] = share
    return weights


def find_sinks(
    spec: EpisodeSpec, layouts: Sequence[TokenLayout], all_weights: Sequence[Weights]
) -> list[Row]:
    sinks = SinkStatistics(0.3, 0.8)
    for layout, weights in zip(layouts, all_weights, strict=True):
        sinks.add(reductions(spec, layout, weights))
    rows = []
    for block in sinks.rows():
        lists = [np.asarray(v).tolist() for v in block.values()]
        rows += [dict(zip(block, values, strict=True)) for values in zip(*lists, strict=True)]
    return rows


def test_a_planted_sink_is_found_where_it_is_stored() -> None:
    """At the last token, whose place in the keyframe's own sequence differs every time."""
    lengths = [3, 6, 2, 5, 4, 6, 1, 2, 3, 4]
    layouts = layouts_of(lengths)
    spec = describe(layouts)
    shares = [0.5, 0.31, 0.9, 0.1, 0.4, 0.32, 0.2, 0.6, 0.7, 0.8]
    weights = [planted(x, 1, len(x.key) - 1, s) for x, s in zip(layouts, shares, strict=True)]
    (row,) = find_sinks(spec, layouts, weights)
    assert row["key"] == 32 + max(lengths)
    assert (row["phase"], row["step"], row["layer"], row["head"]) == ("prefix", None, 0, 1)
    assert (row["span"], row["text"]) == ("end", ".")
    assert (row["camera"], row["row"], row["col"]) == (None, None, None)
    assert row["fraction"] == pytest.approx(0.8)
    assert row["mass"] == pytest.approx(np.mean(shares))


def test_a_patch_can_be_a_sink_and_has_row_and_column() -> None:
    layouts = layouts_of([3, 4])
    weights = [planted(x, 0, 16 + 4 * 2 + 3, 0.6) for x in layouts]
    (row,) = find_sinks(describe(layouts), layouts, weights)
    assert (row["key"], row["span"], row["camera"]) == (27, "image:b", "b")
    assert (row["row"], row["col"], row["text"], row["head"]) == (2, 3, None, 0)


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ([0.31] * 8 + [0.1] * 2, True),
        ([0.31] * 7 + [0.1] * 3, False),
        ([0.3] * 10, False),
        ([0.29] * 10, False),
    ],
)
def test_the_sinks_threshold_and_fraction(shares: list[float], found: bool) -> None:
    layouts = layouts_of([3] * 10)
    weights = [planted(x, 0, 32, s) for x, s in zip(layouts, shares, strict=True)]
    assert bool(find_sinks(describe(layouts), layouts, weights)) == found


def test_a_key_that_wanders_is_no_sink() -> None:
    layouts = layouts_of([3] * 10)
    weights = [planted(x, 0, 5 + i, 0.9) for i, x in enumerate(layouts)]
    assert find_sinks(describe(layouts), layouts, weights) == []


def test_a_token_that_is_seldom_there_is_no_sink() -> None:
    """A sixth word that only 5 of 10 keyframes have, however much it draws there."""
    lengths = [6, 3] * 5
    layouts = layouts_of(lengths)
    weights = [
        planted(x, 0, 37 if n == 6 else 0, 0.9) for x, n in zip(layouts, lengths, strict=True)
    ]
    assert find_sinks(describe(layouts), layouts, weights) == []


def test_stored_sinks_are_those_of_the_stored_weights(ingested: tuple[Part, DroidDataset]) -> None:
    """Whatever sinks random weights have: the table holds exactly them."""
    part, _ = ingested
    arrays = arrays_of(part)
    wanted = set()
    for phase in ("prefix", "suffix"):
        values = arrays[f"{phase}/attention"].astype(np.float64)
        overall = np.nanmean(values, axis=-2)
        overall = overall[:, None] if phase == "prefix" else overall
        for at in np.argwhere((overall > 0.3).mean(0) >= 0.8):
            step, layer, head, key = (int(i) for i in at)
            wanted.add((phase, step if phase == "suffix" else None, layer, head, key))
    rows = part.table("sinks").to_pylist()
    assert {(r["phase"], r["step"], r["layer"], r["head"], r["key"]) for r in rows} == wanted
