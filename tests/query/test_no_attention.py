"""A camera that a head does not look at: no distribution, no entropy, in no place another number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ingest_fixtures import CAMERAS, Watcher, make_job
from probe_fixtures import HORIZON, Look, PlantedPolicy

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.pipeline import ingest_all
from attnstore.query import Store
from attnstore.query.attention.camera_shares import camera_shares
from attnstore.query.groups.comparison import compare
from attnstore.query.sql.chosen import choose
from attnstore.render.report.document import Table
from attnstore.render.report.looking import looking
from attnstore.render.report.write import write_report
from attnstore.store.format.geometry import Geometry

GEOMETRY = Geometry.letterbox((36, 64), (56, 56), (14, 14))
SEEN, UNSEEN = CAMERAS


class Blind(PlantedPolicy):
    """Of the second camera only the first head of the first layer sees anything."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(CAMERAS, GEOMETRY), SEEN, 6, 9)
        spans = {span.camera: span for span in self.axis}
        rng = torch.Generator().manual_seed(0)
        self.looks = []
        for layer in range(2):
            weights = torch.rand(2, HORIZON, len(self.axis), generator=rng)
            for head in range(2):
                if (layer, head) != (0, 0):
                    unseen = spans[UNSEEN]
                    weights[head, :, unseen.start : unseen.stop] = 0
            self.looks.append(Look(weights / weights.sum(-1, keepdim=True)))


@pytest.fixture(scope="module")
def store(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    policy, dataset = Blind(), DroidDataset(recordings)
    job = make_job(tmp_path_factory.mktemp("blind") / "s", policy, dataset)
    assert not ingest_all(job, policy, dataset, dataset.episode_names(), Watcher()).failed
    return attnstore.open(job.paths.root)


def test_statistics_are_null_and_masses_are_zero(store: Store) -> None:
    rows = store.sql(
        "SELECT layer, head, count(*), count(entropy), count(gini), count(top10_mass), "
        f"count(argmax_row), max(camera_mass) FROM head_stats WHERE camera = '{UNSEEN}' GROUP BY ALL"
    ).fetchall()
    assert len(rows) == 4
    for layer, head, count, *defined, mass in rows:
        sees = (layer, head) == (0, 0)
        assert defined == [count if sees else 0] * 4
        assert (mass > 0) == sees


@pytest.fixture(scope="module")
def groups(store: Store) -> dict[str, Any]:
    """Two groups: the first episode, and the others."""
    first = "name = (SELECT min(name) FROM episodes)"
    return {"a": first, "b": f"NOT ({first})", "camera": UNSEEN, "strata": ()}


def test_compare_tests_the_heads_that_look(store: Store, groups: dict[str, Any]) -> None:
    found = compare(store, "entropy", phase="joint", **groups)
    assert np.isfinite(found.results["mean_a"]).tolist() == [True, False, False, False]
    assert found.attainable.tests == 1
    assert "3 tests have no values in both groups and do not count" in found.notes
    episode = store.episode(min(store.episodes))
    first = episode.stats("joint", UNSEEN, "entropy").values[..., 0, 0].mean()
    assert found.results["mean_a"][0] == pytest.approx(first)
    layers = compare(store, "entropy", phase="joint", family="layers", **groups)
    assert layers.results["mean_a"] == pytest.approx([first, np.nan], nan_ok=True)
    shares = compare(store, "camera_mass", phase="joint", **groups)  # nothing is a share like any
    assert shares.attainable.tests == 4
    assert shares.results["mean_a"][1:].tolist() == [0, 0, 0]


def test_the_report_has_no_number_where_there_is_none(store: Store, tmp_path: Path) -> None:
    (chosen,) = choose(store)
    shares = {(s.layer, s.camera): s for s in camera_shares(store, chosen)}
    episodes = [store.episode(name) for name in chosen.episodes]
    own = [float(e.stats("joint", UNSEEN, "entropy").values[..., 0, 0].mean()) for e in episodes]
    assert shares[0, UNSEEN].entropy.value == pytest.approx(np.mean(own), rel=1e-6)
    assert np.isnan(shares[1, UNSEEN].entropy.value)
    assert shares[1, UNSEEN].image.value == 0
    (found,) = (b for b in looking(store, chosen).blocks if isinstance(b, Table))
    cells = {row[:2]: row[4] for row in found.rows}
    assert cells["L01", UNSEEN] == "–"
    assert float(cells["L00", UNSEEN].partition(" ")[0]) == pytest.approx(np.mean(own), rel=6e-3)
    write_report(store, chosen, tmp_path)
    for file in (tmp_path / "report.html", tmp_path / "report.md"):
        text = file.read_text("utf-8")
        assert ">nan<" not in text.lower()
        assert "| nan |" not in text.lower()
