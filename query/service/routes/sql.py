"""The user's own SQL, and ready-made questions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from attnstore.store.catalog.tables import CATALOG, sql_type
from attnstore.store.tables.columns import Table
from attnstore.store.tables.inventory import ALL_TABLES
from attnstore.store.tables.ledger import LEDGER

from ...sql.named import NAMED, named_query
from ..answers import NamedAnswer, SqlAnswer, TableAnswer, TableColumn
from ..endpoint import binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Parameters
from ..payload import MEDIA_TYPES, Json, chosen_format, respond, respond_json
from ..service import service_of
from ..sql.sandbox import FORMS, Form

router = new_router("/v1/stores/{store}")
catalog_router = new_router("/v1")
ROWS = binary(*(MEDIA_TYPES[form] for form in FORMS if form != "json"))


class SqlQuestion(BaseModel):
    """One SQL query, or the name of a ready-made one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "select outcome, count(*) as n from episodes group by outcome"},
                {"named": "camera-by-layer"},
            ]
        },
    )

    query: str | None = None
    named: str | None = None


class SqlParameters(Parameters):
    """The form of the rows, instead of header Accept."""

    format: Literal["json", "ndjson", "csv", "arrow", "parquet"] | None = None


@catalog_router.get("/tables")
async def tables(
    request: Request, parameters: Annotated[Parameters, Query()]
) -> Json[list[TableAnswer]]:
    """List the tables that SQL may ask, with every column's definition."""
    return respond_json(
        request, [_told(t) for t in (*CATALOG.values(), *ALL_TABLES.values(), LEDGER)]
    )


def _told(table: Table) -> TableAnswer:
    columns = [
        TableColumn(name=c.name, type=sql_type(c.type), unit=c.unit, definition=c.definition)
        for c in table.columns
    ]
    return TableAnswer(table.name, table.row, columns)


@router.get("/queries")
async def queries(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Json[list[NamedAnswer]]:
    """List the ready-made questions."""
    service_of(request).store(store)
    return respond_json(request, [NamedAnswer(q.name, q.question, q.sql) for q in NAMED.values()])


@router.get("/queries/{name}", responses=ROWS)
async def query(
    request: Request, store: str, name: str, parameters: Annotated[SqlParameters, Query()]
) -> Json[SqlAnswer] | Response:
    """Ask a ready-made question."""
    return await _ask(request, store, named_query(name).sql, parameters)


@router.post("/sql", responses=ROWS)
async def sql(
    request: Request,
    store: str,
    question: SqlQuestion,
    parameters: Annotated[SqlParameters, Query()],
) -> Json[SqlAnswer] | Response:
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
