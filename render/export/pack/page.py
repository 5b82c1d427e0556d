"""One HTML file that holds the viewer and its answers.

A page that is opened from a file may not load modules from files beside it. So the viewer's modules
are ``data:`` URLs in an import map, under the names that they import each other by; ``api.js`` is
another one, which finds the answers in the page. A policy in the page forbids every request.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import orjson

from .answers import Answers
from .questions import Question

OWN_API = Path(__file__).with_name("api.js")
API, MAIN = "api.js", "main.js"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'none'; base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(
    r"""((?:\bfrom|\bimport)\s*)(["'])(\.{1,2}/[^"'\n]+\.js(?:on)?)\2(?:\s*with \{[^}]*\})?"""
)
_STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)">')
_ICON = re.compile(r'<link rel="icon" href="([^"]+)" type="([^"]+)">')
_PRELOAD = re.compile(r'\s*<link rel="modulepreload" href="[^"]+">')
_MAIN = re.compile(rf'<script type="module" src="{re.escape(MAIN)}"></script>')


def write_page(viewer: Path, answers: Answers, store: str, listed: Question) -> Iterator[str]:
    """Yield the pieces of the page.

    Parameters
    ----------
    viewer
        Directory of the viewer.
    store
        Name of the store's directory, beside the page.
    listed
        The question that has all episodes, which the page filters itself.
    """
    page = (viewer / "index.html").read_text()
    page = _STYLE.sub(lambda m: f"<style>{(viewer / m[1]).read_text()}</style>", page)
    page = _ICON.sub(lambda m: f'<link rel="icon" href="{_data(m[2], viewer / m[1])}">', page)
    page = _PRELOAD.sub("", page)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n    {policy}', 1)
    before, _, after = _MAIN.sub("\0", page).partition("\0")
    yield before
    modules = orjson.dumps({"imports": dict(_modules(viewer))}).decode()
    yield f'<script type="importmap">{modules}</script>\n'
    index = {
        "json": answers.json, "arrays": answers.arrays, "blobs": answers.blobs,
        "episodes": listed.key, "store": quote(store),
    }  # fmt: skip
    # Names of episodes are the dataset's own, and must not end the element.
    text = orjson.dumps(index).decode().replace("<", "\\u003c")
    yield f'<script type="application/json" id="pack-index">{text}</script>\n'
    for name, content in answers.chunks.items():
        yield f'<script type="text/plain" id="pack-{name}">{content}</script>\n'
    yield f'<script type="module">import "viewer/{MAIN}";</script>'
    yield after


def licences(viewer: Path) -> str:
    """Texts of the licences of what the page holds from others."""
    files = sorted((viewer / "vendor").glob("LICENSE-*"))
    return "\n".join(f"{f.name.removeprefix('LICENSE-')}\n\n{f.read_text()}" for f in files)


def _modules(viewer: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(viewer.rglob("*.js")):
        place = PurePosixPath(file.relative_to(viewer).as_posix())
        source = (OWN_API if str(place) == API else file).read_text()

        def named(match: re.Match[str], place: PurePosixPath = place) -> str:
            # A data: URL has no folder that a relative name could start from.
            return f'{match[1]}"viewer/{_joined(place.parent, match[3])}"'

        text = _IMPORT.sub(named, source)
        yield f"viewer/{place}", _encoded("text/javascript", text.encode())
    for file in sorted(viewer.rglob("*.json")):
        # As a script: a page that may make no request may not load a module of data either.
        text = f"export default {file.read_text()}"
        yield (
            f"viewer/{file.relative_to(viewer).as_posix()}",
            _encoded("text/javascript", text.encode()),
        )


def _joined(folder: PurePosixPath, relative: str) -> str:
    parts = list(folder.parts)
    for piece in relative.split("/"):
        if piece == "..":
            parts.pop()
        elif piece != ".":
            parts.append(piece)
    return "/".join(parts)


def _data(media_type: str, file: Path) -> str:
    return _encoded(media_type, file.read_bytes())


def _encoded(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
