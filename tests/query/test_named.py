"""Every ready-made query, by number: against NumPy over what the store holds, run by run.

The second run has more denoising steps than the first, and texts are of different length: an answer
that takes the largest step of the store, or averages over steps, is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from store_fixtures import CAMERAS, POLICY, random_episode, run_config, write_blocks, write_rows

import attnstore
from attnstore.query import Episode, Store
from attnstore.query.sql.named import NAMED, named_query
from attnstore.store.commits import Attempt, StorePaths, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import NotFoundError
from attnstore.store.format.action_metrics import curve_area
from attnstore.store.opening import create_store
from attnstore.store.reader.episode import Steps
from attnstore.store.tables.columns import ACROSS
from attnstore.store.tables.failure import FAILURE_TABLES
from attnstore.store.tables.parquet import write_table
from attnstore.store.tables.probes import PROBE_TABLES

Row = dict[str, Any]
NAMES = ("success/2025-01-01/e0", "success/2025-01-01/e1", "failure/2025-01-01/e2")
STEPS = (3, 5)
"""Of each run."""
GROUPS = {"prefix": "task", "suffix": "action", "decode": "readout"}
CHECKED: dict[str, Callable[[Store, list[Row]], None]] = {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    paths = create_store(tmp_path_factory.mktemp("named") / "store")
    for number, steps in enumerate(STEPS):
        for seed, name in enumerate(NAMES):
            write(paths, name, number, 10 * number + seed, steps)
        write_failure(paths, save_run(paths, run_config(number), {"host": "test", "code": "0"}))
    return attnstore.open(paths.root)


def write_failure(paths: StorePaths, run: str) -> None:
    """Results of two kinds of features; the one at a call does not count."""
    attempt = Attempt(paths, run, ACROSS, "failure-x")
    common = {"run": run, "episode": ACROSS, "part": attempt.part, "split": "episodes",
              "model": "logistic", "weighting": "raw", "unit": "s"}  # fmt: skip
    rows: dict[str, list[Row]] = {"failure_results": [], "failure_alarms": []}
    for number, features in enumerate(("attention", "trivial")):
        for moment in (0, None):
            area = 0.5 + 0.1 * number + (0.3 if moment is None else 0.0)
            rows["failure_results"].append(
                {**common, "features": features, "moment": moment, "auroc": area}
            )
        rows["failure_alarms"].append(
            {**common, "features": features, "alpha": 0.1, "successes": 9, "failures": 7,
             "false_alarms": number, "detected": 5 - number}
        )  # fmt: skip
    for table, each in rows.items():
        written = pa.Table.from_pylist(each, FAILURE_TABLES[table].schema)
        write_table(attempt.path / f"{table}.parquet", written)
    attempt.publish({"name": ACROSS})


def write(paths: StorePaths, name: str, number: int, seed: int, steps: int) -> None:
    made = random_episode(
        name, name.partition("/")[0], seed, steps=steps, heads=3, missing={1: CAMERAS[1]},
        texts=(3, 2, 4),
    )  # fmt: skip
    run = save_run(paths, run_config(number), {"host": "test", "code": "0"})
    writer = EpisodeWriter(Attempt(paths, run, slug(name), "base"), made.spec, POLICY)
    write_blocks(writer, made)
    write_rows(writer, made, seed)
    rng = np.random.default_rng(seed)
    for phase, spec in made.spec.phases.items():
        for step in [None] if spec.steps is None else range(spec.steps):
            for layer in range(spec.layers):
                norm = rng.uniform(0.5, 1.5, (3, 6))
                norm[:, 2] *= 30
                writer.add_rows(
                    "token_stats",
                    {
                        "keyframe": np.repeat([0, 1, 2], 6), "phase": [phase] * 18,
                        "camera": ["hand_camera"] * 18, "step": [step] * 18, "layer": [layer] * 18,
                        "index": np.tile(range(6), 3), "span": ["a", "b"] * 9,
                        "kind": ["text", "image"] * 9, "role": ["task", None] * 9,
                        "norm": norm.ravel(), "cosine_previous": rng.uniform(size=18),
                        "cosine_embedding": rng.uniform(size=18),
                    },
                )  # fmt: skip
    writer.commit({})
    for probe in ("fidelity", "regions", "prompts"):
        write_probe(paths, run, slug(name), probe, rng, steps)


def write_probe(
    paths: StorePaths, run: str, episode: str, probe: str, rng: np.random.Generator, steps: int
) -> None:
    part = f"probe-{probe}"
    attempt = Attempt(paths, run, episode, part)
    tables: dict[str, list[Row]] = {"interventions": []}

    def add(table: str, **values: Any) -> None:
        effect = ("mse", "si_mse", "scale", "cosine", "pixel_change", "l2", "jensen_shannon",
                  "correlation", "mass_change", "attention")  # fmt: skip
        known = {c.name for c in PROBE_TABLES[table].columns}
        random = {name: float(rng.uniform(-1, 1)) for name in effect if name in known}
        random |= {n: abs(v) for n, v in random.items() if n not in ("correlation", "mass_change")}
        row = {"run": run, "episode": episode, "part": part, "frame": 0, "probe": probe}
        tables.setdefault(table, []).append({**row, **random, **values})

    for keyframe in range(3):
        at: Row = {"keyframe": keyframe}
        if probe == "fidelity":
            shown = {**at, "phase": "suffix", "query_group": "action", "step": steps - 1,
                     "cameras": list(CAMERAS)}  # fmt: skip
            for layer in range(2):
                for target in ("attention", "control"):
                    for repeat in range(2):
                        name = f"L{layer}/{target}{repeat}"
                        add("interventions", variant=name, target=target, layer=layer,
                            repeat=repeat, **shown)  # fmt: skip
                    for fraction in (0.0, 0.5, 1.0):
                        add("intervention_curves", variant=f"L{layer}/{target}/{fraction}",
                            curve="deletion", target=target, layer=layer, repeat=0,
                            fraction=fraction, **shown)  # fmt: skip
        elif probe == "regions":
            for cell in range(4):
                name, area = f"cell/{cell}", float(rng.uniform(0.1, 0.4))
                add("interventions", variant=name, target="cell", detail=f"{cell},0", area=area,
                    cameras=[CAMERAS[0]], **at)  # fmt: skip
                for layer in range(2):
                    add("region_attention", variant=name, camera=CAMERAS[0], phase="suffix",
                        step=steps - 1, layer=layer, query_group="action", area=area,
                        attention=area * float(rng.uniform(0, 2)), **at)  # fmt: skip
        else:
            for variant in ("empty", "other"):
                add("interventions", variant=variant, target="prompt", detail=variant, **at)
                for step in range(steps):
                    for head in range(3):
                        add("map_shifts", variant=variant, phase="suffix", step=step, layer=0,
                            head=head, query_group="action", camera=CAMERAS[0], **at)  # fmt: skip
    for table, rows in tables.items():
        written = pa.Table.from_pylist(rows, PROBE_TABLES[table].schema)
        write_table(attempt.path / f"{table}.parquet", written)
    attempt.publish({"name": episode, "outcome": "unknown", "probe": probe})


def check(name: str) -> Callable[[Any], Any]:
    def keep(function: Any) -> Any:
        CHECKED[name] = function
        return function

    return keep


@pytest.mark.parametrize("name", NAMED)
def test_by_number(store: Store, name: str) -> None:
    rows = store.sql(named_query(name).sql).to_arrow_table().to_pylist()
    assert rows
    CHECKED[name](store, rows)
    assert {r["run"] for r in rows} == set(store.runs)


def test_every_one_is_checked() -> None:
    assert set(CHECKED) == set(NAMED)
    assert len(NAMED) == 18


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        NotFoundError, match="no query 'x'; there are: most-active-heads, camera-by"
    ):
        named_query("x")


def episodes(store: Store, run: str) -> list[Episode]:
    return [store.from_commit(c) for c in store.base_commits(run)]


def standing(store: Store, run: str, phase: str, camera: str, metric: str) -> NDArray[Any]:
    """Mean over keyframes at the phase's step, (episode, layer, head)."""
    found = []
    for episode in episodes(store, run):
        step: Steps = "last" if phase == "suffix" else "first"
        values = episode.stats(phase, camera, metric, step=step).values.astype(np.float64)
        found.append(np.nanmean(values, axis=0))
    return np.stack(found)


