"""Random checkpoints of octo-small's architecture, made with the octo package itself.

For ``make test-octo``. Its language model is small and random, and its tokenizer knows a few
words: no weights are downloaded. Everything else is the pretrained configuration's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attnstore.ingest.policies.octo.loading import _octo_model
from attnstore.ingest.policies.tiny import PROMPTS


def save_t5(directory: Path) -> Path:
    """A T5 tokenizer of a few words, and a small encoder's configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    transformers: Any = import_module("transformers")

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(PROMPTS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(directory)
    size: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    transformers.T5Config(vocab_size=len(fast), **size).save_pretrained(directory)
    return directory


def configuration(t5: Path, *, correct_attention: bool = True) -> dict[str, Any]:
    """The model and text processor of octo-small-1.5's pretraining."""
    stem = {
        "module": "octo.model.components.vit_encoders", "name": "SmallStem16", "args": (), "kwargs": {}
    }  # fmt: skip

    def spec(module: str, name: str, **kwargs: Any) -> dict[str, Any]:
        return {"module": f"octo.{module}", "name": name, "args": (), "kwargs": kwargs}

    def images(slot: str) -> dict[str, Any]:
        key = [f"image_{slot}"]
        return spec(
            "model.components.tokenizers", "ImageTokenizer",
            obs_stack_keys=key, task_stack_keys=key, encoder=stem,
        )  # fmt: skip

    return {
        "model": {
            "observation_tokenizers": {slot: images(slot) for slot in ("primary", "wrist")},
            "task_tokenizers": {
                "language": spec(
                    "model.components.tokenizers", "LanguageTokenizer",
                    encoder=str(t5), finetune_encoder=False,
                )
            },
            "heads": {
                "action": spec(
                    "model.components.action_heads", "DiffusionActionHead",
                    readout_key="readout_action", use_map=False, action_horizon=4, action_dim=7,
                    n_diffusion_samples=1, dropout_rate=0.0,
                )
            },
            "readouts": {"action": 1},
            # vit_s, octo-small's
            "transformer_kwargs": {
                "num_layers": 12, "mlp_dim": 1536, "num_attention_heads": 6, "dropout_rate": 0.0,
                "attention_dropout_rate": 0.0, "add_position_embedding": False,
            },
            "token_embedding_size": 384,
            "max_horizon": 10,
            "repeat_task_tokens": True,
            "use_correct_attention": correct_attention,
        },
        "text_processor": spec(
            "data.utils.text_processing", "HFTokenizer",
            tokenizer_name=str(t5), encode_with_model=False,
            tokenizer_kwargs={
                "max_length": 16, "padding": "max_length", "truncation": True, "return_tensors": "np",
            },
        ),
    }  # fmt: skip


def example_batch(processor: Any, window: int = 2) -> dict[str, Any]:
    """An example batch as a pretrained checkpoint has one."""
    sizes = {"primary": (256, 256), "wrist": (128, 128)}
    lead = (1, window)
    observation: dict[str, Any] = {
        f"image_{slot}": np.zeros((*lead, *size, 3), np.uint8) for slot, size in sizes.items()
    }
    observation["pad_mask_dict"] = {key: np.ones(lead, bool) for key in list(observation)}
    observation["timestep_pad_mask"] = np.ones(lead, bool)
    task: dict[str, Any] = {
        f"image_{slot}": np.zeros((1, *size, 3), np.uint8) for slot, size in sizes.items()
    }
    task["pad_mask_dict"] = {key: np.zeros(1, bool) for key in list(task)}
    task["pad_mask_dict"]["language_instruction"] = np.ones(1, bool)
    task["language_instruction"] = processor.encode(["pick it up"])
    return {"observation": observation, "task": task}


def save_octo_small(directory: Path, *, correct_attention: bool = True) -> Path:
    """Save a random octo-small as ``OctoModel.save_pretrained`` does; return the directory."""
    config = configuration(save_t5(directory / "t5-tiny"), correct_attention=correct_attention)
    return _save(config, directory / "octo-small")


class Vectors:
    """A text processor that gives one vector for an instruction, as MUSE's of octo does."""

    def encode(self, strings: Sequence[str]) -> NDArray[np.float32]:
        draws = (np.random.default_rng(zlib.crc32(s.encode())) for s in strings)
        return np.stack([draw.standard_normal(24) for draw in draws]).astype(np.float32)


def save_octo_film(directory: Path) -> Path:
    """Save a random Octo whose encoders are octo's own with FiLM, whose γ and β are not zero."""
    import jax

    config = configuration(directory)
    config["text_processor"] = {
        "module": "octo_checkpoint", "name": "Vectors", "args": (), "kwargs": {}
    }  # fmt: skip
    model = config["model"]
    model["transformer_kwargs"]["num_layers"] = 1
    model["task_tokenizers"]["language"]["kwargs"] |= {"encoder": None}
    for slot, name, kwargs in (
        ("primary", "SmallStem16", {"use_film": True}), ("wrist", "ResNet26FILM", {}),
    ):  # fmt: skip
        tokenizer = model["observation_tokenizers"][slot]["kwargs"]
        tokenizer["encoder"] = tokenizer["encoder"] | {"name": name, "kwargs": kwargs}
        tokenizer["task_film_keys"] = ["language_instruction"]
    rng = np.random.default_rng(0)

    def filled(path: Any, value: Any) -> Any:
        film = any("FilmConditioning" in str(key) for key in path)
        return 0.2 * rng.standard_normal(value.shape).astype(np.float32) if film else value

    return _save(
        config, directory / "octo-film", lambda p: jax.tree_util.tree_map_with_path(filled, p)
    )  # fmt: skip


def _save(config: dict[str, Any], target: Path, fill: Callable[[Any], Any] | None = None) -> Path:
    model_class = _octo_model()
    from octo.utils.spec import ModuleSpec

    processor = ModuleSpec.instantiate(config["text_processor"])()
    model = model_class.from_config(
        config, example_batch(processor), processor,
        dataset_statistics={"action": {"mean": np.zeros(7), "std": np.ones(7)}},
    )  # fmt: skip
    if fill is not None:
        model = model.replace(params=fill(model.params))
    model.save_pretrained(0, str(target))
    assert json.loads((target / "config.json").read_text())["model"]
    return target


@pytest.fixture(scope="session")
def octo_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random octo-small, saved by octo itself."""
    return save_octo_small(tmp_path_factory.mktemp("octo"))
