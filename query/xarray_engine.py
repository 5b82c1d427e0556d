"""``engine="attnstore"`` of xarray: an episode of a store as a tree that is read on access."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from attnstore.store.commits import MARKER
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.reader import Episode

from .sql.store import Store, open


class AttnstoreBackend(BackendEntrypoint):
    """Opens ``xarray.open_datatree(store, engine="attnstore", episode=...)``; an entry point.

    Examples
    --------
    ::

        tree = xarray.open_datatree("lab.attn", engine="attnstore", episode="2025-12-11_09-44-16")
        tree["prefix/attention"].isel(layer=5).mean("head")
        xarray.open_dataset("lab.attn", engine="attnstore", episode="...", group="policy")
    """

    description = "Attention of robot policies, in a store of attnstore"
    supports_groups = True
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "episode", "run", "group")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether it is the directory of a store.

        Parameters
        ----------
        filename_or_obj
            What xarray was asked to open.

        Returns
        -------
        False for URLs: name the engine for these.
        """
        return (
            isinstance(filename_or_obj, str | os.PathLike)
            and (Path(filename_or_obj) / MARKER).is_file()
        )

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        episode: str | None = None,
        run: str | None = None,
        group: str | None = None,
    ) -> xr.DataTree:
        """Open an episode; see `Episode.tree` for what is where.

        Parameters
        ----------
        filename_or_obj
            Directory or URL of the store, or an open `Store`.
        drop_variables
            Left out wherever they are.
        episode, run
            As for `Store.episode`; an episode need not be named if there is one.
        group
            Only what is below this node.

        Returns
        -------
        The tree, read on access.

        Raises
        ------
        NotFoundError
            If there is no such store or episode.
        SelectionError
            If an episode must be named, or there is no such group.
        """
        store = filename_or_obj if isinstance(filename_or_obj, Store) else open(filename_or_obj)
        opened = _only(store, run) if episode is None else store.episode(episode, run=run)
        found = _below(opened.tree(), group)
        if drop_variables is None:
            return found
        names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables)
        return xr.DataTree.from_dict(
            {
                node.path: node.to_dataset(inherit=False).drop_vars(names, errors="ignore")
                for node in found.subtree
            },
            name=found.name,
        )

    def open_groups_as_dict(self, filename_or_obj: Any, **options: Any) -> dict[str, xr.Dataset]:
        """Open an episode's datasets.

        Parameters
        ----------
        filename_or_obj
            As for `open_datatree`, as all further ones.

        Returns
        -------
        Datasets by path.
        """
        tree = self.open_datatree(filename_or_obj, **options)
        return {node.path: node.to_dataset() for node in tree.subtree}

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        episode: str | None = None,
        run: str | None = None,
        group: str | None = None,
    ) -> xr.Dataset:
        """Open one node of an episode's tree; parameters are those of `open_datatree`.

        Raises
        ------
        UsageError
            If no group is named: the root has no arrays.
        """
        if group is None:
            raise UsageError(
                "an episode is a tree: name a group (prefix, maps/prefix/task/CAMERA, policy), or use "
                "xarray.open_datatree"
            )
        tree = self.open_datatree(
            filename_or_obj, drop_variables=drop_variables, episode=episode, run=run, group=group
        )
        return tree.to_dataset()


def _only(store: Store, run: str | None) -> Episode:
    commits = store.base_commits(run)
    if len(commits) != 1:
        names = ", ".join(str(c.summary.get("name")) for c in commits[:5])
        more = f", ... ({len(commits)} in all)" if len(commits) > 5 else ""
        raise SelectionError(f"name one of the store's episodes, episode=...: {names}{more or ''}")
    return store.from_commit(commits[0])


def _below(tree: xr.DataTree, group: str | None) -> xr.DataTree:
    if group is None or not group.strip("/"):
        return tree
    try:
        found = tree[group.strip("/")]
    except KeyError:
        found = None
    if not isinstance(found, xr.DataTree):
        paths = ", ".join(node.path.strip("/") for node in tree.leaves)
        raise SelectionError(f"no group {group!r}; there are: {paths}")
    # A dataset on its own: what it inherits becomes its own.
    return xr.DataTree.from_dict({"/": found.to_dataset(), **{
        node.relative_to(found): node.to_dataset() for node in found.subtree if node is not found
    }})  # fmt: skip
