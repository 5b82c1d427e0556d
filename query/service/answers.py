"""What the service answers with: each JSON is declared here, once.

An endpoint makes one of these, `payload.json_body` writes it, and the OpenAPI document and the viewer's
types are made from it. They are dataclasses with NumPy arrays in them, not pydantic models: 64 MB of
weights are written in a second and are never copied into Python's lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema
from typing_extensions import TypedDict

from attnstore.store.commits.run import RunConfig
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Kind
from attnstore.store.recordings.progress import State
from attnstore.store.tables.columns import Table

Row = dict[str, Any]
R = TypeVar("R")


def _nested(depth: int, item: Mapping[str, Any]) -> tuple[Any, Any]:
    schema = dict(item)
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return GetPydanticSchema(lambda kind, handler: core_schema.any_schema()), WithJsonSchema(schema)


_INTEGER = {"type": "integer"}
_NUMBER = {"anyOf": [{"type": "number"}, {"type": "null"}]}  # NaN is null
Integers = Annotated[NDArray[np.integer[Any]], *_nested(1, _INTEGER)]
Numbers = Annotated[NDArray[np.floating[Any]], *_nested(1, _NUMBER)]
NumberRows = Annotated[NDArray[np.floating[Any]], *_nested(2, _NUMBER)]
Flags = Annotated[NDArray[np.bool_], *_nested(2, {"type": "boolean"})]
Values = Annotated[
    NDArray[Any] | float | None, *_nested(0, {"description": "Nested lists; NaN is null."})
]


class Answer:
    """An answer: its fields' docstrings are their descriptions in the document."""

    __slots__ = ()
    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Health(Answer):
    """The service is up."""

    status: str
    version: str


@dataclass(frozen=True, slots=True)
class StoreAnswer(Answer):
    """A store that is served."""

    id: str
    """By which the service knows it."""
    store_id: str
    """Given to the store when it was made."""
    runs: int
    episodes: int
    keyframes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class OutcomeCount(Answer):
    """Episodes of one outcome and task of a run."""

    run: str
    outcome: str
    task: str | None
    episodes: int
    keyframes: int


@dataclass(frozen=True, slots=True)
class LayerLook(Answer):
    """How much of a layer's attention falls on a camera, mean over heads, keyframes and episodes."""

    run: str
    phase: str
    query: str
    layer: int
    camera: str
    image: float | None
    """Share on what the camera shows."""
    letterbox: float | None
    """Share on its padding."""


@dataclass(frozen=True, slots=True)
class LookingHead(Answer):
    """One of the most active heads of a phase and camera, mean over keyframes and episodes."""

    run: str
    phase: str
    query: str
    camera: str
    layer: int
    head: int
    variance: float
    entropy: float | None
    image: float | None
    """Share of its attention on what the camera shows."""
    episode: str
    """In which it is most active."""
    keyframes: int
    """Of that episode."""


@dataclass(frozen=True, slots=True)
class Glimpse(Answer):
    """An episode that is worth opening, and where it is most active."""

    run: str
    episode: str
    name: str
    outcome: str
    instruction: str
    keyframes: int
    phase: str | None
    """Null without statistics, as what follows."""
    query: str | None
    camera: str | None
    layer: int | None


@dataclass(frozen=True, slots=True)
class CommittedParts(Answer):
    """The parts of one kind: base, objects, probe, cnn."""

    kind: str
    episodes: int
    parts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Reasons(Answer):
    """How often something is wrong, and what it is of the first."""

    count: int
    first: Sequence[str]


@dataclass(frozen=True, slots=True)
class Soundness(Answer):
    """Whether the store is sound, as far as it can be told without reading every file."""

    row_sums: tuple[float | None, float | None]
    """Smallest and largest sum of an attention row, over all phases and keyframes; null without keyframes."""
    newest: str | None
    """When the last episode was committed, UTC."""
    sink_heads: int
    """Heads of a run that pour more than 0.3 into one key in some episode."""
    parts: Sequence[CommittedParts]
    unreadable: Reasons
    """What the catalog had to leave out."""
    quarantined: Reasons
    """Episodes that the health gate kept out."""


