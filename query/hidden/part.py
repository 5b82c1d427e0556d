"""Linear probes of a store: asked in SQL, computed from committed episodes, and committed beside them.

One part ``linear-probe-<digest>`` of what was asked for, in `ACROSS`, which stands for an episode: tables
``linear_probes`` and ``linear_probe_folds``. It remembers a digest of the episodes that it was computed from:
with the same ones it is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits import Attempt, Commit, latest_commit
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.reader.hidden import Tokens
from attnstore.store.tables.columns import ACROSS
from attnstore.store.tables.linear_probes import LINEAR_PROBE_TABLES
from attnstore.store.tables.parquet import write_table

from ..sql.chosen import Chosen
from ..sql.store import Store
from .linear_probe import (
    SPLITS,
    Float,
    Options,
    Probed,
    Split,
    Target,
    TargetKind,
    check_groups,
    holm,
    make_folds,
    run_probes,
)

PROBES, FOLDS = "linear_probes", "linear_probe_folds"
LINEAR_PROBE_SEMANTICS = 1
"""Raised when a definition of what is computed changes."""
MOST_CLASSES = 20


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """What is asked for: the same is the same part."""

    target: str
    """``outcome``; an expression on tables keyframes (``k``) and episodes (``e``); or a query that gives
    episode (id or name), keyframe and value."""
    phase: str
    span: str
    tokens: Tokens = "mean"
    step: str = "last"
    kind: TargetKind | None = None
    """None: numbers with a fraction, or more than `MOST_CLASSES` of them, are numbers."""
    options: Options = field(default_factory=Options)

    @property
    def part(self) -> str:
        """Name of the part."""
        text = json.dumps([LINEAR_PROBE_SEMANTICS, asdict(self)], sort_keys=True)
        return f"linear-probe-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True, slots=True)
class Done:
    """What `linear_probe` did."""

    commit: Commit
    computed: bool
    """False if it was there of the same episodes."""
    untested: str | None
    """Why unseen tasks were not tested; None if they were, or if it was not computed."""


def linear_probe(
    store: Store,
    chosen: Chosen,
    asked: LinearProbe,
    *,
    redo: bool = False,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Done:
    """Probe the hidden states of one run's episodes, layer by layer, and commit the results.

    Parameters
    ----------
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Raises
    ------
    UsageError
        If the target is not one value a keyframe, there are too few episodes, or the store is read-only.
    NotFoundError
        If an episode has no such hidden states.
    MissingExtraError
        If scikit-learn is not installed.
    """
    store.paths.check_writable()
    bases = {e: c for e in chosen.episodes if (c := latest_commit(store.paths, chosen.run, e))}
    text = json.dumps(sorted((e, c.attempt) for e, c in bases.items()))
    inputs = hashlib.sha256(text.encode()).hexdigest()
    before = latest_commit(store.paths, chosen.run, ACROSS, asked.part)
    if before is not None and before.summary.get("inputs") == inputs and not redo:
        return Done(before, False, None)
    progress(0.0, "reading the target")
    values = _values(store, chosen, asked.target)
    target, rows = _target(store, chosen, values, asked.kind)
    check_groups(target, "episodes", asked.options.folds)
    progress(0.0, "reading hidden states")
    layers, features = _features(store, chosen, asked, rows)
    baseline = _baseline(store, chosen, rows, [place for place, _ in rows])
    found: list[dict[str, Any]] = []
    folds: list[dict[str, Any]] = []
    untested = None
    for at, split in enumerate(SPLITS):
        try:
            check_groups(target, split, asked.options.folds)
            place = make_folds(target, split, asked.options.folds, asked.options.seed)
            _check_folds(target, place)
        except UsageError as error:
            if split == "episodes":
                raise
            untested = str(error)
            continue

        def advance(share: float, now: str, at: int = at, split: str = split) -> None:
            progress((at + share) / len(SPLITS), f"unseen {split}, {now}")

        probes = run_probes(features, baseline, target, place, asked.options, advance)
        found += _rows(asked, target, split, layers, probes)
        ids = [chosen.episodes[chosen.names.index(name)] for name in target.names]
        folds += [
            {"split": split, "tested": e, "fold": int(f)} for e, f in zip(ids, place, strict=True)
        ]
    progress(1.0, "writing")
    summary = {
        "name": ACROSS, "target": asked.target, "phase": asked.phase, "span": asked.span,
        "episodes": len(target.names), "keyframes": len(target.values), "inputs": inputs,
    }  # fmt: skip
    attempt = Attempt(store.paths, chosen.run, ACROSS, asked.part)
    try:
        for name, block in ((PROBES, found), (FOLDS, folds)):
            full = [
                {"run": chosen.run, "episode": ACROSS, "part": asked.part, **row} for row in block
            ]
            table = pa.Table.from_pylist(full, LINEAR_PROBE_TABLES[name].schema)
            write_table(attempt.path / f"{name}.parquet", table)
    except BaseException:
        attempt.discard()
        raise
    after = 0 if before is None else before.revision
    return Done(attempt.publish(summary, after=after), True, untested)


def _check_folds(target: Target, place: NDArray[np.intp]) -> None:
    for fold in range(int(place.max()) + 1):
        train = target.values[place[target.episode] != fold]
        if target.kind == "classes" and len(np.unique(train)) < len(target.classes):
            lost = target.classes[int(next(iter(set(range(len(target.classes))) - set(train))))]
            raise UsageError(f"without the tasks of one fold the target is never {lost!r}")


Place = tuple[str, int]
"""(episode's id, keyframe)."""


def _values(store: Store, chosen: Chosen, target: str) -> dict[Place, Any]:
    """The target's value of every keyframe that has one."""
    query = target
    if not target.lstrip().lower().startswith(("select", "with", "from")):
        expression = "e.outcome" if target == "outcome" else target
        query = (
            f"SELECT k.episode, k.keyframe, ({expression}) AS value FROM keyframes k "
            f"JOIN episodes e USING (run, episode) WHERE {chosen.of('k.')} AND k.variant = 'base'"
        )
        if target == "outcome":
            query += " AND e.outcome <> 'unknown'"
    found = store.sql(query)
    if missing := [c for c in ("episode", "keyframe", "value") if c not in found.columns]:
        raise UsageError(
            f"--target gives episode, keyframe and value, one row a keyframe; it has no {missing[0]} "
            f"among {', '.join(found.columns)}"
        )
    at = [found.columns.index(c) for c in ("episode", "keyframe", "value")]
    ids = dict(zip(chosen.names, chosen.episodes, strict=True)) | {e: e for e in chosen.episodes}
    values: dict[Place, Any] = {}
    for row in found.fetchall():
        episode, keyframe, value = (row[i] for i in at)
        if episode not in ids or value is None:
            continue
        place = ids[episode], int(keyframe)
        if values.get(place, value) != value:
            raise UsageError(
                f"--target gives two values of keyframe {keyframe} of {episode}: {values[place]!r} and "
                f"{value!r}; aggregate them"
            )
        values[place] = value
    if not values:
        raise UsageError(
            f"--target gives no value of any keyframe of the {len(chosen.episodes)} chosen episodes"
        )
    return values


def _target(
    store: Store, chosen: Chosen, values: dict[Place, Any], kind: TargetKind | None
) -> tuple[Target, list[tuple[Place, Any]]]:
    """The target, and its rows, sorted by episode and keyframe."""
    order = {e: i for i, e in enumerate(chosen.episodes)}
    rows = sorted(values.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    given = [float(v) if isinstance(v, Decimal) else v for _, v in rows]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
    if kind is None:
        whole = numeric and all(float(v).is_integer() for v in given)
        few = len(set(given)) <= MOST_CLASSES
        kind = "classes" if not numeric or (whole and few) else "numbers"
    if kind == "numbers" and not numeric:
        raise UsageError(f"--target gives {given[0]!r}, which is no number; leave --kind out")
    episodes = list(dict.fromkeys(e for (e, _), _ in rows))
    tasks = dict(
        store.sql(
            f"SELECT episode, coalesce(task, instruction, '') FROM episodes WHERE {chosen.condition}"
        ).fetchall()
    )
    names = tuple(chosen.names[order[e]] for e in episodes)
    number = {e: i for i, e in enumerate(episodes)}
    of = np.array([number[e] for (e, _), _ in rows], np.intp)
    task = np.array([tasks.get(e, "") for e in episodes])
    if kind == "numbers":
        numbers = np.array(given, np.float64)
        if not np.isfinite(numbers).all():
            raise UsageError("--target gives a value that is not finite")
        return Target(kind, numbers, (), of, task, names), rows
    classes = tuple(sorted({str(v) for v in given}))
    if len(classes) > MOST_CLASSES:
        raise UsageError(
            f"--target has {len(classes)} classes, more than {MOST_CLASSES}; merge rare ones, or pass "
            "--kind numbers"
        )
    ordinals = np.array([classes.index(str(v)) for v in given], np.float64)
    return Target(kind, ordinals, classes, of, task, names), rows


def _features(
    store: Store, chosen: Chosen, asked: LinearProbe, rows: list[tuple[Place, Any]]
) -> tuple[list[int | None], list[Float]]:
    """Features of every layer, (row, feature) each."""
    parts: list[NDArray[np.float32]] = []
    layers: list[int | None] = []
    wanted: dict[str, list[int]] = {}
    for (episode, keyframe), _ in rows:
        wanted.setdefault(episode, []).append(keyframe)
    for episode, keyframes in wanted.items():
        opened = store.episode(episode, run=chosen.run)
        stepped = opened.steps(asked.phase) is not None
        step: Any = asked.step if asked.step in ("first", "last") else int(asked.step)
        states = opened.hidden(
            asked.phase, span=asked.span, tokens=asked.tokens, step=step if stepped else None,
            keyframe=keyframes,
        )  # fmt: skip
        if "query" in states.dims:
            states = states.mean("query")
        layers = states["layer"].values.tolist() if "layer" in states.dims else [None]
        values = states.values if "layer" in states.dims else states.values[:, None]
        if not np.isfinite(values).all():
            raise SelectionError(
                f"{opened.name}: a keyframe has no tokens of {asked.span}; choose another --span, or "
                "leave it out of --target"
            )
        if parts and parts[0].shape[1:] != values.shape[1:]:
            raise SelectionError(f"{opened.name}: its hidden states have another shape")
        parts.append(values)
    whole = np.concatenate(parts)
    return layers, [whole[:, i].astype(np.float64) for i in range(whole.shape[1])]


def _baseline(
    store: Store, chosen: Chosen, rows: list[tuple[Place, Any]], places: list[Place]
) -> Float:
    """What needs no network: time since the first keyframe and its square, robot state, instruction."""
    found = {
        (e, k): (frame, state or [], instruction or "")
        for e, k, frame, state, instruction in store.sql(
            "SELECT episode, keyframe, frame, state, instruction FROM keyframes "
            f"WHERE {chosen.condition} AND variant = 'base'"
        ).fetchall()
    }
    own = [found[place] for place in places]
    longest = max(len(state) for _, state, _ in own)
    texts = sorted({text for _, _, text in own})
    time = np.array([[frame, frame**2] for frame, _, _ in own], np.float64)
    state = np.zeros((len(own), longest))
    for i, (_, values, _) in enumerate(own):
        state[i, : len(values)] = np.nan_to_num(np.asarray(values, np.float64))
    words = np.array([[text == each for each in texts] for _, _, text in own], np.float64)
    return np.concatenate([time, state, words], 1)


def _rows(
    asked: LinearProbe, target: Target, split: Split, layers: list[int | None], probes: list[Probed]
) -> list[dict[str, Any]]:
    corrected = holm(np.array([p.p for p in probes]))
    stepped = asked.phase in ("suffix", "decode")
    rows = []
    for i, (probe, layer) in enumerate(zip(probes, [None, *layers], strict=True)):
        base = i == 0
        controls = probe.shuffled
        rows.append(
            {
                "target": asked.target, "kind": target.kind, "split": split, "phase": asked.phase,
                "span": asked.span, "tokens": asked.tokens, "step": asked.step if stepped else None,
                "layer": layer, "features": "trivial" if base else "hidden", "score": probe.score,
                "low": probe.interval[0], "high": probe.interval[1], "chance": target.chance,
                "shuffled": float(controls.mean()) if len(controls) else None,
                "shuffled_high": float(np.quantile(controls, 0.95)) if len(controls) else None,
                "gain": None if base else probe.gain,
                "gain_low": None if base else probe.gain_interval[0],
                "gain_high": None if base else probe.gain_interval[1],
                "p": None if base else probe.p,
                "p_holm": None if base else float(corrected[i]),
                "penalty": probe.penalty, "episodes": len(target.names),
                "keyframes": len(target.values),
                "classes": json.dumps(target.classes) if target.classes else None,
                "seed": asked.options.seed,
            }
        )  # fmt: skip
    return rows


def knows(row: Mapping[str, Any]) -> bool:
    """Whether a layer knows more of the target than the obvious, and than chance: the star.

    Parameters
    ----------
    row
        Of table ``linear_probes``.
    """
    if row["p_holm"] is None or row["p_holm"] >= 0.05:
        return False
    return row["shuffled_high"] is None or bool(row["score"] > row["shuffled_high"])


def layer_name(layer: int | None) -> str:
    """Name the states of a row of ``linear_probes``.

    Examples
    --------
    >>> layer_name(-1), layer_name(3), layer_name(None)
    ('embedding', 'L03', 'last')
    """
    if layer is None:
        return "last"
    return "embedding" if layer < 0 else f"L{layer:02d}"


def probes_sql(run: str) -> str:
    """Return the SQL of all rows of ``linear_probes`` of a run, as `apart` takes them."""
    return (
        "SELECT p.* FROM linear_probes p JOIN commits USING (run, episode, part) "
        f"WHERE run = {quoted(run)} "
        "ORDER BY committed DESC, part, split, features = 'hidden', layer"
    )


def apart(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Divide rows of ``linear_probes`` into those of one part and split each: the baseline, then layers."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["part"], row["split"]), []).append(row)
    return list(found.values())


def run_probe_rows(store: Store, run: str) -> list[list[dict[str, Any]]]:
    """Read all linear probes of a run, the newest first; see `apart`."""
    return apart(store.sql(probes_sql(run)).to_arrow_table().to_pylist())


def probe_rows(store: Store, commit: Commit) -> list[dict[str, Any]]:
    """Rows of ``linear_probes`` of a part, in order: of each split the baseline, then layer by layer."""
    found = store.sql(
        f"SELECT * FROM linear_probes WHERE run = '{commit.run}' AND part = '{commit.part}'"
    )
    return cast("list[dict[str, Any]]", found.to_arrow_table().to_pylist())
