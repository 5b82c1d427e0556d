"""Loading a LeRobot checkpoint the way LeRobot does, and refusing what it would let pass.

LeRobot's Pi0 and Pi0.5 print a warning and go on with random weights where a checkpoint does not
fit, and its normaliser lets a state through unnormalised where it has no statistics. Both become
errors here.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnstore.store.errors import UsageError

from ...optional import require
from ..base import PolicyError
from ..checkpoint import locate, one_line, refuse_adapters

STATE = "observation.state"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
WEIGHTS = "model.safetensors"
RUNNING = ("action_tokenizer_name", "text_tokenizer_name", "paligemma_tokenizer_name")
"""Settings that name a tokenizer which LeRobot loads with its code."""
PUBLISHED = frozenset(
    {"google/paligemma-3b-pt-224", "lerobot/fast-action-tokenizer", "physical-intelligence/fast"}
)
"""Tokenizers of those who published the policies."""
STEP_FIELDS = ("num_inference_steps", "num_steps", "num_inference_timesteps", "num_denoising_steps")
"""What configurations call their denoising steps."""
DTYPE_FIELDS = ("dtype", "model_dtype")
"""What configurations call the data type of their weights."""
SAMPLED = 16
"""Tensors of a checkpoint that are compared with the loaded policy's."""


@dataclass(frozen=True, slots=True)
class LeRobotCheckpoint:
    """A checkpoint directory with configuration and preprocessor; weights are loaded on demand."""

    checkpoint: str
    """Hub id or directory, as the user named it."""
    directory: Path
    config: Any = field(repr=False)
    """LeRobot's ``PreTrainedConfig``."""
    preprocessor: Any = field(repr=False)
    """LeRobot's pipeline: rename, normalise, tokenise, add the batch dimension."""

    @property
    def type(self) -> str:
        """Policy type: ``pi05``."""
        return str(self.config.type)

    def load(self) -> Any:
        """Load the policy with its weights, in evaluation mode.

        Raises
        ------
        PolicyError
            If it cannot be loaded, or did not take the checkpoint's weights.
        """
        factory = require("lerobot.policies.factory", "lerobot", "policy lerobot")
        try:
            with _said() as said:
                kind = factory.get_policy_class(self.type)
                policy = kind.from_pretrained(str(self.directory), config=self.config, strict=True)
        except Exception as error:
            raise PolicyError(
                f"{self.checkpoint}: weights cannot be loaded ({one_line(error)})"
            ) from error
        for line in said.getvalue().splitlines():
            if "Could not load state dict" in line:
                raise PolicyError(f"{self.checkpoint}: weights cannot be loaded ({line.strip()})")
        check_weights(self.checkpoint, policy, self.directory / WEIGHTS)
        return policy.to(self.config.device).eval()


def policy_type(checkpoint: str, directory: Path) -> str:
    """Read the policy's type from a checkpoint's config.json.

    Raises
    ------
    PolicyError
        If the file cannot be read, or is not LeRobot's.
    """
    try:
        config = json.loads((directory / "config.json").read_bytes())
        found = config.get("type")
    except (OSError, ValueError, AttributeError) as error:
        raise PolicyError(
            f"{checkpoint}: its config.json cannot be read ({one_line(error)})"
        ) from error
    if not isinstance(found, str):
        other = config.get("model_type")
        hint = f"; it is a transformers model of type {other!r}" if other else ""
        raise PolicyError(f"{checkpoint}: its config.json is not LeRobot's, it has no type{hint}")
    return found


