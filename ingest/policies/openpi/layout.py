"""Where an openpi observation's tokens lie in the model's sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnstore.store.format.tokens import Axis, Span, Token, TokenLayout

from ..base import ObservationError, PolicyError, Sample
from ..prompt import pi05_spans, text_spans, token_text
from .observation import Slot


class ModelSequence:
    """Image inputs of equal length, then the prompt, padded on the right; then the suffix.

    Parameters
    ----------
    config
        openpi's model configuration.
    transforms
        openpi's input transforms; the tokenizer is one of them.
    inputs
        Number of the model's image inputs, masked ones included.

    Raises
    ------
    PolicyError
        If there is no tokenizer in the transforms.
    """

    def __init__(self, config: Any, transforms: Sequence[Any], inputs: int) -> None:
        self._config, self._inputs = config, inputs
        self._pieces = _Pieces(transforms)

    def sample(self, made: Mapping[str, Any], slots: Sequence[Slot]) -> Sample:
        """Return the token layouts and geometry of one observation.

        Parameters
        ----------
        made
            What openpi's transforms made of it.
        slots
            Its valid image inputs.

        Raises
        ------
        ObservationError
            If openpi cut the prompt off before its end.
        PolicyError
            If the prompt is not what the configuration says.
        """
        prefix = Axis((*_image_spans(slots), *self._text_spans(made, slots)))
        horizon = int(self._config.action_horizon)
        # Pi0.5 writes the state into the prompt; time enters through the norms.
        own = [] if self._config.pi05 else [Span("state", "state", 0, 1, 0)]
        own.append(Span("action", "action", len(own), len(own) + horizon, len(own)))
        suffix = Axis(tuple(own))
        length = self._text_start(slots) + len(made["tokenized_prompt"])
        key = prefix.followed_by(suffix, model_offset=length)
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            {slot.camera: slot.geometry for slot in slots},
        )

    def encoded(self, slots: Sequence[Sequence[Slot]]) -> tuple[tuple[int, str] | None, ...]:
        """(sample, camera) of each image as the vision tower gets them: input by input."""
        shown = {(s.index, row): (row, s.camera) for row, each in enumerate(slots) for s in each}
        return tuple(shown.get((i, row)) for i in range(self._inputs) for row in range(len(slots)))

    def _text_start(self, slots: Sequence[Slot]) -> int:
        rows, cols = slots[0].geometry.grid
        return self._inputs * rows * cols

    def _text_spans(self, made: Mapping[str, Any], slots: Sequence[Slot]) -> list[Span]:
        mask = np.asarray(made["tokenized_prompt_mask"], bool)
        ids = np.asarray(made["tokenized_prompt"])[mask].tolist()
        offset = self._text_start(slots)
        start = sum(s.geometry.grid[0] * s.geometry.grid[1] for s in slots)
        if not self._config.discrete_state_input:
            places = range(offset, offset + len(ids))
            return text_spans(self._pieces, [0] * offset + ids, places, start=start)
        tokens = [Token(i, token_text(self._pieces, i)) for i in ids]
        bos = bool(ids) and ids[0] == self._pieces.bos_token_id
        found = pi05_spans(tokens, bos=bos, start=start, model_start=offset)
        if found is not None:
            return found
        if mask.all():
            raise ObservationError(
                f"the prompt has more than the {len(mask)} tokens that the policy takes, so openpi "
                "would cut the robot state off: shorten the instruction"
            )
        text = "".join(token.text for token in tokens)
        raise PolicyError(f"this is no Pi0.5 prompt, the robot state is not found in it: {text!r}")


class _Pieces:
    """openpi's SentencePiece tokenizer, under the names that transformers' tokenizers have."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        found = [t.tokenizer for t in transforms if hasattr(t, "tokenizer")]
        model = getattr(found[0], "_tokenizer", None) if len(found) == 1 else None
        if model is None:
            raise PolicyError(
                "openpi's transforms have no PaliGemma tokenizer, so the prompt's tokens would "
                "have no strings"
            )
        self._model = model
        self.bos_token_id = int(model.bos_id())

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return str(self._model.id_to_piece(int(token_id)))


def _image_spans(slots: Sequence[Slot]) -> list[Span]:
    spans: list[Span] = []
    for slot in slots:
        grid = slot.geometry.grid
        start, count = spans[-1].stop if spans else 0, grid[0] * grid[1]
        spans.append(
            Span(
                f"image:{slot.camera}", "image", start, start + count, slot.index * count,
                camera=slot.camera, grid=grid,
            )
        )  # fmt: skip
    return spans
