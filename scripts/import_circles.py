"""Say which modules of attnstore import each other in a circle, and which neighbours' names differ by one letter.

Run by `make lint` from tests/. Imports inside functions count, for they say the same of the structure; imports for
annotations alone do not.
"""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

import grimp

graph = grimp.build_graph("attnstore", exclude_type_checking_imports=True, cache_dir=None)
imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
try:
    TopologicalSorter(imports).prepare()
except CycleError as error:
    sys.exit("import circle: " + " <- ".join(error.args[1]))


def alike(a: str, b: str) -> bool:
    """Whether one letter more, less or other makes one name of the other."""
    short, long = sorted((a, b), key=len)
    return any(
        long[:i] + long[i + 1 :] in (short, short[:i] + short[i + 1 :]) for i in range(len(long))
    )


rooms: dict[str, list[str]] = {}
for module in sorted(imports):
    room, _, name = module.rpartition(".")
    rooms.setdefault(room, [room.rpartition(".")[2]]).append(name)
for room, names in rooms.items():
    for a, b in combinations(names, 2):
        if a != b and alike(a, b):
            sys.exit(f"names that a reader takes for each other, in {room}: {a} and {b}")
print(f"no import circle in {len(imports)} modules")
