"""``attnstore tokens``: the structure of an episode's token matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .options import console, json_option, need_store, print_json, store_option

if TYPE_CHECKING:
    from attnstore.query.structure import SpanTokens, TokenMatrix

SIGNS = {"all": "#", "causal": "\\", "part": "+", "none": "."}


@click.command()
@click.argument("episode")
@store_option
@click.option("--run", help="Of this run; needed when several have the episode.")
@click.option("--phase", "phases", multiple=True, help="Only this phase; may be repeated.")
@click.option("--keyframe", type=int, default=0, show_default=True,
              help="Index of the keyframe; negative ones count from the end.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw it too: .png, .jpg or .webp.")  # fmt: skip
@json_option
def tokens(
    episode: str, store: Path | None, run: str | None, phases: tuple[str, ...], keyframe: int,
    output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the spans of tokens in each phase, their text, and what attends to what.

    What may attend to what is measured from the stored weights: a masked pair of tokens has a
    weight of exactly 0 in every layer, head and step.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.structure import token_matrices, token_matrix

    if output is not None and output.suffix not in (".png", ".jpg", ".webp"):
        raise UsageError(f"a picture is .png, .jpg or .webp; got {output}")
    opened = open_for_reading(need_store(store)).episode(episode, run=run)
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
    if output is not None:
        from attnstore.render import image_file
        from attnstore.render.structure import draw_structure

        picture = draw_structure(matrices, f"{opened.name}  -  {opened.instruction}")
        image_file.write(output, picture, image_file.DEFAULT_QUALITY)
        console().print(f"drawn: {output}", markup=False, soft_wrap=True)


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
