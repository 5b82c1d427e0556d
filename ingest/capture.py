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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnstore.store.axes import STEPPED_PHASES

from .policies.base import Policy

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


Sink = Callable[[Record], None]
"""Called in the model's thread as each layer finishes; what it raises ends the forward pass."""


@dataclass(slots=True)
class Session:
    """What one ``with capture(...)`` saw since the last `reset`."""

    records: list[Record] = field(default_factory=list)
    """Every record, when no sink was given."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records per phase."""
    encoded_images: int = 0
    """Images that went through the vision tower."""
    noisy_actions: list[torch.Tensor] = field(default_factory=list)
    """Input of each denoising step, (batch, horizon, action_dof)."""

    def reset(self) -> None:
        """Forget what was seen, before another call of the policy."""
        self.records.clear()
        self.counts.clear()
        self.noisy_actions.clear()
        self.encoded_images = 0


@contextmanager
def capture(policy: Policy, sink: Sink | None = None) -> Iterator[Session]:
    """Record the attention of every watched layer while `policy` acts.

    Parameters
    ----------
    policy
        A loaded policy; its modules may be compiled.
    sink
        Gets each record as it arrives and nothing is kept; without it the session keeps copies.

    Raises
    ------
    HealthError
        If a watched layer gives no weights.
    """
    session = Session()
    with policy.instrument(_Recorder(session, sink)):
        yield session


class _Recorder:
    """The observer that turns what a policy shows into records."""

    def __init__(self, session: Session, sink: Sink | None) -> None:
        self._session, self._sink = session, sink
        self._step: dict[str, int] = {}

    def attention(self, phase: str, layer: int, weights: torch.Tensor) -> None:
        session = self._session
        step = self._advance(phase, layer)
        session.counts[phase] = session.counts.get(phase, 0) + 1
        if self._sink is not None:
            self._sink(Record(phase, layer, step, weights))
        else:
            session.records.append(Record(phase, layer, step, weights.clone()))

    def _advance(self, phase: str, layer: int) -> int | None:
        if phase not in STEPPED_PHASES:
            if layer == 0:
                self._step.clear()
            return None
        if layer == 0:
            self._step[phase] = self._step.get(phase, -1) + 1
        return self._step.get(phase, 0)

    def encoded(self, images: int) -> None:
        self._session.encoded_images += images

    def noisy_actions(self, actions: torch.Tensor) -> None:
        self._session.noisy_actions.append(actions.clone())
