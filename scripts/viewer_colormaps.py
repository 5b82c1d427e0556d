"""Write the viewer's colour maps: ``python scripts/viewer_colormaps.py > render/viewer/colour_tables.js``."""

from __future__ import annotations

import base64
import sys

import numpy as np

from attnstore.render.picture.colormap import CODES, table

HEAD = """\
// 256 RGB colours each, from low to high, in base64. Written by scripts/viewer_colormaps.py from
// render/picture/colormap.py, and from ColorBrewer's RdBu, between whose 11 colours it interpolates.

/** @type {Record<string, string>} */
export const ENCODED = {"""
TAIL = "};\n"
BREAK = "\n    "  # as Prettier has it after a longer name
RDBU = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"  # blue to red


def _diverging() -> bytes:
    ends = np.array([list(bytes.fromhex(c)) for c in RDBU.split()], float)
    at = np.linspace(0, len(ends) - 1, 256)
    columns = [np.interp(at, np.arange(len(ends)), ends[:, k]) for k in range(3)]
    return np.rint(np.stack(columns, 1)).astype(np.uint8).tobytes()


def main() -> None:
    """Print the module."""
    tables = {name: table(name).tobytes() for name in CODES} | {"RdBu": _diverging()}
    lines = [
        f'  {name}:{" " if len(name) < 5 else BREAK}"{base64.b64encode(data).decode()}",'
        for name, data in tables.items()
    ]
    sys.stdout.write("\n".join([HEAD, *lines, TAIL]))


if __name__ == "__main__":
    main()
