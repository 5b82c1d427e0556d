"""Hooks of mkdocs: what the site has beyond the pages of docs/, and links that lead out of docs/.

Pages of docs/ are read in the repository as well, where `../ARCHITECTURE.md` and `../examples/...` are files.
In the site the first is a page, the second the name of a file of the repository.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OF_THE_REPOSITORY = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PICTURES = ("examples/toy_cube/curve.png",)
NOTEBOOKS = "notebooks"
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the notes of decisions."""
    config.nav = [_listed(entry) for entry in config.nav or ()]
    return config


def _listed(entry: Any) -> Any:
    """Put the notes in place of `decisions/`."""
    if isinstance(entry, dict):
        return {name: _listed(value) for name, value in entry.items()}
    if isinstance(entry, list):
        return [_listed(value) for value in entry]
    if entry == "decisions/":
        return [f"decisions/{p.name}" for p in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    return entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's own pages, and every notebook as a page."""
    for source, target in OF_THE_REPOSITORY.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        # drawn by a library that would be fetched from elsewhere
        text = re.sub(r"^```mermaid\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
        files.append(File.generated(config, target, content=text))
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    for notebook in sorted((ROOT / "docs" / NOTEBOOKS).glob("*.ipynb")):
        name = f"{NOTEBOOKS}/{notebook.stem}.md"
        if (original := files.get_file_from_path(f"{NOTEBOOKS}/{notebook.name}")) is not None:
            files.remove(original)
        text = notebook_page(json.loads(notebook.read_text(encoding="utf-8")))
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to a page of the site, or name the file that they lead to."""
    here = posixpath.dirname(page.file.src_uri)
    of_docs = page.file.src_uri not in OF_THE_REPOSITORY.values()

    def led(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if "://" in target or not path or target.startswith("mailto:"):
            return match.group()
        place = posixpath.normpath(posixpath.join("docs" if of_docs else "", here, path))
        if place in OF_THE_REPOSITORY:
            inside = OF_THE_REPOSITORY[place]
        elif place in PICTURES:
            inside = place
        elif place.startswith("docs/") and not place.endswith("docs/decisions"):
            inside = place.removeprefix("docs/").replace(".ipynb", ".md")
        elif place == "docs/decisions":
            inside = "decisions/001-layout.md"
        elif (ROOT / place).exists():
            return text if place in text.replace("`", "") else f"{text} (`{place}`)"
        else:
            return match.group()  # strict mode says so
        return f"[{text}]({posixpath.relpath(inside, here or '.')}{mark}{anchor})"

    parts = _CODE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(led, part) for part in parts)


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown with what its cells printed and showed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            encoded = "".join(data[kind]).replace("\n", "")
            text = html.escape("".join(data.get("text/plain", "")), quote=True)
            return f'<img alt="{text}" src="data:{kind};base64,{encoded}">'
    if "text/html" in data:
        # a blank line would end the block of HTML
        lines = "".join(data["text/html"]).splitlines()
        return f'<div class="output">{" ".join(line.strip() for line in lines)}</div>'
    if "text/plain" in data:
        return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
    return ""
