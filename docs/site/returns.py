"""For mkdocstrings: what our docstrings say in another order than its parser expects.

What is returned is a sentence, where the parser expects a type first; parameters that share an explanation are listed
on one line, and the parser gives all of them the type of the first.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

_SECTION = re.compile(
    r"^(Parameters|Returns|Yields)\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", re.MULTILINE | re.DOTALL
)
_ENTRY = re.compile(r"^(\S[^\n]*)\n((?:[ \t]+\S[^\n]*\n?|\n)+)", re.MULTILINE)


class Returns(griffe.Extension):
    """Puts the annotation in front of what is returned, and every parameter on a line of its own."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite a function's docstring."""
        if func.docstring is None:
            return
        kind = str(func.returns) if func.returns is not None else "value"

        def apart(entry: re.Match[str]) -> str:
            body = entry[2].rstrip() + "\n"
            return "".join(f"{name.strip()}\n{body}" for name in entry[1].split(","))

        def told(match: re.Match[str]) -> str:
            title, text = match.groups()
            if title == "Parameters":
                text = _ENTRY.sub(apart, text.rstrip() + "\n")
            else:
                lines = (f"    {line}" if line else "" for line in text.rstrip().splitlines())
                text = "\n".join([kind, *lines])
            return f"{title}\n{'-' * len(title)}\n{text.rstrip()}\n\n"

        func.docstring.value = _SECTION.sub(told, inspect.cleandoc(func.docstring.value))
