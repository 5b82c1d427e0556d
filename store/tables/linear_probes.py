"""Tables of linear-probe-... parts: what can be read off hidden states, and from which episodes."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .columns import EPISODE, FLOAT32, INT16, INT32, PHASE, RUN, SPLIT, STRING, Column, Table

_PART = Column("part", STRING, "linear-probe-...: digest of what was asked for")

_TABLES = (
    Table(
        "linear_probes",
        "one linear probe, on one layer's hidden states or on the baseline, tested on unseen episodes or tasks; its episode stands for many: across-episodes",
        (
            RUN, EPISODE, _PART,
            Column("target", STRING, "what was to be read off: outcome, or SQL"),
            Column("kind", STRING, "classes or numbers"),
            SPLIT, PHASE,
            Column("span", STRING, "span of the hidden states"),
            Column("tokens", STRING, "mean (over the span's tokens) or last (mean over the last hidden states)"),
            Column("step", STRING, "step of the hidden states; NULL in one-pass phases"),
            Column("layer", INT16, "layer whose output it is; -1: what enters layer 0; NULL of the baseline and of the last hidden states"),
            Column("features", STRING, "hidden; or trivial: the baseline from time, robot state and instruction"),
            Column("score", FLOAT32, "balanced accuracy of classes, or R² of numbers (1 - squared errors / squared distances from the training rows' mean)", "0..1, R² to 1"),
            Column("low", FLOAT32, "lower end of the 95 % interval, bootstrap over episodes"),
            Column("high", FLOAT32, "upper end"),
            Column("chance", FLOAT32, "score of who knows nothing: 1 / classes, or 0"),
            Column("shuffled", FLOAT32, "mean score where whole episodes exchanged their targets before fitting; NULL if none were"),
            Column("shuffled_high", FLOAT32, "95 % of those scores are at most this; NULL if none were"),
            Column("gain", FLOAT32, "score minus that of the baseline in the same split; NULL of the baseline"),
            Column("gain_low", FLOAT32, "lower end of its 95 % interval; NULL as gain"),
            Column("gain_high", FLOAT32, "upper end; NULL as gain"),
            Column("p", FLOAT32, "of the gain, one-sided, signs of the episodes' gains flipped; NULL as gain"),
            Column("p_holm", FLOAT32, "p corrected over the layers of the split (Holm); NULL as gain"),
            Column("penalty", FLOAT32, "of the ridge regression, median over folds"),
            Column("episodes", INT32, "episodes with a target"),
            Column("keyframes", INT32, "keyframes with a target"),
            Column("classes", STRING, "JSON list of the classes; NULL of numbers"),
            Column("seed", INT32, "of folds, shuffles and intervals"),
        ),
    ),
    Table(
        "linear_probe_folds",
        "one episode's place in a split of a linear probe; its episode stands for many: across-episodes",
        (
            RUN, EPISODE, _PART, SPLIT,
            Column("tested", STRING, "id of the episode"),
            Column("fold", INT16, "0-based: the fold in which it is tested; in all others it is fitted on"),
        ),
    ),
)  # fmt: skip

LINEAR_PROBE_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})
"""Tables of linear-probe-... parts."""
