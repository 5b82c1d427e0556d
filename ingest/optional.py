"""Import of optional dependencies, with one message for all that are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from attnstore.store.errors import MissingExtraError


def require(module: str, extra: str, needed_for: str) -> ModuleType:
    """Import an optional dependency.

    Parameters
    ----------
    module
        Name to import: ``h5py``.
    extra
        The extra of attnstore that installs it: ``ingest``.
    needed_for
        What the user asked for, as the start of a sentence: ``reading trajectory.h5``.

    Raises
    ------
    MissingExtraError
        If it is not installed; the message names the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # a module that is installed but lacks a dependency of its own is another fault
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{needed_for} needs {module}: pip install 'attnstore[{extra}]'"
        ) from error
