"""Writing the pages of one run: the report, and the one on mask fidelity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from attnstore.query.health import health
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.run import sql_errors
from attnstore.query.sql.store import Store
from attnstore.store.rules import Active

from ..picture import image_file
from .causes import interventions, ledger
from .document import Page, Paragraph, Section, Table
from .failure import failure
from .fidelity import Fidelity, fidelity_section, read_fidelity
from .fidelity_page import fidelity_page
from .glossary import glossary
from .hidden import hidden
from .html import html_page
from .looking import heads, looking, sinks
from .markdown import write_markdown
from .objects import objects, temporal
from .outcomes import outcomes
from .provenance import provenance, soundness

Format = Literal["html", "md", "both"]
Progress = Callable[[float, str], None]
"""Called with what is computed next."""
REPORT, FIDELITY = "report", "fidelity"
"""Names of the files, without extension."""


def write_report(
    store: Store,
    chosen: Chosen,
    out: Path,
    *,
    format: Format = "both",
    where: str | None = None,
    check: bool | None = None,
    active: Active = "image",
    progress: Progress = lambda share, what: None,
) -> list[Path]:
    """Write the report of one run's episodes; where fidelity was probed, its page too.

    Parameters
    ----------
    out
        Directory of the files: ``report.html``, ``report.md`` with ``report_figures/``, and the same
        of ``fidelity``.
    where
        The condition that the episodes were chosen by, to be shown.
    check
        Compare every file with its SHA-256; see `attnstore.query.health.health`.
    active
        What makes a head the most active one; see `attnstore.store.rules.Active`.

    Returns
    -------
    The files written.

    Raises
    ------
    UsageError
        If a pulled copy of the store lacks what is read; the message names the pull that brings it.
    """
    # A copy of a store that lacks what a section reads says so when its rows are fetched.
    with sql_errors():
        progress(0.0, "fidelity")
        found = read_fidelity(store, chosen)
        pages = {REPORT: report_page(store, chosen, found, where, check, active, progress)}
        if found:
            progress(0.9, "fidelity, its own page")
            pages[FIDELITY] = fidelity_page(store, chosen, found)
    return [path for name, page in pages.items() for path in write_page(page, out, name, format)]


def report_page(
    store: Store,
    chosen: Chosen,
    found: Sequence[Fidelity],
    where: str | None = None,
    check: bool | None = None,
    active: Active = "image",
    progress: Progress = lambda share, what: None,
) -> Page:
    """Put the report of one run together.

    Parameters
    ----------
    found
        From `read_fidelity`.
    """
    progress(0.1, "health")
    sound = health(store, chosen, check=check)
    makers: dict[str, Callable[[], Section]] = {
        "where each layer looks": lambda: looking(store, chosen),
        "active heads": lambda: heads(store, chosen, active=active),
        "sinks": lambda: sinks(store, chosen),
        "objects": lambda: objects(store, chosen),
        "temporal shift": lambda: temporal(store, chosen),
        "outcomes": lambda: outcomes(store, chosen),
        "failure": lambda: failure(store, chosen),
        "linear probes": lambda: hidden(store, chosen),
        "fidelity": lambda: fidelity_section(found, f"{FIDELITY}.html"),
        "interventions": lambda: interventions(store, chosen),
        "ledger": lambda: ledger(store, chosen),
    }
    sections = [provenance(chosen, sound, where), soundness(sound)]
    for number, (name, make) in enumerate(makers.items()):
        progress(0.2 + 0.7 * number / len(makers), name)
        sections.append(make())
    sections.insert(0, _short(sections))
    config = sound.config
    lead = (
        f"{config.policy} ({config.checkpoint}) on {config.dataset}: {len(chosen.episodes)} episodes, "
        f"{sound.keyframes} keyframes. Where it looks, and whether that matters; read from the store "
        "alone, without the policy."
    )
    return Page("Attention report", lead, tuple(sections), glossary(sections))


def _short(sections: Sequence[Section]) -> Section:
    """Gather what the sections find."""
    rows: list[tuple[str, str]] = []
    for section in sections:
        title = section.title
        for block in section.blocks:
            if isinstance(block, Paragraph) and block.kind == "finding":
                rows.append((title, block.text))
                title = ""
    return Section("short", "In short", (Table("", ("", ""), tuple(rows)),))


def write_page(page: Page, out: Path, name: str, format: Format) -> list[Path]:
    """Write one page as HTML, Markdown or both."""
    written = []
    if format in ("html", "both"):
        written.append(image_file.write_text(out / f"{name}.html", html_page(page)))
    if format in ("md", "both"):
        written += write_markdown(page, out / f"{name}.md")
    return written
