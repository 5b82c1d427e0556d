"""Flow matching, and two auxiliary losses that a CPU's hour needs.

Both shape the attention maps that a trained checkpoint shows:

``patches``
    From each image token, as the language model receives it: the share of every class in its patch,
    and the place of the object that it shows.
``words``
    From the colour words' hidden states: where the named cube and bowl are, seen from the hand. It
    asks the words to look at the objects that they name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .architecture import BOWL_WORD, CUBE_WORD, IMAGE, PATCH
from .batches import CLASSES, Targets, image_patches
from .samples import CAMERAS

_TEXT = len(CAMERAS) * (IMAGE // PATCH) ** 2 + 1  # image tokens and BOS
WORD_LAYERS = (2, 3, 4)
"""Layers after which the words' hidden states are asked; the expert cannot see the last one's."""


class Probes(nn.Module):
    """Linear read-outs for the auxiliary losses; not part of the checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, len(CLASSES))
        self.place = nn.ModuleList(nn.Linear(width, 2) for _ in CAMERAS)
        self.words = nn.ModuleList(nn.Linear(width, 2) for _ in range(2 * len(WORD_LAYERS)))


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of the loss, each a scalar."""

    flow: torch.Tensor
    classes: torch.Tensor
    place: torch.Tensor
    words: torch.Tensor


def embed(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Return image and text embeddings, (batch, token, width)."""
    embedded: torch.Tensor = model.model.embed_prefix(
        inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"]
    )
    return embedded


def prefix(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Run images and text; return (image and text embeddings, the language model's output).

    All instructions are equally long, so that nothing is padded and no mask is needed.
    """
    embedded = embed(model, inputs)
    output = model.model.vlm(
        inputs_embeds=embedded,
        token_type_ids=torch.zeros_like(inputs["input_ids"]),
        use_cache=True,
        output_hidden_states=True,
    )
    return embedded, output


def losses(
    model: Any,
    probes: Probes,
    inputs: dict[str, Any],
    actions: torch.Tensor,
    targets: Targets,
    *,
    draws: int,
    part: str = "all",
) -> Losses:
    """Compute all losses of a batch.

    Parameters
    ----------
    draws
        Draws of noise and time for every sample, which share its prefix.
    part
        How much of the model to run: ``vision``, ``prefix`` or ``all``. Losses of what does not run
        are 0.
    """
    nothing = torch.zeros(())
    if part == "vision":
        embedded, hidden = embed(model, inputs), None
    else:
        embedded, output = prefix(model, inputs)
        hidden = output.hidden_states
    words = nothing
    if hidden is not None:
        told = word_places(probes, hidden)
        wanted = targets.words[:, None].expand_as(told)
        words = functional.smooth_l1_loss(told, wanted, beta=0.1)
    flow = nothing
    if part == "all":
        cache = output.past_key_values
        cache.batch_repeat_interleave(draws)
        flow = model(
            state=inputs["state"].repeat_interleave(draws, 0),
            past_key_values=cache,
            actions=actions.repeat_interleave(draws, 0),
        ).loss
    patches = image_patches(embedded)
    classes = functional.cross_entropy(
        probes.classes(patches).flatten(0, 2).float(), targets.classes.flatten(0, 2)
    )
    found = torch.stack([head(patches[:, i]) for i, head in enumerate(probes.place)], dim=1).float()
    error = functional.smooth_l1_loss(found, targets.place, beta=0.1, reduction="none").sum(-1)
    place = (error * targets.shown).sum() / targets.shown.sum().clamp(min=1)
    return Losses(flow, classes, place, words)


def word_places(probes: Probes, hidden: Any) -> torch.Tensor:
    """Read the named cube's and bowl's place off the words, (batch, layer, 2, 2), in 0.1 m."""
    heads = iter(probes.words)
    found = [
        torch.stack([next(heads)(hidden[n][:, _TEXT + word]) for word in (CUBE_WORD, BOWL_WORD)], 1)
        for n in WORD_LAYERS
    ]
    return torch.stack(found, dim=1).float()
