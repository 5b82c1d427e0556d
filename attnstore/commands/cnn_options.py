"""Options of ``attnstore cnn``: which network, which of its layers, which pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from .options import json_option, store_option

F = TypeVar("F", bound=Callable[..., Any])
FILTERS = 16
"""Filters of a layer that are taken unless some are named."""


def _numbers(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    return None if value is None else _ranges(value)


def _ranges(text: str) -> tuple[int, ...]:
    """Numbers of ``0,3,8-11``."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise click.BadParameter(
                f"numbers and ranges such as 0,3,8-11 are expected; got {text!r}"
            )
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def _values(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else tuple(float(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"numbers such as 0.485,0.456,0.406 are expected; got {value!r}"
        ) from None


NETWORK = (
    click.option("--network", required=True, metavar="NAME|MODULE:CALLABLE|FILE",
                 help="torchvision's name (vgg16), a function that makes the network, a pickled "
                      "module, or octo:CHECKPOINT (octo:CHECKPOINT#wrist: that camera's encoder)."),
    click.option("--weights", metavar="cache|random|own|FILE",
                 help="torchvision's cache, none, what MODULE:CALLABLE loads itself, or a file (state "
                      "dict, safetensors, TorchScript).  [default: cache, random for a callable]"),
    click.option("--init-seed", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Of random weights."),
    click.option("--trust-pickle", is_flag=True,
                 help="Load a pickled module, which can run any code."),
    click.option("--mean", callback=_values, metavar="LIST",
                 help="Of pixels 0..1 per channel.  [default: torchvision's, else 0.5]"),
    click.option("--std", callback=_values, metavar="LIST", help="As --mean."),
    click.option("--instruction", metavar="TEXT",
                 help="Of an Octo whose encoder has FiLM.  [default: empty]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps."),
)  # fmt: skip
LAYERS = (
    click.option("--layer", "layers", multiple=True, required=True, metavar="NAME|@NUMBER",
                 help="Convolution: features.10, 10, or @4 for the fifth; repeatable."),
    click.option("--filters", "filters", callback=_numbers, metavar="LIST",
                 help=f"0,3,8-11.  [default: the first {FILTERS}]"),
    click.option("--redo", is_flag=True, help="Compute what is there with the same settings, too."),
)  # fmt: skip
PICTURES = (
    click.option("--image", "images", multiple=True, type=click.Path(path_type=Path),
                 help="Picture file; repeatable."),
    click.option("--episode", "episodes", multiple=True,
                 help="Episode of the store: its keyframes' images; repeatable."),
    click.option("--run", help="Run of the episodes."),
    click.option("--camera", help="Of the episodes.  [default: the only one]"),
    click.option("--keyframes", callback=_numbers, metavar="LIST", help="0,2,5-7.  [default: all]"),
    click.option("--size", type=click.IntRange(min=1), default=224, show_default=True,
                 metavar="PIXELS", help="Shorter side of the network's input; the aspect stays."),
)  # fmt: skip


def with_options(*groups: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Add groups of options, ``--store`` and ``--json`` to a command."""

    def add(function: F) -> F:
        for option in reversed([o for group in groups for o in group]):
            function = option(function)
        return json_option(store_option(function))

    return add
