"""``python -m benchmarks.page FILE.json ... > docs/performance.md``: results as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "capture": "Capture",
    "writer": "The writer alone",
    "size": "Time and size of a keyframe",
    "slices": "Slices",
    "rendering": "Rendering",
    "tables": "Tables and maps",
    "maps": "Precision of overview maps",
    "sql": "Queries",
    "service": "Query service",
    "viewer": "Viewer",
    "objects": "Object overlap",
    "rollout": "Attention rollout",
    "cnn": "Filters of convolutional networks",
    "probe": "Probes",
    "chunks": "Chunks and codecs",
}


def page(results: list[dict[str, Any]]) -> str:
    about = results[0]["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in sorted(about["versions"].items()))
    lines = [
        "# Performance",
        "",
        "Measured by `make bench`, or `python -m benchmarks NAME`; seeds are fixed. "
        f"{about['cores']} cores of an {about['processor']}, {about['memory_gb']} GB, no GPU; "
        f"Python {about['python']}, {versions}.",
        "",
        "*Load* is what the machine was doing when a run began. Where it is more than 1, other work "
        "shared the cores: wall times are pessimistic, and CPU times, those of all threads of the "
        "process, are some per cent too long. Aims that were missed are listed as missed.",
    ]
    figures = {name: rows for result in results for name, rows in result["figures"].items()}
    load = {name: result["machine"]["load"] for result in results for name in result["figures"]}
    for name, title in TITLES.items():
        if name not in figures:
            continue
        lines += ["", f"## {title}", "", f"`python -m benchmarks {name}`; load {load[name]}", ""]
        lines += ["| figure | value | against | aim | remark |", "|---|---|---|---|---|"]
        lines += [_row(figure) for figure in figures[name]]
    return "\n".join(lines) + "\n"


def _row(figure: dict[str, Any]) -> str:
    value = figure["value"]
    shown = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    met = {True: "met", False: "**missed**", None: ""}[figure["met"]]
    aim = f"{figure['aim']}: {met}" if figure["aim"] else ""
    cells = (figure["name"], f"{shown} {figure['unit']}", figure["baseline"], aim, figure["note"])
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(page([json.loads(Path(file).read_text()) for file in sys.argv[1:]]))
