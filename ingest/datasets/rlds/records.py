"""TFRecord files and the ``tf.train.Example`` in each record, read with protobuf and a CRC.

A record is its length (8 bytes, little-endian), the masked CRC-32C of those 8 bytes, the data, and the
data's masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord). The messages are those
of TensorFlow's ``example.proto`` and ``feature.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError

from ...optional import require
from ..base import copy_again

HEAD = struct.Struct("<QI")
TAIL = struct.Struct("<I")
LARGEST = 1 << 31
"""Bytes of a record that is read at all: protobuf's own limit."""

Values = NDArray[np.int64] | NDArray[np.float32] | Sequence[bytes]
"""What a feature holds, flat: a list of integers, of floats, or of bytes."""


def record_places(path: Path) -> list[tuple[int, int]]:
    """Find the records of a file by their lengths, without reading them.

    Returns
    -------
    (offset of the data, length) of each.

    Raises
    ------
    ValueError
        If a length is damaged, or the file ends within a record.
    OSError
        If the file cannot be read.
    """
    size = path.stat().st_size
    places: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                raise ValueError(f"it ends within the head of record {len(places)}")
            length, crc = HEAD.unpack(head)
            if _masked_crc(head[:8]) != crc:
                raise ValueError(f"the length of record {len(places)} is damaged (its CRC differs)")
            if at + HEAD.size + length + TAIL.size > size:
                raise ValueError(f"it ends within record {len(places)}, which has {length} bytes")
            places.append((at + HEAD.size, length))
            at += HEAD.size + length + TAIL.size
    return places


def read_example(episode: str, path: Path, place: tuple[int, int]) -> Mapping[str, Values]:
    """Read one record and parse its ``tf.train.Example``.

    Parameters
    ----------
    episode
        For the error.
    path, place
        The file, and one of its `record_places`.

    Returns
    -------
    Flat values by the feature's path: ``steps/observation/state``.

    Raises
    ------
    EpisodeError
        If the record is damaged or is no such message.
    MissingExtraError
        If protobuf is not installed.
    """
    at, length = place
    message = _example()()
    try:
        if length > LARGEST:
            raise ValueError(f"a record has at most {LARGEST} bytes; this one has {length}")
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(length)
            tail = file.read(TAIL.size)
        if len(data) < length or len(tail) < TAIL.size:
            raise ValueError("it ends within the record")
        if TAIL.unpack(tail)[0] != _masked_crc(data):
            raise ValueError("its data are damaged (the CRC differs)")
        message.ParseFromString(data)
    except (OSError, ValueError) as error:
        raise _damaged(episode, path, error) from error
    except Exception as error:  # protobuf's DecodeError, whose class an absent protobuf cannot name
        raise _damaged(episode, path, error) from error
    return {key: _values(feature) for key, feature in message.features.feature.items()}


def _damaged(episode: str, path: Path, error: Exception) -> EpisodeError:
    reason = " ".join(str(error).replace(str(path), path.name).split())[:200]
    return EpisodeError(
        episode, f"its record in {path.name} cannot be read: {reason}; {copy_again(path)}"
    )


def _values(feature: Any) -> Values:
    kind = feature.WhichOneof("kind")
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    return list(feature.bytes_list.value) if kind == "bytes_list" else []


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return int((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _example() -> type[Any]:
    """Make the message class of ``tf.train.Example`` from its field names and numbers."""
    require("google.protobuf", "ingest", "reading RLDS")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="attnstore/example.proto", package="attnstore.tf", syntax="proto3"
    )

    def message(name: str, parent: Any = file.message_type) -> Any:
        return parent.add(name=name)

    def field(
        of: Any, name: str, number: int, kind: int, *, many: bool = False, **more: Any
    ) -> Any:
        label = Field.LABEL_REPEATED if many else Field.LABEL_OPTIONAL
        return of.field.add(name=name, number=number, type=kind, label=label, **more)

    kinds = {
        "BytesList": Field.TYPE_BYTES,
        "FloatList": Field.TYPE_FLOAT,
        "Int64List": Field.TYPE_INT64,
    }
    for name, kind in kinds.items():
        field(message(name), "value", 1, kind, many=True)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(
        {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}.items(), 1
    ):
        field(
            feature, name, number, Field.TYPE_MESSAGE,
            type_name=f".attnstore.tf.{kind}", oneof_index=0,
        )  # fmt: skip
    features = message("Features")
    entry = message("FeatureEntry", features.nested_type)
    entry.options.map_entry = True
    field(entry, "key", 1, Field.TYPE_STRING)
    field(entry, "value", 2, Field.TYPE_MESSAGE, type_name=".attnstore.tf.Feature")
    field(
        features, "feature", 1, Field.TYPE_MESSAGE, many=True,
        type_name=".attnstore.tf.Features.FeatureEntry",
    )  # fmt: skip
    example = message("Example")
    field(example, "features", 1, Field.TYPE_MESSAGE, type_name=".attnstore.tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: type[Any] = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("attnstore.tf.Example")
    )
    return made
