"""A store that the small Octo wrote: one episode, three keyframes, read again by several tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_fixtures import make_job, write_droid
from octo_fixture import build_octo

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.policies.octo.policy import OctoPolicy
from attnstore.query import Store
from attnstore.query import open as open_for_reading

STRIDE = 8


def write_octo_store(directory: Path) -> Path:
    """Ingest one DROID episode of 17 frames; return the store."""
    dataset = DroidDataset(write_droid(directory / "recordings", lengths=(17,)))
    job = make_job(directory / "octo.attn", OctoPolicy.from_model(build_octo()), dataset)
    policy = OctoPolicy.from_model(build_octo())
    (name,) = dataset.episode_names()
    ingest_episode(job, policy, dataset, name)
    return directory / "octo.attn"


@pytest.fixture(scope="session")
def octo_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store; not to be changed."""
    return open_for_reading(write_octo_store(tmp_path_factory.mktemp("octo")))
