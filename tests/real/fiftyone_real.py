"""A data set of ours, opened by FiftyOne itself: `make test-fiftyone FIFTYONE=/path/to/venv`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from store_fixtures import SOURCE
from viewer_fixtures import CUBE, add_cube, commit_episode, planted_episode

import attnstore
from attnstore.render.export.fiftyone import Shown, write_dataset
from attnstore.store.opening import create_store

READ = """
import json, sys
import fiftyone as fo
dataset = fo.Dataset.from_dir(dataset_dir=sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
schema = {name: type(field).__name__ for name, field in dataset.get_field_schema().items()}
rows = []
for sample in dataset:
    heat = sample["heat_prefix_L01"]
    rows.append({
        "episode": sample.episode, "keyframe": sample.keyframe, "camera": sample.camera,
        "tags": sample.tags, "there": __import__("os").path.isfile(sample.filepath),
        "map": heat.get_map().tolist(), "top": heat["top"], "head": heat["head"], "range": heat.range,
        "boxes": [(d.label, d.bounding_box, d.get_mask().astype(bool).tolist())
                  for d in sample.objects.detections] if sample.objects else [],
    })
hot = dataset.sort_by("heat_prefix_L01.camera_mass", reverse=True).first()
print("READ" + json.dumps({
    "rows": rows, "schema": schema, "info": dataset.info, "media": dataset.media_type,
    "failures": len(dataset.match_tags("failure")), "hot": hot["heat_prefix_L01"]["camera_mass"],
}))
"""


def test_fiftyone_reads_what_was_written(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "lab.attn")
    for seed, outcome in enumerate(("failure", "success")):
        made = planted_episode(f"{outcome}/e{seed}", outcome, seed, 3)
        commit_episode(paths, made, seed)
    store = attnstore.open(paths.root)
    first = store.episode("failure/e0")
    add_cube(paths.root, first.id, tmp_path / "masks")
    folder = tmp_path / "data set"
    write_dataset(list(store.episodes.values()), folder, Shown(layers=(1,)), store.paths.name)
    environment = os.environ | {
        "FIFTYONE_DO_NOT_TRACK": "1", "HOME": str(tmp_path / "home"),
        "FIFTYONE_DATABASE_DIR": str(tmp_path / "database"),
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    python = Path(os.environ["FIFTYONE"], "bin", "python")
    done = subprocess.run(
        [python, "-c", READ, folder], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.rpartition("READ")[2])
    written = json.loads((folder / "samples.json").read_text())["samples"]
    assert len(said["rows"]) == len(written) == 2 * 3 * 2
    assert said["media"] == "image"
    assert said["info"]["store"] == store.paths.name
    assert said["failures"] == 6
    assert said["hot"] == max(s["heat_prefix_L01"]["camera_mass"] for s in written)
    assert said["schema"]["keyframe"] == "IntField"
    by = {(s["episode"], s["keyframe"], s["camera"]): s for s in written}
    top, left = CUBE[0].start / SOURCE[0], CUBE[1].start / SOURCE[1]
    for row in said["rows"]:
        wanted = by[row["episode"], row["keyframe"], row["camera"]]
        heat = wanted["heat_prefix_L01"]
        assert row["there"]
        assert (row["top"], row["head"], row["range"]) == (heat["top"], heat["head"], [0, 255])
        assert len(row["map"]) == SOURCE[0]
        assert max(map(max, row["map"])) <= 255
    boxes = [b for row in said["rows"] for b in row["boxes"]]
    assert boxes
    assert all(label == "cube" and box[:2] == [left, top] for label, box, _ in boxes)
    full = [[True] * (CUBE[1].stop - CUBE[1].start)] * (CUBE[0].stop - CUBE[0].start)
    assert all(mask == full for *_, mask in boxes)
