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
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, Axis, Span, TokenLayout

from ..base import LAST, EncoderShape, PhaseShape, Sample
from ..blocking import Blocked, block_by_mask
from ..checkpoint import unwrap
from ..hooks import Shown, Watched, eager_attention
from ..prompt import pi05_spans, text_spans, token_text
from ..vision import pair, vision_shape
from .base import TOKENS, LeRobotPolicy


class LeRobotPi0(LeRobotPolicy):
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

    def eager(self) -> AbstractContextManager[None]:
        """Eager attention in the language model and the expert.

        LeRobot sets it at every call, and leaves it so; here it is as before afterwards.
        """
        return eager_attention([watched.module for watched in self.watched()])

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks that Gemma's layers get."""
        return block_by_mask(self.watched(), blocked)

    def encoder(self) -> Any:
        """SigLIP's vision tower."""
        return unwrap(self._paligemma.vision_tower)

    def encoder_shape(self) -> EncoderShape:
        """Shape of SigLIP, from its configuration."""
        return vision_shape(self._vision)

    def denoiser(self) -> tuple[Any, int]:
        """Return the projection that gets the noisy actions at each step."""
        return self.model.action_in_proj, 0

    def projection(self) -> Shown:
        """The projection of the action tokens."""
        return Shown("suffix", LAST, self.model.action_out_proj, entering=True)

    def sample(
        self, inputs: Mapping[str, Any], row: int, sizes: Mapping[str, tuple[int, ...]]
    ) -> Sample:
        """See `LeRobotPolicy.sample`."""
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
        prefix = Axis(tuple(spans))
        lead = (Span("state", "state", 0, 1, 0),) if self.state_token else ()
        at = len(lead)
        suffix = Axis((*lead, Span("action", "action", at, at + self.horizon, at)))
        length = text_start + int(inputs[TOKENS].shape[1])
        key = prefix.followed_by(suffix, model_offset=length)
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            geometry,
        )

    def prompt_spans(
        self, inputs: Mapping[str, Any], row: int, *, start: int, model_start: int
    ) -> list[Span]:
        """Split the prompt, ``BOS instruction newline``."""
        tokens = self.text_tokens(inputs, row)
        ids = [0] * model_start + [t.id for t in tokens]
        places = range(model_start, model_start + len(tokens))
        return text_spans(self.tokenizer, ids, places, start=start)

    def token_text(self, token_id: int) -> str:
        """Return a token's string, a word's leading space kept."""
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
    def _expert(self) -> Any:
        return unwrap(unwrap(unwrap(self.model.paligemma_with_expert).gemma_expert).model)

    @property
    def _vision(self) -> Any:
        return unwrap(self._paligemma).config.vision_config


class LeRobotPi05(LeRobotPi0):
    """Adapter of ``pi05``: the state is written into the prompt, and there is no state token."""

    family = "pi05"
    state_token = False

    def prompt_spans(
        self, inputs: Mapping[str, Any], row: int, *, start: int, model_start: int
    ) -> list[Span]:
        r"""Split the prompt, ``BOS Task: words, State: 12 255;\nAction:``."""
        tokens = self.text_tokens(inputs, row)
        bos = bool(tokens) and tokens[0].id == self.tokenizer.bos_token_id
        spans = pi05_spans(tokens, bos=bos, start=start, model_start=model_start)
        if spans is None:
            return super().prompt_spans(inputs, row, start=start, model_start=model_start)
        return spans
