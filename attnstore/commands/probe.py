"""``attnstore probe``: whether what the policy looks at matters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .options import console, need_store, print_json
from .probe_options import COMMON, FILL, MAP, add_options, parse_layers
from .progress import conclude, interrupts, progress_bar, quiet_libraries

if TYPE_CHECKING:
    from attnstore.ingest.probing.pipeline import ProbePlan
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
        shown = _shown_map(spec, phase, group)
        layers = parse_layers(layer_text)
        return Fidelity(
            *shown, layers, cameras=cameras, curve_points=curves or 0, every=every, **options
        )

    _run(make, ("heads", "step", "share", "reduce", "fill", "control", "repeats"), **rest)


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
        shown = _shown_map(spec, phase, group) if ranked else ("", "")
        layers = parse_layers(layer_text) if ranked else ()
        if ranked and layers is None:
            raise UsageError("--by rank needs --layers: every band of every layer is a forward")
        return Regions(
            by=by,  # type: ignore[arg-type]  # click's choices
            cells=(int(size[1]), int(size[2])),
            cameras=cameras, phase=shown[0], group=shown[1], layers=layers or (), every=every,
            **options,
        )  # fmt: skip

    _run(make, ("heads", "step", "fill", "bands"), **rest)


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

    _run(make, ("empty", "shuffles"), **rest)


@probe.command()
@add_options(
    COMMON,
    click.option(
        "--key",
        "keys",
        multiple=True,
        required=True,
        help="Tokens that are not to be seen, a variant each: image, image:CAMERA, text, task, "
        "object:NAME, background, letterbox (also background@CAMERA).",
    ),
    click.option(
        "--query", default="all", show_default=True, help="Tokens that must not attend to them."
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

    _run(make, ("keys", "query", "phases", "at"), **rest)


def _shown_map(spec: Any, phase: str | None, group: str | None) -> tuple[str, str]:
    """Phase and query group of the maps; by default the last phase's: that of the actions."""
    with_maps = [p for p, s in spec.phases.items() if s.camera is None and s.cameras]
    chosen = phase or with_maps[-1]
    groups = spec.phases[chosen].query_groups if chosen in spec.phases else ("",)
    return chosen, group or groups[0]


def _run(
    make: Any,
    names_of_options: tuple[str, ...],
    *,
    store: Path | None,
    checkpoint: str,
    policy: str | None,
    revision: str | None,
    device: str,
    pairs: tuple[str, ...],
    run_id: str | None,
    names: tuple[str, ...],
    limit: int | None,
    every: int,
    dof: int | None,
    batch_size: int,
    tolerance: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Forecast, probe, and say what became of every episode."""
    from attnstore.ingest.policies.base import load_policy, parse_options
    from attnstore.ingest.probing.episode import ProbeJob
    from attnstore.ingest.probing.pipeline import (
        check_policy,
        choose_episodes,
        choose_run,
        make_plan,
        probe_all,
        real_dof,
    )
    from attnstore.store.paths import open_store

    target = need_store(store)
    paths = open_store(target)
    paths.check_writable()
    run = choose_run(paths, run_id)
    episodes = choose_episodes(paths, run, names, limit=limit)
    asked = make(episodes[0].spec, every, **{name: options[name] for name in names_of_options})
    quiet_libraries()
    loaded = load_policy(
        policy or run.policy, checkpoint, dtype=run.dtype, device=device, revision=revision,
        options=parse_options(pairs),
    )  # fmt: skip
    check_policy(loaded, run)
    job = ProbeJob(paths, run, asked, real_dof(loaded, episodes[0], dof), batch_size, tolerance)
    plan = make_plan(job, episodes)
    _show_plan(plan, job, target, as_json)
    if dry_run:
        return
    with interrupts() as stopped, progress_bar(plan, "probe") as observer:
        report = probe_all(job, loaded, plan.pending, observer, stopped=stopped)
    conclude(plan, report, target, as_json)


def _show_plan(plan: ProbePlan, job: Any, target: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "event": "forecast", "run": job.run.id, "part": job.probe.part,
                    "episodes": len(plan.pending), "keyframes": plan.total_keyframes,
                    "forwards": plan.forwards, "dof": job.dof, "committed": len(plan.present),
                }
            ]
        )  # fmt: skip
        return
    console().print(
        f"{job.probe.kind} of run {job.run.id} in {target}, part {job.probe.part}\n"
        f"{len(plan.pending)} episodes to do, {plan.total_keyframes} keyframes, "
        f"{plan.forwards} action chunks of {job.dof} degrees of freedom; "
        f"{len(plan.present)} committed already; the time is known after the first keyframes",
        markup=False,
        soft_wrap=True,
    )
