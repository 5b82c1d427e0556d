"""Where an openpi observation's tokens lie in the model's sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnstore.store.format.generated import DECODE, reserve
from attnstore.store.format.tokens import Axis, Span, Token, TokenLayout

from ..base import ObservationError, PolicyError, Sample
from ..passes import PREFIX
from ..prompt import pi05_spans, text_spans, token_text
from .observation import Slot
from .robot import model_inputs, valid_inputs


class ModelSequence:
    """Image inputs of equal length, then the prompt, padded on the right; then the suffix.

    Parameters
    ----------
    config
        openpi's model configuration.
    transforms
        openpi's input transforms; the tokenizer is one of them.
    inputs
        The model's image inputs, in order; None: all that the transforms make.

    Raises
    ------
    PolicyError
        If there is no tokenizer in the transforms.
    """

    def __init__(
        self, config: Any, transforms: Sequence[Any], inputs: Sequence[str] | None
    ) -> None:
        self._config, self._inputs = config, inputs
        self.pieces = Pieces(transforms)

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
        prefix = self._prefix(made, slots)
        horizon = int(self._config.action_horizon)
        # Pi0.5 writes the state into the prompt; time enters through the norms.
        own = [] if self._config.pi05 else [Span("state", "state", 0, 1, 0)]
        own.append(Span("action", "action", len(own), len(own) + horizon, len(own)))
        suffix = Axis(tuple(own))
        key = prefix.followed_by(suffix, model_offset=self._length(made, slots))
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            {slot.camera: slot.geometry for slot in slots},
        )

    def encoded(
        self, made: Mapping[str, Any], slots: Sequence[Sequence[Slot]]
    ) -> tuple[tuple[int, str] | None, ...]:
        """(sample, camera) of each image as the vision tower gets them: input by input."""
        shown = {(s.index, row): (row, s.camera) for row, each in enumerate(slots) for s in each}
        inputs = range(len(model_inputs(made, self._inputs)))
        return tuple(shown.get((i, row)) for i in inputs for row in range(len(slots)))

    def _prefix(self, made: Mapping[str, Any], slots: Sequence[Slot], moved: int = 0) -> Axis:
        """Lay out the images and the prompt, `moved` places to the right of where they begin."""
        images = self._image_spans(made, slots, moved)
        return Axis((*images, *self._text_spans(made, slots, images[-1].stop, moved)))

    def _text_start(self, made: Mapping[str, Any], slots: Sequence[Slot]) -> int:
        return len(model_inputs(made, self._inputs)) * _patches(slots)

    def _length(self, made: Mapping[str, Any], slots: Sequence[Slot]) -> int:
        """Tokens of the model's prefix, padding included."""
        return self._text_start(made, slots) + len(made["tokenized_prompt"])

    def _image_spans(
        self, made: Mapping[str, Any], slots: Sequence[Slot], moved: int
    ) -> list[Span]:
        shown = {slot.key: slot for slot in slots}
        inputs, count = model_inputs(made, self._inputs), _patches(slots)
        spans: list[Span] = []
        for name in valid_inputs(made, self._inputs):
            start, place = len(spans) * count, inputs.index(name) * count + moved
            if (slot := shown.get(name)) is None:
                spans.append(Span(f"empty:{name}", "other", start, start + count, place))
                continue
            spans.append(
                Span(
                    f"image:{slot.camera}", "image", start, start + count, place,
                    camera=slot.camera, grid=slot.geometry.grid,
                )
            )  # fmt: skip
        return spans

    def _text_spans(
        self, made: Mapping[str, Any], slots: Sequence[Slot], start: int, moved: int
    ) -> list[Span]:
        mask = np.asarray(made["tokenized_prompt_mask"], bool)
        ids = np.asarray(made["tokenized_prompt"])[mask].tolist()
        offset = self._text_start(made, slots) + moved
        # Pi0-FAST's prompts always have the state.
        if not getattr(self._config, "discrete_state_input", True):
            places = range(offset, offset + len(ids))
            return text_spans(self.pieces, [0] * offset + ids, places, start=start)
        tokens = [Token(i, token_text(self.pieces, i)) for i in ids]
        bos = bool(ids) and ids[0] == self.pieces.bos_token_id
        found = pi05_spans(tokens, bos=bos, start=start, model_start=offset)
        if found is not None:
            return found
        if mask.all():
            raise ObservationError(
                f"the prompt has more than the {len(mask)} tokens that the policy takes, so openpi "
                "would cut the robot state off: shorten the instruction"
            )
        text = "".join(token.text for token in tokens)
        raise PolicyError(
            f"this is no prompt of Pi0.5 or Pi0-FAST, the robot state is not found in it: {text!r}"
        )


class WritingSequence(ModelSequence):
    """Images and prompt of Pi0-FAST, which end where the padded ones would; then what is written.

    Parameters
    ----------
    config, transforms
        See `ModelSequence`.
    steps
        Tokens that are written at most.
    """

    def __init__(self, config: Any, transforms: Sequence[Any], steps: int) -> None:
        super().__init__(config, transforms, None)
        self._steps = steps

    def sample(self, made: Mapping[str, Any], slots: Sequence[Slot]) -> Sample:
        """See `ModelSequence.sample`.

        Raises
        ------
        PolicyError
            If an image input is masked.
        """
        inputs = model_inputs(made, None)
        if masked := set(inputs) - set(valid_inputs(made, None)):
            # What it writes attends to as many places before it as there are valid tokens.
            raise PolicyError(
                f"image input {', '.join(sorted(masked))} is masked, and openpi's Pi0-FAST writes over masked "
                "inputs instead of as many tokens at the beginning: have the transform say True, as openpi's "
                "own do for Pi0-FAST"
            )
        moved = int(np.sum(~np.asarray(made["tokenized_prompt_mask"], bool)))
        prefix = self._prefix(made, slots, moved)
        length = self._length(made, slots)
        return Sample(
            {
                PREFIX: TokenLayout(PREFIX, prefix, prefix),
                DECODE: reserve(prefix, length=length, steps=self._steps),
            },
            {slot.camera: slot.geometry for slot in slots},
        )


class Pieces:
    """openpi's SentencePiece tokenizer, under the names that transformers' tokenizers have."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        found = [t.tokenizer for t in transforms if hasattr(t, "tokenizer")]
        names = ("_tokenizer", "_paligemma_tokenizer")
        model = next((getattr(t, n) for t in found for n in names if hasattr(t, n)), None)
        if model is None or len(found) > 1:
            raise PolicyError(
                "openpi's transforms have no PaliGemma tokenizer, so the prompt's tokens would "
                "have no strings"
            )
        self._model = model
        self.bos_token_id = int(model.bos_id())

    def convert_ids_to_tokens(self, token_id: int) -> str:
        """Return a token's piece."""
        return str(self._model.id_to_piece(int(token_id)))

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, no BOS before them."""
        return [int(i) for i in self._model.encode(text)]


def _patches(slots: Sequence[Slot]) -> int:
    rows, cols = slots[0].geometry.grid
    return rows * cols
