"""Watching PyTorch modules by forward hooks: how most adapters show what happens inside."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.axes import VISION
from attnstore.store.format.hidden import EMBEDDING

from .base import LAST, NO_HIDDEN, EncoderShape, Observer, Watch
from .checkpoint import unwrap
from .values import LEAVE_OUT, LayerValues, ProjectedValues, ValueNorms, no_projections, projections
from .vision import encoder_attention

if TYPE_CHECKING:
    import torch

NO_VALUES = "no"
NOT_SHOWN = "no"


def second_output(output: Any) -> Any:
    """Return the weights of a module whose forward returns ``(output, weights)``, else None."""
    return output[1] if isinstance(output, tuple) and len(output) > 1 else None


def first_output(output: Any) -> Any:
    """Return what a module's forward returns first, or alone."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, slots=True)
class Watched:
    """A module whose forward gives attention weights."""

    phase: str
    layer: int
    module: torch.nn.Module = field(repr=False)
    weights: Callable[[Any], Any] = field(default=second_output, repr=False)
    """Takes the weights, (batch, head, query, key), from the module's output."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A module that takes or returns hidden states."""

    phase: str
    layer: int
    """Whose output they are; `EMBEDDING` and `LAST` are none's."""
    module: torch.nn.Module = field(repr=False)
    entering: bool = False
    """They are its first argument, and not its output."""
    states: Callable[[Any], Any] = field(default=first_output, repr=False)
    """Takes the hidden states, (batch, query, feature), from its output or its first argument."""


def around(
    phase: str, layer: int, module: torch.nn.Module, states: Callable[[Any], Any] = first_output
) -> list[Shown]:
    """Hidden states of a layer that is called as a module: its output, and what enters the first."""
    first = [Shown(phase, EMBEDDING, module, True, states)] if layer == 0 else []
    return [*first, Shown(phase, layer, module, False, states)]


