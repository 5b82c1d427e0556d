"""LeRobot's Pi0 and Pi0.5: PaliGemma and a Gemma expert, ported from openpi.

Prefix: ``model.paligemma_with_expert.paligemma.model.language_model.layers[i].self_attn``. Suffix,
once per denoising step: ``model.paligemma_with_expert.gemma_expert.model.layers[i].self_attn``.
Sequence: image tokens of the cameras in the batch, of the missing ones (masked), BOS, prompt,
padding. An image is scaled to fit and padded on both sides. Both modules are eager by LeRobot's
own doing, at every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, Axis, Span, TokenLayout

from ..base import LAST, EncoderShape, PhaseShape, Sample
from ..blocking import Blocked, block_by_mask
from ..checkpoint import unwrap
from ..hooks import Shown, Watched, eager_attention
from ..prompt import pi05_spans, text_spans, token_text
from ..vision import pair, vision_shape
from .base import TOKENS, LeRobotPolicy, Sizes


class LeRobotPaliGemma(LeRobotPolicy):
    """What LeRobot's policies over PaliGemma have in common: images, prompt, encoder."""

    state_in_prompt: ClassVar[bool] = False
    """Whether the prompt spells the robot's state."""

    def eager(self) -> AbstractContextManager[None]:
        """Eager attention in the watched modules.

        LeRobot sets it at every call of Pi0 and Pi0.5, and leaves it so; here it is as before afterwards.
        """
        return eager_attention([watched.module for watched in self.watched()])

    def encoder(self) -> Any:
        """SigLIP's vision tower."""
        return unwrap(self._paligemma.vision_tower)

    def encoder_shape(self) -> EncoderShape:
        """Shape of SigLIP, from its configuration."""
        return vision_shape(self._vision)

    def seen(
        self, inputs: Mapping[str, Any], row: int, sizes: Sizes
    ) -> tuple[list[Span], dict[str, Geometry], int]:
        """Lay out images and prompt, which all of these policies begin with.

        Returns
        -------
        Their spans, each camera's geometry, and their length in the model's own sequence, padding included.
        """
        geometry = {camera: self._geometry(size) for camera, size in sizes.items()}
        spans: list[Span] = []
        count = 0
        for camera, shape in geometry.items():
            count = shape.grid[0] * shape.grid[1]
            start = len(spans) * count
            name = f"image:{camera}"
            spans.append(
                Span(name, "image", start, start + count, start, camera=camera, grid=shape.grid)
            )
        text_start = count * (len(sizes) + self.empty_images(len(sizes)))
        spans += self.prompt_spans(inputs, row, start=count * len(sizes), model_start=text_start)
        return spans, geometry, text_start + int(inputs[TOKENS].shape[1])

    def prompt_spans(
        self, inputs: Mapping[str, Any], row: int, *, start: int, model_start: int
    ) -> list[Span]:
        r"""Split the prompt: ``BOS instruction newline``, or ``BOS Task: words, State: 12 255;\n...``."""
        tokens = self.text_tokens(inputs, row)
        if self.state_in_prompt:
            bos = bool(tokens) and tokens[0].id == self.tokenizer.bos_token_id
            found = pi05_spans(tokens, bos=bos, start=start, model_start=model_start)
            if found is not None:
                return found
        ids = [0] * model_start + [t.id for t in tokens]
        places = range(model_start, model_start + len(tokens))
        return text_spans(self.tokenizer, ids, places, start=start)

    def spell(self, token_id: int) -> str:
        """See `LeRobotPolicy.spell`; a word's leading space is kept."""
        return token_text(self.tokenizer, token_id)

    def _geometry(self, source: tuple[int, ...]) -> Geometry:
        height, width = self.config.image_resolution
        return Geometry.letterbox(
            (int(source[0]), int(source[1])),
            (int(height), int(width)),
            pair(self._vision.patch_size),
        )

    @property
    def _paligemma(self) -> Any:
        return unwrap(unwrap(self.model.paligemma_with_expert).paligemma).model

    @property
    def _text(self) -> Any:
        return unwrap(unwrap(self._paligemma).language_model)

    @property
    def _vision(self) -> Any:
        return unwrap(self._paligemma).config.vision_config


class LeRobotPi0(LeRobotPaliGemma):
    """Adapter of ``pi0``: the suffix begins with one state token."""

    family = "pi0"
    denoiser_steps = True
    state_token = True

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the modules' configurations."""
        text, expert = self._text.config, self._expert.config
        steps = int(self.config.num_inference_steps)
        return {
            "prefix": PhaseShape(
                len(self._text.layers),
                text.num_attention_heads,
                None,
                (TASK,),
                features=text.hidden_size,
            ),
            "suffix": PhaseShape(
                len(self._expert.layers),
                expert.num_attention_heads,
                steps,
                ("action",),
                features=expert.hidden_size,
                last="action",
            ),
        }

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model (prefix) and of the expert (suffix)."""
        return [
            Watched(phase, i, unwrap(layer).self_attn)
            for phase, part in (("prefix", self._text), ("suffix", self._expert))
            for i, layer in enumerate(part.layers)
        ]

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks that Gemma's layers get."""
        return block_by_mask(self.watched(), blocked)

    def denoiser(self) -> tuple[Any, int]:
        """Return the projection that gets the noisy actions at each step."""
        return self.model.action_in_proj, 0

    def projection(self) -> Shown:
        """The projection of the action tokens."""
        return Shown("suffix", LAST, self.model.action_out_proj, entering=True)

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        spans, geometry, length = self.seen(inputs, row, sizes)
        prefix = Axis(tuple(spans))
        lead = (Span("state", "state", 0, 1, 0),) if self.state_token else ()
        at = len(lead)
        suffix = Axis((*lead, Span("action", "action", at, at + self.horizon, at)))
        key = prefix.followed_by(suffix, model_offset=length)
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            geometry,
        )

    @property
    def _expert(self) -> Any:
        return unwrap(unwrap(unwrap(self.model.paligemma_with_expert).gemma_expert).model)


class LeRobotPi05(LeRobotPi0):
    """Adapter of ``pi05``: the state is written into the prompt, and there is no state token."""

    family = "pi05"
    state_token = False
    state_in_prompt = True
