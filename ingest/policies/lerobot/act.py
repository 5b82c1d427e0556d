"""LeRobot's ACT (action chunking transformer), a one-pass policy.

Prefix: ``model.encoder.layers[i].self_attn``, in which the latent, the robot state and every cell of
every camera's ResNet feature map attend to each other. Suffix, in one step: the cross-attention
``model.decoder.layers[i].multihead_attn`` of the action queries to them. The decoder's self-attention
among action queries is another softmax over other keys, and is not stored.

Both are ``nn.MultiheadAttention``, asked for the weights of each head by a pre-hook; LeRobot asks
for their mean, so the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, TokenLayout

from ..base import LAST, PhaseShape, PolicyError, Sample
from ..blocking import Blocked, block_multihead
from ..checkpoint import unwrap
from ..hooks import Shown, Watched, first_output
from ..resnet_field import resnet_geometry
from ..sdpa import weights_per_head
from ..values import LayerValues, MultiheadValues
from .base import LeRobotPolicy, Sizes


class LeRobotAct(LeRobotPolicy):
    """Adapter of ``act``."""

    family = "act"
    denoiser_steps = False
    noisy = False

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Encoder and decoder, from the configuration."""
        config = self.config
        own = ("state",) if config.robot_state_feature else ("latent",)
        width = int(self.model.action_head.in_features)
        return {
            "prefix": PhaseShape(
                len(self.model.encoder.layers), config.n_heads, None, own, features=width
            ),
            "suffix": PhaseShape(
                len(self.model.decoder.layers),
                config.n_heads,
                1,
                ("action",),
                features=width,
                last="action",
            ),
        }

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the encoder, cross-attention of the decoder."""
        encoder, decoder = self.model.encoder.layers, self.model.decoder.layers
        return [
            *(Watched("prefix", i, unwrap(x).self_attn) for i, x in enumerate(encoder)),
            *(Watched("suffix", i, unwrap(x).multihead_attn) for i, x in enumerate(decoder)),
        ]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Ask every watched module for the weights of each head."""
        with ExitStack() as stack:
            for watched in self.watched():
                asked = watched.module.register_forward_pre_hook(weights_per_head, with_kwargs=True)
                stack.callback(asked.remove)
            yield

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through ``attn_mask``, which ACT leaves empty."""
        return block_multihead(self.watched(), blocked)

    def layers(self, watched: Sequence[Watched]) -> Sequence[Shown]:
        """Layers of encoder and decoder; their hidden states are (query, batch, feature)."""

        def batch_first(value: Any) -> Any:
            return first_output(value).transpose(0, 1)

        return [replace(each, states=batch_first) for each in super().layers(watched)]

    def projection(self) -> Shown:
        """The head, which takes the decoder's output."""
        return Shown("suffix", LAST, unwrap(self.model.action_head), entering=True)

    def values(self, watched: Sequence[Watched]) -> Sequence[LayerValues]:
        """Values come out of one matrix with queries and keys."""
        norms = self.norms_of_values()
        return [MultiheadValues(norms, x.module) for x in watched]

    def encoder(self) -> Any:
        """The ResNet, called once a camera."""
        return unwrap(self.model.backbone)

    def empty_images(self, present: int) -> int:
        """None: ACT takes no observation without all its cameras."""
        return 0

    def features(self, cameras: Sequence[str]) -> dict[str, str]:
        """See `LeRobotPolicy.features`.

        Raises
        ------
        ObservationError
            If a camera has no image feature.
        PolicyError
            If a camera of the policy's is not there, or it sees what no dataset reader gives.
        """
        if self.config.env_state_feature:
            raise PolicyError(
                f"{self.checkpoint}: it sees the environment's state, which observations have not"
            )
        chosen = super().features(cameras)
        if missing := [f for f in self.config.image_features if f not in chosen.values()]:
            raise PolicyError(
                f"{self.checkpoint}: ACT needs every camera that it was trained with; missing is "
                f"{', '.join(missing)}"
            )
        return chosen

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        geometry = {camera: self._geometry(size) for camera, size in sizes.items()}
        spans = [Span("latent", "other", 0, 1, 0)]
        if self.config.robot_state_feature:
            spans.append(Span("state", "state", 1, 2, 1))
        for camera, shape in geometry.items():
            start = spans[-1].stop
            stop = start + shape.grid[0] * shape.grid[1]
            name = f"image:{camera}"
            spans.append(Span(name, "image", start, stop, start, camera=camera, grid=shape.grid))
        prefix = Axis(tuple(spans))
        action = Axis((Span("action", "action", 0, self.horizon, 0),))
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", action, prefix),
            },
            geometry,
        )

    def _geometry(self, source: tuple[int, ...]) -> Geometry:
        dilated = bool(getattr(self.config, "replace_final_stride_with_dilation", False))
        name = str(getattr(self.config, "vision_backbone", "resnet18"))
        return resnet_geometry((int(source[0]), int(source[1])), name, dilated)
