"""The user's own SQL, and ready-made questions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ...sql.named import NAMED, named_query
from ..answers import NamedAnswer, SqlAnswer, SqlQuestion
from ..guard.refusal import Refusal
from ..parameters import Parameters
from ..payload import MEDIA_TYPES, chosen_format, respond, respond_json
from ..service import service_of
from ..sql.sandbox import FORMS, Form

router = APIRouter(prefix="/v1/stores/{store}")
_BINARY: Any = {"schema": {"type": "string", "format": "binary"}}
ROWS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": SqlAnswer,
        "content": {MEDIA_TYPES[form]: _BINARY for form in FORMS if form != "json"},
    }
}


class SqlParameters(Parameters):
    """The form of the rows, instead of header Accept."""

    format: Literal["json", "ndjson", "csv", "arrow", "parquet"] | None = None


@router.get("/queries", response_model=list[NamedAnswer])
async def queries(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Response:
    """List the ready-made questions."""
    service_of(request).store(store)
    shown = [{"name": q.name, "question": q.question, "sql": q.sql} for q in NAMED.values()]
    return respond_json(request, shown)


@router.get("/queries/{name}", responses=ROWS)
async def query(
    request: Request, store: str, name: str, parameters: Annotated[SqlParameters, Query()]
) -> Response:
    """Ask a ready-made question."""
    return await _ask(request, store, named_query(name).sql, parameters)


@router.post("/sql", responses=ROWS)
async def sql(
    request: Request,
    store: str,
    question: SqlQuestion,
    parameters: Annotated[SqlParameters, Query()],
) -> Response:
    """Run one query, `SELECT` or alike, on the tables of docs/schema.md.

    It runs in a process of its own, that can read nothing else, and is stopped after a time.
    """
    if (question.query is None) == (question.named is None):
        raise Refusal(400, "give a query or the name of a ready-made one")
    text = named_query(question.named).sql if question.named is not None else question.query
    assert text is not None
    return await _ask(request, store, text, parameters)


async def _ask(request: Request, store: str, text: str, parameters: SqlParameters) -> Response:
    service = service_of(request)
    form: Form = chosen_format(request, FORMS, parameters.format)  # type: ignore[assignment]  # of FORMS
    body = await service.users_sql(service.store(store), text, form, request)
    headers = {"Cache-Control": "no-store"}
    if form in ("csv", "arrow", "parquet"):
        headers["Content-Disposition"] = f'attachment; filename="rows.{form}"'
    return respond(request, body, MEDIA_TYPES[form], headers)
