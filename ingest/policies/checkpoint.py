"""Finding and checking a checkpoint: what every adapter that loads one does alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnstore.store.errors import NotFoundError, UsageError

from ..optional import require
from .base import PolicyError

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of PEFT, in a checkpoint directory."""
DTYPES = ("float32", "bfloat16", "float16")
"""Data types that torch's models are loaded in."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What lies in a checkpoint's directory, for an adapter to recognise it by."""

    names: frozenset[str]
    config: Mapping[str, Any]
    """``config.json``; empty if there is none that can be read."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """What an adapter says of a checkpoint that is one of its own."""

    name: str
    """Policy as `--policy` takes it: ``pi0``."""
    missing: str | None = None
    """What the files do not say and the user has to; None if the name is enough."""


def files_of(directory: Path) -> CheckpointFiles:
    """Look at a checkpoint's directory."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    names = frozenset(path.name for path in directory.iterdir())
    return CheckpointFiles(names, config if isinstance(config, dict) else {})


def locate(checkpoint: str, revision: str | None) -> str:
    """Return a checkpoint's directory: a local one, or the hub's snapshot of an id.

    Raises
    ------
    NotFoundError
        If it is a path and there is no such directory.
    PolicyError
        If the directory is no checkpoint, or the hub cannot give it.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            refuse_adapters(checkpoint, path)
            raise PolicyError(
                f"{checkpoint}: no config.json in it; a checkpoint directory is expected"
            )
        return str(path)
    if path.exists() or checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
        raise NotFoundError(f"{checkpoint}: no such checkpoint directory")
    hub = require("huggingface_hub", "ingest", "loading a checkpoint from the hub")
    try:
        return str(hub.snapshot_download(checkpoint, revision=revision))
    except Exception as error:
        raise PolicyError(
            f"{checkpoint}: neither a directory nor a hub checkpoint that can be fetched "
            f"({one_line(error)})"
        ) from error


def model_type(checkpoint: str, directory: Path) -> str | None:
    """Return ``model_type`` of a checkpoint's config.json.

    Raises
    ------
    PolicyError
        If the file cannot be read.
    """
    try:
        found = json.loads((directory / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise PolicyError(
            f"{checkpoint}: its config.json cannot be read ({one_line(error)})"
        ) from error
    return found if isinstance(found, str) else None


def load_weights(
    policy: str, model_class: str, checkpoint: str, directory: str, dtype: str | None
) -> Any:
    """Load a model of transformers with all its weights, on the CPU.

    Parameters
    ----------
    policy
        Adapter that asks, for the message where a library is missing.
    model_class
        Name of a class of transformers.
    checkpoint, directory
        As the user named it, and where it lies.
    dtype
        Data type; the checkpoint's if None.

    Raises
    ------
    PolicyError
        If the weights cannot be loaded, or some are missing.
    """
    torch = require("torch", "ingest", f"policy {policy}")
    transformers = require("transformers", "ingest", f"policy {policy}")
    try:
        model, report = getattr(transformers, model_class).from_pretrained(
            directory, dtype=getattr(torch, dtype) if dtype else "auto", output_loading_info=True
        )
    except Exception as error:
        raise PolicyError(f"{checkpoint}: weights cannot be loaded ({one_line(error)})") from error
    if not getattr(model, "_hf_peft_config_loaded", False):
        refuse_adapters(checkpoint, Path(directory))
    if missing := sorted(report["missing_keys"]):
        # transformers fills them with random numbers and only warns.
        raise PolicyError(
            f"{checkpoint}: {len(missing)} weights are missing from the checkpoint: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    return model


def refuse_adapters(checkpoint: str, directory: Path) -> None:
    """Refuse a checkpoint with LoRA adapters that were not loaded: it would act as its base model.

    Raises
    ------
    PolicyError
        If there are any.
    """
    found = next((f for f in ADAPTERS if (directory / f).is_file()), None)
    if found is not None:
        raise PolicyError(
            f"{checkpoint}: {found} in it: a fine-tuning by adapters (PEFT, LoRA), and they were not "
            "loaded, so this would be the base model; save the model after merge_and_unload() and "
            "name that directory"
        )


def check_options(policy: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse an option that the policy does not have.

    Raises
    ------
    UsageError
        If there is one.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{policy} has the options {', '.join(known)}; got {unknown[0]!r}")


def check_variant(policy: str, variant: str | None, known: Iterable[str] = ()) -> None:
    """Refuse a variant (``adapter:variant``) that the policy does not have.

    Raises
    ------
    UsageError
        If it is none of them.
    """
    known = tuple(known)
    if variant is not None and variant not in known:
        has = (
            f"{policy}'s variants are {', '.join(known)}" if known else f"{policy} has no variants"
        )
        raise UsageError(f"{has}; got {variant!r}")


def check_dtype(policy: str, dtype: str | None, known: Sequence[str] = DTYPES) -> None:
    """Refuse a data type that the policy does not compute in; None is the checkpoint's own.

    Raises
    ------
    UsageError
        If it is none of them.
    """
    if dtype is not None and dtype not in known:
        if len(known) == 1:
            raise UsageError(f"{policy} computes in {known[0]}; got dtype {dtype!r}")
        raise UsageError(f"dtype is one of {', '.join(known)}; got {dtype!r}")


def counted(options: Mapping[str, str], name: str, what: str) -> int | None:
    """Return an option that counts something, as ``steps`` does denoising steps; None if not given.

    Raises
    ------
    UsageError
        If it is no whole number, or 0.
    """
    if (text := options.get(name)) is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{name} is a whole number of {what}, at least 1; got {text!r}")
    return int(text)


def directory_name(checkpoint: str) -> str:
    """Return what a run calls a checkpoint: a directory's name, or the hub id."""
    return Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint


def unwrap(module: Any) -> Any:
    """Return the module inside `torch.compile`'s wrapper."""
    return getattr(module, "_orig_mod", module)


def one_line(error: BaseException) -> str:
    """Return an error's type and message, on one line and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}" if text else type(error).__name__