@dataclass(frozen=True, slots=True)
class Overview(Answer):
    """What a store holds, at a glance."""

    sampled: int
    """Episodes that layers and heads are the mean of."""
    outcomes: Sequence[OutcomeCount]
    layers: Sequence[LayerLook]
    heads: Sequence[LookingHead]
    glimpses: Sequence[Glimpse]
    soundness: Soundness


class TableColumn(TypedDict):
    """A column of a table."""

    name: str
    type: str
    unit: str
    definition: str


@dataclass(frozen=True, slots=True)
class TableAnswer(Answer):
    """A table that SQL may ask."""

    name: str
    row: str
    """What a row is."""
    columns: Sequence[TableColumn]


@dataclass(frozen=True, slots=True)
class MetricAnswer(Answer):
    """A metric of heads, as in table `head_stats`."""

    name: str
    definition: str
    unit: str


@dataclass(frozen=True, slots=True)
class RunAnswer(Answer):
    """One ingest configuration."""

    run: str
    config: RunConfig
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnderWayAnswer(Answer):
    """An episode that is being recorded, or whose recorder died before its end."""

    recording: str
    episode: str
    """Name of its file, in addresses."""
    name: str
    mode: str
    """`live` or `replay`."""
    instruction: str
    task: str | None
    host: str
    pid: int
    created: str
    state: State
    """`recording`: its process lives. `committing`: it has ended and is being put into the store. `elsewhere`: its
    process is another host's, of which nothing is known but `idle`. `dead`: its process is gone, and
    `attnstore record recover` ends it."""
    calls: int
    """Policy calls that can be read: keyframes."""
    dropped: int
    """Calls that were not recorded."""
    step: int
    """Environment step of the newest call."""
    idle: float
    """Seconds since something was written."""
    cameras: Sequence[str]
    phases: Sequence[str]
    """Whose attention can be read already; none in replay mode."""


@dataclass(frozen=True, slots=True)
class Page(Answer, Generic[R]):
    """Some of a table's rows, and how many there are."""

    total: int
    offset: int
    limit: int
    rows: Sequence[R]


@dataclass(frozen=True, slots=True)
class SpanAnswer(Answer):
    """A contiguous run of tokens of one kind on an axis."""

    name: str
    kind: Kind
    start: int
    stop: int
    camera: str | None
    grid: tuple[int, int] | None
    role: str | None


@dataclass(frozen=True, slots=True)
class PhaseAnswer(Answer):
    """A phase's shape and axes."""

    layers: int
    heads: int
    steps: int | None
    query_groups: Sequence[str]
    """With statistics and stored maps; the first is meant where none is named."""
    values: bool
    """Whether there are value norms: `weighting=value` is answered."""
    cameras: Sequence[str]
    """Among the keys."""
    query: Sequence[SpanAnswer]
    key: Sequence[SpanAnswer]


@dataclass(frozen=True, slots=True)
class CameraAnswer(Answer):
    """A camera's image and its patches."""

    height: int
    """Pixels."""
    width: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    coverage: NumberRows
    """Fraction of each patch that shows image; 0 for letterbox."""
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class EpisodeAnswer(Answer):
    """What an episode is: everything that is needed to ask for the rest."""

    run: str
    episode: str
    name: str
    """The dataset's own."""
    version: str
    """Tells this state of the episode from every other; parameter `v`."""
    outcome: str
    task: str | None
    date: str | None
    instruction: str
    precision: str
    rate: float | None
    """Frames of the recording in a second."""
    total_frames: int | None
    frames: Integers
    """Index of each keyframe in the recording."""
    cameras: Mapping[str, CameraAnswer]
    phases: Mapping[str, PhaseAnswer]
    policy: Mapping[str, Sequence[int]]
    """Shapes of the policy's own arrays: actions, actions_recorded, state, denoising."""


@dataclass(frozen=True, slots=True)
class ObjectAnswer(Answer):
    """An object whose masks are known."""

    object: str
    camera: str
    source: str
    """detector or gripper"""
    keyframes: int
    """That have a mask of it."""
    area: float | None
    """Share of the seen image that it covers, mean."""


@dataclass(frozen=True, slots=True)
class MaskAnswer(Answer):
    """The mask of an object at a keyframe."""

    keyframe: int
    camera: str
    object: str
    mask_frame: int
    height: int
    width: int
    counts: str
    """Run lengths as COCO's string, column by column."""


