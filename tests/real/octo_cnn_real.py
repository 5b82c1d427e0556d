"""`attnstore cnn` on the image encoders of the real Octo: ``make test-octo``; weights are random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from octo_checkpoint import save_octo_film

import attnstore
from attnstore.cli import cli
from attnstore.ingest.cnn.base import find_layer
from attnstore.ingest.cnn.maximisation import Maximisation, maximise
from attnstore.ingest.cnn.octo_network import OctoStem, load_stem
from attnstore.ingest.policies.octo.loading import load_octo
from attnstore.query.cnn import cnn_results
from attnstore.store.errors import UsageError

STEM = ["StdConv_0", "StdConv_1", "StdConv_2", "StdConv_3", "embedding"]
FILM = ["FilmConditioning_0", "FilmConditioning_1", "FilmConditioning_2"]


@pytest.fixture(scope="module")
def stem(octo_small: Path) -> OctoStem:
    return load_stem(f"{octo_small}#primary")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Octo with FiLM in both encoders: SmallStem16 and ResNet26FILM."""
    return save_octo_film(tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    """A picture and its goal, in the network's units: (1, channel, row, col)."""
    return np.random.default_rng(1).uniform(-1, 1, (1, 6, 64, 64)).astype(np.float32)


def run(*arguments: str | Path) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def pixels(image: Any) -> Any:
    """The same picture as Octo takes it, (1, row, col, channel) of 0..255."""
    return (np.moveaxis(image, 1, -1) + 1) * 127.5


def octos_own(stem: OctoStem, image: Any) -> Any:
    """Outputs of every module of Octo's own SmallStem16."""
    from octo.model.components.vit_encoders import SmallStem16

    _, state = SmallStem16().apply(
        {"params": stem._encoder.params}, pixels(image), capture_intermediates=True
    )
    return state["intermediates"]


def test_every_camera_has_its_stem(octo_small: Path) -> None:
    filters = dict(zip(STEM, (32, 96, 192, 384, 512), strict=True))
    for camera in ("primary", "wrist"):
        rows = run("cnn", "layers", "--network", f"octo:{octo_small}#{camera}", "--json")
        assert {row["layer"]: row["filters"] for row in rows} == filters
    params = load_octo(str(octo_small), octo_small).params["octo_transformer"]
    for camera in ("primary", "wrist"):
        own = params[f"observation_tokenizers_{camera}"]["SmallStem16_0"]
        stem = load_stem(f"{octo_small}#{camera}")
        jax.tree_util.tree_map(np.testing.assert_array_equal, own, stem._encoder.params)
    with pytest.raises(UsageError, match="several cameras; name one with #"):
        load_stem(str(octo_small))
    with pytest.raises(UsageError, match="takes no instruction"):
        load_stem(f"{octo_small}#wrist", "wipe")


def test_feature_maps_are_octos_own_and_see_the_goal(
    stem: OctoStem, image: NDArray[np.float32]
) -> None:
    assert stem.channels == 6
    own = octos_own(stem, image)
    other = image.copy()
    other[:, 3:] = -1  # no goal
    for layer in stem.layers:
        maps = stem.activations(layer, image)
        expected = np.moveaxis(own[layer.name]["__call__"][0], -1, 1)
        np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
        assert not np.allclose(maps, stem.activations(layer, other), atol=1e-2)


@pytest.mark.parametrize("name", ["StdConv_0", "StdConv_2", "embedding"])
def test_the_ascents_gradient_is_a_finite_difference(
    stem: OctoStem, image: NDArray[np.float32], name: str
) -> None:
    layer, filter = find_layer(stem, name), 3
    (value,), gradient = stem.ascent(layer, image, [filter])
    maps = np.asarray(octos_own(stem, image)[name]["__call__"][0])[..., filter]
    assert value == pytest.approx(maps.clip(0).mean(), rel=1e-4)

    def at(step: float, direction: NDArray[np.float32]) -> float:
        maps = octos_own(stem, image + np.float32(step) * direction)[name]["__call__"][0]
        return float(np.asarray(maps, np.float64)[..., filter].clip(0).mean())

    # The goal's channels are as much an input as the camera's.
    for channels in (slice(0, 3), slice(3, 6)):
        along = np.zeros_like(image)
        along[:, channels] = gradient[:, channels] / np.linalg.norm(gradient[:, channels])
        slope = (at(0.02, along) - at(-0.02, along)) / 0.04
        assert slope == pytest.approx((gradient * along).sum(), rel=0.05)
        assert slope > 0


def test_the_objective_rises(stem: OctoStem) -> None:
    settings = Maximisation(size=64, iterations=60)
    # From the second convolution on, a group normalisation before it bounds what can be had.
    for name, factor in (("StdConv_0", 10), ("StdConv_1", 5)):
        found = maximise(stem, find_layer(stem, name), range(4), settings)
        first, last = found.objective[:, 0], found.objective[:, -1]
        assert (last >= factor * first).all(), (name, first, last)


@pytest.mark.parametrize(("name", "relus"), [("StdConv_0", 0), ("StdConv_2", 2), ("embedding", 4)])
def test_guided_backpropagation_is_the_rule_stage_by_stage(
    stem: OctoStem, image: NDArray[np.float32], name: str, relus: int
) -> None:
    """Octo's own convolutions and normalisations, one by one; the rule between them in NumPy."""
    from octo.model.components.vit_encoders import StdConv

    params = stem._encoder.params
    backs, gates = [], []
    x = jnp.asarray(pixels(image) / 127.5 - 1)
    for n, features in enumerate((32, 96, 192, 384)[:relus]):
        conv = StdConv(features, (3, 3), strides=(2, 2), padding=1)

        def stage(x: Any, n: int = n, conv: Any = conv) -> Any:
            x = conv.apply({"params": params[f"StdConv_{n}"]}, x)
            return nn.GroupNorm().apply({"params": params[f"GroupNorm_{n}"]}, x)

        before, back = jax.vjp(stage, x)
        backs.append(back)
        gates.append(np.asarray(before) > 0)
        x = jnp.maximum(before, 0)
    if name == "embedding":
        last: Any = nn.Conv(512, (1, 1), padding="VALID")
    else:
        last = StdConv(params[name]["kernel"].shape[-1], (3, 3), strides=(2, 2), padding=1)
    maps, back = jax.vjp(lambda x: last.apply({"params": params[name]}, x), x)
    filter = 5
    start = np.zeros(maps.shape, np.float32)
    peak = np.unravel_index(np.asarray(maps)[..., filter].argmax(), maps.shape[:3])
    start[peak[0], peak[1], peak[2], filter] = 1
    (gradient,) = back(jnp.asarray(start))
    for stage_back, gate in zip(reversed(backs), reversed(gates), strict=True):
        (gradient,) = stage_back(jnp.maximum(gradient, 0) * gate)

    found = stem.guided(find_layer(stem, name), image, filter, "max")
    expected = np.moveaxis(np.asarray(gradient), -1, 1)
    np.testing.assert_allclose(found.gradient, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 0
    assert found.relus == relus
    assert found.value[0] == pytest.approx(
        float(np.asarray(maps)[peak[0], peak[1], peak[2], filter]), rel=1e-4
    )


def test_into_the_store_and_onto_pictures(octo_small: Path, tmp_path: Path) -> None:
    root, view = tmp_path / "store", tmp_path / "view.png"
    cv2.imwrite(str(view), np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    network = ("--network", f"octo:{octo_small}#wrist", root, "--json")
    some = ("--layer", "StdConv_1", "--filters", "0,7")
    run("cnn", "filters", *network, *some, "--size", "32", "--iterations", "4", "--shots", "2")
    for kind in ("activations", "guided"):
        run("cnn", kind, *network, *some, "--image", view, "--size", "64")
    results = {r.spec.kind: r for r in cnn_results(attnstore.open(root))}
    assert results["filters"].shape("image") == (2, 6, 32, 32)
    assert results["activations"].shape("activation") == (1, 2, 16, 24)
    assert results["guided"].shape("gradient") == (1, 2, 6, 64, 96)
    written = run("render", "cnn", root, "--out", tmp_path / "out", "--json")
    names = {Path(row["path"]).name for row in written}
    assert {"filters.png", "StdConv_1.png", "StdConv_1.webm", "00000.png"} <= names


@pytest.mark.parametrize(("camera", "blocks"), [("primary", FILM[:1]), ("wrist", FILM)])
def test_film_of_a_checkpoint(film: Path, camera: str, blocks: list[str]) -> None:
    """γ, β and what comes after them are those of a run of the whole model."""
    model = load_octo(str(film), film)
    seen, slot = model.example_batch["observation"], f"observation_tokenizers_{camera}"
    size = seen[f"image_{camera}"].shape[2]
    black = np.full((1, 6, size, size), -1, np.float32)
    gammas = []
    for said in ("wipe the table", "open the drawer"):
        tasks = model.create_tasks(texts=[said])
        tokenizer = model.module.octo_transformer.observation_tokenizers[camera]
        _, state = tokenizer.clone(parent=None).apply(
            {"params": model.params["octo_transformer"][slot]}, seen, tasks, train=False,
            capture_intermediates=True,
        )  # fmt: skip
        ((_, own),) = [(k, v) for k, v in state["intermediates"].items() if k != "__call__"]
        rows = run(
            "cnn", "layers", "--network", f"octo:{film}#{camera}", "--instruction", said, "--json"
        )
        told = {row["film"]: row for row in rows if "film" in row}
        assert list(told) == blocks
        for name, row in told.items():
            for dense, values in (("Dense_0", row["gamma"]), ("Dense_1", row["beta"])):
                expected = own[name][dense]["__call__"][0][0]
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        gammas.append(told[blocks[0]]["gamma"])
        network = load_stem(f"{film}#{camera}", said)
        layer = network.layers[-1]
        expected = own
        for part in layer.name.split("."):
            expected = expected[part]
        expected = np.moveaxis(np.asarray(expected["__call__"][0][:1]), -1, 1)
        maps = network.activations(layer, black)
        np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
        assert network.guided(layer, black, 0, "max").relus > 0
        assert network.weights.endswith(f"instruction {said!r}")
    assert gammas[0] != gammas[1]
