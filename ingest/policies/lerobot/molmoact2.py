"""LeRobot's MolmoAct2: Molmo's vision-language model, and an action expert that reads its keys and values.

Prefix: ``model.transformer.blocks[i].self_attn``, over images and prompt; causal, but that all image tokens attend
to one another, across cameras. Suffix, once per denoising step: ``action_expert.blocks[i].cross_attn``, whose keys
and values are those of the prefix's layer of the same number, projected. The expert's attention among its own
actions is a softmax of its own over other keys, and is not stored.

An image is resized to a square, and a token is what a small attention makes of 2x2 patches of it; where the
patches' number is odd, the last row's and column's tokens have one patch less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import STATE, TASK, TEMPLATE, Axis, Span, Token, TokenLayout

from ..base import LAST, ObservationError, PhaseShape, PolicyError, Sample
from ..blocking import Blocked
from ..checkpoint import one_line, unwrap
from ..hooks import Shown, Watched
from ..prompt import Prompt, prompt_axis
from ..sdpa import SdpaTap, block_as_it_runs, block_sdpa
from ..values import (
    FusedValues,
    LayerValues,
    SeenValues,
    ValueNorms,
    check_mixing,
    mixed_last,
    no_projections,
    plain_linear,
)
from .base import LeRobotPolicy, Sizes

_MARK = "\ue000"
"""Stands for the instruction in the prompt; no tokenizer's marker."""
_IMAGE, _PATCH, _ENDS = "<|image|>", "<im_patch>", "<im_start><im_end>"
_NUMBER = re.compile(r"<state_\d+>")


