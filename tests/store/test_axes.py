from __future__ import annotations

import pytest

from attnstore.store.format.axes import PHASES, STEPPED_PHASES, attention_dims, map_dims

# Written out, as the format defines them: not computed from the code.
ATTENTION = {
    "prefix": "keyframe layer head query key",
    "suffix": "keyframe step layer head query key",
    "joint": "keyframe layer head query key",
    "decode": "keyframe step layer head query key",
    "vision": "keyframe layer head query key",
}


@pytest.mark.parametrize("phase", ATTENTION)
def test_dimensions_and_their_order(phase: str) -> None:
    assert attention_dims(phase) == tuple(ATTENTION[phase].split())
    assert map_dims(phase) == tuple(ATTENTION[phase].replace("query key", "row col").split())


def test_every_phase_is_listed() -> None:
    assert set(PHASES) == set(ATTENTION)
    assert {phase for phase, dims in ATTENTION.items() if "step" in dims} == STEPPED_PHASES


@pytest.mark.parametrize("dims", [attention_dims, map_dims])
def test_an_unknown_phase_names_the_known_ones(dims: object) -> None:
    assert callable(dims)
    with pytest.raises(ValueError, match=r"one of prefix, suffix, .*; got 'Prefix'"):
        dims("Prefix")
