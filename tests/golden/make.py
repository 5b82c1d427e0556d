"""Make the golden store anew: ``python tests/golden/make.py``.

A store of the format as it is now, as small as one can be that has an entry of every kind in its log, both
precisions, spans of changing length, and a part beside ``base``. Numbers are of fixed seeds, so that
tests/store/test_golden.py knows them without the store; ids of attempts and times are of the day.

The store is checked in so that what was written once is read for ever: make it anew only with a change of the
format itself.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from store_fixtures import (
    POLICY,
    SOURCE,
    RandomEpisode,
    random_episode,
    run_config,
    write_blocks,
    write_rows,
)

from attnstore.query import open as open_for_reading
from attnstore.query.objects.options import ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.store.commits import Attempt, slug
from attnstore.store.commits.attempt import remove_part
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store

STORE = Path(__file__).parent / "store.tar.gz"
"""One file for 130 small ones."""
CAMERA = "hand_camera"
SHAPE: Mapping[str, Any] = {
    "layers": 1,
    "heads": 2,
    "steps": 2,
    "grid": (2, 2),
    "cameras": (CAMERA,),
}
EPISODES: Mapping[str, Mapping[str, Any]] = {
    "success/log8": {
        "seed": 1,
        "precision": "log8",
        "keyframes": 2,
        "values": True,
        "features": 3,
        **SHAPE,
    },
    "failure/float16": {"seed": 2, "precision": "float16", "keyframes": 1, **SHAPE},
}
"""Keywords of `random_episode`, by name."""


def expected(name: str) -> RandomEpisode:
    """What was stored, computed anew; of the second episode only the prefix."""
    whole = random_episode(name, name.partition("/")[0], **EPISODES[name])
    kept = set(whole.spec.phases) if whole.spec.precision == "log8" else {"prefix"}
    phases = {p: s for p, s in whole.spec.phases.items() if p in kept}
    return replace(
        whole,
        spec=replace(whole.spec, phases=phases),
        layouts=tuple({p: s for p, s in each.items() if p in kept} for each in whole.layouts),
        weights={block: w for block, w in whole.weights.items() if block[0] in kept},
    )


def make(root: Path) -> None:
    """Write the store to a folder that does not exist."""
    paths = create_store(root)
    for name in EPISODES:
        episode = expected(name)
        run = save_run(paths, run_config(0, episode.spec.precision), {"code": "golden"})
        writer = EpisodeWriter(Attempt(paths, run, slug(name), "base"), episode.spec, POLICY)
        write_blocks(writer, episode)
        write_rows(writer, episode)
        writer.commit()
    store, masks = open_for_reading(root), root.with_name(f".masks-{root.name}")
    for name, rounds in (("success/log8", 2), ("failure/float16", 1)):
        for height in range(rounds):  # of two revisions the second counts
            write_mask(masks / name, 12 + height)
            added = add_objects(paths, store.episode(name), masks / name, ObjectOptions("detector"))
    shutil.rmtree(masks)
    remove_part(paths, added.commit.key)
    abandoned = Attempt(paths, added.commit.run, added.commit.episode, "base")
    (abandoned.path / "attempt.json").write_text("{}")  # nobody's
    collect(paths, timedelta())
    shutil.rmtree(paths.catalog)


def write_mask(folder: Path, height: int) -> None:
    """Write what a detector found in the first frame."""
    mask = np.zeros(SOURCE, bool)
    mask[4 : 4 + height, 20:40] = True
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    np.save(folder / "masks" / "00000_cube_0.npy", mask)
    found = {"mask_file": "00000_cube_0.npy", "category": "cube", "score": 0.5, "bbox": []}
    (folder / "dinox_info.json").write_text(json.dumps({"0": [found]}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "store")
        shutil.make_archive(str(STORE).removesuffix(".tar.gz"), "gztar", Path(folder) / "store")
    print(f"{STORE}: {STORE.stat().st_size} bytes")