@dataclass(frozen=True, slots=True)
class ObjectMetric(Answer):
    """A metric of every head's map against an object, at every keyframe."""

    metric: str
    definition: str
    unit: str
    object: str
    camera: str
    phase: str
    query: str
    step: int | None
    values: Annotated[NDArray[np.floating[Any]], *_nested(3, _NUMBER)]
    """By keyframe, layer, head."""


@dataclass(frozen=True, slots=True)
class Coordinate(Answer):
    """Labels along dimensions of an array."""

    dims: Sequence[str]
    values: Annotated[Any, *_nested(0, {})]


@dataclass(frozen=True, slots=True)
class ArrayAnswer(Answer):
    """An array with names."""

    name: str | None
    dims: Sequence[str]
    shape: Sequence[int]
    dtype: str
    coords: Mapping[str, Coordinate]
    attrs: Mapping[str, Any]
    values: Values


@dataclass(frozen=True, slots=True)
class ActiveHead(Answer):
    """The head of a layer whose map varies most, and by how much each does."""

    phase: str
    camera: str
    layer: int
    step: int | None
    keyframe: int | None
    head: int | None
    """Null where no keyframe that is asked for has the camera."""
    variance: Numbers
    """By head."""
    chosen_by: str


@dataclass(frozen=True, slots=True)
class Matrix(Answer):
    """A metric of every layer and head."""

    metric: str
    definition: str
    unit: str
    phase: str
    camera: str
    query: str
    weighting: str
    step: int
    keyframe: int | None
    values: NumberRows


@dataclass(frozen=True, slots=True)
class Trace(Answer):
    """A metric at every keyframe."""

    metric: str
    definition: str
    unit: str
    phase: str
    camera: str
    query: str
    weighting: str
    step: int
    layer: int
    heads: Sequence[int]
    frames: Integers
    values: NumberRows
    """By head, then keyframe."""


class ColumnAnswer(TypedDict):
    """A column of a query's rows."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class SqlAnswer(Answer):
    """A query's rows."""

    columns: Sequence[ColumnAnswer]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class NamedAnswer(Answer):
    """A ready-made question."""

    name: str
    question: str
    sql: str


class ComparedHead(TypedDict):
    """A head, and how it differs between two groups of episodes."""

    rank: int
    layer: int
    head: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    cliffs_delta: float | None
    p: float | None
    q: float | None
    significant: bool


@dataclass(frozen=True, slots=True)
class CompareAnswer(Answer):
    """Two groups of episodes compared, head by head; see `attnstore.query.groups.membership.comparison`."""

    a: str
    b: str
    episodes_a: int
    episodes_b: int
    metric: str
    phase: str
    camera: str
    family: str
    """Tests that the correction is over."""
    conclusive: bool
    """Whether so few episodes could show anything."""
    notes: Sequence[str]
    layers: Integers
    heads: Integers
    difference: NumberRows
    """By layer, then head, as all that follows."""
    cliffs_delta: NumberRows
    p: NumberRows
    q: NumberRows
    significant: Flags
    table: Sequence[ComparedHead]
    """The heads that differ most, first."""


class FailureReason(TypedDict):
    """Code and text."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class CurveAnswer(Answer):
    """Deletion or insertion of a layer's map beside random order, mean over keyframes of an episode."""

    part: str
    phase: str
    layer: int
    cameras: str
    """Changed at once, joined by `+`."""
    curve: str
    """`deletion` or `insertion`."""
    fraction: Numbers
    """Share of the seen pixels that is replaced (deletion) or shown (insertion)."""
    attention: Numbers
    """si_mse of the action, in the order of the map."""
    control: Numbers
    """The same in random order."""
    attention_area: float | None
    """Under the curve."""
    control_area: float | None
    gain: float | None
    """Difference of the areas: positive if the map's order is better than chance."""
    keyframes: int
    """That the curves are the mean of."""


