"""The Markdown file beside an episode's pictures: what they show, and that they are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnstore.store.rules import Active, describe_active

from ..picture.drawing import Drawing
from ..picture.label import printable
from ..picture.scale import ColorScale
from ..picture.source import EpisodeMaps, describe_query


def describe(
    episode: EpisodeMaps,
    layers: Mapping[str, Sequence[int]],
    cameras: Sequence[str],
    drawings: Mapping[str, Drawing],
    scale: ColorScale,
    active: Active = "image",
) -> str:
    """Text of the marker file.

    Parameters
    ----------
    layers, drawings
        By phase.
    """
    lines = [
        f"# {_cell(episode.instruction)}",
        "",
        "| | |",
        "|---|---|",
        f"| episode | {_cell(episode.name)} |",
        f"| outcome | {_cell(episode.outcome)} |",
        f"| policy | {_cell(episode.policy)} |",
        f"| run | {_cell(episode.run)} |",
        f"| cameras | {_cell(', '.join(cameras))} |",
        f"| colours | {scale.describe()} |",
        f"| most active head | by {describe_active(active)}, of the maps that are drawn |",
    ]
    for phase, chosen in layers.items():
        drawing = drawings[phase]
        text = f"layers {', '.join(map(str, chosen))}; {episode.heads(phase)} heads; "
        text += f"{drawing.reduce} over {_cell(describe_query(episode, phase, drawing.query))}"
        steps = episode.steps(phase)
        if steps is not None:
            text += (
                f"; step {steps - 1 if drawing.step is None else drawing.step} (0 to {steps - 1})"
            )
        if drawing.weighting != "raw":
            text += f"; {drawing.weighting}-weighted"
        if drawing.sink_corrected:
            text += "; sink-corrected"
        lines.append(f"| {phase} | {text} |")
    lines += ["", "| keyframe | frame |", "|---:|---:|"]
    lines += [f"| {k} | {int(frame)} |" for k, frame in enumerate(episode.frames)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    # names come from a store: none may end a table's cell or start a tag
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
