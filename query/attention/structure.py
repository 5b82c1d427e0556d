"""A phase's token matrix as blocks of spans: what there is, and what attends to what.

What a span may attend to is measured, not read from a rule: a model's mask gives weights of exactly
0, and a pair of tokens that has a weight in some layer, head or step is not masked. The other way
round a weight may be 0 because it is smaller than the store's precision (2^-25 in float16, 2^-17 in
log8); then a block that is not masked shows as ``part``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.episode import PhaseSpec
from attnstore.store.format.tokens import Token
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index

Pattern = Literal["all", "causal", "part", "none"]
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SpanTokens:
    """One span at one keyframe."""

    name: str
    kind: str
    role: str | None
    camera: str | None
    grid: tuple[int, int] | None
    """Of image spans: (rows, cols)."""
    start: int
    """First index on the stored axis."""
    stop: int
    model_start: int
    """First index in the model's own sequence, padding included."""
    tokens: tuple[Token, ...]
    """Of text spans: every token."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Relation:
    """How the tokens of one span attend to those of another."""

    pattern: Pattern
    """``all`` pairs have a weight, ``none`` has, ``causal``: each token to itself and those before
    it, or another ``part`` of the pairs."""
    share: float
    """Share of the pairs that have a weight."""
    mass: float
    """Attention that the keys get: mean over queries, layers, heads and steps of its sum, 0..1."""


@dataclass(frozen=True, slots=True)
class TokenMatrix:
    """The token matrix of one phase at one keyframe."""

    phase: str
    """Its path: ``joint``, ``vision/hand_camera``."""
    keyframe: int
    layers: int
    heads: int
    steps: int | None
    queries: tuple[SpanTokens, ...]
    keys: tuple[SpanTokens, ...]
    relations: tuple[tuple[Relation, ...], ...]
    """By query span, then key span."""

    @property
    def square(self) -> bool:
        """Whether queries and keys are the same tokens."""
        return self.queries == self.keys

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "phase": self.phase,
            "keyframe": self.keyframe,
            "layers": self.layers,
            "heads": self.heads,
            "steps": self.steps,
            "queries": [_span_json(s) for s in self.queries],
            "keys": [_span_json(s) for s in self.keys],
            "attends": [
                {"query": q.name, "key": k.name, "pattern": r.pattern,
                 "share": round(r.share, 6), "mass": round(r.mass, 6)}
                for q, row in zip(self.queries, self.relations, strict=True)
                for k, r in zip(self.keys, row, strict=True)
            ],
        }  # fmt: skip


def token_matrix(episode: Episode, phase: str, *, keyframe: int = 0) -> TokenMatrix:
    """Measure a phase's token matrix at one keyframe.

    All its layers are read, one after the other.

    Parameters
    ----------
    phase
        Phase, or the path of one camera's encoder.
    keyframe
        Index, negative ones from the end.

    Raises
    ------
    SelectionError
        If there is no such phase or keyframe.
    """
    spec = episode.phase(phase)
    keyframe = check_index(keyframe, len(episode.frames), "keyframe")
    queries = _spans(episode, spec, keyframe, "query")
    keys = _spans(episode, spec, keyframe, "key")
    largest, mean = _over_layers(episode, spec, keyframe)
    relations = tuple(
        tuple(_relation(query, key, largest, mean) for key in keys) for query in queries
    )
    return TokenMatrix(
        spec.path, keyframe, spec.layers, spec.heads, spec.steps, queries, keys, relations
    )


def token_matrices(episode: Episode, *, keyframe: int = 0) -> list[TokenMatrix]:
    """Measure the token matrix of every phase."""
    return [token_matrix(episode, path, keyframe=keyframe) for path in episode.spec.phases]


def _over_layers(episode: Episode, spec: PhaseSpec, keyframe: int) -> tuple[Float, Float]:
    """Largest and mean weight over layers, heads and steps, (query, key); NaN where absent."""
    shape = (len(spec.query), len(spec.key))
    largest, total, count = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape)
    for layer in range(spec.layers):
        weights = episode.attention(spec.path, keyframe=keyframe, layer=layer).values
        weights = weights.reshape(-1, *shape)
        there = ~np.isnan(weights)
        largest = np.fmax(largest, np.fmax.reduce(weights, axis=0))
        total += weights.sum(0, where=there, dtype=np.float64)
        count += there.sum(0)
    with np.errstate(invalid="ignore"):
        return largest, total / count


def _relation(query: SpanTokens, key: SpanTokens, largest: Float, mean: Float) -> Relation:
    at = (slice(query.start, query.stop), slice(key.start, key.stop))
    attended = largest[at] > 0
    share = float(attended.mean())
    # A token that a keyframe's steps never had as a key counts for nothing.
    mass = float(np.nansum(mean[at], axis=1).mean())
    if share in (0.0, 1.0):
        return Relation("all" if share else "none", share, mass)
    same = query.name == key.name and len(query) == len(key)
    if same and (attended == np.tri(len(query), dtype=bool)).all():
        return Relation("causal", share, mass)
    return Relation("part", share, mass)


def _spans(episode: Episode, spec: PhaseSpec, keyframe: int, axis: str) -> tuple[SpanTokens, ...]:
    def wanted(row: dict[str, Any]) -> bool:
        # Tokens with a string are no encoder's, and their table has no camera.
        own = spec.camera is None or row.get("camera") == spec.camera
        return own and (row["keyframe"], row["phase"], row["axis"]) == (keyframe, spec.phase, axis)

    tokens: dict[str, list[Token]] = {}
    for row in sorted(filter(wanted, _rows(episode, "tokens")), key=lambda r: int(r["index"])):
        tokens.setdefault(row["span"], []).append(Token(row["token_id"], row["text"]))
    return tuple(
        SpanTokens(
            row["span"], row["kind"], row["role"], row["camera"],
            None if row["rows"] is None else (row["rows"], row["cols"]),
            row["start"], row["stop"], row["model_start"], tuple(tokens.get(row["span"], ())),
        )
        for row in sorted(filter(wanted, _rows(episode, "spans")), key=lambda r: int(r["start"]))
    )  # fmt: skip


def _rows(episode: Episode, table: str) -> list[dict[str, Any]]:
    return list(episode.part.table(table).to_pylist())


def _span_json(span: SpanTokens) -> dict[str, Any]:
    return {
        "span": span.name,
        "kind": span.kind,
        "role": span.role,
        "camera": span.camera,
        "grid": span.grid,
        "tokens": len(span),
        "start": span.start,
        "model_start": span.model_start,
        "text": [t.text for t in span.tokens],
        "token_id": [t.id for t in span.tokens],
    }
