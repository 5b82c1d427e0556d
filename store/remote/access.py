"""How a bucket is reached: what a command knows of it, and lends to workers on other machines.

Server and region are told to a worker that has none of its own. So are keys, if the command has them
from its environment; those of profiles and roles are each machine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from .bucket import session_for
from .mirror import forget_transports
from .refusals import endpoint
from .spool import SpooledPaths, forget_buckets

_ENDPOINT, _REGION = "AWS_ENDPOINT_URL_S3", "AWS_REGION"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_borrowed: dict[str, str] = {}
"""Variables of this process that are another's."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a command reaches the bucket of its store."""

    url: str
    """The store's."""
    endpoint: str | None
    region: str | None
    keys: Mapping[str, str] = field(repr=False)
    """Variables; empty if the command has its keys from somewhere else than its environment."""


def access_to(paths: SpooledPaths) -> Access:
    """Say how this process reaches a store in a bucket."""
    session = session_for(paths.url)
    found = session.get_credentials()
    named = found is not None and found.method == "env"
    keys = {name: os.environ[name] for name in _KEYS if named and os.environ.get(name)}
    return Access(paths.url, endpoint(session), session.get_config_variable("region"), keys)


def borrow(access: Access | None) -> None:
    """Reach buckets as another process does, wherever this one knows no way of its own.

    What was borrowed before is given back first.

    Raises
    ------
    MissingExtraError
        If what reaches buckets is not installed.
    """
    before = dict(_borrowed)
    for name, value in before.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _borrowed.clear()
    if access is not None:
        own = session_for(access.url)
        if endpoint(own) is None and access.endpoint is not None:
            _borrowed[_ENDPOINT] = access.endpoint
        if own.get_config_variable("region") is None and access.region is not None:
            _borrowed[_REGION] = access.region
        # All of them or none: keys of two accounts are nobody's.
        if own.get_credentials() is None:
            _borrowed.update(access.keys)
        os.environ.update(_borrowed)
    if _borrowed != before:
        forget_buckets()
        forget_transports()
