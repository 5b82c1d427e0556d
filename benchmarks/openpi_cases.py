"""openpi's policies in PyTorch and in JAX, at their released size or with fewer layers: cases of `adapters`.

JAX runs on the CPU (``JAX_PLATFORMS=cpu``), and takes as many threads as it is given cores: ``taskset``.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnstore.ingest.policies.base import Policy

from .full_pi0 import WEIGHT, fill

STATE_DOF = 8
TOKENS = 16
"""That Pi0-FAST writes; its random weights never end."""
QUANTILES = {"q01": [-2.0] * STATE_DOF, "q99": [2.0] * STATE_DOF}
STATS = {"mean": [0.0] * STATE_DOF, "std": [1.0] * STATE_DOF, **QUANTILES}


def pi05(folder: Path, layers: int | None = None) -> Policy:
    """Pi0.5 as configuration ``pi05_droid`` has it, in PyTorch, or with fewer layers."""
    from openpi import transforms
    from openpi.models import gemma
    from openpi.models_pytorch import gemma_pytorch
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
    from openpi.shared.normalize import NormStats
    from openpi.training.config import get_config

    from attnstore.ingest.policies.openpi.policy import OpenpiPolicy

    _words(folder)
    config = get_config("pi05_droid")
    shape = replace(config.model, pytorch_compile_mode=None)
    if layers is not None:  # for good: the adapter asks for the same configurations
        full, mapping = gemma.get_config, gemma_pytorch.CONFIG_MAPPING
        gemma.get_config = lambda variant: replace(full(variant), depth=layers)

        def paligemma() -> Any:
            found = mapping["paligemma"]()
            found.vision_config.num_hidden_layers = 27 * layers // 18
            return found

        gemma_pytorch.CONFIG_MAPPING = {"paligemma": paligemma, "gemma": mapping["gemma"]}
    with torch.device("meta"):
        model = PI0Pytorch(shape)
    model = model.to_empty(device="cpu").eval()
    fill(model)
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            size = 2 * buffer.numel()
            buffer.copy_(1 / 10000 ** (torch.arange(0, size, 2).float() / size))
        elif "position_ids" in name:
            buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))
    stats = NormStats(**{key: np.array(value) for key, value in STATS.items()})
    data = config.data.create(config.assets_dirs, shape)
    return OpenpiPolicy.from_model(
        model,
        [
            transforms.InjectDefaultPrompt(None),
            *data.data_transforms.inputs,
            transforms.Normalize({"state": stats}, use_quantiles=True),
            *data.model_transforms.inputs,
        ],
    )


def pi05_jax(folder: Path, layers: int = 2) -> Policy:
    """Pi0.5 as configuration ``pi05_droid`` has it, in JAX with fewer layers, float32."""
    from openpi.models import gemma, siglip

    from attnstore.ingest.policies.openpi.jax_policy import OpenpiJaxPolicy

    _words(folder)
    full, vision = gemma.get_config, siglip.decode_variant
    gemma.get_config = lambda variant: replace(full(variant), depth=layers)
    siglip.decode_variant = lambda variant: {**vision(variant), "depth": 27 * layers // 18}
    checkpoint = _save_jax(folder / "checkpoint", "pi05_droid")
    return OpenpiJaxPolicy(str(checkpoint), variant="pi05_droid", dtype="float32")


def pi_fast_jax(folder: Path, layers: int = 2) -> Policy:
    """Pi0-FAST as configuration ``pi0_fast_droid`` has it, in JAX with fewer layers, float32."""
    import ml_collections
    from openpi.models import gemma_fast, siglip
    from openpi.models.pi0_fast import Pi0FAST
    from openpi.training import config as configs
    from openpi_fast_words import paligemma_words, save_fast_words

    from attnstore.ingest.policies.openpi.jax_fast import OpenpiJaxFastPolicy

    _words(folder, paligemma_words())
    full, vision = gemma_fast.get_config, siglip.decode_variant
    gemma_fast.get_config = lambda variant: ml_collections.ConfigDict(
        {**full(variant), "depth": layers}
    )
    siglip.decode_variant = lambda variant: {**vision(variant), "depth": 27 * layers // 18}
    Pi0FAST.sample_actions.__kwdefaults__["max_decoding_steps"] = TOKENS
    name = "pi0_fast_droid"
    config = configs.get_config(name)
    chunks = np.random.default_rng(0).uniform(-1, 1, (64, config.model.action_horizon, STATE_DOF))
    fast = save_fast_words(folder / "fast", chunks)
    model = replace(config.model, fast_model_tokenizer_kwargs={"fast_tokenizer_path": str(fast)})
    configs._CONFIGS_DICT[name] = replace(config, model=model)
    checkpoint = _save_jax(folder / "checkpoint", name)
    return OpenpiJaxFastPolicy(str(checkpoint), variant=name, dtype="float32")


def _words(folder: Path, words: bytes | None = None) -> None:
    """A small SentencePiece model where openpi looks for PaliGemma's, for good."""
    from openpi_prompt_model import sentencepiece_model

    file = folder / "data" / "big_vision" / "paligemma_tokenizer.model"
    file.parent.mkdir(parents=True)
    file.write_bytes(words or sentencepiece_model())
    os.environ["OPENPI_DATA_HOME"] = str(folder / "data")


def _save_jax(directory: Path, name: str) -> Path:
    """A checkpoint of random weights, as ``openpi.training.checkpoints`` saves one."""
    import flax.nnx as nnx
    import jax
    import orbax.checkpoint as ocp
    from openpi.training.config import get_config

    model = get_config(name).model
    state = nnx.state(nnx.eval_shape(lambda: model.create(jax.random.key(0))))
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * WEIGHT

    def filled(path: Any, value: Any) -> Any:
        scale = "scale" in jax.tree_util.keystr(path)
        return np.zeros(value.shape, np.float32) if scale else np.resize(block, value.shape)

    with ocp.PyTreeCheckpointer() as checkpointer:
        params = jax.tree_util.tree_map_with_path(filled, state)
        checkpointer.save(directory / "params", {"params": params})
    assets = directory / "assets" / "droid"
    assets.mkdir(parents=True)
    text = json.dumps({"norm_stats": {"state": STATS, "actions": STATS}})
    (assets / "norm_stats.json").write_text(text)
    return directory