def check_trusted(checkpoint: str, directory: Path, given: str | None) -> None:
    """Check that no tokenizer that runs code of its own is a stranger's, or that the user lets it run.

    LeRobot loads FAST's tokenizer, and the text tokenizer beside it, with ``trust_remote_code``, from
    wherever a checkpoint's files say.

    Raises
    ------
    UsageError
        If one is not among `PUBLISHED` and the user does not say that it is trusted.
    """
    if given not in ("true", None):
        raise UsageError(f"trust_remote_code is true or left out; got {given!r}")
    if given is not None:
        return
    named: list[Any] = []
    for file in ("config.json", PREPROCESSOR, POSTPROCESSOR):
        try:
            said = json.loads((directory / file).read_bytes())
        except (OSError, ValueError):
            continue  # LeRobot cannot read it either
        parts = [said, *said.get("steps", [])] if isinstance(said, dict) else []
        for part in parts:
            own = part.get("config", part) if isinstance(part, dict) else {}
            named += [own.get(key) for key in RUNNING] if isinstance(own, dict) else []
    if strange := [name for name in named if name is not None and name not in PUBLISHED]:
        raise UsageError(
            f"{checkpoint}: it names the tokenizer {strange[0]!r}, and LeRobot runs the Python code that lies "
            "there; if you trust it: --policy-option trust_remote_code=true"
        )


def open_checkpoint(
    checkpoint: str,
    *,
    revision: str | None,
    device: str,
    dtype: str | None,
    steps: int | None,
    stats: str | None,
) -> LeRobotCheckpoint:
    """Read a checkpoint's configuration and preprocessor with LeRobot.

    Parameters
    ----------
    dtype
        Data type of the weights where the policy's configuration has one.
    steps
        Denoising steps other than the checkpoint's.
    stats
        ``meta/stats.json`` of the training dataset, in place of the checkpoint's statistics.

    Raises
    ------
    MissingExtraError
        If LeRobot is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If it is no readable LeRobot checkpoint.
    """
    directory = Path(locate(checkpoint, revision))
    refuse_adapters(checkpoint, directory)
    kind = policy_type(checkpoint, directory)
    if not (directory / PREPROCESSOR).is_file():
        raise PolicyError(
            f"{checkpoint}: no {PREPROCESSOR} in it, so observations cannot be prepared as in "
            "training; a checkpoint of an older LeRobot is converted by "
            f"`python -m lerobot.processor.migrate_policy_normalization --pretrained-path "
            f"{checkpoint}`"
        )
    configs = require("lerobot.configs.policies", "lerobot", "policy lerobot")
    factory = require("lerobot.policies.factory", "lerobot", "policy lerobot")
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if stats is not None and kind == "molmoact2":
        raise UsageError(
            f"{checkpoint}: stats=FILE is not for a MolmoAct2, whose statistics say which components (a gripper) "
            "stay as they are; make its processors from the dataset with LeRobot and save them"
        )
    if stats is not None:
        overrides["normalizer_processor"] = {"stats": _read_stats(stats)}
    try:
        with _said():
            factory.get_policy_class(kind)  # registers the type's configuration
            config = configs.PreTrainedConfig.from_pretrained(str(directory))
            config.device = device
            _set(config, checkpoint, "dtype", DTYPE_FIELDS, dtype)
            _set(config, checkpoint, "steps", STEP_FIELDS, steps)
            preprocessor, _ = factory.make_pre_post_processors(
                config, pretrained_path=str(directory), preprocessor_overrides=overrides
            )
            for step in preprocessor.steps:
                # GR00T's own normaliser, which LeRobot gives no statistics of others.
                if stats is not None and hasattr(step, "normalize_min_max"):
                    step.stats = overrides["normalizer_processor"]["stats"]
    except PolicyError:
        raise
    except Exception as error:
        # draccus, huggingface_hub and LeRobot raise what they like for a bad file: the same to us
        raise PolicyError(
            f"{checkpoint}: not a readable LeRobot checkpoint of type {kind!r} ({one_line(error)})"
        ) from error
    return LeRobotCheckpoint(checkpoint, directory, config, preprocessor)


