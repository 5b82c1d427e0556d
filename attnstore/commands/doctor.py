"""``attnstore doctor``: what a person checks before a long ingest."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import AttnstoreError, EpisodeError, UsageError

from .ingest import ingest
from .ingest_choices import Examination, PolicyChoice, RunChoice
from .ingest_run import run_ingest
from .options import StoreCommand, out_directory
from .output import say, say_made

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import Dataset, EpisodeInfo, Frame
    from attnstore.ingest.policies.base import Batch, Policy
    from attnstore.store.format.tokens import Axis

LIBRARIES = (
    "torch", "transformers", "lerobot", "openpi", "jax", "flax", "numpy", "zarr", "tensorstore", "duckdb", "h5py", "av",
    "pillow", "opencv-python-headless",
)  # fmt: skip
ROWS = 1e-2
"""How far a row of captured attention may be from a sum of 1, at half precision."""


@click.command(
    cls=StoreCommand, context_settings={"ignore_unknown_options": True},
    options_metavar="[OPTIONS] [OPTIONS OF INGEST]",
)  # fmt: skip
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.argument("dataset", metavar="DATASET")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option(
    "--reader",
    metavar="NAME",
    help="Command of `attnstore ingest` that reads DATASET.  [default: by its files]",
)
@click.option(
    "--run/--no-run",
    "act",
    default=True,
    help="Whether the policy acts once, captured; without it no weights are loaded.",
)
@out_directory("Draw each camera's first image with its patches into it.", required=False)
def doctor(
    checkpoint: str,
    dataset: str,
    options: tuple[str, ...],
    reader: str | None,
    act: bool,
    out: Path | None,
) -> None:
    """Check a policy and a dataset before a long ingest: what would be done, and whether it would fail.

    Prints the environment, the adapter, the cameras and where they stand in the policy's sequence,
    the tokens of the first keyframe, and the forecast. Behind CHECKPOINT and DATASET come the same
    options as for `attnstore ingest`. The exit code is not 0 if something would fail.

    Examples
    --------
    attnstore doctor CHECKPOINT EPISODES --side right --stride 8 --device cuda --out pictures
    attnstore doctor CHECKPOINT libero_goal --env-processor libero
    """
    from attnstore.ingest.datasets.registry import recognised

    if checkpoint.startswith("-") or dataset.startswith("-"):
        raise UsageError("name CHECKPOINT and DATASET first, then the options of attnstore ingest")
    context = click.get_current_context()
    if reader is None:
        found = recognised(dataset)
        if not found and not Path(dataset).exists() and dataset.count("/") == 1:
            found = ["lerobot"]  # a hub id
        if len(found) != 1:
            which = f"may be {' or '.join(found)}" if found else "is no format that is recognised"
            known = ", ".join(n for n in ingest.list_commands(context) if n != "recording")
            raise UsageError(f"{dataset} {which}: name its reader with --reader: {known}")
        (reader,) = found
    command = ingest.get_command(context, reader)
    if command is None or reader == "recording":
        raise UsageError(f"no reader {reader!r}; `attnstore ingest --help` lists them")
    with TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        arguments = [str(store), dataset, "--checkpoint", checkpoint, *options]
        examination = Examination(lambda *given: _examine(store, *given, act=act, out=out))
        with command.make_context(reader, arguments, parent=context, obj=examination) as below:
            command.invoke(below)
    same = shlex.join([reader, "STORE", dataset, "--checkpoint", checkpoint, *options])
    say_made("nothing was stored", f"attnstore ingest {same}")


@dataclass(frozen=True, slots=True)
class _Keyframe:
    info: EpisodeInfo
    frame: Frame
    batch: Batch


def _examine(
    store: Path,
    dataset: Dataset,
    choice: PolicyChoice,
    run: RunChoice,
    *,
    act: bool,
    out: Path | None,
) -> None:
    from attnstore import __version__

    here = [f"{name} {_version(name)}" for name in LIBRARIES if _version(name)]
    _section(
        "environment",
        [f"attnstore {__version__}, Python {platform.python_version()}", ", ".join(here)],
    )
    _check_device(choice.device)
    names = list(dataset.episode_names())
    _section(
        "dataset",
        [
            f"{dataset.kind}:{dataset.name}, {len(names)} episodes",
            f"cameras: {', '.join(dataset.cameras)}",
        ],
    )
    policy, spec = choice.load()
    _section("policy", list(_about_policy(policy, choice)))
    first = _first_keyframe(dataset, names, policy, run)
    if first is not None:
        _section("first keyframe", list(_about_keyframe(first)))
        for phase, layout in first.batch.samples[0].layouts.items():
            same = layout.query.spans == layout.key.spans
            lines = [f"queries: {_spans(layout.query)}"] if not same else []
            _section(
                f"tokens of {phase}",
                [*lines, f"{'tokens' if same else 'keys'}: {_spans(layout.key)}"],
            )
        if out is not None:
            _section("pictures", [str(path) for path in _draw(first, out)])
    _section("forecast", [])
    plan = run_ingest(store, dataset, policy, spec, replace(run, dry_run=True), names=names)
    if not plan.fits:
        raise AttnstoreError("the forecast needs more than is free here; see above")
    if act and first is not None:
        _section("one keyframe, captured", list(_act(policy, first)))
    click.echo("nothing was found that would fail" + ("" if act else "; no weights were loaded"))


def _section(title: str, lines: list[str]) -> None:
    click.echo(f"{title}")
    for line in lines:
        click.echo(f"  {line}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _check_device(device: str) -> None:
    if device.startswith("cuda"):
        from attnstore.ingest.optional import require

        torch: Any = require("torch", "ingest", "the policy's device")
        if not torch.cuda.is_available():
            raise UsageError(f"--device {device}: torch {torch.__version__} finds no GPU here")
        say(f"device {device}: {torch.cuda.get_device_name(device)}")


def _about_policy(policy: Policy, choice: PolicyChoice) -> Iterator[str]:
    from attnstore.ingest.policies.base import shows_values

    yield f"{policy.name}, {policy.checkpoint}, {policy.dtype} on {choice.device}, digest {policy.digest[:12]}"
    for name, phase in policy.phases.items():
        steps = "" if phase.steps is None else f", {phase.steps} steps"
        yield f"phase {name}: {phase.layers} layers x {phase.heads} heads{steps}"
    yield f"actions: {policy.horizon} x {policy.action_dof}" if policy.horizon else "it writes text"
    try:
        shape = policy.encoder_shape()
        yield f"--vision: {shape.layers} layers x {shape.heads} heads"
    except UsageError as error:
        yield f"--vision: no ({error})"
    yield f"value norms: {'yes' if shows_values(policy) else 'no'}"


def _first_keyframe(
    dataset: Dataset, names: list[str], policy: Policy, run: RunChoice
) -> _Keyframe | None:
    """Read and prepare the first keyframe that can be; the forecast names what cannot."""
    from attnstore.ingest.keyframes import keyframes_of, observation
    from attnstore.ingest.policies.base import ObservationError
    from attnstore.ingest.reading import prepare, read_info
    from attnstore.ingest.views import first_full_window, keyframe_views

    for name in names[:16]:
        try:
            info = read_info(dataset, name)
            at = (
                keyframes_of(info, run.stride)[0]
                if info.keyframes
                else first_full_window(info, policy)
            )
            frame = next(keyframe_views(dataset, info, [at], policy))
            return _Keyframe(info, frame, prepare(policy, [observation(frame, info, run.seed)]))
        except (EpisodeError, ObservationError):
            continue
    return None


def _about_keyframe(first: _Keyframe) -> Iterator[str]:
    info, frame = first.info, first.frame
    yield f"{info.name}, frame {frame.index} of {info.frames}, outcome {info.outcome}"
    yield f"instruction: {info.instruction}"
    yield f"state: {len(frame.state)} numbers; recorded action: {len(frame.action)}"
    sample = first.batch.samples[0]
    places = {
        span.camera: span
        for layout in sample.layouts.values()
        for span in layout.key.spans
        if span.camera is not None
    }
    sizes = {c.camera: c.rgb.shape for c in frame.cameras}
    for number, (camera, span) in enumerate(sorted(places.items(), key=lambda i: i[1].model_start)):
        geometry = sample.geometry[camera]
        shown = int((geometry.coverage() > 0).sum())
        yield (
            f"image {number + 1}: {camera}, {geometry.source[1]}x{geometry.source[0]} into "
            f"{geometry.input[1]}x{geometry.input[0]}, {geometry.grid[0]}x{geometry.grid[1]} patches of which "
            f"{shown} show image, tokens {span.model_start} to {span.model_start + len(span) - 1} of the model's"
        )
    for camera in sizes:
        if camera not in places:
            yield f"{camera} is given to the policy and has no tokens of its own"


def _spans(axis: Axis) -> str:
    return ", ".join(
        f"{s.name} {s.start}" + (f"-{s.stop - 1}" if s.stop - s.start > 1 else "")
        for s in axis.spans
    )


def _draw(first: _Keyframe, out: Path) -> Iterator[Path]:
    from attnstore.render.picture.image_file import write
    from attnstore.render.picture.patches import patch_sheet

    out.mkdir(parents=True, exist_ok=True)
    for camera in first.frame.cameras:
        geometry = first.batch.samples[0].geometry.get(camera.camera)
        if geometry is not None:
            sheet = patch_sheet(camera.camera, camera.rgb, geometry)
            yield write(out / f"{camera.camera}.png", sheet)


def _act(policy: Policy, first: _Keyframe) -> Iterator[str]:
    from attnstore.ingest.capture import capture

    start = time.perf_counter()
    with capture(policy) as session:
        policy.act(first.batch)
    seconds = time.perf_counter() - start
    worst = 0.0
    for record in session.records:
        layout = first.batch.samples[0].layouts[record.phase]
        # Padding's rows are anything: empty, or over padding as well.
        for part in layout.query.model_slices:
            sums = record.weights[0, :, part].float().sum(-1)
            worst = max(worst, float((sums - 1).abs().max()))
    if not session.records or worst > ROWS or worst != worst:
        raise AttnstoreError(
            f"the captured attention is not sound: {len(session.records)} records, rows are up to {worst:.3g} "
            "from a sum of 1"
        )
    yield (
        f"{len(session.records)} records in {seconds:.1f} s, weights' loading included; rows sum to 1 within "
        f"{worst:.1e}"
    )
