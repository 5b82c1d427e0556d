"""openpi's package, its named configurations, and its checkpoint directories."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from attnstore.store.errors import MissingExtraError, NotFoundError, UsageError

from ...optional import require
from ..base import PolicyError
from ..checkpoint import locate, one_line
from ..fingerprint import digest_directory
from .robot import Key, flatten

WEIGHTS = "model.safetensors"
FAST = "FASTTokenizer"
"""openpi's class that makes text of actions, and actions of text."""
INSTALL = (
    "policy openpi needs openpi, which is installed from its repository: git clone "
    "https://github.com/Physical-Intelligence/openpi && cd openpi && GIT_LFS_SKIP_SMUDGE=1 uv sync "
    "&& uv pip install 'attnstore[openpi]', and its patch of transformers (docs/how-to/openpi.md)"
)
_PATCH = (
    "openpi's PyTorch models need transformers 4.53.2 with openpi's patches: in the openpi "
    "checkout run uv pip install transformers==4.53.2 && cp -r --remove-destination "
    "src/openpi/models_pytorch/transformers_replace/* .venv/lib/python3.11/site-packages/"
    "transformers/ (docs/how-to/openpi.md)"
)
_FETCHING = ("gcsfs", "fsspec", "aiohttp", "asyncio")
"""Loggers of what fetches the tokenizer; gcsfs logs a traceback before it raises."""


