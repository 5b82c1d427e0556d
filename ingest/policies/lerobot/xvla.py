"""LeRobot's X-VLA: Florence-2's encoders, and a transformer with soft prompts over everything they made.

Prefix: ``model.vlm.language_model.encoder.layers[i].self_attn``, in both directions, over the *first* view and the
prompt, whose padding is attended to like any word. Suffix, once per denoising step:
``model.transformer.blocks[i].attn``, self-attention over [actions, what the prefix made, the other views, soft
prompts]. The other views have not met the prompt before; a view that is not there is zeros, and attended to.

Stored of the suffix are the rows of the head's own tokens, actions and soft prompts: those of all tokens would
be four times as much. An image is DaViT's last grid, behind one token that is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import PADDING, TASK, TEMPLATE, Axis, Span, Token, TokenLayout

from ..base import LAST, ObservationError, Observer, PhaseShape, Sample
from ..blocking import Blocked
from ..checkpoint import unwrap
from ..convolution import Convolution, stem_geometry
from ..hooks import Shown, Watched, instead
from ..prompt import token_text
from ..sdpa import SdpaTap, block_as_it_runs, block_sdpa, runs_sdpa
from ..values import FusedValues, LayerValues, no_projections, plain_linear
from .base import TOKENS, LeRobotPolicy, Sizes


class LeRobotXvla(LeRobotPolicy):
    """Adapter of ``xvla``."""

    family = "xvla"
    denoiser_steps = True
    takes_noise = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        import torch

        self._tap = SdpaTap()
        self._width = int(self._space.dim_action)
        # Other than the dataset's where the action space has a size of its own.
        self.action_dof = int(self._space.postprocess(torch.zeros(1, 1, self._width)).shape[-1])

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the modules."""
        encoder, blocks = self._encoder, self._blocks
        return {
            "prefix": PhaseShape(
                len(encoder.layers),
                int(encoder.config.encoder_attention_heads),
                None,
                (TASK,),
                features=int(encoder.config.d_model),
            ),
            "suffix": PhaseShape(
                len(blocks),
                int(blocks[0].num_heads),
                max(1, int(self.config.num_denoising_steps)),
                ("action",),
                features=int(self.config.hidden_size),
                last="action",
            ),
        }

    def noise_shape(self) -> tuple[int, int]:
        """Shape of the noise: as wide as the action space is for the model."""
        return self.horizon, self._width

    def seen_features(self, inputs: Mapping[str, Any], features: Sequence[str]) -> list[str]:
        """Return the features of the views that are there.

        Raises
        ------
        ObservationError
            If one is missing before another: X-VLA would take that in its place.
        """
        known = list(self.config.image_features)
        found = super().seen_features(inputs, features)
        if found != known[: len(found)]:
            missing = next(f for f in known if f not in found)
            raise ObservationError(
                f"{self.checkpoint}: no image for {missing}, and X-VLA would take the next view in its "
                f"place; its views are {', '.join(known)}: say which camera is which with "
                "--policy-option cameras=CAMERA:FEATURE,..."
            )
        return found

    def as_returned(self, chunk: Any) -> Any:
        """Do to a chunk what the action space does at the end."""
        return self._space.postprocess(chunk.clone())  # it works in place

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the encoder, then of the blocks."""
        return [
            *(
                Watched("prefix", i, module, self._tap.either(module))
                for i, module in enumerate(self._attention)
            ),
            *(Watched("suffix", i, x, self._tap.weights(x)) for i, x in enumerate(self._blocks)),
        ]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Attention as it is, where it shows its weights."""
        with self._tap.as_it_runs(self._attention, self._blocks):
            yield

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """See `LeRobotPolicy.instrument`; chunks are seen before grippers are hidden from the model."""

        def preprocess(original: Callable[..., Any], proprio: Any, action: Any, *more: Any) -> Any:
            observer.noisy_actions(self.as_returned(action.detach()))
            return original(proprio, action, *more)

        with (
            super().instrument(observer),
            instead(unwrap(self.model.action_space), "preprocess", preprocess),
        ):
            yield

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention where the encoder computes it, and in the blocks' own calls."""
        watched = self.watched()
        with ExitStack() as stack:
            for own, other in (("prefix", "suffix"), ("suffix", "prefix")):
                parts = [w for w in watched if w.phase == own]
                wanted = [[b for b in blocks if b.phase != other] for blocks in blocked]
                if own == "prefix":
                    # Eager attention adds a mask, and is given none.
                    for module in [] if runs_sdpa(self._attention) else self._attention:
                        opened = module.register_forward_pre_hook(_opened, with_kwargs=True)
                        stack.callback(opened.remove)
                    stack.enter_context(block_as_it_runs(parts, wanted))
                else:
                    stack.enter_context(block_sdpa(parts, wanted))
            yield

    def values(self, watched: Sequence[Watched]) -> Sequence[LayerValues]:
        """The encoder's projections, and the last third of what the blocks' one matrix makes."""
        prefix = super().values([w for w in watched if w.phase == "prefix"])
        norms = self.norms_of_values()
        for i, block in enumerate(self._blocks):
            if not plain_linear(unwrap(block.proj)):
                raise no_projections(block, f"suffix layer {i}")
        return [
            *prefix,
            *(FusedValues(norms, b.qkv, b.proj.in_features, unwrap(b.proj)) for b in self._blocks),
        ]

    def projection(self) -> Shown:
        """The decoder of the action tokens, behind the last norm."""
        decoder = unwrap(self._transformer.action_decoder)
        return Shown("suffix", LAST, decoder, entering=True)

    def encoder(self) -> Any:
        """DaViT, called once with the views that are there."""
        return unwrap(self.model.vlm.vision_tower)

    def encoded(self, cameras: Sequence[str], count: int) -> tuple[tuple[int, str] | None, ...]:
        """Observation by observation; views that are not there are not encoded."""
        return tuple((row, camera) for row in range(count) for camera in cameras)

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`.

        Raises
        ------
        ObservationError
            If the state is longer than the policy's, which would cut it, or images differ in size.
        """
        self._check(inputs, sizes)
        geometry = {camera: self._geometry(size) for camera, size in sizes.items()}
        first, *others = geometry
        prefix = _Spans()
        prefix.view(first, geometry[first])
        self._text(inputs, row, prefix)
        rest = _Spans()
        for camera in others:
            rest.view(camera, geometry[camera])
        rows, cols = geometry[first].grid
        for missing in range(self._views() - len(sizes)):
            rest.add(f"empty_view[{missing}]", "other", 1 + rows * cols)
        action = Axis((Span("action", "action", 0, self.horizon, 0),))
        made = prefix.axis()
        key = action.followed_by(made, model_offset=self.horizon)
        if rest.spans:
            key = key.followed_by(rest.axis(), model_offset=len(key))
        query = action
        if prompts := int(self.config.len_soft_prompts):
            soft = Axis((Span("soft_prompt", "other", 0, prompts, 0),))
            query = action.followed_by(soft, model_offset=len(key))
            key = key.followed_by(soft, model_offset=len(key))
        layouts = {
            "prefix": TokenLayout("prefix", made, made),
            "suffix": TokenLayout("suffix", query, key),
        }
        return Sample(layouts, geometry)

    def _views(self) -> int:
        """Views that the network gets, those that are not there among them."""
        config = self.config
        if "policy" in vars(self) or hasattr(self._source, "model"):
            return int(config.num_image_views)
        # As LeRobot sets it when it makes the network.
        return max(
            int(config.num_image_views or 0), len(config.image_features) + int(config.empty_cameras)
        )

    def _check(self, inputs: Mapping[str, Any], sizes: Sizes) -> None:
        given, known = inputs["observation.state"].shape[-1], int(self.config.max_state_dim)
        if self.config.use_proprio and given > known:
            raise ObservationError(
                f"the robot state has {given} components, {self.checkpoint} sees {known} and would cut it"
            )
        if self.config.resize_imgs_with_padding is None and len(set(sizes.values())) > 1:
            raise ObservationError(
                f"{self.checkpoint} does not resize images, and they differ: "
                + ", ".join(f"{camera} {h}x{w}" for camera, (h, w, *_) in sizes.items())
            )

    def _text(self, inputs: Mapping[str, Any], row: int, spans: _Spans) -> None:
        """Add the prompt's tokens: what the tokenizer put around the instruction, and padding."""
        count = len(self.text_tokens(inputs, row))
        ids = inputs[TOKENS][row].tolist()
        tokens = [Token(i, token_text(self.tokenizer, i)) for i in ids]
        begin = int(count > 0 and ids[0] == self.tokenizer.bos_token_id)
        end = count - int(count > begin and ids[count - 1] == self.tokenizer.eos_token_id)
        for name, role, part in (
            ("bos", TEMPLATE, tokens[:begin]),
            (TASK, TASK, tokens[begin:end]),
            ("eos", TEMPLATE, tokens[end:count]),
            (PADDING, PADDING, tokens[count:]),
        ):
            if part:
                spans.add(name, "text", len(part), role=role, tokens=tuple(part))

    def _geometry(self, source: tuple[int, ...]) -> Geometry:
        """Geometry of DaViT's last grid, whose cells are centred where its convolutions are."""
        height, width = int(source[0]), int(source[1])
        frame = self.config.resize_imgs_with_padding
        size = resized = (height, width)
        if frame is not None and (int(frame[0]), int(frame[1])) != size:
            size = (int(frame[0]), int(frame[1]))
            ratio = max(width / size[1], height / size[0])
            resized = (int(height / ratio), int(width / ratio))
        vision = self.config.get_florence_config().vision_config
        stem = [
            Convolution((kernel, kernel), (stride, stride), (padding, padding))
            for kernel, stride, padding in zip(
                vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True
            )
        ]
        rows, cols = size
        for conv in stem:
            rows, cols = (
                (n + 2 * conv.before[0] - conv.kernel[0]) // conv.stride[0] + 1
                for n in (rows, cols)
            )
        made = stem_geometry((height, width), size, (rows, cols), stem)
        offset = (size[0] - resized[0], size[1] - resized[1])
        return replace(made, resized=resized, offset=offset)

    @property
    def _space(self) -> Any:
        from lerobot.policies.xvla.action_hub import build_action_space

        mode, config = str(self.config.action_mode).lower(), self.config
        if mode != "auto":
            return build_action_space(mode)
        real = config.action_feature
        dim = int(config.max_action_dim)
        return build_action_space(
            mode, real_dim=dim if real is None else int(real.shape[-1]), max_dim=dim
        )

    @property
    def _encoder(self) -> Any:
        return unwrap(self.model.vlm.language_model.encoder)

    @property
    def _attention(self) -> list[Any]:
        return [unwrap(layer).self_attn for layer in self._encoder.layers]

    @property
    def _transformer(self) -> Any:
        return unwrap(self.model.transformer)

    @property
    def _blocks(self) -> list[Any]:
        return [unwrap(unwrap(block).attn) for block in self._transformer.blocks]


class _Spans:
    """Spans that follow each other."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, name: str, kind: Any, length: int, **more: Any) -> None:
        at = self.spans[-1].stop if self.spans else 0
        self.spans.append(Span(name, kind, at, at + length, at, **more))

    def view(self, camera: str, geometry: Geometry) -> None:
        """Add an image: the mean of its cells, then they."""
        self.add(f"mean:{camera}", "other", 1)
        count = geometry.grid[0] * geometry.grid[1]
        self.add(f"image:{camera}", "image", count, camera=camera, grid=geometry.grid)

    def axis(self) -> Axis:
        return Axis(tuple(self.spans))


def _opened(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Give an encoder's attention the mask of nothing that it would leave out."""
    if kwargs.get("attention_mask") is not None:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    count = hidden.shape[1]
    return args, {**kwargs, "attention_mask": hidden.new_zeros(len(hidden), 1, count, count)}
