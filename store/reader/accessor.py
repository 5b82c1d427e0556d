"""``.attn`` on any DataArray that `Episode.attention` returned."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import xarray as xr

from ..errors import SelectionError
from ..format.geometry import Geometry


@xr.register_dataarray_accessor("attn")  # type: ignore[no-untyped-call]  # xarray is untyped here
class AttentionAccessor:
    """Selections by span and label, reductions over tokens, and maps with geometry; made by xarray, `.attn`."""

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def span(self, *, query: str | None = None, key: str | None = None) -> xr.DataArray:
        """Keep the tokens of a span, by its name.

        Parameters
        ----------
        query, key
            Name of a span on that axis, such as ``image:hand_camera``; None keeps all.

        Returns
        -------
        The array with those tokens alone.

        Raises
        ------
        SelectionError
            If the array has no tokens of that span; the message lists those it has.
        """
        array = self._array
        for dim, name in (("query", query), ("key", key)):
            if name is None:
                continue
            spans = self._coordinate(f"{dim}_span").values
            keep = np.flatnonzero(spans == name)
            if not len(keep):
                present = ", ".join(dict.fromkeys(np.atleast_1d(spans).tolist()))
                raise SelectionError(f"no {dim} tokens of span {name!r} here; there are: {present}")
            array = array.isel({dim: keep})
        return array

    def reduce(
        self, how: Literal["max", "mean", "sum"], over: Literal["query", "key", "head"]
    ) -> xr.DataArray:
        """Reduce over tokens or heads; absent tokens (NaN) are left out.

        Parameters
        ----------
        how
            ``max``, ``mean`` or ``sum``.
        over
            ``query``, ``key`` or ``head``.

        Returns
        -------
        float32, without that dimension.

        Raises
        ------
        SelectionError
            If there is no such reduction.
        """
        if how not in ("max", "mean", "sum"):
            raise SelectionError(f"a reduction is max, mean or sum; got {how!r}")
        reduced: xr.DataArray = getattr(self._array.astype(np.float32), how)(over, skipna=True)
        return reduced.assign_attrs(self._array.attrs)

    def on(self, camera: str) -> xr.DataArray:
        """Turn the keys of a camera into rows and columns of its patch grid.

        Parameters
        ----------
        camera
            Whose keys.

        Returns
        -------
        The array with dims ``row`` and ``col`` in place of ``key``, coordinate ``coverage``, and
        attribute ``geometry``: the JSON of that camera's `Geometry`.

        Raises
        ------
        SelectionError
            If the array has no such camera, or not all of its patches.
        """
        geometries = json.loads(self._array.attrs.get("geometry", "{}"))
        if camera not in geometries:
            known = ", ".join(geometries) or "none"
            raise SelectionError(
                f"no geometry of camera {camera!r} in this array; there are: {known}"
            )
        geometry = Geometry.from_json(json.dumps(geometries[camera]))
        part = self.span(key=f"image:{camera}")
        rows, cols = geometry.grid
        if part.sizes["key"] != rows * cols:
            raise SelectionError(
                f"{part.sizes['key']} of {rows * cols} patches of {camera} are in this array; keep all of them"
            )
        dropped = [name for name, c in part.coords.items() if "key" in c.dims]
        axis = part.get_axis_num("key")
        assert isinstance(axis, int)
        shape = (*part.shape[:axis], rows, cols, *part.shape[axis + 1 :])
        dims = (*part.dims[:axis], "row", "col", *part.dims[axis + 1 :])
        coords = dict(part.drop_vars(dropped).coords)
        result = xr.DataArray(
            part.values.reshape(shape), coords, dims, name=part.name, attrs=part.attrs
        )
        return result.assign_coords(coverage=(("row", "col"), geometry.coverage())).assign_attrs(
            geometry=geometry.to_json(), camera=camera
        )

    def _coordinate(self, name: str) -> xr.DataArray:
        if name not in self._array.coords:
            raise SelectionError(f"this array has no coordinate {name!r}; it is not from attnstore")
        coordinate: xr.DataArray = self._array.coords[name]
        return coordinate
