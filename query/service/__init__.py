"""The query service: stores over HTTP, read-only and safe. Needs the extra ``attnstore[serve]``.

It must not import `attnstore.render`: endpoints that draw are handed to `create_app`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app, document
    from .config import LOOPBACK, Limits, ServiceConfig

__all__ = ["LOOPBACK", "Limits", "ServiceConfig", "create_app", "document"]

_HOMES = {
    "app": ("create_app", "document"),
    "config": ("LOOPBACK", "Limits", "ServiceConfig"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # On first use: the processes that run SQL import this package, and no web framework with it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
