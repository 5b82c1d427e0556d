"""What a ``cnn-<digest>`` part holds: one layer of a convolutional network, looked at in one way.

::

    cnn.zarr/            attributes: attnstore_cnn, the description
      image              filter channel row col                        (kind filters)
      history            filter iteration channel row col              (kind filters)
      activation         keyframe filter row col                       (kind activations)
      gradient           keyframe filter channel row col               (kind guided)
      input              keyframe height width color, uint8            (activations and guided)
    cnn_objective.parquet   (filters)   cnn_response.parquet   (activations, guided)

A part with keyframes of a stored episode lies beside that episode's ``base``. What belongs to no
episode lies in a run of the network's own (`network_run`), as docs/decisions/011-cnn.md says.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ..arrays.groups import small_array
from ..format.documents import check
from ..format.version import described, written
from .run import RunConfig

GROUP = "cnn.zarr"
OBJECTIVE, RESPONSE = "cnn_objective", "cnn_response"
CNN_SEMANTICS = 1
"""Raised when a definition of what is computed changes."""
FILTERS_EPISODE = "network"
"""Id that stands for an episode in the network's own run, for what needs no image."""

Kind = Literal["filters", "activations", "guided"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class CnnSpec:
    """One layer of a network, and how it was looked at: what changes the numbers of a part."""

    kind: Kind
    network: str
    """For people: ``vgg16``; the digest decides."""
    weights: str
    """Where they are from: ``IMAGENET1K_V1``, a file's name, ``random weights, seed 0``."""
    trained: bool
    """False for random weights."""
    digest: str
    """SHA-256 over the weights."""
    layer: str
    """The convolution, as the network calls it."""
    conv: int
    """Its ordinal among the network's convolutions."""
    filters: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel of the input: value = (pixel / 255 - mean) / std."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The kind's own; JSON values."""
    camera: str | None = None
    """Of stored keyframes; None for an image of a file, and for filters."""
    frames: tuple[int, ...] = ()
    """Frame index of each keyframe."""
    semantics: int = CNN_SEMANTICS

    @property
    def part(self) -> str:
        """Name of the part: the same settings are the same part."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return f"cnn-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def network_run(spec: CnnSpec) -> RunConfig:
    """Run of a network's own, for what belongs to no episode of a dataset."""
    return RunConfig(
        policy=f"cnn:{spec.network}", checkpoint=spec.weights, checkpoint_digest=spec.digest,
        dtype="float32", dataset="none", cameras=("image",), stride=1, precision="float16",
        seed=0, options={"mean": list(spec.mean), "std": list(spec.std)},
        semantics=CNN_SEMANTICS,
    )  # fmt: skip


_DIMS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "image": (
        ("filter", "channel", "row", "col"), "float32",
        "the input that the filter answers most to; (pixel / 255 - mean) / std",
    ),
    "history": (
        ("filter", "iteration", "channel", "row", "col"), "float16",
        "the input after some iterations of the ascent, as image",
    ),
    "activation": (
        ("keyframe", "filter", "row", "col"), "float32",
        "output of the convolution, before any rectification",
    ),
    "gradient": (
        ("keyframe", "filter", "channel", "row", "col"), "float32",
        "guided backpropagation from the filter to the input, per unit of the input",
    ),
    "input": (
        ("keyframe", "height", "width", "color"), "uint8",
        "the image that the network was given, RGB",
    ),
}  # fmt: skip
_COORDINATES = {
    "filter": "channel of the convolution's output",
    "keyframe": "ordinal of the keyframe in this part",
    "iteration": "steps of the ascent that were done",
}  # fmt: skip


def create_group(path: Path, spec: CnnSpec) -> None:
    """Begin a part's Zarr group; its arrays are added one by one."""
    root = zarr.open_group(str(path), mode="w-", zarr_format=3)
    root.attrs.update({"attnstore_format": written(), "attnstore_cnn": asdict(spec)})


def create_array(
    path: Path, name: str, shape: Sequence[int], coordinates: Mapping[str, Sequence[int]]
) -> Any:
    """Define one of a part's arrays, empty.

    Parameters
    ----------
    path
        The group.
    coordinates
        Values along dimensions that do not just count: filters, iterations; the others have no array.

    Returns
    -------
    A Zarr array to be written along its first dimension, one index at a time.
    """
    dims, dtype, text = _DIMS[name]
    root = zarr.open_group(str(path), mode="r+")
    image = 3 if dims[-3:] in (("channel", "row", "col"), ("height", "width", "color")) else 2
    array = root.create_array(
        name,
        shape=tuple(shape),
        chunks=(*(1 for _ in shape[:-image]), *shape[-image:]),
        shards=(1, *shape[1:]),
        dtype=dtype,
        compressors=(
            BloscCodec(
                cname="zstd", clevel=3, shuffle="bitshuffle" if dtype != "uint8" else "shuffle"
            ),
            Crc32cCodec(),
        ),
        fill_value=0 if dtype == "uint8" else float("nan"),
        dimension_names=dims,
        attributes={"description": text},
    )
    for dim in dims:
        if dim in coordinates and dim not in root:
            values = np.asarray(coordinates[dim], np.int32)
            small_array(root, dim, values, (dim,), _COORDINATES[dim])
    return array


def add_frames(path: Path, frames: Sequence[int]) -> None:
    """Write which frame of the recording each keyframe is."""
    root = zarr.open_group(str(path), mode="r+")
    values: NDArray[np.int32] = np.asarray(frames, np.int32)
    small_array(root, "frame", values, ("keyframe",), "frame index in the recording")


def close_group(path: Path) -> None:
    """Write the group's consolidated metadata."""
    with warnings.catch_warnings():
        # Not yet in the v3 specification; readers that do not know it ignore it.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(zarr.open_group(str(path), mode="r+").store)


def read_spec(description: Mapping[str, Any], name: str) -> CnnSpec:
    """Read the description of a part from its Zarr group.

    Parameters
    ----------
    description
        The group's ``zarr.json``, from `Part.description`.
    name
        Of that file, for messages.

    Raises
    ------
    IntegrityError
        If there is none in it, or it breaks a rule of its schema.
    UnsupportedFormatError
        If a newer major version of the format wrote it.
    """
    with described(description, "attnstore_cnn", name) as raw:
        check(raw, "cnn", "attnstore_cnn")
        known = {f.name: raw[f.name] for f in fields(CnnSpec) if f.name in raw}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in known.items()
        }
        return CnnSpec(**values)
