"""What every ``attnstore ingest`` is told: which policy, which recordings, and how the run is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .options import (
    F,
    adapter_options,
    dry_run_option,
    grouped,
    limit_option,
    names_option,
    revision_option,
)
from .output import say

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import Dataset, VideoFrames
    from attnstore.ingest.policies.base import HiddenChoice, Policy
    from attnstore.ingest.policies.registry import PolicySpec


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """Which policy, from which checkpoint, on which device."""

    policy: str | None
    """None: found from the checkpoint's files."""
    checkpoint: str
    revision: str | None
    dtype: str | None
    device: str
    pairs: tuple[str, ...]

    def load(self) -> tuple[Policy, PolicySpec]:
        """Load it, and say how a worker loads it again."""
        from attnstore.ingest.policies.registry import PolicySpec, find_policy, parse_options

        name = self.policy
        if name is None:
            name = find_policy(self.checkpoint, self.revision)
            say(f"policy {name}, by the checkpoint's files")
        spec = PolicySpec(
            name, self.checkpoint, self.dtype, self.revision, parse_options(self.pairs)
        )
        loaded = spec.load("cuda:0" if self.device == "cuda" else self.device)
        # An adapter of several families says in its name which one the checkpoint is.
        return loaded, spec if ":" in name else replace(spec, name=loaded.name)


@dataclass(frozen=True, slots=True)
class RunChoice:
    """What a run is made with, and how the work is done."""

    stride: int = 8
    precision: str = "float16"
    seed: int = 0
    batch_size: int = 1
    vision: bool = False
    token_stats: bool = False
    values: bool | None = None
    hidden: str | None = None
    no_hidden: bool = False
    dry_run: bool = False
    force: bool = False

    def asked_hidden(self) -> HiddenChoice | bool | None:
        """Return which hidden states are asked for; None: those that the policy shows.

        Raises
        ------
        UsageError
            If both options are given, or one is not understood.
        """
        from attnstore.ingest.hidden import parse_hidden

        if self.hidden is not None and self.no_hidden:
            raise UsageError("give --hidden or --no-hidden, not both")
        if self.hidden is not None:
            return parse_hidden(self.hidden)
        return False if self.no_hidden else None


@dataclass(frozen=True, slots=True)
class RecordingChoice:
    """Which of a dataset's recordings, and what is kept of their videos."""

    outcome: str | None
    episodes: tuple[str, ...]
    limit: int | None
    dataset_name: str | None
    video_frames: VideoFrames = "jpeg"
    turns: tuple[str, ...] = ()
    flips: tuple[str, ...] = ()

    def turned(self, dataset: Dataset) -> Dataset:
        """Return the dataset with its cameras turned and flipped as asked."""
        from attnstore.ingest.datasets.oriented import OrientedDataset
        from attnstore.store.format.orientation import read_orientations

        orientations = read_orientations(self.turns, self.flips)
        return OrientedDataset(dataset, orientations) if orientations else dataset


@dataclass(frozen=True, slots=True)
class Examination:
    """What is done with an ingest's dataset and policy instead of the ingest; a context's object."""

    of: Callable[[Dataset, PolicyChoice, RunChoice], None]


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """Which of a dataset's columns the policy gets, and which action was recorded."""

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    action: tuple[str, ...]


def column_options(cameras: str, state: str, action: str) -> Callable[[F], F]:
    """Add ``--camera``, ``--state-column`` and ``--action-column``; the texts are their defaults."""
    return grouped(
        "columns",
        ColumnChoice,
        click.option(
            "--camera",
            "cameras",
            metavar="NAME",
            multiple=True,
            help=f"Camera, in the order in which the policy gets them; repeatable.  [default: {cameras}]",
        ),
        click.option(
            "--state-column",
            "state",
            metavar="NAME",
            multiple=True,
            help=f"Column of the robot state; several are joined.  [default: {state}]",
        ),
        click.option(
            "--action-column",
            "action",
            metavar="NAME",
            multiple=True,
            help=f"Column of the recorded action; several are joined.  [default: {action}]",
        ),
    )


