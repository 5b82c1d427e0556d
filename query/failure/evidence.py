"""What was seen of episodes, call by call: the rows that a failure is predicted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import NotFoundError, UsageError
from attnstore.store.format.axes import VISION
from attnstore.store.format.weighting import Weighting, check_weighting
from attnstore.store.rules import standing_step

from ..sql.chosen import Chosen
from ..sql.store import Store

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.intp]

SEEN = ("camera_mass", "letterbox_mass", "entropy", "max", "confidence", "drift")
"""Metrics of ``head_stats`` that are features: of every layer, head, camera and phase."""
TRIVIAL = ("elapsed", "state", "instruction")
"""Features that need no model; a prediction that is worth anything beats them."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Rows of all episodes, one behind another; a row is one call of the policy, a keyframe."""

    episodes: tuple[str, ...]
    """Their ids."""
    names: tuple[str, ...]
    """The dataset's own."""
    failed: Bool
    """(episode,)"""
    task: NDArray[np.str_]
    """(episode,): the data set's task, or the instruction."""
    stratum: NDArray[np.str_]
    """(episode,): what is compared is alike in it; "" if everything is."""
    of: Int
    """(row,), the episode; ascending."""
    moment: Int
    """(row,), ordinal of the keyframe in its episode."""
    elapsed: Float
    """(row,), since the first keyframe; see `unit`."""
    unit: str
    """``s``, or ``frames`` where no time is known."""
    features: Mapping[str, Float]
    """By name, (row, feature); NaN where there is no number."""

    def __post_init__(self) -> None:
        if len(self.of) == 0 or (np.diff(self.of) < 0).any():
            raise ValueError("rows are those of one episode behind another's")

    @property
    def lengths(self) -> Int:
        """(episode,), calls of each."""
        return np.bincount(self.of, minlength=len(self.failed))


def read_evidence(
    store: Store,
    chosen: Chosen,
    *,
    features: Sequence[str] = ("attention",),
    weighting: Weighting = "raw",
    strata: str | None = None,
) -> Evidence:
    """Read what was seen of the chosen episodes that ended in success or failure.

    Parameters
    ----------
    features
        ``attention``: `SEEN`, at the step that stands for the phase, of every query group. ``hidden``: the
        last hidden state of the tokens that the policy makes actions of, mean over them, at that step.
        ``both``. `TRIVIAL` ones are always there.
    weighting
        Of the attention's statistics.
    strata
        SQL expression on table ``episodes``: episodes in which it differs are never compared.

    Raises
    ------
    NotFoundError
        If an episode lacks what is asked for.
    SelectionError
        If the episodes' shapes differ.
    UsageError
        If there is no such feature.
    """
    check_weighting(weighting)
    if wrong := [name for name in features if name not in FEATURES]:
        raise UsageError(f"features are of {', '.join(FEATURES)}; got {wrong[0]!r}")
    rows = store.sql(f"""
SELECT e.episode, e.name, e.outcome, coalesce(e.task, e.instruction), k.keyframe, k.frame, k."timestamp", e.rate,
       k.instruction, k.state, {"''" if strata is None else f"({strata})::VARCHAR"}
FROM keyframes k JOIN episodes e USING (run, episode)
WHERE {chosen.of("e.")} AND e.outcome IN ('success', 'failure') AND k.variant = 'base'
ORDER BY e.name, e.episode, k.keyframe""").fetchall()
    if not rows:
        raise NotFoundError(
            f"no chosen episode of {chosen.run} is known to have succeeded or failed: `attnstore outcomes` "
            "says how they ended"
        )
    ids = list(dict.fromkeys(row[0] for row in rows))
    number = {episode: i for i, episode in enumerate(ids)}
    first = {row[0]: row for row in reversed(rows)}
    of = np.array([number[row[0]] for row in rows])
    moment = np.array([row[4] for row in rows])
    elapsed, unit = _elapsed(rows, of)
    found: dict[str, Float] = {
        "elapsed": moment[:, None].astype(np.float64),
        "state": _states([row[9] for row in rows]),
        "instruction": _words([str(row[8]) for row in rows]),
    }
    if {"attention", "both"} & set(features):
        found["attention"] = _statistics(store, chosen, number, of, moment, weighting)
    if {"hidden", "both"} & set(features):
        found["hidden"] = _hidden(store, chosen, ids, len(of))
    if "both" in features:
        found["both"] = np.concatenate([found["attention"], found["hidden"]], 1)
    kept = {name: found[name] for name in (*features, *TRIVIAL)}
    kept["trivial"] = np.concatenate([found[name] for name in TRIVIAL], 1)
    return Evidence(
        episodes=tuple(ids),
        names=tuple(str(first[e][1]) for e in ids),
        failed=np.array([first[e][2] == "failure" for e in ids]),
        task=np.array([str(first[e][3]) for e in ids]),
        stratum=np.array([str(first[e][10]) for e in ids]),
        of=of,
        moment=moment,
        elapsed=elapsed,
        unit=unit,
        features=kept,
    )


