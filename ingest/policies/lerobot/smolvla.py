"""LeRobot's SmolVLA: SmolVLM's text model and an expert of its width, interleaved layer by layer.

No attention module is called: ``model.vlm_with_expert.forward`` calls the layers' projections and
its own method ``eager_attention_forward``. That method is wrapped on the instance while capturing,
and the weights are what its ``softmax`` returns, in float32: nothing is computed twice.

Prefix: image tokens of the cameras in the batch and of empty ones (masked), the instruction, padding,
one state token, padding; images and text do not see the state. Suffix: the action tokens, causal.
In every ``self_attn_every_n_layers``-th layer they attend to the prefix and themselves, in the
others to the prefix alone, and their weights on action tokens are 0 there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from attnstore.store.errors import HealthError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, TEMPLATE, Axis, Span, TokenLayout

from ..base import LAST, EncoderShape, Observer, PhaseShape, Sample
from ..blocking import Blocked, Samples, by_layer, check_left, forbidden, place_of
from ..checkpoint import unwrap
from ..hooks import Shown, Watched, instead
from ..values import ValueNorms, check_mixing, mixed_last, no_projections, plain_linear
from ..vision import pair, vision_shape
from .base import TOKENS, LeRobotPolicy, Sizes


class LeRobotSmolVla(LeRobotPolicy):
    """Adapter of ``smolvla``."""

    family = "smolvla"
    denoiser_steps = True

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the modules."""
        core, heads = self._core, int(self._core.num_attention_heads)
        steps = int(self.config.num_steps)
        return {
            "prefix": PhaseShape(
                int(core.num_vlm_layers),
                heads,
                None,
                (TASK,),
                features=int(core.config.text_config.hidden_size),
            ),
            "suffix": PhaseShape(
                int(core.num_expert_layers),
                heads,
                steps,
                ("action",),
                causal=True,
                features=int(self.model.action_out_proj.in_features),
                last="action",
            ),
        }

    def watched(self) -> Sequence[Watched]:
        """None: see `instrument`."""
        return ()

    def eager(self) -> AbstractContextManager[None]:
        """Nothing to do: SmolVLA's attention is always eager."""
        return nullcontext()

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """See `HookedPolicy.instrument`; the attention method is wrapped."""
        with super().instrument(observer), ExitStack() as stack:
            outputs = self._outputs() if observer.watch.values else {}
            calls = _Calls(observer, self.horizon, outputs, self.norms_of_values())
            core = self._core
            stack.enter_context(instead(core, "forward", calls.forward))
            stack.enter_context(instead(core, "eager_attention_forward", calls.attention))
            yield

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention through the boolean mask that the attention method gets.

        Where action tokens attend to the prefix alone, they are no keys, and nothing is blocked.
        """
        layers = {(phase, n) for phase, shape in self.phases.items() for n in range(shape.layers)}
        with ExitStack() as stack:
            turns = _Blocking(by_layer(blocked, layers))
            stack.enter_context(instead(self._core, "forward", turns.forward))
            stack.enter_context(instead(self._core, "eager_attention_forward", turns.attention))
            yield

    def layers(self, watched: Sequence[Watched]) -> Sequence[Shown]:
        """What the norms before each layer's attention, and the last norm, are given.

        SmolVLA calls the parts of its layers, not the layers.
        """
        shown = []
        for phase, part in self._parts().items():
            count = self.phases[phase].layers
            for i, layer in enumerate(part.layers[:count]):
                shown.append(Shown(phase, i - 1, unwrap(layer).input_layernorm, entering=True))
            shown.append(Shown(phase, count - 1, part.norm, entering=True))
        return shown

    def projection(self) -> Shown:
        """The projection of the action tokens."""
        return Shown("suffix", LAST, self.model.action_out_proj, entering=True)

    def _parts(self) -> dict[str, Any]:
        core = self._core
        return {
            "prefix": unwrap(core.get_vlm_model().text_model), "suffix": unwrap(core.lm_expert)
        }  # fmt: skip

    def _outputs(self) -> dict[tuple[str, int], Any]:
        """Output projection of every phase's layers.

        Raises
        ------
        UsageError
            If the weights of one are not plain numbers.
        """
        found = {}
        for phase, part in self._parts().items():
            for i, layer in enumerate(part.layers[: self.phases[phase].layers]):
                module = unwrap(layer).self_attn
                found[phase, i] = unwrap(module.o_proj)
                if not plain_linear(found[phase, i]):
                    raise no_projections(module, f"{phase} layer {i}")
        return found

    def encoder(self) -> Any:
        """SmolVLM's vision tower."""
        return unwrap(self._core.get_vlm_model().vision_model)

    def encoder_shape(self) -> EncoderShape:
        """Shape of the vision tower, from its configuration."""
        return vision_shape(self._core.config.vision_config)

    def as_returned(self, chunk: Any) -> Any:
        """Cut the padding off; for ALOHA also turn joints and grippers back, as LeRobot does."""
        actions = super().as_returned(chunk)
        if getattr(self.config, "adapt_to_pi_aloha", False):
            actions = self.policy._pi_aloha_encode_actions(actions.clone())  # it works in place
        return actions

    def denoiser(self) -> tuple[Any, int]:
        """Return the projection that gets the noisy actions at each step."""
        return self.model.action_in_proj, 0

    def empty_images(self, present: int) -> int:
        """As many as the configuration allows."""
        return min(super().empty_images(present), int(self.config.empty_cameras))

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        geometry = {camera: self._geometry(size) for camera, size in sizes.items()}
        marked = bool(self.config.add_image_special_tokens)
        spans: list[Span] = []
        at = place = 0  # compact and in the model's sequence

        def add(name: str, kind: Any, length: int, **more: Any) -> None:
            nonlocal at, place
            spans.append(Span(name, kind, at, at + length, place, **more))
            at, place = at + length, place + length

        for camera, shape in geometry.items():
            count = shape.grid[0] * shape.grid[1]
            if marked:
                add(f"begin:{camera}", "other", 2)
            add(f"image:{camera}", "image", count, camera=camera, grid=shape.grid)
            if marked:
                add(f"end:{camera}", "other", 1)
        for empty in range(self.empty_images(len(sizes))):
            # The marks around an empty image are not masked, its tokens are.
            if marked:
                add(f"begin:empty_{empty}", "other", 2)
            place += count
            if marked:
                add(f"end:empty_{empty}", "other", 1)
        text = place
        tokens = self.text_tokens(inputs, row)
        newline = 1 if tokens and tokens[-1].text == "\n" else 0
        for name, role, part in (
            (TASK, TASK, tokens[: len(tokens) - newline]),
            ("newline", TEMPLATE, tokens[len(tokens) - newline :]),
        ):
            if part:
                add(name, "text", len(part), role=role, tokens=tuple(part))
        place = text + int(inputs[TOKENS].shape[1])
        add("state", "state", 1)
        prefix = Axis(tuple(spans))
        length = max(place, int(self.config.prefix_length))
        suffix = Axis((Span("action", "action", 0, self.horizon, 0),))
        key = prefix.followed_by(suffix, model_offset=length)
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            geometry,
        )

    def _geometry(self, source: tuple[int, ...]) -> Geometry:
        vision = self._core.config.vision_config
        rows, cols = (
            side * int(self._core.config.scale_factor) for side in pair(vision.patch_size)
        )
        frame = self.config.resize_imgs_with_padding
        height, width = int(source[0]), int(source[1])
        size = (height, width) if frame is None else (int(frame[1]), int(frame[0]))
        ratio = max(width / size[1], height / size[0])
        resized = (height, width)
        if resized != size:
            resized = (int(height / ratio), int(width / ratio))
        return Geometry(
            source=(height, width),
            input=size,
            resized=resized,
            offset=(size[0] - resized[0], size[1] - resized[1]),
            grid=(size[0] // rows, size[1] // cols),
            patch=(float(rows), float(cols)),
        )

    @property
    def _core(self) -> Any:
        return unwrap(self.model.vlm_with_expert)


class _Turns:
    """Tells the calls of the attention method apart."""

    _phase, _layer = "", 0

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[3]
        self._phase, self._layer = ("prefix" if given[1] is None else "suffix"), 0
        return original(*args, **kwargs)


class _Blocking(_Turns):
    """Closes the mask of each call where attention is blocked."""

    def __init__(self, wanted: Mapping[tuple[str, int], Samples]) -> None:
        self._wanted = wanted

    def attention(self, original: Callable[..., Any], mask: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        samples = self._keys(self._wanted.get((self._phase, self._layer), {}), mask.shape[-1])
        self._layer += 1
        if samples:
            no = forbidden(samples, tuple(mask.shape))
            mask = mask & ~torch.from_numpy(no).to(mask.device)
            check_left(place_of(samples), no, mask.any(-1).cpu().numpy())
        return original(mask, *args, **kwargs)

    def _keys(self, samples: Samples, keys: int) -> Samples:
        """Leave out the action tokens where they are no keys."""
        if self._phase == "prefix":
            self._prefix = keys
        elif keys == self._prefix:
            cut = {
                sample: [replace(b, key=tuple(k for k in b.key if k < keys)) for b in blocks]
                for sample, blocks in samples.items()
            }
            kept = {sample: [b for b in blocks if b.key] for sample, blocks in cut.items()}
            return {sample: blocks for sample, blocks in kept.items() if blocks}
        return samples


class _Calls(_Turns):
    """Takes the weights out of each call."""

    def __init__(
        self,
        observer: Observer,
        actions: int,
        outputs: Mapping[tuple[str, int], Any],
        norms: ValueNorms,
    ) -> None:
        self._observer, self._actions, self._prefix = observer, actions, 0
        self._outputs, self._norms = outputs, norms

    def attention(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        import torch

        with _softmax() as seen:
            output = original(*args, **kwargs)
        if len(seen) != 1:
            raise HealthError(
                f"{self._phase} layer {self._layer}: eager_attention_forward calls softmax "
                f"{len(seen)} times; this LeRobot computes its attention otherwise"
            )
        (weights,) = seen
        keys, weights = int(weights.shape[-1]), weights.detach()
        norms = self._norms_of(weights, output, args, kwargs) if self._outputs else None
        if self._phase == "prefix":
            self._prefix = keys
        elif keys == self._prefix:
            # cross-attention: no action token is a key
            weights = torch.nn.functional.pad(weights, (0, self._actions))
            norms = None if norms is None else torch.nn.functional.pad(norms, (0, self._actions))
        self._observer.attention(self._phase, self._layer, weights, norms)
        self._layer += 1
        return output

    def _norms_of(self, weights: Any, output: Any, args: Any, kwargs: Any) -> Any:
        """Value norms of a call ``(mask, batch, head_dim, query, key, value)``."""
        where = f"{self._phase} layer {self._layer}"
        values = (kwargs["value_states"] if "value_states" in kwargs else args[-1]).detach()
        check_mixing(mixed_last(weights, values), output.detach()[:, -1], where)
        heads = int(weights.shape[1])
        return self._norms.of(values, self._outputs[self._phase, self._layer], heads)


@contextmanager
def _softmax() -> Iterator[list[Any]]:
    """Collect what ``softmax`` returns."""
    import torch
    from torch.overrides import TorchFunctionMode

    functions = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)
    seen: list[Any] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            if func in functions:
                seen.append(output)
            return output

    with Mode():
        yield seen
