"""For mkdocstrings: our docstrings say what is returned in a sentence, where its parser expects a type first."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

_SECTION = re.compile(
    r"^(Returns|Yields)\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", re.MULTILINE | re.DOTALL
)


class Returns(griffe.Extension):
    """Puts the annotation in front of the sentence."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite a function's docstring."""
        if func.docstring is None:
            return
        kind = str(func.returns) if func.returns is not None else "value"

        def typed(match: re.Match[str]) -> str:
            body = "\n".join(
                f"    {line}" if line else "" for line in match[2].rstrip().splitlines()
            )
            return f"{match[1]}\n{'-' * len(match[1])}\n{kind}\n{body}\n\n"

        func.docstring.value = _SECTION.sub(typed, inspect.cleandoc(func.docstring.value))
