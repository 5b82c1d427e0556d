"""Stand-ins for what CI cannot install of openpi: its data pieces, under its names.

openpi is installed from its repository with pinned JAX and a patched transformers, so CI runs the
adapter over the architecture in `openpi_architecture` and these pieces, written for the tests:
named configurations, input transforms, norm stats, the prompt's format, ``create_trained_policy``.
``make test-openpi`` runs the same contract on openpi itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from openpi_architecture import IMAGE_KEYS, SIZES, PI0Pytorch
from openpi_prompt_model import sentencepiece_model
from PIL import Image

STATS = {"q01": [-2.0] * 7 + [0.0], "q99": [2.0] * 7 + [1.0], "mean": [0.0] * 8, "std": [1.0] * 8}


@cache
def sentencepiece() -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=sentencepiece_model())


class PaligemmaTokenizer:
    def __init__(self, max_len: int) -> None:
        self._max_len, self._tokenizer = max_len, sentencepiece()

    def tokenize(self, prompt: str, state: Any = None) -> tuple[Any, Any]:
        words = prompt.strip().replace("_", " ").replace("\n", " ")
        if state is None:
            ids = [*self._tokenizer.encode(words, add_bos=True), *self._tokenizer.encode("\n")]
        else:
            bins = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
            text = f"Task: {words}, State: {' '.join(map(str, bins))};\nAction: "
            ids = self._tokenizer.encode(text, add_bos=True)
        count = min(len(ids), self._max_len)
        padded = np.zeros(self._max_len, np.int64)
        padded[:count] = ids[:count]
        return padded, np.arange(self._max_len) < count


@dataclass(frozen=True)
class InjectDefaultPrompt:
    prompt: str | None

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


@dataclass(frozen=True)
class DroidInputs:
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        base = np.asarray(data["observation/exterior_image_1_left"])
        images = (base, np.asarray(data["observation/wrist_image_left"]), np.zeros_like(base))
        state = [data["observation/joint_position"], data["observation/gripper_position"]]
        return {
            "state": np.concatenate(state),
            "image": dict(zip(IMAGE_KEYS, images, strict=True)),
            "image_mask": dict(zip(IMAGE_KEYS, np.array([True, True, False]), strict=True)),
            "prompt": data["prompt"],
        }


@dataclass(frozen=True)
class Normalize:
    norm_stats: Any
    use_quantiles: bool = False

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        stats, count = self.norm_stats["state"], len(data["state"])
        if self.use_quantiles:
            low, high = np.asarray(stats.q01)[:count], np.asarray(stats.q99)[:count]
            return {**data, "state": (data["state"] - low) / (high - low + 1e-6) * 2 - 1}
        mean, std = np.asarray(stats.mean)[:count], np.asarray(stats.std)[:count]
        return {**data, "state": (data["state"] - mean) / (std + 1e-6)}


@dataclass(frozen=True)
class ResizeImages:
    height: int
    width: int

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": {k: self._fit(v) for k, v in data["image"].items()}}

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, cols = image.shape[:2]
        ratio = max(rows / self.height, cols / self.width)
        size = (int(cols / ratio), int(rows / ratio))
        shown = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        canvas = Image.new("RGB", (self.width, self.height))
        canvas.paste(shown, ((self.width - size[0]) // 2, (self.height - size[1]) // 2))
        return np.asarray(canvas)


@dataclass(frozen=True)
class TokenizePrompt:
    tokenizer: PaligemmaTokenizer
    discrete_state_input: bool = False

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        state = data["state"] if self.discrete_state_input else None
        ids, mask = self.tokenizer.tokenize(data["prompt"], state)
        rest = {key: value for key, value in data.items() if key != "prompt"}
        return {**rest, "tokenized_prompt": ids, "tokenized_prompt_mask": mask}


@dataclass(frozen=True)
class PadStatesAndActions:
    model_action_dim: int

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        missing = self.model_action_dim - len(data["state"])
        return {**data, "state": np.pad(data["state"], (0, missing))}


@dataclass(frozen=True)
class Pi0Config:
    action_horizon: int
    pi05: bool = False
    action_dim: int = 32
    paligemma_variant: str = "small"
    action_expert_variant: str = "small_expert"
    pytorch_compile_mode: str | None = "max-autotune"

    @property
    def max_token_len(self) -> int:
        return 200 if self.pi05 else 48

    @property
    def discrete_state_input(self) -> bool:
        return self.pi05


@dataclass(frozen=True)
class Data:
    asset_id: str | None = "droid"
    robot: Any = field(default_factory=DroidInputs)

    def create(self, assets: Path, model: Pi0Config) -> Any:
        tokenizer = PaligemmaTokenizer(model.max_token_len)
        prompt = TokenizePrompt(tokenizer, model.discrete_state_input)
        tail = (ResizeImages(224, 224), prompt, PadStatesAndActions(model.action_dim))
        return SimpleNamespace(
            asset_id=self.asset_id,
            use_quantile_norm=model.pi05,
            data_transforms=SimpleNamespace(inputs=(self.robot,)),
            model_transforms=SimpleNamespace(inputs=(InjectDefaultPrompt(None), *tail)),
        )


@dataclass(frozen=True)
class TrainConfig:
    name: str
    model: Any
    data: Data = field(default_factory=Data)
    assets_dirs: Path = Path("assets")


CONFIGS = {
    c.name: c
    for c in (
        TrainConfig("pi05_droid", Pi0Config(15, pi05=True)),
        TrainConfig("pi0_droid", Pi0Config(10)),
        TrainConfig("pi0_low_mem", Pi0Config(10, paligemma_variant="small_lora")),
        TrainConfig("pi0_fast_droid", SimpleNamespace()),
        TrainConfig("debug_pi05", Pi0Config(15, pi05=True), Data(None)),
    )
}


def load_norm_stats(assets: Path, asset_id: str) -> dict[str, Any]:
    raw = json.loads((Path(assets) / asset_id / "norm_stats.json").read_text())["norm_stats"]
    return {key: SimpleNamespace(**value) for key, value in raw.items()}


def build_model(config: Pi0Config, seed: int = 0) -> PI0Pytorch:
    """Random weights, float32, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PI0Pytorch(config, sentencepiece().get_piece_size()).eval()


