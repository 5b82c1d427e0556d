"""From the command line into a store and out of it again: parts, resume, pictures without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result
from cnn_networks import vgg_like
from store_fixtures import flip_byte, write_episode

import attnstore
from attnstore.cli import cli
from attnstore.ingest.cnn.maximisation import Maximisation, maximise
from attnstore.ingest.cnn.torch_network import TorchNetwork
from attnstore.query.cnn import CnnResult, cnn_results
from attnstore.store.commits.cnn import GROUP, CnnSpec
from attnstore.store.commits.verify import verify
from attnstore.store.errors import AttnstoreError, IntegrityError, NotFoundError
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store

NETWORK = ("--network", "cnn_networks:make", "--weights", "random", "--init-seed", "7")
SMALL = ("--size", "16", "--iterations", "6", "--shots", "3")


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an episode, and every kind of result."""
    root = tmp_path_factory.mktemp("cnn") / "store"
    paths = create_store(root)
    write_episode(paths, "success/2025-12-10/one")
    image = root.parent / "view.png"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(image), pixels)
    layers = ("--layer", "2", "--layer", "@3")
    run("cnn", "filters", root, *NETWORK, *layers, "--filters", "1,4", *SMALL)
    some = ("--layer", "5", "--filters", "0,2", "--size", "24")
    run("cnn", "activations", root, *NETWORK, *some, "--image", image)
    keyframes = (
        "--episode",
        attnstore.open(root).base_commits()[0].episode,
        "--camera",
        "hand_camera",
    )
    for kind in ("activations", "guided"):
        run("cnn", kind, root, *NETWORK, *some, *keyframes)
    return root


def one(root: Path, **which: Any) -> CnnResult:
    (result,) = cnn_results(attnstore.open(root), **which)
    return result


def network() -> TorchNetwork:
    return TorchNetwork(
        vgg_like(7), name="make", weights="random weights, seed 7", trained=False
    )  # fmt: skip


def test_filters_are_stored_as_they_were_computed(root: Path) -> None:
    result = one(root, kinds=["filters"], layers=["features.7"])
    net = network()
    found = maximise(net, net.layers[3], [1, 4], Maximisation(size=16, iterations=6, shots=3))
    np.testing.assert_array_equal(result.read("image", (slice(None),)), found.images)
    np.testing.assert_allclose(
        result.read("history", (slice(None),)), found.history, atol=2e-3
    )  # fmt: skip
    np.testing.assert_allclose(result.objective(), found.objective, rtol=1e-6)
    assert result.iterations == [0, 3, 6]
    assert (result.spec.digest, result.spec.trained) == (net.digest, False)
    assert result.commit.run.startswith("cnn-make-")
    assert result.commit.episode == "network"


