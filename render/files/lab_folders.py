"""The lab's folder layout, so that existing scripts find the pictures where they always were.

::

    {outcome}/{date}/{episode}/
        instruction.txt
        pi05.md                                         written last: the episode is complete
        {frame:05d}/prefix_L{layer}_attn_vis_max.jpg    most active head of the layer
        {frame:05d}/L{layer}_prefix_heads/head_{head:02d}.jpg
        L{layer:02d}_prefix_max.webm                    most active head of the layer
        L{layer}/H{head:02d}_prefix.webm
        L{layer:02d}_prefix_max_{run}_vs_{run}.webm     the same episode in two runs

and the same with ``suffix``. What the lab's names do not tell apart is added to them, so that
nothing overwrites anything else: a query group other than the phase's own (``query-word-cube``), a
denoising step other than the last (``step03``), maps without sinks (``nosink``), and the mean in the
names that say no reduction. ``max`` and ``mean`` are over
query tokens.

Only paths here, no files. An episode's name comes from a store, which is untrusted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..picture.drawing import Drawing, component

MARKER = "pi05.md"
INSTRUCTION = "instruction.txt"


@dataclass(frozen=True, slots=True)
class EpisodeFolder:
    """Paths of one episode's pictures and videos.

    Examples
    --------
    >>> name = "success/2025-12-10/2025-12-10_09-00-39"
    >>> folder = EpisodeFolder.of(Path("out"), name, "success", "2025-12-10")
    >>> folder.summary_image(32, Drawing("prefix"), 5, "jpg").as_posix()
    'out/success/2025-12-10/2025-12-10_09-00-39/00032/prefix_L5_attn_vis_max.jpg'
    """

    path: Path

    @classmethod
    def of(cls, out: Path, name: str, outcome: str, date: str | None) -> EpisodeFolder:
        """Folder of an episode under ``out``.

        Parameters
        ----------
        name
            The dataset's own name. A leading outcome and date are not repeated; if several parts
            remain (``task/episode_3``) they are joined by ``-``, with a digest of the whole, so
            that names which differ stay apart.
        date
            ``undated`` if None.

        Raises
        ------
        UsageError
            If a name would leave ``out``.
        """
        parts = name.split("/")
        for known in (outcome, date):
            if len(parts) > 1 and parts[0] == known:
                parts = parts[1:]
        safe = [component(part) for part in parts]
        if len(safe) > 1:
            safe.append(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8])
        episode = component("-".join(safe))
        return cls(out / component(outcome) / component(date or "undated") / episode)

    @property
    def instruction(self) -> Path:
        """The episode's instruction as text."""
        return self.path / INSTRUCTION

    def marker(self, name: str = MARKER) -> Path:
        """Path of the file that says that the episode's pictures are complete."""
        return self.path / component(name)

    def summary_image(self, frame: int, drawing: Drawing, layer: int, extension: str) -> Path:
        """Path of a keyframe's picture of a layer's most active head."""
        name = f"{drawing.phase}_L{layer}{drawing._marks}_attn_vis_{drawing.reduce}.{extension}"
        return self.path / f"{frame:05d}" / name

    def head_image(
        self, frame: int, drawing: Drawing, layer: int, head: int, extension: str
    ) -> Path:
        """Path of a keyframe's picture of one head."""
        heads = f"L{layer}_{drawing.phase}{drawing._reduced_marks}_heads"
        return self.path / f"{frame:05d}" / heads / f"head_{head:02d}.{extension}"

    def summary_video(
        self, drawing: Drawing, layer: int, extension: str, *, last: bool = False
    ) -> Path:
        """Path of the video of a layer's most active head; ``last`` of the layers that are drawn."""
        marks = f"{drawing._marks}_{drawing.reduce}"
        return self.path / f"L{layer:02d}_{drawing.phase}{marks}.{extension}"

    def head_video(self, drawing: Drawing, layer: int, head: int, extension: str) -> Path:
        """Path of the video of one head."""
        name = f"H{head:02d}_{drawing.phase}{drawing._reduced_marks}.{extension}"
        return self.path / f"L{layer}" / name

    def pair_video(
        self, drawing: Drawing, layer: int, head: int | None, runs: tuple[str, str], extension: str
    ) -> Path:
        """Path of the video of two runs; ``head`` is None for the most active one of the first."""
        alone = (
            self.summary_video(drawing, layer, extension)
            if head is None
            else self.head_video(drawing, layer, head, extension)
        )
        return alone.with_name(f"{alone.stem}_{component('_vs_'.join(runs))}{alone.suffix}")
