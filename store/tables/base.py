"""Tables of a base part: what an ingest writes of an episode."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from .columns import (
    CAMERA,
    EPISODE,
    FLOAT32,
    FLOAT64,
    FRAME,
    HEAD,
    INT16,
    INT32,
    INT64,
    KEYFRAME,
    LAYER,
    PHASE,
    QUERY_GROUP,
    RUN,
    STEP,
    STRING,
    TOKEN_CAMERA,
    VARIANT,
    WEIGHTING,
    Column,
    Table,
)

METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "camera_mass": ("sum over the camera's patches of coverage * mean attention", "share of attention, 0..1"),
        "letterbox_mass": ("sum over the camera's patches of (1 - coverage) * mean attention", "share of attention, 0..1"),
        "letterbox_max": ("largest of (1 - coverage) * mean attention over the camera's patches", "share of attention, 0..1"),
        "variance": ("variance over the image of the raw map (mean over query tokens), patches weighted by coverage; letterbox takes no part; grows with the square of camera_mass: ranks heads within a camera", "squared share"),
        "grid_variance": ("variance of the raw map over all patches, letterbox like any other (the rule of semantics 1)", "squared share"),
        "max": ("largest of coverage * mean attention over the camera's patches", "share of attention, 0..1"),
        "entropy": ("-sum P log P / log N over the patches that show image; comparable across heads and cameras; NULL, like all that is made of P, where the image gets no attention", "0..1"),
        "top10_mass": ("share of P on the top 10 % of patches", "0..1"),
        "gini": ("Gini coefficient of P over patches", "0..1"),
        "confidence": ("mean over the group's query tokens of their largest weight on any key", "0..1"),
        "drift": ("Jensen-Shannon divergence of P from the previous keyframe; NULL at the first and where one of them has no P", "bits, 0..1"),
        "step_drift": ("Jensen-Shannon divergence of P from the previous step; NULL at the first, in one-pass phases and where one of them has no P", "bits, 0..1"),
    }
)  # fmt: skip
"""Per-head metrics of ``head_stats``: definition and unit. Semantics version 2, `attnstore.store.format.statistics`."""

_HEAD_KEYS = (
    RUN,
    EPISODE,
    VARIANT,
    KEYFRAME,
    FRAME,
    PHASE,
    STEP,
    LAYER,
    HEAD,
    QUERY_GROUP,
    WEIGHTING,
    CAMERA,
)

_TABLES = (
    Table(
        "keyframes",
        "one keyframe of an episode",
        (
            RUN, EPISODE, VARIANT, KEYFRAME, FRAME,
            Column("timestamp", FLOAT64, "time since the first frame; NULL if not recorded", "s"),
            Column("instruction", STRING, "the prompt that the policy got"),
            Column("seed", INT64, "seed of the initial noise"),
            Column("state", pa.list_(FLOAT32), "recorded robot state", "dataset units"),
            Column("action_recorded", pa.list_(FLOAT32), "recorded action", "dataset units"),
            Column("row_sum_min", FLOAT32, "smallest sum of an attention row over keys, all phases"),
            Column("row_sum_max", FLOAT32, "largest sum of an attention row over keys, all phases"),
            Column("generated", STRING, "text that the policy generated, without markers such as end-of-sequence; NULL if it generates none", optional=True),
        ),
    ),
    Table(
        "frames",
        "one camera image of a keyframe, plain: every decoder shows the same pixels",
        (
            RUN, EPISODE, KEYFRAME, FRAME, CAMERA,
            Column("image", pa.binary(), "encoded image"),
            Column("media_type", STRING, "image/jpeg or image/png"),
            Column("height", INT32, "height of the image", "pixels"),
            Column("width", INT32, "width of the image", "pixels"),
            Column("geometry", STRING, "JSON of the transform from these pixels to the patch grid"),
        ),
    ),
    Table(
        "spans",
        "one span of tokens on one axis of a phase at one keyframe",
        (
            RUN, EPISODE, KEYFRAME, PHASE,
            Column("axis", STRING, "query or key"),
            Column("span", STRING, "name, unique on its axis"),
            Column("kind", STRING, "image, text, state, action, readout or other"),
            Column("role", STRING, "task (the instruction), repeated (the instruction beside the images once more), state, generated, template (all other text, such as BOS, labels, a newline) or padding (of an instruction, where the model attends to it); NULL for tokens that are no text"),
            TOKEN_CAMERA,
            Column("start", INT32, "first index on the stored axis"),
            Column("stop", INT32, "one past the last index that exists at this keyframe"),
            Column("reserved_stop", INT32, "one past the last index kept for the span in this episode"),
            Column("rows", INT32, "rows of the patch grid; NULL for tokens of no image"),
            Column("cols", INT32, "columns of the patch grid; NULL for tokens of no image"),
            Column("model_start", INT32, "first index in the model's own sequence, padding included"),
        ),
    ),
    Table(
        "tokens",
        "one text token at one keyframe",
        (
            RUN, EPISODE, KEYFRAME, PHASE,
            Column("axis", STRING, "query or key; step: the token that a step of phase decode chose"),
            Column("index", INT32, "index on the stored axis"),
            Column("span", STRING, "span that the token is in"),
            Column("role", STRING, "as in spans"),
            Column("token_id", INT32, "vocabulary index"),
            Column("text", STRING, "the string that the token stands for; of an action token the number, normalised"),
            Column("action_bin", INT32, "bin of the number that an action token stands for, from the lowest; NULL for other tokens", optional=True),
            Column("action_normalised", FLOAT64, "that number in the policy's normalised units; NULL for other tokens", optional=True),
            Column("action_value", FLOAT64, "that number un-normalised, as the robot gets it; NULL for other tokens", "robot units", optional=True),
            Column("action_coefficients", pa.list_(FLOAT64), "numbers of the action's spectrum (orthonormal DCT-II of the normalised chunk along its actions) that a FAST token stands for; NULL for other tokens", optional=True),
            Column("action_coefficient", INT32, "place of the first of them: frequency * action_dof + dimension of the action; NULL for other tokens", optional=True),
        ),
    ),
    Table(
        "head_stats",
        "one head's attention from one query group to one camera, at one keyframe and step, raw or weighted by values",
        (
            *_HEAD_KEYS,
            *(Column(name, FLOAT32, text, unit) for name, (text, unit) in METRICS.items()),
            Column("argmax_row", INT16, "row of the patch that max is of; NULL where max is 0"),
            Column("argmax_col", INT16, "column of the patch that max is of; NULL where max is 0"),
            Column("mass", pa.map_(STRING, FLOAT32), "share of attention on each coarse group of keys: every camera's tokens (image:CAMERA, its letterbox included), text by role (task, state, template, …), state, action, readout, others by name. Each is a name that key= takes, and the sum over those keys; together they sum to 1, the same for every camera's row", "0..1"),
        ),
    ),
    Table(
        "sinks",
        "a key that draws more than 0.3 of all queries' mean attention in at least 80 % of the keyframes",
        (
            RUN, EPISODE, VARIANT, PHASE, STEP, LAYER, HEAD, WEIGHTING,
            Column("key", INT32, "index on the stored key axis"),
            Column("span", STRING, "span that the key is in"),
            Column("text", STRING, "the token's string; NULL for other kinds"),
            TOKEN_CAMERA,
            Column("row", INT16, "patch row; NULL outside images"),
            Column("col", INT16, "patch column; NULL outside images"),
            Column("fraction", FLOAT32, "share of the keyframes above the threshold", "0..1"),
            Column("mass", FLOAT32, "mean attention of all valid queries to this key, over keyframes", "0..1"),
        ),
    ),
    Table(
        "episode_stats",
        "a head's metrics over an episode's keyframes, raw or weighted by values",
        (
            RUN, EPISODE, VARIANT, PHASE, STEP, LAYER, HEAD, QUERY_GROUP, WEIGHTING, CAMERA,
            Column("keyframes", INT32, "number of keyframes aggregated"),
            *(
                Column(f"{name}_{aggregate}", FLOAT32, f"{word} over keyframes of {name}", unit)
                for name, (_, unit) in METRICS.items()
                for aggregate, word in (("mean", "mean"), ("sd", "standard deviation (n - 1)"), ("max", "maximum"))
            ),
        ),
    ),
)  # fmt: skip

TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})
"""Tables of every base part."""

TOKEN_METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "norm": ("Euclidean norm of the hidden state after the layer, residual stream included", "the model's activations"),
        "cosine_previous": ("cosine of the hidden state after the layer to that before it; NULL if one of them is 0", "-1..1"),
        "cosine_embedding": ("cosine of the hidden state after the layer to that which enters layer 0; NULL if one of them is 0", "-1..1"),
    }
)  # fmt: skip
"""Metrics of ``token_stats``: definition and unit. In float32, from the hidden states as computed."""

_OPTIONAL_TABLES = (
    Table(
        "token_stats",
        "one token's hidden state after one layer, at one keyframe and step; only from an ingest with --token-stats",
        (
            RUN, EPISODE, VARIANT, KEYFRAME, PHASE, TOKEN_CAMERA, STEP, LAYER,
            Column("index", INT32, "index on the stored query axis, as in tokens where axis = 'query'"),
            Column("span", STRING, "span that the token is in"),
            Column("kind", STRING, "image, text, state, action, readout or other"),
            Column("role", STRING, "as in spans"),
            *(Column(name, FLOAT32, text, unit) for name, (text, unit) in TOKEN_METRICS.items()),
        ),
    ),
    Table(
        "hidden_states",
        "one span of a phase's queries whose hidden states are stored in a form; the numbers are in attention.zarr",
        (
            RUN, EPISODE, VARIANT, PHASE,
            Column("form", STRING, "mean: over the span's tokens, at each layer; last: of each token, after the final norm, which the policy makes actions of; tokens: of each token, at each layer"),
            Column("span", STRING, "name of the span"),
            Column("kind", STRING, "image, text, state, action, readout or other"),
            Column("role", STRING, "as in spans"),
            TOKEN_CAMERA,
            Column("layers", pa.list_(INT16), "layers that are stored; -1: what enters layer 0; NULL for last, which is after all of them"),
            Column("steps", INT32, "steps that are stored, or reserved (phase decode); NULL in one-pass phases"),
            Column("tokens", INT32, "tokens of the span, as many as its longest has in the episode"),
            Column("features", INT32, "width of a hidden state"),
            Column("path", STRING, "of the array in attention.zarr"),
        ),
    ),
    Table(
        "calls",
        "one policy call of an episode that was recorded while the policy drove, which is a keyframe; its frame is the environment step",
        (
            RUN, EPISODE, VARIANT, KEYFRAME, FRAME,
            Column("seconds", FLOAT64, "how long the policy took when it drove", "s"),
            Column("rows", INT32, "observations in the batch that the call was a row of"),
            Column("executed", INT32, "actions of the chunk that were carried out before the next call; NULL if that is not known"),
            Column("action_difference", FLOAT32, "largest difference between the stored actions, which are of eager attention, and those that the policy gave when it drove; 0 if bit for bit the same", "normalised actions"),
        ),
    ),
)  # fmt: skip

OPTIONAL_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _OPTIONAL_TABLES})
"""Tables that a base part has when the ingest was asked for them, or its data set brings them."""
