"""What a policy showed while it drove, on disk until its episode is committed; and a policy that shows it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError
from attnstore.store.format.axes import VISION
from attnstore.store.format.generated import DECODE
from attnstore.store.format.tokens import TokenLayout
from attnstore.store.recordings.spool import shown_to_json

from ..policies.base import (
    LAST,
    Batch,
    EncoderShape,
    Generated,
    Observation,
    Observer,
    PhaseShape,
    Policy,
    SpanStates,
    Watch,
)
from ..reduction import compact, reduce_states

if TYPE_CHECKING:
    import torch

NORMS = "norms"
"""What is spooled before a layer's attention, if value norms are shown."""
MEANS, TOKENS = "hidden_means", "hidden_tokens"
"""What is spooled of a layer's hidden states: `SpanStates`, the tokens behind the means."""
Put = Callable[[Callable[[], object], int], bool]
"""Queues a write of so many bytes; False if there is no room."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor in the spool."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    full: tuple[int, ...] | None = None
    """Shape with padding, which was stripped; None if nothing was."""
    layout: TokenLayout | None = None


@dataclass(slots=True)
class Shown:
    """What one row of a call showed, in order."""

    events: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)
    images: int = 0

    def places(self, phases: Mapping[str, PhaseShape]) -> dict[str, Any] | None:
        """Where its attention is, for readers that look before the episode is committed; None if nowhere."""
        tensors = [
            (where[0], where[1], place.offset, str(place.dtype).removeprefix("torch."), place.shape)
            for kind, where, place in self.events
            if kind == "attention" and place.layout is not None
        ]
        groups = {p: phases[p].query_groups[:1] for p, *_ in tensors if p in phases}
        tensors = [t for t in tensors if groups.get(t[0])]
        if not tensors:
            return None
        return shown_to_json({p: own[0] for p, own in groups.items() if own}, tensors)


class Spool:
    """The file of one episode.

    Parameters
    ----------
    path
        Made at the first write, and deleted by `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: dict[int, Shown] = {}
        self.fault: str | None = None
        self._file = -1
        self._end = 0

    def reserve(self, size: int) -> int:
        """Return where the next `size` bytes go."""
        at, self._end = self._end, self._end + size
        return at

    def write(self, offset: int, values: NDArray[np.uint8]) -> None:
        """Write in the outbox's thread; a fault is kept, since the forward is over."""
        try:
            if self._file < 0:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
            data = values.data
            while data:
                written = os.pwrite(self._file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            self.fault = self.fault or f"{self.path.name}: {error.strerror or error}"

    def read(self, place: _Place) -> torch.Tensor:
        """Read a tensor back, padding filled with zeros."""
        import torch

        count = int(np.prod(place.shape, dtype=np.int64)) * place.dtype.itemsize
        data = bytearray(count)
        if count and os.preadv(self._file, [data], place.offset) != count:
            raise HealthError(f"{self.path.name} is cut at byte {place.offset}")
        tensor = torch.frombuffer(data, dtype=place.dtype) if count else torch.empty(0)
        tensor = tensor.reshape(place.shape)
        if place.full is None or place.layout is None:
            return tensor
        whole = torch.zeros(place.full, dtype=place.dtype)
        row = 0
        for queries in place.layout.query.model_slices:
            column, height = 0, queries.stop - queries.start
            for keys in place.layout.key.model_slices:
                width = keys.stop - keys.start
                whole[0, :, queries, keys] = tensor[:, row : row + height, column : column + width]
                column += width
            row += height
        return whole

    def close(self) -> None:
        """Delete the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch whose call is spooled."""

    index: int
    spool: Spool
    shown: Shown


class Spooler:
    """The observer that spools what some rows of a batch show. It raises nothing; see `fault`."""

    def __init__(self, batch: Batch, rows: Sequence[Row], watch: Watch, put: Put) -> None:
        self._batch, self._rows, self._watch, self._put = batch, rows, watch, put
        self._samples: Sequence[int] = range(len(batch))
        self._images: dict[tuple[str, int], int] = {}
        self.fault: str | None = None

    @property
    def watch(self) -> Watch:
        """What is shown beside the attention of the policy's own phases."""
        return self._watch

    def attention(
        self, phase: str, layer: int, weights: torch.Tensor, norms: torch.Tensor | None = None
    ) -> None:
        """See `Observer.attention`."""
        if norms is not None:
            self._spool(NORMS, phase, layer, norms)
        self._spool("attention", phase, layer, weights)

    def hidden(self, phase: str, layer: int, states: torch.Tensor | SpanStates) -> None:
        """See `Observer.hidden`; where only means are stored, they are what is spooled."""
        assert not isinstance(states, SpanStates)
        if self._watch.token_stats or layer == LAST:
            self._spool("hidden", phase, layer, states)
            return
        for row in self._rows:
            if row.index in self._samples and self.fault is None:
                self._spool_reduced(row, phase, layer, states)

    def encoded(self, images: int) -> None:
        """See `Observer.encoded`."""
        for row in self._rows:
            row.shown.images += images

    def noisy_actions(self, actions: torch.Tensor) -> None:
        """See `Observer.noisy_actions`."""
        for row in self._rows:
            kept = actions[row.index : row.index + 1].detach().cpu().clone()
            row.shown.events.append(("noisy_actions", (), kept))

    def continuing(self, samples: Sequence[int]) -> None:
        """See `Observer.continuing`."""
        self._samples = tuple(samples)

    def generated(self, texts: Sequence[Generated]) -> None:
        """See `Observer.generated`."""
        for row in self._rows:
            row.shown.events.append(("generated", (), [texts[row.index]]))

    def _spool_reduced(self, row: Row, phase: str, layer: int, states: torch.Tensor) -> None:
        try:
            query = self._batch.samples[row.index].layouts[phase].query
            choice = self._watch.hidden
            spans: tuple[str, ...] = ()
            if choice is not None and layer in choice.layers:
                groups = choice.spans
                spans = tuple(
                    s.name for s in query if not groups or any(s.belongs_to(g) for g in groups)
                )
            found = reduce_states(states[row.index], query, spans)
            for kind, kept in ((MEANS, found.mean), (TOKENS, found.tokens)):
                if kept is not None:
                    self._keep(row, kind, phase, layer, kept, None, None)
        except Exception as error:
            self.fault = f"hidden of {phase} layer {layer}: {type(error).__name__}: {error}"

    def _spool(self, kind: str, phase: str, layer: int, values: torch.Tensor) -> None:
        if self.fault is not None:
            return
        try:
            first = 0
            if phase == VISION:
                key = (kind, layer)
                first = self._images.get(key, 0)
                self._images[key] = first + len(values)
            for row in self._rows:
                self._spool_row(row, kind, phase, layer, values, first)
        except Exception as error:
            self.fault = f"{kind} of {phase} layer {layer}: {type(error).__name__}: {error}"

    def _spool_row(
        self, row: Row, kind: str, phase: str, layer: int, values: torch.Tensor, first: int
    ) -> None:
        layout: TokenLayout | None = None
        full: tuple[int, ...] | None = None
        if phase == VISION:
            places = range(first, first + len(values))
            own = [i - first for i in self._batch.images_of(row.index) if i in places]
            if not own:
                return
            values = values[own]
        elif row.index not in self._samples:
            return
        else:
            # Rows of samples that have ended stay in the batch.
            values = values[row.index : row.index + 1]
            if kind == "attention" and phase != DECODE:
                layout = self._batch.samples[row.index].layouts[phase]
                full = tuple(values.shape)
                values = compact(values[0], layout)
        self._keep(row, kind, phase, layer, values, full, layout)

    def _keep(
        self,
        row: Row,
        kind: str,
        phase: str,
        layer: int,
        values: torch.Tensor,
        full: tuple[int, ...] | None,
        layout: TokenLayout | None,
    ) -> None:
        """Queue a tensor for the spool."""
        import torch

        # Memory of its own: what the model does with its tensor afterwards is the model's.
        kept = values.detach().to("cpu", copy=True).contiguous()
        raw = kept.reshape(-1).view(torch.uint8).numpy()
        offset = row.spool.reserve(raw.nbytes)
        spool = row.spool
        if not self._put(lambda: spool.write(offset, raw), raw.nbytes):
            self.fault = "the queue is full"
            return
        place = _Place(offset, tuple(kept.shape), kept.dtype, full, layout)
        row.shown.events.append((kind, (phase, layer), place))


class SpooledPolicy:
    """A policy that shows again what it showed while it drove; nothing is computed.

    Parameters
    ----------
    policy
        The one that drove: asked only for what it is.
    spool
        Of one episode.
    numbers
        Of the calls that `act` is asked for, in order.
    actions
        What they gave, each (1, horizon, action_dof).
    """

    def __init__(
        self, policy: Policy, spool: Spool, numbers: Sequence[int], actions: Mapping[int, Any]
    ) -> None:
        self._policy, self._spool, self._actions = policy, spool, actions
        self._numbers = iter(numbers)
        self._observer: Observer | None = None
        self.name, self.checkpoint, self.dtype = policy.name, policy.checkpoint, policy.dtype
        self.horizon, self.action_dof = policy.horizon, policy.action_dof
        self.denoiser_steps, self.phases = policy.denoiser_steps, policy.phases
        self.watches_encoder, self.digest = policy.watches_encoder, policy.digest
        self.vocabulary = getattr(policy, "vocabulary", None)
        self.device = "cpu"

    name: str
    phases: Mapping[str, PhaseShape]

    def encoder_shape(self) -> EncoderShape:
        """Shape of the driving policy's encoder."""
        return self._policy.encoder_shape()

    def check_hidden(self) -> None:
        """See `Policy.check_hidden`."""
        self._policy.check_hidden()

    def check_values(self) -> None:
        """See `Policy.check_values`."""
        self._policy.check_values()

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Not asked: recorded observations carry their inputs."""
        raise HealthError("an observation of a recording without its inputs")

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Show `observer` what is shown again."""
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def act(self, batch: Batch) -> torch.Tensor:
        """Show the next call again; return the actions that it gave."""
        number = next(self._numbers)
        shown, observer = self._spool.calls[number], self._observer
        if observer is not None:
            norms: list[torch.Tensor] = []
            kept: list[tuple[str, tuple[Any, ...], Any]] = [*shown.events, ("", (), None)]
            for (kind, where, value), (then, _, tokens) in pairwise(kept):
                given = self._spool.read(value) if isinstance(value, _Place) else value
                if kind == NORMS:
                    norms = [given]
                elif kind == "attention":
                    phase, layer = where
                    observer.attention(phase, layer, given, norms[0] if norms else None)
                    norms = []
                elif kind == MEANS:
                    # The tokens that were kept of the same layer come right behind.
                    own = self._spool.read(tokens) if then == TOKENS else None
                    phase, layer = where
                    observer.hidden(phase, layer, SpanStates(given, own))
                elif kind != TOKENS:
                    getattr(observer, kind)(*where, given)
            observer.encoded(shown.images)
        actions: torch.Tensor = self._actions[number]
        return actions
