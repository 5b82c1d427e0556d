"""Stand-ins for LeRobot's policies: its module names over modules of the real libraries.

LeRobot cannot be installed beside the pins of CI (0.6 needs Python 3.12). Written for the tests; the
real LeRobot runs the same contract by `make test-lerobot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision
from openpi_architecture import IMAGE_KEYS, PI0Pytorch, euler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from transformers import (
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from attnstore.ingest.policies.tiny import prompt_tokenizer

STATE, TOKENS = "observation.state", "observation.language.tokens"
MASK = "observation.language.attention_mask"
STATE_DOF, ACTION_DOF, PADDED, CHUNK, STEPS, FRAME = 8, 7, 32, 5, 2, 56
CAMERAS = ("observation.images.varied_camera_1", "observation.images.hand_camera")
"""Not in the dataset's order."""
STATS = {STATE: {name: np.full(STATE_DOF, v) for name, v in {"mean": 0.1, "std": 2.0}.items()}}


@dataclass
class Feature:
    shape: tuple[int, ...]


def configuration(kind: str, images: Sequence[str], **more: Any) -> Any:
    return SimpleNamespace(
        type=kind, image_features={name: Feature((3, 36, 64)) for name in images},
        robot_state_feature=Feature((STATE_DOF,)), env_state_feature=None,
        output_features={"action": Feature((ACTION_DOF,))}, chunk_size=CHUNK, n_obs_steps=1,
        max_action_dim=PADDED, max_state_dim=PADDED, **more,
    )  # fmt: skip


@dataclass
class Rename:
    rename_map: dict[str, str] = field(default_factory=dict)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {self.rename_map.get(key, key): value for key, value in batch.items()}


@dataclass
class Normalize:
    stats: Mapping[str, Any] = field(default_factory=lambda: STATS)
    norm_map: Mapping[str, str] = field(default_factory=lambda: {"STATE": "MEAN_STD"})

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        known = self.stats[STATE]
        mean, std = (torch.tensor(known[name], dtype=torch.float32) for name in ("mean", "std"))
        return batch | {STATE: (batch[STATE] - mean) / std}


@dataclass
class Tokenize:
    input_tokenizer: Any
    prompt: Any
    length: int | None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [self.prompt(t, s) for t, s in zip(batch["task"], batch[STATE], strict=True)]
        made = self.input_tokenizer(
            prompts, padding="max_length" if self.length else "longest", padding_side="right",
            max_length=self.length, return_tensors="pt",
        )  # fmt: skip
        return batch | {TOKENS: made["input_ids"], MASK: made["attention_mask"].bool()}


@dataclass
class Pipeline:
    steps: list[Any]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for step in self.steps:
            batch = step(batch)
        return batch


def instruction_prompt(task: str, state: Any) -> str:
    return f"{task}\n"


def state_prompt(task: str, state: Any) -> str:
    bins = np.digitize(state.numpy(), np.linspace(-1, 1, 257)[:-1]) - 1
    return f"Task: {task}, State: {' '.join(map(str, bins))};\nAction: "


