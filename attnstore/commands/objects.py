"""``attnstore objects``: how much of the attention lies on objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    episode_options,
    json_option,
    out_directory,
    phases_option,
    store_to_write,
)
from .output import console, print_json, say, say_written

if TYPE_CHECKING:
    from attnstore.query import Episode, Store
    from attnstore.query.objects.options import ObjectOptions

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
@click.option("--redo", is_flag=True, help="Compute what is there with the same inputs, too.")
@out_directory("Write results, pictures, videos and a report below this directory.", required=False)
@click.option("--pictures/--no-pictures", default=True, show_default=True,
              help="With --out: draw every keyframe and a video of every layer.")  # fmt: skip
@json_option
def add(
    store: Path, dataset: Path, camera: str | None, sources: tuple[str, ...],
    episodes: EpisodeChoice, phases: tuple[str, ...], threshold: float, within: int,
    tier: str, tool_offset: float, redo: bool, out: Path | None, pictures: bool,
    as_json: bool,
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
    from attnstore.query import open as open_for_reading
    from attnstore.query.objects.options import ObjectOptions
    from attnstore.query.objects.part import find_dataset

    opened = open_for_reading(store)
    root = find_dataset(dataset)
    chosen = episodes.open(opened)
    camera = _camera(chosen, camera)
    options = [
        ObjectOptions(
            source, camera, threshold, within, tier,  # type: ignore[arg-type]  # click's choices
            tool_offset if source == "gripper" else 0.0,
        )
        for source in dict.fromkeys(sources or _sources(chosen, root, camera))
    ]  # fmt: skip
    done = []
    with console().status("") as status:
        for episode in chosen:
            status.update(episode.name)
            for each in options:
                outcome = _add_one(opened, episode, root, each, phases, redo)
                done.append(outcome)
                _say(outcome, as_json)
    failed = [o for o in done if o.status == "failed"]
    parts = [(o.episode, o.part) for o in done if o.status != "failed"]
    if out is not None and parts:
        from attnstore.render.report.object_report import write_report

        with console().status("drawing"):
            written = write_report(
                opened, parts, out, pictures=pictures, missing={o.name: o.reason for o in failed}
            )
        say_written(written, out, "objects; open report.html", as_json)
    if failed:
        lines = "".join(f"\n  {o.name}: {o.source}: {o.reason}" for o in failed)
        raise PartialError(f"no numbers for {len(failed)} of {len(done)}:{lines}")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one episode and source."""

    episode: Episode
    source: str
    part: str
    status: str
    reason: str = ""
    rows: int = 0
    revision: int = 0
    objects: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.episode.name


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


def _add_one(
    store: Store, episode: Episode, root: Path, options: ObjectOptions, phases: Sequence[str],
    redo: bool,
) -> _Outcome:  # fmt: skip
    from attnstore.query.objects.part import add_objects, find_episode

    def failed(reason: str) -> _Outcome:
        return _Outcome(episode, options.source, options.part, "failed", reason)

    if options.camera not in episode.cameras:
        return failed(f"its run has no {options.camera}, only {', '.join(episode.cameras)}")
    try:
        directory = find_episode(root, episode.name)
        for attempt in (1, 2):
            try:
                added = add_objects(
                    store.paths, episode, directory, options, phases=phases, redo=redo
                )
                break
            except ConflictError:
                # Another process was faster; what it committed is there the second time.
                if attempt == 2:
                    raise
    except EpisodeError as error:
        return failed(error.reason)
    return _Outcome(
        episode, options.source, options.part, "committed" if added.computed else "present", "",
        added.rows, added.commit.revision, tuple(added.commit.summary["objects"]),
    )  # fmt: skip


def _say(outcome: _Outcome, as_json: bool) -> None:
    if as_json:
        print_json([dict(_fields(outcome))])
        return
    if outcome.status == "failed":
        return  # named at the end, with the exit code
    seen = ", ".join(outcome.objects) or "nothing in view"
    say(
        f"{outcome.name}: {outcome.source}: {outcome.status}, revision {outcome.revision}, "
        f"{outcome.rows} rows: {seen}"
    )


def _fields(outcome: _Outcome) -> Iterator[tuple[str, Any]]:
    yield "event", "episode"
    yield "run", outcome.episode.run
    for name in ("name", "source", "status", "reason", "part", "revision", "rows"):
        yield name, getattr(outcome, name)
    yield "objects", list(outcome.objects)
