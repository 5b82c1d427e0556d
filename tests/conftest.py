"""Settings that every test shares."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ["cli_fixtures", "ingest_fixtures", "service_fixtures"]
pytest.register_assert_rewrite("policy_contract")

# Examples are not timed: the first one of a property pays for imports and compiled kernels.
# CI tries the same examples every time: a failure there is of the change, not of the dice.
settings.register_profile("attnstore", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("attnstore")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process per core already; threads of torch and BLAS on top only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
