"""Watching PyTorch modules by forward hooks: how most adapters show what happens inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import HealthError

from .base import Observer

if TYPE_CHECKING:
    import torch


def second_output(output: Any) -> Any:
    """Return the weights of a module whose forward returns ``(output, weights)``, else None."""
    return output[1] if isinstance(output, tuple) and len(output) > 1 else None


@dataclass(frozen=True, slots=True)
class Watched:
    """A module whose forward gives attention weights."""

    phase: str
    layer: int
    module: torch.nn.Module = field(repr=False)
    weights: Callable[[Any], Any] = field(default=second_output, repr=False)
    """Takes the weights, (batch, head, query, key), from the module's output."""


class HookedPolicy(ABC):
    """`Policy.instrument` of a PyTorch policy: says which modules to watch, and they are hooked."""

    @abstractmethod
    def watched(self) -> Sequence[Watched]:
        """List the attention modules, each phase's layers from 0."""

    @abstractmethod
    def eager(self) -> AbstractContextManager[None]:
        """Make the watched modules return weights; whatever it changes, it restores."""

    def encoder(self) -> torch.nn.Module | None:
        """Return the vision tower, called with one image per row; None if it cannot be watched."""
        return None

    def denoiser(self) -> tuple[torch.nn.Module, int] | None:
        """Return the module that gets the noisy actions at each step, and their argument's position.

        None if intermediate actions cannot be read. A module that takes them by keyword calls
        them ``noise``.
        """
        return None

    @property
    def watches_encoder(self) -> bool:
        """Whether the images that go through the vision tower are counted."""
        return self.encoder() is not None

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Hook the watched modules; see `attnstore.ingest.policies.base.Policy.instrument`.

        Raises
        ------
        HealthError
            If a watched module returns no weights.
        """
        import torch

        with ExitStack() as stack:
            # Hooks added after a compiled call fire nothing; eager execution is the only sure way.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.eager())
            for watched in self.watched():
                hook = partial(_attention, observer, watched)
                stack.callback(watched.module.register_forward_hook(hook).remove)
            if (encoder := self.encoder()) is not None:
                counted = partial(_encoded, observer)
                stack.callback(encoder.register_forward_hook(counted, with_kwargs=True).remove)
            if (denoiser := self.denoiser()) is not None:
                module, position = denoiser
                seen = partial(_noisy, observer, position)
                stack.callback(module.register_forward_pre_hook(seen, with_kwargs=True).remove)
            yield


def _attention(observer: Observer, watched: Watched, module: Any, args: Any, output: Any) -> None:
    weights = watched.weights(output)
    if weights is None or weights.ndim != 4:
        found = "none" if weights is None else f"shape {tuple(weights.shape)}"
        raise HealthError(
            f"{watched.phase} layer {watched.layer}: {type(module).__name__} returned no "
            f"(batch, head, query, key) weights ({found}); its attention is not eager"
        )
    observer.attention(watched.phase, watched.layer, weights.detach())


def _encoded(observer: Observer, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    images = args[0] if args else kwargs.get("pixel_values")
    if images is not None:
        observer.encoded(int(images.shape[0]))


def _noisy(observer: Observer, position: int, module: Any, args: Any, kwargs: Any) -> None:
    values = args[position] if len(args) > position else kwargs.get("noise")
    if values is not None:
        observer.noisy_actions(values.detach())
