"""attnstore: know where robot policies look, and whether it matters.

>>> import attnstore
>>> attnstore.open("no-such.attn")
Traceback (most recent call last):
attnstore.store.errors.NotFoundError: no-such.attn is not an attnstore store: no such directory
"""

from __future__ import annotations

from pathlib import Path as _Path

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "store" / "opening.py").is_file():
    # Python started in a checkout finds this folder before the installed package, and the
    # packages beside it (store, query, ...) only through here. docs/decisions/001-layout.md
    __path__.append(str(_checkout))

from attnstore.query import Episode, Store, open  # noqa: E402  needs the path above

__version__ = "0.1.0"

__all__ = ["Episode", "Store", "open"]
