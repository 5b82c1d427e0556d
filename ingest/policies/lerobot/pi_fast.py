"""LeRobot's Pi0-FAST: PaliGemma alone, which writes an action chunk as FAST's tokens.

Sequence: image tokens of the cameras in the batch, of the missing ones (masked), BOS, prompt, padding,
and BOS again, all attending to each other: phase ``prefix``. Then ``Action: ``, FAST's tokens and ``|``,
each a step of phase ``decode``, with a key-value cache or, by the checkpoint's configuration, without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from attnstore.store.errors import HealthError
from attnstore.store.format.generated import DECODE, reserve
from attnstore.store.format.tokens import TASK, TEMPLATE, Axis, Span, Token, TokenLayout

from ..base import LAST, Batch, Generated, Observer, PhaseShape, PolicyError, Sample
from ..blocking import Blocked
from ..checkpoint import unwrap
from ..fast import fast_places, written
from ..hooks import Shown, Watched, instead
from ..passes import PREFIX, Passes, block_passes
from .base import Sizes
from .pi import LeRobotPaliGemma

END = "|"
"""The token that ends an action."""


class LeRobotPi0Fast(LeRobotPaliGemma):
    """Adapter of ``pi0_fast``."""

    family = "pi0_fast"
    acts_by_layout = True
    denoiser_steps = False
    noisy = False
    state_in_prompt = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # LeRobot decodes so many actions, whatever the chunk is called.
        self.horizon = int(config.n_action_steps)
        if config.temperature:
            raise PolicyError(
                f"{self.checkpoint}: it draws its tokens at random (temperature {config.temperature}), so no "
                "two calls are alike; set temperature to 0 in its config.json"
            )
        self._passes: Passes | None = None
        self._ended: set[int] = set()
        self._prompt = 0

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and decode, from the language model's configuration."""
        text = self._text.config
        prefix = PhaseShape(
            len(self._text.layers),
            text.num_attention_heads,
            None,
            (TASK,),
            causal=False,
            features=text.hidden_size,
        )
        steps = int(self.config.max_decoding_steps)
        decode = replace(
            prefix, steps=steps, query_groups=("readout",), causal=True, last="readout"
        )
        return {PREFIX: prefix, DECODE: decode}

    @property
    def vocabulary(self) -> int:
        """Rows of the language model's embedding."""
        return int(self._text.config.vocab_size)

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model; `Passes` names its phases."""
        return [
            Watched(PREFIX, i, unwrap(layer).self_attn) for i, layer in enumerate(self._text.layers)
        ]

    def projection(self) -> Shown:
        """The language model's head, which chooses the next token; `Passes` names the phase."""
        return Shown(PREFIX, LAST, self._head, entering=True)

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Hook the modules; every pass is shown in its phase, and whose action has ended is followed."""
        self._passes = passes = Passes(observer, causal=False)
        try:
            with super().instrument(passes), ExitStack() as stack:
                stack.callback(self._head.register_forward_hook(self._chosen).remove)
                yield
        finally:
            self._passes = None

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks that Gemma's layers get."""
        again = None if self.config.use_kv_cache else lambda: self._prompt
        return block_passes(self.watched(), blocked, again)

    def act(self, batch: Batch) -> Any:
        """Let the policy write each sample's chunk; what its tokens are goes to the observer.

        Raises
        ------
        HealthError
            If what it writes is no action to LeRobot.
        """
        sequences: list[list[int]] = []
        decoded: list[list[int]] = []

        def kept(generate: Any, *args: Any, **kwargs: Any) -> Any:
            found = generate(*args, **kwargs)
            sequences.extend(found.tolist())
            return found

        def taken(decode: Any, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
            decoded.extend(own.tolist() for own in token_ids)
            return decode(token_ids, *args, **kwargs)

        self._ended, self._prompt = set(), self._prompt_length(batch)
        if self._passes is not None:
            self._passes.begin(batch, rows=0)
        cached = "_kv_cache" if self.config.use_kv_cache else ""
        with (
            instead(self.model, f"sample_actions_fast{cached}", kept),
            instead(self.policy, "decode_actions_with_fast", taken),
        ):
            try:
                actions = super().act(batch)
            except AssertionError as error:
                if not sequences:
                    raise
                raise HealthError(self._no_action(sequences)) from error
        if self._passes is not None:
            self._passes.generated(
                [self._written(*each) for each in zip(sequences, decoded, strict=True)]
            )
        return actions

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        spans, geometry, place = self.seen(inputs, row, sizes)
        begin = Token(int(self.tokenizer.bos_token_id), str(self.tokenizer.bos_token))
        at = spans[-1].stop
        spans.append(Span("action_bos", "text", at, at + 1, place, role=TEMPLATE, tokens=(begin,)))
        axis = Axis(tuple(spans))
        steps = int(self.config.max_decoding_steps)
        return Sample(
            {
                PREFIX: TokenLayout(PREFIX, axis, axis),
                DECODE: reserve(axis, length=place + 1, steps=steps),
            },
            geometry,
        )

    def _prompt_length(self, batch: Batch) -> int:
        # BOS stands at its end, behind the padding.
        return batch.samples[0].layouts[PREFIX].key.spans[-1].model_start + 1

    def _chosen(self, module: Any, args: Any, output: Any) -> None:
        chosen = output[:, -1].argmax(-1).tolist()
        self._ended |= {i for i, token in enumerate(chosen) if token == self._end}
        if self._passes is not None:
            self._passes.continuing([i for i in range(len(chosen)) if i not in self._ended])

    def _written(self, sequence: Sequence[int], own: Sequence[int]) -> Generated:
        end = self._end
        ids = sequence[: sequence.index(end) + 1] if end in sequence else sequence
        places = fast_places(ids, self._opening, end)
        highest = int(self._words.vocab_size) - 1 - int(self.config.fast_skip_tokens)
        if [highest - ids[i] for i in places] != list(own):
            raise HealthError(
                f"LeRobot takes {len(own)} generated tokens for FAST's, {len(places)} were expected: "
                "this LeRobot cuts the text otherwise than this adapter knows"
            )
        return written(self._words, self.policy.action_tokenizer, ids, places, own)

    def _no_action(self, sequences: Sequence[Sequence[int]]) -> str:
        begins = [str(self._words.decode(list(ids[:8]))) for ids in sequences]
        texts = ", ".join(repr(text[:40]) for text in begins)
        return (
            f"the policy wrote no action: LeRobot wants 'Action:' at its beginning, it begins with {texts}; "
            "if the checkpoint was trained without it, set validate_action_token_prefix to false in its "
            "config.json"
        )

    @property
    def _head(self) -> Any:
        return unwrap(unwrap(unwrap(self.model.paligemma_with_expert).paligemma).lm_head)

    @property
    def _words(self) -> Any:
        return self.policy._paligemma_tokenizer

    @property
    def _end(self) -> int:
        return int(self._words.convert_tokens_to_ids(END))

    @property
    def _opening(self) -> list[int]:
        return list(self._words.encode("Action: ", add_special_tokens=False))
