"""A run: one ingest configuration, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import IntegrityError, NotFoundError
from ..format.documents import check
from ..format.precision import PRECISIONS
from ..format.statistics import SEMANTICS
from ..format.version import check_version, explained, written
from ..format.views import check_cameras
from . import (
    SAFE,
    StorePaths,
    log_of,
    now,
    parse_json,
    read_bounded,
    register_run,
    slug,
)
from .entry import check_seal, sealed

_REPAIR = "put back a copy of it, or delete it and give the same ingest command again"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What changes the numbers of a run.

    Two ingests with an equal configuration are the same run: the second resumes the first. The
    code's version, the host and the time are provenance and are kept beside it.
    """

    policy: str
    """Adapter and variant: ``pi0``, ``openpi:pi05_droid``."""
    checkpoint: str
    """Hub id or directory name, for people; the digest decides."""
    checkpoint_digest: str
    """SHA-256 over the checkpoint's weights and configuration."""
    dtype: str
    """Data type of the policy's weights: ``bfloat16``, ``float32``."""
    dataset: str
    """Reader and dataset name: ``droid:toy_cube``."""
    cameras: tuple[str, ...]
    """In the order in which the policy gets them."""
    stride: int
    """Frames between keyframes."""
    precision: str
    """Stored precision: ``float16`` or ``log8``."""
    seed: int
    """Base of every keyframe's noise seed."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further adapter options that change numbers; JSON values."""
    semantics: int = SEMANTICS

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 frame; got {self.stride}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if not self.cameras:
            raise ValueError("a run needs at least one camera")
        check_cameras(self.cameras)

    @property
    def id(self) -> str:
        """Safe directory name: the policy's slug and the configuration's digest."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        readable = slug(self.policy.replace(":", "-")).rsplit("-", 1)[0]
        return f"{readable}-{digest}"


def save_run(paths: StorePaths, config: RunConfig, provenance: Mapping[str, Any]) -> str:
    """Record a run in the store, if it is new there; return its id."""
    value = {
        "format": written(),
        "id": config.id,
        "config": asdict(config),
        "provenance": dict(provenance),
        "created": now(),
    }
    paths.create(paths.run_file(config.id), sealed(value))
    register_run(paths, config.id)
    return config.id


def copy_run(source: StorePaths, target: StorePaths, run: str) -> None:
    """Have a run's file in another store as well, byte for byte, unless it is there.

    Raises
    ------
    NotFoundError
        If the source has none.
    IntegrityError
        As `load_run`.
    """
    if not target.run_file(run).is_file():
        load_run(source, run)
        target.create(target.run_file(run), read_bounded(source.run_file(run)))


def load_run(paths: StorePaths, run: str) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's configuration and its provenance.

    Raises
    ------
    NotFoundError
        If the store has no such run.
    IntegrityError
        If its file is not a run configuration, is another run's, or not as it was written.
    UnsupportedFormatError
        If a newer major version of the format wrote it.
    """
    try:
        if not SAFE.fullmatch(run):
            raise FileNotFoundError
        path = paths.run_file(run)
        data = read_bounded(path)
    except FileNotFoundError:
        raise NotFoundError(
            f"{paths.root} has no run {run[:200]!r}; it has: {', '.join(run_ids(paths)) or 'none'}"
        ) from None
    value = parse_json(data, path)
    version = check_version(value, path)
    try:
        check_seal(data)
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error}; {_REPAIR}") from None
    try:
        check(value, "run", "run")
        config = RunConfig(**{**value["config"], "cameras": tuple(value["config"]["cameras"])})
    except (IntegrityError, ValueError) as error:
        broken = IntegrityError(f"{path}: not a run configuration ({error})")
        raise explained(broken, version) from None
    if config.id != run:
        raise IntegrityError(f"{path}: its configuration is that of run {config.id}; {_REPAIR}")
    return config, {**value["provenance"], "created": value["created"]}


def run_ids(paths: StorePaths) -> list[str]:
    """Ids of all runs that the store's log records, sorted."""
    return sorted(log_of(paths).update().runs)
