"""Action metrics and curve areas against optimisation and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnstore.store.errors import UsageError
from attnstore.store.format.action_metrics import action_metrics, curve_area
from attnstore.store.tables.probes import ACTION_METRICS

CHUNK = arrays(
    np.float64, (3, 4), elements=st.floats(-5, 5).map(lambda x: round(x, 3)), fill=st.nothing()
)


@given(CHUNK, CHUNK)
def test_they_are_what_their_definitions_say(a: np.ndarray, b: np.ndarray) -> None:
    found = action_metrics(a, b, 3)
    assert list(found) == list(ACTION_METRICS)
    x, y = a[:, :3].ravel(), b[:, :3].ravel()
    assert found["mse"] == pytest.approx(sum((x - y) ** 2) / 9)
    if not x.any():
        assert all(np.isnan(found[name]) for name in ("si_mse", "scale", "cosine"))
        return
    length = np.sqrt(sum(x * x))
    assert found["scale"] == pytest.approx(np.sqrt(sum(y * y)) / length)
    # the smallest over a fine grid of alpha, and never below it
    at = np.linspace(0, 2 * length / np.linalg.norm(y), 4001) if y.any() else np.zeros(1)
    tried = ((at[:, None] * y - x) ** 2).sum(1) / length**2
    assert found["si_mse"] <= tried.min() + 1e-9
    assert found["si_mse"] == pytest.approx(tried.min(), abs=1e-5)
    if y.any():
        assert found["cosine"] == pytest.approx(sum(x * y) / length / np.linalg.norm(y), abs=1e-9)
    else:
        assert np.isnan(found["cosine"])


def test_equal_actions_are_exactly_equal_and_reversed_ones_are_as_wrong_as_can_be() -> None:
    a = np.random.default_rng(0).normal(size=(5, 8))
    same = {name: value.item() for name, value in action_metrics(a, a.copy(), 8).items()}
    assert same == pytest.approx({"mse": 0, "si_mse": 0, "scale": 1, "cosine": 1}, abs=1e-15)
    assert same["mse"] == same["si_mse"] == 0
    back = action_metrics(a, -a, 8)
    assert back["si_mse"] == 1
    assert back["cosine"] == pytest.approx(-1)
    longer = action_metrics(a, 3 * a, 8)
    assert longer["si_mse"] == pytest.approx(0, abs=1e-15)
    assert longer["scale"] == pytest.approx(3)


def test_padding_does_not_count() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4, 6))
    other = np.concatenate([b[:, :4], rng.normal(size=(4, 2))], 1)
    for name, value in action_metrics(a, b, 4).items():
        assert action_metrics(a, other, 4)[name] == value
    with pytest.raises(UsageError, match="6 components, 7 cannot be their real degrees"):
        action_metrics(a, b, 7)


def test_leading_axes_are_kept() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 7, 2, 4, 6))
    found = action_metrics(a, b, 6)
    for i in range(7):
        for j in range(2):
            one = action_metrics(a[i, j], b[i, j], 6)
            assert all(found[name][i, j] == pytest.approx(one[name]) for name in one)


def test_area_of_a_curve() -> None:
    assert curve_area(np.array([0, 0.25, 1]), np.array([[0, 1, 1], [2, 2, 2]])) == pytest.approx(
        [0.125 + 0.75, 2]
    )
    with pytest.raises(UsageError, match="ascend from 0 to 1"):
        curve_area(np.array([0, 0.5]), np.array([1, 1]))