instruction_option = click.option(
    "--instruction",
    metavar="SENTENCE",
    help="What the policy is told in every episode.  [default: what the file says]",
)
outcome_file_option = click.option(
    "--outcome-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or JSON with the outcome by episode_index.",
)
env_processor_option = click.option(
    "--env-processor",
    type=click.Choice(["libero", "none"]),
    help="What was done with a simulator's frames before the policy saw them: libero turns every camera by 180. "
    "Asked for where LIBERO's raw frames are found.",
)
policy_options = grouped(
    "policy",
    PolicyChoice,
    click.option(
        "--policy",
        metavar="NAME",
        help="Adapter, or adapter:variant; see `attnstore policies`.  [default: by the checkpoint's files]",
    ),
    click.option(
        "--checkpoint",
        metavar="PATH|HUB_ID",
        required=True,
        help="Local checkpoint directory, or hub id.",
    ),
    revision_option,
    click.option("--dtype", help="Data type of the weights.  [default: the checkpoint's]"),
    click.option(
        "--device", default="cpu", show_default=True, help="Torch device; cuda: one per worker."
    ),
    adapter_options,
)
_STILLS = (
    names_option("episodes"),
    click.option(
        "--outcome",
        type=click.Choice(["success", "failure", "unknown"]),
        help="Only episodes of this outcome.",
    ),
    limit_option,
    click.option(
        "--dataset-name", help="Name of the dataset in the run.  [default: the directory's]"
    ),
    click.option(
        "--turn",
        "turns",
        metavar="CAMERA=90|180|270",
        multiple=True,
        help="Turn a camera's images clockwise, as the policy was trained to see them; repeatable.",
    ),
    click.option(
        "--flip",
        "flips",
        metavar="CAMERA=horizontal|vertical",
        multiple=True,
        help="Mirror a camera's images, after --turn; repeatable.",
    ),
)
still_recording_options = grouped("recordings", RecordingChoice, *_STILLS)
recording_options = grouped(
    "recordings",
    RecordingChoice,
    *_STILLS,
    click.option(
        "--video-frames",
        type=click.Choice(["jpeg", "png"]),
        default="jpeg",
        show_default=True,
        help="What is kept of the frames of videos; png is larger, and exactly what the policy saw: "
        "`attnstore probe` does the same again.",
    ),
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["float16", "log8"]),
    default="float16",
    show_default=True,
    help="log8: one byte a weight, within 2.3 % down to 2^-16, below 2^-17 zero.",
)
vision_option = click.option(
    "--vision",
    is_flag=True,
    help="Also store the attention inside each camera's image encoder.",
)
token_stats_option = click.option(
    "--token-stats",
    is_flag=True,
    help="Also keep every token's norm and cosines, layer by layer.",
)
values_option = click.option(
    "--values/--no-values",
    default=None,
    help="Keep what each key token would add through each head, to weight attention with.  "
    "[default: where the policy shows it]",
)
hidden_options = (
    click.option(
        "--hidden",
        metavar="LAYERS[:SPANS]",
        help="Also keep every token's hidden state at these layers: 5,11 or 0-3:task,action; "
        "'embedding' is what enters layer 0.",
    ),
    click.option(
        "--no-hidden",
        is_flag=True,
        help="Keep no hidden states.  [default: means over spans, and the last of action tokens, where the "
        "policy shows them]",
    ),
)
force_option = click.option(
    "--force", is_flag=True, help="Go on although the forecast exceeds the free disk."
)
run_options = grouped(
    "run",
    RunChoice,
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Frames between keyframes.",
    ),
    precision_option,
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Base of the keyframes' noise seeds.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Keyframes a forward; does not change the results.",
    ),
    vision_option,
    token_stats_option,
    values_option,
    *hidden_options,
    dry_run_option,
    force_option,
)
