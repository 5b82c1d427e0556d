"""Pictures of the toy world and of who is where in them, from MuJoCo's renderer.

Needs OpenGL without a display: ``MUJOCO_GL=egl`` and, on Debian, ``libegl1 libgl1-mesa-dri``.
"""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .simulator import Simulator

OBJECTS = ("target cube", "other cube", "target bowl", "other bowl", "gripper")
"""Further cubes of other worlds come behind these."""


def choose_backend() -> None:
    """Choose OpenGL without a display, unless the user chose; before MuJoCo is imported."""
    os.environ.setdefault("MUJOCO_GL", "egl")


class Renderer:
    """Renders one simulator at one size; keeps an OpenGL context, so close it.

    Parameters
    ----------
    height, width
        Of the pictures, pixels.
    samples
        Samples a pixel along each axis: it renders that much larger, and averages.
    """

    def __init__(self, simulator: Simulator, height: int, width: int, samples: int = 1) -> None:
        import mujoco

        self._simulator = simulator
        self._samples = samples
        self._size = (height, width)
        self._renderer: Any = mujoco.Renderer(simulator.model, height * samples, width * samples)
        model = simulator.model
        # +1: the background's id is -1
        self._object = np.full(model.ngeom + 1, -1, np.int8)
        for geom in range(model.ngeom):
            name = model.geom(geom).name
            for prefix, number in (("cube0", 0), ("cube1", 1), ("bowl0", 2), ("bowl1", 3)):
                if name.startswith(prefix):
                    self._object[geom + 1] = number
            if name in ("left", "right", "palm"):
                self._object[geom + 1] = OBJECTS.index("gripper")
            for further in range(2, simulator.cubes):
                if name == f"cube{further}":
                    self._object[geom + 1] = len(OBJECTS) + further - 2

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()

    def rgb(self, camera: str) -> NDArray[np.uint8]:
        """Return a camera's picture, (height, width, 3)."""
        self._renderer.disable_segmentation_rendering()
        self._update(camera)
        image: NDArray[np.uint8] = self._renderer.render()
        if self._samples == 1:
            return np.array(image)
        height, width = self._size
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    def objects(self, camera: str) -> NDArray[np.int8]:
        """Return which of `OBJECTS` each sample shows, -1 for none.

        The shape is (height, width) times `samples`.
        """
        import mujoco

        self._renderer.enable_segmentation_rendering()
        self._update(camera)
        found = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        geom = np.where(found[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), found[..., 0], -1)
        return np.asarray(self._object[geom + 1])

    def _update(self, camera: str) -> None:
        import mujoco

        self._renderer.update_scene(self._simulator.data, camera)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
