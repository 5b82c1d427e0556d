"""A small Pi0.5 and Pi0 with openpi's module names and signatures, over stock transformers modules.

Written for these tests. What sets Pi0.5 apart is here: an expert whose norms are modulated by the
denoising time (adaRMS: scale, shift and a gate on each residual), a suffix without a state token,
the state in the prompt. Attention, MLP and rotary embedding are transformers' own Gemma, the vision
tower its SigLIP; the language model's layers are stock, run without a causal mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.gemma.modeling_gemma import (
    GemmaAttention,
    GemmaMLP,
    GemmaRMSNorm,
    GemmaRotaryEmbedding,
)

IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


@dataclass(frozen=True)
class Size:
    """Size of a Gemma, under openpi's names."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 16


SIZES = {"small": Size(64, 2, 96), "small_expert": Size(48, 2, 64), "small_lora": Size(64, 2, 96)}


class AdaptiveNorm(nn.Module):
    """RMS norm with scale, shift and gate from a condition; without one, Gemma's own."""

    def __init__(self, size: int, condition: int | None) -> None:
        super().__init__()
        self.plain = GemmaRMSNorm(size) if condition is None else None
        self.dense = None if condition is None else nn.Linear(condition, 3 * size)

    def forward(self, x: Any, cond: Any = None) -> tuple[Any, Any]:
        if self.dense is None:
            assert self.plain is not None
            return self.plain(x), None
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        scale, shift, gate = self.dense(cond)[:, None].chunk(3, dim=-1)
        return (wide * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


class ExpertLayer(nn.Module):
    """A Gemma layer whose residuals pass a gate."""

    def __init__(self, config: Any, index: int, condition: int | None) -> None:
        super().__init__()
        mlp: Any = GemmaMLP
        self.self_attn, self.mlp = GemmaAttention(config, index), mlp(config)
        self.input_layernorm = AdaptiveNorm(config.hidden_size, condition)
        self.post_attention_layernorm = AdaptiveNorm(config.hidden_size, condition)

    def forward(self, hidden_states: Any, cond: Any, **attention: Any) -> Any:
        normed, gate = self.input_layernorm(hidden_states, cond)
        change = self.self_attn(hidden_states=normed, **attention)[0]
        hidden_states = hidden_states + (change if gate is None else gate * change)
        normed, gate = self.post_attention_layernorm(hidden_states, cond)
        change = self.mlp(normed)
        return hidden_states + (change if gate is None else gate * change)


class ExpertModel(nn.Module):
    """The action expert: what is called ``gemma_expert.model`` in openpi."""

    def __init__(self, config: Any, condition: int | None) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            ExpertLayer(config, i, condition) for i in range(config.num_hidden_layers)
        )
        self.norm = AdaptiveNorm(config.hidden_size, condition)
        self.rotary_emb = GemmaRotaryEmbedding(config)


class Expert(nn.Module):
    def __init__(self, config: Any, condition: int | None) -> None:
        super().__init__()
        self.model = ExpertModel(config, condition)


class PrefixCache:
    """Keys and values of the prefix: filled once, then read by every denoising step."""

    def __init__(self) -> None:
        self.layers: list[tuple[Any, Any]] = []

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        if layer == len(self.layers):
            self.layers.append((key, value))
            return key, value
        cached_key, cached_value = self.layers[layer]
        return torch.cat([cached_key, key], 2), torch.cat([cached_value, value], 2)


class PaliGemmaWithExpertModel(nn.Module):
    def __init__(self, config: Any, vocabulary: int) -> None:
        super().__init__()
        text, expert = SIZES[config.paligemma_variant], SIZES[config.action_expert_variant]
        paligemma = PaliGemmaConfig(
            text_config=gemma_config(text, vocabulary).to_dict(),
            vision_config={
                "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14,
                "image_size": 224, "vision_use_head": False, "initializer_range": 0.25,
            },
            projection_dim=text.width,
        )  # fmt: skip
        paligemma.initializer_range = 0.25
        self.paligemma = PaliGemmaForConditionalGeneration(paligemma)
        self.gemma_expert = Expert(
            gemma_config(expert, 8), condition=expert.width if config.pi05 else None
        )

    def to_bfloat16_for_selected_params(self, precision: str = "bfloat16") -> None:
        self.to(getattr(torch, precision))
        kept = (self.paligemma.model.vision_tower, self.paligemma.model.multi_modal_projector)
        for part in (*kept, *(m for m in self.modules() if isinstance(m, AdaptiveNorm))):
            part.float()

    def embed_image(self, image: Any) -> Any:
        model = self.paligemma.model
        return model.multi_modal_projector(model.vision_tower(image).last_hidden_state)


def gemma_config(size: Size, vocabulary: int) -> Any:
    # A range larger than the default: with that, every head would be uniform to three digits.
    return GemmaConfig(
        hidden_size=size.width, intermediate_size=size.mlp_dim, num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads, num_key_value_heads=size.num_kv_heads,
        head_dim=size.head_dim, vocab_size=vocabulary, initializer_range=0.25,
    )  # fmt: skip


