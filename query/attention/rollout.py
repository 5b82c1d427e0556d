"""Attention rollout: from which inputs a token's information came, through all layers.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers": a layer passes on
``residual * I + (1 - residual) * A`` with A its attention, heads fused, rows renormalised; the
rollout is the product of the layers' matrices, the last layer leftmost. It takes information to
mix linearly and leaves out value vectors and MLPs: an estimate of what could flow, not of what did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.episode import PhaseSpec
from attnstore.store.reader.blocks import Cost, Dimension, Index
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import (
    Group,
    TokenSelection,
    check_index,
    select_tokens,
    span_labels,
    token_labels,
)

HeadFusion = Literal["mean", "max", "min"]
Float32 = NDArray[np.float32]
Positions = NDArray[np.intp]


def rollout(
    episode: Episode,
    phase: str = "prefix",
    *,
    keyframe: int,
    step: int = -1,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
    layers: Index = None,
    query: Group | None = None,
    key: Group | None = None,
    through_prefix: bool = True,
) -> xr.DataArray:
    r"""Compute attention rollout at one keyframe.

    In a one-pass phase (``prefix``, ``joint``) queries and keys are the same tokens, and the
    rollout is :math:`\hat A_L \cdots \hat A_1`.

    In the ``suffix`` the keys are the prefix's tokens p and the suffix's own s. Layer l of the
    suffix reads the prefix's keys and values of the same layer l, so both advance together:

    .. math:: M_l = \begin{pmatrix} \hat A^l_{pp} & 0 \\ \hat A^l_{sp} & \hat A^l_{ss}
              \end{pmatrix}, \qquad \text{rollout} = (M_L \cdots M_1)_{s, \cdot}

    with :math:`\hat A^l_{pp}` the prefix's matrix and :math:`(\hat A^l_{sp}\ \hat A^l_{ss})` the
    suffix's, whose residual stands on ss. Columns are tokens at the *input* of the first layer:
    image patches, words, state, noisy actions. With ``through_prefix=False`` the identity stands
    for :math:`\hat A^l_{pp}`: prefix tokens absorb, and a column is the attention that left the
    suffix for that token at any layer. Earlier denoising steps are not part of either.

    Parameters
    ----------
    phase
        A phase whose query tokens are among its keys.
    keyframe, step
        Indices; negative ones count from the end. One-pass phases ignore `step`.
    head_fusion
        ``mean`` (the paper's), ``max`` or ``min`` over heads.
    residual
        Weight of the identity, 0..1.
    layers
        Layers to compose, in ascending order; None is all. ``range(l + 1)`` is the rollout up to
        layer l.
    query, key
        Token groups of the result; see `attnstore.store.reader.selection`.
    through_prefix
        Suffix: roll the prefix's own layers out too.

    Returns
    -------
    (query, key) float32, shares 0..1. A row over all keys sums to 1. NaN where the keyframe
    lacks the token; absent tokens take no part. Attribute ``precision`` names the stored
    precision that it is computed from.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing, or the phase's queries are not among its keys.
    UsageError
        If `residual` or `head_fusion` is none of the above.
    """
    if head_fusion not in get_args(HeadFusion):
        raise UsageError(f"head_fusion is mean, max or min; got {head_fusion!r}")
    if not 0 <= residual <= 1:
        raise UsageError(f"residual lies in 0..1; got {residual}")
    spec = episode.phase(phase)
    rows = select_tokens(spec.query, query, where=f"{phase} query")
    columns = select_tokens(spec.key, key, where=f"{phase} key")
    own = _own_positions(spec)
    inherited = _inherited_positions(episode, spec, own) if through_prefix else None
    chosen = sorted({int(i) for i in Dimension.of(layers, spec.layers, f"{phase} layer").positions})
    at = keyframe, (check_index(step, spec.steps, f"{phase} step") if spec.steps else None)
    blocks = _Layers(episode, head_fusion)

    # From the last layer down: only the rows that are asked for are ever multiplied.
    flow = np.zeros((len(rows.indices), len(spec.key)), np.float32)
    flow[np.arange(len(flow)), own[rows.indices]] = 1
    absent = np.zeros(len(spec.key), np.bool_)
    for layer in reversed(chosen):
        matrix, absent = blocks.load(phase, layer, *at)
        below = flow[:, own] @ layer_matrix(matrix, own, residual)
        if inherited is not None:
            prefix, _ = blocks.load("prefix", layer, keyframe, None)
            square = layer_matrix(prefix, np.arange(len(prefix)), residual)
            below[:, inherited] += flow[:, inherited] @ square
        else:
            rest = np.ones(len(spec.key), np.bool_)
            rest[own] = False
            below[:, rest] += flow[:, rest]
        flow = below
    flow[absent[own[rows.indices]]] = np.nan
    flow[:, absent] = np.nan
    attributes: dict[str, Any] = {
        "source": "attention rollout, Abnar & Zuidema 2020",
        "precision": episode.spec.precision,
        "head_fusion": head_fusion,
        "residual": residual,
        "layers": chosen,
    }
    if len(own) < len(spec.key):
        attributes["through_prefix"] = through_prefix
    coords = _moment(episode, phase, *at) | _axis("query", spec, rows) | _axis("key", spec, columns)
    values = flow[:, columns.indices]
    values = values[0] if rows.scalar else values
    return xr.DataArray(
        values[..., 0] if columns.scalar else values,
        dims=[n for n, s in (("query", rows), ("key", columns)) if not s.scalar],
        coords=coords,
        attrs=attributes,
        name=f"{spec.phase}_rollout",
    )


def rollout_map(
    episode: Episode,
    camera: str,
    phase: str = "prefix",
    *,
    keyframe: int,
    query: Group | None = None,
    step: int = -1,
    head_fusion: HeadFusion = "mean",
    residual: float = 0.5,
    layers: Index = None,
    through_prefix: bool = True,
) -> xr.DataArray:
    """Compute the rollout of a query group over one camera's patches: `rollout`, averaged.

    Parameters
    ----------
    query
        Query tokens, averaged; None is the phase's first stored group, all where it has none.

    Returns
    -------
    (row, col) float32, shares 0..1, with coordinate ``coverage`` and attribute ``geometry`` as
    `Episode.map` has them. NaN where the keyframe lacks the camera.

    Raises
    ------
    SelectionError, UsageError
        As `rollout`.
    """
    geometry = episode.geometry(camera)
    spec = episode.phase(phase, camera)
    group = query if query is not None else next(iter(spec.query_groups), None)
    flow = rollout(
        episode, spec.path, keyframe=keyframe, step=step, head_fusion=head_fusion, residual=residual,
        layers=layers, query=group, key=f"image:{camera}", through_prefix=through_prefix,
    )  # fmt: skip
    mean = (flow.mean("query") if "query" in flow.dims else flow).to_numpy()
    coords = {
        name: flow.coords[name] for name in ("keyframe", "frame", "step") if name in flow.coords
    }
    return xr.DataArray(
        mean.reshape(geometry.grid),
        dims=("row", "col"),
        coords=coords | {"coverage": (("row", "col"), geometry.coverage())},
        attrs=flow.attrs | {"geometry": geometry.to_json(), "camera": camera, "query": group},
        name=f"{spec.phase}_rollout_map",
    )


def rollout_cost(
    episode: Episode, phase: str, *, keyframe: int, step: int = -1, layers: Index = None
) -> tuple[Cost, ...]:
    """Say what `rollout` would read, a layer at a time, without reading: the prefix's layers too.

    Raises
    ------
    SelectionError
        As `rollout`.
    """
    spec = episode.phase(phase)
    inherited = _inherited_positions(episode, spec, _own_positions(spec))
    chosen = Dimension.of(layers, spec.layers, f"{phase} layer").positions
    at_step = check_index(step, spec.steps, f"{phase} step") if spec.steps else None
    read = [(phase, at_step)] if inherited is None else [(phase, at_step), ("prefix", None)]
    return tuple(
        episode.explain(name, keyframe=keyframe, step=at, layer=int(layer), query=slice(None))
        for name, at in read
        for layer in chosen
    )


def layer_matrix(attention: Float32, own: Positions, residual: float) -> Float32:
    """Return what a layer passes on: identity and attention weighted, rows renormalised.

    Parameters
    ----------
    attention
        (query, key), heads fused, no NaN.
    own
        (query,) each query token's position among the keys.

    Returns
    -------
    (query, key), rows sum to 1. A row without any weight (residual 0, and no head agrees with
    another under ``min``) stays with its token.

    Examples
    --------
    >>> layer_matrix(np.array([[0.5, 0.5], [0, 1]], np.float32), np.arange(2), 0.5)
    array([[0.75, 0.25],
           [0.  , 1.  ]], dtype=float32)
    """
    matrix = attention * np.float32(1 - residual)
    row = np.arange(len(own))
    matrix[row, own] += np.float32(residual)
    total = matrix.sum(-1, keepdims=True)
    empty = total[:, 0] == 0
    matrix[row[empty], own[empty]] = total[empty] = 1
    return np.asarray(matrix / total, np.float32)


@dataclass(frozen=True, slots=True)
class _Layers:
    """Reads one layer at a time, heads fused."""

    episode: Episode
    fusion: HeadFusion

    def load(
        self, phase: str, layer: int, keyframe: int, step: int | None
    ) -> tuple[Float32, NDArray[np.bool_]]:
        """Return (query, key) with 0 for absent tokens, and which keys are absent."""
        heads: Any = self.episode.attention(phase, keyframe=keyframe, step=step, layer=layer).values
        fused = {"mean": heads.mean, "max": heads.max, "min": heads.min}[self.fusion](axis=0)
        nothing = np.isnan(fused)
        fused[nothing] = 0
        return fused, np.asarray(nothing.all(0))


def _own_positions(spec: PhaseSpec) -> Positions:
    parts = []
    keys = {span.name: span for span in spec.key}
    for span in spec.query:
        home = keys.get(span.name)
        if home is None or len(home) != len(span):
            raise SelectionError(
                f"rollout needs a phase whose query tokens are among its keys; {span.name!r} of "
                f"{spec.phase} is not"
            )
        parts.append(np.arange(home.start, home.stop))
    if spec.phase == "decode":
        raise SelectionError("rollout of phase decode is not defined: its tokens come one by one")
    return np.concatenate(parts)


def _inherited_positions(episode: Episode, spec: PhaseSpec, own: Positions) -> Positions | None:
    """Positions among the keys of the prefix's tokens, in the prefix's order."""
    if len(own) == len(spec.key):
        return None
    prefix = episode.phase("prefix")
    keys = {span.name: span for span in spec.key}
    homes = [keys[s.name] for s in prefix.query if s.name in keys]
    found = np.concatenate([np.arange(s.start, s.stop) for s in homes])
    complete = len(homes) == len(prefix.query.spans) and len(found) == len(prefix.query)
    shared = prefix.layers == spec.layers and "joint" not in episode.phases
    if not complete or len(found) + len(own) != len(spec.key) or not shared:
        raise SelectionError(
            f"{spec.phase} and prefix do not share layers and keys ({spec.layers} and "
            f"{prefix.layers} layers, {len(spec.key) - len(own)} and {len(prefix.query)} tokens); "
            "through_prefix=False leaves the prefix as it is"
        )
    return found


def _moment(episode: Episode, phase: str, keyframe: int, step: int | None) -> dict[str, Any]:
    index = check_index(keyframe, len(episode.frames), "keyframe")
    coords: dict[str, Any] = {"keyframe": index, "frame": int(episode.frames[index])}
    return coords if step is None else coords | {"step": step}


def _axis(name: str, spec: PhaseSpec, tokens: TokenSelection) -> dict[str, Any]:
    aligned = spec.query if name == "query" else spec.key
    coords: dict[str, Any] = {
        name: tokens.indices,
        f"{name}_label": token_labels(aligned.spans, len(aligned))[tokens.indices],
        f"{name}_span": span_labels(aligned.spans, len(aligned))[tokens.indices],
    }
    if tokens.scalar:
        return {label: values[0] for label, values in coords.items()}
    return {label: (name, values) for label, values in coords.items()}
