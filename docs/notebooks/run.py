"""Run the notebooks on the demo's store and keep what they show: ``make notebooks``, after ``make demo``.

tests/commands/test_demo.py runs their cells on the store that it made, and compares what they print.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
STORE = HERE.parents[1] / "demo-output" / "demo.attn"


def main(arguments: list[str]) -> str | None:
    """Run every notebook, on the store that is named or `STORE`."""
    store = Path(arguments[0]) if arguments else STORE
    if not store.is_dir():
        return f"{store} is missing: make demo"
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(store, Path(folder) / "demo.attn")
            NotebookClient(
                notebook, timeout=300, resources={"metadata": {"path": folder}}
            ).execute()
        for cell in notebook.cells:
            cell.metadata.clear()  # times of execution differ from run to run
            if cell.cell_type == "code":  # warnings of libraries name folders of this machine
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        notebook.metadata = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        nbformat.write(notebook, path)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
