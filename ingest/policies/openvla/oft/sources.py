"""OpenVLA-OFT's own modules, imported as they are, and only those that predict actions.

Its package ``prismatic`` imports in ``__init__`` what training needs (TensorFlow, dlimp, draccus, wandb).
Nothing of that takes part in a prediction, so packages stand empty while the few modules are imported.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from attnstore.store.errors import MissingExtraError, UsageError

from ...base import PolicyError
from ...checkpoint import one_line
from .robot import BOUNDS, Robot

PACKAGE = "prismatic"
_PACKAGES = ("", ".extern", ".extern.hf", ".models", ".training", ".vla")
_CONSTANTS = f"{PACKAGE}.vla.constants"
_HOW = (
    "it needs a checkout of github.com/moojink/openvla-oft in its environment, pip install 'attnstore[openvla-oft]' "
    "and pip install --no-deps -e CHECKOUT (docs/how-to/openvla.md)"
)


@dataclass(frozen=True, slots=True)
class Sources:
    """The modules."""

    modeling: Any
    processing: Any
    heads: Any
    projectors: Any
    film: Any
    robot: Robot


def import_sources(platform: str) -> Sources:
    """Import OpenVLA-OFT's modules with the constants of a platform.

    Raises
    ------
    MissingExtraError
        If they are not installed, or something that they import is not.
    UsageError
        If this process has imported them for another platform.
    PolicyError
        If they are not as this adapter knows them.
    """
    root = _root()
    with _bare_packages(root):
        constants = _constants(platform)
        names = {
            "modeling": "extern.hf.modeling_prismatic",
            "processing": "extern.hf.processing_prismatic",
            "heads": "models.action_heads",
            "projectors": "models.projectors",
            "film": "models.film_vit_wrapper",
        }
        try:
            found = {own: import_module(f"{PACKAGE}.{name}") for own, name in names.items()}
        except ImportError as error:
            raise MissingExtraError(
                f"policy openvla-oft: its sources in {root} cannot be imported ({one_line(error)}); {_HOW}"
            ) from error
    kind = str(constants.ACTION_PROPRIO_NORMALIZATION_TYPE.value)
    if kind not in BOUNDS:
        raise PolicyError(
            f"{_CONSTANTS} normalises by {kind!r}; known are {', '.join(BOUNDS)}, as predict_action does"
        )
    robot = Robot(
        int(constants.NUM_ACTIONS_CHUNK),
        int(constants.ACTION_DIM),
        int(constants.PROPRIO_DIM),
        BOUNDS[kind],
    )
    return Sources(**found, robot=robot)


def _root() -> Path:
    loaded = sys.modules.get(PACKAGE)
    spec = None if loaded is not None else find_spec(PACKAGE)
    places = getattr(loaded, "__path__", None) or getattr(spec, "submodule_search_locations", None)
    for place in places or ():
        if (Path(place) / "vla" / "constants.py").is_file():
            return Path(place)
    found = f"the {PACKAGE} in {next(iter(places))} is not OpenVLA-OFT's" if places else "not found"
    raise MissingExtraError(f"policy openvla-oft: package {PACKAGE}: {found}; {_HOW}")


@contextmanager
def _bare_packages(root: Path) -> Iterator[None]:
    """Have packages without their ``__init__``, unless they are imported already."""
    added = []
    for ending in _PACKAGES:
        name = PACKAGE + ending
        if name not in sys.modules:
            module = ModuleType(name)
            module.__path__ = [str(root.joinpath(*ending.split(".")[1:]))]
            sys.modules[name] = module
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _constants(platform: str) -> Any:
    """Import the constants, which look for the platform's name in the command line, and print."""
    if _CONSTANTS not in sys.modules:
        before = sys.argv
        sys.argv = [platform]
        try:
            with redirect_stdout(io.StringIO()):
                import_module(_CONSTANTS)
        finally:
            sys.argv = before
    constants = sys.modules[_CONSTANTS]
    known = str(constants.ROBOT_PLATFORM).lower()
    if known != platform:
        raise UsageError(
            f"this process has OpenVLA-OFT's constants of platform {known}, which its modules keep: a "
            f"checkpoint of platform {platform} needs a process of its own"
        )
    return constants