def fitted(image: Any, height: int, width: int, *, centre: bool) -> Any:
    """Scale to fit and pad: on both sides, or at the top and on the left."""
    ratio = max(image.shape[3] / width, image.shape[2] / height)
    rows, cols = int(image.shape[2] / ratio), int(image.shape[3] / ratio)
    image = functional.interpolate(image, (rows, cols), mode="bilinear", align_corners=False)
    top, left = height - rows, width - cols
    if centre:
        pads = (left // 2, left - left // 2, top // 2, top - top // 2)
    else:
        pads = (left, 0, top, 0)
    return functional.pad(image, pads)


class PiPolicy(nn.Module):
    """Pi0 and Pi0.5: three image features, of which the first is never in an observation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = configuration(
            kind, ("observation.images.absent", *CAMERAS), num_inference_steps=STEPS,
            image_resolution=(FRAME, FRAME),
        )  # fmt: skip
        sizes = SimpleNamespace(
            pi05=kind == "pi05", paligemma_variant="small", action_expert_variant="small_expert",
            action_dim=PADDED, action_horizon=CHUNK,
        )  # fmt: skip
        torch.manual_seed(0)
        self.model = PI0Pytorch(sizes, vocabulary=800)
        paligemma = self.model.paligemma_with_expert.paligemma.model
        vision = SiglipVisionConfig(
            **paligemma.config.vision_config.to_dict() | {"image_size": FRAME}
        )
        paligemma.config.vision_config = vision
        paligemma.vision_tower = SiglipVisionModel(vision)

    def images(self, batch: Mapping[str, Any]) -> tuple[list[Any], list[bool]]:
        """Those in the batch first, then black ones."""
        seen = [k for k in self.config.image_features if k in batch]
        images = [fitted(batch[k], FRAME, FRAME, centre=True) * 2 - 1 for k in seen]
        missing = len(self.config.image_features) - len(seen)
        images += [torch.full_like(images[0], -1)] * missing
        return images, [True] * len(seen) + [False] * missing

    def observation(self, batch: Mapping[str, Any]) -> Any:
        images, shown = self.images(batch)
        count = len(images[0])
        return SimpleNamespace(
            images=dict(zip(IMAGE_KEYS, images, strict=True)),
            image_masks={
                key: torch.full((count,), here) for key, here in zip(IMAGE_KEYS, shown, strict=True)
            },
            tokenized_prompt=batch[TOKENS],
            tokenized_prompt_mask=batch[MASK],
            state=functional.pad(batch[STATE], (0, PADDED - STATE_DOF)),
        )

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Any = None) -> Any:
        seen = self.observation(batch)
        actions = self.model.sample_actions("cpu", seen, noise=noise, num_steps=STEPS)
        return actions[..., :ACTION_DOF]

    def euler(self, batch: Mapping[str, Any]) -> list[Any]:
        """The padded chunk after each step."""
        return euler(self.model, self.observation(batch), batch["noise"], STEPS)


class ActLayer(nn.Module):
    """A layer of encoder or decoder; the latter also looks at what the encoder made."""

    def __init__(self, size: int, heads: int, *, crosses: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(size, heads, dropout=0.1)
        if crosses:
            self.multihead_attn = nn.MultiheadAttention(size, heads, dropout=0.1)
        self.norm, self.linear = nn.LayerNorm(size), nn.Linear(size, size)

    def forward(self, x: Any, memory: Any = None, *, place: Any) -> Any:
        x = x + self.self_attn(x + place, x + place, value=x)[0]
        if memory is not None:
            x = x + self.multihead_attn(query=x + place, key=memory, value=memory)[0]
        return self.norm(x + self.linear(x))


class ActStack(nn.Module):
    def __init__(self, layers: int, size: int, heads: int, *, crosses: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ActLayer(size, heads, crosses=crosses) for _ in range(layers))


class Act(nn.Module):
    """Tokens: latent, state, every cell of every camera's ResNet feature map."""

    def __init__(self, config: Any, size: int = 32) -> None:
        super().__init__()
        self.size, self.config = size, config
        resnet = torchvision.models.resnet18(weights=None)
        self.backbone = IntermediateLayerGetter(resnet, {"layer4": "feature_map"})
        self.project, self.state = nn.Conv2d(512, size, 1), nn.Linear(STATE_DOF, size)
        self.latent = nn.Parameter(torch.randn(size))
        self.encoder = ActStack(3, size, config.n_heads, crosses=False)
        self.decoder = ActStack(2, size, config.n_heads, crosses=True)
        self.queries = nn.Parameter(torch.randn(CHUNK, 1, size))
        self.head = nn.Linear(size, ACTION_DOF)

    def tokens(self, batch: Mapping[str, Any]) -> Any:
        count = len(batch[STATE])
        tokens = [self.latent.expand(1, count, -1), self.state(batch[STATE])[None]]
        for name in self.config.image_features:
            cells = self.project(self.backbone(batch[name])["feature_map"])
            tokens.append(cells.flatten(2).permute(2, 0, 1))
        return torch.cat(tokens)

    def forward(self, batch: Mapping[str, Any]) -> Any:
        x = self.tokens(batch)
        place = torch.sin(torch.arange(len(x))[:, None, None] * 0.7 + torch.arange(self.size) * 0.3)
        for layer in self.encoder.layers:
            x = layer(x, place=place)
        y = torch.zeros(CHUNK, x.shape[1], self.size)
        for layer in self.decoder.layers:
            y = layer(y, x, place=self.queries)
        return self.head(y).transpose(0, 1)


class ActPolicy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = configuration("act", CAMERAS, n_heads=4)
        self.model = Act(self.config)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Any:
        return self.model(batch)


class SmolVlmWithExpert(nn.Module):
    """Calls the projections of its layers, and one method for all attention."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = SmolVLMConfig(
            text_config={
                "model_type": "llama", "hidden_size": 48, "intermediate_size": 64,
                "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
                "head_dim": 8, "vocab_size": vocabulary, "initializer_range": 0.25,
            },
            vision_config={
                "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "patch_size": 8, "image_size": 64,
                "initializer_range": 0.25,
            },
            scale_factor=2,
        )  # fmt: skip
        self.vlm = SmolVLMForConditionalGeneration(self.config)
        self.lm_expert = SmolVLMForConditionalGeneration(self.config).model.text_model
        text: Any = self.config.text_config
        self.num_attention_heads, self.num_key_value_heads = 6, 2
        self.num_vlm_layers = self.num_expert_layers = text.num_hidden_layers

    def get_vlm_model(self) -> Any:
        return self.vlm.model

    def embed_image(self, image: Any) -> Any:
        model = self.get_vlm_model()
        return model.connector(model.vision_model(pixel_values=image).last_hidden_state)

    def forward(
        self, attention_mask: Any = None, past_key_values: Any = None, inputs_embeds: Any = None
    ) -> tuple[Any, Any]:
        prefix = inputs_embeds[1] is None
        x = inputs_embeds[0] if prefix else inputs_embeds[1]
        part = self.get_vlm_model().text_model if prefix else self.lm_expert
        kept = []
        for index, layer in enumerate(part.layers):
            own = layer.self_attn
            normed = layer.input_layernorm(x)
            q, k, v = (
                p(normed).unflatten(-1, (-1, 8)) for p in (own.q_proj, own.k_proj, own.v_proj)
            )
            if prefix:
                kept.append((k, v))
                seen = attention_mask
            elif index % 2 == 0:
                before = past_key_values[index]
                k, v = torch.cat([before[0], k], 1), torch.cat([before[1], v], 1)
                seen = attention_mask
            else:
                k, v = past_key_values[index]
                seen = attention_mask[:, :, : k.shape[1]]
            attended = self.eager_attention_forward(seen, len(x), 8, q, k, v)
            x = x + own.o_proj(attended)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x, kept

    def eager_attention_forward(
        self, attention_mask: Any, batch_size: int, head_dim: int, query: Any, key: Any, value: Any
    ) -> Any:
        groups = self.num_attention_heads // self.num_key_value_heads
        key, value = (t.repeat_interleave(groups, 2).transpose(1, 2) for t in (key, value))
        scores = query.transpose(1, 2) @ key.transpose(2, 3) * head_dim**-0.5
        scores = torch.where(attention_mask[:, None], scores, torch.finfo(scores.dtype).min)
        weights = functional.softmax(scores, dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)


class SmolVla(nn.Module):
    def __init__(self, config: Any, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.vlm_with_expert = SmolVlmWithExpert(vocabulary)
        self.state_proj, self.action_in_proj = nn.Linear(STATE_DOF, 48), nn.Linear(PADDED, 48)
        self.action_out_proj = nn.Linear(48, PADDED)

    def embed_prefix(self, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Embeddings, which are valid, and which block each is of: later blocks are not seen."""
        names = [k for k in self.config.image_features if k in batch]
        images = [fitted(batch[n], 64, 64, centre=False) * 2 - 1 for n in names]
        empty = min(len(self.config.image_features) - len(names), self.config.empty_cameras)
        images += [torch.full_like(images[0], -1)] * empty
        parts = [self.vlm_with_expert.embed_image(image) for image in images]
        valid = [torch.full(p.shape[:2], i < len(names)) for i, p in enumerate(parts)]
        words = self.vlm_with_expert.get_vlm_model().text_model.embed_tokens(batch[TOKENS])
        parts += [words, self.state_proj(batch[STATE])[:, None]]
        valid += [batch[MASK], torch.ones(len(words), 1, dtype=torch.bool)]
        whole = torch.cat(parts, 1)
        block = torch.zeros(whole.shape[1])
        block[-1] = 1
        padding = max(0, self.config.prefix_length - whole.shape[1])
        whole = functional.pad(whole, (0, 0, 0, padding))
        block = functional.pad(block, (0, padding))
        return whole, functional.pad(torch.cat(valid, 1), (0, padding)), block

    def sample_actions(self, batch: Mapping[str, Any], noise: Any) -> Any:
        kept, sees = self.read_prefix(batch)
        for step in range(STEPS):
            noise = noise - self.velocity(kept, sees, noise, step) / STEPS
        return noise

    def read_prefix(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The prefix's keys and values, and what of everything each action sees."""
        prefix, valid, block = self.embed_prefix(batch)
        sees = valid[:, None] & (block[:, None] >= block[None])
        _, kept = self.vlm_with_expert.forward(attention_mask=sees, inputs_embeds=[prefix, None])
        causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril().expand(len(prefix), -1, -1)
        return kept, torch.cat([valid[:, None].expand(-1, CHUNK, -1), causal], 2)

    def velocity(self, kept: Any, sees: Any, noise: Any, step: int) -> Any:
        x, _ = self.vlm_with_expert.forward(
            attention_mask=sees, past_key_values=kept,
            inputs_embeds=[None, self.action_in_proj(noise) + step],
        )  # fmt: skip
        return self.action_out_proj(x)


class SmolVlaPolicy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = configuration(
            "smolvla", (*CAMERAS, "observation.images.empty_camera_0"), num_steps=STEPS,
            empty_cameras=1, resize_imgs_with_padding=(64, 64), add_image_special_tokens=False,
            prefix_length=80, adapt_to_pi_aloha=False,
        )  # fmt: skip
        torch.manual_seed(0)
        self.model = SmolVla(self.config, vocabulary=400)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Any = None) -> Any:
        batch[STATE].mul_(1.0)  # in place, as the decoding of ALOHA states is
        actions = self.model.sample_actions(batch, noise)[..., :ACTION_DOF]
        aloha = self.config.adapt_to_pi_aloha
        return self._pi_aloha_encode_actions(actions) if aloha else actions

    @staticmethod
    def _pi_aloha_encode_actions(actions: Any) -> Any:
        """In place, and not linear, as LeRobot's."""
        actions[..., 1] *= -1
        actions[..., 6] = actions[..., 6] * 0.5208 + 0.4837
        return actions

    @torch.no_grad()
    def euler(self, batch: Mapping[str, Any]) -> list[Any]:
        """The padded chunk after each step."""
        kept, sees = self.model.read_prefix(batch)
        chunks = [batch["noise"]]
        for step in range(STEPS):
            velocity = self.model.velocity(kept, sees, chunks[-1], step)
            chunks.append(chunks[-1] - velocity / STEPS)
        return chunks[1:]


def byte_level_tokenizer() -> Any:
    """A byte-level tokenizer, as SmolVLM's."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator(["put the red cube onto the pink plate"] * 3, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="<pad>"
    )


def build(kind: str, *, rename: Mapping[str, str] | None = None) -> tuple[Any, Pipeline]:
    """Return (policy, preprocessor) of a family."""
    steps: list[Any] = [Rename(dict(rename or {})), Normalize()]
    if kind == "act":
        return ActPolicy().eval(), Pipeline(steps)
    if kind == "smolvla":
        steps.append(Tokenize(byte_level_tokenizer(), instruction_prompt, None))
        return SmolVlaPolicy().eval(), Pipeline(steps)
    tokenizer = prompt_tokenizer()
    bos = tokenizer.bos_token
    prompt = state_prompt if kind == "pi05" else instruction_prompt

    def with_bos(task: str, state: Any) -> str:
        return f"{bos}{prompt(task, state)}"

    length = 120 if kind == "pi05" else 60
    steps.append(Tokenize(tokenizer, with_bos, length))
    return PiPolicy(kind).eval(), Pipeline(steps)
