"""What ``attnstore compare`` prints: aligned tables for people, NDJSON and CSV for programs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from .output import print_json

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

    from attnstore.query.groups.comparison import Comparison

Form = Literal["table", "ndjson", "csv"]


def print_comparison(found: Comparison, limit: int) -> None:
    """Print the first rows of a comparison with what a reader must know."""
    groups, attainable = found.groups, found.attainable
    strata = " and ".join("recording" if c == "name" else c for c in found.strata)
    tried = (
        f"{attainable.permutations} permutations"
        if attainable.permutations
        else f"all assignments ({attainable.assignments})"
    )
    a, b = groups.sizes
    click.echo(f"{a} - {b} episodes")
    click.echo(found.family)
    click.echo(
        f"permuted within {strata or 'all episodes'}: {tried}, smallest p {attainable.smallest_p:.2g}"
    )
    for note in found.notes:
        click.echo(f"! {note}")
    click.echo()
    stratified = len(set(found.stratum.tolist())) > 1
    rows = []
    for row in found.rows()[:limit]:
        shown = {"": "*" if row["significant"] else ""}
        if row["step"] is not None:
            shown["step"] = str(row["step"])
        shown["layer"] = f"L{row['layer']:02d}"
        if row["head"] is not None:
            shown["head"] = f"H{row['head']:02d}"
        shown |= {
            "mean a": _number(row["mean_a"]),
            "mean b": _number(row["mean_b"]),
            "difference": _interval(row, "difference"),
            "delta": _number(row["cliffs_delta"], "+.2f"),
        }
        if stratified:
            shown["within strata"] = _interval(row, "within")
        rows.append(shown | {"p": _number(row["p"], ".2g"), "q": _number(row["q"], ".2g")})
    _print_table(rows)
    count = int(found.significant.sum())
    click.echo(
        f"\n{count} of {attainable.tests} tests at q <= {attainable.alpha:g}"
        + (f"; {len(found.q)} rows in all, see --json" if len(found.q) > limit else "")
    )


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def _interval(row: dict[str, Any], name: str) -> str:
    """Write a difference with its interval: ``-0.031 [-0.05, -0.01]``."""
    if row[name] is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return f"{row[name]:+.3g}"
    return f"{row[name]:+.3g} [{low:+.3g}, {high:+.3g}]"


def print_divergence(found: Sequence[xr.DataArray], limit: int) -> None:
    """Print the heads that differ most between two runs."""
    from attnstore.query.groups.run_diff import rank_heads

    first = found[0].attrs
    click.echo(f"{first['run_a']} against {first['run_b']}: {len(found)} episodes in both")
    from attnstore.store.format.weighting import described

    maps = f"{described(first['weighting'])}maps"
    click.echo(
        f"{first['phase']} × {first['query_group']}: Jensen-Shannon divergence of {maps}, bits"
    )
    click.echo()
    ranked = rank_heads(found)
    rows = []
    for row in ranked.slice(0, limit).to_pylist():
        shown = {"camera": row["camera"]}
        if row["step"] is not None:
            shown["step"] = str(row["step"])
        shown |= {
            "layer": f"L{row['layer']:02d}",
            "head": f"H{row['head']:02d}",
            "mean": _number(row["mean"], ".4f"),
            "max": _number(row["max"], ".4f"),
            "at frame": str(row["frame"]),
            "of episode": row["episode"],
        }
        rows.append(shown)
    _print_table(rows)
    if ranked.num_rows > limit:
        click.echo(
            f"\n{limit} of {ranked.num_rows} heads and cameras; see --json for every keyframe"
        )


def write_rows(table: pa.Table, form: Form, *, header: bool = True) -> None:
    """Write every row as NDJSON or CSV."""
    if form == "ndjson":
        print_json(table.to_pylist())
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(table.column_names)
    writer.writerows(zip(*table.to_pydict().values(), strict=True))


def _print_table(rows: Iterable[dict[str, str]]) -> None:
    """Print aligned columns; numbers to the right."""
    lines = list(rows)
    text = {"", "camera", "of episode", "layer", "head"}
    widths = {name: max(len(name), *(len(r[name]) for r in lines)) for name in lines[0]}
    for cells in ({name: name for name in widths}, *lines):
        shown = [
            cells[name].ljust(width) if name in text else cells[name].rjust(width)
            for name, width in widths.items()
        ]
        click.echo("  ".join(shown).rstrip())
