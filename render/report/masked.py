"""What a probe's mask did to a stored image, made again from the table ``intervention_masks``."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.query.causes.fidelity import FidelityPairs
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.store.catalog.rows import quoted
from attnstore.store.format.pixels import seen_pixels
from attnstore.store.format.rle import decode_rle

from ..picture.scene import decode_frame
from ..picture.source import EpisodeMaps
from .strip import Image, strip

Mask = NDArray[np.bool_]
OUTLINE = (255, 214, 10)
BLUR = 0.1
"""Standard deviation of the fill ``blur``, as a share of the image's shorter side."""


def masked_strip(
    store: Store, chosen: Chosen, pairs: FidelityPairs, fill: str, most: int = 2
) -> tuple[bytes, str] | None:
    """Draw the images, masked maps and controls of some keyframes of one layer and view.

    Returns
    -------
    A JPEG and words on what it shows; None if the part keeps no masks.
    """
    rows = store.sql(f"""
SELECT m.episode, m.keyframe, m.camera, i.target, any_value(m.height), any_value(m.width),
       arg_min(m.counts, i.repeat)
FROM intervention_masks m JOIN interventions i
  ON (m.run, m.episode, m.part, m.keyframe, m.variant)
   = (i.run, i.episode, i.part, i.keyframe, i.variant)
WHERE {chosen.of("m.")} AND m.part = {quoted(pairs.part)}
  AND i.layer = {pairs.layer} AND array_to_string(i.cameras, '+') = {quoted(pairs.cameras)}
  AND i.target IN ('attention', 'control')
GROUP BY m.episode, m.keyframe, m.camera, i.target ORDER BY ALL""").fetchall()
    places = sorted({row[:2] for row in rows})
    if not places:
        return None
    step = max(1, len(places) // most)
    lines = []
    said = []
    for episode_id, keyframe in places[step // 2 :: step][:most]:
        episode = store.episode(episode_id, run=chosen.run)
        said.append(f"{episode.name}, frame {int(episode.frames[keyframe])}")
        masks = {row[2:4]: row[4:] for row in rows if row[:2] == (episode_id, keyframe)}
        for camera in dict.fromkeys(camera for camera, _ in masks):
            image = _image(episode, keyframe, camera)
            line = [(camera, image)]
            for target, words in (("attention", "masked map"), ("control", "control")):
                if (camera, target) in masks:
                    height, width, counts = masks[camera, target]
                    mask = decode_rle((height, width), counts)
                    seen = seen_pixels(episode.geometry(camera))
                    line.append((words, outlined(filled(image, mask, fill, seen), mask)))
            lines.append(line)
    return strip(lines, pane=300), "; ".join(said)


def filled(image: Image, mask: Mask, fill: str, seen: Mask) -> Image:
    """Replace the masked pixels as the probe did.

    Parameters
    ----------
    image
        (height, width, 3) RGB; not changed.
    fill
        ``black``, ``mean``, ``blur`` or ``noise``; noise is drawn anew and is not the probe's.
    seen
        Pixels that the policy sees.
    """
    new = np.zeros_like(image)
    if fill == "mean":
        new[:] = np.round(image[seen].mean(0)).astype(np.uint8)
    elif fill == "blur":
        sigma = BLUR * min(image.shape[:2])
        new = np.asarray(
            cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.uint8
        )
    elif fill == "noise":
        new = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    return np.where(mask[..., None], new, image)


def outlined(image: Image, mask: Mask) -> Image:
    """Draw a mask's outline."""
    drawn = np.ascontiguousarray(image)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thick = max(2, image.shape[1] // 160)
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), thick + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, OUTLINE, thick, cv2.LINE_AA)
    return drawn


def _image(episode: EpisodeMaps, keyframe: int, camera: str) -> Image:
    data = episode.image_bytes(keyframe, camera)
    what = f"{camera} at keyframe {keyframe}"
    return decode_frame(data, episode.geometry(camera), episode.name, what)
