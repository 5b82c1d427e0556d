"""LeRobot's GR00T N1.7: Qwen3-VL, some self-attention over what it made, and a diffusion transformer.

Prefix: ``backbone.language_model.layers[i].self_attn``, causal, over images and prompt. Joint:
``action_head.vl_self_attention.transformer_blocks[i].attn1`` over the same tokens, in both directions.
Suffix, once per denoising step: ``action_head.model.transformer_blocks[i].attn1``, whose own tokens are
one state token and the actions. They attend to the prompt, to themselves, to the images, to themselves, and
again (`AlternateVLDiT`), or to both in every second block (`DiT`).

The joint layers have no mask: in a batch, tokens would attend to the padding of shorter prompts, and a shorter
prompt's actions would be others than alone. So observations run one after another, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, Axis, Span, TokenLayout

from ..base import LAST, Batch, ObservationError, Observer, PhaseShape, PolicyError, Sample
from ..blocking import Blocked, by_layer
from ..checkpoint import unwrap
from ..dit import DitHead, DitLayout, Sight
from ..hooks import Shown, Watched
from ..prompt import Prompt, prompt_axis
from ..sdpa import SdpaTap, block_as_it_runs
from ..turns import Turns
from ..values import LayerValues
from .base import LeRobotPolicy, Sizes

_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
_MARK = "\ue000"
"""Stands for the instruction in the chat template; no tokenizer's marker."""


