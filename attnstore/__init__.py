"""attnstore: know where robot policies look, and whether it matters.

`open` opens a store. It is a `Store`, with `Store.sql`, and `Store.episodes`, a mapping from names to
`Episode`: their attention, maps and statistics are xarray's labelled arrays. `compare` says which heads
differ between groups of episodes. `record` records a policy while it drives. `errors` has everything that
is raised on purpose.

>>> import attnstore
>>> attnstore.open("no-such.attn")
Traceback (most recent call last):
attnstore.store.errors.NotFoundError: no-such.attn is not an attnstore store: no such directory
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "store" / "opening.py").is_file():
    # Python started in a checkout finds this folder before the installed package, and the
    # packages beside it (store, query, ...) only through here. docs/decisions/001-layout.md
    __path__.append(str(_checkout))

from attnstore import errors  # noqa: E402  needs the path above

if TYPE_CHECKING:
    from attnstore.ingest.recording import record
    from attnstore.query import Episode, Store, open
    from attnstore.query.groups.comparison import compare

__version__ = "0.1.0"

__all__ = ["Episode", "Store", "compare", "errors", "open", "record"]

_HOMES = {
    "Episode": "attnstore.query",
    "Store": "attnstore.query",
    "compare": "attnstore.query.groups.comparison",
    "open": "attnstore.query",
    "record": "attnstore.ingest.recording",
}


def __getattr__(name: str) -> object:
    # On first use: xarray and zarr take a second to import, which `attnstore --help` need not pay.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
