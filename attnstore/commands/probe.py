"""``attnstore probe``: whether what the policy looks at matters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .options import (
    EpisodeChoice,
    FiniteNumber,
    StepNumber,
    StoreGroup,
    StoreName,
    WorkersChoice,
    active_option,
    adapter_options,
    add_options,
    dry_run_option,
    episode_options_with_limit,
    grouped,
    json_option,
    layers_option,
    revision_option,
    store_to_write,
    workers_options,
)
from .output import print_json, say
from .progress import check_plan, conclude, interrupts, progress_bar

if TYPE_CHECKING:
    from attnstore.ingest.probing.pipeline import ProbePlan
    from attnstore.ingest.probing.variant import Probe
    from attnstore.store.rules import Active

FILLS = ("black", "mean", "blur", "noise")


@click.group(cls=StoreGroup)
def probe() -> None:
    """Run the policy again on stored keyframes, with something taken away.

    Needs the policy that the run was made with; the dataset is not needed. Each probe adds a part
    to every episode; the same command resumes.
    """


@dataclass(frozen=True, slots=True)
class PassChoice:
    """How the policy goes over the stored keyframes again."""

    checkpoint: str
    policy: str | None
    revision: str | None
    device: str
    pairs: tuple[str, ...]
    every: int
    dof: int | None
    batch_size: int
    tolerance: float | None
    dry_run: bool


@dataclass(frozen=True, slots=True)
class MapAsked:
    """Whose maps a probe follows."""

    phase: str | None
    query: str | None
    layers: tuple[int, ...] | None
    heads: str
    step: int | None
    active: Active

    def shown(self, spec: Any) -> tuple[str, str]:
        """Phase and query group; by default the last phase's: that of the actions."""
        with_maps = [p for p, s in spec.phases.items() if s.camera is None and s.cameras]
        phase = self.phase or with_maps[-1]
        groups = spec.phases[phase].query_groups if phase in spec.phases else ("",)
        return phase, self.query or groups[0]


_PASS = grouped(
    "again",
    PassChoice,
    click.option(
        "--checkpoint",
        metavar="PATH|HUB_ID",
        required=True,
        help="The run's checkpoint: directory or hub id.",
    ),
    click.option(
        "--policy", metavar="NAME", help="Adapter, or adapter:variant.  [default: the run's]"
    ),
    revision_option,
    click.option("--device", default="cpu", show_default=True, help="Torch device."),
    adapter_options,
    click.option(
        "--every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Probe every so many-th keyframe.",
    ),
    click.option(
        "--dof",
        type=click.IntRange(min=1),
        help="Real degrees of freedom: the first components of an action that are compared.  "
        "[default: the policy's, else the recording's]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Variants a forward.",
    ),
    click.option(
        "--tolerance",
        type=FiniteNumber(min=0),
        help="How far the base may be from the stored actions, relative to their length.  "
        "[default: by data type]",
    ),
    dry_run_option,
)
_COMMON = (store_to_write, episode_options_with_limit, _PASS, workers_options)
_FILL = click.option(
    "--fill",
    type=click.Choice(FILLS),
    default="mean",
    show_default=True,
    help="What pixels are replaced by.",
)
_MAP = grouped(
    "maps",
    MapAsked,
    click.option(
        "--phase", metavar="NAME", help="Phase of the maps.  [default: the last one: suffix]"
    ),
    click.option(
        "--query", metavar="GROUP", help="Query tokens of the maps.  [default: the phase's]"
    ),
    layers_option,
    click.option(
        "--heads",
        metavar="mean|max|active|N",
        default="mean",
        show_default=True,
        help="Heads of the maps: their mean or maximum, the most active one, or one.",
    ),
    click.option(
        "--step",
        metavar="first|last|N",
        type=StepNumber(),
        help="Denoising step of the maps.  [default: last; of decode first]",
    ),
    active_option,
)