def close(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, (float, np.floating)):
            assert one == pytest.approx(other, rel=2e-5, abs=1e-9)
        else:
            assert one == other


def same(rows: list[Row], keys: Sequence[str], expected: Mapping[Any, Sequence[Any]]) -> None:
    """Compare what is behind the keys, in the order of the columns."""
    found = {tuple(r[k] for k in keys): [r[k] for k in r if k not in keys] for r in rows}
    assert len(found) == len(rows), "keys repeat"
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        close(found[key], values)


def grouped(rows: list[Row], keys: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(tuple(row[k]) if isinstance(row[k], list) else row[k] for k in keys)
        groups.setdefault(key, []).append(row)
    yield from groups.items()


def mean(rows: list[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def table(store: Store, name: str) -> list[Row]:
    found: list[Row] = store.sql(f"from {name}").to_arrow_table().to_pylist()
    return found


def falls(rows: list[Row], name: str) -> None:
    """Within a run (and part) the largest comes first."""
    for _, own in grouped(rows, [k for k in ("run", "part") if k in rows[0]]):
        values = [r[name] for r in own if r[name] is not None]
        assert values == sorted(values, reverse=True)


PLACES = [(phase, camera) for phase in GROUPS for camera in CAMERAS]


@check("most-active-heads")
def _(store: Store, rows: list[Row]) -> None:
    expected: dict[Any, Sequence[Any]] = {}
    for run in store.runs:
        for phase, camera in PLACES:
            image, lab, entropy, on = (
                standing(store, run, phase, camera, m).mean(0)
                for m in ("variance", "grid_variance", "entropy", "camera_mass")
            )
            for layer in range(2):
                head = int(image[layer].argmax())
                at = layer, head
                expected[run, phase, GROUPS[phase], camera, layer] = [
                    head, image[at], entropy[at], on[at], 3, int(lab[layer].argmax()),
                ]  # fmt: skip
    same(rows, ("run", "phase", "query_group", "camera", "layer"), expected)


@check("camera-by-layer")
def _(store: Store, rows: list[Row]) -> None:
    expected = {
        (run, phase, GROUPS[phase], layer, camera): [
            standing(store, run, phase, camera, m)[:, layer].mean()
            for m in ("camera_mass", "letterbox_mass")
        ]
        for run in store.runs for phase, camera in PLACES for layer in range(2)
    }  # fmt: skip
    same(rows, ("run", "phase", "query_group", "layer", "camera"), expected)


@check("padding-mass")
def _(store: Store, rows: list[Row]) -> None:
    expected: dict[Any, Sequence[Any]] = {}
    for run in store.runs:
        for phase, camera in PLACES:
            found = standing(store, run, phase, camera, "letterbox_mass")
            for outcome in ("success", "failure"):
                own = [i for i, e in enumerate(episodes(store, run)) if e.outcome == outcome]
                step: Steps = "last" if phase == "suffix" else "first"
                most = [
                    np.nanmax(
                        episodes(store, run)[i]
                        .stats(phase, camera, "letterbox_mass", step=step)
                        .values
                    )
                    for i in own
                ]
                key = (run, phase, GROUPS[phase], camera, outcome)
                expected[key] = [found[own].mean(), max(most)]
    same(rows, ("run", "phase", "query_group", "camera", "outcome"), expected)
    falls(rows, "on_padding")


@check("largest-drift")
def _(store: Store, rows: list[Row]) -> None:
    expected: dict[Any, Sequence[Any]] = {}
    for run in store.runs:
        for phase, camera in PLACES:
            drift = standing(store, run, phase, camera, "drift")
            for i, e in enumerate(episodes(store, run)):
                key = (run, e.name, e.outcome, phase, GROUPS[phase], camera)
                expected[key] = [float(drift[i].mean())]
    same(rows, ("run", "name", "outcome", "phase", "query_group", "camera"), expected)
    falls(rows, "drift")


@check("step-drift")
def _(store: Store, rows: list[Row]) -> None:
    expected: dict[Any, Sequence[Any]] = {}
    for run, steps in zip(ordered(store), STEPS, strict=True):
        for phase, count in (("suffix", steps), ("decode", 4)):
            for camera in CAMERAS:
                drift = [
                    np.nanmean(e.stats(phase, camera, "step_drift").values[:, 1:], axis=0)
                    for e in episodes(store, run)
                ]
                for step in range(1, count):
                    for layer in range(2):
                        key = (run, phase, GROUPS[phase], camera, step, layer)
                        expected[key] = [float(np.mean([d[step - 1, layer] for d in drift]))]
    same(rows, ("run", "phase", "query_group", "camera", "step", "layer"), expected)


def ordered(store: Store) -> list[str]:
    """Runs in the order of `STEPS`."""
    return sorted(store.runs, key=lambda run: episodes(store, run)[0].steps("suffix") or 0)


@check("confident-heads")
def _(store: Store, rows: list[Row]) -> None:
    expected = {
        (run, phase, group, layer, head): [
            np.mean([standing(store, run, phase, c, "confidence")[:, layer, head] for c in CAMERAS])
        ]
        for run in store.runs for phase, group in GROUPS.items()
        for layer in range(2) for head in range(3)
    }  # fmt: skip
    same(rows, ("run", "phase", "query_group", "layer", "head"), expected)
    falls(rows, "confidence")


@check("sink-heads")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "weighting", "phase", "step", "layer", "head", "span", "text", "camera", "row",
            "col")  # fmt: skip
    expected = {
        key: [len(own), mean(own, "mass")] for key, own in grouped(table(store, "sinks"), keys)
    }
    same(rows, keys, expected)


@check("massive-activations")
def _(store: Store, rows: list[Row]) -> None:
    places = ("run", "episode", "keyframe", "phase", "step", "layer")
    massive = []
    for _, own in grouped(table(store, "token_stats"), places):
        median = np.median([r["norm"] for r in own])
        massive += [{**r, "times": r["norm"] / median} for r in own if r["norm"] >= 10 * median]
    keys = ("run", "phase", "camera", "step", "layer", "kind", "span", "index")
    expected = {
        key: [len({r["episode"] for r in own}), len(own), mean(own, "norm"), mean(own, "times")]
        for key, own in grouped(massive, keys)
    }
    same(rows, keys, expected)
    falls(rows, "times_median")


@check("token-evolution")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "phase", "layer", "kind", "role", "camera")
    last = {run: steps - 1 for run, steps in zip(ordered(store), STEPS, strict=True)}
    kept = [
        r
        for r in table(store, "token_stats")
        if r["step"] == {"prefix": None, "suffix": last[r["run"]], "decode": 0}[r["phase"]]
    ]
    expected = {
        key: [
            float(np.median([r["norm"] for r in own])), mean(own, "cosine_previous"),
            mean(own, "cosine_embedding"),
        ]
        for key, own in grouped(kept, keys)
    }  # fmt: skip
    same(rows, keys, expected)


def interventions(store: Store, probe: str) -> list[Row]:
    return [r for r in table(store, "interventions") if r["probe"] == probe]


@check("mask-fidelity")
def _(store: Store, rows: list[Row]) -> None:
    own = interventions(store, "fidelity")
    for row in rows:
        here = [r for r in own if (r["run"], r["layer"]) == (row["run"], row["layer"])]
        means = {
            (target, name): np.mean([
                mean(each, name)
                for _, each in grouped([r for r in here if r["target"] == target], ("episode",))
            ])
            for target in ("attention", "control") for name in ("si_mse", "pixel_change")
        }  # fmt: skip
        assert row["episodes"] == 3
        assert row["attention"] == pytest.approx(means["attention", "si_mse"])
        assert row["control"] == pytest.approx(means["control", "si_mse"])
        assert row["fidelity"] == pytest.approx(row["attention"] - row["control"])
        assert row["attention_change"] == pytest.approx(means["attention", "pixel_change"])
        assert row["control_change"] == pytest.approx(means["control", "pixel_change"])
        assert (row["part"], row["phase"]) == ("probe-fidelity", "suffix")
    assert len(rows) == 2 * 2


@check("curve-areas")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "part", "phase", "layer", "cameras", "curve", "target")
    expected: dict[Any, Sequence[Any]] = {}
    for key, own in grouped(table(store, "intervention_curves"), keys):
        areas = []
        for _, each in grouped(own, ("episode", "keyframe")):
            each.sort(key=lambda r: r["fraction"])
            x = np.array([r["fraction"] for r in each])
            areas.append([
                float(curve_area(x, np.array([r[m] for r in each]))) for m in ("si_mse", "cosine")
            ])  # fmt: skip
        expected[key] = [3, *map(float, np.mean(areas, axis=0))]
    same([{**r, "cameras": tuple(r["cameras"])} for r in rows], keys, expected)


