"""A policy that attends as it is told, and a dataset of any number of keyframes.

They put the attention of `benchmarks.trained` through the whole pipeline: capture, statistics,
overview maps, tables, commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch

import attnstore
from attnstore.ingest import health
from attnstore.ingest.datasets.base import EpisodeInfo, Frame
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.plan import describe_run
from attnstore.ingest.policies.base import Batch, Observation, PhaseShape, Sample
from attnstore.ingest.policies.hooks import HookedPolicy, Watched
from attnstore.query import Episode
from attnstore.store.commits.run import save_run
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, Token, TokenLayout
from attnstore.store.opening import create_store

from .sample import sample_path
from .trained import HEADS, Keyframe, keyframes

CAMERAS = ("hand_camera", "varied_camera_1")
DOF = 32


class _Attention(torch.nn.Module):
    def forward(self, weights: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, weights[None]


class ReplayPolicy(HookedPolicy):
    """Pi0.5's shape: two cameras of 16 x 16 patches, a text, action tokens, denoising steps.

    Parameters
    ----------
    count
        Keyframes that it will be asked for, one at a time.
    """

    name, checkpoint, dtype, digest = "replay", "all-MiniLM-L6-v2", "bfloat16", "0" * 64
    action_dof, denoiser_steps = DOF, False

    def __init__(
        self,
        count: int,
        *,
        patches: int = 16,
        text: int = 60,
        actions: int = 15,
        steps: int = 10,
        layers: int = 18,
    ) -> None:
        self.count, self.text, self.steps, self.layers = count, text, steps, layers
        self.horizon, self.grid = actions, (patches, patches)
        self.images = len(CAMERAS) * patches * patches
        self._source: Iterator[Keyframe] = iter(())
        self._modules = {
            phase: [_Attention() for _ in range(layers)] for phase in ("prefix", "suffix")
        }

    def begin(self) -> None:
        """Start over."""
        self._source = self.keyframes(self.count)

    def keyframes(self, count: int, *, bfloat16: bool = True) -> Iterator[Keyframe]:
        """Yield trained attention of this policy's shape."""
        return keyframes(
            count, prefix=self.images + self.text, actions=self.horizon, steps=self.steps,
            layers=self.layers, bfloat16=bfloat16,
        )  # fmt: skip

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        return {
            "prefix": PhaseShape(self.layers, HEADS, None, ("task",)),
            "suffix": PhaseShape(self.layers, HEADS, self.steps, ("action",)),
        }

    @cached_property
    def layouts(self) -> Mapping[str, TokenLayout]:
        spans, start = [], 0
        for camera in CAMERAS:
            stop = start + self.images // len(CAMERAS)
            spans.append(
                Span(f"image:{camera}", "image", start, stop, start, camera=camera, grid=self.grid)
            )
            start = stop
        words = tuple(Token(i, f" w{i}") for i in range(self.text))
        spans.append(
            Span("task", "text", start, start + self.text, start, role="task", tokens=words)
        )
        prefix = Axis(tuple(spans))
        suffix = Axis((Span("action", "action", 0, self.horizon, 0),))
        key = prefix.followed_by(suffix, model_offset=len(prefix))
        return {
            "prefix": TokenLayout("prefix", prefix, prefix),
            "suffix": TokenLayout("suffix", suffix, key),
        }

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        frame = (14 * self.grid[0], 14 * self.grid[1])
        geometries = [
            {c: Geometry.letterbox(i.shape[:2], frame, (14, 14)) for c, i in o.images.items()}
            for o in observations
        ]
        return Batch({}, tuple(Sample(self.layouts, g) for g in geometries))

    def act(self, batch: Batch) -> torch.Tensor:
        assert len(batch) == 1
        keyframe = next(self._source)
        for module, weights in zip(self._modules["prefix"], keyframe.prefix, strict=True):
            module(weights)
        for layers in keyframe.suffix:
            for module, weights in zip(self._modules["suffix"], layers, strict=True):
                module(weights)
        return torch.zeros(1, self.horizon, DOF)

    def watched(self) -> Sequence[Watched]:
        return [Watched(p, i, m) for p, ms in self._modules.items() for i, m in enumerate(ms)]

    def eager(self) -> AbstractContextManager[None]:
        return nullcontext()


class SampleFrames:
    """One episode of as many frames as asked, from the images of the packaged sample."""

    kind, name, cameras = "replay", "sample", CAMERAS
    episode = "success/2025-12-10/2025-12-10_09-00-39"

    def __init__(self, count: int) -> None:
        self.count = count

    @cached_property
    def _recorded(self) -> list[Frame]:
        return list(self._droid.frames(self.episode, range(self._info.frames)))

    @cached_property
    def _droid(self) -> DroidDataset:
        return DroidDataset(sample_path(), name="sample")

    @cached_property
    def _info(self) -> EpisodeInfo:
        return self._droid.info(self.episode)

    def file_of(self, name: str) -> str | None:
        return None

    def episode_names(self) -> list[str]:
        return [self.episode]

    def info(self, name: str) -> EpisodeInfo:
        whole = self._info
        return EpisodeInfo(
            name, whole.outcome, whole.instruction, self.count, whole.task, whole.date
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            seen = self._recorded[3 * index % len(self._recorded)]
            yield Frame(index, seen.cameras, seen.state, seen.action, seen.timestamp)


def ingest(directory: Path, count: int, *, precision: str = "float16", **shape: int) -> Episode:
    """Ingest one episode of trained attention and open it; see `ingest_store`."""
    path = ingest_store(directory, count, precision=precision, **shape)
    return attnstore.open(path).episode(SampleFrames.episode)


def ingest_store(directory: Path, count: int, *, precision: str = "float16", **shape: int) -> Path:
    """Ingest one episode of trained attention; the same arguments give the same store once."""
    marks = "-".join(f"{k}{v}" for k, v in shape.items())
    path = directory / f"{precision}-{count}{marks and '-' + marks}.attn"
    policy, dataset = ReplayPolicy(count, **shape), SampleFrames(count)
    run = describe_run(policy, policy.name, dataset, stride=1, precision=precision, seed=0)
    if not path.exists():
        paths = create_store(path)
        save_run(paths, run, {})
        policy.begin()
        # half a unit in the last of bfloat16's 8 bits: a row of trained attention was off by 3.1e-3
        with mock.patch.dict(health.ROW_TOLERANCE, bfloat16=2**-8):
            ingest_episode(EpisodeJob(paths, run), policy, dataset, SampleFrames.episode)
    return path


def shape_of(toy: bool) -> dict[str, int]:
    """Layers, tokens and steps at full or at toy size."""
    return {"patches": 4, "text": 12, "actions": 3, "steps": 2, "layers": 2} if toy else {}
