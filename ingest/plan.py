"""What an ingest will do: which episodes, how many keyframes, how many bytes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnstore.store.arrays.chunking import MAP_RATIO, attention_bytes, expected_ratio
from attnstore.store.commits import (
    ATTEMPT_FILE,
    StorePaths,
    latest_commit,
    read_document,
    unreadable_entries,
)
from attnstore.store.commits.run import RunConfig
from attnstore.store.errors import EpisodeError, IntegrityError
from attnstore.store.format.hidden import hidden_path, hidden_shape
from attnstore.store.format.tokens import AlignedAxis, TokenLayout
from attnstore.store.processes import lives
from attnstore.store.tables.base import TOKEN_METRICS

from .datasets.base import Dataset, EpisodeInfo, Frame
from .datasets.oriented import OrientedDataset
from .encoders import all_layouts, all_shapes
from .episode import EpisodeJob
from .hidden import check_choice, hidden_spec
from .keyframes import keyframes_of, observation
from .policies.base import (
    ATTENTION_ONLY,
    HiddenChoice,
    ObservationError,
    PhaseShape,
    Policy,
    Watch,
    check_stored_hidden,
)
from .reading import prepare, read_info
from .views import first_full_window, keyframe_views

SAMPLES = 3
"""Episodes whose first frame is prepared to learn the token counts."""
MAP_ITEM = 4
"""Bytes of a value of an overview map."""
NORM_BYTES = 1.7
"""Of a value norm, whose lower bits are zero; measured, as all that follow. A suffix's prefix keys compress
far better."""
HIDDEN_BYTES = 1.7
"""Of a value of a hidden state, whose lower bits are zero."""
ROW_BYTES = 52
"""Of a row of ``head_stats``, compressed."""
EPISODE_ROW_BYTES = 124
"""Of a row of ``episode_stats``, which has one per row of ``head_stats`` of a keyframe."""
NODE_BYTES = 2_230
"""Of a Zarr group or array: its ``zarr.json``, and its part of the root's."""
NODES = 8
"""Nodes of every episode: root, frames, policy with four arrays, maps."""
EPISODE_BYTES = 65_000
"""Of an episode's tables beside their rows: headers, dictionaries, footers."""
HIDDEN_TABLE_BYTES = 6_500
"""Of an episode's table ``hidden_states``."""
KEYFRAME_BYTES = 200
"""Of a keyframe's rows of the small tables: its tokens, spans, state."""
REFUSALS = 64
"""Episodes that a policy may refuse for one reason before none other is tried."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast of an ingest."""

    pending: tuple[str, ...]
    """Episodes to do, in order."""
    committed: tuple[str, ...]
    """Episodes that the run has already."""
    broken: Mapping[str, str]
    """Reason per broken episode."""
    keyframes: Mapping[str, int]
    """Per pending episode."""
    keyframe_bytes: int
    """Raw stored bytes of one keyframe's attention and overview maps, padding stripped."""
    stored_bytes: int
    """Forecast for all pending episodes, compressed: attention, maps, tables, images, metadata."""
    needed_bytes: int
    """Of these, what lies on this machine at a time: all, but of a store in a bucket an episode."""
    free_bytes: int
    """Free space where that is."""
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(query, key) tokens per phase, of the first episode."""

    @property
    def total_keyframes(self) -> int:
        """Keyframes to do."""
        return sum(self.keyframes.values())

    @property
    def fits(self) -> bool:
        """Whether the forecast leaves free space."""
        return self.needed_bytes < self.free_bytes


def make_plan(
    job: EpisodeJob, policy: Policy, dataset: Dataset, names: Sequence[str] | None = None
) -> Plan:
    """Check every episode and forecast the run, without loading the policy's weights.

    Episodes that are broken, or whose first frame the policy refuses, are named in the plan; more
    are tried in their place until some fit.

    The size comes from the token layouts and some images of some episodes, and from the compression that
    trained attention had at least; if the run has committed episodes, it is corrected by what they took.

    Parameters
    ----------
    names
        Episodes to do; by default all of the dataset.

    Raises
    ------
    ObservationError
        If the policy takes none of the episodes tried, all for the same reason.
    UsageError
        If the policy cannot show what is to be watched.
    IntegrityError
        If an entry of the store's log cannot be read, and so what it committed is not known.
    """
    if job.watch.token_stats:
        policy.check_hidden()
    if job.watch.values:
        policy.check_values()
    pending: list[EpisodeInfo] = []
    for file, reason in unreadable_entries(job.paths) if job.paths.marker.exists() else ():
        # What it committed would be taken for absent, and done again.
        number = int(Path(file).stem)
        raise IntegrityError(
            f"{file}: {reason}; restore it from a copy of the store, or give it up with "
            f"`attnstore remove STORE --entry {number}`"
        )
    committed: list[str] = []
    broken: dict[str, str] = {}
    for name in dataset.episode_names() if names is None else names:
        if latest_commit(job.paths, *job.commit_folder(name)) is not None:
            committed.append(name)
            continue
        try:
            pending.append(read_info(dataset, name))
        except EpisodeError as error:
            broken[name] = error.reason
    keyframes = {i.name: len(keyframes_of(i, job.run.stride)) for i in pending}
    largest = Size()
    images: list[float] = []
    tokens: dict[str, tuple[int, int]] = {}
    refused: list[ObservationError] = []
    taken = 0
    for info in pending:
        if taken == SAMPLES or (not taken and len(refused) == REFUSALS and _alike(refused)):
            break
        try:
            first = info.keyframes[0] if info.keyframes else first_full_window(info, policy)
            frame = _view(dataset, info, first, policy)
        except EpisodeError as error:
            broken[info.name] = error.reason
            continue
        try:
            sample = prepare(policy, [observation(frame, info, job.run.seed)]).samples[0]
        except ObservationError as error:
            refused.append(error)
            broken[info.name] = str(error)
            continue
        taken += 1
        shapes = all_shapes(policy, sample.geometry, job.watch)
        layouts = all_layouts(policy, sample, job.watch)
        if taken == 1:
            check_choice(job.watch.hidden, shapes, {p: x.query.spans for p, x in layouts.items()})
        size = size_of(shapes, layouts, job.run.precision, values=job.watch.values)
        size = with_hidden(size, shapes, layouts, job.watch.hidden)
        if job.watch.token_stats:
            size = replace(size, attention=size.attention + token_stats_bytes(shapes, layouts))
        size = replace(size, small=size.small + _policy_bytes(policy, frame))
        largest = max(largest, size, key=lambda each: each.raw)
        images.append(_image_bytes(dataset, info, policy, frame, set(sample.geometry)))
        tokens = tokens or {p: (len(x.query), len(x.key)) for p, x in layouts.items()}
    if len(refused) > 1 and not taken and not committed and _alike(refused):
        # No sample fits: it is the dataset or the checkpoint that is wrong, not an episode.
        raise refused[0]
    pending = [i for i in pending if i.name not in broken]
    keyframes = {i.name: keyframes[i.name] for i in pending}
    total = sum(keyframes.values())
    image = sum(images) / len(images) if images else 0.0
    ratio = expected_ratio(job.run.precision, policy.dtype)
    of_keyframe = largest.compressed(ratio) + image + KEYFRAME_BYTES
    of_episode = largest.rows * EPISODE_ROW_BYTES + EPISODE_BYTES + largest.once
    expected = total * of_keyframe + len(pending) * of_episode
    done, done_keyframes, done_bytes = _committed(job, committed)
    if done_keyframes:
        expected *= done_bytes / (done_keyframes * of_keyframe + done * of_episode)
    stored = round(expected)
    return Plan(
        tuple(_others_last(job, [i.name for i in pending])),
        tuple(committed),
        broken,
        keyframes,
        largest.raw,
        stored,
        # What is written elsewhere is here one episode at a time.
        stored * max(keyframes.values(), default=0) // max(total, 1)
        if job.paths.remote
        else stored,
        shutil.disk_usage(_existing(job.paths.root)).free,
        tokens,
    )


@dataclass(frozen=True, slots=True)
class Size:
    """What one keyframe brings."""

    attention: int = 0
    """Raw stored bytes."""
    map_values: int = 0
    """Values of all maps of one reduction."""
    rows: int = 0
    """Of ``head_stats``."""
    small: int = 0
    """Expected bytes of the policy's own arrays, value norms and hidden states."""
    once: int = 0
    """Expected bytes of an episode, however many keyframes it has: what describes its arrays."""

    @property
    def raw(self) -> int:
        """Raw stored bytes of attention and overview maps."""
        return self.attention + len(MAP_RATIO) * self.map_values * MAP_ITEM

    def compressed(self, ratio: float) -> float:
        """Expected bytes on disk, without images, of attention that compresses by `ratio`."""
        maps = sum(self.map_values * MAP_ITEM / each for each in MAP_RATIO.values())
        return self.attention / ratio + maps + self.rows * ROW_BYTES + self.small


