"""What FAST's tokens stand for: numbers of an action chunk's spectrum.

FAST writes a chunk as its cosine transform, scaled and rounded, each number a character, and joins
characters that often follow each other to tokens of a byte-level vocabulary. So a token stands for as
many numbers as characters end in it: none, one or many.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from attnstore.store.format.tokens import Token

from .base import ActionCoefficients, Generated
from .prompt import token_bytes, token_text


def numbers_of(pieces: Sequence[bytes]) -> list[list[int]]:
    r"""Return the characters' numbers that each token completes.

    Parameters
    ----------
    pieces
        Bytes of the tokens; those of a character may be spread over several.

    Examples
    --------
    >>> numbers_of([b"\x0a\x0b", b"\xc3", b"\xa9\x01"])
    [[10, 11], [], [233, 1]]
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [[ord(c) for c in decoder.decode(piece)] for piece in pieces]


def fast_places(ids: Sequence[int], opening: Sequence[int], end: int) -> list[int]:
    """Return which of generated ids are FAST's: up to the end, without any opening.

    Parameters
    ----------
    opening
        Ids of ``Action: ``, with which a policy begins.
    end
        Id of ``|``.

    Examples
    --------
    >>> fast_places([1, 2, 7, 8, 5, 9], opening=[1, 2], end=5)
    [2, 3]
    """
    kept = list(range(list(ids).index(end) if end in ids else len(ids)))
    at = 0
    while opening and at <= len(kept) - len(opening):
        if [ids[i] for i in kept[at : at + len(opening)]] == list(opening):
            del kept[at : at + len(opening)]
        else:
            at += 1
    return kept


def written(
    tokenizer: Any, fast: Any, ids: Sequence[int], places: Sequence[int], own: Sequence[int]
) -> Generated:
    """Say what a policy wrote.

    Parameters
    ----------
    tokenizer
        Of the language model.
    fast
        FAST's processor: ``bpe_tokenizer``, ``min_token``, ``scale``.
    ids
        Generated token ids, the end marker included.
    places
        Which of them are FAST's.
    own
        Their ids in FAST's vocabulary.

    Returns
    -------
    Every token; FAST's have as text the whole numbers that they stand for. If FAST decodes all of them
    together to something else than one after the other (ids that it does not have, bytes that are no
    text), no token has numbers, and each has its own string.
    """
    texts = [token_text(tokenizer, i) or f"<{i}>" for i in ids]
    numbers = _numbers(fast.bpe_tokenizer, own)
    found: list[ActionCoefficients | None] = [None] * len(ids)
    first = 0
    for place, values in zip(places, numbers or [], strict=False):
        whole = [value + int(fast.min_token) for value in values]
        scaled = tuple(value / float(fast.scale) for value in whole)
        found[place] = ActionCoefficients(first, scaled)
        texts[place] = " ".join(map(str, whole)) or f"<{own[places.index(place)]}>"
        first += len(whole)
    tokens = tuple(Token(i, text) for i, text in zip(ids, texts, strict=True))
    return Generated(tokens, " ".join(text.strip() for text in texts), coefficients=tuple(found))


def _numbers(bpe: Any, own: Sequence[int]) -> list[list[int]] | None:
    if not all(0 <= i < len(bpe) for i in own):
        return None
    numbers = numbers_of([token_bytes(bpe, i) for i in own])
    whole = [ord(c) for c in bpe.decode(list(own))]
    return numbers if [n for part in numbers for n in part] == whole else None