@dataclass(frozen=True, slots=True)
class ProbedLayer(Answer):
    """How well a target is read off one layer's hidden states, or off the baseline."""

    layer: int | None
    """-1: what enters layer 0; null of the baseline and of the last hidden states."""
    score: float | None
    low: float | None
    high: float | None
    """Ends of the 95 % interval."""
    shuffled: float | None
    shuffled_high: float | None
    """95 % of the scores of shuffled targets are at most this."""
    gain: float | None
    """Over the baseline; null of the baseline."""
    gain_low: float | None
    gain_high: float | None
    p_holm: float | None
    """Of the gain, corrected over layers."""
    knows: bool
    """Whether it says more than the baseline and than shuffled targets do."""


@dataclass(frozen=True, slots=True)
class LinearProbeAnswer(Answer):
    """What `attnstore linear-probe` found of one target, on unseen episodes or tasks."""

    part: str
    target: str
    kind: str
    """`classes`: scores are balanced accuracies; `numbers`: they are R²."""
    classes: Sequence[str]
    split: str
    phase: str
    span: str
    tokens: str
    step: str | None
    chance: float
    episodes: int
    keyframes: int
    baseline: ProbedLayer
    layers: Sequence[ProbedLayer]


@dataclass(frozen=True, slots=True)
class FailurePredictor(Answer):
    """One way of foreseeing failures: its scores of an episode, and how good it is over the run."""

    split: str
    """`episodes` or `tasks`: of which the predictor saw none like this one's."""
    features: str
    model: str
    keyframes: Integers
    """Of the scores."""
    score: Numbers
    """Of failure, of what was seen up to the keyframe; 0 to 1."""
    band: Numbers
    """Largest score that raises no alarm; null if none would raise one."""
    alarm: int | None
    """First keyframe whose score is above the band; null if there is none."""
    auroc: float | None
    """How often a failure's score is above a success', all calls together, over the run."""
    low: float | None
    high: float | None
    """Ends of its 95 % interval."""
    shuffled: float | None
    """Mean of the same with shuffled outcomes; null of baselines."""
    p: float | None
    successes: int
    """That were tested."""
    false_alarms: int
    """Successes with an alarm."""
    failures: int
    detected: int
    """Failures with an alarm."""
    before_end: float | None
    """Median time from the alarm of a detected failure to its end."""
    unit: str
    """Of that time: s or frames."""


@dataclass(frozen=True, slots=True)
class FailurePrediction(Answer):
    """Whether an episode's failure was seen coming, by the newest `attnstore failure` of its run."""

    part: str | None
    """Null: no failures were predicted in this run."""
    alpha: float | None
    """Promised rate of successes with an alarm."""
    weighting: str | None
    predictors: Sequence[FailurePredictor]
    """None of an episode whose outcome was not known."""


@dataclass(frozen=True, slots=True)
class DivergenceAnswer(Answer):
    """How far apart an episode's maps are in two runs, by layer and head."""

    other: str
    """The other run."""
    phase: str
    camera: str
    query: str
    step: int | None
    weighting: str
    frames: Integers
    """That are keyframes of both runs; what is said is the mean over them."""
    values: NumberRows
    """Jensen-Shannon divergence, bits: 0 equal, 1 disjoint; by layer, then head."""


@dataclass(frozen=True, slots=True)
class Failure(Answer):
    """Why a request is not answered."""

    error: FailureReason


def page_of(rows: list[Row], limit: int, offset: int, total: int | None = None) -> Page[Row]:
    """Make a page of rows that were selected with ``count(*) over () as total_``."""
    counts = [row.pop("total_") for row in rows]
    return Page(total or (counts[0] if counts else 0), offset, limit, rows)


def page_model(table: Table) -> Any:
    """Declare a page of a table's rows, from its columns: names, types, definitions, what may be null."""
    fields: dict[str, Any] = {}
    for column in table.columns:
        kind, unit = _json_type(column.type), f" ({column.unit})" if column.unit else ""
        if column.nullable or pa.types.is_floating(column.type):
            kind |= None
        fields[column.name] = Annotated[kind, Field(description=column.definition + unit)]
    name = f"{table.name.title().replace('_', '')}Row"
    row: Any = TypedDict(name, fields)  # type: ignore[misc]  # made at run time
    return Page[row]


def _json_type(kind: pa.DataType) -> Any:
    if pa.types.is_integer(kind):
        return int
    if pa.types.is_floating(kind):
        return float
    if pa.types.is_list(kind):
        return list[_json_type(kind.value_type) | None]  # type: ignore[misc]
    return str  # timestamps, too
