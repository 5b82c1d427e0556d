"""Which words look where, and what looks at which words.

A word of several tokens is put together as Clark et al. 2019, "What Does BERT Look At?", do it:
attention *from* a word is the mean over its tokens, attention *to* it the sum. Maps of words over
an image are those of Tang et al. 2023, "What the DAAM", with words as queries: in a policy's
prefix, words attend to patches.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError
from attnstore.store.format.tokens import REPEATED, AlignedAxis
from attnstore.store.format.views import is_current
from attnstore.store.reader.blocks import Dimension
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.reads import Reduction
from attnstore.store.reader.selection import (
    Group,
    check_index,
    select_tokens,
    span_labels,
    token_labels,
)
from attnstore.store.rules import standing_step

Head = int | Literal["mean", "active"]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the instruction, at one place."""

    text: str
    """As it stands in the prompt."""
    occurrence: int
    """How many times the word, in any case, stands before this place."""
    repeated: bool
    """It stands at other places too."""
    indices: tuple[int, ...]
    """Its tokens on the stored axis; a token that two words share belongs to both."""

    @property
    def label(self) -> str:
        """``cube``; of a repeated word ``the[0]``, ``the[1]``."""
        return f"{self.text}[{self.occurrence}]" if self.repeated else self.text


def words(
    episode: Episode, phase: str = "prefix", *, axis: Literal["query", "key"] = "query"
) -> tuple[Word, ...]:
    """List the words of the instruction in their order: of text spans with the role ``task``.

    Where the instruction stands beside the images once more (role ``repeated``), those words.

    Raises
    ------
    SelectionError
        If the axis has no instruction, as the queries of a suffix.
    """
    spec = episode.phase(phase)
    found = _words_of(spec.query if axis == "query" else spec.key)
    if not found:
        raise SelectionError(f"{phase} {axis}: there are no words of an instruction")
    return found


def word_maps(
    episode: Episode,
    camera: str,
    *,
    layer: int,
    head: Head = "mean",
    keyframe: int | None = None,
    phase: str = "prefix",
    reduce: Reduction = "mean",
) -> xr.DataArray:
    """Load, for each word of the instruction, where it looks in one camera's image.

    All words attend to much the same patches (sinks); what is a word's own shows after division
    by the mean: ``maps / maps.mean("word")``.

    Parameters
    ----------
    layer, head
        ``mean`` over heads, an index, or ``active``: the head whose map of the whole text has the
        largest variance, at that keyframe or over the episode.
    keyframe
        Index, or None for all.
    phase
        A one-pass phase whose queries have the text.
    reduce
        ``mean`` or ``max`` over a word's tokens.

    Returns
    -------
    (keyframe, word, row, col) float32, or (word, row, col) for one keyframe: attention weights,
    0..1. Coordinates ``text``, ``occurrence`` and ``coverage``; NaN where a keyframe lacks the
    word or the camera.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing, or the phase's queries have no words.
    """
    if reduce not in ("max", "mean"):
        raise SelectionError(f"reduce is 'max' or 'mean'; got {reduce!r}")
    listed = words(episode, phase)
    index = _head(episode, phase, camera, layer, head, keyframe, reduce)
    tokens = sorted({i for word in listed for i in word.indices})
    values = episode.attention(
        phase, keyframe=keyframe, layer=layer, head=index, query=tokens, key=f"image:{camera}"
    ).values
    if index is None:
        values = values.mean(-3)
    over = _mean if reduce == "mean" else np.fmax.reduce
    maps = [over(values[..., np.searchsorted(tokens, w.indices), :], axis=-2) for w in listed]
    return _as_maps(episode, camera, np.stack(maps, -2), listed, phase, layer, index, keyframe)


