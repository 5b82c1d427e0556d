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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from attnstore.store.axes import STEPPED_PHASES
from attnstore.store.errors import HealthError

from .policies.base import Policy, Watched

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
        If a watched module returns no weights.
    """
    import torch

    session = Session()
    recorder = _Recorder(session, sink)
    with ExitStack() as stack:
        # Hooks added after a compiled call fire nothing; eager execution is the only sure way.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(policy.eager())
        for watched in policy.watched():
            handle = watched.module.register_forward_hook(partial(recorder.attention, watched))
            stack.callback(handle.remove)
        if (encoder := policy.encoder()) is not None:
            stack.callback(encoder.register_forward_hook(recorder.encoder, with_kwargs=True).remove)
        if (denoiser := policy.denoiser()) is not None:
            module, position = denoiser
            hook = partial(recorder.denoiser, position)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield session


class _Recorder:
    def __init__(self, session: Session, sink: Sink | None) -> None:
        self._session, self._sink = session, sink
        self._step: dict[str, int] = {}

    def attention(self, watched: Watched, module: Any, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None or weights.ndim != 4:
            found = "none" if weights is None else f"shape {tuple(weights.shape)}"
            raise HealthError(
                f"{watched.phase} layer {watched.layer}: {type(module).__name__} returned no "
                f"(batch, head, query, key) weights ({found}); its attention is not eager"
            )
        session = self._session
        record = Record(watched.phase, watched.layer, self._advance(watched), weights.detach())
        session.counts[watched.phase] = session.counts.get(watched.phase, 0) + 1
        if self._sink is not None:
            self._sink(record)
        else:
            session.records.append(
                Record(record.phase, record.layer, record.step, record.weights.clone())
            )

    def _advance(self, watched: Watched) -> int | None:
        if watched.phase not in STEPPED_PHASES:
            if watched.layer == 0:
                self._step.clear()
            return None
        if watched.layer == 0:
            self._step[watched.phase] = self._step.get(watched.phase, -1) + 1
        return self._step.get(watched.phase, 0)

    def encoder(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        images = args[0] if args else kwargs.get("pixel_values")
        if images is not None:
            self._session.encoded_images += int(images.shape[0])

    def denoiser(self, position: int, module: Any, args: Any, kwargs: Any) -> None:
        values = args[position] if len(args) > position else kwargs.get("noise")
        if values is not None:
            self._session.noisy_actions.append(values.detach().clone())