@check("effect-by-region")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "part", "target", "detail", "cameras")
    names = ("area", "pixel_change", "si_mse", "mse", "scale", "cosine")
    expected = {
        key: [3, len(own), *(mean(own, n) for n in names)]
        for key, own in grouped(interventions(store, "regions"), keys)
    }
    same([{**r, "cameras": tuple(r["cameras"])} for r in rows], keys, expected)
    falls(rows, "si_mse")


def ledger(store: Store) -> list[Row]:
    """Attention on regions beside the effect of removing them, joined by hand."""
    places = ("run", "episode", "keyframe", "variant")
    effect = {tuple(r[k] for k in places): r for r in interventions(store, "regions")}
    return [
        {**r, **{k: effect[tuple(r[p] for p in places)][k] for k in ("target", "detail", "si_mse")}}
        for r in table(store, "region_attention")
    ]


@check("ledger")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "part", "target", "detail", "camera", "phase", "step", "layer", "query_group")
    expected = {
        key: [
            3, len(own), mean(own, "area"), mean(own, "attention"),
            mean(own, "attention") / mean(own, "area"), mean(own, "si_mse"),
            mean(own, "si_mse") / mean(own, "area"),
        ]
        for key, own in grouped(ledger(store), keys)
    }  # fmt: skip
    same(rows, keys, expected)
    falls(rows, "effect")


