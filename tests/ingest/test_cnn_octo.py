"""The image encoder of a model with Octo's module names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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


def alone(model: OctoModel, image: Any, layer: str = "StdConv_1") -> Any:
    """Output of a convolution, by flax's own way of asking for intermediates."""
    from octo_fixture import SmallStem16

    params = model.params["octo_transformer"]["observation_tokenizers_primary"]["SmallStem16_0"]
    _, state = SmallStem16().apply({"params": params}, image, capture_intermediates=True)
    return state["intermediates"][layer]["__call__"][0]


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


def objective(model: OctoModel, image: Any, filter: int, layer: str) -> Any:
    """The mean of what is positive, or of all if nothing is, of one image in the network's units."""
    maps = alone(model, jnp.moveaxis(image, 1, -1) * 127.5 + 127.5, layer)[..., filter]
    return jnp.where((maps > 0).any(), jnp.maximum(maps, 0).mean(), maps.mean())


def test_each_image_climbs_the_gradient_of_its_own_filter(model: OctoModel, stem: OctoStem) -> None:
    image = np.random.default_rng(2).uniform(-1, 1, (2, 6, 32, 32)).astype(np.float32)
    values, gradient = stem.ascent(stem.layers[1], image, [1, 3])
    for i, filter in enumerate((1, 3)):
        one = jnp.asarray(image[i : i + 1])
        own, slope = jax.value_and_grad(lambda x: objective(model, x, filter, "StdConv_1"))(one)  # noqa: B023
        assert values[i] == pytest.approx(float(own), rel=1e-4)
        np.testing.assert_allclose(gradient[i], slope[0], atol=1e-4 * np.abs(slope).max())


def test_a_filter_that_answers_nowhere_climbs_its_mean(model: OctoModel, stem: OctoStem) -> None:
    layer = stem.layers[0]
    flat = np.stack([np.full((6, 16, 16), v, np.float32) for v in (-1, -0.5, 0.5, 1)])
    at, filter = np.argwhere(stem.activations(layer, flat).max((2, 3)) <= 0)[0]
    image = flat[at : at + 1]
    (value,), gradient = stem.ascent(layer, image, [int(filter)])
    assert value == 0
    slope = jax.grad(lambda x: objective(model, x, filter, "StdConv_0"))(jnp.asarray(image))
    assert np.abs(slope).max() > 0
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


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


@pytest.fixture(scope="module")
def film() -> OctoModel:
    return build_octo(encoder="FilmStem", slots=("primary",))


def test_film_has_the_instructions_gamma_and_beta(stem: OctoStem, film: OctoModel) -> None:
    assert stem.film == []
    told = {}
    for said in ("pick it up", "wipe", None):
        words = film.text_processor.encode([said or ""])
        task = film.example_batch["task"] | {"language_instruction": words}
        seen = film.example_batch["observation"]
        # What the whole model computes, by flax's own way of asking for intermediates.
        _, state = film.module.apply(
            {"params": film.params}, seen, task, seen["timestep_pad_mask"],
            method="octo_transformer", capture_intermediates=True,
        )  # fmt: skip
        whole = state["intermediates"]["octo_transformer"]["observation_tokenizers_primary"]
        dense = whole["FilmStem_0"]["FilmConditioning_0"]
        network = OctoStem(film, None, weights="small", instruction=said)
        (block,) = network.film
        assert block.name == "FilmConditioning_0"
        for name, values in (("Dense_0", block.gamma), ("Dense_1", block.beta)):
            np.testing.assert_allclose(dense[name]["__call__"][0][0], values, rtol=1e-4, atol=1e-5)
        # The example's images are black, the goal's as well.
        black = np.full((1, 6, 64, 64), -1, np.float32)
        maps = network.activations(find_layer(network, "embedding"), black)
        after = whole["FilmStem_0"]["embedding"]["__call__"][0][:1]
        np.testing.assert_allclose(maps, np.moveaxis(after, -1, 1), rtol=1e-3, atol=1e-3)
        before = network.activations(find_layer(network, "StdConv_0"), black)
        told[said] = block.gamma, maps, before
        assert network.weights == f"small, instruction {said or ''!r}"
    for at, same in ((0, False), (1, False), (2, True)):
        assert np.array_equal(told["wipe"][at], told["pick it up"][at]) == same


def test_film_conditions_every_image_of_a_batch(film: OctoModel) -> None:
    network = OctoStem(film, "primary", weights="small", instruction="wipe")
    settings = Maximisation(size=32, iterations=8, rate=0.05, jitter=0, blur=0, decay=0)
    layer = find_layer(network, "embedding")
    found = maximise(network, layer, range(3), settings)
    alone = maximise(network, layer, [2], settings)
    np.testing.assert_allclose(found.images[2], alone.images[0], atol=2e-3)
    assert (found.objective[:, -1] > found.objective[:, 0]).all()


def test_an_instruction_needs_film(model: OctoModel) -> None:
    with pytest.raises(UsageError, match="small: the encoder of wrist takes no instruction"):
        OctoStem(model, "wrist", weights="small", instruction="wipe")
