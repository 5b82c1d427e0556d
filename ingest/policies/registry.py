"""Which policy adapters are installed, and how one is loaded.

Adapters are found through the entry point group ``attnstore.policies``; its value is a class with
the `PolicyType` constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Protocol, cast

from attnstore.store.errors import NotFoundError, UsageError

from .base import Policy

ENTRY_POINTS = "attnstore.policies"


class PolicyType(Protocol):
    """How an adapter is constructed by the command line."""

    def __call__(
        self,
        checkpoint: str,
        *,
        variant: str | None,
        dtype: str | None,
        device: str,
        revision: str | None,
        options: Mapping[str, str],
    ) -> Policy:
        """Load the policy; the weights may wait for the first `Policy.act`."""
        ...


def policy_names() -> list[str]:
    """Names of all adapters that are installed, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def load_policy(
    name: str,
    checkpoint: str,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Policy:
    """Load a policy by its adapter's name, ``adapter[:variant]``.

    Raises
    ------
    NotFoundError
        If no such adapter is installed; the message lists those that are.
    MissingExtraError
        If the adapter's libraries are not installed.
    PolicyError
        If the checkpoint cannot be loaded.
    """
    adapter, _, variant = name.partition(":")
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == adapter:
            factory = cast(PolicyType, point.load())
            return factory(
                checkpoint,
                variant=variant or None,
                dtype=dtype,
                device=device,
                revision=revision,
                options=options or {},
            )
    raise NotFoundError(f"no policy {adapter!r}; installed: {', '.join(policy_names()) or 'none'}")


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """Parse ``key=value`` strings of the command line."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"a policy option is KEY=VALUE; got {pair!r}")
        options[key] = value
    return options