REGION = ("run", "part", "target", "detail", "camera", "phase", "layer", "query_group")


def rated(store: Store) -> dict[Any, Sequence[Any]]:
    regions = {
        key: [3, mean(own, "area"), mean(own, "attention") / mean(own, "area"), mean(own, "si_mse")]
        for key, own in grouped(ledger(store), REGION)
    }
    found: dict[Any, Sequence[Any]] = {}
    for key, values in regions.items():
        alike = [v[3] / v[1] for k, v in regions.items() if (k[0], k[6]) == (key[0], key[6])]
        found[key] = [*values, values[3] / values[1] / float(np.mean(alike))]
    return found


@check("looked-at-but-unused")
def _(store: Store, rows: list[Row]) -> None:
    same(rows, REGION, {k: v for k, v in rated(store).items() if v[2] > 1 and v[4] < 1})
    falls(rows, "lift")


@check("used-but-not-looked-at")
def _(store: Store, rows: list[Row]) -> None:
    same(rows, REGION, {k: v for k, v in rated(store).items() if v[2] < 1 and v[4] > 1})
    falls(rows, "effect_lift")


@check("attention-effect")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "part", "target", "camera", "phase", "layer", "query_group")
    expected: dict[Any, Sequence[Any]] = {}
    for run in store.runs:
        for layer in range(2):
            own = [v for k, v in rated(store).items() if (k[0], k[6]) == (run, layer)]
            lift, effect = np.array([[v[2], v[3]] for v in own]).T
            key = (run, "probe-regions", "cell", CAMERAS[0], "suffix", layer, "action")
            expected[key] = [len(own), float(np.corrcoef(lift, effect)[0, 1])]
    same(rows, keys, expected)