class LeRobotGroot(LeRobotPolicy):
    """Adapter of ``groot``.

    Raises
    ------
    PolicyError
        If it sees more than one moment.
    """

    family = "groot"
    acts_by_layout = True
    denoiser_steps = True
    takes_noise = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tap = SdpaTap()
        self._turns: Turns | None = None
        self._blocked: Sequence[Sequence[Blocked]] | None = None
        if (moments := self._packing.video_horizon or 1) > 1:
            raise PolicyError(
                f"{self.checkpoint}: it sees {moments} moments at once; one is supported"
            )

    @property
    def model(self) -> Any:
        """GR00T's network."""
        return unwrap(self.policy._groot_model)

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix, joint and suffix, from the modules."""
        text, action = self._text, self.model.action_head
        heads = int(text.config.num_attention_heads)
        width = int(text.config.hidden_size)
        found = {
            "prefix": PhaseShape(
                len(text.layers), heads, None, (TASK,), causal=True, features=width
            )
        }
        for phase, head in self._heads.items():
            if phase == "joint":
                mixing = action.vl_self_attention
                found[phase] = PhaseShape(
                    len(head.layout.blocks),
                    int(mixing.config.num_attention_heads),
                    None,
                    (TASK,),
                    features=int(mixing.inner_dim),
                )
        found["suffix"] = PhaseShape(
            len(self._heads["suffix"].layout.blocks),
            int(action.model.config.num_attention_heads),
            int(action.num_inference_timesteps),
            ("action",),
            features=int(action.model.inner_dim),
            last="action",
        )
        return found

    def chunk_length(self) -> int:
        """Actions that the policy returns: the least of what model, checkpoint and configuration have."""
        from lerobot.policies.groot.configuration_groot import infer_groot_n1_7_action_horizon

        config = self.config
        said = infer_groot_n1_7_action_horizon(config.base_model_path, config.embodiment_tag)
        known = [self._network.action_horizon, config.chunk_size, config.n_action_steps, said]
        return min(int(n) for n in known if n)

    def noise_shape(self) -> tuple[int, int]:
        """Shape of the noise: the model's whole horizon."""
        return int(self._network.action_horizon), int(self._network.max_action_dim)

    def seen_features(self, inputs: Mapping[str, Any], features: Sequence[str]) -> list[str]:
        """Return the features in the order in which their images stand in the prompt.

        Raises
        ------
        ObservationError
            If the policy would leave an image out, or misses one.
        """
        wanted = self._packing.video_modality_keys or list(self.config.image_features)
        ordered: list[str] = self._packing._ordered_image_keys(dict.fromkeys(features))
        if len(ordered) != len(features) or len(ordered) != len(wanted):
            raise ObservationError(
                f"{self.checkpoint} was trained with {', '.join(wanted)}, and the observation has "
                f"{', '.join(features)}: GR00T would go on with {len(ordered)} of them; choose cameras "
                "with --camera, and say which is which with --policy-option cameras=CAMERA:FEATURE,..."
            )
        return ordered

    def act(self, batch: Batch) -> Any:
        """Predict an action chunk for every observation, one after another."""
        import torch

        if self._turns is not None:
            self._turns.begin(len(batch))
        chunks = []
        for row in range(len(batch)):
            if self._turns is not None:
                self._turns.next()
            alone = Batch(self.alone(batch.inputs, row), (batch.samples[row],))
            for head in self._heads.values():
                head.expect(int(alone.inputs["input_ids"].shape[1]))
            with nullcontext() if self._blocked is None else self._block(self._blocked[row]):
                chunks.append(super().act(alone))
        if self._turns is not None:
            self._turns.end()
        return torch.cat(chunks)

    def as_returned(self, chunk: Any) -> Any:
        """Cut off what is behind the policy's own horizon, and the padding."""
        return super().as_returned(chunk[:, : self.horizon])

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model, then the heads' attention."""
        prefix = [
            Watched("prefix", i, module, self._tap.either(module))
            for i, module in enumerate(self._attention)
        ]
        return [*prefix, *(w for head in self._heads.values() for w in head.watched())]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Attention as it is, where it shows its weights."""
        with ExitStack() as stack:
            stack.enter_context(self._tap.as_it_runs(self._attention))
            for head in self._heads.values():
                stack.enter_context(head.eager())
            yield

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """See `LeRobotPolicy.instrument`; the batch is shown as if it ran at once."""
        self._turns = turns = Turns(observer)
        try:
            with super().instrument(turns):
                yield
        finally:
            self._turns = None

    def values(self, watched: Sequence[Watched]) -> Sequence[LayerValues]:
        """Where values are made: the language model's projections, and the heads'."""
        prefix = super().values([w for w in watched if w.phase == "prefix"])
        return [*prefix, *(v for head in self._heads.values() for v in head.values())]

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention where the language model computes it, and through the masks of the heads."""
        by_layer(blocked, {(p, n) for p, shape in self.phases.items() for n in range(shape.layers)})
        before, self._blocked = self._blocked, blocked
        try:
            yield
        finally:
            self._blocked = before

    @contextmanager
    def _block(self, blocked: Sequence[Blocked]) -> Iterator[None]:
        def of(phase: str) -> list[list[Blocked]]:
            return [[b for b in blocked if b.phase == phase]]

        with ExitStack() as stack:
            prefix = [w for w in self.watched() if w.phase == "prefix"]
            stack.enter_context(block_as_it_runs(prefix, of("prefix")))
            for phase, head in self._heads.items():
                stack.enter_context(head.blocking(of(phase)))
            yield

    def projection(self) -> Shown:
        """The transformer's last linear layer, behind its final norm; the state token is left out."""
        count = int(self._network.action_horizon)
        last = unwrap(self.model.action_head.model.proj_out_2)
        return Shown("suffix", LAST, last, entering=True, states=lambda given: given[:, -count:])

    def denoiser(self) -> tuple[Any, int]:
        """Return the encoder that gets the noisy actions at each step."""
        return self.model.action_head.action_encoder, 0

    def encoded(self, cameras: Sequence[str], count: int) -> tuple[tuple[int, str] | None, ...]:
        """None: Qwen3-VL's encoder gets the patches of all images in one sequence."""
        return ()

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        alone = self.alone(inputs, row)
        grids = alone["image_grid_thw"].tolist()
        if len(grids) != len(sizes):
            raise PolicyError(
                f"{self.checkpoint}: {len(grids)} images stand in the prompt, of {len(sizes)} cameras"
            )
        geometry = {
            camera: self._geometry((int(size[0]), int(size[1])), grid)
            for (camera, size), grid in zip(sizes.items(), grids, strict=True)
        }
        ids = alone["input_ids"][0].tolist()
        tokenizer, image = self._encoding.proc.tokenizer, self._encoding.proc.image_token_id
        prompt = self._prompt(instruction, len(sizes))
        prefix = prompt_axis(tokenizer, ids, [True] * len(ids), image, geometry, prompt)
        count = int(self._network.action_horizon)
        own = Axis((Span("state", "state", 0, 1, 0), Span("action", "action", 1, 1 + count, 1)))
        layouts = {"prefix": TokenLayout("prefix", prefix, prefix)}
        for phase, head in self._heads.items():
            if phase == "suffix":
                layouts[phase] = head.layout.tokens(own, prefix, length=len(ids))
            else:
                layouts[phase] = head.layout.tokens(prefix)
        return Sample(layouts, geometry)

    def alone(self, inputs: Mapping[str, Any], row: int) -> dict[str, Any]:
        """Return one observation's inputs, without padding: what it acts on, also in a batch."""
        padding = int((~inputs["attention_mask"][row].bool()).sum())
        grids = inputs["image_grid_thw"]
        own = len(grids) // len(inputs["input_ids"])
        mine = slice(row * own, (row + 1) * own)
        patches = grids.prod(-1)
        start, count = int(patches[: mine.start].sum()), int(patches[mine].sum())
        found = {
            key: value[row : row + 1]
            for key, value in inputs.items()
            if key not in ("image_grid_thw", "pixel_values", *_TEXT)
        }
        for key in _TEXT:
            if key in inputs:
                found[key] = inputs[key][row : row + 1, padding:]
        if not bool(found["attention_mask"].all()):
            raise PolicyError(
                f"{self.checkpoint}: text is padded on the left; its tokenizer pads elsewhere"
            )
        return found | {
            "image_grid_thw": grids[mine],
            "pixel_values": inputs["pixel_values"][start : start + count],
        }

    def _prompt(self, instruction: str, images: int) -> Prompt:
        from lerobot.policies.groot.utils import prepare_n1_7_language_batch

        (task,) = prepare_n1_7_language_batch(
            [instruction], 1, formalize_language=self._packing.formalize_language
        )
        content = [*[{"type": "image"}] * images, {"type": "text", "text": _MARK}]
        head, mark, _ = self._encoding.proc.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False
        ).partition(_MARK)
        if not mark:
            raise PolicyError(f"{self.checkpoint}: its chat template leaves the instruction out")
        earlier = sum((head + task).startswith(task, i) for i in range(len(head)))
        return Prompt(head + task, task, earlier)

    def _geometry(self, source: tuple[int, int], grid: Sequence[int]) -> Geometry:
        """Geometry of an image that is resized, cropped in its middle, and resized again.

        Parameters
        ----------
        grid
            Its row of ``image_grid_thw``: one moment, rows and columns of patches before merging.
        """
        images = self._encoding.proc.image_processor
        patch, merge = int(images.patch_size), int(images.merge_size)
        made = [
            (*axis, int(n) * patch) for axis, n in zip(self._window(source), grid[1:], strict=True)
        ]
        # Along an axis: where the image's own pixels begin in what is cropped, and how many of its
        # pixels one of the encoder's is.
        crop, offset, resized = [], [], []
        for size, (before, factor, start, length, out) in zip(source, made, strict=True):
            low, high = start * factor - before, (start + length) * factor - before
            first, last = max(low, 0.0), min(high, float(size))
            crop.append((first, last - first))
            offset.append((first - low) / (high - low) * out)
            resized.append((last - low) / (high - low) * out - offset[-1])
        (top, height), (left, width) = crop
        whole = (top, left, height, width) == (0, 0, *source)
        rows, cols = (int(n) // merge for n in grid[1:])
        return Geometry(
            source=source,
            input=(made[0][-1], made[1][-1]),
            resized=(resized[0], resized[1]),
            offset=(offset[0], offset[1]),
            grid=(rows, cols),
            patch=(float(patch * merge), float(patch * merge)),
            crop=None if whole else (top, left, height, width),
        )

    def _window(self, source: tuple[int, int]) -> list[tuple[int, float, int, int]]:
        """What LeRobot's transform keeps along each axis.

        Returns
        -------
        Pixels of padding before the image, pixels of that padded image for one after the first
        resize, and the crop's first pixel and length after it.
        """
        step = self._encoding
        if step.image_target_size is None:
            return [(0, 1.0, 0, side) for side in source]
        target, box = int(step.image_target_size[0]), bool(step.letter_box_transform)
        square = max(source)
        padded = (square, square) if box else source
        before = [(p - side) // 2 for p, side in zip(padded, source, strict=True)]
        edge = int(step.shortest_image_edge or target)
        resized = [edge, edge]
        if step.use_albumentations:
            scale = edge / float(min(padded))
            resized = [max(1, round(side * scale)) for side in padded]
        fraction = step.crop_fraction
        if fraction is None and step.image_crop_size is not None:
            fraction = step.image_crop_size[0] / float(target)
        kept = list(resized)
        if fraction is not None and 0 < fraction < 1:
            whole = int if step.use_albumentations else round
            kept = [max(1, whole(side * fraction)) for side in resized]
        return [
            (b, p / r, max(0, (r - k) // 2), k)
            for b, p, r, k in zip(before, padded, resized, kept, strict=True)
        ]

    @cached_property
    def _heads(self) -> dict[str, DitHead]:
        """The action head's parts by phase, in the order in which they run."""
        action, norms = self.model.action_head, self.norms_of_values()
        found = {}
        mixing = getattr(action.vl_self_attention, "transformer_blocks", ())
        if len(mixing):
            alike: list[Sight] = ["own"] * len(mixing)
            layout = DitLayout("joint", tuple(alike))
            found["joint"] = DitHead(layout, [unwrap(b).attn1 for b in mixing], norms)
        blocks = action.model.transformer_blocks
        between = bool(action.model.config.interleave_self_attention)
        sights: tuple[Sight, ...] = tuple(
            "own" if between and i % 2 else "context" for i in range(len(blocks))
        )
        layout = DitLayout("suffix", sights)
        found["suffix"] = DitHead(layout, [unwrap(b).attn1 for b in blocks], norms)
        return found

    @cached_property
    def _network(self) -> Any:
        """The network's configuration, without its weights."""
        from lerobot.policies.groot.groot_n1_7 import GR00TN17Config

        if hasattr(self._source, "_groot_model"):
            return unwrap(self._source._groot_model).config
        return GR00TN17Config.from_pretrained(self.config.base_model_path)

    @property
    def _text(self) -> Any:
        return unwrap(self.model.backbone.language_model)

    @property
    def _attention(self) -> list[Any]:
        return [unwrap(layer).self_attn for layer in self._text.layers]

    @property
    def _packing(self) -> Any:
        return self._step("GrootN17PackInputsStep")

    @property
    def _encoding(self) -> Any:
        return self._step("GrootN17VLMEncodeStep")

    def _step(self, kind: str) -> Any:
        for step in self.preprocessor.steps:
            if type(step).__name__ == kind:
                return step
        raise PolicyError(
            f"{self.checkpoint}: its preprocessor has no {kind}; GR00T N1.7's is expected"
        )
