"""The image encoder of a model with Octo's module names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from octo_fixture import OctoModel, build_octo

from attnstore.ingest.cnn.base import ConvNetwork, find_layer
from attnstore.ingest.cnn.maximisation import Maximisation, maximise
from attnstore.ingest.cnn.octo_network import OctoStem
from attnstore.store.errors import UsageError


@pytest.fixture(scope="module")
def model() -> OctoModel:
    return build_octo()


@pytest.fixture(scope="module")
def stem(model: OctoModel) -> OctoStem:
    return OctoStem(model, "primary", weights="small")


def alone(model: OctoModel, image: Any) -> Any:
    """Output of the second convolution, by flax's own way of asking for intermediates."""
    from octo_fixture import SmallStem16

    params = model.params["octo_transformer"]["observation_tokenizers_primary"]["SmallStem16_0"]
    _, state = SmallStem16().apply({"params": params}, image, capture_intermediates=True)
    return state["intermediates"]["StdConv_1"]["__call__"][0]


def test_the_encoder_of_a_camera_is_taken_out_whole(model: OctoModel, stem: OctoStem) -> None:
    network: ConvNetwork = stem
    assert [x.name for x in network.layers] == [*(f"StdConv_{i}" for i in range(4)), "embedding"]
    assert [x.filters for x in network.layers[:4]] == [4, 6, 8, 8]
    assert network.channels == 6  # the camera's and its goal's
    image = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 6)).astype(np.float32)
    units = np.moveaxis(image / 127.5 - 1, -1, 1)
    maps = network.activations(find_layer(network, "StdConv_1"), units)
    np.testing.assert_allclose(maps, np.moveaxis(alone(model, image), -1, 1), rtol=1e-4, atol=1e-4)


def test_cameras_are_named(model: OctoModel) -> None:
    with pytest.raises(
        UsageError, match="small: several cameras; name one with #; .* primary, wrist"
    ):
        OctoStem(model, None, weights="small")
    with pytest.raises(UsageError, match="small: no side; its cameras are primary, wrist"):
        OctoStem(model, "side", weights="small")
    assert OctoStem(model, "wrist", weights="small").name == "octo-wrist"


def test_filters_climb_each_for_itself(stem: OctoStem) -> None:
    settings = Maximisation(size=32, iterations=40, rate=0.05, jitter=0, blur=0, decay=0)
    layer = stem.layers[1]
    found = maximise(stem, layer, range(4), settings)
    # not tenfold: a group normalisation before the layer bounds what can be had
    assert (found.objective[:, -1] > found.objective[:, 0] + 0.5).all()
    single = maximise(stem, layer, [2], settings)
    np.testing.assert_allclose(found.images[2], single.images[0], atol=2e-3)


def test_guided_backpropagation_follows_its_rule_and_leaves_no_trace(stem: OctoStem) -> None:
    former = nn.relu, jax.nn.relu
    image = np.random.default_rng(1).uniform(-1, 1, (1, 6, 32, 32)).astype(np.float32)
    first = stem.guided(stem.layers[0], image, 0, "mean")
    assert first.relus == 0
    found = stem.guided(stem.layers[2], image, 1, "max")
    assert found.relus == 2
    assert (nn.relu, jax.nn.relu) == former
    plain = jax.grad(lambda x: stem._output(stem.layers[2], x)[..., 1].max())
    gradient = np.moveaxis(np.asarray(plain(np.moveaxis(image, 1, -1))), -1, 1)
    assert not np.allclose(gradient, found.gradient)
    with pytest.raises(TypeError):
        stem.guided(stem.layers[2], image, "one", "max")  # type: ignore[arg-type]
    assert (nn.relu, jax.nn.relu) == former


def test_the_rule_by_hand() -> None:
    from attnstore.ingest.cnn.octo_network import _guided_relu

    with _guided_relu():
        back = jax.grad(lambda x: (nn.relu(x) * np.asarray([1, -1, 1, -1], np.float32)).sum())
        assert back(np.asarray([2, 2, -2, -2], np.float32)).tolist() == [1, 0, 0, 0]


def test_film_norms(stem: OctoStem) -> None:
    assert stem.film == []
    dense = {"kernel": np.full((2, 2), 2.0), "bias": np.zeros(2)}
    none = {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}
    other = object.__new__(OctoStem)
    other._params = {"block": {"FilmConditioning_0": {"Dense_0": dense, "Dense_1": none}}}
    assert other.film == [("block.FilmConditioning_0", 4.0, 0.0)]