def openpi(module: str) -> Any:
    """Import a module of openpi: ``training.config``.

    Raises
    ------
    MissingExtraError
        If openpi is not installed; the message says how to.
    PolicyError
        If something that openpi needs is not.
    """
    try:
        return import_module(f"openpi.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "openpi":
            raise MissingExtraError(INSTALL) from error
        raise PolicyError(
            f"openpi is installed, but {error.name} that it needs is not: run "
            "GIT_LFS_SKIP_SMUDGE=1 uv sync in the openpi checkout"
        ) from error


def check_patched() -> None:
    """Check that transformers is the release that openpi patches, and patched.

    Raises
    ------
    PolicyError
        If it is not; the message has the command.
    """
    try:
        check = import_module("transformers.models.siglip.check")
    except ImportError:
        raise PolicyError(_PATCH) from None
    if not check.check_whether_transformers_replace_is_installed_correctly():
        raise PolicyError(_PATCH)


def train_config(name: str | None, *, in_jax: bool = False) -> Any:
    """Return openpi's configuration of a name, uncompiled.

    Parameters
    ----------
    in_jax
        Of a model that runs in JAX, which may be a Pi0-FAST.

    Raises
    ------
    UsageError
        If there is none, or it is not of a Pi0, Pi0.5 or Pi0-FAST, or this one writes other tokens than FAST's.
    """
    configs = openpi("training.config")
    names = sorted(configs._CONFIGS_DICT)
    if name is None:
        raise UsageError(
            "openpi needs the name of its configuration: --policy openpi:pi05_droid; "
            f"there are {', '.join(names)}"
        )
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise UsageError(f"openpi has no configuration {name!r}; did you mean {', '.join(near)}?")
    config = configs.get_config(name)
    kind = type(config.model).__name__
    if in_jax and writes_actions(config.model):
        if (own := getattr(config.model.fast_model_tokenizer, "__name__", FAST)) != FAST:
            raise UsageError(
                f"{name} writes its actions by {own}; policy openpi-jax knows {FAST}'s tokens alone"
            )
    elif not hasattr(config.model, "pi05"):
        raise UsageError(
            f"openpi's PyTorch port runs Pi0 and Pi0.5; {name} is a {kind}: run its JAX checkpoint with "
            f"--policy openpi-jax:{name}"
        )
    if getattr(config.model, "pytorch_compile_mode", None) is not None:
        # Compiling takes minutes, and captured calls run uncompiled anyway.
        config = replace(config, model=replace(config.model, pytorch_compile_mode=None))
    return config


def writes_actions(model: Any) -> bool:
    """Whether a model's configuration is Pi0-FAST's, which writes its actions as text."""
    return hasattr(model, "fast_model_tokenizer")


class OpenpiCheckpoint:
    """A directory with a converted checkpoint, and the configuration it is of.

    Parameters
    ----------
    checkpoint
        Local directory or hub id.
    variant
        Name of openpi's configuration: ``pi05_droid``.
    revision
        Hub revision.

    Raises
    ------
    UsageError
        If there is no such configuration.
    MissingExtraError
        If openpi is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the directory holds no converted checkpoint of this configuration.
    """

    def __init__(self, checkpoint: str, variant: str | None, revision: str | None = None) -> None:
        self.config = train_config(variant)
        self.name = str(variant)
        path = Path(checkpoint).expanduser()
        self.directory = path if path.is_dir() else Path(_fetched(checkpoint, revision, self.name))
        self._check_weights()
        self._check_config()
        self._check_adapters()
        check_patched()

    def transforms(self) -> tuple[Any, ...]:
        """Return openpi's own input transforms, in the order of ``create_trained_policy``.

        They are made without the weights; `policy` checks that they are those it got.

        Raises
        ------
        PolicyError
            If openpi cannot make them: no norm stats, no tokenizer.
        """
        library, data = openpi("transforms"), self._data
        self._check_norm_stats(data.asset_id)
        try:
            stats = openpi("training.checkpoints").load_norm_stats(
                self.directory / "assets", data.asset_id
            )
            normalize = library.Normalize(stats, use_quantiles=data.use_quantile_norm)
        except Exception as error:
            raise PolicyError(
                f"{self.directory}: its norm stats cannot be used ({one_line(error)})"
            ) from error
        return (
            library.InjectDefaultPrompt(None),
            *data.data_transforms.inputs,
            normalize,
            *data.model_transforms.inputs,
        )

    def columns(self) -> dict[Key, str]:
        """Return the dataset's column by key of an observation, as the configuration repacks it."""
        group = getattr(self._data, "repack_transforms", None)
        found: dict[Key, str] = {}
        for transform in getattr(group, "inputs", ()):
            found |= flatten(getattr(transform, "structure", {}))
        return found

    @cached_property
    def _data(self) -> Any:
        try:
            with _unlogged(*_FETCHING):
                return self.config.data.create(self.config.assets_dirs, self.config.model)
        except Exception as error:
            # The tokenizer is fetched here; fsspec, gcsfs and aiohttp all raise their own errors.
            writes = writes_actions(self.config.model)
            and_fast = ", and physical-intelligence/fast into the hub's cache" if writes else ""
            raise PolicyError(
                f"openpi cannot make the transforms of {self.name} ({one_line(error)}); without a "
                f"network, put paligemma_tokenizer.model into $OPENPI_DATA_HOME/big_vision/{and_fast}"
            ) from error

    def policy(
        self,
        device: str,
        transforms: Sequence[Any],
        sampling: Mapping[str, Any],
        *,
        compiled: bool = False,
    ) -> Any:
        """Return openpi's ``create_trained_policy``, weights loaded.

        Parameters
        ----------
        sampling
            Arguments of every ``sample_actions``.
        compiled
            Compile as the configuration says; else not at all.

        Raises
        ------
        PolicyError
            If the weights cannot be loaded, or openpi's transforms are not `transforms`.
        """
        config = openpi("training.config").get_config(self.name) if compiled else self.config
        try:
            policy = openpi("policies.policy_config").create_trained_policy(
                config, self.directory, pytorch_device=device, sample_kwargs=dict(sampling)
            )
        except Exception as error:
            raise PolicyError(
                f"{self.directory}: openpi cannot load it as {self.name} ({one_line(error)}); is "
                "it a checkpoint of this configuration?"
            ) from error
        ours = [type(transform).__name__ for transform in transforms]
        theirs = [type(transform).__name__ for transform in policy._input_transform.transforms]
        if ours != theirs:
            raise PolicyError(
                f"this openpi prepares observations by {theirs}, attnstore expects {ours}"
            )
        return policy

    def digest(self) -> str:
        """SHA-256 of the weights, the norm stats and the model's configuration."""
        digest = hashlib.sha256(repr(self.config.model).encode())
        with (self.directory / WEIGHTS).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
        digest.update(digest_directory(self.directory / "assets").encode())
        return digest.hexdigest()

    def _check_weights(self) -> None:
        if (self.directory / WEIGHTS).is_file():
            return
        if (self.directory / "params").is_dir():
            converted = f"{str(self.directory).rstrip('/')}_pytorch"
            raise PolicyError(
                f"{self.directory}: a JAX checkpoint (params/ but no {WEIGHTS}); run it as it is with "
                f"--policy openpi-jax:{self.name}, or, for what that does not show, convert it in the "
                "openpi checkout: uv run examples/convert_jax_model_to_pytorch.py --checkpoint_dir "
                f"{self.directory} --config_name {self.name} --output_path {converted} && "
                f"cp -r {self.directory}/assets {converted}/"
            )
        raise PolicyError(
            f"{self.directory}: no {WEIGHTS} in it; a directory written by openpi's "
            "convert_jax_model_to_pytorch.py or train_pytorch.py is expected"
        )

    def _check_config(self) -> None:
        # The conversion writes these "for reference"; train_pytorch.py writes none.
        try:
            found = json.loads((self.directory / "config.json").read_bytes())
        except (OSError, ValueError):
            return
        names = ("action_dim", "action_horizon", "paligemma_variant", "action_expert_variant")
        for name in names if isinstance(found, dict) else ():
            wanted = getattr(self.config.model, name)
            if name in found and found[name] != wanted:
                raise PolicyError(
                    f"{self.directory}: its config.json has {name} {found[name]!r}, configuration "
                    f"{self.name} has {wanted!r}; name the configuration it was trained with"
                )

    def _check_adapters(self) -> None:
        # The conversion takes the base weights and drops the adapters, without a word. What
        # train_pytorch.py wrote (it leaves metadata.pt) is whole: its models have no adapters.
        model = self.config.model
        variants = (model.paligemma_variant, model.action_expert_variant)
        lora = [v for v in variants if "lora" in v.lower()]
        if not lora or (self.directory / "metadata.pt").is_file():
            return
        safetensors = require("safetensors", "ingest", "loading a checkpoint")
        try:
            with safetensors.safe_open(str(self.directory / WEIGHTS), framework="np") as stored:
                if any("lora" in key.lower() for key in stored.keys()):  # noqa: SIM118
                    return
        except (OSError, safetensors.SafetensorError) as error:
            raise PolicyError(
                f"{self.directory}: {WEIGHTS} cannot be read ({one_line(error)})"
            ) from error
        raise PolicyError(
            f"{self.directory}: configuration {self.name} is fine-tuned by LoRA ({', '.join(lora)}), "
            f"and {WEIGHTS} has no LoRA weights: openpi's conversion drops them, so this is the base "
            "model. Merge the adapters into the JAX weights, convert those with the configuration "
            "of the plain variants, and name that one"
        )

    def _check_norm_stats(self, asset: str | None) -> None:
        if asset is None:
            raise PolicyError(
                f"configuration {self.name} has no asset id, so there are no norm stats to "
                "normalise the robot state with; use one of a trained policy"
            )
        assets = self.directory / "assets"
        if (assets / asset / "norm_stats.json").is_file():
            return
        others = sorted(
            p.parent.relative_to(assets).as_posix() for p in assets.rglob("norm_stats.json")
        )
        there = f"there are those of {', '.join(others)}" if others else "there are none"
        raise PolicyError(
            f"{self.directory}: norm stats assets/{asset}/norm_stats.json are missing, {there}; "
            "openpi's conversion does not copy them: "
            f"cp -r JAX_CHECKPOINT/assets {self.directory}/"
        )


class OpenpiJaxCheckpoint(OpenpiCheckpoint):
    """A directory with a checkpoint as openpi's JAX training and releases have it: ``params``.

    Parameters
    ----------
    dtype
        In which the model computes; the weights are restored in bfloat16, as openpi does.
    """

    def __init__(
        self, checkpoint: str, variant: str | None, revision: str | None = None, *, dtype: str
    ) -> None:
        if revision is not None:
            raise UsageError("openpi-jax is loaded from a directory, which has no revisions")
        config = train_config(variant, in_jax=True)
        self.config = replace(config, model=replace(config.model, dtype=dtype))
        self.name = str(variant)
        self.directory = _local(checkpoint)
        if not (self.directory / "params").is_dir():
            raise PolicyError(
                f"{self.directory}: no params/ in it, so it is no JAX checkpoint of openpi's; a "
                "converted one is for --policy openpi:CONFIG"
            )
        if (self.directory / WEIGHTS).exists():
            raise PolicyError(
                f"{self.directory}: {WEIGHTS} beside params/, and openpi would run the former in PyTorch: "
                f"pass --policy openpi:{self.name}, or keep them apart"
            )

    def digest(self) -> str:
        """SHA-256 of the weights, the norm stats and the model's configuration."""
        digest = hashlib.sha256(repr(self.config.model).encode())
        for part in ("params", "assets"):
            digest.update(digest_directory(self.directory / part).encode())
        return digest.hexdigest()


def describe_norm_stats(transforms: Sequence[Any]) -> str:
    """Write the norm stats among input transforms as JSON, for a digest."""
    names = ("mean", "std", "q01", "q99")
    found = [t.norm_stats for t in transforms if getattr(t, "norm_stats", None) is not None]
    values = [
        {key: {n: np.asarray(getattr(s, n, None)).tolist() for n in names} for key, s in f.items()}
        for f in found
    ]
    return json.dumps(values, sort_keys=True)


@contextmanager
def _unlogged(*names: str) -> Iterator[None]:
    """Let libraries log nothing: what they raise is said once, by us."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fetched(checkpoint: str, revision: str | None, name: str) -> str:
    if checkpoint.startswith("gs://"):
        raise UsageError(
            f"{checkpoint} is a JAX checkpoint: download it in the openpi checkout with uv run "
            f'python -c "from openpi.shared import download; '
            f"print(download.maybe_download('{checkpoint}'))\", and run it with --policy "
            f"openpi-jax:{name}, or convert it (docs/how-to/openpi.md)"
        )
    return locate(checkpoint, revision)


def _local(checkpoint: str) -> Path:
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    raise NotFoundError(
        f"no directory {checkpoint}; openpi's download.maybe_download brings one (docs/how-to/openpi.md)"
    )
