"""Linear probes: what can be read off hidden states, layer by layer, and whether it says more than the obvious.

A probe is a ridge regression from the hidden states of one span at one layer to a target of each keyframe: to its
value, or to one number a class. It is scored on episodes (or tasks) that it was not fitted on, all of which are
tested once. What a good score means is not clear alone, so it stands beside

- a *baseline* of the same kind from what needs no network: time, robot state, instruction;
- *shuffled* targets (Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks"): whole episodes
  exchange their sequences of values, so what keyframes of an episode have in common, and what time alone says, stays;
- a test of the gain over the baseline: signs of the episodes' gains are flipped, one-sided, corrected over layers
  (Holm 1979).

Nothing here knows a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import MissingExtraError, UsageError

Float = NDArray[np.float64]
Int = NDArray[np.intp]
Bool = NDArray[np.bool_]

TargetKind = Literal["classes", "numbers"]
Split = Literal["episodes", "tasks"]
SPLITS: tuple[Split, ...] = get_args(Split)

FEWEST = 10
"""Episodes below which there is no probe; and of each class half as many."""
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties to choose from, of features that are scaled to a mean square of 1 over all of them."""
INNER = 4
"""One part in so many of the training episodes chooses the penalty."""
RESAMPLES = 2000
FLIPS = 9999


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What is to be read off: one value for each row, which is a keyframe."""

    kind: TargetKind
    values: Float
    """(row,): a number, or of classes the ordinal."""
    classes: tuple[str, ...]
    """Their names; none of numbers."""
    episode: Int
    """(row,) ordinal of the row's episode; rows of an episode lie together."""
    task: NDArray[Any]
    """(episode,) the task of each."""
    names: tuple[str, ...]
    """Of the episodes."""

    @property
    def weights(self) -> Float:
        """(row,) an episode's rows weigh as much as another's."""
        return np.asarray(1.0 / np.bincount(self.episode)[self.episode])

    @property
    def chance(self) -> float:
        """Score of who knows nothing."""
        return 1 / len(self.classes) if self.kind == "classes" else 0.0


@dataclass(frozen=True, slots=True)
class Options:
    """How probes are fitted and judged; what changes their numbers."""

    folds: int = 5
    shuffles: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """A probe's outcome."""

    score: float
    """Balanced accuracy of classes, R² of numbers: on unseen groups."""
    interval: tuple[float, float]
    """95 %, of a bootstrap over episodes."""
    shuffled: Float
    """Scores with shuffled targets."""
    gain: float
    """Score minus the baseline's."""
    gain_interval: tuple[float, float]
    p: float
    """Of the gain, one-sided; NaN for the baseline itself."""
    penalty: float
    """Median over folds."""


def check_groups(target: Target, split: Split, folds: int) -> None:
    """Refuse to probe what cannot be told.

    Raises
    ------
    UsageError
        If there is one class alone, or too few episodes or tasks.
    """
    count = len(target.names)
    if count < FEWEST:
        raise UsageError(
            f"a probe takes at least {FEWEST} episodes, since it is tested on others than it is fitted on; "
            f"{count} have a value of the target"
        )
    if target.kind == "classes":
        if len(target.classes) < 2:
            raise UsageError(
                f"the target is {target.classes[0]!r} everywhere; a probe takes two values"
            )
        for i, name in enumerate(target.classes):
            own = len(np.unique(target.episode[target.values == i]))
            if own < FEWEST // 2:
                raise UsageError(
                    f"only {own} episodes have a keyframe where the target is {name!r}; a probe takes "
                    f"{FEWEST // 2}. Merge rare values in --target, or choose episodes with --where"
                )
    elif not np.ptp(target.values):
        raise UsageError(f"the target is {target.values[0]:g} everywhere; a probe takes two values")
    if split == "tasks" and len(np.unique(target.task)) < 2:
        raise UsageError("unseen tasks take two tasks")
    if folds < 2:
        raise UsageError(f"at least 2 folds; got {folds}")


def make_folds(target: Target, split: Split, folds: int, seed: int) -> Int:
    """Fold of each episode, (episode,), in which it is tested.

    Of episodes at random, their most frequent classes evenly; whole tasks, as evenly as they go.
    """
    rng = np.random.default_rng(seed)
    count = len(target.names)
    place = np.empty(count, np.intp)
    if split == "episodes":
        main = np.array([_main(target, e) for e in range(count)])
        start = 0
        for value in np.unique(main):
            own = rng.permutation(np.flatnonzero(main == value))
            place[own] = (start + np.arange(len(own))) % folds
            start += len(own)
        return place
    tasks, sizes = np.unique(target.task, return_counts=True)
    load = np.zeros(min(folds, len(tasks)))
    for task in np.argsort(-sizes, kind="stable"):
        place[target.task == tasks[task]] = int(load.argmin())
        load[load.argmin()] += sizes[task]
    return place


