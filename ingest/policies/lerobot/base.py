"""What all LeRobot policies have in common: cameras, preprocessing, noise, acting.

A policy's images are its configuration's ``image_features`` that are in the batch, in that order;
those that are missing come after them, masked.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.tokens import Token

from ...datasets.lerobot.metadata import camera_name
from ..base import (
    Batch,
    LateSamples,
    Observation,
    ObservationError,
    Observer,
    PhaseShape,
    PolicyError,
    Sample,
)
from ..checkpoint import one_line, unwrap
from ..fingerprint import digest_directory, digest_parameters
from ..hooks import HookedPolicy
from .loading import STATE, LeRobotCheckpoint, check_statistics

Sizes = Mapping[str, tuple[int, ...]]
"""(height, width) of every camera's image, in the order in which the policy sees them."""
RTC = "rtc"
"""Among a recorded call's keywords: settings of real-time chunking."""
LARGE = 1 << 16
"""Bytes of a tensor that has pixels, at least."""
TOKENS, TOKENS_MASK = "observation.language.tokens", "observation.language.attention_mask"


class LeRobotPolicy(HookedPolicy):
    """Adapter of one LeRobot policy; subclasses know its family's layout and modules.

    Parameters
    ----------
    config
        LeRobot's configuration.
    preprocessor
        LeRobot's preprocessor pipeline.
    source
        Where the weights are, or the policy itself.
    checkpoint
        Hub id or directory name.
    cameras
        Image feature per camera, where they are not called alike.
    digest_with
        What else than the checkpoint changes the numbers.
    directory
        Checkpoint that a policy in memory has the weights of; its digest is then the policy's.
    """

    family: ClassVar[str]
    value_norms = "yes"
    hidden_states = "yes"
    denoiser_steps: bool
    """Whether intermediate action chunks can be read."""
    noisy: ClassVar[bool] = True
    """Whether actions come from noise."""
    acts_by_layout: ClassVar[bool] = False
    """Whether `act` reads the layout off the batch."""
    takes_noise: ClassVar[bool] = True
    """Whether LeRobot's call takes it; the others draw it, and are given it there."""

    def __init__(
        self,
        config: Any,
        preprocessor: Any,
        source: LeRobotCheckpoint | Any,
        *,
        checkpoint: str,
        cameras: Mapping[str, str] | None = None,
        digest_with: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._directory = source.directory if isinstance(source, LeRobotCheckpoint) else directory
        self.config, self.preprocessor, self._source = config, preprocessor, source
        self.checkpoint, self._cameras = checkpoint, dict(cameras or {})
        self._digest_with = dict(digest_with or {})
        self.name = f"lerobot:{self.family}"
        self.horizon = self.chunk_length()
        self.action_dof = int(config.output_features["action"].shape[0])
        if int(getattr(config, "n_obs_steps", 1)) != 1:
            raise PolicyError(
                f"{checkpoint}: it sees {config.n_obs_steps} observations at once; one is supported"
            )
        unknown = sorted(set(self._cameras.values()) - set(config.image_features))
        if unknown:
            raise UsageError(
                f"{checkpoint}: no image feature {unknown[0]!r}; it has "
                f"{', '.join(config.image_features)}"
            )

    @cached_property
    def policy(self) -> Any:
        """LeRobot's policy, loaded at the first use."""
        if isinstance(self._source, LeRobotCheckpoint):
            return self._source.load()
        return self._source

    @property
    def model(self) -> Any:
        """The policy's network."""
        return unwrap(self.policy.model)

    @property
    def device(self) -> str:
        """Device of the weights."""
        return str(self._parameter.device)

    @cached_property
    def _parameter(self) -> Any:
        """One of the weights, which is the same one on whatever device they are."""
        return next(self.policy.parameters())

    @property
    def dtype(self) -> str:
        """Data type of most weights."""
        counts: dict[str, int] = {}
        for parameter in self.policy.parameters():
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
        return max(counts, key=lambda name: counts[name])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint directory, or of the weights of a policy in memory.

        Options that change the numbers are part of it.
        """
        if self._directory is not None:
            digest = digest_directory(self._directory)
        else:
            digest = digest_parameters(self.policy)
        if not self._digest_with:
            return digest
        options = json.dumps(self._digest_with, sort_keys=True)
        return hashlib.sha256(f"{digest} {options}".encode()).hexdigest()

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Run the checkpoint's own preprocessor, and read the layout off its output.

        Raises
        ------
        ObservationError
            If the preprocessor cannot take them.
        """
        import torch

        features = self.features(tuple(observations[0].images))
        for o in observations:
            wrong = check_statistics(self.checkpoint, self.preprocessor, o.state.size)
            if wrong is not None:
                raise ObservationError(wrong)
        raw: dict[str, Any] = {
            self._before_rename(feature): torch.stack(
                [_to_tensor(o.images[camera]) for o in observations]
            )
            for camera, feature in features.items()
        }
        raw[self._before_rename(STATE)] = torch.from_numpy(
            np.stack([o.state for o in observations])
        )
        raw["task"] = [o.instruction for o in observations]
        try:
            inputs = self.preprocessor(raw)
        except Exception as error:
            raise ObservationError(
                f"{self.checkpoint}: LeRobot's preprocessor cannot take the observation "
                f"({one_line(error)})"
            ) from error
        noise = None
        if self.noisy:
            noise = torch.stack([self._noise(o.seed) for o in observations]).to(self.device)
        return self.batch(inputs, observations, noise)

    def batch(
        self,
        inputs: Mapping[str, Any],
        observations: Sequence[Observation],
        noise: Any = None,
        keywords: Mapping[str, Any] | None = None,
        *,
        late: bool = False,
    ) -> Batch:
        """Read the layout off what the preprocessor made of observations.

        Parameters
        ----------
        inputs
            The preprocessor's output.
        noise
            Initial noise, (batch, horizon, padded), of a policy that has any.
        keywords
            What else ``predict_action_chunk`` is given: RTC's leftovers; see `driven_keywords`.
        late
            Read the layout when it is first asked for, in whatever thread, from copies of what it is read off.

        Raises
        ------
        ObservationError
            If an image has no feature.
        """
        import torch

        features = self.features(tuple(observations[0].images))
        kept: dict[str, Any] = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        seen = self.seen_features(kept, tuple(features.values()))
        cameras = [next((c for c, f in features.items() if f == s), s) for s in seen]
        read = {k: _for_layout(v) for k, v in kept.items()} if late else dict(kept)
        sights = [
            ({c: o.images[c].shape[:2] for c in cameras}, o.instruction) for o in observations
        ]
        samples: Sequence[Sample] = LateSamples(
            len(sights), lambda row: self.sample(read, row, *sights[row])
        )
        if not late:
            samples = tuple(samples)
        if noise is not None:
            kept["noise"] = noise
        if keywords:
            kept["keywords"] = dict(keywords)
        return Batch(kept, samples, self.encoded(cameras, len(observations)))

    def observations(
        self,
        raw: Mapping[str, Any],
        tasks: Sequence[str],
        empty: Callable[[tuple[int, ...], Any], NDArray[Any]] = np.empty,
    ) -> tuple[list[Observation], Callable[[], None]]:
        """Return what the preprocessor was given as observations, one a task: for looking at.

        Parameters
        ----------
        raw
            LeRobot's observation before the preprocessor: images (batch, channel, height, width), 0..1 or
            bytes, with or without the first dimension.
        tasks
            Instruction of every row.
        empty
            Makes the arrays of the pixels.

        Returns
        -------
        The observations, and what makes the pixels of their images, which may be called in another thread:
        until then there are none in them.

        Raises
        ------
        ObservationError
            If images are whole numbers of more than 8 bits, which would be other pixels.
        """
        found: dict[str, tuple[Any, NDArray[np.uint8]]] = {}
        for feature in self.config.image_features:
            name = self._before_rename(feature)
            if name in raw:
                # On another device they are fetched now, behind what that device has still to do.
                found[camera_name(name)] = _pixels(raw[name].detach().cpu(), empty)
        state = raw.get(self._before_rename(STATE))
        rows = np.zeros((len(tasks), 0), np.float32)
        if state is not None:
            rows = state.detach().float().cpu().numpy().reshape(len(tasks), -1)

        def fill() -> None:
            for values, planes in found.values():
                _fill(planes, values)

        return [
            Observation(
                {c: planes[row].transpose(1, 2, 0) for c, (_, planes) in found.items()},
                task, rows[row], 0,
            )
            for row, task in enumerate(tasks)
        ], fill  # fmt: skip

    def draw_noise(self, rows: int) -> Any:
        """Draw initial noise as the policy does by itself, from the same generator; None if it has none."""
        if not self.noisy:
            return None
        import torch

        shape = (rows, *self.noise_shape())
        if not self.takes_noise:
            return torch.randn(shape, device=self.device)
        return self.model.sample_noise(shape, self.device)

    def act(self, batch: Batch) -> Any:
        """Predict an action chunk for every observation, as LeRobot does."""
        given = dict(batch.inputs)
        keywords: dict[str, Any] = dict(given.pop("keywords", {}))
        # smolvla's decoding of ALOHA states works in place; images, the most of it, no policy changes.
        images = self.config.image_features
        inputs = {key: v if key in images else v.clone() for key, v in given.items()}
        drawn: AbstractContextManager[None] = nullcontext()
        if "noise" in inputs:
            noise = inputs.pop("noise")
            if self.takes_noise:
                keywords["noise"] = noise
            else:
                drawn = drawing(noise)
        with chunking(self.policy, keywords.pop(RTC, None)), drawn:
            return self.policy.predict_action_chunk(inputs, **keywords)

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """See `HookedPolicy.instrument`; noisy actions are shown as the policy returns its own."""
        with super().instrument(cast(Observer, _AsReturned(observer, self.as_returned))):
            yield

    def as_returned(self, chunk: Any) -> Any:
        """Make of the model's chunk, (batch, horizon, padded), what the policy would return for it.

        Its padding is cut off.
        """
        return chunk[..., : self.action_dof]

    @property
    @abstractmethod
    def phases(self) -> Mapping[str, PhaseShape]:
        """Shape of every phase that will be captured, from the modules."""

    @abstractmethod
    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """Return one observation's layouts and geometry.

        Parameters
        ----------
        inputs
            The preprocessor's output.
        row
            Which observation of the batch.
        sizes
            Of every camera's image.
        instruction
            As the dataset has it.
        """

    def seen_features(self, inputs: Mapping[str, Any], features: Sequence[str]) -> list[str]:
        """Return the image features that the policy sees, in its order.

        Parameters
        ----------
        inputs
            The preprocessor's output.
        features
            Those of the observation's cameras.
        """
        return [f for f in self.config.image_features if f in inputs]

    def chunk_length(self) -> int:
        """Actions that the policy returns."""
        return int(self.config.chunk_size)

    def noise_shape(self) -> tuple[int, int]:
        """Shape of one observation's initial noise."""
        return self.horizon, int(self.config.max_action_dim)

    def encoded(self, cameras: Sequence[str], count: int) -> tuple[tuple[int, str] | None, ...]:
        """Whose each image through the vision tower is; see `Batch.encoded`."""
        missing = self.empty_images(len(cameras))
        places: list[tuple[int, str] | None] = [(r, c) for c in cameras for r in range(count)]
        return (*places, *[None] * (missing * count))

    def empty_images(self, present: int) -> int:
        """How many masked images are appended for image features that are not in the batch."""
        return len(self.config.image_features) - present

    def features(self, cameras: Sequence[str]) -> dict[str, str]:
        """Return the image feature of every camera: as told, else the one that is called alike.

        Raises
        ------
        ObservationError
            If a camera has none, or two have the same.
        """
        known = tuple(self.config.image_features)
        chosen: dict[str, str] = {}
        for camera in cameras:
            alike = [camera, f"observation.images.{camera}", f"observation.{camera}"]
            renamed = [self._renames.get(name, name) for name in alike]
            named = (f for f in known if camera_name(f) == camera)
            feature = self._cameras.get(camera) or next((f for f in renamed if f in known), None)
            feature = feature or next(named, None)
            if feature is None or feature in chosen.values():
                rule = (
                    "none is called like" if feature is None else "two cameras would have that of"
                )
                example = ",".join(f"{c}:{f}" for c, f in zip(cameras, known, strict=False))
                raise ObservationError(
                    f"{self.checkpoint} sees {', '.join(known)}; {rule} camera {camera!r}: say "
                    f"which is which with --policy-option cameras={example}"
                )
            chosen[camera] = feature
        return chosen

    @cached_property
    def tokenizer(self) -> Any:
        """The preprocessor's tokenizer.

        Raises
        ------
        PolicyError
            If it has none.
        """
        for step in self.preprocessor.steps:
            if (found := getattr(step, "input_tokenizer", None)) is not None:
                return found
        raise PolicyError(f"{self.checkpoint}: its preprocessor has no tokenizer")

    def text_tokens(self, inputs: Mapping[str, Any], row: int) -> list[Token]:
        """Return the valid text tokens of one observation.

        Raises
        ------
        PolicyError
            If padding stands between them.
        """
        ids = inputs[TOKENS][row].tolist()
        valid = inputs[TOKENS_MASK][row].bool().tolist()
        count = sum(valid)
        if not all(valid[:count]):
            raise PolicyError(
                f"{self.checkpoint}: text is padded on the right; its tokenizer pads elsewhere"
            )
        return [Token(i, self.token_text(i)) for i in ids[:count]]

    def token_text(self, token_id: int) -> str:
        """Return a token's string, a word's leading space kept."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.spell(token_id)
        return text

    def spell(self, token_id: int) -> str:
        """Ask the tokenizer for a token's string."""
        return str(self.tokenizer.decode([token_id]))

    @cached_property
    def _texts(self) -> dict[int, str]:
        """Strings of the tokens so far: a driving policy's prompt has the same ones at every call."""
        return {}

    @cached_property
    def _renames(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for step in self.preprocessor.steps:
            found |= getattr(step, "rename_map", None) or {}
        return found

    def _before_rename(self, key: str) -> str:
        return next((old for old, new in self._renames.items() if new == key), key)

    def _noise(self, seed: int) -> Any:
        import torch

        # On the CPU and in float32 whatever the device: the same seed gives the same noise.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.noise_shape(), generator=generator)


class _AsReturned:
    """Passes everything on; noisy actions as the policy returns its own."""

    def __init__(self, observer: Observer, as_returned: Callable[[Any], Any]) -> None:
        self._observer, self._as_returned = observer, as_returned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def noisy_actions(self, actions: Any) -> None:
        self._observer.noisy_actions(self._as_returned(actions))


def _to_tensor(image: Any) -> Any:
    import torch

    # As LeRobot's datasets give it: (channel, height, width), 0..1.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _for_layout(values: Any) -> Any:
    """Return a tensor's copy, or its shape alone if it is large: no layout is read off pixels."""
    if values.numel() * values.element_size() <= LARGE:
        return values.clone()
    return values.new_empty(()).expand(values.shape)


def _pixels(
    values: Any, empty: Callable[[tuple[int, ...], Any], NDArray[Any]]
) -> tuple[Any, NDArray[np.uint8]]:
    """Return a preprocessor's images with their first dimension, and room for their bytes; see `_fill`.

    Raises
    ------
    ObservationError
        If they are whole numbers of more than 8 bits, which would be other pixels.
    """
    import torch

    if not values.is_floating_point() and values.dtype != torch.uint8:
        raise ObservationError(
            f"an image of {str(values.dtype).removeprefix('torch.')}: a picture has bytes, or numbers from 0 to 1"
        )
    values = values[None] if values.ndim == 3 else values
    return values, empty(tuple(values.shape), np.uint8)


def _fill(planes: NDArray[np.uint8], values: Any) -> None:
    """Make bytes of images, both (batch, channel, height, width): rounded to the nearest, and 0..255."""
    import cv2

    if not values.is_floating_point():
        planes[...] = values.numpy()
        return
    width = values.shape[-1]
    rows = values.float().contiguous().numpy().reshape(-1, width)
    # In one pass, while other threads run.
    cv2.multiply(rows, 255.0, planes.reshape(-1, width), dtype=cv2.CV_8U)  # type: ignore[call-overload]  # or a number


def driven_keywords(policy: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``predict_action_chunk`` was given beside observation and noise, to give it again.

    Where real-time chunking guides the chunk, its settings are the policy's and not the call's: they are kept
    with it, since a checkpoint has none.
    """
    kept = {k: v for k, v in keywords.items() if v is not None and k != "noise"}
    config = getattr(policy.config, "rtc_config", None)
    if kept and config is not None and config.enabled:
        kept[RTC] = {
            "prefix_attention_schedule": str(config.prefix_attention_schedule.value),
            "max_guidance_weight": float(config.max_guidance_weight),
            "execution_horizon": int(config.execution_horizon),
        }
    return kept


@contextmanager
def chunking(policy: Any, said: Mapping[str, Any] | None) -> Iterator[None]:
    """Have a policy chunk in real time with these settings; None leaves it as it is."""
    if said is None:
        yield
        return
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    before = policy.config.rtc_config
    schedule = RTCAttentionSchedule(said["prefix_attention_schedule"])
    policy.config.rtc_config = RTCConfig(**{**said, "prefix_attention_schedule": schedule})
    try:
        policy.init_rtc_processor()
        yield
    finally:
        policy.config.rtc_config = before
        policy.init_rtc_processor()
        policy.model.rtc_processor = policy.rtc_processor


@contextmanager
def drawing(noise: Any) -> Iterator[None]:
    """Have ``torch.randn`` give this noise where it is asked for its shape.

    Parameters
    ----------
    noise
        (batch, horizon, padded), float32.

    Raises
    ------
    HealthError
        If it was not asked for it once: this LeRobot draws its noise otherwise.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    asked = 0

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal asked
            given = kwargs or {}
            if func is torch.randn:
                size = given.get("size", args[0] if args and len(args) == 1 else args)
                if tuple(size if isinstance(size, Sequence) else (size,)) == tuple(noise.shape):
                    asked += 1
                    return noise.to(given.get("device"), given.get("dtype"))
            return func(*args, **given)

    with Mode():
        yield
    if asked != 1:
        raise HealthError(
            f"the policy drew noise of shape {tuple(noise.shape)} {asked} times; once is expected: this "
            "LeRobot draws its noise otherwise, and its actions are not those of the seed"
        )