def test_keyframes_are_stored_beside_their_episode(root: Path) -> None:
    store = attnstore.open(root)
    episode = store.episode(store.base_commits()[0].episode)
    result = one(root, kinds=["activations"], episode=episode.id)
    assert result.commit.run == episode.run
    assert result.spec.frames == tuple(episode.frames)
    data = np.frombuffer(episode.image_bytes(1, "hand_camera"), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert pixels is not None
    height, width = pixels.shape[:2]
    shown = result.read("input", (1,))
    assert shown.shape == (24, round(24 * width / height), 3)
    net = network()
    given = np.moveaxis(shown.astype(np.float32) / 255 * 2 - 1, -1, 0)[None]
    maps = net.activations(net.layers[2], np.ascontiguousarray(given))[0, [0, 2]]
    np.testing.assert_allclose(result.read("activation", (1,)), maps, atol=1e-5)
    row = next(r for r in result.responses().to_pylist() if (r["keyframe"], r["filter"]) == (1, 2))
    assert row["frame"] == episode.frames[1]
    assert row["mean"] == pytest.approx(maps[1].mean(), abs=1e-6)
    assert row["active"] == pytest.approx((maps[1] > 0).mean())
    guided = one(root, kinds=["guided"])
    assert guided.shape("gradient")[:3] == (len(episode.frames), 2, 3)
    assert {r["relus"] for r in guided.responses().to_pylist()} == {2}


def test_the_same_settings_are_not_computed_again(root: Path) -> None:
    again = ("cnn", "filters", root, *NETWORK, "--layer", "2", "--json", *SMALL)
    (same,) = lines(run(*again, "--filters", "4,1", "--batch", "1"))
    assert (same["status"], same["revision"]) == ("present", 1)
    told = run(*(word for word in again if word != "--json"), "--filters", "4,1").stderr
    assert (
        told.splitlines()[-1]
        == f"1 result in {root}; next: attnstore render cnn {root} --out pictures"
    )
    before = len(list(cnn_results(attnstore.open(root))))
    (other,) = lines(run(*again, "--filters", "1,4", "--seed", "1"))
    assert other["status"] == "committed"
    assert len(list(cnn_results(attnstore.open(root)))) == before + 1
    (redone,) = lines(run(*again, "--filters", "1,4", "--seed", "1", "--redo"))
    assert (redone["status"], redone["revision"], redone["part"]) == ("committed", 2, other["part"])


def test_plain_readers_open_a_part(root: Path) -> None:
    result = one(root, kinds=["filters"], layers=["7"])
    with xr.open_zarr(result._part.path / GROUP, consolidated=True) as opened:
        assert opened["image"].dims == ("filter", "channel", "row", "col")
        assert opened["filter"].values.tolist() == [1, 4]
        assert opened["history"].sel(iteration=6).shape == (2, 3, 16, 16)
    told: Any = zarr.open_group(str(result._part.path / GROUP), mode="r").attrs["attnstore_cnn"]
    assert told["layer"] == "features.7"


def test_the_store_copes(root: Path) -> None:
    paths = attnstore.open(root).paths
    assert list(verify(paths)) == []
    collect(paths, timedelta(0))
    assert list(verify(paths)) == []
    assert len(attnstore.open(root).episodes) == 1  # no episode was made up
    run("catalog", "rebuild", root)
    listed = lines(run("ls", root, "--json"))
    assert {"make", "view.png"} <= {row["episode"] for row in listed}
    counts = attnstore.open(root).sql(
        "SELECT count(DISTINCT part), count(*) FROM cnn_objective WHERE module = 'features.7'"
    )
    assert counts.fetchall() == [(1, 2 * 7)]
    kinds = attnstore.open(root).sql("SELECT DISTINCT kind FROM cnn_response ORDER BY kind")
    assert kinds.fetchall() == [("activations",), ("guided",)]


def test_pictures_are_drawn_without_torch(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'jax', 'transformers'): sys.modules[name] = None\n"
        "from attnstore.cli import main\n"
        f"main(['render', 'cnn', {str(root)!r}, '--out', {str(tmp_path)!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    names = {p.relative_to(tmp_path).as_posix().partition("/")[2] for p in tmp_path.rglob("*.*")}
    assert {"filters.png", "filters/features.7.png", "filters/features.7.webm"} <= names
    assert "filters/features.7/filter_0004.png" in names
    assert any(n.startswith("view.png-") and n.endswith("features.5/00000.png") for n in names)
    assert any("guided_hand_camera/features.5/" in n for n in names)
    picture = cv2.imread(str(next(tmp_path.rglob("filters.png"))))
    assert picture is not None
    # the line that says that the weights are random, in its colour
    assert (np.abs(picture.astype(int) - (66, 176, 255)).sum(2) < 30).any()


def test_bytes_that_changed_are_seen(root: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    result = one(copy, kinds=["filters"], layers=["7"])
    file = next(f for f in result.commit.files if f.path.startswith("cnn.zarr/image/c"))
    flip_byte(result._part.path / file.path, file.size // 2)
    assert [p.file.endswith(file.path) for p in verify(attnstore.open(copy).paths)] == [True]
    with pytest.raises(IntegrityError):
        result.read("image", (slice(None),))
    (result._part.path / file.path).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        one(copy, kinds=["filters"], layers=["7"]).read("image", (0,))


def test_what_is_not_there(root: Path) -> None:
    store = attnstore.open(root)
    with pytest.raises(NotFoundError, match="there are: activations of make features.5"):
        cnn_results(store, kinds=["filters"], layers=["features.99"])
    with pytest.raises(NotFoundError, match=r"\(filters\) has no array gradient"):
        one(root, kinds=["filters"], layers=["7"]).read("gradient", (0,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("filters", *NETWORK, "--layer", "features.6"), "no convolution 'features.6'; the nearest"),
        (("filters", *NETWORK, "--layer", "2", "--filters", "8"), "has filters 0 to 7; got 8"),
        (("guided", *NETWORK, "--layer", "2"), "no picture: pass --image FILE, or --episode"),
        (("guided", *NETWORK, "--layer", "2", "--image", "no.png"), "no picture no.png"),
        (("guided", *NETWORK, "--layer", "2", "--camera", "x", "--image", __file__), "--camera is of"),
        (("activations", *NETWORK, "--layer", "2", "--image", __file__), "cannot be decoded"),
        (("filters", "--network", "cnn_networks:gone", "--layer", "2"), "cannot be imported"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(root: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(AttnstoreError, match=message) as caught:
        run("cnn", arguments[0], root, *arguments[1:])
    assert "\n" not in str(caught.value)


def test_a_description_survives_its_journey(root: Path) -> None:
    result = one(root, kinds=["filters"], layers=["7"])
    assert isinstance(result.spec, CnnSpec)
    assert result.spec.part == result.commit.part
    assert replace(result.spec, filters=(1,)).part != result.commit.part
