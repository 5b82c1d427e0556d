"""Loading an OpenVLA-OFT checkpoint: the model, and what is saved beside it: head, projectors, FiLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import UsageError

from ....optional import require
from ...base import PolicyError
from ...checkpoint import one_line, refuse_adapters
from ..loading import oft_parts
from .robot import Robot
from .sources import Sources

if TYPE_CHECKING:
    import torch

LORA = "lora_adapter"
_LORA_A = ".lora_A.default.weight"
TRAINED_STEPS = 50
"""Denoising steps in training and in evaluation, unless OpenVLA-OFT's scripts are told otherwise."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules that ``predict_action`` takes beside the model's own."""

    head: torch.nn.Module | None = field(default=None, repr=False)
    """None: actions are tokens, one argmax each."""
    state: torch.nn.Module | None = field(default=None, repr=False)
    """Makes a token of the robot's state."""
    noisy: torch.nn.Module | None = field(default=None, repr=False)
    """Makes tokens of noisy actions; there with a diffusion head, and only with it."""
    film: bool = False
    """The encoder gets the prompt's mean embedding."""


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Their files, and what the shapes of the weights say."""

    head: Path | None
    state: Path | None
    noisy: Path | None
    film: Path | None
    action_dof: int | None
    state_dof: int | None

    @property
    def diffusion(self) -> bool:
        """Whether actions are denoised."""
        return self.noisy is not None


def find_parts(checkpoint: str, directory: str) -> PartFiles:
    """Find the parts in a checkpoint's directory; their weights are not read.

    Raises
    ------
    PolicyError
        If there are several of one kind, or a file cannot be read, or they contradict each other.
    """
    found = oft_parts(path.name for path in Path(directory).iterdir())
    for part, names in found.items():
        if len(names) > 1:
            raise PolicyError(
                f"{checkpoint}: {len(names)} files of {part}: {', '.join(names)}; leave one, of the "
                "step that the model is of"
            )
    head, state, noisy, film = (
        Path(directory) / found[part][0] if part in found else None
        for part in (
            "action_head",
            "proprio_projector",
            "noisy_action_projector",
            "vision_backbone",
        )
    )
    shapes = {} if head is None else _weights(checkpoint, head)
    denoises = any(name.startswith("noise_predictor.") for name in shapes)
    if denoises != (noisy is not None):
        raise PolicyError(
            f"{checkpoint}: its action head {'predicts noise' if denoises else 'predicts actions'}, and "
            f"there is {'no' if noisy is None else 'a'} noisy_action_projector: one of them is of another "
            "training"
        )
    action_dof = next((len(w) for n, w in shapes.items() if n.endswith("fc2.weight")), None)
    if head is not None and action_dof is None:
        raise PolicyError(f"{checkpoint}: {head.name} has no fc2.weight: not a head of OpenVLA-OFT")
    state_dof = None
    if state is not None:
        entering = _weights(checkpoint, state).get("fc1.weight")
        if entering is None:
            raise PolicyError(f"{checkpoint}: {state.name} has no fc1.weight")
        state_dof = int(entering.shape[1])
    return PartFiles(head, state, noisy, film, action_dof, state_dof)


def check_sizes(checkpoint: str, files: PartFiles, robot: Robot) -> None:
    """Check that the constants are those of the checkpoint's training, as far as weights can tell.

    Raises
    ------
    UsageError
        If not.
    """
    for what, own, constant in (
        ("an action has", files.action_dof, robot.action_dof),
        ("a state has", files.state_dof, robot.state_dof),
    ):
        if own not in (None, constant):
            raise UsageError(
                f"{checkpoint}: {what} {own} numbers in its weights, and {constant} in the constants of "
                "OpenVLA-OFT's checkout: name another with --policy-option platform=NAME, or set them as "
                "for the training (prismatic/vla/constants.py)"
            )


def refuse_unmerged(checkpoint: str, directory: Path) -> None:
    """Refuse a directory with LoRA weights and no model.

    Raises
    ------
    PolicyError
        If it is one.
    """
    if (directory / LORA).is_dir() and not (directory / "config.json").is_file():
        raise PolicyError(f"{checkpoint}: {UNMERGED}")


UNMERGED = (
    "its LoRA weights are not merged into a model yet; OpenVLA-OFT's "
    "vla-scripts/merge_lora_weights_and_save.py does it"
)


def read_processor(sources: Sources, directory: str) -> tuple[Any, Any]:
    """Read configuration and processor, by OpenVLA-OFT's own classes."""
    import transformers

    tokenizers: Any = transformers.AutoTokenizer
    config = sources.modeling.OpenVLAForActionPrediction.config_class.from_pretrained(directory)
    processor = sources.processing.PrismaticProcessor(
        sources.processing.PrismaticImageProcessor.from_pretrained(directory),
        tokenizers.from_pretrained(directory),
    )
    return config, processor


