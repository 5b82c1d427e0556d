"""The documentation's site: builds without a warning, and whoever reads it asks no other server."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from viewer_fixtures import browser  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
)
SHEETS = re.compile(
    r"<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|preconnect))[^>]*href=[\"']?(?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strict: a dead link or anchor, a page that is in no menu, a docstring that is not found is an error."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_page_names_a_file_of_another_server(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 70
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not ELSEWHERE.search(text), page
        assert not SHEETS.search(text), page
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet


def test_reading_and_searching_asks_this_server_alone(address: str, browser: Browser) -> None:  # noqa: F811
    tab = browser.new_page()
    asked: list[str] = []
    failed: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
    tab.on("pageerror", lambda error: failed.append(str(error)))
    for page in ("index.html", "notebooks/first-look.html", "reference/python.html"):
        tab.goto(f"{address}/{page}", wait_until="networkidle")
    assert tab.get_by_role("heading", name="animate").count() == 1, "from the docstrings"
    tab.get_by_role("textbox", name="Search").fill("letterbox")
    tab.locator(".md-search-result__item").first.wait_for(timeout=15_000)
    tab.close()
    assert not failed
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert len(asked) > 10


def test_what_was_shown_is_in_the_pages(site: Path) -> None:
    """Pictures of notebooks, and pages that lie beside docs/ in the repository."""
    first = (site / "notebooks" / "first-look.html").read_text(encoding="utf-8")
    assert first.count("data:image/") >= 4
    for name in ("architecture", "changelog", "contributing", "security"):
        assert (site / f"{name}.html").is_file()
    assert 'href="architecture.html"' in (site / "internals.html").read_text(encoding="utf-8")


def test_parameters_that_share_an_explanation_have_their_own_types(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    shown = page.partition('id="attnstore.Episode.show"')[2].partition('id="attnstore.Episode.')[0]
    entries = {
        name: re.sub(r"<[^>]+>", "", text)
        for name, text in re.findall(r"<b><code>(\w+)</code></b>(.*?)</li>", shown, re.DOTALL)
    }
    assert "float" not in entries["sink_corrected"]
    assert "bool" in entries["sink_corrected"]
    assert "str" in entries["query"]
    assert "As for" in entries["query"]
    assert "Literal" not in entries["query"]