@probe.command()
@add_options(
    _COMMON,
    _MAP,
    click.option(
        "--share",
        type=FiniteNumber(0, 0.5, min_open=True),
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
    _FILL,
    click.option(
        "--camera",
        "cameras",
        metavar="all|each|NAMES",
        multiple=True,
        default=("all",),
        show_default=True,
        help="Cameras changed at once: all, each (alone), or names joined by +; repeatable.",
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
    json_option,
)
def fidelity(
    store: StoreName,
    episodes: EpisodeChoice,
    again: PassChoice,
    workers: WorkersChoice,
    maps: MapAsked,
    share: float,
    reduce: str,
    fill: str,
    cameras: tuple[str, ...],
    control: str,
    repeats: int,
    curves: int | None,
    as_json: bool,
) -> None:
    """Replace the pixels that each layer's map points at, and as many elsewhere.

    Examples
    --------
    attnstore probe fidelity lab.attn --checkpoint CHECKPOINT --every 4
    attnstore probe fidelity lab.attn --checkpoint CHECKPOINT --layers 5,10 --camera each --curves 10
    """
    from attnstore.ingest.probing.fidelity import Fidelity

    def make(spec: Any, every: int) -> Probe:
        return Fidelity(
            *maps.shown(spec), maps.layers, heads=maps.heads, step=maps.step, share=share,
            reduce=reduce, fill=fill, control=control, repeats=repeats,  # type: ignore[arg-type]  # click's choices
            cameras=cameras, curve_points=curves or 0, every=every, active=maps.active,
        )  # fmt: skip

    _run_probe(make, store, episodes, again, workers, as_json)


@probe.command()
@add_options(
    _COMMON,
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
        "--camera",
        "cameras",
        metavar="all|each|NAMES",
        multiple=True,
        default=("each", "all"),
        show_default=True,
        help="Whole cameras at once: all, each, or names joined by +; repeatable.",
    ),
    _FILL,
    _MAP,
    click.option(
        "--bands", type=click.IntRange(min=2), default=10, show_default=True, help="Bands by rank."
    ),
    json_option,
)
def regions(
    store: StoreName,
    episodes: EpisodeChoice,
    again: PassChoice,
    workers: WorkersChoice,
    by: tuple[str, ...],
    cells: str,
    cameras: tuple[str, ...],
    fill: str,
    maps: MapAsked,
    bands: int,
    as_json: bool,
) -> None:
    """Replace one region at a time, and keep how much attention each layer gave it.

    Examples
    --------
    attnstore probe regions lab.attn --checkpoint CHECKPOINT --cells 6x8 --every 4
    attnstore probe regions lab.attn --checkpoint CHECKPOINT --by object
    """
    from attnstore.ingest.probing.regions import Regions

    size = re.fullmatch(r"(\d+)x(\d+)", cells)
    if size is None:
        raise UsageError(f"--cells is ROWSxCOLUMNS, as 4x4; got {cells!r}")
    ranked = "rank" in by
    if ranked and maps.layers is None:
        raise UsageError("--by rank needs --layers: every band of every layer is a forward")

    def make(spec: Any, every: int) -> Probe:
        phase, query = maps.shown(spec) if ranked else ("", "")
        return Regions(
            by=by,  # type: ignore[arg-type]  # click's choices
            cells=(int(size[1]), int(size[2])),
            cameras=cameras, phase=phase, group=query, layers=(maps.layers or ()) if ranked else (),
            heads=maps.heads, step=maps.step, fill=fill, bands=bands, every=every, active=maps.active,  # type: ignore[arg-type]
        )  # fmt: skip

    _run_probe(make, store, episodes, again, workers, as_json)


@probe.command()
@add_options(
    _COMMON,
    click.option(
        "--prompts",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Prompts, one a line: NAME = TEXT; {instruction} stands for the episode's own.",
    ),
    click.option(
        "--replace",
        "words",
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
    json_option,
)
def prompts(
    store: StoreName,
    episodes: EpisodeChoice,
    again: PassChoice,
    workers: WorkersChoice,
    file: Path | None,
    words: tuple[str, ...],
    empty: bool,
    shuffles: int,
    as_json: bool,
) -> None:
    """Tell the policy something else, and compare action and maps.

    Examples
    --------
    attnstore probe prompts lab.attn --checkpoint CHECKPOINT --replace 'red cube=green cube' --empty
    """
    from attnstore.ingest.probing.prompts import Prompts, parse_replaced, read_prompts

    given = read_prompts(file) if file is not None else ()

    def make(spec: Any, every: int) -> Probe:
        return Prompts(given, parse_replaced(words), empty=empty, shuffles=shuffles, every=every)

    _run_probe(make, store, episodes, again, workers, as_json)


@probe.command()
@add_options(
    _COMMON,
    click.option(
        "--key",
        "keys",
        metavar="GROUP",
        multiple=True,
        required=True,
        help="Tokens that are not to be seen, a variant each: image, image:CAMERA, text, task, state, "
        "word:WORD, action:0:5, all, object:NAME, background, letterbox (also background@CAMERA).",
    ),
    click.option(
        "--query",
        metavar="GROUP",
        default="all",
        show_default=True,
        help="Query tokens that must not attend to them: action, task, word:WORD, ...",
    ),
    click.option(
        "--phase",
        "phases",
        metavar="NAME",
        multiple=True,
        help="Only in this phase; repeatable.  [default: all]",
    ),
    layers_option,
    click.option(
        "--at",
        type=click.Choice(["together", "each"]),
        default="together",
        show_default=True,
        help="All these layers at once, or one at a time.",
    ),
    json_option,
)
def knockout(
    store: StoreName,
    episodes: EpisodeChoice,
    again: PassChoice,
    workers: WorkersChoice,
    keys: tuple[str, ...],
    query: str,
    phases: tuple[str, ...],
    layers: tuple[int, ...] | None,
    at: str,
    as_json: bool,
) -> None:
    """Block attention between tokens before the softmax.

    Examples
    --------
    attnstore probe knockout lab.attn --checkpoint CHECKPOINT --query action --key task
    attnstore probe knockout lab.attn --checkpoint CHECKPOINT --key object:cube --layers 5-9 --at each
    """
    from attnstore.ingest.probing.knockout import Knockout

    def make(spec: Any, every: int) -> Probe:
        return Knockout(
            keys=keys, query=query, phases=phases, layers=layers,
            at=at,  # type: ignore[arg-type]  # click's choice
            every=every,
        )  # fmt: skip

    _run_probe(make, store, episodes, again, workers, as_json)


def _run_probe(
    make: Callable[[Any, int], Probe],
    store: StoreName,
    choice: EpisodeChoice,
    again: PassChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Forecast, probe, and say what became of every episode."""
    from attnstore.ingest.policies.registry import PolicySpec, parse_options
    from attnstore.ingest.probing.episode import ProbeJob
    from attnstore.ingest.probing.pipeline import (
        check_policy,
        choose_episodes,
        choose_run,
        make_plan,
        probe_all,
        real_dof,
    )
    from attnstore.ingest.threads import limit_threads
    from attnstore.query import open as open_for_reading
    from attnstore.store.opening import open_store

    limit_threads(workers.workers)
    doers = workers.on(again.device)
    paths = open_store(store)
    paths.check_writable()
    with interrupts(finishing=None):
        chosen = choice.of_one_run(open_for_reading(store))
        run = choose_run(paths, chosen.run)
        names = workers.share(chosen.episodes)
        episodes = choose_episodes(paths, run, names) if names else []
        if not episodes:
            return
        asked = make(episodes[0].spec, again.every)
        spec = PolicySpec(
            again.policy or run.policy, again.checkpoint, run.dtype, again.revision,
            parse_options(again.pairs),
        )  # fmt: skip
        loaded = spec.load("cuda:0" if again.device == "cuda" else again.device)
        check_policy(loaded, run)
        dof = real_dof(loaded, episodes[0], again.dof)
        job = ProbeJob(paths, run, asked, dof, again.batch_size, again.tolerance)
        plan = make_plan(job, episodes)
        _show_plan(plan, job, store, as_json)
        if again.dry_run:
            check_plan(plan)
            return
        with interrupts() as stopped, progress_bar(plan, "probe") as observer:
            report = probe_all(
                job, loaded, plan.pending, observer, spec=spec, workers=doers, stopped=stopped
            )
        conclude(plan, report, store, as_json, stopped, "report")


def _show_plan(plan: ProbePlan, job: Any, target: StoreName, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "event": "forecast", "run": job.run.id, "part": job.probe.part,
                    "episodes": len(plan.pending), "keyframes": plan.total_keyframes,
                    "forwards": plan.forwards, "dof": job.dof, "committed": len(plan.present),
                    "broken": dict(plan.broken),
                }
            ]
        )  # fmt: skip
        return
    broken = f", {len(plan.broken)} broken" if plan.broken else ""
    say(
        f"{job.probe.kind} of run {job.run.id} in {target}, part {job.probe.part}\n"
        f"{len(plan.pending)} episodes to do, {plan.total_keyframes} keyframes, "
        f"{plan.forwards} action chunks of {job.dof} degrees of freedom; "
        f"{len(plan.present)} committed already{broken}; the time is known after the first "
        "keyframes"
    )
