"""Loading an Octo checkpoint with the octo package, without TensorFlow.

Octo imports TensorFlow and dlimp at the top of modules of which an inference needs nothing but
file access. Where they are not installed, stand-ins take their place while octo is imported, and
are gone from `sys.modules` afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import MissingExtraError, NotFoundError, UsageError

from ...optional import require
from ..base import PolicyError
from ..checkpoint import one_line

REPOSITORY = "git+https://github.com/octo-models/octo"
FILES = ("config.json", "example_batch.msgpack", "dataset_statistics.json")


def load_octo(checkpoint: str, directory: Path) -> Any:
    """Load an ``OctoModel`` from a local checkpoint directory.

    Raises
    ------
    MissingExtraError
        If octo, or what it needs, is not installed.
    PolicyError
        If the checkpoint cannot be read.
    """
    model_class = _octo_model()
    try:
        return model_class.load_pretrained(str(directory))
    except Exception as error:
        # orbax, flax, json and transformers raise what they like; to the user it is one thing.
        raise PolicyError(
            f"{checkpoint}: not a readable Octo checkpoint ({one_line(error)})"
        ) from error


def check_directory(checkpoint: str) -> Path:
    """Return a checkpoint's directory, with everything in it that an Octo checkpoint has.

    Raises
    ------
    NotFoundError
        If there is no such directory.
    PolicyError
        If it is not an Octo checkpoint.
    """
    directory = Path(checkpoint).expanduser()
    if not directory.is_dir():
        raise NotFoundError(f"{checkpoint}: no such checkpoint directory")
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise PolicyError(
            f"{checkpoint}: no {', '.join(missing)} in it; an Octo checkpoint directory is expected"
        )
    if not any(d.is_dir() and d.name.isdecimal() for d in directory.iterdir()):
        raise PolicyError(f"{checkpoint}: no numbered directory of weights in it, such as 270000")
    try:
        config = json.loads((directory / "config.json").read_bytes())
        config["model"]["observation_tokenizers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(
            f"{checkpoint}: its config.json is not an Octo model's ({one_line(error)})"
        ) from error
    return directory


def jax_device(device: str) -> Any:
    """Return jax's device for ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    UsageError
        If there is none.
    """
    import jax

    kind, _, index = device.partition(":")
    platform = "gpu" if kind == "cuda" else kind
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError):
        found = ", ".join(str(d) for d in jax.devices())
        raise UsageError(f"jax has no device {device!r}; it has {found}") from None


def digest_parameters(params: Any) -> str:
    """SHA-256 over the names, shapes and bytes of a model's parameters."""
    import jax

    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, value in leaves:
        data: NDArray[Any] = np.asarray(value)
        digest.update(f"{jax.tree_util.keystr(path)}{data.shape}{data.dtype}".encode())
        digest.update(np.ascontiguousarray(data).tobytes())
    return digest.hexdigest()


def _octo_model() -> Any:
    # These look for TensorFlow when they are imported: before there is a stand-in.
    for module in ("jax", "flax", "flax.training.orbax_utils", "orbax.checkpoint", "transformers"):
        require(module, "octo", "policy octo")
    try:
        with _stand_ins():
            return importlib.import_module("octo.model.octo_model").OctoModel
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "octo":
            raise MissingExtraError(
                f"policy octo needs the octo package: pip install --no-deps '{REPOSITORY}'"
            ) from error
        raise MissingExtraError(
            f"the octo package needs {error.name}: pip install 'attnstore[octo]'"
        ) from error


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Stand-ins for TensorFlow and dlimp where they are not installed."""
    made = []
    try:
        for name in ("tensorflow", "dlimp"):
            if name not in sys.modules and importlib.util.find_spec(name) is None:
                sys.modules[name] = _files_only() if name == "tensorflow" else _Anything(name)
                made.append(name)
        yield
    finally:
        for name in made:
            del sys.modules[name]


class _Anything(ModuleType):
    """A module whose every name is a type that nothing is an instance of."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _files_only() -> ModuleType:
    """TensorFlow as far as ``OctoModel.load_pretrained`` and ``save_pretrained`` use it."""
    module = _Anything("tensorflow")
    files: Any = ModuleType("tensorflow.io.gfile")
    files.GFile = open
    files.join = lambda *parts: str(Path(*parts))
    files.exists = lambda path: Path(path).exists()
    access: Any = ModuleType("tensorflow.io")
    access.gfile = files
    module.__dict__["io"] = access
    return module
