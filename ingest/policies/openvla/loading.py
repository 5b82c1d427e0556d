"""Loading an OpenVLA checkpoint, which brings its own Python code for transformers 4.40.1."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from attnstore.store.errors import MissingExtraError, UsageError

from ...optional import require
from ..base import PolicyError
from ..checkpoint import model_type, one_line, refuse_adapters

STATISTICS = "dataset_statistics.json"
"""Beside a fine-tuned checkpoint; its entries take the place of ``norm_stats`` in config.json."""
OFT = "openvla-oft"
FORK = "github.com/moojink/transformers-openvla-oft"
"""The transformers 4.40.1 of OpenVLA-OFT, whose sdpa attention looks in both directions."""
OFT_PARTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
"""What OpenVLA-OFT saves beside the model, as ``NAME--STEP_checkpoint.pt``."""


def check_environment(policy: str = "openvla") -> None:
    """Check that the libraries are those that OpenVLA's code, or OpenVLA-OFT's, runs with.

    Raises
    ------
    MissingExtraError
        If they are not installed, or of another generation; or if transformers' attention is not of
        the kind that this policy was trained with.
    """
    for module in ("torch", "transformers", "timm"):
        require(module, policy, f"policy {policy}")
    import transformers

    if int(transformers.__version__.partition(".")[0]) > 4:
        raise MissingExtraError(
            f"policy {policy} needs transformers 4.40.1 and timm 0.9, for which its code is "
            f"written; transformers {transformers.__version__} is installed: use an environment of its own: "
            f"pip install 'attnstore[{policy}]' (docs/how-to/openvla.md)"
        )
    if _sees_ahead() != (policy == OFT):
        whose = f"OpenVLA-OFT's ({FORK})" if policy != OFT else "causal"
        wanted = (
            "the fork of transformers that it was trained with: pip install --no-deps --force-reinstall "
            f"git+https://{FORK}"
            if policy == OFT
            else "transformers 4.40.1 from PyPI"
        )
        raise MissingExtraError(
            f"policy {policy}: the attention of this transformers {transformers.__version__} is {whose}, "
            f"with which it would act otherwise; it needs {wanted} (docs/how-to/openvla.md)"
        )


@cache
def _sees_ahead() -> bool:
    """Whether a token of Llama's sdpa attention attends to tokens behind it, as in OpenVLA-OFT's fork."""
    import torch
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=2, hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1
    )
    llama: Any = import_module("transformers.models.llama.modeling_llama")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        attention = llama.LlamaSdpaAttention(config, layer_idx=0).float()
        states, places = torch.randn(1, 2, 8), torch.arange(2)[None]
        first = attention(states, position_ids=places)[0][0, 0]
        states[0, 1] += 1
        return not torch.equal(first, attention(states, position_ids=places)[0][0, 0])


def oft_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Find OpenVLA-OFT's parts among a checkpoint's files, by the rule of its own scripts."""
    files = sorted(n for n in names if "checkpoint" in n and n.endswith(".pt"))
    found = {part: [n for n in files if part in n] for part in OFT_PARTS}
    return {part: own for part, own in found.items() if own}


def check_trusted(checkpoint: str, given: str | None) -> None:
    """Check that the user lets the checkpoint's own code run.

    Raises
    ------
    UsageError
        If not.
    """
    if given not in ("true", None):
        raise UsageError(f"trust_remote_code is true or left out; got {given!r}")
    if given is None:
        raise UsageError(
            f"{checkpoint}: an OpenVLA checkpoint brings its own Python code (modeling_prismatic.py and "
            "others), and loading it runs that code; if you trust it: "
            "--policy-option trust_remote_code=true"
        )


def read_checkpoint(checkpoint: str, directory: str) -> tuple[Any, Any]:
    """Read configuration and processor, without weights.

    Raises
    ------
    PolicyError
        If it is no readable OpenVLA checkpoint.
    """
    import transformers

    kind = model_type(checkpoint, Path(directory))
    if kind != "openvla":
        raise PolicyError(
            f"{checkpoint}: its config.json is of {kind!r}, not of 'openvla'; a prismatic model "
            "that writes no actions is not understood"
        )
    if parts := oft_parts(path.name for path in Path(directory).iterdir()):
        raise _tuned(checkpoint, f"{next(iter(parts.values()))[0]} is beside it")
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
        processors: Any = transformers.AutoProcessor  # its method has no types
        processor = processors.from_pretrained(directory, trust_remote_code=True)
    except Exception as error:
        # Whatever the checkpoint's code raises means the same to the user.
        raise PolicyError(
            f"{checkpoint}: not a readable OpenVLA checkpoint ({one_line(error)})"
        ) from error
    return config, processor


def _tuned(checkpoint: str, why: str) -> PolicyError:
    return PolicyError(
        f"{checkpoint}: of OpenVLA-OFT ({why}), which acts in one pass: name it with --policy {OFT} "
        "(docs/how-to/openvla.md)"
    )


def read_statistics(checkpoint: str, directory: str, config: Any) -> Mapping[str, Any]:
    """Return the statistics of actions, by data set: the directory's own, else the configuration's.

    Raises
    ------
    PolicyError
        If there are none, or the file cannot be read.
    """
    file = Path(directory) / STATISTICS
    found = getattr(config, "norm_stats", None)
    if file.is_file():
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise PolicyError(f"{checkpoint}: {STATISTICS}: {one_line(error)}") from error
    if not isinstance(found, Mapping) or not found:
        raise PolicyError(
            f"{checkpoint}: neither {STATISTICS} nor norm_stats in config.json: how many action tokens "
            "it generates, and what they stand for, is not known"
        )
    return found


def load_model(checkpoint: str, directory: str, dtype: str | None) -> Any:
    """Load the model with all its weights, on the CPU.

    Raises
    ------
    PolicyError
        If the weights cannot be loaded, or some are missing.
    """
    import torch
    import transformers

    auto: Any = getattr(transformers, "AutoModelForVision2Seq")  # noqa: B009 - gone from 5
    try:
        model, report = auto.from_pretrained(
            directory,
            torch_dtype=getattr(torch, dtype) if dtype else "auto",
            trust_remote_code=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise PolicyError(f"{checkpoint}: weights cannot be loaded ({one_line(error)})") from error
    if "action_head" in inspect.signature(model.predict_action).parameters:
        raise _tuned(checkpoint, "its predict_action takes an action head")
    if not getattr(model, "_hf_peft_config_loaded", False):
        refuse_adapters(checkpoint, Path(directory))
    if missing := sorted(report["missing_keys"]):
        raise PolicyError(
            f"{checkpoint}: {len(missing)} weights are missing from the checkpoint: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    return model
