"""Say which modules of attnstore import each other in a circle; run by `make lint` from tests/.

Imports inside functions count, for they say the same of the structure; imports for annotations alone do not.
"""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter

import grimp

graph = grimp.build_graph("attnstore", exclude_type_checking_imports=True, cache_dir=None)
imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
try:
    TopologicalSorter(imports).prepare()
except CycleError as error:
    sys.exit("import circle: " + " <- ".join(error.args[1]))
print(f"no import circle in {len(imports)} modules")
