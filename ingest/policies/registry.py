"""Which policy adapters are installed, and how one is loaded.

Adapters are found through the entry point group ``attnstore.policies``; its value is a class with
the `PolicyType` constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol, cast

from attnstore.store.errors import NotFoundError, UsageError

from .base import Policy
from .checkpoint import Recognised, files_of, locate, refuse_adapters

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


def said_of(point: EntryPoint, what: Literal["value_norms", "hidden_states"]) -> str:
    """Say in a few words whether an adapter shows something: its attribute of that name."""
    try:
        adapter = point.load()
    except ImportError:
        return "unknown, its libraries are missing"
    return str(getattr(adapter, what, "unknown"))


def find_policy(checkpoint: str, revision: str | None = None) -> str:
    """Find the adapter that a checkpoint is for, from its files: ``pi0``.

    An adapter recognises a checkpoint by its attribute ``recognises``, a function of
    `attnstore.ingest.policies.checkpoint.CheckpointFiles`.

    Raises
    ------
    NotFoundError
        If there is no such directory.
    UsageError
        If no adapter or several recognise it, or its files do not say all; the message names the
        candidates.
    PolicyError
        If the hub cannot give it.
    """
    path = Path(checkpoint).expanduser()
    directory = path if path.is_dir() else Path(locate(checkpoint, revision))
    files = files_of(directory)
    found: list[Recognised] = []
    silent: list[str] = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            recognises = getattr(point.load(), "recognises", None)
        except ImportError:
            recognises = None
        if recognises is None:
            silent.append(point.name)
        elif (own := recognises(files)) is not None:
            found.append(own)
    names = sorted({own.name for own in found})
    if len(names) == 1:
        if (missing := found[0].missing) is not None:
            raise UsageError(f"{checkpoint} is {names[0]}'s: {missing}")
        return names[0]
    if names:
        raise UsageError(f"{checkpoint} may be for {' or '.join(names)}: name one with --policy")
    refuse_adapters(checkpoint, directory)
    said = {key: files.config[key] for key in ("model_type", "type") if key in files.config}
    about = ", ".join(f"{key} {value!r:.40}" for key, value in said.items())
    has = (
        f"its config.json says {about}" if about else f"it has {', '.join(sorted(files.names)[:8])}"
    )
    others = f"; {', '.join(sorted(silent))} cannot tell" if silent else ""
    raise UsageError(
        f"{checkpoint}: no adapter recognises it ({has}{others}); name one with --policy: "
        f"{', '.join(policy_names())}"
    )


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


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """How a policy is loaded, here or by a worker."""

    name: str
    checkpoint: str
    dtype: str | None
    revision: str | None
    options: Mapping[str, str]

    def load(self, device: str, *, digest: str | None = None) -> Policy:
        """Load the policy.

        Parameters
        ----------
        digest
            That of its checkpoint, where it is known.

        Raises
        ------
        UsageError
            If the checkpoint has another digest.
        AttnstoreError
            As `load_policy`.
        """
        quiet_libraries()
        policy = load_policy(
            self.name, self.checkpoint, dtype=self.dtype, device=device, revision=self.revision,
            options=self.options,
        )  # fmt: skip
        if digest is not None and policy.digest != digest:
            raise UsageError(
                f"checkpoint {self.checkpoint} has digest {policy.digest[:12]} there and "
                f"{digest[:12]} here: all workers need the same files"
            )
        return policy


def quiet_libraries() -> None:
    """Keep transformers' own progress bars off the terminal; ours says how it goes."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()


def parse_options(pairs: Sequence[str], what: str = "a policy option") -> dict[str, str]:
    """Parse ``key=value`` strings of the command line."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{what} is KEY=VALUE; got {pair!r}")
        options[key] = value
    return options
