"""Make ``render/viewer/service.d.ts``, the viewer's types of the service's answers, from its OpenAPI document.

    make types                                                  (make lint says when it is stale)
    python scripts/viewer_types.py .venv/viewer/node_modules [--check]

The versions of openapi-typescript and prettier are those of ``scripts/viewer/package-lock.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attnstore.query.service import document

TYPES = Path(__file__).parents[1] / "render" / "viewer" / "service.d.ts"
PACKAGE = Path(__file__).parent / "viewer" / "package.json"
HEAD = "// Made by scripts/viewer_types.py from the service's OpenAPI document. Do not edit.\n\n"


def made(modules: Path) -> str:
    """Return the file as it should be."""
    node = Path(sys.executable).with_name("node")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "openapi.json", Path(folder) / "service.d.ts"
        source.write_text(json.dumps(without_titles(document())))
        run = [node, modules / "openapi-typescript" / "bin" / "cli.js", source, "-o", target]
        subprocess.run(run, check=True, capture_output=True, text=True)
        target.write_text(HEAD + target.read_text().partition("*/\n")[2].lstrip())
        prettier = modules / "prettier" / "bin" / "prettier.cjs"
        run = [node, prettier, "--config", PACKAGE, target]
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout


def without_titles(schema: Any) -> Any:
    """Leave out the titles that pydantic makes of names: a comment each, that says the name."""
    if isinstance(schema, list):
        return [without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: without_titles(v) for k, v in schema.items()}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    return kept


if __name__ == "__main__":
    found = made(Path(sys.argv[1]).resolve())
    if "--check" not in sys.argv:
        TYPES.write_text(found)
    elif not TYPES.is_file() or TYPES.read_text() != found:
        sys.exit(f"{TYPES.name} is not what the service's OpenAPI document says: run `make types`")
