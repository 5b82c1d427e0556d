"""What a policy adapter says: the seam between model families and capture.

Adapters are found by `attnstore.ingest.policies.registry`. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import AttnstoreError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Token, TokenLayout

if TYPE_CHECKING:
    import torch


NO_HIDDEN = "leave them out: --no-hidden, and no --token-stats"
"""How hidden states are left out, for messages."""


class PolicyError(AttnstoreError):
    """A checkpoint cannot be loaded, or the policy cannot take what the dataset gives."""


class ObservationError(PolicyError):
    """The policy cannot take one observation; others may be fine."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees at one keyframe."""

    images: Mapping[str, NDArray[np.uint8]]
    """RGB per camera, (height, width, 3), in the policy's camera order.

    A `WindowPolicy` also gets earlier views and the goal's: ``hand_camera@-1``,
    ``hand_camera@goal``.
    """
    instruction: str
    state: NDArray[np.float32]
    """Robot state, (state_dof,), in the dataset's units."""
    seed: int
    """Seed of the initial noise."""
    recorded: Batch | None = None
    """The model inputs that were made of it when the policy drove; see `attnstore.ingest.reading.prepare`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How one observation of a batch lies in the model's sequences."""

    layouts: Mapping[str, TokenLayout]
    """Token layout per phase."""
    geometry: Mapping[str, Geometry]
    """Per camera."""