def word_shares(
    episode: Episode,
    query: Group,
    *,
    layer: int,
    head: int | Literal["mean"] = "mean",
    keyframe: int | None = None,
    phase: str = "suffix",
    step: int | None = None,
) -> xr.DataArray:
    """Load the share of query tokens' attention that goes to each word of the instruction.

    Parameters
    ----------
    query
        Tokens of the phase's queries: ``"action"``, ``"action:0:5"``, ``"state"``.
    step
        Denoising step, which one-pass phases ignore; None is the one that stands for the phase.

    Returns
    -------
    (keyframe, query, word) float32, or (query, word) for one keyframe, 0..1; what is missing to 1
    goes to images and other tokens. NaN where a keyframe lacks either token.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing.
    """
    spec = episode.phase(phase)
    if step is None:
        step = standing_step(phase, spec.steps) or 0
    listed = words(episode, phase, axis="key")
    tokens = sorted({i for word in listed for i in word.indices})
    index = _head(episode, phase, None, layer, head, keyframe)
    group = [query] if isinstance(query, int) else query
    picked = select_tokens(spec.query, group, where=f"{phase} query").indices
    values = episode.attention(
        phase, keyframe=keyframe, step=step if spec.steps is not None else None, layer=layer,
        head=index, query=group, key=tokens,
    ).values  # fmt: skip
    if index is None:
        values = values.mean(-3)
    shares = [_sum(values[..., np.searchsorted(tokens, word.indices)]) for word in listed]
    coords = _coords(episode, phase, listed, layer, index, keyframe) | {
        "query": picked,
        "query_label": ("query", token_labels(spec.query.spans, len(spec.query))[picked]),
        "query_span": ("query", span_labels(spec.query.spans, len(spec.query))[picked]),
    }
    if spec.steps is not None:
        coords["step"] = step % spec.steps
    dims = ("keyframe", "query", "word")[3 - values.ndim :]
    return xr.DataArray(np.stack(shares, -1), coords, dims, attrs=_attributes(episode, phase))


def _head(
    episode: Episode, phase: str, camera: str | None, layer: int, head: Head,
    keyframe: int | None, reduce: Reduction = "mean",
) -> int | None:  # fmt: skip
    """Index of the head, None for the mean."""
    if head == "mean":
        return None
    if head == "active" and camera is not None:
        return episode.active_head(phase, camera, layer=layer, keyframe=keyframe, reduce=reduce)
    if isinstance(head, (int, np.integer)):
        return check_index(int(head), episode.heads(phase), f"{phase} head")
    allowed = "an index or 'mean'" if camera is None else "an index, 'mean' or 'active'"
    raise SelectionError(f"head is {allowed}; got {head!r}")


def _as_maps(
    episode: Episode,
    camera: str,
    values: Float32,
    listed: tuple[Word, ...],
    phase: str,
    layer: int,
    head: int | None,
    keyframe: int | None,
) -> xr.DataArray:
    geometry = episode.geometry(camera)
    coords = _coords(episode, phase, listed, layer, head, keyframe)
    return xr.DataArray(
        values.reshape(*values.shape[:-1], *geometry.grid),
        dims=("keyframe", "word", "row", "col")[3 - values.ndim :],
        coords=coords | {"coverage": (("row", "col"), geometry.coverage())},
        attrs=_attributes(episode, phase) | {"camera": camera, "geometry": geometry.to_json()},
    )


def _coords(
    episode: Episode,
    phase: str,
    listed: tuple[Word, ...],
    layer: int,
    head: int | None,
    keyframe: int | None,
) -> dict[str, Any]:
    times = Dimension.of(keyframe, len(episode.frames), "keyframe")
    at, frames = times.positions, episode.frames[times.positions]
    return {
        "word": [w.label for w in listed],
        "text": ("word", [w.text for w in listed]),
        "occurrence": ("word", [w.occurrence for w in listed]),
        "layer": layer % episode.layers(phase),
        "head": "mean" if head is None else head,
        "keyframe": int(at[0]) if times.scalar else at,
        "frame": int(frames[0]) if times.scalar else ("keyframe", frames),
    }


def _attributes(episode: Episode, phase: str) -> dict[str, Any]:
    return {"phase": phase, "precision": episode.spec.precision, "source": "Clark et al. 2019"}


def _mean(values: Float32, axis: int) -> Float32:
    """Mean over the tokens that exist; NaN, without a warning, if none does."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis)
    count = there.sum(axis).astype(np.float32)
    mean: Float32 = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _sum(values: Float32) -> Float32:
    """Sum over the keys that exist; NaN if none does."""
    total: Float32 = np.nansum(values, -1)
    total[np.isnan(values).all(-1)] = np.nan
    return total


def _words_of(axis: AlignedAxis) -> tuple[Word, ...]:
    text, places = "", []
    # Of an instruction that stands several times, the place that sees the keyframe's images.
    again = [s for s in axis if s.role == REPEATED and is_current(s.name)]
    for span in again or [s for s in axis if s.role == "task"]:
        for offset, token in enumerate(span.tokens):
            places.append((len(text), len(text) + len(token.text), span.start + offset))
            text += token.text
        text += " "
    hits = list(re.finditer(r"[\w'-]+", text))
    total = Counter(hit[0].casefold() for hit in hits)
    seen: Counter[str] = Counter()
    found = []
    for hit in hits:
        name = hit[0].casefold()
        indices = tuple(i for low, high, i in places if low < hit.end() and high > hit.start())
        found.append(Word(hit[0], seen[name], total[name] > 1, indices))
        seen[name] += 1
    return tuple(found)