class StandInPolicy:
    """What ``create_trained_policy`` returns; ``infer`` takes the model's own path."""

    def __init__(self, model: Any, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self._model = model
        self._input_transform = SimpleNamespace(transforms=tuple(transforms))
        self._sample_kwargs: dict[str, Any] = {}
        self._is_pytorch_model = True


def create_trained_policy(
    config: TrainConfig, directory: Path, *, pytorch_device: str
) -> StandInPolicy:
    from safetensors.torch import load_model

    assert config.model.pytorch_compile_mode is None, "compiling takes minutes"
    model = build_model(config.model, seed=1)
    load_model(model, str(Path(directory) / "model.safetensors"))
    model.paligemma_with_expert.to_bfloat16_for_selected_params("bfloat16")
    data = config.data.create(config.assets_dirs, config.model)
    stats = load_norm_stats(Path(directory) / "assets", str(data.asset_id))
    transforms = (
        InjectDefaultPrompt(None), *data.data_transforms.inputs,
        Normalize(stats, data.use_quantile_norm), *data.model_transforms.inputs,
    )  # fmt: skip
    return StandInPolicy(model.to(pytorch_device), transforms)


@dataclass
class ModelObservation:
    images: Any
    image_masks: Any
    state: Any
    tokenized_prompt: Any
    tokenized_prompt_mask: Any

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelObservation:
        for key, image in data["image"].items():
            data["image"][key] = image.float().permute(0, 3, 1, 2) / 255.0 * 2.0 - 1.0
        return cls(data["image"], data["image_mask"], data["state"], data["tokenized_prompt"],
                   data["tokenized_prompt_mask"])  # fmt: skip


MODULES: dict[str, dict[str, Any]] = {
    "openpi": {},
    "openpi.models": {},
    "openpi.models.gemma": {"get_config": SIZES.__getitem__},
    "openpi.models.model": {"Observation": ModelObservation},
    "openpi.models_pytorch": {},
    "openpi.models_pytorch.preprocessing_pytorch": {"IMAGE_KEYS": IMAGE_KEYS},
    "openpi.policies": {},
    "openpi.policies.policy_config": {"create_trained_policy": create_trained_policy},
    "openpi.training": {},
    "openpi.training.checkpoints": {"load_norm_stats": load_norm_stats},
    "openpi.training.config": {"_CONFIGS_DICT": CONFIGS, "get_config": CONFIGS.__getitem__},
    "openpi.transforms": {"InjectDefaultPrompt": InjectDefaultPrompt, "Normalize": Normalize},
    "transformers.models.siglip.check": {
        "check_whether_transformers_replace_is_installed_correctly": lambda: True
    },
}


@contextmanager
def stand_ins() -> Iterator[None]:
    """The stand-ins, importable under openpi's names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, content in MODULES.items():
            module = ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
        yield


def save_checkpoint(directory: Path, name: str) -> Path:
    """A converted checkpoint as openpi's conversion leaves it, norm stats copied beside it."""
    from safetensors.torch import save_model

    assets = directory / "assets" / "droid"
    assets.mkdir(parents=True)
    config = CONFIGS[name].model
    save_model(build_model(config), str(directory / "model.safetensors"))
    fields = ("action_dim", "action_horizon", "paligemma_variant", "action_expert_variant")
    (directory / "config.json").write_text(json.dumps({f: getattr(config, f) for f in fields}))
    stats = json.dumps({"norm_stats": {"state": STATS, "actions": STATS}})
    (assets / "norm_stats.json").write_text(stats)
    return directory