def size_of(
    phases: Mapping[str, PhaseShape],
    layouts: Mapping[str, TokenLayout],
    precision: str,
    *,
    values: bool = False,
) -> Size:
    """Measure what one keyframe brings: attention, overview maps, rows of statistics; and its arrays.

    `values` says that there are value norms, and statistics weighted by them.
    """
    attention = map_values = rows = norms = 0
    nodes = NODES
    for name, shape in phases.items():
        layout = layouts[name]
        attention += attention_bytes(
            shape.layers, shape.heads, len(layout.query), len(layout.key), shape.steps, precision
        )
        heads = shape.layers * shape.heads * (shape.steps or 1) * len(shape.query_groups)
        cameras = [span for span in layout.key if span.camera is not None]
        rows += heads * len(cameras)
        map_values += heads * sum(map(len, cameras))
        # Older keys have the same norm at every step, which compresses to one.
        own = len(layout.query) if name == "suffix" else 0
        keys = len(layout.key) + own * ((shape.steps or 1) - 1)
        norms += shape.layers * shape.heads * keys
        # The phase and its weights; a map's folder has a group for each camera, with two reductions.
        nodes += 2 + values
        if cameras and shape.query_groups:
            nodes += 1 + len(shape.query_groups) * (1 + len(cameras) * (1 + len(MAP_RATIO)))
    return Size(
        attention,
        map_values,
        rows * (1 + values),
        round(norms * NORM_BYTES) * values,
        nodes * NODE_BYTES,
    )