def _main(target: Target, episode: int) -> float:
    own = target.values[target.episode == episode]
    return float(np.bincount(own.astype(int)).argmax()) if target.kind == "classes" else 0.0


def shuffled_targets(target: Target, count: int, seed: int) -> Float:
    """Targets in which whole episodes have exchanged their sequences of values, (row, count).

    A sequence is stretched over the keyframes of the episode that gets it.
    """
    rng = np.random.default_rng([seed, 1])
    lengths = np.bincount(target.episode)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    found = np.empty((len(target.values), count))
    for i in range(count):
        giver = rng.permutation(len(lengths))[target.episode]
        place = np.arange(len(target.values)) - starts[target.episode]
        at = place * lengths[giver] // lengths[target.episode]
        found[:, i] = target.values[starts[giver] + at]
    return found


def predict(
    features: Float, targets: Float, target: Target, place: Int, seed: int
) -> tuple[Float, float]:
    """Predict every row from a fit on the other folds' rows.

    Parameters
    ----------
    features
        (row, feature).
    targets
        (row, variant): the target, then shuffled ones.
    place
        `make_folds`.

    Returns
    -------
    Predictions (row, variant): numbers, or the class's ordinal; and the median penalty.
    """
    ridge = _ridge()
    kinds = len(target.classes)
    coded = targets
    if kinds:
        coded = (
            (targets[:, :, None] == np.arange(kinds)).astype(np.float64).reshape(len(targets), -1)
        )
    found = np.empty_like(targets, np.float64)
    weights, rng, chosen = target.weights, np.random.default_rng([seed, 2]), []
    for fold in range(int(place.max()) + 1):
        test = place[target.episode] == fold
        train = ~test
        scaled = _scaled(features, train, weights)
        own = np.unique(target.episode[train])
        held = rng.permutation(own)[: max(1, len(own) // INNER)]
        inner = train & ~np.isin(target.episode, held)
        check = train & ~inner
        first = coded[:, : max(kinds, 1)]
        losses = []
        for penalty in PENALTIES:
            model = ridge(alpha=penalty).fit(
                scaled[inner], first[inner], sample_weight=weights[inner]
            )
            error = (_two(model.predict(scaled[check])) - first[check]) ** 2
            losses.append(float((error.sum(1) * weights[check]).sum()))
        penalty = PENALTIES[int(np.argmin(losses))]
        chosen.append(penalty)
        model = ridge(alpha=penalty).fit(scaled[train], coded[train], sample_weight=weights[train])
        raw = _two(model.predict(scaled[test]))
        if kinds:
            # Against how often a class is in the training rows, or the most frequent would win everywhere.
            share = np.average(coded[train], axis=0, weights=weights[train])
            spread = np.sqrt(np.clip(share * (1 - share), 1e-12, None))
            found[test] = ((raw - share) / spread).reshape(len(raw), -1, kinds).argmax(2)
        else:
            found[test] = raw
    return found, float(np.median(chosen))


def _two(values: Any) -> Float:
    found = np.asarray(values, np.float64)
    return found if found.ndim == 2 else found[:, None]


def _scaled(features: Float, train: Bool, weights: Float) -> Float:
    """Centred and scaled by the training rows; all features together have a mean square of 1.

    More features than training rows are turned to as many axes, which loses nothing to a ridge regression.
    """
    mean = np.average(features[train], axis=0, weights=weights[train])
    centred = features - mean
    sd = np.sqrt(np.average(centred[train] ** 2, axis=0, weights=weights[train]))
    kept = sd > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    if not kept.any():
        return np.zeros((len(features), 1))
    scaled = centred[:, kept] / sd[kept] / np.sqrt(kept.sum())
    if scaled.shape[1] > train.sum():
        axes = np.linalg.svd(scaled[train], full_matrices=False)[2]
        scaled = scaled @ axes.T
    return np.asarray(scaled)


class _Sums:
    """What scores are made of, by episode, so that resampling them is a product of matrices.

    Of classes the weight of rows and of right ones, (episode, class); of numbers squares of errors and of
    distances from what is known without features, (episode, 2).
    """

    def __init__(self, target: Target, predictions: Float, truth: Float, known: Float) -> None:
        count, weights = len(target.names), target.weights
        self.kind = target.kind

        def by_episode(values: Float) -> Float:
            return np.asarray(
                np.bincount(target.episode, values * weights, minlength=count), np.float64
            )

        if target.kind == "classes":
            of = [truth == i for i in range(len(target.classes))]
            right = [o & (predictions == truth) for o in of]
            self.parts = np.stack([by_episode(o.astype(float)) for o in (*right, *of)], 1)
        else:
            errors = ((truth - predictions) ** 2, (truth - known) ** 2)
            self.parts = np.stack([by_episode(e) for e in errors], 1)

    def score(self, counts: Float) -> Float:
        """Score of episodes that are there so often, (resample, episode): (resample,)."""
        total = counts @ self.parts
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.kind == "classes":
                kinds = total.shape[1] // 2
                return np.asarray(np.nanmean(total[:, :kinds] / total[:, kinds:], axis=1))
            return np.asarray(1 - total[:, 0] / total[:, 1])

    def loss(self) -> Float:
        """What each episode adds to 1 - score, (episode,)."""
        total = self.parts.sum(0)
        if self.kind == "classes":
            kinds = self.parts.shape[1] // 2
            share = total[kinds:] * kinds
            return np.asarray(((self.parts[:, kinds:] - self.parts[:, :kinds]) / share).sum(1))
        return np.asarray(self.parts[:, 0] / total[1])


def holm(p: Float) -> Float:
    """Adjusted p-values, the chance of any false one at most so large; NaN is no test.

    ``max over j <= i of (m - j + 1) p_(j)``, capped at 1; Holm 1979, Scand. J. Statist. 6(2).

    Examples
    --------
    >>> holm(np.array([0.01, np.nan, 0.04, 0.02])).round(3).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    found = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return found


def run_probes(
    features: Sequence[Float], baseline: Float, target: Target, place: Int, options: Options,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> list[Probed]:  # fmt: skip
    """Probe every layer's features, and the baseline, which comes first.

    Parameters
    ----------
    features
        (row, feature) of each layer.
    baseline
        (row, feature) of what needs no network.
    place
        Folds of the episodes: `make_folds`.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.
    """
    rng = np.random.default_rng([options.seed, 3])
    count = len(target.names)
    counts = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    signs = rng.choice([-1.0, 1.0], size=(FLIPS, count))
    shuffled = shuffled_targets(target, options.shuffles, options.seed)
    known = _known(target, place)
    every = np.concatenate([target.values[:, None], shuffled], 1)
    once = np.ones((1, count))
    found: list[Probed] = []
    base: _Sums | None = None
    for number, each in enumerate((baseline, *features)):
        now = f"layer {number} of {len(features)}" if number else "trivial"
        progress(number / (1 + len(features)), now)
        predictions, penalty = predict(each, every, target, place, options.seed)
        sums = _Sums(target, predictions[:, 0], target.values, known[:, 0])
        controls = []
        for i in range(options.shuffles):
            own = _known_of(target, shuffled[:, i], place)
            controls.append(
                _Sums(target, predictions[:, i + 1], shuffled[:, i], own).score(once)[0]
            )
        base = base or sums
        score, resampled = float(sums.score(once)[0]), sums.score(counts)
        gains = resampled - base.score(counts)
        per_episode = base.loss() - sums.loss()
        p = float("nan")
        if sums is not base:
            flipped = signs @ per_episode
            p = (1 + int((flipped >= per_episode.sum() - 1e-12).sum())) / (1 + FLIPS)
        gain = score - float(base.score(once)[0])
        controls_of = np.array(controls)
        found.append(Probed(score, _ends(resampled), controls_of, gain, _ends(gains), p, penalty))
    return found


def _known(target: Target, place: Int) -> Float:
    return _known_of(target, target.values, place)[:, None]


def _known_of(target: Target, values: Float, place: Int) -> Float:
    """What is predicted of each row without features: the mean of the training rows."""
    found, weights = np.empty(len(values)), target.weights
    for fold in range(int(place.max()) + 1):
        test = place[target.episode] == fold
        found[test] = np.average(values[~test], weights=weights[~test])
    return found


def _ends(values: Float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _ridge() -> Any:
    try:
        from sklearn.linear_model import Ridge
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "linear probes need scikit-learn: pip install 'attnstore[learn]'"
        ) from error
    return Ridge