def check_weights(checkpoint: str, policy: Any, file: Path) -> None:
    """Check that a policy has the weights of a file, by some of its tensors.

    Raises
    ------
    PolicyError
        If one differs, or the file cannot be read.
    """
    import torch

    safetensors = require("safetensors", "ingest", "loading a checkpoint")
    state = {key.removeprefix("model."): value for key, value in policy.state_dict().items()}
    try:
        with safetensors.safe_open(str(file), framework="pt") as stored:
            keys = {key.removeprefix("model."): key for key in stored.keys()}  # noqa: SIM118
            shared = sorted(set(keys) & set(state))
            if not shared:
                raise PolicyError(f"{checkpoint}: none of {WEIGHTS}'s tensors is the policy's")
            for name in shared[:: max(1, len(shared) // SAMPLED)]:
                there = stored.get_tensor(keys[name]).to(state[name].dtype)
                if not torch.equal(there, state[name].cpu()):
                    raise PolicyError(
                        f"{checkpoint}: the loaded policy has not the checkpoint's weights: "
                        f"{name} differs; this LeRobot cannot read the checkpoint"
                    )
    except (OSError, safetensors.SafetensorError) as error:
        raise PolicyError(f"{checkpoint}: {WEIGHTS} cannot be read ({one_line(error)})") from error


def check_statistics(checkpoint: str, preprocessor: Any, components: int) -> str | None:
    """Say what is wrong with a preprocessor's normalisation of a state, None if nothing.

    Parameters
    ----------
    components
        Length of the robot state.
    """
    for step in preprocessor.steps:
        if getattr(step, "normalize_min_max", False):
            wrong = _check_extremes(checkpoint, step.stats or {}, components)
            if wrong is not None:
                return wrong
        modes = {
            str(getattr(k, "value", k)): str(getattr(v, "value", v))
            for k, v in (getattr(step, "norm_map", None) or {}).items()
        }
        if modes.get("STATE", "IDENTITY") == "IDENTITY":
            continue
        stats: Mapping[str, Any] = (getattr(step, "stats", None) or {}).get(STATE) or {}
        if not stats:
            return (
                f"{checkpoint}: its preprocessor has no statistics of {STATE} to normalise it "
                f"with ({modes['STATE']}); pass --policy-option stats=FILE with meta/stats.json of "
                "the training dataset"
            )
        for name, values in stats.items():
            size = getattr(values, "size", None)
            known = int(size() if callable(size) else size) if size is not None else len(values)
            if name != "count" and known not in (components,):
                return (
                    f"the robot state has {components} components, the preprocessor's {name} of "
                    f"{STATE} has {known}"
                )
    return None


def _check_extremes(checkpoint: str, known: Mapping[str, Any], components: int) -> str | None:
    """Say what is wrong with the extremes of a state; GR00T passes it unnormalised, or stretches them."""
    own = known.get(STATE) or {}
    if missing := [name for name in ("min", "max") if name not in own]:
        return (
            f"{checkpoint}: its preprocessor has no {missing[0]} of {STATE} to normalise it with; pass "
            "--policy-option stats=FILE with meta/stats.json of the training dataset"
        )
    for name in ("min", "max"):
        if (length := len(own[name])) != components:
            return (
                f"the robot state has {components} components, the preprocessor's {name} of {STATE} has "
                f"{length}"
            )
    return None


def _set(config: Any, checkpoint: str, option: str, fields: tuple[str, ...], value: Any) -> None:
    if value is None:
        return
    known = next((f for f in fields if hasattr(config, f)), None)
    if known is None:
        raise PolicyError(f"{checkpoint}: a policy of type {config.type!r} has no {option} to set")
    setattr(config, known, value)


def _read_stats(file: str) -> dict[str, Any]:
    try:
        stats = json.loads(Path(file).read_text())
        return {str(key): dict(value) for key, value in stats.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PolicyError(
            f"{file}: a LeRobotDataset's meta/stats.json is expected ({one_line(error)})"
        ) from None


@contextlib.contextmanager
def _said() -> Iterator[io.StringIO]:
    """Keep what LeRobot prints off stdout, which is ours."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield said