class PI0Pytorch(nn.Module):
    """``sample_actions`` of Pi0.5, or of Pi0 where the configuration says so."""

    def __init__(self, config: Any, vocabulary: int) -> None:
        super().__init__()
        self.config, self.pi05 = config, config.pi05
        self.paligemma_with_expert = PaliGemmaWithExpertModel(config, vocabulary)
        width = SIZES[config.action_expert_variant].width
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)
        if self.pi05:
            self.time_mlp_in, self.time_mlp_out = nn.Linear(width, width), nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(config.action_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)

    @torch.no_grad()
    def sample_actions(
        self, device: Any, observation: Any, noise: Any = None, num_steps: int = 10
    ) -> Any:
        valid, cache = self.read_prefix(observation)
        if noise is None:
            noise = torch.randn(len(valid), self.config.action_horizon, self.config.action_dim)
        actions, time = noise, torch.ones(len(valid), device=device)
        for _ in range(num_steps):
            velocity = self.denoise_step(observation.state, valid, cache, actions, time)
            actions = actions - velocity / num_steps
            time = time - 1 / num_steps
        return actions

    def read_prefix(self, observation: Any) -> tuple[Any, PrefixCache]:
        """Run the language model: which of its tokens are valid, their keys and values."""
        both = self.paligemma_with_expert
        language = both.paligemma.model.language_model
        images = [both.embed_image(observation.images[key]) for key in IMAGE_KEYS]
        words = observation.tokenized_prompt
        text = nn.functional.embedding(words, language.embed_tokens.weight)
        dtype = language.layers[0].self_attn.q_proj.weight.dtype
        prefix = torch.cat([*images, text * math.sqrt(text.shape[-1])], 1).to(dtype)
        shown = [
            observation.image_masks[key][:, None].expand(len(words), image.shape[1])
            for key, image in zip(IMAGE_KEYS, images, strict=True)
        ]
        valid = torch.cat([*shown, observation.tokenized_prompt_mask], 1)
        language.config._attn_implementation = "eager"
        cache = PrefixCache()
        self._run_prefix(language, prefix, valid, cache)
        return valid, cache

    def denoise_step(self, state: Any, valid: Any, cache: Any, actions: Any, time: Any) -> Any:
        model: Any = self.paligemma_with_expert.gemma_expert.model
        model.config._attn_implementation = "eager"
        suffix, cond = self.embed_suffix(state, actions, time)
        length = suffix.shape[1]
        # The state sees itself and the prefix; actions see everything.
        sees = torch.ones(length, length, dtype=torch.bool, device=suffix.device)
        sees[0, 1:] = self.pi05
        seen = torch.cat(
            [valid[:, None].expand(-1, length, -1), sees.expand(len(valid), -1, -1)], -1
        )
        places = valid.sum(-1, keepdim=True) + torch.arange(length, device=valid.device)
        x = suffix.to(model.layers[0].self_attn.q_proj.weight.dtype)
        attention = {
            "attention_mask": as_bias(seen, x.dtype),
            "position_embeddings": model.rotary_emb(x, places),
            "past_key_values": cache,
        }
        for layer in model.layers:
            x = layer(x, cond, **attention)
        x = model.norm(x, cond)[0][:, -self.config.action_horizon :]
        return self.action_out_proj(x.float())

    def embed_suffix(self, state: Any, actions: Any, time: Any) -> tuple[Any, Any]:
        moved = self.action_in_proj(actions)
        width = moved.shape[-1]
        period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, width // 2, device=time.device)
        angle = 2 * math.pi * time[:, None] / period
        clock = torch.cat([angle.sin(), angle.cos()], -1)
        swish = nn.functional.silu
        if self.pi05:
            return moved, swish(self.time_mlp_out(swish(self.time_mlp_in(clock))))
        timed = torch.cat([moved, clock[:, None].expand_as(moved)], -1)
        timed = self.action_time_mlp_out(swish(self.action_time_mlp_in(timed)))
        return torch.cat([self.state_proj(state.float())[:, None], timed], 1), None

    @staticmethod
    def _run_prefix(language: Any, x: Any, valid: Any, cache: PrefixCache) -> None:
        places = valid.long().cumsum(-1) - 1
        rotary = language.rotary_emb(x, places)
        bias = as_bias(valid[:, None, :] & valid[:, :, None], x.dtype)
        for layer in language.layers:
            x = layer(
                x, attention_mask=bias, position_ids=places, past_key_values=cache,
                position_embeddings=rotary,
            )  # fmt: skip


@torch.no_grad()
def euler(model: PI0Pytorch, observation: Any, noise: Any, steps: int) -> list[Any]:
    """The chunk after each step: noise at time 1, along the velocity to time 0."""
    valid, cache = model.read_prefix(observation)
    chunks, time = [noise], torch.ones(len(noise))
    for _ in range(steps):
        velocity = model.denoise_step(observation.state, valid, cache, chunks[-1], time)
        chunks.append(chunks[-1] - velocity / steps)
        time = time - 1 / steps
    return chunks[1:]


def as_bias(seen: Any, dtype: Any) -> Any:
    """An additive mask, (batch, 1, query, key)."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, lowest)[:, None]
