"""Commands on hidden states: linear probes, the similarity of two runs, shards for other trainers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from attnstore.store.errors import UsageError

from .options import (
    EpisodeChoice,
    OutputPath,
    StoreCommand,
    StoreName,
    add_options,
    episode_options,
    json_option,
    store_to_read,
    store_to_write,
)
from .output import print_json, progress_of, say, say_made

if TYPE_CHECKING:
    from attnstore.query import Episode
    from attnstore.store.reader.hidden import Tokens

_STEP = click.option(
    "--step",
    default="last",
    show_default=True,
    metavar="first|last|N",
    help="Step of a stepped phase.",
)
_TOKENS = click.option(
    "--tokens",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="Means over the span, at each layer; or the last hidden states, of which actions are made.",
)


def _step(text: str) -> Any:
    """A step of `Episode.hidden`."""
    if text in ("first", "last"):
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--step is first, last or a number; got {text!r}") from None


def _phase_and_span(episode: Episode, phase: str | None, span: str | None) -> tuple[str, str]:
    """Default: what the policy makes actions of, or the instruction."""
    spec = episode.spec.phases
    if phase is None:
        acting = [p for p, s in spec.items() if s.hidden is not None and s.hidden.last]
        phase = acting[0] if acting else "prefix"
    if span is None:
        hidden = episode.phase(phase).hidden
        names = [s.name for s in episode.phase(phase).query]
        last = hidden.last[0] if hidden is not None and hidden.last else None
        span = last or ("task" if "task" in names else names[0])
    return phase, span


@click.command("linear-probe", cls=StoreCommand)
@store_to_write
@click.option(
    "--target",
    metavar="outcome|SQL",
    required=True,
    help="What to read off: outcome; an expression on tables keyframes (k) and episodes (e); or a query that "
    "gives episode, keyframe and value.",
)
@click.option("--kind", type=click.Choice(["classes", "numbers"]),
              help="Whether it is one of classes or a number.  [default: by its values]")  # fmt: skip
@click.option(
    "--phase", metavar="NAME", help="Phase.  [default: the one in which actions are made]"
)
@click.option("--span", metavar="NAME", help="Span of tokens.  [default: the actions, or task]")
@add_options(_TOKENS, _STEP)
@episode_options
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True,
              help="Parts that episodes, or tasks, are divided into; each is tested once.")  # fmt: skip
@click.option("--shuffles", type=click.IntRange(min=0), default=50, show_default=True,
              help="Controls in which episodes exchange their targets.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of folds, controls and intervals.")  # fmt: skip
@click.option("--redo", is_flag=True, help="Compute what is there of the same episodes, too.")
@json_option
def linear_probe(
    store: StoreName, target: str, kind: Literal["classes", "numbers"] | None, phase: str | None,
    span: str | None, tokens: Tokens, step: str, episodes: EpisodeChoice, folds: int, shuffles: int,
    seed: int, redo: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find out which layer knows something: probe hidden states linearly, layer by layer.

    A ridge regression is fitted on some episodes and tested on others (and, if there are several tasks, on
    unseen tasks). Beside each score (balanced accuracy, or R² of numbers) stand that with shuffled targets, and
    the gain over a baseline from time, robot state and instruction, tested over episodes and corrected over
    layers. A star is a layer that knows more than the baseline (p < 0.05) and than 95 % of the shuffles.
    Committed as the tables linear_probes and linear_probe_folds; needs scikit-learn: pip install
    'attnstore[learn]'.

    Examples
    --------
    attnstore linear-probe lab.attn --target outcome
    attnstore linear-probe lab.attn --target "k.state[8]" --phase prefix --span state
    attnstore linear-probe lab.attn --target "e.instruction like '%red%'" --phase prefix --span task
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.hidden.linear_probe import Options
    from attnstore.query.hidden.part import LinearProbe, probe_rows
    from attnstore.query.hidden.part import linear_probe as compute

    _step(step)
    opened = open_for_reading(store)
    chosen = episodes.of_one_run(opened)
    first = opened.episode(chosen.episodes[0], run=chosen.run)
    phase, span = _phase_and_span(first, phase, span)
    asked = LinearProbe(target, phase, span, tokens, step, kind, Options(folds, shuffles, seed))
    with progress_of("linear-probe") as advance:
        done = compute(opened, chosen, asked, redo=redo, progress=advance)
    rows = probe_rows(opened, done.commit)
    if as_json:
        print_json(rows)
        return
    summary = done.commit.summary
    click.echo(
        f"{target}: {rows[0]['kind']}, {summary['episodes']} episodes, {summary['keyframes']} keyframes; "
        f"{phase} {span}; part {done.commit.part}, {'computed' if done.computed else 'there already'}"
    )
    for split in dict.fromkeys(row["split"] for row in rows):
        _print([row for row in rows if row["split"] == split])
    if done.untested is not None:
        say(f"unseen tasks: not tested; {done.untested}")
    say_made(
        f"linear probes of {summary['episodes']} episodes, "
        + ("computed" if done.computed else "there already"),
        f'attnstore sql {store} "from linear_probes"',
    )


def _print(rows: list[dict[str, Any]]) -> None:
    from attnstore.query.hidden.part import knows, layer_name

    measure = "balanced accuracy" if rows[0]["kind"] == "classes" else "R²"
    click.echo(f"\nunseen {rows[0]['split']}: {measure}, chance {rows[0]['chance']:.2g}")
    click.echo(f"  {'':<10} {'score':<22} {'shuffled, 95 %':<16} {'gain':<24} p (Holm)")
    for row in rows:
        name = "trivial" if row["features"] == "trivial" else layer_name(row["layer"])
        shuffled = ""
        if row["shuffled"] is not None:
            shuffled = f"{row['shuffled']:.2f}, {row['shuffled_high']:.2f}"
        gain = ""
        if row["gain"] is not None:
            gain = f"{row['gain']:+.2f} ({row['gain_low']:+.2f} to {row['gain_high']:+.2f})"
        star = "" if not knows(row) else " *"
        p = "" if row["p_holm"] is None else f"{row['p_holm']:.4f}{star}"
        score = f"{row['score']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        click.echo(f"  {name:<10} {score:<22} {shuffled:<16} {gain:<24} {p}".rstrip())


@click.command(cls=StoreCommand)
@store_to_read
@click.argument("run_a")
@click.argument("run_b")
@click.option(
    "--phase", metavar="NAME", help="Phase.  [default: the one in which actions are made]"
)
@click.option("--span", metavar="NAME", help="Span of tokens.  [default: the actions, or task]")
@add_options(_TOKENS, _STEP)
@click.option(
    "--episode", "episodes", multiple=True, metavar="NAME", help="Only these; repeatable."
)
@click.option(
    "--where", metavar="SQL", help="Only episodes for which a condition on the table holds."
)
@click.option("--all-pairs", is_flag=True, help="Every layer of A with every layer of B.")
@json_option
def similarity(
    store: StoreName, run_a: str, run_b: str, phase: str | None, span: str | None, tokens: Tokens,
    step: str, episodes: tuple[str, ...], where: str | None, all_pairs: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare two runs' hidden states layer by layer: debiased linear CKA over the same keyframes.

    1 is equal up to rotation, shift and scale, 0 unrelated. Two checkpoints, two prompts, two data types: the
    runs must have the same keyframes.

    Examples
    --------
    attnstore similarity lab.attn pi0-1a2b3c4d pi0-5e6f7a8b
    attnstore similarity lab.attn pi0-1a2b3c4d pi0-5e6f7a8b --phase prefix --span task --all-pairs
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.hidden.part import layer_name
    from attnstore.query.hidden.similarity import compare_hidden

    opened = open_for_reading(store)
    bases = opened.base_commits(run_a)
    if not bases:
        opened.run(run_a)
        raise UsageError(f"run {run_a} has no episode")
    phase, span = _phase_and_span(opened.from_commit(bases[0]), phase, span)
    stepped = opened.from_commit(bases[0]).steps(phase) is not None
    with progress_of("similarity") as advance:
        found = compare_hidden(
            opened, run_a, run_b, phase=phase, span=span, tokens=tokens,
            step=_step(step) if stepped else None, episodes=episodes, where=where, progress=advance,
        )  # fmt: skip
    rows = [
        {"layer_a": _number(a), "layer_b": _number(b), "cka": float(found.values[i, j])}
        for i, a in enumerate(found["layer_a"].values)
        for j, b in enumerate(found["layer_b"].values)
        if all_pairs or found.shape == (1, 1) or a == b
    ]
    if as_json:
        print_json(rows)
        return
    click.echo(
        f"{phase} {span}: {found.attrs['keyframes']} keyframes of {found.attrs['episodes']} episodes, "
        "debiased linear CKA"
    )
    for row in rows:
        name = layer_name(row["layer_a"])  # type: ignore[arg-type]
        other = f" {layer_name(row['layer_b']):<10}" if all_pairs else ""  # type: ignore[arg-type]
        click.echo(f"  {name:<10}{other} {row['cka']:.4f}")
    say_made(
        f"{len(rows)} similarities of {found.attrs['episodes']} episodes",
        f"attnstore compare runs {store} {run_a} {run_b}",
    )


def _number(layer: float) -> int | None:
    return None if layer != layer else int(layer)


@click.command("hidden", cls=StoreCommand)
@store_to_read
@click.argument("target", type=OutputPath(directory=True))
@episode_options
@click.option("--phase", metavar="NAME", default="prefix", show_default=True, help="Phase.")
@click.option("--layer", "layers", multiple=True, metavar="N|embedding",
              help="Layer; repeatable.  [default: all that are stored]")  # fmt: skip
@click.option("--span", "spans", multiple=True, metavar="NAME",
              help="Span or token group; repeatable.  [default: all that are stored]")  # fmt: skip
@click.option("--tokens", type=click.Choice(["all", "mean", "last"]), default="all", show_default=True,
              help="Every token (of an ingest with --hidden), means over spans, or the last.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="Data type; float16 is refused where a value does not fit.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["safetensors", "npy"]), default="safetensors",
              show_default=True, help="Of the shards; safetensors needs 'attnstore[learn]'.")  # fmt: skip
@click.option("--shard-mb", type=click.IntRange(min=1), default=512, show_default=True,
              help="Largest shard; of all layers together no more is in memory.")  # fmt: skip
@json_option
def export_hidden_command(
    store: StoreName, target: Path, episodes: EpisodeChoice, phase: str, layers: tuple[str, ...],
    spans: tuple[str, ...], tokens: Tokens, dtype: Literal["float32", "float16"],
    form: Literal["safetensors", "npy"], shard_mb: int, as_json: bool,
) -> None:  # fmt: skip
    """Write hidden states to the folder TARGET, as trainers of sparse autoencoders and probes take them.

    Shards of rows (tensor `hidden`, row x feature), one layer each; manifest.json has their SHA-256, and
    rows.parquet says which episode, keyframe, layer, step, span and tokens rows are of.

    Examples
    --------
    attnstore export hidden lab.attn activations --layer 11 --dtype float16
    attnstore export hidden lab.attn actions --phase suffix --tokens last --format npy
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.hidden.export import HiddenExport, export_hidden

    opened = open_for_reading(store)
    numbers: list[Any] = []
    for each in layers:
        if each != "embedding" and not each.lstrip("-").isdecimal():
            raise UsageError(f"--layer is a number or 'embedding'; got {each!r}")
        numbers.append(each if each == "embedding" else int(each))
    asked = HiddenExport(
        phase, numbers or None, list(spans) or None, tokens, dtype, form, shard_mb << 20
    )
    chosen = episodes.open(opened)
    with progress_of("hidden") as advance:
        manifest = export_hidden(chosen, target, asked, opened.paths.name, advance)
    if as_json:
        print_json([manifest])
        return
    say_made(
        f"{target}: {manifest['rows']} rows of {len(chosen)} episodes in {len(manifest['shards'])} shards",
        f"{target / 'manifest.json'} names them, with their SHA-256",
    )
