"""``attnstore tokens``: the structure of an episode's token matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    out_file,
    phases_option,
    store_to_read,
)
from .output import print_json, say

if TYPE_CHECKING:
    from attnstore.query.attention.structure import SpanTokens, TokenMatrix

SIGNS = {"all": "#", "causal": "\\", "part": "+", "none": "."}


@click.command(cls=StoreCommand)
@store_to_read
@episode_options
@phases_option
@click.option("--keyframe", type=int, default=0, show_default=True,
              help="Index of the keyframe; negative ones count from the end.")  # fmt: skip
@out_file("Draw it too: .png, .jpg or .webp.", ".png", ".jpg", ".webp")
@json_option
def tokens(
    store: StoreName, episodes: EpisodeChoice, phases: tuple[str, ...], keyframe: int,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the spans of tokens in each phase, their text, and what attends to what.

    Of one episode, the first of those chosen. What may attend to what is measured from the stored
    weights: a masked pair of tokens has a weight of exactly 0 in every layer, head and step.

    Examples
    --------
    attnstore tokens lab.attn
    attnstore tokens lab.attn --episode 2025-12-11_10-04-31 --phase suffix --out tokens.png
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.attention.structure import token_matrices, token_matrix

    opened = episodes.open_one(open_for_reading(store))
    if phases:
        matrices = [token_matrix(opened, phase, keyframe=keyframe) for phase in phases]
    else:
        matrices = token_matrices(opened, keyframe=keyframe)
    if as_json:
        print_json({"episode": opened.name, "run": opened.run, **m.to_json()} for m in matrices)
    else:
        click.echo(f"{opened.name}  ({opened.run})\n{opened.instruction}")
        for matrix in matrices:
            click.echo("\n" + describe(matrix))
    if out is not None:
        from attnstore.render.charts.structure import draw_structure
        from attnstore.render.picture import image_file

        picture = draw_structure(matrices, f"{opened.name}  -  {opened.instruction}")
        image_file.write(out, picture, image_file.DEFAULT_QUALITY)
        say(f"drawn: {out}")


def describe(matrix: TokenMatrix) -> str:
    """Return a token matrix as text: its spans, then its blocks."""
    queries, keys = (sum(map(len, spans)) for spans in (matrix.queries, matrix.keys))
    steps = f" x {matrix.steps} steps" if matrix.steps is not None else ""
    lines = [
        f"{matrix.phase}: {queries} query x {keys} key tokens, {matrix.layers} layers x "
        f"{matrix.heads} heads{steps}, keyframe {matrix.keyframe}"
    ]
    if matrix.square:
        lines += _listed("queries and keys", matrix.keys)
    else:
        lines += [*_listed("queries", matrix.queries), *_listed("keys", matrix.keys)]
    lines += ["rows attend to columns: # all  \\ causal  + part  . none"]
    wide = len(str(len(matrix.keys) - 1)) + 1
    name = max(len(s.name) for s in matrix.queries) + 4
    lines.append(" " * name + "".join(f"{i:>{wide}}" for i in range(len(matrix.keys))))
    for i, (span, row) in enumerate(zip(matrix.queries, matrix.relations, strict=True)):
        signs = "".join(f"{SIGNS[r.pattern]:>{wide}}" for r in row)
        lines.append(f"{i:>3} {span.name:<{name - 4}}{signs}")
    partial = [
        f"  {q.name} -> {k.name}: {100 * r.share:.4g} % of the pairs"
        for q, row in zip(matrix.queries, matrix.relations, strict=True)
        for k, r in zip(matrix.keys, row, strict=True)
        if r.pattern == "part"
    ]
    return "\n".join(lines + partial)


def _listed(title: str, spans: Sequence[SpanTokens]) -> list[str]:
    name = max(len(s.name) for s in spans)
    lines = [f"{title}: number, span, kind, tokens, first index here and in the model, text"]
    for i, span in enumerate(spans):
        grid = f"  {span.grid[0]} x {span.grid[1]} patches" if span.grid is not None else ""
        role = f" ({span.role})" if span.role is not None else ""
        text = "  " + " ".join(repr(t.text) for t in span.tokens) if span.tokens else ""
        lines.append(
            f"{i:>3} {span.name:<{name}}  {span.kind + role:<16}{len(span):>5}"
            f"{span.start:>6}{span.model_start:>6}{grid}{text}"
        )
    return lines
