"""Layouts of folders and files that pictures and videos can be written in.

``lab`` is `attnstore.render.files.lab_folders`; ``octo`` is how users of Octo name theirs::

    {outcome}/{date}/{episode}/
        step_{frame}_layer_{layer}.png                  most active head of the layer
        step_{frame}_layer_{layer}_head_{head}.png
        attention_video.mp4                             the last layer that is drawn
        attention_video_layer_{layer}.mp4               the others
        attention_video_layer_{layer}_head_{head}.mp4

A phase other than ``joint`` is a prefix of the name, ``suffix_step_0_layer_3.png``; the reduction is
named when it is the mean.
"""

from __future__ import annotations

from pathlib import Path

from attnstore.store.errors import UsageError

from ..picture.drawing import Drawing
from .lab_folders import EpisodeFolder

LAB, OCTO = "lab", "octo"


class OctoFolder(EpisodeFolder):
    """Paths of one episode's pictures and videos, as users of Octo name them.

    Examples
    --------
    >>> folder = OctoFolder(Path("out"))
    >>> folder.summary_image(8, Drawing("joint"), 11, "png").as_posix()
    'out/step_8_layer_11.png'
    >>> folder.summary_video(Drawing("joint"), 11, "mp4", last=True).as_posix()
    'out/attention_video.mp4'
    """

    def summary_image(self, frame: int, drawing: Drawing, layer: int, extension: str) -> Path:
        """Path of a keyframe's picture of a layer's most active head."""
        return self._at(drawing, f"step_{frame}_layer_{layer}", extension)

    def head_image(
        self, frame: int, drawing: Drawing, layer: int, head: int, extension: str
    ) -> Path:
        """Path of a keyframe's picture of one head."""
        return self._at(drawing, f"step_{frame}_layer_{layer}_head_{head}", extension)

    def summary_video(
        self, drawing: Drawing, layer: int, extension: str, *, last: bool = False
    ) -> Path:
        """Path of the video of a layer's most active head."""
        return self._at(drawing, "attention_video" + ("" if last else f"_layer_{layer}"), extension)

    def head_video(self, drawing: Drawing, layer: int, head: int, extension: str) -> Path:
        """Path of the video of one head."""
        return self._at(drawing, f"attention_video_layer_{layer}_head_{head}", extension)

    def _at(self, drawing: Drawing, name: str, extension: str) -> Path:
        phase = "" if drawing.phase == "joint" else f"{drawing.phase}_"
        return self.path / f"{phase}{name}{drawing._reduced_marks}.{extension}"


def folder_type(layout: str) -> type[EpisodeFolder]:
    """Return the kind of folder of a layout.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    types = {LAB: EpisodeFolder, OCTO: OctoFolder}
    if layout not in types:
        raise UsageError(f"a layout is one of {', '.join(types)}; got {layout!r}")
    return types[layout]
