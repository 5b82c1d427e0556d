"""Copy the viewer's libraries out of npm packages into ``render/viewer/vendor``.

    make lint                             (installs the packages below .venv/viewer)
    python scripts/vendor_viewer.py .venv/viewer/node_modules [--check]

Versions and hashes are those of ``scripts/viewer/package-lock.json``. A file is changed only where a browser could
not load it as it is: names of packages become relative paths, a script becomes a module. With
``--check`` nothing is written: the exit code says whether the copies are these packages'.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "render" / "viewer" / "vendor"
FILES = {
    "preact.js": "preact/dist/preact.mjs",
    "hooks.js": "preact/hooks/dist/hooks.mjs",
    "htm.js": "htm/dist/htm.mjs",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
}
"""Copy to original."""


def copies(modules: Path) -> dict[str, str]:
    """Text of every file of the vendor folder, by name."""
    made = {}
    for name, original in FILES.items():
        text = (modules / original).read_text(encoding="utf-8")
        # a debugger would ask for a file that is not there
        text = re.sub(r"^//# sourceMappingURL=.*\n?", "", text, flags=re.M).rstrip() + "\n"
        text = text.replace('from"preact"', 'from"./preact.js"')
        if "iife" in original:
            text += "export default uPlot;\n"
        package = original.partition("/")[0]
        about = json.loads((modules / package / "package.json").read_text(encoding="utf-8"))
        head = f"/*! {package} {about['version']}, {about['license']}: LICENSE-{package} */\n"
        made[name] = head + text
        made[f"LICENSE-{package}"] = (modules / package / "LICENSE").read_text(encoding="utf-8")
    return made


def main() -> int:
    """Write the copies, or compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("modules", type=Path, help="a node_modules folder")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    made = copies(options.modules)
    if not options.check:
        VENDOR.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            (VENDOR / name).write_text(text, encoding="utf-8")
        return 0
    there = {
        file.name: file.read_text(encoding="utf-8")
        for file in VENDOR.iterdir()
        if not file.name.endswith(".d.ts")
    }
    wrong = sorted(n for n in there.keys() | made.keys() if there.get(n) != made.get(n))
    if wrong:
        sys.stderr.write(f"{VENDOR}: {', '.join(wrong)} not as in the npm packages\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