def with_hidden(
    size: Size,
    phases: Mapping[str, PhaseShape],
    layouts: Mapping[str, TokenLayout],
    choice: HiddenChoice | None,
) -> Size:
    """Add what hidden states bring: of a keyframe their values, of an episode what describes them."""
    folders: set[str] = set()
    arrays = 0
    for path, shape in phases.items():
        hidden = hidden_spec(shape, AlignedAxis(layouts[path].query.spans), choice)
        for form in () if hidden is None else hidden.forms:
            *parents, _ = hidden_path(path, form).split("/")
            folders |= {"/".join(parents[: n + 1]) for n in range(len(parents))}
            # Beside them there are the numbers of their layers, or of their layers and tokens.
            arrays += {"mean": 2, "last": 1, "tokens": 3}[form]
    if not arrays:
        return size
    return replace(
        size,
        small=size.small + hidden_bytes(phases, layouts, choice),
        once=size.once + (len(folders) + arrays) * NODE_BYTES + HIDDEN_TABLE_BYTES,
    )


def hidden_bytes(
    phases: Mapping[str, PhaseShape],
    layouts: Mapping[str, TokenLayout],
    choice: HiddenChoice | None,
) -> int:
    """Expected bytes of one keyframe's hidden states."""
    values = 0
    for path, shape in phases.items():
        query = AlignedAxis(layouts[path].query.spans)
        hidden = hidden_spec(shape, query, choice)
        for form in () if hidden is None else hidden.forms:
            assert hidden is not None
            values += math.prod(
                hidden_shape(1, shape.steps or 1, shape.layers, query, hidden, form)
            )
    return round(values * HIDDEN_BYTES)


def token_stats_bytes(phases: Mapping[str, PhaseShape], layouts: Mapping[str, TokenLayout]) -> int:
    """Bytes of one keyframe's ``token_stats``: their keys compress to almost nothing."""
    rows = sum(s.layers * (s.steps or 1) * len(layouts[name].query) for name, s in phases.items())
    return rows * len(TOKEN_METRICS) * 4


