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

from .options import console, json_option, need_store, print_json, store_option

if TYPE_CHECKING:
    from attnstore.query import Episode, Store
    from attnstore.query.object_options import ObjectOptions

CAMERAS = ("hand_camera", "varied_camera_1", "varied_camera_2")
SOURCES = ("detector", "gripper")


@click.group()
def objects() -> None:
    """Measure how much of the attention lies on objects, without the policy."""


@objects.command()
@store_option
@click.option("--masks", "dataset", required=True, type=click.Path(path_type=Path),
              help="Dataset whose episodes have dinox_info.json, coco_masks.json, calibration.json.")  # fmt: skip
@click.option("--camera", type=click.Choice(CAMERAS), default=CAMERAS[0], show_default=True,
              help="Camera; the default is the wrist's.")  # fmt: skip
@click.option("--source", "sources", type=click.Choice(SOURCES), multiple=True,
              help="Masks of a detector, or the gripper projected from the recorded pose.  "
                   "[default: both]")  # fmt: skip
@click.option("--episode", "episodes", multiple=True, help="Only this episode; repeatable.")
@click.option("--run", help="Only this run.")
@click.option("--phase", "phases", multiple=True, help="Only this phase; repeatable.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.3,
              show_default=True, help="Share of a map's maximum that counts as bright, for iou.")  # fmt: skip
@click.option("--within", type=click.IntRange(min=0), default=0, show_default=True, metavar="FRAMES",
              help="A keyframe without masks takes those of the nearest frame this close.")  # fmt: skip
@click.option("--tier", type=click.Choice(["maps", "full"]), default="maps", show_default=True,
              help="Read the overview maps (within 0.05 %), or all weights at the run's precision.")  # fmt: skip
@click.option("--tool-offset", type=float, default=0.0, show_default=True, metavar="METRES",
              help="From the recorded pose to the fingertips along its z; about 0.15 if the wrist "
                   "was recorded, as DROID's robots do.")  # fmt: skip
@click.option("--redo", is_flag=True, help="Compute what is there with the same inputs, too.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Write results, pictures, videos and a report below this directory.")  # fmt: skip
@click.option("--pictures/--no-pictures", default=True, show_default=True,
              help="With --out: draw every keyframe and a video of every layer.")  # fmt: skip
@json_option
def add(
    store: Path | None, dataset: Path, camera: str, sources: tuple[str, ...],
    episodes: tuple[str, ...], run: str | None, phases: tuple[str, ...], threshold: float,
    within: int, tier: str, tool_offset: float, redo: bool, out: Path | None, pictures: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare maps of attention with masks of objects, and commit the numbers.

    Adds the tables object_stats and object_masks, one part per source, camera and parameters.
    What is there already with the same inputs is skipped, so the same command resumes. Episodes
    without masks are named, the others go on, and the exit code is then 5.

    The gripper is a proxy of three boxes: look at the pictures of --out before you trust it.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.object_options import ObjectOptions
    from attnstore.query.object_part import find_dataset

    opened = open_for_reading(need_store(store))
    root = find_dataset(dataset)
    chosen = _with_camera(_episodes(opened, episodes, run), camera)
    options = [
        ObjectOptions(
            source, camera, threshold, within, tier,  # type: ignore[arg-type]  # click's choices
            tool_offset if source == "gripper" else 0.0,
        )
        for source in dict.fromkeys(sources or SOURCES)
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
        from attnstore.render.object_report import write_report

        with console().status("drawing"):
            written = write_report(
                opened, parts, out, pictures=pictures, missing={o.name: o.reason for o in failed}
            )
        _say_written(written, out, as_json)
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


def _episodes(store: Store, names: Sequence[str], run: str | None) -> list[Episode]:
    if names:
        return [store.episode(name, run=run) for name in names]
    found = [store.from_commit(commit) for commit in store.episodes(run)]
    if not found:
        raise NotFoundError(
            f"{store.paths.root} has no episodes" + (f" of run {run}" if run else "")
        )
    return found


def _with_camera(episodes: list[Episode], camera: str) -> list[Episode]:
    """Return the episodes if any has the camera; those that have not are reported one by one."""
    if not any(camera in episode.cameras for episode in episodes):
        known = sorted({c for episode in episodes for c in episode.cameras})
        raise SelectionError(f"no episode has attention to {camera}; there are: {', '.join(known)}")
    return episodes


def _add_one(
    store: Store, episode: Episode, root: Path, options: ObjectOptions, phases: Sequence[str],
    redo: bool,
) -> _Outcome:  # fmt: skip
    from attnstore.query.object_part import add_objects, find_episode

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
    console().print(
        f"{outcome.name}: {outcome.source}: {outcome.status}, revision {outcome.revision}, "
        f"{outcome.rows} rows: {seen}",
        markup=False,
        soft_wrap=True,
    )


def _fields(outcome: _Outcome) -> Iterator[tuple[str, Any]]:
    yield "event", "episode"
    yield "run", outcome.episode.run
    for name in ("name", "source", "status", "reason", "part", "revision", "rows"):
        yield name, getattr(outcome, name)
    yield "objects", list(outcome.objects)


def _say_written(written: Sequence[Path], out: Path, as_json: bool) -> None:
    if as_json:
        print_json([{"event": "report", "out": str(out), "files": [str(p) for p in written]}])
    else:
        console().print(
            f"{len(written)} files below {out}; open report.html", markup=False, soft_wrap=True
        )
