"""A page as one HTML file: charts and pictures inside, no script, no other host."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby

from ..charts.svg import STYLE as CHART_STYLE
from ..charts.svg import Chart
from .document import Block, Figure, Page, Paragraph, Section, Table, clean, code_parts, spaced

_NUMBER = re.compile(r"[-+−]?[\d.,]+( ?%)?( \(.*\))?|[-–·]|")


def html_page(page: Page) -> str:
    """Write a page as HTML."""
    page.figures()
    title = _escaped(page.title)
    links = "".join(f'<a href="#{s.id}">{_escaped(s.title)}</a>' for s in page.sections)
    if page.glossary:
        links += '<a href="#definitions">Definitions</a>'
    body = [
        f"<header><h1>{title}</h1><p>{_marked(page.lead)}</p><nav>{links}</nav></header><main>",
        *(_section(s, page) for s in page.sections),
        _glossary(page),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{_STYLE}{CHART_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _section(section: Section, page: Page) -> str:
    body = "\n".join(
        _gallery(list(group)) if charts else "\n".join(_block(b, page) for b in group)
        for charts, group in groupby(section.blocks, _is_chart)
    )
    return f'<section id="{section.id}"><h2>{_escaped(section.title)}</h2>\n{body}</section>\n'


def _block(block: Block, page: Page) -> str:
    if isinstance(block, Paragraph):
        return f'<p class="{block.kind}">{_marked(block.text)}</p>'
    if isinstance(block, Figure):
        return _figure(block)
    return _table(block, page)


def _is_chart(block: Block) -> bool:
    return isinstance(block, Figure) and isinstance(block.content, Chart)


def _gallery(blocks: Sequence[Block]) -> str:
    """Set charts that follow each other beside each other."""
    inside = "".join(_figure(b) for b in blocks if isinstance(b, Figure))
    return f'<div class="gallery">{inside}</div>'


def _figure(figure: Figure) -> str:
    caption = _marked(figure.caption)
    if isinstance(figure.content, Chart):
        inside = figure.content.inline.replace(
            "<svg ", f'<svg role="img" aria-label="{_escaped(figure.caption)}" ', 1
        )
        return f'<figure class="drawn">{inside}<figcaption>{caption}</figcaption></figure>'
    data = base64.b64encode(figure.content).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{_escaped(figure.caption)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table, page: Page) -> str:
    right = [all(_NUMBER.fullmatch(row[i]) for row in table.rows) for i in range(len(table.head))]
    cells = [
        f'<th class="number">{_heading(name, page)}</th>'
        if r
        else f"<th>{_heading(name, page)}</th>"
        for name, r in zip(table.head, right, strict=True)
    ]
    rows = [
        "<tr>"
        + "".join(
            f'<td class="number">{_marked(c)}</td>' if r else f"<td>{_marked(c)}</td>"
            for c, r in zip(row, right, strict=True)
        )
        + "</tr>"
        for row in table.rows
    ]
    caption = f"<caption>{_marked(table.title)}</caption>" if table.title else ""
    said = f'<p class="note">{_marked(table.note)}</p>' if table.note else ""
    head = f"<thead><tr>{''.join(cells)}</tr></thead>" if any(table.head) else ""
    return f'<div class="wide"><table>{caption}{head}<tbody>{"".join(rows)}</tbody></table></div>{said}'


def _heading(name: str, page: Page) -> str:
    if name in page.glossary:
        return f'<a href="#{anchor(name)}">{_escaped(name)}</a>'
    return _escaped(name)


def anchor(name: str) -> str:
    """Return the id of a glossary's entry.

    Examples
    --------
    >>> anchor("on the camera")
    'd-on-the-camera'
    """
    return "d-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _glossary(page: Page) -> str:
    if not page.glossary:
        return ""
    rows = "".join(
        f'<dt id="{anchor(name)}">{_escaped(name)}</dt><dd>{_marked(words)}'
        + (f" <span>({_escaped(unit)})</span>" if unit else "")
        + "</dd>"
        for name, (words, unit) in page.glossary.items()
    )
    return f'<section id="definitions"><h2>Definitions</h2><dl>{rows}</dl></section>'


def _marked(words: str) -> str:
    return "".join(
        f"<code>{_escaped(part)}</code>" if code else spaced(part, _escaped(part))
        for code, part in code_parts(words)
    )


def _escaped(words: str) -> str:
    return escape(clean(words))


_STYLE = """
:root{--ink:#1d2126;--paper:#fff;--muted:#5b636d;--rule:#e2e5e9;--accent:#0b62a8;--soft:#f4f6f8;
--warn:#8a4b00}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#15181c;--muted:#9aa4af;
--rule:#2c323a;--accent:#6cb3f0;--soft:#1d2228;--warn:#e9b06a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
h1{font-size:28px;line-height:1.2;margin:32px 0 6px}
h2{font-size:20px;margin:40px 0 8px;padding-top:14px;border-top:1px solid var(--rule)}
p{max-width:82ch;margin:8px 0}
.finding{border-left:3px solid var(--accent);padding:1px 0 1px 11px}
.note{color:var(--muted);font-size:13.5px}
.missing{color:var(--warn);background:var(--soft);padding:8px 12px;border-radius:6px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:12px 0 0;font-size:14px}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
code{font:13px/1.4 ui-monospace,monospace;background:var(--soft);padding:1px 4px;border-radius:4px}
.missing code{background:none}
.wide{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:13px}
caption{text-align:left;font-weight:600;padding:4px 0 6px}
th,td{padding:3px 12px 3px 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{color:var(--muted);font-weight:600;max-width:190px}th a{color:inherit;
text-decoration:underline dotted}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td{max-width:78ch}figure{margin:14px 0;overflow-x:auto}
.gallery{display:flex;flex-wrap:wrap;gap:0 24px}figure.drawn{max-width:100%}
figure.drawn figcaption{max-width:520px}
img,svg.chart{max-width:100%;height:auto}
figcaption{font-size:12.5px;color:var(--muted);max-width:100ch}
dl{font-size:13.5px}dt{font-weight:600;margin-top:8px}dd{margin:0 0 0 16px;max-width:90ch}
dd span{color:var(--muted)}dt:target{background:var(--soft)}
@media print{:root{--ink:#000;--paper:#fff;--muted:#444;--rule:#ccc;--accent:#000;--soft:#fff;
--warn:#000}body{font-size:10.5pt}nav{display:none}header,main{max-width:none;padding:0}
figure,tr,dt{break-inside:avoid}h2,caption{break-after:avoid}thead{display:table-header-group}
.gallery{gap:0 2%}.gallery figure.drawn{width:49%}.wide,figure{overflow:visible}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@page{margin:15mm}
"""