def _view(dataset: Dataset, info: EpisodeInfo, index: int, policy: Policy) -> Frame:
    return next(keyframe_views(dataset, info, [index], policy))


def _image_bytes(
    dataset: Dataset, info: EpisodeInfo, policy: Policy, first: Frame, cameras: Set[str]
) -> float:
    """Bytes of a keyframe's images: the mean of the first, a middle and the last frame that can be read."""
    frames = [first]
    for index in sorted({info.frames // 2, info.frames - 1} - {first.index}):
        if info.keyframes is None:
            # What is wrong with the frame is said when its turn comes.
            with suppress(EpisodeError, StopIteration):
                frames.append(_view(dataset, info, index, policy))
    sizes = [sum(len(c.data) for c in f.cameras if c.camera in cameras) for f in frames]
    return sum(sizes) / len(sizes)


def _policy_bytes(policy: Policy, frame: Frame) -> int:
    """Bytes of a keyframe's actions, those between denoising steps, and what was recorded."""
    steps = [s.steps for s in policy.phases.values() if s.steps is not None]
    chunks = 1 + (steps[0] if steps and policy.denoiser_steps else 0)
    return 4 * (chunks * policy.horizon * policy.action_dof + frame.state.size + frame.action.size)


def _committed(job: EpisodeJob, names: Sequence[str]) -> tuple[int, int, int]:
    """Episodes, keyframes and bytes of what the run has committed."""
    episodes = keyframes = size = 0
    for name in names:
        commit = latest_commit(job.paths, *job.commit_folder(name))
        if commit is not None and isinstance(count := commit.summary.get("keyframes"), int):
            episodes, keyframes, size = episodes + 1, keyframes + count, size + commit.size
    return episodes, keyframes, size


def claimed_by_other(paths: StorePaths, run: str, episode: str, part: str) -> bool:
    """Whether another live process of this host is writing the part.

    A hint that spares double work; what decides is the commit.
    """
    folder = paths.data / run / episode
    if not folder.is_dir():
        return False
    return any(_owned_elsewhere(a) for a in folder.glob(f"{part}.*"))


def _owned_elsewhere(attempt: Path) -> bool:
    try:
        owner = read_document(attempt / ATTEMPT_FILE, "attempt")
        if int(owner["pid"]) == os.getpid():
            return False
        return lives(owner["host"], owner["pid"], owner["created"])
    except (OSError, IntegrityError, KeyError, ValueError):
        return False


def _alike(errors: Sequence[ObservationError]) -> bool:
    return len({str(error) for error in errors}) == 1


def _others_last(job: EpisodeJob, names: list[str]) -> list[str]:
    return sorted(names, key=lambda n: claimed_by_other(job.paths, *job.commit_folder(n)))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def describe_run(
    policy: Policy,
    policy_name: str,
    dataset: Dataset,
    *,
    stride: int,
    precision: str,
    seed: int,
    watch: Watch = ATTENTION_ONLY,
) -> RunConfig:
    """Return the run's configuration: what changes its numbers, or is in each of its episodes.

    Raises
    ------
    UsageError
        If the policy cannot show what is to be watched.
    """
    shape = {name: [s.layers, s.heads, s.steps] for name, s in policy.phases.items()}
    options: dict[str, Any] = {"phases": shape}
    if watch.vision:
        # An eager encoder's features differ in the last bits, and so do the actions.
        encoder = policy.encoder_shape()
        options["vision"] = [encoder.layers, encoder.heads]
    if watch.token_stats:
        options["token_stats"] = True
    if isinstance(dataset, OrientedDataset):
        options["orientation"] = {c: o.to_json() for c, o in dataset.orientations.items()}
    if watch.values:
        options["values"] = True
    if watch.hidden is not None:
        check_stored_hidden(policy)
        options["hidden"] = [list(watch.hidden.layers), list(watch.hidden.spans)]
    return RunConfig(
        policy=policy_name,
        checkpoint=policy.checkpoint,
        checkpoint_digest=policy.digest,
        dtype=policy.dtype,
        dataset=f"{dataset.kind}:{dataset.name}",
        cameras=tuple(dataset.cameras),
        stride=stride,
        precision=precision,
        seed=seed,
        options=options,
    )
