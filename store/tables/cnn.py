"""Tables of cnn-... parts: what filters of convolutional networks answer to."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .columns import (
    EPISODE,
    FLOAT32,
    INT16,
    INT32,
    RUN,
    STRING,
    Column,
    Table,
)

_CNN_KEYS = (
    RUN,
    EPISODE,
    Column("part", STRING, "cnn-...: digest of network, layer, filters and settings"),
    Column("network", STRING, "the convolutional network: vgg16"),
    Column("module", STRING, "the convolution, as the network calls it: features.10"),
    Column("conv", INT16, "0-based ordinal among the network's convolutions"),
    Column("filter", INT32, "0-based channel of the convolution's output"),
)
_CNN_TABLES = (
    Table(
        "cnn_objective",
        "one iteration of the ascent to the image that one filter answers most to",
        (
            *_CNN_KEYS,
            Column("iteration", INT32, "steps that were done before; the last row is of the result"),
            Column("objective", FLOAT32, "mean over positions of the positive part of the filter's output", "the network's activations"),
            Column("gradient_rms", FLOAT32, "root mean square over the input of the objective's gradient, before it is normalised", "activation per unit of the input"),
        ),
    ),
    Table(
        "cnn_response",
        "one filter's answer to one image",
        (
            *_CNN_KEYS,
            Column("kind", STRING, "activations or guided"),
            Column("keyframe", INT32, "ordinal of the keyframe in the episode; 0 for an image of a file"),
            Column("frame", INT32, "frame index in the recording; NULL for an image of a file"),
            Column("camera", STRING, "the dataset's camera name; NULL for an image of a file"),
            Column("mean", FLOAT32, "mean over positions of the filter's output; NULL of kind guided", "the network's activations"),
            Column("max", FLOAT32, "largest output over positions; NULL of kind guided", "the network's activations"),
            Column("active", FLOAT32, "share of positions with a positive output; NULL of kind guided", "0..1"),
            Column("value", FLOAT32, "the activation that was taken back to the input; NULL of kind activations", "the network's activations"),
            Column("relus", INT16, "rectifications on the way to the input, 0: the plain gradient; NULL of kind activations"),
        ),
    ),
)  # fmt: skip

CNN_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _CNN_TABLES})
"""Tables of cnn-... parts."""
