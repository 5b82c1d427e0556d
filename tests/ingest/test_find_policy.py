"""Which adapter a checkpoint is for, found from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnstore.ingest.policies.base import PolicyError
from attnstore.ingest.policies.registry import find_policy
from attnstore.store.errors import NotFoundError, UsageError


def checkpoint(folder: Path, config: Any, *names: str) -> str:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name in names:
        (folder / name).mkdir() if "." not in name else (folder / name).touch()
    return str(folder)


LEROBOT = {"type": "smolvla", "input_features": {}, "output_features": {}}
PALIGEMMA = {
    "model_type": "paligemma", "architectures": ["PaliGemmaForConditionalGeneration"], "vision_config": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "names", "found"),
    [
        ({"model_type": "pi0", "architectures": ["PI0ForConditionalGeneration"], "vision_config": {}}, (), "pi0"),
        (LEROBOT, ("policy_preprocessor.json",), "lerobot"),
        ({**LEROBOT, "type": "diffusion"}, (), "lerobot"),
        (PALIGEMMA, ("processor_config.json",), "vlm"),
        ({"model": {}}, ("example_batch.msgpack", "dataset_statistics.json", "270000"), "octo"),
    ],
)  # fmt: skip
def test_the_one_that_it_is_for(
    tmp_path: Path, config: Any, names: tuple[str, ...], found: str
) -> None:
    assert find_policy(checkpoint(tmp_path / "c", config, *names)) == found


@pytest.mark.parametrize(
    ("config", "names", "said"),
    [
        ({"action_dim": 32}, ("assets", "model.safetensors"), "is openpi's: .*--policy openpi:pi05_droid"),
        ({"model_type": "Gr00tN1d7"}, (), "is lerobot's: it is GR00T N1.7 as NVIDIA publishes it"),
        (None, ("assets", "params"), "is openpi-jax's: .*--policy openpi-jax:pi05_droid"),
        ({"model_type": "bert"}, (), r"no adapter recognises it \(its config.json says model_type 'bert'\).*octo"),
        ({"type": "mine"}, (), r"no adapter recognises it \(its config.json says type 'mine'\)"),
        (None, ("weights.bin",), r"no adapter recognises it \(it has weights.bin\)"),
        ({**PALIGEMMA, **LEROBOT}, (), "may be for lerobot or vlm: name one with --policy"),
    ],
)  # fmt: skip
def test_what_the_files_do_not_say(
    tmp_path: Path, config: Any, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        find_policy(checkpoint(tmp_path / "c", config, *names))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such checkpoint directory"):
        find_policy(str(tmp_path / "none"))
    with pytest.raises(PolicyError, match="a fine-tuning by adapters"):
        find_policy(checkpoint(tmp_path / "c", None, "adapter_config.json"))
