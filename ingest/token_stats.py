"""Rows of ``token_stats``: how each token's hidden state evolves from layer to layer.

The definitions are `attnstore.store.tables.base.TOKEN_METRICS`. Norms far above a layer's median are
massive activations (Sun et al. 2024, "Massive Activations in Large Language Models"); on image
tokens they mark visual sinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.errors import HealthError
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.hidden import EMBEDDING
from attnstore.store.format.tokens import TokenLayout
from attnstore.store.tables.base import TOKEN_METRICS

from .capture import HiddenRecord
from .encoders import owners
from .policies.base import LAST, Batch, SpanStates

if TYPE_CHECKING:
    import torch

Layouts = Mapping[str, TokenLayout]


class TokenStatistics:
    """Takes in one batch's hidden states, layer by layer; two layers' are kept on the device.

    Parameters
    ----------
    spec
        The episode.
    batch
        What the policy acts on.
    layouts
        Token layouts of each sample, by the phase's path.
    """

    def __init__(self, spec: EpisodeSpec, batch: Batch, layouts: Sequence[Layouts]) -> None:
        self._spec, self._batch, self._layouts = spec, batch, layouts
        self._embedding: dict[str, torch.Tensor] = {}
        self._previous: dict[str, torch.Tensor] = {}
        self._values: list[dict[str, NDArray[np.float32]]] = [{} for _ in layouts]

    def add(self, record: HiddenRecord) -> None:
        """Take in the hidden states of one layer, or those that enter layer 0.

        Raises
        ------
        HealthError
            If they are not of the tokens that the layout says.
        """
        import torch

        if record.layer == LAST:
            return
        assert not isinstance(record.states, SpanStates)
        # A copy: a model may add the next layer's output in place.
        states = record.states.to(torch.float32, copy=True)
        if record.layer == EMBEDDING:
            self._embedding[record.phase] = self._previous[record.phase] = states
            return
        before, embedding = self._previous[record.phase], self._embedding[record.phase]
        metrics = (states.norm(dim=-1), _cosine(states, before), _cosine(states, embedding))
        self._previous[record.phase] = states
        found = torch.stack(metrics).cpu().numpy()
        for row, sample, path in owners(record, len(states), self._batch):
            self._keep(record, path, sample, found[:, row])

    def _keep(
        self, record: HiddenRecord, path: str, sample: int, found: NDArray[np.float32]
    ) -> None:
        spec, axis = self._spec.phases[path], self._layouts[sample][path].query
        last = max(s.stop for s in axis.model_slices)
        if last > found.shape[-1]:
            raise HealthError(
                f"{path} layer {record.layer}: the token layout ends at {last}, "
                f"the hidden states have {found.shape[-1]} tokens"
            )
        values = self._values[sample]
        if path not in values:
            shape = (len(TOKEN_METRICS), spec.steps or 1, spec.layers, len(axis))
            values[path] = np.full(shape, np.nan, np.float32)
        compact = np.concatenate([found[:, s] for s in axis.model_slices], axis=1)
        values[path][:, record.step or 0, record.layer] = compact

    def rows(self, sample: int, keyframe: int) -> Iterator[dict[str, Any]]:
        """Yield columns of ``token_stats`` of one sample, a block per phase."""
        for path, values in self._values[sample].items():
            # Steps that the keyframe did not get to have no norm.
            there = ~np.isnan(values[0]).all(axis=(1, 2))
            own = self._layouts[sample][path]
            yield _block(keyframe, self._spec.phases[path], own, values[:, there])


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # NaN where one of them is 0: torch's own function would say 0, which means orthogonal.
    cosine: torch.Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosine.clamp(-1, 1)


def _block(
    keyframe: int, spec: PhaseSpec, layout: TokenLayout, values: NDArray[np.float32]
) -> dict[str, Any]:
    spans = [span for span in layout.query for _ in range(len(span))]
    stored = [
        spec.query[span.name].start + offset for span in layout.query for offset in range(len(span))
    ]
    step, layer, token = np.indices(values.shape[1:], np.int32).reshape(3, -1)
    count = len(token)

    def column(texts: Sequence[str | None]) -> pa.Array:
        return pa.array(texts, pa.string()).take(pa.array(token))

    return {
        "keyframe": np.full(count, keyframe),
        "phase": pa.repeat(pa.scalar(spec.phase), count),
        "camera": column([span.camera or spec.camera for span in spans]),
        "step": step if spec.steps is not None else pa.nulls(count, pa.int16()),
        "layer": layer,
        "index": np.asarray(stored, np.int32)[token],
        "span": column([span.name for span in spans]),
        "kind": column([span.kind for span in spans]),
        "role": column([span.role for span in spans]),
        **{name: v.reshape(-1) for name, v in zip(TOKEN_METRICS, values, strict=True)},
    }
