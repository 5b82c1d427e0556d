"""Activation maximisation: the image that a filter answers most to (Erhan et al. 2009).

Gradient ascent on the input, with steps of one RMS (the recipe of Chollet's and of Yosinski et al.
2015's pictures). Every filter of a batch climbs for itself: its start, its steps and its result
are those that it has alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from .base import ConvNetwork, Images, Layer

TINY = 1e-12
"""Added to a gradient's RMS: a filter that answers to nothing stands still."""


@dataclass(frozen=True, slots=True)
class Maximisation:
    """How the ascent is done; lengths in pixels, values in the network's units."""

    size: int = 128
    """Height and width of the image."""
    iterations: int = 100
    rate: float = 0.1
    """RMS of a step."""
    blur: float = 0.5
    """Standard deviation of the Gaussian blur; 0: none."""
    blur_every: int = 4
    """Iterations between blurs."""
    clip: float = 0.0
    """Limit of each pixel's gradient, in RMS of the image's gradient; 0: none. The image itself is
    not limited: this tames single pixels that would outrun the others."""
    decay: float = 0.005
    """Share of the image that is taken away at every iteration: L2 decay."""
    jitter: int = 4
    """The image is rolled by up to this at every iteration, and back."""
    noise: float = 0.1
    """Standard deviation of the start, around the mean colour."""
    seed: int = 0
    shots: int = 12
    """Images on the way that are kept, the start and the end among them; 0 or at least 2."""

    def __post_init__(self) -> None:
        for name, least in (
            ("size", 1), ("iterations", 1), ("blur_every", 1), ("jitter", 0), ("seed", 0),
            ("shots", 0), ("blur", 0), ("clip", 0), ("decay", 0), ("noise", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UsageError(f"{name} is at least {least}; got {getattr(self, name)}")
        if self.rate <= 0 or self.decay >= 1:
            raise UsageError(
                f"rate is larger than 0 and decay smaller than 1; got {self.rate} and {self.decay}"
            )
        if self.shots == 1:
            raise UsageError("shots is 0, or at least 2: the start and the end; got 1")

    @property
    def kept(self) -> tuple[int, ...]:
        """Iterations after which an image is kept."""
        at = np.linspace(0, self.iterations, self.shots).round().astype(int)
        return tuple(int(i) for i in np.unique(at))


@dataclass(frozen=True, slots=True)
class Maximised:
    """The result for some filters of one layer."""

    filters: tuple[int, ...]
    images: Images
    """(filter, channel, row, col)."""
    history: Images
    """(filter, iteration, channel, row, col) after the iterations `Maximisation.kept`."""
    objective: NDArray[np.float32]
    """(filter, iteration + 1): the filter's answer before every step, and at the end."""
    gradient_rms: NDArray[np.float32]
    """(filter, iteration + 1): RMS of its gradient over pixels."""


def maximise(
    network: ConvNetwork, layer: Layer, filters: Sequence[int], settings: Maximisation
) -> Maximised:
    """Find the image that each of some filters of a layer answers most to, all in one batch.

    Raises
    ------
    UsageError
        If the ascent leaves the finite numbers.
    """
    x = np.stack([_start(network.channels, layer, f, settings) for f in filters])
    shots, objectives, norms = [], [], []
    for iteration in range(settings.iterations + 1):
        if iteration in settings.kept:
            shots.append(x.copy())
        last = iteration == settings.iterations
        shift = (0, 0) if last else _jitter(settings, iteration)
        values, gradient = network.ascent(layer, np.roll(x, shift, (-2, -1)), filters)
        rms = np.sqrt(np.mean(np.square(gradient, dtype=np.float64), (1, 2, 3)))
        objectives.append(values)
        norms.append(rms.astype(np.float32))
        if not (np.isfinite(values).all() and np.isfinite(rms).all()):
            wrong = filters[int(np.argmin(np.isfinite(values) & np.isfinite(rms)))]
            raise UsageError(
                f"{layer.name}, filter {wrong}: not finite at iteration {iteration}; lower --rate"
            )
        if last:
            break
        scale = (rms + TINY).astype(np.float32)[:, None, None, None]
        step = np.roll(gradient, (-shift[0], -shift[1]), (-2, -1)) / scale
        if settings.clip:
            step = step.clip(-settings.clip, settings.clip)
        x = np.float32(1 - settings.decay) * x + np.float32(settings.rate) * step
        if settings.blur and (iteration + 1) % settings.blur_every == 0:
            x = _blurred(x, settings.blur)
    history = np.stack(shots, 1) if shots else x[:, None][:, :0]
    return Maximised(
        tuple(filters), x, history, np.stack(objectives, 1), np.stack(norms, 1)
    )  # fmt: skip


def _start(channels: int, layer: Layer, filter: int, settings: Maximisation) -> Images:
    # Of the filter and not of its place in a batch.
    random = np.random.default_rng([settings.seed, zlib.crc32(layer.name.encode()), filter])
    shape = channels, settings.size, settings.size
    return (settings.noise * random.standard_normal(shape)).astype(np.float32)


def _jitter(settings: Maximisation, iteration: int) -> tuple[int, int]:
    if not settings.jitter:
        return 0, 0
    random = np.random.default_rng([settings.seed, iteration])
    down, right = random.integers(-settings.jitter, settings.jitter + 1, 2)
    return int(down), int(right)


def _blurred(images: Images, sigma: float) -> Images:
    planes = images.reshape(-1, *images.shape[-2:])
    return np.stack([cv2.GaussianBlur(p, (0, 0), sigma) for p in planes]).reshape(images.shape)