class LeRobotMolmoAct2(LeRobotPolicy):
    """Adapter of ``molmoact2``, whose actions are denoised.

    Raises
    ------
    PolicyError
        If it writes its actions as tokens, or cuts images into crops; or if its tag is unknown.
    """

    family = "molmoact2"
    denoiser_steps = True
    takes_noise = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        from lerobot.policies.molmoact2.modeling_molmoact2 import _apply_norm_tag_metadata

        try:
            # As LeRobot does when it makes the network: the tag says how long a chunk is.
            _apply_norm_tag_metadata(config)
        except (OSError, ValueError) as error:
            raise PolicyError(f"its norm_tag cannot be read ({one_line(error)})") from error
        super().__init__(config, *args, **kwargs)
        if "discrete" in (config.action_mode, config.inference_action_mode):
            raise PolicyError(
                f"{self.checkpoint}: it writes its actions as tokens (discrete); what is captured is the "
                "expert that denoises them: a checkpoint that was trained with it has "
                'inference_action_mode "continuous" in its config.json'
            )
        # LeRobot wants it said; there is one that is captured.
        config.inference_action_mode = "continuous"
        self._tap = SdpaTap()
        self._check_images()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the network's configuration."""
        text, expert = self._network.text_config, self._network.action_expert_config
        steps = self.config.num_inference_steps or self._network.flow_matching_num_steps
        return {
            "prefix": PhaseShape(
                int(text.num_hidden_layers),
                int(text.num_attention_heads),
                None,
                (TASK,),
                causal=False,
                features=int(text.hidden_size),
            ),
            "suffix": PhaseShape(
                int(expert.num_layers),
                int(expert.num_heads),
                int(steps),
                ("action",),
                features=int(expert.hidden_size),
                last="action",
            ),
        }

    def chunk_length(self) -> int:
        """Actions that the policy returns; the expert denoises ``chunk_size`` of them."""
        return min(int(self.config.n_action_steps), int(self.config.chunk_size))

    def noise_shape(self) -> tuple[int, int]:
        """Shape of the noise: all actions that are denoised, as wide as the expert takes them."""
        return int(self.config.chunk_size), int(self.config.expected_max_action_dim)

    def draw_noise(self, rows: int) -> Any:
        """Draw initial noise as the policy does by itself.

        Raises
        ------
        PolicyError
            If it draws it from a generator of its own, ``per_episode_seed``.
        """
        import torch

        if self.config.per_episode_seed:
            raise PolicyError(
                f"{self.checkpoint}: per_episode_seed draws noise from a generator that a recording does "
                "not have; set it to false"
            )
        rtc = self.config.rtc_config is not None and self.config.rtc_config.enabled
        dtype = torch.float32 if rtc else unwrap(self._expert.action_embed).weight.dtype
        return torch.randn((rows, *self.noise_shape()), device=self.device, dtype=dtype)

    def seen_features(self, inputs: Mapping[str, Any], features: Sequence[str]) -> list[str]:
        """Return the features in the order in which their images stand in the prompt.

        Raises
        ------
        ObservationError
            If one is missing: MolmoAct2 would number the others anew.
        """
        wanted = list(self._packing.image_keys) or list(self.config.image_features)
        if missing := [f for f in wanted if f not in features]:
            raise ObservationError(
                f"{self.checkpoint}: no image for {missing[0]}, and MolmoAct2 would number the others "
                f"anew; it was trained with {', '.join(wanted)}: say which camera is which with "
                "--policy-option cameras=CAMERA:FEATURE,..."
            )
        seen: list[str] = self._packing._resolve_image_keys(dict.fromkeys(features))
        return seen

    def as_returned(self, chunk: Any) -> Any:
        """Cut off what is behind the actions that are returned, and the padding."""
        return super().as_returned(chunk[:, : self.horizon])

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model, then the expert's attention to it."""
        return [
            *(Watched("prefix", i, x, self._tap.either(x)) for i, x in enumerate(self._text)),
            *(Watched("suffix", i, x, self._tap.weights(x)) for i, x in enumerate(self._cross)),
        ]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """No CUDA graphs; attention as it is, where it shows its weights."""
        graphs = self._backbone.action_cuda_graph_manager
        with ExitStack() as stack:
            if graphs is not None:
                # What is replayed runs no module, so no hook.
                stack.callback(graphs.set_enabled, graphs.enabled)
                graphs.set_enabled(False)
            stack.enter_context(self._tap.as_it_runs(self._text, self._cross))
            yield

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention where the language model computes it, and in the expert's calls."""
        watched = self.watched()
        with ExitStack() as stack:
            for own, other, block in (
                ("prefix", "suffix", block_as_it_runs),
                ("suffix", "prefix", block_sdpa),
            ):
                parts = [w for w in watched if w.phase == own]
                wanted = [[b for b in blocks if b.phase != other] for blocks in blocked]
                stack.enter_context(block(parts, wanted))
            yield

    def values(self, watched: Sequence[Watched]) -> Sequence[LayerValues]:
        """The last part of what the language model's one matrix makes, and what the expert is given."""
        norms, found = self.norms_of_values(), []
        for each in watched:
            own: Any = each.module
            output = unwrap(own.attn_out if each.phase == "prefix" else own.out_proj)
            if not plain_linear(output):
                raise no_projections(own, f"{each.phase} layer {each.layer}")
            if each.phase == "prefix":
                made: LayerValues = FusedValues(norms, own.att_proj, own.fused_dims[2], output)
            else:
                made = _GivenValues(norms, own, output)
            found.append(made)
        return found

    def projection(self) -> Shown:
        """The expert's last linear layer, behind its last norm."""
        last = unwrap(self._expert.final_layer.linear)
        return Shown("suffix", LAST, last, entering=True)

    def denoiser(self) -> tuple[Any, int]:
        """Return the module that gets the noisy actions at each step."""
        return self._expert.action_embed, 0

    def encoded(self, cameras: Sequence[str], count: int) -> tuple[tuple[int, str] | None, ...]:
        """None: its encoder's layers are called one by one, and give no weights."""
        return ()

    def sample(self, inputs: Mapping[str, Any], row: int, sizes: Sizes, instruction: str) -> Sample:
        """See `LeRobotPolicy.sample`."""
        geometry = {c: self._geometry((int(s[0]), int(s[1]))) for c, s in sizes.items()}
        ids = inputs["input_ids"][row].tolist()
        valid = inputs["attention_mask"][row].bool().tolist()
        tokenizer = self._processor.tokenizer
        image = tokenizer.convert_tokens_to_ids(_PATCH)
        prompt = self._prompt(instruction, len(sizes))
        whole = prompt_axis(tokenizer, ids, valid, image, geometry, prompt)
        end = self._network.eos_token_id if self._network.action_mode == "both" else None
        prefix = _told_apart(whole, end)
        # What a network that also writes tokens never learnt from: it would be the tokens' end.
        seen = _spans_of([s for s in prefix if not s.name.startswith("end[")])
        action = Axis((Span("action", "action", 0, int(self.config.chunk_size), 0),))
        layouts = {
            "prefix": TokenLayout("prefix", prefix, prefix),
            "suffix": TokenLayout("suffix", action, seen),
        }
        return Sample(layouts, geometry)

    def _prompt(self, instruction: str, images: int) -> Prompt:
        """Where the instruction stands, as LeRobot normalises it."""
        from lerobot.policies.molmoact2.processor_molmoact2 import (
            _build_robot_text,
            _normalize_question_text,
        )

        task = (
            _normalize_question_text(instruction)
            if self._packing.normalize_language
            else instruction
        )
        head, _, _ = _build_robot_text(
            task=_MARK, discrete_state_string="", setup_type="", control_mode="",
            add_setup_tokens=False, add_control_tokens=False, num_images=images,
        ).partition(_MARK)  # fmt: skip
        tokenizer = self._processor.tokenizer
        start = tokenizer.bos_token or tokenizer.eos_token or ""
        head = start + head.replace(_IMAGE, _ENDS)
        earlier = sum((head + task).startswith(task, i) for i in range(len(head)))
        return Prompt(head + task, task, earlier)

    def _check_images(self) -> None:
        images, processor = self._processor.image_processor, self._processor
        columns = processor.use_single_crop_col_tokens
        if columns is None:
            columns = processor.image_use_col_tokens
        if images.crop_mode != "resize" or columns:
            what = (
                "marks each row's end" if images.crop_mode == "resize" else "cuts images into crops"
            )
            raise PolicyError(
                f"{self.checkpoint}: its processor {what}, so that an image is no one grid of tokens; "
                'captured is what MolmoAct2 was released with: crop_mode "resize", '
                "use_single_crop_col_tokens false in processor_config.json"
            )

    def _geometry(self, source: tuple[int, int]) -> Geometry:
        """Geometry of an image that is stretched over the input, whose patches are pooled."""
        images = self._processor.image_processor
        side, size = int(images.patch_size), (int(images.size["height"]), int(images.size["width"]))
        pool = (int(images.pooling_size[0]), int(images.pooling_size[1]))
        patches = [n // side for n in size]
        grid = [-(-n // p) for n, p in zip(patches, pool, strict=True)]
        # What is missing to whole tokens is filled up on both sides, the odd one behind.
        before = [(g * p - n) // 2 for g, p, n in zip(grid, pool, patches, strict=True)]
        return Geometry(
            source=source,
            input=size,
            resized=size,
            offset=(0, 0),
            grid=(grid[0], grid[1]),
            patch=(float(pool[0] * side), float(pool[1] * side)),
            patch_origin=(float(-before[0] * side), float(-before[1] * side)),
        )

    @cached_property
    def _network(self) -> Any:
        """The network's configuration, without its weights."""
        from lerobot.policies.molmoact2.modeling_molmoact2 import _resolve_checkpoint_location
        from lerobot.policies.molmoact2.molmoact2_hf_model.configuration_molmoact2 import (
            MolmoAct2Config,
        )

        if hasattr(self._source, "_hf_model"):
            return self._source._hf_model().config
        where = _resolve_checkpoint_location(
            self.config.checkpoint_path, revision=self.config.checkpoint_revision
        )
        return MolmoAct2Config.from_pretrained(where)

    @property
    def _backbone(self) -> Any:
        return unwrap(self.policy._backbone())

    @property
    def _expert(self) -> Any:
        return unwrap(self._backbone.action_expert)

    @property
    def _text(self) -> list[Any]:
        return [unwrap(unwrap(block).self_attn) for block in self._backbone.transformer.blocks]

    @property
    def _cross(self) -> list[Any]:
        return [unwrap(unwrap(block).cross_attn) for block in self._expert.blocks]

    @property
    def _processor(self) -> Any:
        return self._packing.processor

    @property
    def _packing(self) -> Any:
        for step in self.preprocessor.steps:
            if type(step).__name__ == "MolmoAct2PackInputsProcessorStep":
                return step
        raise PolicyError(
            f"{self.checkpoint}: its preprocessor has no MolmoAct2PackInputsProcessorStep"
        )


def _told_apart(axis: Axis, end: int | None) -> Axis:
    """Name the numbers of the state, and the tokens that end what a network writes."""
    spans: list[Span] = []
    counts = dict.fromkeys(("state", "end", TEMPLATE), 0)
    for span in axis:
        if span.kind != "text" or span.name == TASK:
            spans.append(span)
            continue
        for i, token in enumerate(span.tokens):
            name, role = _called(token, end)
            at = span.model_start + i
            last = spans[-1] if spans else None
            if (
                name == TEMPLATE
                and last is not None
                and last.name.startswith(f"{TEMPLATE}[")
                and last.model_start + len(last) == at
            ):
                spans[-1] = Span(
                    last.name, "text", 0, len(last) + 1, last.model_start,
                    role=role, tokens=(*last.tokens, token),
                )  # fmt: skip
                continue
            spans.append(
                Span(f"{name}[{counts[name]}]", "text", 0, 1, at, role=role, tokens=(token,))
            )
            counts[name] += 1
    return _spans_of(spans)


def _called(token: Token, end: int | None) -> tuple[str, str]:
    if _NUMBER.fullmatch(token.text):
        return "state", STATE
    return ("end", TEMPLATE) if token.id == end else (TEMPLATE, TEMPLATE)


def _spans_of(spans: Sequence[Span]) -> Axis:
    """Lay spans one behind the other."""
    at, laid = 0, []
    for span in spans:
        laid.append(replace(span, start=at, stop=at + len(span)))
        at += len(span)
    return Axis(tuple(laid))


class _GivenValues(SeenValues):
    """Values of cross-attention that its module is given, and takes up."""

    def __init__(self, norms: ValueNorms, module: Any, output: Any) -> None:
        super().__init__(norms, module, output)
        self._through: tuple[Any, Any] | None = None

    def hooks(self) -> list[Callable[[], None]]:
        """See `LayerValues.hooks`."""
        return [
            self._source.register_forward_pre_hook(self._entered, with_kwargs=True).remove,
            self._output.register_forward_pre_hook(self._takes).remove,
        ]

    def _entered(self, module: Any, args: Any, kwargs: Any) -> None:
        self._made = kwargs["kv_v"].detach()

    def take(self, weights: Any, where: str) -> Any:
        """See `LayerValues.take`."""
        given, mixed = self.seen(where)
        values = self._source._as_heads(given)
        check_mixing(mixed_last(weights, values), mixed, where)
        known = self._through
        if known is None or known[0].data_ptr() != given.data_ptr():
            # The same at every denoising step; kept with them, lest others come to lie there.
            known = (given, self._norms.of(values, self._output, int(weights.shape[1])))
            self._through = known
        return known[1]
