"""Pi0-FAST of openpi in JAX: PaliGemma alone, which writes an action chunk as FAST's tokens.

Sequence: the image inputs, of which none is masked, and the prompt, all attending to each other, moved to
the right so that they end where the padded prompt would: phase ``prefix``. Then ``Action: ``, FAST's tokens,
``|`` and the end, each a step of phase ``decode``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.generated import DECODE
from attnstore.store.format.tokens import TASK

from ..about import About
from ..base import Batch, Generated, Observation, PhaseShape
from ..blocking import Bools, forbidden
from ..checkpoint import check_options
from ..fast import fast_places, written
from ..hooks import instead
from ..passes import PREFIX, Passes
from ..released import WORDS, tokens, writing
from .checkpoint import openpi, train_config, writes_actions
from .family import SEEN
from .jax_policy import NO_VISION, OpenpiJaxPolicy
from .layout import ModelSequence, WritingSequence
from .traced import Shown, Weights, tensor

if TYPE_CHECKING:
    import torch


class OpenpiJaxFastPolicy(OpenpiJaxPolicy):
    """Adapter of openpi's Pi0-FAST in JAX.

    Parameters and errors are those of `OpenpiJaxPolicy`, but that there is no option ``steps``: openpi's
    ``Policy`` takes no other number of tokens than the default of ``sample_actions``.
    """

    denoiser_steps = False
    about = (
        About(
            "Pi0-FAST of openpi in JAX",
            {
                "prefix": "the image inputs, black ones too, then the prompt with the state's numbers; one pass",
                "decode": "the generated token, FAST's with the numbers that it stands for, over all before it; "
                "each token",
            },
            "openpi 15a9616 with jax 0.5.3, reduced, taught three chunks, on a CPU (make test-openpi)",
            NO_VISION,
            released=writing(
                "pi0_fast_droid, a state of 8 numbers, 256 tokens written (fewer are usual)",
                tokens(base=(16, 16), empty=256, wrist=(16, 16), bos=1, task=WORDS, state_text=45),
                shape=(18, 8, 2048),
                steps=256,
            ),
        ),
    )
    _takes = (*OpenpiJaxPolicy._takes, "token_ar_mask", "token_loss_mask")

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and decode, from the configuration."""
        text = openpi("models.gemma_fast").get_config(self.config.paligemma_variant)
        prefix = PhaseShape(
            text.depth, text.num_heads, None, (TASK,), causal=False, features=text.width
        )
        decode = replace(
            prefix, steps=self.steps, query_groups=("readout",), causal=True, last="readout"
        )
        return {PREFIX: prefix, DECODE: decode}

    def act(self, batch: Batch) -> torch.Tensor:
        """Let the policy write each sample's chunk; what its tokens are goes to the observer.

        What is no action to openpi is a chunk of zeros, as its own policy gives it.

        Raises
        ------
        HealthError
            If a query has nothing left to attend to.
        PolicyError
            If Gemma's attention is not what the adapter knows.
        """
        found, shown = self._sampled(batch)
        # openpi's numbers of tokens are floats.
        ids = [self._ended(row) for row in found.astype(np.int64).tolist()]
        passes = None if self._observer is None else Passes(self._observer, causal=False)
        if passes is not None:
            passes.begin(batch, rows=0)
        self._show(passes, shown, ids)
        chunks, generated = zip(*map(self._decoded, ids), strict=True)
        if passes is not None:
            passes.generated(generated)
        return tensor(np.stack(chunks).astype(np.float32))

    def _options(self, options: Mapping[str, str] | None) -> tuple[dict[str, str], int]:
        given = dict(options or {})
        check_options(f"{self.name} with Pi0-FAST", given, SEEN)
        sample = inspect.signature(openpi("models.pi0_fast").Pi0FAST.sample_actions)
        return given, int(sample.parameters["max_decoding_steps"].default)

    @property
    def _sampling(self) -> dict[str, Any]:
        return {}

    def _image_inputs(self) -> None:
        return None

    def _laid_out(self, keys: Sequence[str] | None) -> ModelSequence:
        return WritingSequence(self.config, self._sight.transforms, self.steps)

    def _drawn(self, observations: Sequence[Observation]) -> dict[str, Any]:
        return {}

    def _closed(self, batch: Batch) -> dict[str, Bools]:
        if not self._blocked:
            return {}
        last = batch.samples[0].layouts[PREFIX].key.spans[-1]
        length = last.model_start + len(last)

        def laid(phase: str, queries: int, keys: int) -> Bools:
            shape = (len(batch), queries, keys)
            layers = range(self.phases[phase].layers)
            return np.stack([forbidden(self._blocked.get((phase, n), {}), shape) for n in layers])

        own = laid(DECODE, 1, length + self.steps)
        prefix = np.pad(laid(PREFIX, length, length), ((0, 0),) * 3 + ((0, self.steps),))
        # The prompt's last row chooses the first token.
        prefix[:, :, -1:] |= own
        return {PREFIX: prefix, DECODE: own}

    def _show(
        self, passes: Passes | None, shown: Sequence[Shown], ids: Sequence[Sequence[int]]
    ) -> None:
        """Hand on every pass that chose a token; after the last one openpi runs another."""
        showing = self._showing(passes)
        count = sum(isinstance(each, Weights) for each in shown) // self.phases[PREFIX].layers
        for number in range(min(count, max(map(len, ids)))):
            size = len(shown) // count
            for each in shown[number * size : (number + 1) * size]:
                showing.take(each)
            if passes is not None:
                passes.continuing([i for i, own in enumerate(ids) if number + 1 < len(own)])

    def _ended(self, written_ids: list[int]) -> list[int]:
        """What one sample wrote, its end included: in a batch, openpi goes on until all end at once."""
        end = openpi("models.pi0_fast").PALIGEMMA_EOS_TOKEN
        return written_ids[: written_ids.index(end) + 1] if end in written_ids else written_ids

    def _decoded(self, ids: list[int]) -> tuple[NDArray[Any], Generated]:
        """Let openpi make a chunk of what was written, and say which numbers of it each token is."""
        extract, taken = self._extract, list[list[int]]()

        def kept(decode: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
            taken.extend(own)
            return decode(own, *args, **kwargs)

        tokenizer, row = extract.tokenizer, np.zeros(self.steps)
        row[: len(ids)] = ids
        with instead(tokenizer._fast_tokenizer, "decode", kept):
            chunk = extract({"actions": row})["actions"]
        pieces = self._sequence.pieces
        places = fast_places(ids, pieces.encode("Action: "), pieces.encode("|")[-1])
        own = [int(i) for i in tokenizer._act_tokens_to_paligemma_tokens([ids[i] for i in places])]
        said = written(pieces, tokenizer._fast_tokenizer, ids, places, own)
        numbers = sum(len(each.values) for each in said.coefficients if each is not None)
        if taken != [own] or numbers != self.horizon * self.action_dof:
            # openpi reads the text again, maybe something else; and FAST gives zeros for any other count.
            said = written(pieces, tokenizer._fast_tokenizer, ids, [], [])
        return chunk, said

    @cached_property
    def _extract(self) -> Any:
        """Openpi's transform that makes actions of tokens."""
        return next(t for t in self.theirs._output_transform.transforms if hasattr(t, "tokenizer"))


def load_openpi_jax(
    checkpoint: str,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    options: Mapping[str, str] | None = None,
) -> OpenpiJaxPolicy:
    """Load a JAX checkpoint of openpi's; see `OpenpiJaxPolicy`."""
    writes = writes_actions(train_config(variant, in_jax=True).model)
    kind = OpenpiJaxFastPolicy if writes else OpenpiJaxPolicy
    return kind(
        checkpoint, variant=variant, dtype=dtype, device=device, revision=revision, options=options
    )


load_openpi_jax.about = tuple(  # type: ignore[attr-defined]
    replace(about, adapter=kind)
    for kind in (OpenpiJaxPolicy, OpenpiJaxFastPolicy)
    for about in kind.about
)
load_openpi_jax.recognises = OpenpiJaxPolicy.recognises  # type: ignore[attr-defined]
load_openpi_jax.value_norms = OpenpiJaxPolicy.value_norms  # type: ignore[attr-defined]
load_openpi_jax.hidden_states = OpenpiJaxPolicy.hidden_states  # type: ignore[attr-defined]
