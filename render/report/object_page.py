"""Pages of a report: tables of text, charts and pictures as Markdown and as one HTML file.

Whatever a store says (names, categories, reasons) may have been written by anybody: it is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..charts.svg import Chart
from ..picture import label


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """As long as the head each."""


def markdown_page(
    title: str, remarks: Sequence[str], grids: Sequence[Grid], charts: Sequence[str]
) -> str:
    """Write the page as Markdown; charts are files ``{name}.svg`` beside it."""
    lines = [f"# {_cell(title)}", ""]
    for remark in remarks:
        lines += [remark, ""]
    for name in charts:
        lines += [f"![{name}]({name}.svg)", ""]
    for grid in grids:
        lines += [f"## {grid.title}", "", _line(grid.head), "|" + "---|" * len(grid.head)]
        lines += [_line([_cell(c) for c in row]) for row in grid.rows]
        lines.append("")
    return "\n".join(lines)


def html_page(
    title: str, remarks: Sequence[str], grids: Sequence[Grid], charts: Mapping[str, Chart],
    examples: Sequence[Path],
) -> str:  # fmt: skip
    """Write the page as HTML that needs no other file.

    Parameters
    ----------
    examples
        JPEG files to show.
    """
    body = [f"<h1>{_escaped(title)}</h1>"]
    body += [f"<p>{_escaped(remark)}</p>" for remark in remarks]
    body += [f"<figure>{chart.svg}</figure>" for chart in charts.values()]
    for path in examples:
        data = base64.b64encode(path.read_bytes()).decode()
        name = _escaped("/".join(path.parts[-3:]))
        body.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    for grid in grids:
        body.append(f"<h2>{_escaped(grid.title)}</h2><table><tr>")
        body += [f"<th>{_escaped(name)}</th>" for name in grid.head]
        for row in grid.rows:
            body.append("</tr><tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row))
        body.append("</tr></table>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;"
    "padding:0 1em}table{border-collapse:collapse;font-size:13px}td,th{border-bottom:1px solid "
    "#ddd;padding:3px 9px;text-align:left}figure{margin:1em 0;overflow-x:auto}img,svg{max-width:"
    "100%;height:auto}figcaption{font-size:12px;color:#666}"
)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text of a store, which anybody may have written, in a Markdown table."""
    plain = label.printable(text)
    for sign in "\\`*_|[]<>#!":
        plain = plain.replace(sign, "\\" + sign)
    return plain


def _escaped(text: str) -> str:
    return escape(label.printable(text))
