"""Activation maximisation and guided backpropagation, against hand computations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cnn_networks import PERIOD, Functional, gratings, vgg_like
from numpy.typing import NDArray
from torch import nn

from attnstore.ingest.cnn.base import ConvNetwork, check_filters, find_layer
from attnstore.ingest.cnn.loading import load_network
from attnstore.ingest.cnn.maximisation import Maximisation, maximise
from attnstore.ingest.cnn.rectification import GuidedRectification
from attnstore.ingest.cnn.torch_network import TorchNetwork
from attnstore.store.errors import NotFoundError, UsageError

QUICK = Maximisation(size=32, iterations=40, jitter=2)
CALLS = (
    "module", "module in place", "F.relu", "F.relu in place", "F.relu_", "torch.relu",
    "Tensor.relu", "Tensor.relu_",
)  # fmt: skip


def network(module: nn.Module | None = None, **changes: Any) -> TorchNetwork:
    given = {"name": "net", "weights": "random weights, seed 0", "trained": False, **changes}
    return TorchNetwork(vgg_like() if module is None else module, **given)


# activation maximisation


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_objective_rises_at_least_tenfold(seed: int) -> None:
    net = network(vgg_like(seed))
    for layer in net.layers:
        found = maximise(net, layer, range(layer.filters), QUICK)
        first, last = found.objective[:, 0], found.objective[:, -1]
        assert (last >= 10 * np.abs(first)).all(), (layer.name, first, last)
        assert (last > 0).all()


def test_the_trace_is_the_objective_of_the_images() -> None:
    net = network()
    layer = net.layers[2]
    found = maximise(net, layer, [3, 5], QUICK)
    maps = net.activations(layer, found.images)
    alone = [maps[0, 3].clip(0).mean(), maps[1, 5].clip(0).mean()]
    np.testing.assert_allclose(found.objective[:, -1], alone, rtol=1e-5)
    np.testing.assert_array_equal(found.history[:, -1], found.images)
    assert found.history.shape[1] == len(QUICK.kept) == QUICK.shots
    assert QUICK.kept[0] == 0
    assert QUICK.kept[-1] == QUICK.iterations


def test_a_batch_gives_what_one_at_a_time_gives() -> None:
    net = network()
    layer = net.layers[3]
    together = maximise(net, layer, [1, 4, 7], QUICK)
    for at, number in enumerate(together.filters):
        alone = maximise(net, layer, [number], QUICK)
        np.testing.assert_allclose(together.images[at], alone.images[0], atol=2e-3)
        np.testing.assert_allclose(together.objective[at], alone.objective[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("angle", [0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4])
def test_the_image_of_a_planted_grating_has_its_orientation(angle: float) -> None:
    net = network(gratings([0.3, angle]))
    settings = Maximisation(size=48, iterations=60, jitter=0, blur=0, decay=0)
    found = maximise(net, net.layers[0], [1], settings)
    power = np.abs(np.fft.fftshift(np.fft.fft2(found.images[0, 0]))) ** 2
    row, col = np.unravel_index(power.argmax(), power.shape)
    down, right = row - 24, col - 24
    seen = np.arctan2(down, right) % np.pi
    apart = min(abs(seen - angle), np.pi - abs(seen - angle))
    assert apart < np.deg2rad(8)
    assert np.hypot(down, right) == pytest.approx(48 / PERIOD, rel=0.2)


def test_a_start_depends_on_seed_layer_and_filter_alone() -> None:
    net = network()
    one = Maximisation(size=16, iterations=1, jitter=0)
    starts = [
        maximise(net, net.layers[i], [f], Maximisation(size=16, iterations=1, seed=s)).history[0, 0]
        for i, f, s in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1))
    ]
    for a in range(4):
        for b in range(a):
            assert not np.array_equal(starts[a], starts[b])
    again = maximise(net, net.layers[0], [1, 0], one)
    np.testing.assert_array_equal(again.history[1, 0], starts[0])


class Slope:
    """A network whose objective is a given linear function: every step can be computed by hand."""

    name, weights, trained, digest, channels = "slope", "none", True, "0" * 64, 1
    mean = std = (1.0,)

    def __init__(self, gradient: NDArray[np.float32]) -> None:
        from attnstore.ingest.cnn.base import Layer

        self.layers = (Layer("only", 0, 1),)
        self._gradient = gradient

    def ascent(self, layer: Any, images: Any, filters: Any) -> Any:
        values = (images * self._gradient).sum((1, 2, 3))
        return values.astype(np.float32), np.repeat(self._gradient[None], len(images), 0)

    activations = guided = None


def by_hand(gradient: NDArray[np.float32], settings: Maximisation) -> NDArray[np.float64]:
    slope: Any = Slope(gradient)
    start = maximise(slope, slope.layers[0], [0], settings).history[0, 0].astype(np.float64)
    step = gradient / np.sqrt((gradient.astype(np.float64) ** 2).mean())
    if settings.clip:
        step = step.clip(-settings.clip, settings.clip)
    for _ in range(settings.iterations):
        start = (1 - settings.decay) * start + settings.rate * step
    return np.asarray(start)


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.1)])
def test_steps_are_normalised_clipped_and_decayed(clip: float, decay: float) -> None:
    gradient = np.random.default_rng(0).standard_normal((1, 12, 12)).astype(np.float32)
    settings = Maximisation(size=12, iterations=3, jitter=0, blur=0, clip=clip, decay=decay)
    slope: Any = Slope(gradient)
    found = maximise(slope, slope.layers[0], [0], settings)
    np.testing.assert_allclose(found.images[0], by_hand(gradient, settings), rtol=1e-4, atol=1e-5)
    # the image itself is not limited
    longer = Maximisation(size=12, iterations=200, jitter=0, blur=0, clip=0.5)
    assert np.abs(maximise(slope, slope.layers[0], [0], longer).images).max() > 5


def test_a_jittered_gradient_is_rolled_back() -> None:
    gradient = np.zeros((1, 12, 12), np.float32)
    gradient[0, 5, 5] = 1
    slope: Any = Slope(gradient)
    settings = Maximisation(size=12, iterations=30, jitter=3, blur=0, decay=0, noise=0)
    grown = np.argwhere(maximise(slope, slope.layers[0], [0], settings).images[0, 0] > 0)
    assert grown.min() >= 2
    assert grown.max() <= 8
    assert len(grown) > 5


def test_blur_smooths() -> None:
    net = network()
    rough, smooth = (
        maximise(net, net.layers[0], [0], Maximisation(size=32, iterations=20, blur=b)).images
        for b in (0.0, 1.5)
    )
    assert np.abs(np.diff(smooth)).mean() < 0.7 * np.abs(np.diff(rough)).mean()


def test_an_ascent_that_leaves_the_finite_numbers_says_so() -> None:
    slope: Any = Slope(np.full((1, 4, 4), np.nan, np.float32))
    with pytest.raises(UsageError, match="only, filter 0: not finite at iteration 0; lower --rate"):
        maximise(slope, slope.layers[0], [0], Maximisation(size=4, iterations=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "rate is larger than 0"),
        ({"decay": 1.0}, "decay smaller than 1"),
        ({"shots": 1}, "shots is 0, or at least 2"),
        ({"iterations": 0}, "iterations is at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Maximisation(**changes)


# guided backpropagation


def guided_by_hand(module: Functional, image: NDArray[np.float32], filter: int) -> Any:
    """Two layers in NumPy: 3x3 convolution, ReLU, 1x1 convolution at its strongest position."""
    w1, b1 = (p.detach().double().numpy() for p in module.first.parameters())
    w2, b2 = (p.detach().double().numpy() for p in module.second.parameters())
    rows, cols = image.shape[0] - 2, image.shape[1] - 2
    before = np.empty((3, rows, cols))
    for r in range(rows):
        for c in range(cols):
            before[:, r, c] = (w1[:, 0] * image[r : r + 3, c : c + 3]).sum((1, 2)) + b1
    output = np.einsum("k,krc->rc", w2[filter, :, 0, 0], before.clip(0)) + b2[filter]
    r, c = np.unravel_index(output.argmax(), output.shape)
    back = w2[filter, :, 0, 0].clip(0) * (before[:, r, c] > 0)
    gradient = np.zeros(image.shape)
    gradient[r : r + 3, c : c + 3] = np.einsum("k,kij->ij", back, w1[:, 0])
    return gradient, output[r, c]


@pytest.mark.parametrize("call", CALLS)
def test_guided_backpropagation_equals_a_hand_computation(call: str) -> None:
    module = Functional(call)
    net = network(module)
    image = np.random.default_rng(3).standard_normal((9, 10)).astype(np.float32)
    told = []
    for filter in (0, 1):
        found = net.guided(net.layers[1], image[None, None], filter, "max")
        gradient, value = guided_by_hand(module, image, filter)
        np.testing.assert_allclose(found.gradient[0, 0], gradient, atol=1e-6)
        assert found.value[0] == pytest.approx(value, abs=1e-5)
        assert found.relus == 1  # what follows the layer is not run
        told.append(np.abs(gradient).max())
    assert max(told) > 0.05


def test_relu6_and_the_mean_over_positions() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6(inplace=True), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for part in (module[0], module[2]):
            part.weight.fill_(1.0)  # type: ignore[operator]
            part.bias.fill_(0.0)  # type: ignore[operator]
    net = network(module)
    image = np.asarray([[-1.0, 3.0], [7.0, 5.0]], np.float32)[None, None]
    found = net.guided(net.layers[1], image, 0, "mean")
    np.testing.assert_allclose(found.gradient[0, 0], [[0, 0.25], [0, 0.25]])
    assert found.value[0] == pytest.approx((0 + 3 + 6 + 5) / 4)


def test_without_relu_it_is_the_plain_gradient_and_says_so() -> None:
    net = network(nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU(), nn.Conv2d(2, 1, 1)))
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    assert net.guided(net.layers[1], image, 0, "max").relus == 0


# no trace


def state(module: nn.Module) -> Any:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
    modes = [m.training for m in module.modules()]
    grads = [p.grad is None and p.requires_grad for p in module.parameters()]
    tensors = {k: v.clone() for k, v in module.state_dict().items()}
    return hooks, modes, grads, tensors


def assert_untouched(module: nn.Module, before: Any) -> None:
    after = state(module)
    assert after[:3] == before[:3]
    assert all(torch.equal(after[3][k], v) for k, v in before[3].items())
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    (-torch.relu(x)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, -1]  # guided, this would be 0


def test_hooks_and_patches_leave_no_trace() -> None:
    module = vgg_like()
    module.train()
    module[0][3].eval()  # type: ignore[index]
    before = state(module)
    net = network(module)
    image = np.zeros((1, 3, 32, 32), np.float32)
    net.ascent(net.layers[3], image, [0])
    net.activations(net.layers[3], image)
    net.guided(net.layers[3], image, 0, "max")
    assert_untouched(module, before)


def _fails(_module: nn.Module, _inputs: Any) -> None:
    raise KeyError("a hook of the user's own")


@pytest.mark.parametrize("use", [
    lambda net, x: net.ascent(net.layers[3], x, [0]),
    lambda net, x: net.activations(net.layers[3], x),
    lambda net, x: net.guided(net.layers[3], x, 0, "max"),
])  # fmt: skip
def test_nor_do_they_after_an_exception(use: Callable[[Any, Any], Any]) -> None:
    module = vgg_like()
    module.train()
    handle = module[0][4].register_forward_pre_hook(_fails)  # type: ignore[index]
    before = state(module)
    net = network(module)
    with pytest.raises(KeyError, match="own"):
        use(net, np.zeros((1, 3, 32, 32), np.float32))
    assert_untouched(module, before)
    handle.remove()


def test_a_rectification_ends_with_its_block() -> None:
    with pytest.raises(ZeroDivisionError), GuidedRectification():
        raise ZeroDivisionError
    assert_untouched(nn.ReLU(), state(nn.ReLU()))


# loading and bad input


def test_layers_are_found_by_name_end_and_number() -> None:
    net = network()
    assert [x.name for x in net.layers] == [f"features.{i}" for i in (0, 2, 5, 7)]
    names = {t: find_layer(net, t).name for t in ("features.5", "5", "@2", "@-2")}
    assert set(names.values()) == {"features.5"}
    with pytest.raises(UsageError, match="no convolution 'features.6'; the nearest are features"):
        find_layer(net, "features.6")
    with pytest.raises(UsageError, match="convolutions @0 to @3; got '@4'"):
        find_layer(net, "@4")
    with pytest.raises(UsageError, match="features.7 has filters 0 to 11; got 12"):
        check_filters(net.layers[3], [3, 12], 16)
    assert check_filters(net.layers[3], [], 4) == (0, 1, 2, 3)
    twice: ConvNetwork = network(nn.Sequential(vgg_like(), vgg_like()))
    with pytest.raises(UsageError, match="2 convolutions of net end in 'features.0': 0.features.0"):
        find_layer(twice, "features.0")


def test_a_network_without_convolutions() -> None:
    with pytest.raises(UsageError, match=r"net has no torch.nn.Conv2d among its 2 modules"):
        network(nn.Sequential(nn.Linear(2, 2)))


def test_an_input_that_does_not_fit() -> None:
    net = network()
    with pytest.raises(
        UsageError, match=r"takes images \(image, 3, row, col\); got \(1, 1, 8, 8\)"
    ):
        net.activations(net.layers[0], np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(UsageError, match=r"cannot take an input of \(1, 3, 1, 1\) as far as features.5"):  # fmt: skip
        net.activations(net.layers[2], np.zeros((1, 3, 1, 1), np.float32))


def test_weights_from_files(tmp_path: Path) -> None:
    module = vgg_like(5)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, file)
    loaded = load_network("cnn_networks:make", str(file))
    assert loaded.digest == network(module).digest
    assert (loaded.trained, loaded.weights, loaded.name) == (True, "weights.pth", "make")
    untrained = load_network("cnn_networks:make", seed=3)
    assert untrained.digest == load_network("cnn_networks:make", "random", seed=3).digest
    assert untrained.digest != load_network("cnn_networks:make", seed=4).digest
    assert not untrained.trained
    other = tmp_path / "other.pth"
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 1)).state_dict(), other)
    with pytest.raises(
        UsageError, match=r"other.pth has weights of another network: it has no fea"
    ):
        load_network("cnn_networks:make", str(other))
    wide = module.state_dict() | {"features.0.bias": torch.zeros(9)}
    torch.save(wide, other)
    with pytest.raises(UsageError, match=r"features.0.bias is \(9,\) and not \(8,\)"):
        load_network("cnn_networks:make", str(other))
    other.write_bytes(b"no weights")
    with pytest.raises(UsageError, match="no weights that can be read"):
        load_network("cnn_networks:make", str(other))


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    file = tmp_path / "whole.pt"
    torch.save(vgg_like(5), file)
    with pytest.raises(UsageError, match="runs code when it is loaded; add --trust-pickle"):
        load_network(str(file))
    with pytest.raises(UsageError, match="whole.pt: no weights that can be read"):
        load_network("cnn_networks:make", str(file))
    assert load_network(str(file), trust=True).digest == network(vgg_like(5)).digest


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_gives_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(vgg_like(5)), file)
    assert load_network("cnn_networks:make", str(file)).digest == network(vgg_like(5)).digest
    with pytest.raises(UsageError, match="scripted.pt is TorchScript, whose compiled layers"):
        load_network(str(file), trust=True)


def test_torchvision_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        NotFoundError, match="squeezenet1_1-.*pass a file as --weights, or --weights"
    ):
        load_network("squeezenet1_1")
    net = load_network("squeezenet1_1", "random", seed=2)
    assert net.weights == "random weights, seed 2"
    assert net.mean == (0.485, 0.456, 0.406)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net._module.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    cached = load_network("squeezenet1_1")
    assert (cached.digest, cached.weights, cached.trained) == (net.digest, "IMAGENET1K_V1", True)
    with pytest.raises(UsageError, match="'squeezenet' is no network of torchvision .*squeezenet1"):
        load_network("squeezenet")
