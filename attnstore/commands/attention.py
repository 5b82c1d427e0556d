"""``attnstore attention``: what follows from the stored attention of one keyframe: rollout, words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreGroup,
    StoreName,
    episode_options,
    json_option,
    layers_option,
    out_file,
    query_option,
    step_option,
    store_to_read,
)
from .output import print_json, say

if TYPE_CHECKING:
    import xarray as xr

PICTURES = (".png", ".jpg", ".webp")


@click.group(cls=StoreGroup)
def attention() -> None:
    """Compose the stored attention of a keyframe: through all layers, or word by word.

    Examples
    --------
    attnstore attention rollout lab.attn --out rollout.png
    attnstore attention words lab.attn --camera wrist --layer 5 --out words.png
    """


_keyframe = click.option(
    "--keyframe", type=int, default=0, show_default=True,
    help="Index of the keyframe; negative ones count from the end.",
)  # fmt: skip


@attention.command(cls=StoreCommand)
@store_to_read
@episode_options
@click.option("--phase", metavar="NAME", default="prefix", show_default=True, help="Phase.")
@query_option
@step_option
@layers_option
@_keyframe
@click.option("--head-fusion", type=click.Choice(["mean", "max", "min"]), default="mean",
              show_default=True, help="Of a layer's heads.")  # fmt: skip
@click.option("--residual", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Weight of what passes a layer by.")  # fmt: skip
@click.option("--through-prefix/--not-through-prefix", default=True, show_default=True,
              help="Suffix: roll the prefix's own layers out too.")  # fmt: skip
@out_file("Draw it on the cameras' images too: .png, .jpg or .webp.", *PICTURES)
@json_option
def rollout(
    store: StoreName, episodes: EpisodeChoice, phase: str, query: str | None,
    step: int | Literal["all"] | None, layers: Any, keyframe: int, head_fusion: Any, residual: float,
    through_prefix: bool, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say from which inputs a token's information came, through all layers.

    Attention rollout (Abnar & Zuidema 2020): the product of the layers' matrices, each mixed with the
    identity that stands for the residual. It takes information to mix linearly, and leaves out values
    and MLPs: an estimate of what could flow. Of one episode, the first of those chosen; full attention
    must be stored.

    Examples
    --------
    attnstore attention rollout lab.attn
    attnstore attention rollout lab.attn --phase suffix --query action --keyframe -1 --out rollout.png
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.attention import rollout as compose
    from attnstore.query.attention import rollout_map

    opened = episodes.open_one(open_for_reading(store))
    group = query if query is not None else opened.query_groups(phase)[0]
    how: dict[str, Any] = {
        "keyframe": keyframe, "head_fusion": head_fusion, "residual": residual,
        "layers": None if layers in (None, "all") else layers, "through_prefix": through_prefix,
        "step": -1 if step is None or step == "all" else step,
    }  # fmt: skip
    flow = compose(opened, phase, query=group, **how)
    mean = flow.mean("query") if "query" in flow.dims else flow
    spans = mean["key_span"].to_numpy().astype(str)
    shares = {
        str(name): float(np.nansum(mean.to_numpy()[spans == name])) for name in dict.fromkeys(spans)
    }
    if as_json:
        print_json(
            {
                "episode": opened.name, "run": opened.run, "phase": phase, "query": group,
                "keyframe": int(flow["keyframe"]), "frame": int(flow["frame"]), "input": name,
                "share": share,
            }
            for name, share in shares.items()
        )  # fmt: skip
    else:
        click.echo(f"{opened.name}  ({opened.run})\n{opened.instruction}")
        click.echo(f"{phase}: {group} at frame {int(flow['frame'])}, from")
        wide = max(map(len, shares))
        for name, share in shares.items():
            click.echo(f"  {name:<{wide}}  {100 * share:6.2f} %")
    if out is not None:
        from attnstore.render.attention import draw_rollout

        there = [c for c in opened.cameras if f"image:{c}" in shares]
        maps = {c: rollout_map(opened, c, phase, query=group, **how) for c in there}
        draw_rollout(opened, maps, out)
        say(f"drawn: {out}")


@attention.command(cls=StoreCommand)
@store_to_read
@episode_options
@click.option("--camera", metavar="NAME", help="Camera.  [default: the first]")
@click.option("--layer", type=int, default=-1, show_default=True,
              help="Layer; negative ones count from the last.")  # fmt: skip
@click.option("--head", default="mean", show_default=True, metavar="N|mean|active",
              help="Head, the mean of all, or the most active one.")  # fmt: skip
@click.option("--reduce", type=click.Choice(["mean", "max"]), default="mean", show_default=True,
              help="Over the tokens of a word.")  # fmt: skip
@_keyframe
@out_file("Draw a map for every word: .png, .jpg or .webp.", *PICTURES)
@json_option
def words(
    store: StoreName, episodes: EpisodeChoice, camera: str | None, layer: int, head: str, reduce: Any,
    keyframe: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say where each word of the instruction looks in a camera's image.

    A word of several tokens is their mean or maximum. All words attend to much the same patches, their
    sinks; `over mean` says how far a word's map lies from the mean of all words (half the sum of
    differences of both, scaled to 1). Of one episode, the first of those chosen; full attention must be
    stored.

    Examples
    --------
    attnstore attention words lab.attn --layer 5
    attnstore attention words lab.attn --camera wrist --head active --out words.png
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.attention import word_maps
    from attnstore.store.errors import UsageError

    opened = episodes.open_one(open_for_reading(store))
    which: Any = head
    if head not in ("mean", "active"):
        try:
            which = int(head)
        except ValueError:
            raise UsageError(f"--head is a number, mean or active; got {head!r}") from None
    view = camera if camera is not None else opened.cameras[0]
    opened.geometry(view)
    maps = word_maps(
        opened, view, layer=layer, head=which, keyframe=keyframe, reduce=reduce, phase="prefix"
    )
    rows = [
        {"word": str(name), **numbers}
        for name, numbers in zip(maps["word"].to_numpy(), _numbers(maps), strict=True)
    ]
    about = {
        "episode": opened.name, "run": opened.run, "camera": view, "layer": int(maps["layer"]),
        "head": maps["head"].item(), "keyframe": int(maps["keyframe"]), "frame": int(maps["frame"]),
    }  # fmt: skip
    if as_json:
        print_json(about | row for row in rows)
    else:
        click.echo(f"{opened.name}  ({opened.run})\n{opened.instruction}")
        click.echo(
            f"{view}: layer {about['layer']}, head {about['head']}, frame {about['frame']}\n"
            f"{'word':<16}{'mass':>9}{'peak (row, col)':>18}{'over mean':>11}"
        )
        for row in rows:
            if row["mass"] is None:
                click.echo(f"{row['word']:<16} not at this keyframe, or the camera is not")
                continue
            at = f"{row['peak_row']}, {row['peak_col']}"
            click.echo(f"{row['word']:<16}{row['mass']:>9.4f}{at:>18}{row['over_mean']:>11.3f}")
    if out is not None:
        from attnstore.render.attention import draw_words

        draw_words(opened, view, maps, out)
        say(f"drawn: {out}")


def _numbers(maps: xr.DataArray) -> Iterator[dict[str, Any]]:
    """Sum up each word's map, (row, col): what of it shows image, and how far it is from all words' mean."""
    values = maps.to_numpy().astype(np.float64)
    shown = np.asarray(maps["coverage"]) > 0
    there = np.asarray(np.isfinite(values[:, shown]).all(1))
    total = values[:, shown].sum(1, keepdims=True)
    share = values[:, shown] / np.where(total > 0, total, 1)
    mean = share[there].mean(0) if there.any() else None
    for of_word, shares, known in zip(values, share, there, strict=True):
        if not known or mean is None:
            yield dict.fromkeys(("mass", "peak_row", "peak_col", "over_mean"))
            continue
        row, col = np.unravel_index(int(np.where(shown, of_word, -1).argmax()), of_word.shape)
        yield {
            "mass": float(of_word.sum()), "peak_row": int(row), "peak_col": int(col),
            "over_mean": float(np.abs(shares - mean).sum() / 2),
        }  # fmt: skip
