"""``attnstore objects``: how much of the attention lies on objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import (
    ConflictError,
    EpisodeError,
    NotFoundError,
    PartialError,
    SelectionError,
)

from .options import (
    EpisodeChoice,
    FiniteNumber,
    StoreGroup,
    StoreName,
    WorkersChoice,
    add_options,
    episode_options,
    json_option,
    out_directory,
    phases_option,
    store_to_write,
    workers_options,
)
from .output import Advance, print_json, progress_of, say, say_made, say_written
from .progress import end_if_interrupted, interrupts

if TYPE_CHECKING:
    from attnstore.ingest.work import Outcome, Progress, Stopped
    from attnstore.query import Episode, Store
    from attnstore.query.objects.options import ObjectOptions
    from attnstore.store.commits import StorePaths

SOURCES = ("detector", "gripper")


@click.group(cls=StoreGroup)
def objects() -> None:
    """Measure how much of the attention lies on objects, without the policy."""


@objects.command()
@store_to_write
@click.option("--masks", "dataset", required=True, type=click.Path(path_type=Path),
              help="Dataset whose episodes have dinox_info.json, coco_masks.json, calibration.json.")  # fmt: skip
@click.option("--camera", metavar="NAME",
              help="Camera whose masks they are.  [default: hand_camera, or the only one]")  # fmt: skip
@click.option("--source", "sources", type=click.Choice(SOURCES), multiple=True,
              help="Masks of a detector, or the gripper projected from the recorded pose.  "
                   "[default: those that the dataset has]")  # fmt: skip
@episode_options
@phases_option
@click.option("--threshold", type=FiniteNumber(0, 1, min_open=True), default=0.3,
              show_default=True, help="Share of a map's maximum that counts as bright, for iou.")  # fmt: skip
@click.option("--within", type=click.IntRange(min=0), default=0, show_default=True, metavar="FRAMES",
              help="A keyframe without masks takes those of the nearest frame this close.")  # fmt: skip
@click.option("--tier", type=click.Choice(["maps", "full"]), default="maps", show_default=True,
              help="Read the overview maps (within 0.05 %), or all weights at the run's precision.")  # fmt: skip
@click.option("--tool-offset", type=FiniteNumber(), default=0.0, show_default=True, metavar="METRES",
              help="From the recorded pose to the fingertips along its z; about 0.15 if the wrist "
                   "was recorded, as DROID's robots do.")  # fmt: skip
@click.option("--values/--no-values", default=True, show_default=True,
              help="Compare value-weighted maps, too, where value norms are stored: reads all weights.")  # fmt: skip
@click.option("--redo", is_flag=True, help="Compute what is there with the same inputs, too.")
@out_directory("Write results, pictures, videos and a report below this directory.", required=False)
@click.option("--pictures/--no-pictures", default=True, show_default=True,
              help="With --out: draw every keyframe and a video of every layer.")  # fmt: skip
@add_options(workers_options, json_option)
def add(
    store: StoreName, dataset: Path, camera: str | None, sources: tuple[str, ...],
    episodes: EpisodeChoice, phases: tuple[str, ...], threshold: float, within: int,
    tier: str, tool_offset: float, values: bool, redo: bool, out: Path | None, pictures: bool,
    workers: WorkersChoice, as_json: bool,
) -> None:  # fmt: skip
    """Compare maps of attention with masks of objects, and commit the numbers.

    Adds the tables object_stats and object_masks, one part per source, camera and parameters.
    What is there already with the same inputs is skipped, so the same command resumes. A source of
    which the dataset has no file is left out, and that is said. Episodes that lack what others have
    are named, the others go on, and the exit code is then 5.

    The gripper is a proxy of three boxes: look at the pictures of --out before you trust it.

    Examples
    --------
    attnstore objects add lab.attn --masks EPISODES --out objects
    attnstore objects add lab.attn --masks EPISODES --source detector --camera varied_camera_1
    """
    from attnstore.ingest.executor import execute
    from attnstore.query import open as open_for_reading
    from attnstore.query.objects.options import ObjectOptions
    from attnstore.query.objects.part import find_dataset
    from attnstore.store.opening import open_store

    doers = workers.on("cpu")
    paths = open_store(store)
    paths.check_writable()
    opened = open_for_reading(store)
    root = find_dataset(dataset)
    chosen = workers.share(episodes.open(opened))
    if not chosen:
        return
    camera = _camera(chosen, camera)
    options = [
        ObjectOptions(
            source, camera, threshold, within, tier,  # type: ignore[arg-type]  # click's choices
            tool_offset if source == "gripper" else 0.0,
        )
        for source in dict.fromkeys(sources or _sources(chosen, root, camera))
    ]  # fmt: skip
    work = ObjectWork(
        paths, root, phases, values, redo,
        {f"{e.run} {e.id} {o.part}": (e.run, e.name, o) for e in chosen for o in options},
    )  # fmt: skip
    with interrupts(finishing="episode") as stopped, progress_of("objects") as advance:
        shown = _Shown(advance, len(work.tasks), as_json)
        report = execute(
            work, list(work.tasks), shown, state=opened, workers=doers, stopped=stopped
        )
    end_if_interrupted(report, stopped)
    failed = [o for o in report.outcomes if o.status == "broken"]
    if out is not None and len(failed) < len(report.outcomes):
        from attnstore.render.report.object_report import write_report

        done = {(o.details["id"], o.details["part"]) for o in report.outcomes if o not in failed}
        parts = [
            (e, o.part) for e in chosen for o in options if (f"{e.run} {e.id}", o.part) in done
        ]
        with progress_of("drawing") as advance:
            written = write_report(
                opened, parts, out, pictures=pictures, missing={o.name: o.reason for o in failed},
                progress=advance,
            )  # fmt: skip
        say_written(written, out, "objects", as_json)
    if not as_json and len(failed) < len(report.outcomes):
        here = [o for o in report.outcomes if o.status == "present"]
        rows = sum(o.details["rows"] for o in report.outcomes)
        count = len({o.details["id"] for o in report.outcomes if o not in failed})
        say_made(
            f"objects of {count} episode{'s' if count > 1 else ''}, {rows} rows, {len(here)} of "
            f"{len(report.outcomes)} parts there already",
            f"attnstore objects timeline {store} --out timelines"
            if out is None
            else f"open {out / 'report.html'}",
        )
    if failed:
        lines = "".join(f"\n  {o.name}: {o.details['source']}: {o.reason}" for o in failed)
        raise PartialError(f"no numbers for {len(failed)} of {len(report.outcomes)}:{lines}")


@dataclass(frozen=True, slots=True)
class ObjectWork:
    """Adding object parts to episodes, as `attnstore.ingest.executor` does it."""

    paths: StorePaths
    root: Path
    """The dataset with the masks."""
    phases: tuple[str, ...]
    values: bool
    redo: bool
    tasks: Mapping[str, tuple[str, str, ObjectOptions]]
    """By a name of its own: run, episode, and which masks."""

    def open(self, device: str) -> Store:
        """Open the store."""
        from attnstore.query import open as open_for_reading

        return open_for_reading(self.paths.name)

    def reach(self, name: str) -> None:
        """Check that the dataset is here."""
        from attnstore.query.objects.part import find_dataset

        find_dataset(self.root)

    def claimed(self, name: str) -> bool:
        """Return False: another command that does the same loses a few seconds."""
        return False

    def do(self, state: Store, name: str, *, progress: Progress, stopped: Stopped) -> Outcome:
        """Compare an episode's maps with its masks."""
        from attnstore.ingest.work import Outcome
        from attnstore.query.objects.part import add_objects, find_episode

        run, named, options = self.tasks[name]
        episode = state.episode(named, run=run)
        details = {
            "run": run, "id": f"{run} {episode.id}", "source": options.source, "part": options.part,
            "revision": 0, "rows": 0, "objects": [],
        }  # fmt: skip
        if options.camera not in episode.cameras:
            reason = f"its run has no {options.camera}, only {', '.join(episode.cameras)}"
            return Outcome(named, "broken", reason, details=details)
        try:
            directory = find_episode(self.root, named)
            for attempt in (1, 2):
                try:
                    added = add_objects(
                        self.paths,
                        episode,
                        directory,
                        options,
                        phases=self.phases,
                        values=self.values,
                        redo=self.redo,
                    )
                    break
                except ConflictError:
                    # Another process was faster; what it committed is there the second time.
                    if attempt == 2:
                        raise
        except EpisodeError as error:
            return Outcome(named, "broken", error.reason, details=details)
        details |= {
            "revision": added.commit.revision, "rows": added.rows,
            "objects": list(added.commit.summary["objects"]),
        }  # fmt: skip
        return Outcome(named, "committed" if added.computed else "present", details=details)


