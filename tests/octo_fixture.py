"""A small flax model with Octo's module names, paths and call signatures, with random weights.

Octo itself is installed from its repository only, with libraries of 2024. What the adapter relies
on is here, written anew: names of classes and parameters, the order of tokens, the attention rules,
the mask that is sown, the action head that takes the last timestep's readout.
"""

from __future__ import annotations

import os

# Compiling takes longer than everything else here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attnstore.ingest.policies.tiny import prompt_tokenizer

LAYERS, HEADS, WIDTH, HORIZON, DOF, WORDS = 2, 2, 24, 4, 7, 16
SIZES = {"primary": (64, 64), "wrist": (32, 32)}
PATCHES = {slot: (h // 16) * (w // 16) for slot, (h, w) in SIZES.items()}


@flax.struct.dataclass
class Group:
    tokens: Any
    mask: Any
    name: str = flax.struct.field(pytree_node=False, default="")  # type: ignore[no-untyped-call]


class StdConv(nn.Conv):
    pass


class SmallStem16(nn.Module):
    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = images.astype(jnp.float32) / 127.5 - 1
        for features in (4, 6, 8, 8):
            x = StdConv(features, (3, 3), strides=(2, 2), padding=(1, 1))(x)
            x = nn.relu(nn.GroupNorm(num_groups=2)(x))
        return nn.Conv(WIDTH, (1, 1), strides=(1, 1), padding="VALID", name="embedding")(x)


class FilmConditioning(nn.Module):
    """y = x * (1 + γ) + β: the first Dense makes γ, the second β, as in Octo."""

    @nn.compact
    def __call__(self, x: Any, condition: Any) -> Any:
        gamma, beta = (nn.Dense(x.shape[-1])(condition)[:, None, None] for _ in range(2))
        return x * (1 + gamma) + beta


class FilmStem(nn.Module):
    """Convolutions before and after what the instruction changes."""

    @nn.compact
    def __call__(self, images: Any, cond_var: Any) -> Any:
        x = images.astype(jnp.float32) / 127.5 - 1
        x = StdConv(4, (4, 4), strides=(4, 4), padding="VALID")(x)
        x = FilmConditioning()(nn.relu(x), cond_var)
        return nn.Conv(WIDTH, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x)


class ResNet26(nn.Module):
    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = images.astype(jnp.float32) / 255
        x = nn.Conv(8, (16, 16), strides=(16, 16), padding="VALID")(x)
        return x + nn.Conv(8, (3, 3), padding="SAME")(x)


class ImageTokenizer(nn.Module):
    obs_stack_keys: tuple[str, ...]
    encoder: str = "SmallStem16"
    use_token_learner: bool = False

    @nn.compact
    def __call__(self, observations: Any, tasks: Any = None, train: bool = True) -> Any:
        (key,) = self.obs_stack_keys
        if key not in observations:
            return None
        images = observations[key]
        stacked = jnp.repeat(tasks[key][:, None], images.shape[1], axis=1)
        images = jnp.concatenate([images, stacked], axis=-1)
        batch, horizon = images.shape[:2]
        flat = images.reshape(-1, *images.shape[2:])
        if self.encoder == "FilmStem":
            words = jnp.asarray(tasks["language_instruction"]["input_ids"]) / 50
            tokens = FilmStem()(flat, cond_var=jnp.repeat(words, horizon, axis=0))
        else:
            tokens = (SmallStem16() if self.encoder == "SmallStem16" else ResNet26())(flat)
        tokens = tokens.reshape(batch, horizon, -1, tokens.shape[-1])
        given = observations["pad_mask_dict"][key][:, :, None]
        return Group(tokens, jnp.broadcast_to(given, tokens.shape[:-1]))


class LanguageTokenizer(nn.Module):
    vocabulary: int

    @nn.compact
    def __call__(self, observations: Any, tasks: Any = None, train: bool = True) -> Any:
        tokens = nn.Embed(self.vocabulary, WIDTH)(tasks["language_instruction"]["input_ids"])
        given = tasks["pad_mask_dict"]["language_instruction"][:, None]
        return Group(tokens, jnp.broadcast_to(given, tokens.shape[:-1]))


class Encoder1DBlock(nn.Module):
    num_heads: int
    leaky: bool = False

    @nn.compact
    def __call__(self, inputs: Any, attention_mask: Any, *, deterministic: bool) -> Any:
        x = nn.LayerNorm()(inputs)
        x = nn.MultiHeadDotProductAttention(num_heads=self.num_heads, deterministic=deterministic)(
            x, x, mask=None if self.leaky else attention_mask
        )
        x = x + inputs
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    num_layers: int
    num_attention_heads: int
    leaky: bool = False

    @nn.compact
    def __call__(self, x: Any, attention_mask: Any, *, train: bool) -> Any:
        for layer in range(self.num_layers):
            block = Encoder1DBlock(
                self.num_attention_heads, self.leaky, name=f"encoderblock_{layer}"
            )
            x = block(x, attention_mask, deterministic=not train)
        return nn.LayerNorm(name="encoder_norm")(x)


class BlockTransformer(nn.Module):
    transformer_kwargs: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, prefix_groups: Sequence[Any], timestep_groups: Sequence[Any], train: bool
    ) -> Any:
        batch, horizon = timestep_groups[0].tokens.shape[:2]
        timed = jnp.concatenate([g.tokens for g in timestep_groups], axis=2)
        tokens = jnp.concatenate(
            [*(g.tokens for g in prefix_groups), timed.reshape(batch, -1, timed.shape[-1])], axis=1
        )
        steps = jnp.concatenate([g.mask for g in timestep_groups], axis=2).reshape(batch, -1)
        valid = jnp.concatenate([*(g.mask for g in prefix_groups), steps], axis=1)
        names = [(g.name, -1) for g in prefix_groups for _ in range(g.tokens.shape[1])]
        names += [
            (g.name, step) for step in range(horizon)
            for g in timestep_groups for _ in range(g.tokens.shape[2])
        ]  # fmt: skip
        rules = np.array([[may_attend(q, k) for k in names] for q in names])
        mask = jnp.logical_and(rules, valid[:, None, None, :])
        self.sow("intermediates", "attention_mask", mask)
        x = Transformer(**self.transformer_kwargs)(tokens, mask, train=train)
        count = sum(g.tokens.shape[1] for g in prefix_groups)
        out, at = x[:, count:].reshape(timed.shape), 0
        result = []
        for group in timestep_groups:
            length = group.tokens.shape[2]
            result.append(group.replace(tokens=out[:, :, at : at + length]))
            at += length
        return prefix_groups, result


def may_attend(query: tuple[str, int], key: tuple[str, int]) -> bool:
    """Octo's rules: tasks see tasks, observations also observations until now, a readout itself."""
    kinds = [name.partition("_")[0] for name, _ in (query, key)]
    past = key[1] <= query[1]
    if kinds[1] == "task":
        return True
    if kinds[1] == "obs":
        return kinds[0] != "task" and past
    return query[0] == key[0] and past


class OctoTransformer(nn.Module):
    observation_tokenizers: dict[str, nn.Module]
    task_tokenizers: dict[str, nn.Module]
    readouts: dict[str, int]
    transformer_kwargs: Mapping[str, Any]
    max_horizon: int = 5
    repeat_task_tokens: bool = True

    @nn.compact
    def __call__(
        self, observations: Any, tasks: Any, timestep_pad_mask: Any, train: bool = False
    ) -> Any:
        batch, horizon = timestep_pad_mask.shape
        prefix, timed = [], []
        for name, tokenizer in self.task_tokenizers.items():
            made = tokenizer(observations, tasks, train=train)
            prefix.append(
                Group(self._placed(made.tokens, f"task_{name}"), made.mask, f"task_{name}")
            )
        for name, tokenizer in self.observation_tokenizers.items():
            made = tokenizer(observations, tasks, train=train)
            if made is not None:
                mask = jnp.logical_and(timestep_pad_mask[:, :, None], made.mask)
                timed.append(Group(self._placed(made.tokens, f"obs_{name}"), mask, f"obs_{name}"))
        for group in prefix if self.repeat_task_tokens else ():
            tokens = jnp.repeat(group.tokens[:, None], horizon, axis=1)
            mask = jnp.repeat(group.mask[:, None], horizon, axis=1)
            timed.append(Group(tokens, mask, f"obs_{group.name}"))
        for name, count in self.readouts.items():
            tokens = self._placed(jnp.zeros((batch, horizon, count, WIDTH)), f"readout_{name}")
            timed.append(Group(tokens, jnp.ones(tokens.shape[:-1]), f"readout_{name}"))
        _, groups = BlockTransformer(self.transformer_kwargs)(prefix, timed, train=train)
        return {group.name: group for group in groups}

    def _placed(self, tokens: Any, name: str) -> Any:
        tokens = nn.Dense(WIDTH, name=f"{name}_projection")(tokens)
        shape = tokens.shape[1:] if tokens.ndim == 3 else (self.max_horizon, *tokens.shape[2:])
        place = self.param(f"{name}_pos_embedding", nn.initializers.normal(0.5), (1, *shape))
        return tokens + (place if tokens.ndim == 3 else place[:, : tokens.shape[1]])


class ActionHead(nn.Module):
    """Noise, carried towards the readout's embedding in a few steps; pools with attention."""

    action_horizon: int = HORIZON
    action_dim: int = DOF

    @nn.compact
    def __call__(self, readout: Any, noise: Any) -> Any:
        # An attention that is not the transformer's: it must not be taken for a layer.
        probe = self.param("probe", nn.initializers.normal(1.0), (1, 1, WIDTH))
        x = nn.MultiHeadDotProductAttention(num_heads=2)(
            jnp.repeat(probe, readout.shape[0], axis=0), readout
        )
        x = jnp.concatenate([x[:, 0], noise], axis=-1)
        return nn.Dense(self.action_horizon * self.action_dim)(nn.gelu(nn.Dense(WIDTH)(x)))

    def predict_action(self, outputs: Any, rng: Any, train: bool = True, **kwargs: Any) -> Any:
        readout = outputs["readout_action"].tokens[:, -1]
        size = self.action_horizon * self.action_dim
        x = jax.random.normal(rng, (readout.shape[0], size))
        for _ in range(3):
            x = x - 0.3 * self(readout, x)
        return x.reshape(-1, self.action_horizon, self.action_dim)


class OctoModule(nn.Module):
    octo_transformer: nn.Module
    heads: dict[str, nn.Module]

    def __call__(self, observations: Any, tasks: Any, timestep_pad_mask: Any) -> Any:
        outputs = self.octo_transformer(observations, tasks, timestep_pad_mask)
        noise = jnp.zeros((timestep_pad_mask.shape[0], HORIZON * DOF))
        return self.heads["action"](outputs["readout_action"].tokens[:, -1], noise)


class TextProcessor:
    """Tokens of an instruction, an end, and padding to 16: as T5's tokenizer gives them."""

    def __init__(self) -> None:
        self.tokenizer = prompt_tokenizer()

    def encode(self, strings: Sequence[str]) -> dict[str, Any]:
        ids = np.full((len(strings), WORDS), self.tokenizer.pad_token_id)
        for row, text in enumerate(strings):
            words = self.tokenizer(text, add_special_tokens=False)["input_ids"][: WORDS - 1]
            words = [*words, self.tokenizer.eos_token_id]
            ids[row, : len(words)] = words
        return {"input_ids": ids, "attention_mask": (ids != self.tokenizer.pad_token_id) * 1}


@dataclass(frozen=True)
class OctoModel:
    """The part of ``octo.model.octo_model.OctoModel`` that an inference uses."""

    module: Any
    params: Any
    example_batch: Any
    text_processor: Any
    dataset_statistics: Any = None

    def replace(self, **changes: Any) -> OctoModel:
        return replace(self, **changes)

    def sample_actions(self, observations: Any, tasks: Any, *, rng: Any) -> Any:
        def sample(params: Any, observations: Any, tasks: Any, rng: Any) -> Any:
            variables = {"params": params}
            outputs = self.module.apply(
                variables, observations, tasks, observations["timestep_pad_mask"],
                train=False, method="octo_transformer",
            )  # fmt: skip
            head = self.module.bind(variables).heads["action"]
            return head.predict_action(outputs, rng=rng, train=False)

        return jax.jit(sample)(self.params, observations, tasks, rng)

    @classmethod
    def load_pretrained(cls, checkpoint_path: str) -> OctoModel:
        import json
        from pathlib import Path

        config = json.loads((Path(checkpoint_path) / "config.json").read_text())
        if config.get("broken"):
            raise KeyError("heads")
        return build_octo(seed=config["seed"])


def build_octo(
    *,
    seed: int = 0,
    window: int = 2,
    repeat: bool = True,
    encoder: str = "SmallStem16",
    slots: Sequence[str] = ("primary", "wrist"),
    leaky: bool = False,
) -> OctoModel:
    """Build the model with random weights, and an example batch as a checkpoint has one."""
    processor = TextProcessor()
    module = OctoModule(
        OctoTransformer(
            {slot: ImageTokenizer((f"image_{slot}",), encoder) for slot in slots},
            {"language": LanguageTokenizer(len(processor.tokenizer))},
            {"action": 1},
            {"num_layers": LAYERS, "num_attention_heads": HEADS, "leaky": leaky},
            repeat_task_tokens=repeat,
        ),
        {"action": ActionHead()},
    )
    observation: dict[str, Any] = {"timestep_pad_mask": np.ones((1, window), bool)}
    observation["pad_mask_dict"] = {}
    task: dict[str, Any] = {"pad_mask_dict": {}}
    for slot in slots:
        size = SIZES.get(slot, (32, 32))
        observation[f"image_{slot}"] = np.zeros((1, window, *size, 3), np.uint8)
        observation["pad_mask_dict"][f"image_{slot}"] = np.ones((1, window), bool)
        task[f"image_{slot}"] = np.zeros((1, *size, 3), np.uint8)
        task["pad_mask_dict"][f"image_{slot}"] = np.zeros(1, bool)
    task["language_instruction"] = processor.encode(["pick it up"])
    task["pad_mask_dict"]["language_instruction"] = np.ones(1, bool)
    example = {"observation": observation, "task": task}

    shapes = jax.eval_shape(
        module.init, jax.random.PRNGKey(0), observation, task, observation["timestep_pad_mask"]
    )["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map_with_path(partial(_initial, rng), shapes)
    return OctoModel(module, params, example, processor)


def _initial(rng: np.random.Generator, path: Any, leaf: Any) -> Any:
    """Random numbers without compiling flax's initialisers; sharp, so that heads differ."""
    name = path[-1].key
    if name == "scale":
        return np.ones(leaf.shape, np.float32)
    wide = 1.0 if name in ("bias", "probe") or "embed" in name else 2 / np.sqrt(leaf.shape[0])
    return rng.normal(0, 0.5 * wide, leaf.shape).astype(np.float32)
