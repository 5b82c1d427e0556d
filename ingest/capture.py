"""Watching a policy's attention while it acts, its source untouched.

::

    with capture(policy) as session:
        actions = policy.act(batch)
    session.records[0].weights      # (batch, head, query, key)

Inside the ``with`` the watched modules compute eager attention and compiled code runs uncompiled;
afterwards hooks, attention implementations and the compiler's stance are as before, also after an
exception. The actions are bitwise those of the eager model without capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnstore.store.format.axes import STEPPED_PHASES, VISION
from attnstore.store.format.hidden import EMBEDDING

from .policies.base import ATTENTION_ONLY, LAST, Generated, Policy, SpanStates, Watch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Record:
    """The attention weights of one layer, as the model computed them, padding included."""

    phase: str
    layer: int
    step: int | None
    """Denoising step, 0 is the noisiest; None in one-pass phases."""
    weights: torch.Tensor = field(repr=False)
    """(batch, head, query, key), on the model's device and in its data type; not to be changed."""
    first: int = 0
    """In phase ``vision``, whose batch is of images: place of the first of them in
    `attnstore.ingest.policies.base.Batch.encoded`."""
    samples: tuple[int, ...] | None = None
    """Samples of the batch that it is of; None: all. Others have ended."""
    norms: torch.Tensor | None = field(default=None, repr=False)
    """(batch, head, key) value norms, float32, if they were asked for."""


@dataclass(frozen=True, slots=True)
class HiddenRecord:
    """The hidden states after one layer, as the model computed them, padding included."""

    phase: str
    layer: int
    """`EMBEDDING` for those that enter layer 0, `LAST` for those that actions are made of; of
    `attnstore.ingest.policies.base`."""
    step: int | None
    states: torch.Tensor | SpanStates = field(repr=False)
    """(batch, query, feature), on the model's device and in its data type; not to be changed. Of one
    sample that a recorder reduced when it was shown: what was kept."""
    first: int = 0
    samples: tuple[int, ...] | None = None
    """Both as in `Record`."""


Sink = Callable[[Record], None]
"""Called in the model's thread as each layer finishes; what it raises ends the forward pass."""
HiddenSink = Callable[[HiddenRecord], None]
"""As `Sink`; a layer's hidden states come after its attention."""


@dataclass(slots=True)
class Session:
    """What one ``with capture(...)`` saw since the last `reset`."""

    records: list[Record] = field(default_factory=list)
    """Every record, when no sink was given."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records per phase; in phase ``vision`` images, each counted at every layer."""
    hidden_counts: dict[str, int] = field(default_factory=dict)
    """As `counts`, of hidden states after a layer."""
    seen_images: dict[tuple[str, int], int] = field(default_factory=dict)
    """Images that a layer of phase ``vision`` saw, over all calls of the vision tower so far."""
    encoded_images: int = 0
    """Images that went through the vision tower."""
    generated: list[Generated] = field(default_factory=list)
    """What each sample of the batch wrote; empty if the policy writes no text."""
    noisy_actions: list[torch.Tensor] = field(default_factory=list)
    """Input of each denoising step, (batch, horizon, action_dof)."""

    def reset(self) -> None:
        """Forget what was seen, before another call of the policy."""
        self.records.clear()
        self.counts.clear()
        self.hidden_counts.clear()
        self.seen_images.clear()
        self.noisy_actions.clear()
        self.generated.clear()
        self.encoded_images = 0


@contextmanager
def capture(
    policy: Policy,
    sink: Sink | None = None,
    *,
    watch: Watch = ATTENTION_ONLY,
    hidden: HiddenSink | None = None,
) -> Iterator[Session]:
    """Record the attention of every watched layer while `policy` acts.

    Parameters
    ----------
    policy
        A loaded policy; its modules may be compiled.
    sink
        Gets each record as it arrives and nothing is kept; without it the session keeps copies.
    watch
        What is captured beside the attention of the policy's own phases.
    hidden
        Gets the hidden states, if `watch` asks for them; they are never kept.

    Raises
    ------
    HealthError
        If a watched layer gives no weights.
    UsageError
        If the policy cannot show what `watch` asks for.
    """
    session = Session()
    with policy.instrument(_Recorder(session, sink, watch, hidden)):
        yield session


def _step(steps: dict[str, int], phase: str, *, begins: bool) -> int | None:
    """Return the step of what a phase shows now; None in one-pass phases.

    `steps` are those of each phase so far; `begins` says that it is a step's, or a one-pass phase's,
    first.
    """
    if phase not in STEPPED_PHASES:
        if begins:
            steps.clear()
        return None
    if begins:
        steps[phase] = steps.get(phase, -1) + 1
    return steps.get(phase, 0)


class _Recorder:
    """The observer that turns what a policy shows into records."""

    def __init__(
        self, session: Session, sink: Sink | None, watch: Watch, hidden: HiddenSink | None
    ) -> None:
        self.watch = watch
        self._session, self._sink, self._hidden = session, sink, hidden
        self._steps: dict[str, int] = {}
        self._hidden_steps: dict[str, int] = {}
        self._samples: tuple[int, ...] | None = None

    def attention(
        self, phase: str, layer: int, weights: torch.Tensor, norms: torch.Tensor | None = None
    ) -> None:
        session = self._session
        step = _step(self._steps, phase, begins=layer == 0)
        first = self._counted(session.counts, "attention", phase, layer, len(weights))
        if self._sink is not None:
            self._sink(Record(phase, layer, step, weights, first, self._samples, norms))
        else:
            kept = Record(phase, layer, step, weights.clone(), first, self._samples, norms)
            session.records.append(kept)

    def hidden(self, phase: str, layer: int, states: torch.Tensor | SpanStates) -> None:
        step = _step(self._hidden_steps, phase, begins=layer == EMBEDDING)
        # Those that enter layer 0, and the last, are of no layer.
        counts = {} if layer in (EMBEDDING, LAST) else self._session.hidden_counts
        first = self._counted(counts, "hidden", phase, layer, len(states))
        if self._hidden is not None:
            self._hidden(HiddenRecord(phase, layer, step, states, first, self._samples))

    def _counted(
        self, counts: dict[str, int], what: str, phase: str, layer: int, images: int
    ) -> int:
        """Count a record; return the place of its first image."""
        counts[phase] = counts.get(phase, 0) + (images if phase == VISION else 1)
        if phase != VISION:
            return 0
        seen = self._session.seen_images
        first = seen.get((what, layer), 0)
        seen[what, layer] = first + images
        return first

    def encoded(self, images: int) -> None:
        self._session.encoded_images += images

    def noisy_actions(self, actions: torch.Tensor) -> None:
        self._session.noisy_actions.append(actions.clone())

    def continuing(self, samples: Sequence[int]) -> None:
        self._samples = tuple(samples)

    def generated(self, texts: Sequence[Generated]) -> None:
        self._session.generated.extend(texts)