class HookedPolicy(ABC):
    """`Policy.instrument` of a PyTorch policy: says which modules to watch, and they are hooked."""

    value_norms = NO_VALUES
    """Whether `values` finds what it needs, as ``attnstore policies`` says it: an adapter whose
    attention modules have ``v_proj`` and ``o_proj`` says ``yes``."""
    hidden_states = NOT_SHOWN
    """Whether hidden states can be stored, as ``attnstore policies`` says it: an adapter whose
    `PhaseShape` have features says ``yes``."""

    @abstractmethod
    def watched(self) -> Sequence[Watched]:
        """List the attention modules, each phase's layers from 0."""

    @abstractmethod
    def eager(self) -> AbstractContextManager[None]:
        """Make the watched modules return weights; whatever it changes, it restores."""

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model has embeddings of; None if the tokenizer can give no other."""
        return None

    def encoder(self) -> torch.nn.Module | None:
        """Return the vision tower, called with one image per row; None if it cannot be watched."""
        return None

    def encoder_shape(self) -> EncoderShape:
        """Return the shape of the vision tower, for ``--vision``.

        Most adapters return `attnstore.ingest.policies.vision.vision_shape` of a configuration.

        Raises
        ------
        UsageError
            If its attention cannot be captured.
        """
        name = getattr(self, "name", type(self).__name__)
        raise UsageError(
            f"--vision: policy {name} does not show the attention inside its image encoder; "
            "leave --vision out"
        )

    def watched_encoder(self) -> Sequence[Watched]:
        """List the vision tower's self-attention, layers from 0."""
        found = encoder_attention(self.encoder(), self.encoder_shape().layers)
        return [Watched(VISION, i, module) for i, module in enumerate(found)]

    def layers(self, watched: Sequence[Watched]) -> Sequence[Shown]:
        """List where the hidden states are seen, of every phase `EMBEDDING` and each layer.

        By default around the entries of the module lists in which the watched attention stands.

        Raises
        ------
        UsageError
            If an attention module stands in no list of layers.
        """
        import torch

        parts = [unwrap(getattr(self, "model", None)), self.encoder()]
        owner: dict[int, torch.nn.Module] = {}
        for root in (part for part in parts if part is not None):
            for entries in root.modules():
                if isinstance(entries, torch.nn.ModuleList):
                    for entry in entries:
                        owner |= {id(m): unwrap(entry) for m in entry.modules()}
        if lost := [w for w in watched if id(w.module) not in owner]:
            raise UsageError(
                f"hidden states: {lost[0].phase} layer {lost[0].layer} stands in no list of "
                f"layers, so its own are not known; {NO_HIDDEN}"
            )
        return [each for w in watched for each in around(w.phase, w.layer, owner[id(w.module)])]

    def projection(self) -> Shown | None:
        """Say which module makes actions (or tokens) of the last hidden states of a step.

        It takes those of the query tokens that `PhaseShape.last` says, in their order. By default there is
        none.
        """
        return None

    def check_hidden(self) -> None:  # noqa: B027 - hooks see the hidden states of most
        """Check that `layers` are seen by hooks; adapters whose are not raise a UsageError."""

    def check_values(self) -> None:
        """Check that the adapter says where values are made.

        Raises
        ------
        UsageError
            If it does not.
        """
        if self.value_norms == NO_VALUES:
            name = getattr(self, "name", type(self).__name__)
            raise UsageError(
                f"--values: policy {name} does not say where its values are made; {LEAVE_OUT}"
            )

    def norms_of_values(self) -> ValueNorms:
        """Return the policy's `ValueNorms`, whose matrices are kept from capture to capture."""
        kept: ValueNorms = vars(self).setdefault("_value_norms", ValueNorms())
        return kept

    def values(self, watched: Sequence[Watched]) -> Sequence[LayerValues]:
        """Say of every watched module where its values are made and taken up, for ``--values``.

        By default modules ``v_proj`` and ``o_proj`` inside it; a suffix has the values of the
        prefix's layer of the same number before its own.

        Raises
        ------
        UsageError
            If a module has no such projections.
        """
        norms = self.norms_of_values()
        found: list[LayerValues] = []
        prefix: dict[int, ProjectedValues] = {}
        for each in watched:
            own = projections(each.module)
            if own is None:
                raise no_projections(each.module, f"{each.phase} layer {each.layer}")
            made = ProjectedValues(
                norms, own, prefix.get(each.layer) if each.phase == "suffix" else None
            )
            if each.phase == "prefix":
                prefix[each.layer] = made
            found.append(made)
        return found

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
        UsageError
            If `observer` wants to be shown what this policy cannot show.
        """
        watch = observer.watch
        with ExitStack() as stack:
            # Hooks added after a compiled call fire nothing; eager execution is the only sure way.
            stack.enter_context(_uncompiled(getattr(self, "model", None)))
            stack.enter_context(self.eager())
            modules = list(self.watched())
            if watch.vision:
                vision = self.watched_encoder()
                stack.enter_context(eager_attention([w.module for w in vision]))
                stack.enter_context(asked_for_weights([w.module for w in vision]))
                modules += vision
            values: Sequence[LayerValues | None] = [None] * len(modules)
            if watch.values:
                self.check_values()
                values = self.values(modules)
            for watched, own in zip(modules, values, strict=True):
                # Its hooks first: the weights' hook takes what they saw.
                for remove in [] if own is None else own.hooks():
                    stack.callback(remove)
                hook = partial(_attention, observer, watched, own)
                stack.callback(watched.module.register_forward_hook(hook).remove)
            for shown in self._shown(modules, watch) if watch.shows_hidden else ():
                if shown.entering:
                    entering = partial(_entering, observer, shown)
                    stack.callback(
                        shown.module.register_forward_pre_hook(entering, with_kwargs=True).remove
                    )
                else:
                    left = partial(_hidden, observer, shown)
                    stack.callback(shown.module.register_forward_hook(left).remove)
            if (encoder := self.encoder()) is not None:
                counted = partial(_encoded, observer)
                stack.callback(encoder.register_forward_hook(counted, with_kwargs=True).remove)
            if (denoiser := self.denoiser()) is not None:
                module, position = denoiser
                seen = partial(_noisy, observer, position)
                stack.callback(module.register_forward_pre_hook(seen, with_kwargs=True).remove)
            yield

    def _shown(self, modules: Sequence[Watched], watch: Watch) -> Iterator[Shown]:
        """Where the hidden states that an observer wants are seen."""
        self.check_hidden()
        # Those inside the encoder are not stored.
        wanted = [m for m in modules if watch.token_stats or m.phase != VISION]
        yield from self.layers(wanted)
        if watch.hidden is not None and (projection := self.projection()) is not None:
            yield projection


def _uncompiled(model: Any) -> AbstractContextManager[Any]:
    """Have compiled code run as it was written.

    Raises
    ------
    UsageError
        If this torch cannot, and something is compiled.
    """
    import torch

    if hasattr(torch.compiler, "set_stance"):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    if any(type(m).__name__ == "OptimizedModule" for m in modules):
        raise UsageError(
            f"torch {torch.__version__} runs a compiled policy no other way, and its attention is not "
            "seen then: load it without torch.compile, or with torch 2.6 or newer"
        )
    return nullcontext()


@contextmanager
def eager_attention(modules: Sequence[Any]) -> Iterator[None]:
    """Make transformers' attention modules compute their weights, and nothing else eager."""
    configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextmanager
