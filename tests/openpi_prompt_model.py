"""A small SentencePiece model with the conventions of PaliGemma's, trained on the spot."""

from __future__ import annotations

import io
from functools import cache

WORDS = (
    "place the green cube into the pink bowl", "put the red cube onto the pink plate",
    "pick up the yellow block and wipe", "Task: , State: ;\nAction: ",
)  # fmt: skip


@cache
def sentencepiece_model() -> bytes:
    """Digits are tokens of their own, unknown characters bytes, and no space is put in front."""
    from sentencepiece import SentencePieceTrainer

    lines = [*WORDS, *(f"{n} {n % 7}" for n in range(0, 256, 3))] * 3
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=420,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", user_defined_symbols=["\n"], hard_vocab_limit=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
