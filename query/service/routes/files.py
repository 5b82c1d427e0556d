"""The store's own files, read-only: for copies of it, and for any Zarr or Parquet reader.

A path is one of the store's own shapes made of ids, and below an attempt one that its commit
lists; nothing else is looked up, so that no path leads anywhere. Files below ``data/`` never
change: their addresses may be kept for ever.

That is what a copy needs (the contract is in `attnstore.store.remote.transport`): the log's entries
have numbers, the one after the last is a 404, and a commit lists its files with size and SHA-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import FileResponse, Response

from attnstore.store.catalog import NAME as GENERATION
from attnstore.store.catalog import NEWEST
from attnstore.store.commits import MARKER, SAFE
from attnstore.store.commits.layout import ENTRY
from attnstore.store.commits.part import resolve

from ..endpoint import BINARY
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Parameters
from ..payload import IMMUTABLE, REVALIDATE, is_known
from ..served import ServedStore
from ..service import service_of

router = new_router("/v1/stores/{store}")
_TYPES = {".json": "application/json"}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": BINARY, "application/json": {"schema": {}}}},
    206: {"description": "A part of the file, as header Range asked for"},
    416: {"description": "The range lies outside the file"},
}


@router.head("/files/{path:path}", response_class=FileResponse, responses=_ANSWERS)
@router.get("/files/{path:path}", response_class=FileResponse, responses=_ANSWERS)
async def file(
    request: Request, store: str, path: str, parameters: Annotated[Parameters, Query()]
) -> Response:
    """Return a file of the store: its marker, a run, a commit, or a file that a commit lists."""
    service = service_of(request)
    served = service.store(store)
    found, digest, fixed = await service.read(lambda: _find(served, path))
    headers = {"ETag": f'"{digest}"', "Cache-Control": IMMUTABLE if fixed else REVALIDATE}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    kind = _TYPES.get(found.suffix, "application/octet-stream")
    return FileResponse(found, media_type=kind, headers=headers)


def _tag(file: Path) -> str:
    status = file.stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _find(store: ServedStore, path: str) -> tuple[Path, str, bool]:
    """Return a file, what tells its content, and whether it never changes.

    Raises
    ------
    Refusal
        404 for everything that a copy of the store does not need.
    """
    paths, names = store.paths, path.split("/")
    match names:
        case ["attnstore.json"]:
            found = paths.root / MARKER
        case ["runs", name] if name.endswith(".json") and _is_id(name.removesuffix(".json")):
            found = paths.runs / name
        case ["catalog", name] if GENERATION.fullmatch(name) or name == NEWEST:
            found = paths.catalog / name
        case ["commits", "log", name] if ENTRY.fullmatch(name):
            found = paths.log / name
        case ["data", run, episode, attempt, *inner] if all(map(_is_id, (run, episode, attempt))):
            return _committed(store, run, episode, attempt, "/".join(inner))
        case _:
            raise Refusal(404, "no such file")
    if not found.is_file():
        raise Refusal(404, "no such file")
    return resolve(found, paths.root), _tag(found), names[-1] not in (MARKER, NEWEST)


def _committed(
    store: ServedStore, run: str, episode: str, attempt: str, inner: str
) -> tuple[Path, str, bool]:
    part, _, id = attempt.rpartition(".")
    listing = store.listing(run, episode, part, id) if part else None
    if listing is None or inner not in listing.digests:
        raise Refusal(404, "no such file in a commit")
    found = resolve(listing.directory / inner, store.paths.root)
    if not found.is_file():
        raise Refusal(404, "a file that a commit lists is missing")
    return found, listing.digests[inner], True


def _is_id(name: str) -> bool:
    return SAFE.fullmatch(name) is not None
