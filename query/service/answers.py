"""What the service answers with, for OpenAPI: the shape of each JSON, with an example."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


def _shown(model: type[BaseModel]) -> Any:
    """Return a model's example, to be part of another one's."""
    extra: Any = model.model_config["json_schema_extra"]
    return extra["examples"][0]


class Health(BaseModel):
    """The service is up."""

    model_config = _example(status="ok", version="0.1.0")

    status: str
    version: str


class StoreAnswer(BaseModel):
    """A store that is served."""

    model_config = _example(
        id="toy", store_id="6f2b8c0d", runs=1, episodes=82, keyframes=1886, bytes=2_000_000_000
    )

    id: str
    store_id: str
    runs: int
    episodes: int
    keyframes: int
    bytes: int


class MetricAnswer(BaseModel):
    """A metric of heads, as in table `head_stats`."""

    model_config = _example(name="entropy", definition="-sum P log P / log N", unit="0..1")

    name: str
    definition: str
    unit: str


class RunAnswer(BaseModel):
    """One ingest configuration."""

    model_config = _example(
        run="pi0-ed4655632f", config={"policy": "pi0", "stride": 8, "seed": 0},
        provenance={"created": "2026-01-02T03:04:05+00:00"},
    )  # fmt: skip

    run: str
    config: dict[str, Any]
    provenance: dict[str, Any]


class Page(BaseModel):
    """Some of the rows, and how many there are."""

    model_config = _example(
        total=82, offset=0, limit=100,
        rows=[{"run": "pi0-ed4655632f", "episode": "2025-12-10_09-00-39-e63dbc45",
               "name": "success/2025-12-10/2025-12-10_09-00-39", "outcome": "success"}],
    )  # fmt: skip

    total: int
    offset: int
    limit: int
    rows: list[dict[str, Any]]


class SpanAnswer(BaseModel):
    """A contiguous run of tokens of one kind on an axis."""

    model_config = _example(
        name="image:hand_camera", kind="image", start=0, stop=256, camera="hand_camera",
        grid=[16, 16], role=None,
    )  # fmt: skip

    name: str
    kind: str
    start: int
    stop: int
    camera: str | None
    grid: list[int] | None
    role: str | None


class PhaseAnswer(BaseModel):
    """A phase's shape and axes."""

    model_config = _example(
        layers=18, heads=8, steps=None, query_groups=["task"], cameras=["hand_camera"],
        query=[_shown(SpanAnswer)],
        key=[_shown(SpanAnswer)],
    )  # fmt: skip

    layers: int
    heads: int
    steps: int | None
    query_groups: list[str]
    cameras: list[str]
    query: list[SpanAnswer]
    key: list[SpanAnswer]


class EpisodeAnswer(BaseModel):
    """What an episode is: everything that a viewer needs to ask for the rest."""

    model_config = _example(
        run="pi0-ed4655632f", episode="2025-12-10_09-00-39-e63dbc45",
        name="success/2025-12-10/2025-12-10_09-00-39", version="1-0123456789ab",
        outcome="success", task="cube", date="2025-12-10",
        instruction="put the cube in the bowl", precision="float16", rate=15.0, total_frames=180,
        frames=[0, 8, 16],
        cameras={"hand_camera": {"height": 360, "width": 640, "grid": [16, 16],
                                 "coverage": [[0.0, 1.0]], "geometry": {}}},
        phases={"prefix": _shown(PhaseAnswer)},
    )  # fmt: skip

    run: str
    episode: str
    name: str
    version: str
    outcome: str
    task: str | None
    date: str | None
    instruction: str
    precision: str
    rate: float | None
    total_frames: int | None
    frames: list[int]
    cameras: dict[str, dict[str, Any]]
    phases: dict[str, PhaseAnswer]


class ArrayAnswer(BaseModel):
    """An array with names; NaN is null."""

    model_config = _example(
        name="prefix_map", dims=["row", "col"], shape=[1, 2], dtype="float32",
        coords={"layer": {"dims": [], "values": 5}}, attrs={"camera": "hand_camera"},
        values=[[0.25, None]],
    )  # fmt: skip

    name: str | None
    dims: list[str]
    shape: list[int]
    dtype: str
    coords: dict[str, Any]
    attrs: dict[str, Any]
    values: Any


class ActiveHead(BaseModel):
    """The head of a layer whose map varies most, and by how much each does."""

    model_config = _example(
        phase="suffix", camera="hand_camera", layer=5, step=9, keyframe=None, head=3,
        variance=[0.0001, 0.0004], chosen_by="variance on the image",
    )  # fmt: skip

    phase: str
    camera: str
    layer: int
    step: int | None
    keyframe: int | None
    head: int | None
    """Null where no keyframe that is asked for has the camera."""
    variance: list[float | None]
    """By head."""
    chosen_by: str


class Matrix(BaseModel):
    """A metric of every layer and head."""

    model_config = _example(
        metric="entropy", definition="-sum P log P / log N", unit="0..1", phase="prefix",
        camera="hand_camera", query="task", step=0, keyframe=None, values=[[0.5, None]],
    )  # fmt: skip

    metric: str
    definition: str
    unit: str
    phase: str
    camera: str
    query: str
    step: int
    keyframe: int | None
    values: list[list[float | None]]


class Trace(BaseModel):
    """A metric at every keyframe."""

    model_config = _example(
        metric="drift", definition="Jensen-Shannon divergence", unit="bits, 0..1", phase="prefix",
        camera="hand_camera", query="task", step=0, layer=5, heads=[3], frames=[0, 8],
        values=[[None, 0.25]],
    )  # fmt: skip

    metric: str
    definition: str
    unit: str
    phase: str
    camera: str
    query: str
    step: int
    layer: int
    heads: list[int]
    frames: list[int]
    values: list[list[float | None]]
    """By head, then keyframe."""


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


class SqlAnswer(BaseModel):
    """A query's rows."""

    model_config = _example(
        columns=[{"name": "outcome", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}],
        rows=[["success", 80], ["failure", 2]],
    )

    columns: list[dict[str, str]]
    rows: list[list[Any]]


class NamedAnswer(BaseModel):
    """A ready-made question."""

    model_config = _example(
        name="camera-by-layer", question="Where does each layer look?", sql="select 1"
    )

    name: str
    question: str
    sql: str


class CompareAnswer(BaseModel):
    """Two groups of episodes compared, head by head; see `attnstore.query.groups.comparison`."""

    model_config = _example(
        a="success", b="failure", episodes_a=80, episodes_b=2, metric="entropy", phase="prefix",
        camera="hand_camera", family="144 tests", conclusive=False, notes=["..."],
        layers=[0], heads=[0], difference=[[0.01]], cliffs_delta=[[0.2]], p=[[0.5]], q=[[0.9]],
        significant=[[False]],
        table=[{"rank": 1, "layer": 0, "head": 0, "p": 0.5}],
    )  # fmt: skip

    a: str
    b: str
    episodes_a: int
    episodes_b: int
    metric: str
    phase: str
    camera: str
    family: str
    conclusive: bool
    notes: list[str]
    layers: list[int]
    heads: list[int]
    difference: list[list[float | None]]
    cliffs_delta: list[list[float | None]]
    p: list[list[float | None]]
    q: list[list[float | None]]
    significant: list[list[bool]]
    table: list[dict[str, Any]]


class Failure(BaseModel):
    """Why a request is not answered."""

    model_config = _example(error={"code": "not_found", "message": "no store 'x'; there are: toy"})

    error: dict[str, str]
