"""A page as Markdown; charts and pictures are files in a folder beside it."""

from __future__ import annotations

from pathlib import Path

from ..charts.svg import Chart
from ..picture import image_file
from .document import Block, Figure, Page, Paragraph, Table, clean, code_parts, spaced


def write_markdown(page: Page, file: Path) -> list[Path]:
    """Write a page, and its figures into the folder ``{file's stem}_figures`` beside it.

    Returns
    -------
    The files written.
    """
    folder = file.with_name(f"{file.stem}_figures")
    written = []
    for figure in page.figures():
        path = folder / file_name(figure)
        if isinstance(figure.content, Chart):
            image_file.write_text(path, figure.content.svg + "\n")
        else:
            with image_file.complete(path) as temporary:
                temporary.write_bytes(figure.content)
        written.append(path)
    return [image_file.write_text(file, markdown_page(page, folder.name)), *written]


def file_name(figure: Figure) -> str:
    """Name of a figure's file."""
    return f"{figure.name}.{'svg' if isinstance(figure.content, Chart) else 'jpg'}"


def markdown_page(page: Page, folder: str) -> str:
    """Write a page's text; figures are in a folder."""
    lines = [f"# {escaped(page.title)}", "", _marked(page.lead), ""]
    for section in page.sections:
        lines += [f"## {escaped(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block, folder), ""]
    if page.glossary:
        lines += ["## Definitions", "", "| name | unit | definition |", "|---|---|---|"]
        lines += [
            f"| {escaped(name)} | {escaped(unit)} | {_marked(words)} |"
            for name, (words, unit) in page.glossary.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _block(block: Block, folder: str) -> list[str]:
    if isinstance(block, Paragraph):
        words = _marked(block.text)
        return [{"finding": f"**{words}**", "missing": f"> {words}"}.get(block.kind, words)]
    if isinstance(block, Figure):
        caption = _marked(block.caption)
        return [f"![{escaped(block.name)}]({folder}/{file_name(block)})", "", caption]
    return _table(block)


def _table(table: Table) -> list[str]:
    lines = [f"**{_marked(table.title)}**", ""] if table.title else []
    lines += [_line([escaped(name) for name in table.head]), "|" + "---|" * len(table.head)]
    lines += [_line([_marked(cell) for cell in row]) for row in table.rows]
    return [*lines, "", _marked(table.note)] if table.note else lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _marked(words: str) -> str:
    # A bar inside code would end a table's cell all the same.
    return "".join(
        f"`{clean(part).replace('|', chr(92) + '|')}`" if code else spaced(part, escaped(part))
        for code, part in code_parts(words)
    )


def escaped(words: str) -> str:
    """Escape a text that anybody may have written, for Markdown and its tables."""
    plain = clean(words)
    for sign in "\\`*_|[]<>#!":
        plain = plain.replace(sign, "\\" + sign)
    return plain