FEATURES = ("attention", "hidden", "both")


def _elapsed(rows: Sequence[tuple[object, ...]], of: Int) -> tuple[Float, str]:
    """Time of each row since its episode's first; frames where no time is known of some episode.

    By the frames' rate where there is one: timestamps of a simulator's recording are those of the machine.
    """
    starts = np.searchsorted(of, of)
    times = np.array([np.nan if row[6] is None else float(str(row[6])) for row in rows])
    frames = np.array([float(str(row[5])) for row in rows])
    rates = np.array([np.nan if row[7] is None else float(str(row[7])) for row in rows])
    for seconds in (frames / rates, times):
        if np.isfinite(seconds).all():
            return seconds - seconds[starts], "s"
    return frames - frames[starts], "frames"


def _states(states: Sequence[Sequence[float] | None]) -> Float:
    widths = {len(state) for state in states if state is not None}
    if len(widths) != 1 or any(state is None for state in states):
        return np.zeros((len(states), 1))  # constant: says nothing
    return np.asarray(states, np.float64)


def _words(instructions: Sequence[str]) -> Float:
    """Which words an instruction has, (row, word), 0 or 1."""
    split = [set(text.lower().split()) for text in instructions]
    words = sorted(set().union(*split))
    return np.array([[float(word in own) for word in words] or [0.0] for own in split])


def _statistics(
    store: Store, chosen: Chosen, number: Mapping[str, int], of: Int, moment: Int,
    weighting: Weighting,
) -> Float:  # fmt: skip
    """Metrics of every head, (row, metric x head)."""
    table = store.sql(f"""
SELECT episode, keyframe,
       dense_rank() OVER (ORDER BY phase, query_group, camera, layer, head) - 1 AS head,
       {", ".join(f'"{name}"' for name in SEEN)}
FROM head_stats
WHERE {chosen.condition} AND variant = 'base' AND weighting = '{weighting}' AND phase <> '{VISION}'
      AND stands_for_phase(run, phase, step)""").to_arrow_table()
    if not table.num_rows:
        raise NotFoundError(
            f"no statistics of {weighting} attention in {chosen.run}: value norms are kept by an ingest "
            "without --no-values, of policies that show them"
        )
    starts = np.searchsorted(of, np.arange(len(number)))
    codes = table["episode"].combine_chunks().dictionary_encode()
    known = np.array([number.get(name, -1) for name in codes.dictionary.to_pylist()])
    episode = known[codes.indices.to_numpy()]
    inside = episode >= 0
    row = starts[episode[inside]] + table["keyframe"].to_numpy()[inside]
    head = table["head"].to_numpy()[inside]
    values = np.full((len(of), len(SEEN), int(head.max()) + 1), np.nan)
    for at, name in enumerate(SEEN):
        values[row, at, head] = table[name].to_numpy()[inside]
    return values.reshape(len(of), -1)


def _hidden(store: Store, chosen: Chosen, ids: Sequence[str], rows: int) -> Float:
    """Last hidden states of the action tokens, mean over them, (row, feature)."""
    episodes = [store.episode(each, run=chosen.run) for each in ids]
    acting = [
        path
        for path, about in episodes[0].spec.phases.items()
        if about.hidden is not None and about.hidden.last
    ]
    if not acting:
        raise NotFoundError(
            f"{episodes[0].name}: no last hidden states; ingest again, without --no-hidden, a policy that "
            "shows them"
        )
    path = acting[-1]
    found = []
    for episode in episodes:
        spec = episode.phase(path)
        step = standing_step(spec.phase, spec.steps)
        states = episode.hidden(path, tokens="last", step=step).transpose("keyframe", "query", ...)
        found.append(np.asarray(states.mean("query", skipna=True).values, np.float64))
    whole = np.concatenate(found)
    if len(whole) != rows or whole.ndim != 2:
        raise ValueError("hidden states are of other keyframes than the tables")
    return whole