class LateSamples(Sequence[Sample]):
    """Samples that are made when they are first asked for, in whatever thread asks.

    Parameters
    ----------
    count
        How many there are.
    make
        Makes one; gives the same each time.
    """

    def __init__(self, count: int, make: Callable[[int], Sample]) -> None:
        self._made: list[Sample | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        row = range(len(self))[index]
        sample = self._made[row]
        if sample is None:
            sample = self._made[row] = self._make(row)
        return sample


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Batch:
    """Model inputs for some observations."""

    inputs: Mapping[str, Any]
    """Keyword arguments of the policy's own entry point, on its device."""
    samples: Sequence[Sample]
    encoded: tuple[tuple[int, str] | None, ...] = ()
    """(sample, camera) of every image in the order in which `Policy.act` puts them through the
    vision tower, over all its calls; None is an image that fills a gap. Needed for `Watch.vision`.
    """

    def __len__(self) -> int:
        return len(self.samples)

    def images_of(self, row: int) -> list[int]:
        """Places in `encoded` of one sample's images; those that fill gaps are every sample's in turn."""
        filling = [i for i, place in enumerate(self.encoded) if place is None]
        own = [i for i, place in enumerate(self.encoded) if place is not None and place[0] == row]
        return sorted(own + filling[row :: len(self)])


@dataclass(frozen=True, slots=True)
class ActionValue:
    """The number that a generated action token stands for."""

    bin: int
    """Of the normalised range, from its lowest."""
    normalised: float
    value: float
    """In the robot's units."""


@dataclass(frozen=True, slots=True)
class ActionCoefficients:
    """Numbers of an action chunk's spectrum that a generated FAST token stands for.

    The spectrum is the orthonormal cosine transform (DCT-II) of the normalised chunk along its actions.
    """

    first: int
    """Place of the first of them: frequency x action_dof + dimension of the action."""
    values: tuple[float, ...]
    """In the order of their places; none of a token that completes no number."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a policy wrote at one keyframe."""

    tokens: tuple[Token, ...]
    """One a step of phase ``decode``, end markers included."""
    text: str
    """Their text, without markers."""
    actions: tuple[ActionValue, ...] = ()
    """One for each token, where a token is a number of the action."""
    coefficients: tuple[ActionCoefficients | None, ...] = ()
    """One for each token, where tokens are FAST's; None for a token that is none."""


@dataclass(frozen=True, slots=True)
class PhaseShape:
    """Layers, heads and steps that a phase will deliver."""

    layers: int
    heads: int
    steps: int | None
    query_groups: tuple[str, ...]
    """Query groups that get statistics and overview maps."""
    causal: bool | None = None
    """Whether no query attends to a token behind it; None if that is not known."""
    features: int | None = None
    """Width of a hidden state; None if the policy shows none to be stored."""
    last: str | None = None
    """Kind, or span, of the query tokens whose hidden states are shown as `LAST`, in the order of the
    queries: ``action``; None if none are."""


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The image encoder that a policy puts each camera's image through."""

    layers: int
    """Self-attention layers; a pooling head is none."""
    heads: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    leading: tuple[tuple[str, int], ...] = ()
    """Tokens before the patches, as (name, count): a class token is ``("class", 1)``."""


@dataclass(frozen=True, slots=True)
class HiddenChoice:
    """Which hidden states are stored: means over spans and the last of action tokens always."""

    layers: tuple[int, ...] = ()
    """Layers of which every token is stored, too; `EMBEDDING` is what enters layer 0."""
    spans: tuple[str, ...] = ()
    """Spans of those tokens, by name, kind or role; none: all."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is captured beside the attention of the policy's own phases."""

    vision: bool = False
    """The attention inside the image encoder: phase ``vision``."""
    token_stats: bool = False
    """The hidden states' norms and cosines: table ``token_stats``."""
    values: bool = False
    """What each key token would add through each head: arrays ``value_norm``."""
    hidden: HiddenChoice | None = None
    """Hidden states of the policy's own phases: arrays ``hidden``; None: none."""

    @property
    def shows_hidden(self) -> bool:
        """Whether hidden states are to be shown."""
        return self.token_stats or self.hidden is not None


ATTENTION_ONLY = Watch()
LAST = -2
"""In place of a layer: the hidden states of which the policy makes actions, after the final norm."""


@dataclass(frozen=True, slots=True)
class SpanStates:
    """What is kept of one sample's hidden states after a layer, in float32, of the unrounded values."""

    mean: torch.Tensor = field(repr=False)
    """Mean over the tokens of each span of the queries, (span, feature)."""
    tokens: torch.Tensor | None = field(repr=False)
    """Every token of chosen spans, (token, feature); None where none are."""

    def __len__(self) -> int:
        """Samples: one."""
        return 1


class Observer(Protocol):
    """Gets what a policy shows while it acts, in the model's own thread and order.

    What it raises ends the forward pass.
    """

    @property
    def watch(self) -> Watch:
        """What else than the attention of the policy's own phases it wants to be shown."""
        ...

    def attention(
        self, phase: str, layer: int, weights: torch.Tensor, norms: torch.Tensor | None = None
    ) -> None:
        """Take one layer's weights, (batch, head, query, key), padding included; not to be changed.

        If `watch` asks for them, with its value norms, (batch, head, key) float32; a key that the
        layer does not have has 0 in both.

        A stepped phase's next step begins when its layer 0 comes again. In phase ``vision`` the
        first dimension is images, in the order of `Batch.encoded`, in one call or several.
        """
        ...

    def hidden(self, phase: str, layer: int, states: torch.Tensor | SpanStates) -> None:
        """Take the hidden states after a layer, (batch, query, feature); not to be changed.

        A recording shows again what it kept: `SpanStates` of the one sample.

        Those that enter layer 0 come first, as layer `EMBEDDING`, and begin a stepped phase's next
        step; they come before that layer's attention. In a phase with `PhaseShape.last` those of its
        tokens alone come at the end of every step, as layer `LAST`.
        """
        ...

    def encoded(self, images: int) -> None:
        """Take note that so many images went through the vision tower."""
        ...

    def noisy_actions(self, actions: torch.Tensor) -> None:
        """Take the input of a denoising step, (batch, horizon, action_dof)."""
        ...

    def continuing(self, samples: Sequence[int]) -> None:
        """Take note that from here on only these samples of the batch take part: others ended."""
        ...

    def generated(self, texts: Sequence[Generated]) -> None:
        """Take what each sample of the batch generated in phase ``decode``, after the last step."""
        ...


class Policy(Protocol):
    """A loaded policy. Used from one thread; weights may be loaded at the first `act`."""

    @property
    def name(self) -> str:
        """Adapter name: ``pi0``."""
        ...

    @property
    def checkpoint(self) -> str:
        """Hub id or directory name."""
        ...

    @property
    def dtype(self) -> str:
        """Data type of the weights."""
        ...

    @property
    def horizon(self) -> int:
        """Actions in a chunk; 0 if the policy generates text instead."""
        ...

    @property
    def action_dof(self) -> int:
        """Length of an action, padding included."""
        ...

    @property
    def denoiser_steps(self) -> bool:
        """Whether intermediate action chunks can be read (`denoiser`)."""
        ...

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Shape of every phase that will be captured."""
        ...

    def encoder_shape(self) -> EncoderShape:
        """Return the shape of the image encoder, for `Watch.vision`; weights are not needed.

        Raises
        ------
        UsageError
            If its attention cannot be captured; the message says why.
        """
        ...

    def check_hidden(self) -> None:
        """Check that `instrument` shows hidden states, for `Watch.token_stats` and `Watch.hidden`.

        Raises
        ------
        UsageError
            If it does not; the message says why.
        """
        ...

    def check_values(self) -> None:
        """Check that `instrument` shows value norms, for `Watch.values`; weights are not needed.

        Raises
        ------
        UsageError
            If it does not; the message says why.
        """
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what was loaded."""
        ...

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Turn observations into model inputs, with their token layouts.

        Raises
        ------
        ObservationError
            If the observations do not fit the policy.
        """
        ...

    def act(self, batch: Batch) -> torch.Tensor:
        """Run the policy: action chunks, (batch, horizon, action_dof), normalised units."""
        ...

    @property
    def watches_encoder(self) -> bool:
        """Whether `instrument` reports the images that go through the vision tower."""
        ...

    def instrument(self, observer: Observer) -> AbstractContextManager[None]:
        """Show `observer` what happens inside while the policy acts.

        Inside the context compiled code runs uncompiled and watched layers compute their weights;
        the actions are those of the eager model. What `observer.watch` does not ask for stays as
        it is, and costs nothing. Whatever it changes, it restores, also after an
        exception. PyTorch policies get this from `attnstore.ingest.policies.hooks.HookedPolicy`.
        """
        ...


def check_stored_hidden(policy: Policy) -> None:
    """Check that a policy's hidden states can be stored, for `Watch.hidden`; weights are not needed.

    Raises
    ------
    UsageError
        If it shows none, or does not say how wide they are.
    """
    policy.check_hidden()
    if lost := [phase for phase, shape in policy.phases.items() if shape.features is None]:
        raise UsageError(
            f"hidden states: policy {policy.name} does not say how wide those of phase {lost[0]} are "
            f"(PhaseShape.features); {NO_HIDDEN}"
        )


def shows_hidden(policy: Policy) -> bool:
    """Whether a policy's hidden states can be stored."""
    try:
        check_stored_hidden(policy)
    except UsageError:
        return False
    return True


def shows_values(policy: Policy) -> bool:
    """Whether a policy shows value norms."""
    try:
        policy.check_values()
    except UsageError:
        return False
    return True


def watch_where_shown(
    policy: Policy,
    *,
    vision: bool = False,
    token_stats: bool = False,
    values: bool | None = None,
    hidden: HiddenChoice | bool | None = None,
) -> Watch:
    """Watch what is asked for; where nothing is said (None), what the policy shows.

    Parameters
    ----------
    hidden
        False: none; True: as `HiddenChoice` by default.
    """
    if values is None:
        values = shows_values(policy)
    if hidden is None:
        hidden = shows_hidden(policy)
    if isinstance(hidden, bool):
        hidden = HiddenChoice() if hidden else None
    return Watch(vision, token_stats, values, hidden)


@runtime_checkable
class WindowPolicy(Protocol):
    """What a policy adds that sees more than the keyframe; others need not say anything."""

    @property
    def window(self) -> int:
        """Frames that it sees, the keyframe included."""
        ...

    @property
    def sees_goal(self) -> bool:
        """Whether it is shown the episode's last frame as its goal."""
        ...
