"""``python -m benchmarks [NAME ...] [--json FILE]``: measure, and say which aims are met."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

# The trained model and Pi0's configuration are on this machine; nothing is fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where it is set, every process that is measured compiles anew what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

NAMES = (
    "writer", "size", "slices", "tables", "maps", "chunks", "rendering", "capture", "sql", "objects", "rollout",
    "service", "viewer", "cnn", "probe", "compare", "flow", "record",
    "scale", "floor",
)  # fmt: skip


def main() -> int:
    import torch

    from .measure import Setting, machine

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--toy", action="store_true", help="tiny sizes; the figures mean nothing")
    parser.add_argument(
        "--dir", type=Path, help="scratch space, 8 GB; default: the temporary directory"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    # CPU time is to be that of work: torch's threads burn it while they wait for each other
    torch.set_num_threads(1)
    about = machine()
    print(json.dumps(about))
    results = {}
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="attnstore-bench-") as scratch:
        setting = Setting(Path(scratch), options.toy)
        for name in options.names or NAMES:
            print(f"\n{name}", flush=True)
            figures = import_module(f"benchmarks.{name}").run(setting)
            results[name] = [f.to_json() for f in figures]
            for f in figures:
                verdict = {
                    None: "",
                    True: f"  (aim {f.aim}: met)",
                    False: f"  (aim {f.aim}: MISSED)",
                }
                print(f"  {f.name:<72} {f.value:>10.3f} {f.unit}{verdict[f.met]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "figures": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
