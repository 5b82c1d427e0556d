"""Pinhole projection of boxes: poses, near plane, convex outlines, pixels. NumPy only.

Poses are DROID's six numbers: position in metres, then Euler angles in radians as scipy's ``"xyz"``
(about the fixed axes x, y, z in this order, so R = Rz Ry Rx); they map the frame's own points to
its parent's. Camera frames are OpenCV's: x right, y down, z into the image. Pixel (i, j) covers
[i, i + 1) x [j, j + 1) and belongs to a shape if its centre lies in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

NEAR = 0.01
"""Distance from the camera in metres below which nothing is drawn."""


def pose_matrix(pose: Sequence[float] | NDArray[Any]) -> Float:
    """Homogeneous matrix (4, 4) of a pose (x, y, z, rx, ry, rz).

    Examples
    --------
    A quarter turn about z, then a step along x, moves (1, 0, 0) to (2, 1, 0):

    >>> (pose_matrix([2, 0, 0, 0, 0, np.pi / 2]) @ [1, 0, 0, 1]).round(6).tolist()
    [2.0, 1.0, 0.0, 1.0]
    """
    x, y, z = (float(a) for a in pose[3:6])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = pose[:3]
    return matrix


def box_edges(low: Float, high: Float) -> Float:
    """Return the 12 edges of an axis-parallel box as pairs of points, (12, 2, 3)."""
    corners = np.array(list(product((0, 1), repeat=3)))
    pairs = [
        (a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1
    ]
    return np.asarray((low + corners * (high - low))[np.array(pairs)], np.float64)


def project_edges(edges: Float, camera_from_points: Float, intrinsics: Float) -> Float:
    """Project the end points of edges, cut at the near plane, into the image.

    The edges of a convex body cut so have the corners of the cut body as end points: the convex
    outline of the result is the outline of what is in front of the camera.

    Parameters
    ----------
    edges
        (edge, 2, 3), in metres.
    camera_from_points
        (4, 4) matrix from the edges' frame to the camera's.
    intrinsics
        (3, 3) camera matrix, in pixels.

    Returns
    -------
    (point, 2) pixel coordinates (x, y).
    """
    ends = edges @ camera_from_points[:3, :3].T + camera_from_points[:3, 3]
    found = []
    for a, b in ends:
        if a[2] < NEAR and b[2] < NEAR:
            continue
        if a[2] < NEAR or b[2] < NEAR:
            cut = a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2]))
            a, b = (cut, b) if a[2] < NEAR else (a, cut)
        found += [a, b]
    if not found:
        return np.empty((0, 2))
    points = np.array(found) @ intrinsics.T
    return np.asarray(points[:, :2] / points[:, 2:])


def convex_outline(points: Float) -> Float:
    """Corners of the convex hull, in one sense of rotation, without points on its sides.

    Andrew's monotone chain (Andrew 1979).

    Parameters
    ----------
    points
        (point, 2).
    """
    unique = np.unique(points, axis=0).tolist()
    if len(unique) < 3:
        return np.array(unique, np.float64).reshape(-1, 2)

    def chain(ordered: list[list[float]]) -> list[list[float]]:
        kept: list[list[float]] = []
        for x, y in ordered:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                kept.pop()
            kept.append([x, y])
        return kept[:-1]

    return np.array(chain(unique) + chain(unique[::-1]), np.float64)


def draw_convex(pixels: NDArray[np.bool_], points: Float) -> None:
    """Set the pixels whose centres lie in the convex hull of some points; clipped at the image.

    Parameters
    ----------
    pixels
        (height, width), changed in place.
    points
        (point, 2) pixel coordinates (x, y).
    """
    outline = convex_outline(points)
    if len(outline) < 3:
        return
    height, width = pixels.shape
    low = np.clip(np.floor(outline.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(outline.max(0)), 0, (width, height)).astype(int)
    x = np.arange(low[0], high[0]) + 0.5
    y = np.arange(low[1], high[1])[:, None] + 0.5
    inside = np.ones((len(y), len(x)), np.bool_)
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    pixels[low[1] : high[1], low[0] : high[0]] |= inside
