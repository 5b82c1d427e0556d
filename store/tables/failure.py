"""Tables of failure-... parts: whether a failure is seen coming."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from .columns import (
    EPISODE,
    FLOAT32,
    FRAME,
    INT16,
    INT32,
    KEYFRAME,
    RUN,
    SPLIT,
    STRING,
    WEIGHTING,
    Column,
    Table,
)

_PART = Column("part", STRING, "failure-...: digest of what was asked for")
_WHAT = (
    SPLIT,
    Column("features", STRING, "attention, hidden, both; or a baseline: elapsed, state, instruction, trivial (all three)"),
    Column("model", STRING, "logistic (regression on a call's features) or cumulative (on their mean over the calls so far)"),
)  # fmt: skip
_ALPHA = Column("alpha", FLOAT32, "promised rate of successes with an alarm", "0..1")

_TABLES = (
    Table(
        "failure_scores",
        "the score of one call of an episode, by a model that was fitted on other episodes, and the band that raises an alarm",
        (
            RUN, EPISODE, _PART, KEYFRAME, FRAME, *_WHAT,
            WEIGHTING,
            Column("elapsed", FLOAT32, "since the episode's first keyframe, in the unit of failure_results", "s"),
            Column("fold", INT16, "0-based; a score is compared with those of its own fold only"),
            Column("score", FLOAT32, "probability of failure, failures and successes as likely", "0..1"),
            Column("band", FLOAT32, "largest score at this call that raises no alarm; NULL if none would"),
            Column("alarm", pa.bool_(), "score above band, at this call"),
            _ALPHA,
        ),
    ),
    Table(
        "failure_results",
        "how well scores rank failures above successes, at one call, among episodes that were still running; its episode stands for many: across-episodes",
        (
            RUN, EPISODE, _PART, *_WHAT,
            WEIGHTING,
            Column("strata", STRING, "SQL expression on episodes; only those in which it is the same are compared; NULL: all are"),
            Column("moment", INT32, "ordinal of the call; NULL: all calls together, pairs of the same call"),
            Column("elapsed", FLOAT32, "median over episodes since the first keyframe; NULL of all calls together", "s, or frames"),
            Column("unit", STRING, "of elapsed: s or frames"),
            Column("failures", INT32, "failures that were still running; NULL of all calls together"),
            Column("successes", INT32, "successes that were still running; NULL of all calls together"),
            Column("auroc", FLOAT32, "area under the receiver operating characteristic: how often a failure's score is above a success'; pairs of a fold only; NULL below 5 of an outcome", "0..1"),
            Column("low", FLOAT32, "lower end of the 95 % interval, bootstrap over episodes; NULL as auroc", "0..1"),
            Column("high", FLOAT32, "upper end; NULL as auroc", "0..1"),
            Column("shuffled", FLOAT32, "mean auroc where outcomes were shuffled among episodes before fitting; NULL of baselines", "0..1"),
            Column("p", FLOAT32, "share of shuffled ones, and this, whose largest auroc over calls is at least this one's: corrected over calls; NULL of baselines", "0..1"),
            Column("gain", FLOAT32, "auroc minus that of the trivial baseline with the same model, in the same episodes; NULL of baselines", "-1..1"),
            Column("gain_low", FLOAT32, "lower end of its 95 % interval; NULL as gain", "-1..1"),
            Column("gain_high", FLOAT32, "upper end; NULL as gain", "-1..1"),
        ),
    ),
    Table(
        "failure_alarms",
        "how often the alarm was raised, and when; its episode stands for many: across-episodes",
        (
            RUN, EPISODE, _PART, *_WHAT,
            WEIGHTING,
            _ALPHA,
            Column("successes", INT32, "successes that were tested"),
            Column("false_alarms", INT32, "of them, with an alarm at any call"),
            Column("failures", INT32, "failures that were tested"),
            Column("detected", INT32, "of them, with an alarm at any call"),
            Column("at", FLOAT32, "median over detected failures of the alarm's time, since the first keyframe; NULL if none", "s, or frames"),
            Column("before_end", FLOAT32, "median over detected failures of the time from the alarm to the last keyframe; NULL if none", "s, or frames"),
            Column("unit", STRING, "of at and before_end: s or frames"),
        ),
    ),
)  # fmt: skip

FAILURE_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})
"""Tables of failure-... parts."""