class _Shown:
    """Shows which episode is at its turn, and says what became of each."""

    def __init__(self, advance: Advance, tasks: int, as_json: bool) -> None:
        self._advance, self._tasks, self._as_json = advance, tasks, as_json
        self._ended = 0

    def started(self, name: str) -> None:
        self._advance(self._ended / self._tasks, name)

    def advanced(self, name: str, keyframes: int) -> None:
        """Nothing: an episode takes a second."""

    def noted(self, message: str) -> None:
        say(message)

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        self._advance(self._ended / self._tasks, outcome.name)
        of = outcome.details
        if self._as_json:
            shown = {k: of[k] for k in ("source", "part", "revision", "rows", "objects")}
            print_json(
                [
                    {
                        "event": "episode", "run": of["run"], "name": outcome.name,
                        "status": outcome.status, "reason": outcome.reason, **shown,
                    }
                ]
            )  # fmt: skip
        elif outcome.status != "broken":  # those are named at the end, with the exit code
            seen = ", ".join(of["objects"]) or "nothing in view"
            say(
                f"{outcome.name}: {of['source']}: {outcome.status}, revision {of['revision']}, "
                f"{of['rows']} rows: {seen}"
            )


def _camera(episodes: list[Episode], asked: str | None) -> str:
    """Return the camera that any of the episodes has; those without are reported one by one."""
    known = sorted({c for episode in episodes for c in episode.cameras})
    camera = asked or (known[0] if len(known) == 1 else "hand_camera")
    if camera not in known:
        what = (
            f"no episode has attention to {asked}"
            if asked
            else "several cameras, name one with --camera"
        )
        raise SelectionError(f"{what}; there are: {', '.join(known)}")
    return camera


def _sources(episodes: list[Episode], root: Path, camera: str) -> list[str]:
    """Return the sources of which an episode has a file; say which are left out."""
    from attnstore.query.objects.options import SOURCES, mask_files
    from attnstore.query.objects.part import find_episode

    wanted = {source: mask_files(source, Path(), camera) for source in SOURCES}
    found = set()
    directories = []
    for episode in episodes:
        try:
            directories.append(find_episode(root, episode.name))
        except EpisodeError:
            continue  # named when its turn comes
    for source in SOURCES:
        if any(f.is_file() for d in directories for f in mask_files(source, d, camera)):
            found.add(source)
    names = {source: " or ".join(f.name for f in files) for source, files in wanted.items()}
    if directories and not found:
        raise NotFoundError(
            f"no episode of {root.name} has masks of {camera}: put beside an episode's recordings "
            f"{names['detector']}, or {names['gripper']} for the projected gripper"
        )
    for source in SOURCES:
        if found and source not in found:
            say(f"{source}: left out, no episode has {names[source]}")
    return [source for source in SOURCES if source in found or not found]
