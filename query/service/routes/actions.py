"""What the policy did: its action chunks, what was recorded, and how each chunk came about."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import xarray as xr
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from attnstore.store.reader.selection import check_index

from ..answers import ArrayAnswer
from ..endpoint import EPISODE, Asked, binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Number, OfEpisode
from ..payload import NPY, Json

router = new_router(EPISODE)
AXES = {
    "actions": ("keyframe", "horizon", "action_dof"),
    "actions_recorded": ("keyframe", "recorded_dof"),
    "state": ("keyframe", "state_dof"),
    "denoising": ("keyframe", "step", "horizon", "action_dof"),
}
"""Dimensions of the policy's own arrays."""
NORMALISED, DATASET = "the policy's normalised units", "the dataset's units"
UNITS = {
    "actions": NORMALISED, "actions_recorded": DATASET, "state": DATASET, "denoising": NORMALISED,
}  # fmt: skip


class PolicyArrayParameters(OfEpisode):
    """Which keyframes."""

    keyframe: Number | None = Field(None, examples=[0], description="One keyframe, or all.")
    format: Literal["npy", "json"] | None = Field(None, description="Instead of Accept.")


@router.get("/policy/{name}", responses=binary(NPY))
async def policy_array(
    asked: Asked,
    name: Literal["actions", "actions_recorded", "state", "denoising"],
    parameters: Annotated[PolicyArrayParameters, Query()],
) -> Json[ArrayAnswer] | Response:
    """Return one of the policy's own arrays, as `Episode.policy_array` does."""
    at, episode = parameters.keyframe, asked.episode

    def read() -> xr.DataArray:
        block, axes = episode.part.block(f"policy/{name}"), AXES[name]
        size = 4 * int(np.prod(block.shape))
        if at is None:
            if size > asked.service.config.limits.slice_bytes:
                raise Refusal(413, f"{name} is {size / 1e6:.0f} MB: ask for one keyframe")
            values = episode.policy_array(name)
        else:
            chosen = check_index(at, block.shape[0], "keyframe")
            values = np.asarray(block.read((slice(chosen, chosen + 1),)), np.float32)[0]
            axes = axes[1:]
        return xr.DataArray(values, dims=axes, name=name, attrs={"units": UNITS[name]})

    return await asked.array(parameters.format, read)
