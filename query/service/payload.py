"""Answers as bytes: arrays as npy or JSON, entity tags, compression."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
import xarray as xr
from starlette.requests import Request
from starlette.responses import Response

from .answers import ArrayAnswer, Coordinate
from .guard.refusal import Refusal

T = TypeVar("T")
NPY = "application/x-npy"
JSON = "application/json"
MEDIA_TYPES = {
    "json": JSON,
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "npy": NPY,
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
}
"""By the name that parameter ``format`` takes."""
REVALIDATE = "private, no-cache"
"""Kept by the browser, asked for again with the entity tag: usually answered by 304."""
IMMUTABLE = "private, max-age=31536000, immutable"
_SMALL = 1024
_TEXT = frozenset({JSON, "application/x-ndjson", "text/csv"})
_RELEASE = version("attnstore")


class Json(Response, Generic[T]):
    """An answer whose body is a T as JSON, or 304. An endpoint that returns it is documented by T."""

    media_type = JSON


def chosen_format(request: Request, offered: Sequence[str], asked: str | None = None) -> str:
    """Pick the form of an answer: by parameter ``format``, else by ``Accept``.

    Parameters
    ----------
    offered
        Names of `MEDIA_TYPES`; the first one answers who has no preference.

    Raises
    ------
    Refusal
        406, with what there is.
    """
    if asked is not None:
        return asked
    ranges = []
    for position, item in enumerate(request.headers.get("accept", "*/*").split(",")):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if quality > 0:
            ranges.append((-quality, position, name))
    for _, _, name in sorted(ranges):
        for form in offered:
            media = MEDIA_TYPES[form]
            if name in ("*/*", media, media.partition("/")[0] + "/*"):
                return form
    known = ", ".join(MEDIA_TYPES[form] for form in offered)
    raise Refusal(406, f"this is answered as {known}")


def entity_tag(*identity: object) -> str:
    """Make a tag from what determines an answer: the version of its data and the request."""
    text = json.dumps([_RELEASE, *map(str, identity)], ensure_ascii=False)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def is_known(request: Request, tag: str) -> bool:
    """Whether the client has what an entity tag is of."""
    known = {
        t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")
    }
    return tag in known or "*" in known


def respond(
    request: Request, body: bytes, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with bytes; text is compressed if the client takes that."""
    content, said = _packed(request, body, media_type, headers)
    # media types of text get their charset from here, and JSON has none
    kind = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
    return Response(content, headers={**said, "Content-Type": kind})


def json_body(value: Any) -> bytes:
    """Write JSON: NaN and infinities are null, NumPy arrays nested lists of short numbers."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def respond_json(request: Request, value: T, headers: Mapping[str, str] | None = None) -> Json[T]:
    """Answer with JSON; without a tag in `headers`, with one of its content, or 304."""
    body = json_body(value)
    said = {"Cache-Control": REVALIDATE, **(headers or {})}
    if "ETag" not in said:
        said["ETag"] = entity_tag(hashlib.sha256(body).hexdigest())
        if is_known(request, said["ETag"]):
            return Json(status_code=304, headers=said)
    content, said = _packed(request, body, JSON, said)
    return Json(content, headers=said)


def _packed(
    request: Request, body: bytes, media_type: str, headers: Mapping[str, str] | None
) -> tuple[bytes, dict[str, str]]:
    said = {"Vary": "Accept, Accept-Encoding", **(headers or {})}
    if media_type in _TEXT and len(body) >= _SMALL and _takes_gzip(request):
        # Level 1: text of numbers shrinks 4 times at 100 MB/s; higher levels gain a tenth.
        packer = zlib.compressobj(1, wbits=31)
        body = packer.compress(body) + packer.flush()
        said["Content-Encoding"] = "gzip"
        if "ETag" in said:
            said["ETag"] = f"W/{said['ETag'].removeprefix('W/')}"
    return body, said


def array_body(array: xr.DataArray, form: str) -> tuple[bytes, dict[str, str]]:
    """Write an array.

    Returns
    -------
    ``npy``: the values alone, with header ``X-Attnstore-Dims``; ``json``: ``dims``, ``shape``,
    ``dtype``, ``coords``, ``attrs`` and ``values`` as nested lists, NaN as null.
    """
    values = np.ascontiguousarray(array.values)
    headers = {"X-Attnstore-Dims": ",".join(map(str, array.dims))}
    if form == "npy":
        stream = io.BytesIO()
        np.save(stream, values, allow_pickle=False)
        return stream.getvalue(), headers
    # JSON has no half precision; as float32 a value keeps its shortest spelling.
    shown = values.astype(np.float32) if values.dtype == np.float16 else values
    answer = ArrayAnswer(
        name=None if array.name is None else str(array.name),
        dims=[*map(str, array.dims)],
        shape=values.shape,
        dtype=str(values.dtype),
        coords={
            str(name): Coordinate([*map(str, coord.dims)], _plain(coord.values))
            for name, coord in array.coords.items()
        },
        attrs={str(name): value for name, value in array.attrs.items()},
        values=shown if shown.ndim else shown.item(),
    )
    return json_body(answer), headers


def _plain(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype.kind in "US" or values.ndim == 0:
        return values.tolist()
    return np.ascontiguousarray(values)


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "").lower()
