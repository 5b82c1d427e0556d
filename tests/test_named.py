"""Every ready-made query runs, and answers what it says: against NumPy over the same episodes."""

from __future__ import annotations

import numpy as np
import pytest
from store_fixtures import write_episode

import attnstore
from attnstore.query import Store
from attnstore.query.named import NAMED, named_query
from attnstore.store.errors import NotFoundError
from attnstore.store.opening import create_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    paths = create_store(tmp_path_factory.mktemp("named") / "store")
    for seed, outcome in enumerate(("success", "success", "failure")):
        write_episode(paths, f"{outcome}/2025-01-01/e{seed}", outcome, seed)
    return attnstore.open(paths.root)


@pytest.mark.parametrize("name", NAMED)
def test_it_runs(store: Store, name: str) -> None:
    relation = store.sql(named_query(name).sql)
    assert relation.columns
    relation.fetchall()


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        NotFoundError, match="no query 'x'; there are: most-active-heads, camera-by"
    ):
        named_query("x")


def test_most_active_heads_are_those_of_largest_mean_variance(store: Store) -> None:
    rows = store.sql(named_query("most-active-heads").sql).fetchall()
    episodes = [store.from_commit(c) for c in store.episodes()]
    for phase in ("prefix", "suffix"):
        variance = np.mean(
            [e.stats("variance", phase, "hand_camera")[:, -1].mean(axis=0) for e in episodes],
            axis=0,
        )
        found = [(r[2], r[3]) for r in rows if (r[0], r[1]) == (phase, "hand_camera")]
        order = np.argsort(-variance.ravel())[:5]
        expected = [tuple(np.unravel_index(i, variance.shape)) for i in order]
        assert found == expected[: len(found)]
        assert len(found) == min(5, variance.size)


def test_padding_mass_is_by_camera_and_outcome(store: Store) -> None:
    rows = store.sql(named_query("padding-mass").sql).fetchall()
    failure = [store.from_commit(c) for c in store.episodes() if c.summary["outcome"] == "failure"]
    expected = np.mean([e.stats("letterbox_mass", "prefix", "hand_camera").mean() for e in failure])
    (found,) = [r[3] for r in rows if r[:3] == ("prefix", "hand_camera", "failure")]
    assert found == pytest.approx(expected, rel=1e-5)
