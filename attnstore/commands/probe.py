"""``attnstore probe``: whether what the policy looks at matters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .probe_options import COMMON, FILL, MAP, add_options, parse_layers
from .probe_run import run_probe, shown_map

if TYPE_CHECKING:
    from attnstore.ingest.probing.variant import Probe


@click.group()
def probe() -> None:
    """Run the policy again on stored keyframes, with something taken away.

    Needs the policy that the run was made with; the dataset is not needed. Each probe adds a part
    to every episode; the same command resumes.
    """


@probe.command()
@add_options(
    COMMON,
    MAP,
    click.option(
        "--share",
        type=click.FloatRange(0, 0.5, min_open=True),
        default=0.1,
        show_default=True,
        help="Share of each image's pixels that is replaced.",
    ),
    click.option(
        "--reduce",
        type=click.Choice(["mean", "max"]),
        default="mean",
        show_default=True,
        help="Over the query tokens.",
    ),
    FILL,
    click.option(
        "--cameras",
        multiple=True,
        default=("all",),
        show_default=True,
        help="Changed at once: all, each (alone), or names joined by +; repeatable.",
    ),
    click.option(
        "--control",
        type=click.Choice(["shape", "pixels"]),
        default="shape",
        show_default=True,
        help="The mask's shape where little attention lies, or scattered single pixels.",
    ),
    click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        help="Controls of each mask.",
    ),
    click.option(
        "--curves",
        type=click.IntRange(min=2),
        help="Also deletion and insertion curves, of so many points.",
    ),
)
def fidelity(
    phase: str | None,
    group: str | None,
    layer_text: str | None,
    curves: int | None,
    cameras: tuple[str, ...],
    **rest: Any,
) -> None:
    """Replace the pixels that each layer's map points at, and as many elsewhere."""
    from attnstore.ingest.probing.fidelity import Fidelity

    def make(spec: Any, every: int, **options: Any) -> Probe:
        shown = shown_map(spec, phase, group)
        layers = parse_layers(layer_text)
        return Fidelity(
            *shown, layers, cameras=cameras, curve_points=curves or 0, every=every, **options
        )

    run_probe(
        make, ("heads", "step", "share", "reduce", "fill", "control", "repeats", "active"), **rest
    )


@probe.command()
@add_options(
    COMMON,
    click.option(
        "--by",
        type=click.Choice(["cell", "object", "camera", "rank"]),
        multiple=True,
        default=("camera", "cell"),
        show_default=True,
        help="Regions: cells of a grid, objects of `attnstore objects`, whole cameras, bands of "
        "one map's pixels by rank; repeatable.",
    ),
    click.option(
        "--cells", metavar="RxC", default="4x4", show_default=True, help="Grid over each image."
    ),
    click.option(
        "--cameras",
        multiple=True,
        default=("each", "all"),
        show_default=True,
        help="all, each, or names joined by + (whole cameras at once); repeatable.",
    ),
    FILL,
    MAP,
    click.option(
        "--bands", type=click.IntRange(min=2), default=10, show_default=True, help="Bands by rank."
    ),
)
def regions(
    by: tuple[str, ...],
    cells: str,
    cameras: tuple[str, ...],
    phase: str | None,
    group: str | None,
    layer_text: str | None,
    **rest: Any,
) -> None:
    """Replace one region at a time, and keep how much attention each layer gave it."""
    from attnstore.ingest.probing.regions import Regions

    size = re.fullmatch(r"(\d+)x(\d+)", cells)
    if size is None:
        raise UsageError(f"--cells is ROWSxCOLUMNS, as 4x4; got {cells!r}")

    def make(spec: Any, every: int, **options: Any) -> Probe:
        ranked = "rank" in by
        shown = shown_map(spec, phase, group) if ranked else ("", "")
        layers = parse_layers(layer_text) if ranked else ()
        if ranked and layers is None:
            raise UsageError("--by rank needs --layers: every band of every layer is a forward")
        return Regions(
            by=by,  # type: ignore[arg-type]  # click's choices
            cells=(int(size[1]), int(size[2])),
            cameras=cameras, phase=shown[0], group=shown[1], layers=layers or (), every=every,
            **options,
        )  # fmt: skip

    run_probe(make, ("heads", "step", "fill", "bands", "active"), **rest)


@probe.command()
@add_options(
    COMMON,
    click.option(
        "--prompts",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Prompts, one a line: NAME = TEXT; {instruction} stands for the episode's own.",
    ),
    click.option(
        "--replace",
        "pairs_of_words",
        multiple=True,
        metavar="OLD=NEW",
        help="Words of the instruction and what stands for them: 'red cube=green cube'; repeatable.",
    ),
    click.option("--empty", is_flag=True, help="Also no words at all."),
    click.option(
        "--shuffle",
        "shuffles",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Also the words in so many random orders.",
    ),
)
def prompts(file: Path | None, pairs_of_words: tuple[str, ...], **rest: Any) -> None:
    """Tell the policy something else, and compare action and maps."""
    from attnstore.ingest.probing.prompts import Prompts, parse_replaced, read_prompts

    given = read_prompts(file) if file is not None else ()

    def make(spec: Any, every: int, **options: Any) -> Probe:
        return Prompts(given, parse_replaced(pairs_of_words), every=every, **options)

    run_probe(make, ("empty", "shuffles"), **rest)


@probe.command()
@add_options(
    COMMON,
    click.option(
        "--key",
        "keys",
        multiple=True,
        required=True,
        help="Tokens that are not to be seen, a variant each: image, image:CAMERA, text, task, state, "
        "word:WORD, action:0:5, all, object:NAME, background, letterbox (also background@CAMERA).",
    ),
    click.option(
        "--query",
        default="all",
        show_default=True,
        help="Tokens that must not attend to them: action, task, word:WORD, ...",
    ),
    click.option(
        "--phase", "phases", multiple=True, help="Only in this phase; repeatable.  [default: all]"
    ),
    click.option("--layers", "layer_text", help="Layers: 5, 0-3, 2,5,7.  [default: all]"),
    click.option(
        "--at",
        type=click.Choice(["together", "each"]),
        default="together",
        show_default=True,
        help="All these layers at once, or one at a time.",
    ),
)
def knockout(layer_text: str | None, **rest: Any) -> None:
    """Block attention between tokens before the softmax."""
    from attnstore.ingest.probing.knockout import Knockout

    def make(spec: Any, every: int, **options: Any) -> Probe:
        return Knockout(layers=parse_layers(layer_text), every=every, **options)

    run_probe(make, ("keys", "query", "phases", "at"), **rest)