def asked_for_weights(modules: Sequence[Any]) -> Iterator[None]:
    """Ask modules for their weights that return them on request only, as before transformers 5."""
    with ExitStack() as stack:
        for module in modules:
            if "output_attentions" in inspect.signature(module.forward).parameters:
                asked = module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True)
                stack.callback(asked.remove)
        yield


def _ask_for_weights(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    # Keywords stay keywords: other hooks look for them.
    place = list(inspect.signature(module.forward).parameters).index("output_attentions")
    if len(args) > place:
        return (*args[:place], True, *args[place + 1 :]), kwargs
    return args, {**kwargs, "output_attentions": True}


def _entering(observer: Observer, shown: Shown, module: Any, args: Any, kwargs: Any) -> None:
    given = args[0] if args else kwargs.get("hidden_states")
    _show_hidden(observer, shown, module, given)


def _hidden(observer: Observer, shown: Shown, module: Any, args: Any, output: Any) -> None:
    _show_hidden(observer, shown, module, output)


def _show_hidden(observer: Observer, shown: Shown, module: Any, value: Any) -> None:
    states = None if value is None else shown.states(value)
    if states is None or states.ndim != 3:
        found = "none" if states is None else f"shape {tuple(states.shape)}"
        raise HealthError(
            f"{shown.phase} {_place(shown.layer)}: {type(module).__name__} shows no "
            f"(batch, query, feature) hidden states ({found})"
        )
    observer.hidden(shown.phase, shown.layer, states.detach())


def _place(layer: int) -> str:
    return {EMBEDDING: "embedding", LAST: "last hidden states"}.get(layer, f"layer {layer}")


def _attention(
    observer: Observer,
    watched: Watched,
    values: LayerValues | None,
    module: Any,
    args: Any,
    output: Any,
) -> None:
    weights = watched.weights(output)
    if weights is None or weights.ndim != 4:
        found = "none" if weights is None else f"shape {tuple(weights.shape)}"
        raise HealthError(
            f"{watched.phase} layer {watched.layer}: {type(module).__name__} returned no "
            f"(batch, head, query, key) weights ({found}); its attention is not eager"
        )
    weights, norms = weights.detach(), None
    if values is not None:
        norms = values.take(weights, f"{watched.phase} layer {watched.layer}")
    observer.attention(watched.phase, watched.layer, weights, norms)


def _encoded(observer: Observer, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    images = args[0] if args else kwargs.get("pixel_values")
    if images is not None:
        observer.encoded(int(images.shape[0]))


def _noisy(observer: Observer, position: int, module: Any, args: Any, kwargs: Any) -> None:
    values = args[position] if len(args) > position else kwargs.get("noise")
    if values is not None:
        observer.noisy_actions(values.detach())


@contextmanager
def instead(owner: Any, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Have a function of one object, or of a module, go through `call`, which gets the original first."""
    before, original = vars(owner).get(name), getattr(owner, name)

    def through(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    setattr(owner, name, through)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
