"""Stores in a bucket that are written: against a real S3 server, behind a proxy that spoils requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnstore.query import open as open_for_reading
from attnstore.store.commits import Attempt, StorePaths, all_commits, latest_commit, log_of
from attnstore.store.errors import AttnstoreError, ConflictError, DeniedError, NotFoundError, UsageError
from attnstore.store.opening import create_store, open_store
from attnstore.store.remote import bucket as bucket_module
from attnstore.store.remote import spool
from attnstore.store.remote.bucket import Bucket

from remote_servers import S3_CREDENTIALS, FaultyProxy, s3_server
from store_fixtures import commit_random, random_episode

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as endpoint:
        proxy = FaultyProxy(endpoint)
        yield proxy
        proxy.close()


@pytest.fixture
def s3(server: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket_module, "PAUSES", (0.05, 0.1, 0.2, 0.4))
    for cached in (spool._bucket, spool._check, spool._known):
        cached.cache_clear()
    server.fault = lambda method, path: None
    server.requests.clear()
    yield server
    server.fault = lambda method, path: None