def load_model(sources: Sources, checkpoint: str, directory: str, dtype: str | None) -> Any:
    """Load the model with all its weights, on the CPU, with the fork's attention.

    Raises
    ------
    PolicyError
        If the weights cannot be loaded, or some are missing.
    """
    import torch

    try:
        model, report = sources.modeling.OpenVLAForActionPrediction.from_pretrained(
            directory,
            torch_dtype=getattr(torch, dtype) if dtype else "auto",
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:
        raise PolicyError(f"{checkpoint}: weights cannot be loaded ({one_line(error)})") from error
    refuse_adapters(checkpoint, Path(directory))
    if missing := sorted(report["missing_keys"]):
        raise PolicyError(
            f"{checkpoint}: {len(missing)} weights are missing from the checkpoint: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    return model


def load_parts(
    checkpoint: str, files: PartFiles, sources: Sources, width: int, steps: tuple[int, int]
) -> Parts:
    """Build the parts and load their weights, on the CPU.

    Parameters
    ----------
    width
        Of the language model's hidden states.
    steps
        Denoising steps of the training, and of a prediction.

    Raises
    ------
    PolicyError
        If weights do not fit.
    """
    heads, robot = sources.heads, sources.robot
    sizes = {"input_dim": width, "hidden_dim": width, "action_dim": robot.action_dof}

    def diffusion() -> Any:
        head = heads.DiffusionActionHead(**sizes, num_diffusion_steps_train=steps[0])
        head.noise_scheduler.set_timesteps(steps[1])
        return head

    regression = lambda: heads.L1RegressionActionHead(**sizes)  # noqa: E731
    state = lambda: sources.projectors.ProprioProjector(width, robot.state_dof)  # noqa: E731
    noisy = lambda: sources.projectors.NoisyActionProjector(width)  # noqa: E731
    return Parts(
        _loaded(checkpoint, files.head, diffusion if files.diffusion else regression),
        _loaded(checkpoint, files.state, state),
        _loaded(checkpoint, files.noisy, noisy),
        files.film is not None,
    )


def load_film(checkpoint: str, file: Path, model: Any, sources: Sources) -> None:
    """Give a model the encoder with FiLM that was saved whole, LoRA weights included.

    OpenVLA-OFT wraps all of the model in LoRA for that. Outside the encoder such weights are zero, so here
    the encoder alone is wrapped, by the rank that the file has.

    Raises
    ------
    PolicyError
        If the weights do not fit.
    """
    import torch

    weights = _weights(checkpoint, file)
    lora = {n.removesuffix(_LORA_A): len(w) for n, w in weights.items() if n.endswith(_LORA_A)}
    if len(set(lora.values())) > 1:
        raise PolicyError(
            f"{checkpoint}: {file.name} has LoRA weights of ranks {sorted(set(lora.values()))}"
        )
    with torch.random.fork_rng(devices=[]):
        if lora:
            rank = next(iter(lora.values()))
            peft = require("peft", "openvla-oft", "an OpenVLA-OFT checkpoint with FiLM")
            # Blocks are wrapped once more afterwards.
            wrapped = [re.sub(r"(\.blocks\.\d+)\.block\.", r"\1.", name) for name in lora]
            settings = peft.LoraConfig(r=rank, lora_alpha=min(rank, 16), target_modules=wrapped)
            peft.get_peft_model(model, settings)
        encoder = sources.film.FiLMedPrismaticVisionBackbone(
            vision_backbone=model.vision_backbone, llm_dim=model.llm_dim
        )
    _load(checkpoint, file, encoder, weights)
    model.vision_backbone = encoder.to(model.dtype)


def _loaded(checkpoint: str, file: Path | None, build: Callable[[], Any]) -> Any:
    import torch

    if file is None:
        return None
    with torch.random.fork_rng(devices=[]):
        module = build()
    _load(checkpoint, file, module, _weights(checkpoint, file))
    return module


def _load(checkpoint: str, file: Path, module: Any, weights: Mapping[str, Any]) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise PolicyError(f"{checkpoint}: {file.name} does not fit ({one_line(error)})") from error


def _weights(checkpoint: str, file: Path) -> dict[str, Any]:
    """Weights by name, not read yet; of a training on several devices without its prefix."""
    import torch

    try:
        found = torch.load(str(file), weights_only=True, map_location="cpu", mmap=True)
        return {str(name).removeprefix("module."): weight for name, weight in found.items()}
    except Exception as error:
        raise PolicyError(
            f"{checkpoint}: {file.name} cannot be read ({one_line(error)})"
        ) from error
