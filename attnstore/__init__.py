"""attnstore: know where robot policies look, and whether it matters."""

from __future__ import annotations

from pathlib import Path as _Path

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "store" / "paths.py").is_file():
    # Python started in a checkout finds this folder before the installed package, and the
    # packages beside it (store, query, ...) only through here. docs/decisions/001-layout.md
    __path__.append(str(_checkout))

__version__ = "0.1.0"