@check("prompt-effects")
def _(store: Store, rows: list[Row]) -> None:
    keys = ("run", "probe", "part", "detail", "layer", "phase", "camera")
    last = {run: steps - 1 for run, steps in zip(ordered(store), STEPS, strict=True)}
    shifts = [r for r in table(store, "map_shifts") if r["step"] == last[r["run"]]]
    expected: dict[Any, Sequence[Any]] = {}
    for (run, detail), own in grouped(interventions(store, "prompts"), ("run", "detail")):
        moved = [r for r in shifts if (r["run"], r["variant"]) == (run, detail)]
        key = (run, "prompts", "probe-prompts", detail, None, "suffix", CAMERAS[0])
        expected[key] = [
            3, len(own), *(mean(own, n) for n in ("si_mse", "scale", "cosine")),
            *(mean(moved, n) for n in ("jensen_shannon", "correlation", "l2")),
            float(np.mean([abs(r["mass_change"]) for r in moved])),
        ]  # fmt: skip
    same(rows, keys, expected)
    falls(rows, "si_mse")


@check("failure-prediction")
def _(store: Store, rows: list[Row]) -> None:
    found = [
        (r["features"], round(r["auroc"], 6), r["false_alarms"], r["detected"], r["failures"])
        for r in rows
        if r["run"] == store.runs[0]
    ]
    assert found == [("attention", 0.8, 0, 5, 7), ("trivial", 0.9, 1, 4, 7)]
