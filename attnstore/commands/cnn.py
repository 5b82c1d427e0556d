"""``attnstore cnn``: what convolutional networks have learned and see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .options import (
    EpisodeChoice,
    FiniteNumber,
    NumberList,
    StoreGroup,
    StoreName,
    add_options,
    episode_options,
    grouped,
    json_option,
    store_to_write,
)
from .output import print_json, progress_of, say, say_made

if TYPE_CHECKING:
    from attnstore.ingest.cnn.base import ConvNetwork, Layer
    from attnstore.ingest.cnn.pictures import Pictures
    from attnstore.ingest.cnn.results import Added

FILTERS = 16
"""Filters of a layer that are taken unless some are named."""


@click.group(cls=StoreGroup)
def cnn() -> None:
    """See what a convolutional network has learned: filters, feature maps, guided backpropagation.

    For any PyTorch network with Conv2d layers, and for the image encoder of Octo. Results are
    committed to the store, a part for each layer; `attnstore render cnn` draws them without torch.
    """


def _values(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else tuple(_finite(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"numbers such as 0.485,0.456,0.406 are expected; got {value!r}"
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """Which network, with which weights."""

    name: str
    weights: str | None
    init_seed: int
    trust_pickle: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    instruction: str | None
    device: str

    def load(self, weights: str | None = None) -> ConvNetwork:
        """Load it; `weights` stand for those that are not named."""
        if self.name.startswith("octo:"):
            from attnstore.ingest.cnn.octo_network import load_stem

            if self.weights is not None or self.mean or self.std:
                raise UsageError(
                    f"{self.name}: an Octo checkpoint brings its weights and its scale; drop "
                    "--weights, --mean and --std"
                )
            return load_stem(self.name.removeprefix("octo:"), self.instruction)
        if self.instruction is not None:
            raise UsageError(f"{self.name}: --instruction is of Octo's encoders; leave it out")
        from attnstore.ingest.cnn.loading import load_network

        return load_network(
            self.name, self.weights or weights, seed=self.init_seed, mean=self.mean, std=self.std,
            trust=self.trust_pickle, device=self.device,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """Which of its layers and filters."""

    layer_names: tuple[str, ...]
    filters: tuple[int, ...] | None
    redo: bool

    def of(self, network: ConvNetwork) -> list[tuple[Layer, tuple[int, ...]]]:
        """Every layer and its filters, checked before anything is computed."""
        from attnstore.ingest.cnn.base import check_filters, find_layer

        layers = dict.fromkeys(find_layer(network, name) for name in self.layer_names)
        return [(layer, check_filters(layer, self.filters or (), FILTERS)) for layer in layers]


@dataclass(frozen=True, slots=True)
class PictureChoice:
    """Picture files, and keyframes of the store's episodes."""

    files: tuple[Path, ...]
    camera: str | None
    keyframes: tuple[int, ...] | None
    size: int

    def of(self, root: StoreName, episodes: EpisodeChoice) -> Iterator[Pictures]:
        """Yield the pictures file by file and episode by episode."""
        from attnstore.ingest.cnn.pictures import Pictures, picture_file

        yield from map(picture_file, self.files)
        if not episodes.names and episodes.where is None:
            given = {"camera": self.camera, "keyframes": self.keyframes, "run": episodes.run}
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"--{name} is of episodes; pass --episode or --where")
            return
        from attnstore.query import open as open_for_reading
        from attnstore.store.reader.selection import check_index

        for episode in episodes.open(open_for_reading(root)):
            camera = self.camera or (episode.cameras[0] if len(episode.cameras) == 1 else None)
            if camera not in episode.cameras:
                told = (
                    f"no camera {camera}" if camera else "several cameras, name one with --camera"
                )
                raise UsageError(f"{episode.name}: {told}; it has {', '.join(episode.cameras)}")
            keyframes = tuple(
                check_index(k, len(episode.frames), "keyframe")
                for k in self.keyframes or range(len(episode.frames))
            )
            yield Pictures(
                episode.run, episode.id, episode.name,
                tuple(episode.image_bytes(k, camera) for k in keyframes),
                # The attempt, and not the revision: an episode may be ingested again.
                episode.part.commit.attempt, keyframes,
                tuple(int(episode.frames[k]) for k in keyframes), camera,
            )  # fmt: skip


_NETWORK = grouped(
    "network",
    NetworkChoice,
    click.option("--network", "name", required=True, metavar="NAME|MODULE:CALLABLE|FILE",
                 help="torchvision's name (vgg16), a function that makes the network, a pickled "
                      "module, or octo:CHECKPOINT (octo:CHECKPOINT#wrist: that camera's encoder)."),
    click.option("--weights", metavar="cache|random|own|FILE",
                 help="torchvision's cache, none, what MODULE:CALLABLE loads itself, or a file (state "
                      "dict, safetensors, TorchScript).  [default: cache, random for a callable]"),
    click.option("--init-seed", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Of random weights."),
    click.option("--trust-pickle", is_flag=True,
                 help="Load a pickled module, which can run any code."),
    click.option("--mean", callback=_values, metavar="LIST",
                 help="Of pixels 0..1 per channel.  [default: torchvision's, else 0.5]"),
    click.option("--std", callback=_values, metavar="LIST", help="As --mean."),
    click.option("--instruction", metavar="TEXT",
                 help="Of an Octo whose encoder has FiLM.  [default: empty]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps."),
)  # fmt: skip
_LAYERS = grouped(
    "layers",
    LayerChoice,
    click.option("--layer", "layer_names", multiple=True, required=True, metavar="NAME|@NUMBER",
                 help="Convolution: features.10, 10, or @4 for the fifth; repeatable."),
    click.option("--filters", "filters", type=NumberList(), metavar="LIST",
                 help=f"0,3,8-11.  [default: the first {FILTERS}]"),
    click.option("--redo", is_flag=True, help="Compute what is there with the same settings, too."),
)  # fmt: skip
_PICTURES = grouped(
    "pictures",
    PictureChoice,
    click.option("--image", "files", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
                 help="Picture file; repeatable."),
    click.option("--camera", metavar="NAME", help="Of the episodes.  [default: the only one]"),
    click.option("--keyframes", type=NumberList(), metavar="LIST", help="0,2,5-7.  [default: all]"),
    click.option("--size", type=click.IntRange(min=1), default=224, show_default=True,
                 metavar="PIXELS", help="Shorter side of the network's input; the aspect stays."),
)  # fmt: skip


@cnn.command()
@add_options(_NETWORK, json_option)
def layers(network: NetworkChoice, as_json: bool) -> None:
    """List a network's convolutions, and an Octo's FiLM blocks with their γ and β.

    torchvision's networks need no weights for that.

    Examples
    --------
    attnstore cnn layers --network vgg16
    """
    loaded = network.load("random" if network.name.isidentifier() else None)
    films = getattr(loaded, "film", ())
    if as_json:
        print_json(
            {"number": x.index, "layer": x.name, "filters": x.filters} for x in loaded.layers
        )
        print_json(
            {"film": f.name, "gamma": f.gamma.tolist(), "beta": f.beta.tolist()} for f in films
        )
        return
    click.echo(f"{loaded.name}, weights: {loaded.weights}")
    for layer in loaded.layers:
        click.echo(f"@{layer.index:<4} {layer.name}  {layer.filters} filters")
    for film in films:
        sizes = (float((v**2).mean() ** 0.5) for v in (film.gamma, film.beta))
        gamma, beta = (f"{size:.3g}" for size in sizes)
        click.echo(
            f"{film.name}  {len(film.gamma)} channels, RMS of γ {gamma}, of β {beta} (0: no effect)"
        )


@cnn.command()
@add_options(store_to_write, _NETWORK, _LAYERS)
@click.option("--size", type=click.IntRange(min=1), default=128, show_default=True,
              metavar="PIXELS", help="Of the image that is made.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(min=1), default=100, show_default=True,
              help="Steps of the ascent.")  # fmt: skip
@click.option("--rate", type=FiniteNumber(), default=0.1, show_default=True,
              help="RMS of a step, in the network's units (standard deviations of pixels).")  # fmt: skip
@click.option("--blur", type=FiniteNumber(min=0), default=0.5, show_default=True,
              metavar="PIXELS", help="Gaussian blur of the image; 0: none.")  # fmt: skip
@click.option("--blur-every", type=click.IntRange(min=1), default=4, show_default=True,
              metavar="ITERATIONS", help="Iterations from one blur to the next.")  # fmt: skip
@click.option("--clip", type=FiniteNumber(min=0), default=0.0, show_default=True,
              metavar="RMS", help="Limit of a pixel's gradient, in RMS of the gradient; 0: none.")  # fmt: skip
@click.option("--decay", type=FiniteNumber(0, 1, max_open=True), default=0.005,
              show_default=True, help="L2 decay: share of the image lost at an iteration.")  # fmt: skip
@click.option("--jitter", type=click.IntRange(min=0), default=4, show_default=True,
              metavar="PIXELS", help="The image is rolled by up to this, and back.")  # fmt: skip
@click.option("--noise", type=FiniteNumber(min=0), default=0.1, show_default=True,
              help="Standard deviation of the start.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the start and of the jitter.")  # fmt: skip
@click.option("--shots", type=click.IntRange(min=0), default=12, show_default=True,
              help="Images on the way that are kept for the video; 0: none.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="Filters that climb at once; does not change the results.")  # fmt: skip
@add_options(json_option)
def filters(
    store: StoreName, network: NetworkChoice, layers: LayerChoice, batch: int, as_json: bool,
    **settings: float,
) -> None:  # fmt: skip
    """Make the image that each filter answers most to: activation maximisation.

    Examples
    --------
    attnstore cnn filters lab.attn --network vgg16 --layer features.10 --filters 0-15
    """
    from attnstore.ingest.cnn.maximisation import Maximisation
    from attnstore.ingest.cnn.results import add_filters
    from attnstore.store.opening import create_store

    ascent: dict[str, Any] = {f.name: settings[f.name] for f in fields(Maximisation)}
    loaded = network.load()
    chosen = layers.of(loaded)
    paths = create_store(store)
    for layer, numbers in chosen:
        with _progress(f"{loaded.name} {layer.name}", "filters") as progress:
            added = add_filters(
                paths, loaded, layer, numbers, Maximisation(**ascent), batch=batch,
                redo=layers.redo, progress=progress,
            )  # fmt: skip
        _say(added, as_json)
    _conclude(len(chosen), store, as_json)


_LOOK = (store_to_write, _NETWORK, _LAYERS, episode_options, _PICTURES)


@cnn.command()
@add_options(_LOOK, json_option)
def activations(
    store: StoreName, network: NetworkChoice, layers: LayerChoice, episodes: EpisodeChoice,
    pictures: PictureChoice, as_json: bool,
) -> None:  # fmt: skip
    """Store the feature maps of chosen filters for pictures or stored keyframes.

    Examples
    --------
    attnstore cnn activations lab.attn --network vgg16 --layer @4 --episode 2025-12-11_10-04-31
    """
    from attnstore.ingest.cnn.results import add_activations

    _look(store, network, layers, episodes, pictures, add_activations, as_json)


@cnn.command()
@add_options(_LOOK)
@click.option("--target", type=click.Choice(["max", "mean"]), default="max", show_default=True,
              help="The filter's strongest position, or the mean over positions.")  # fmt: skip
@add_options(json_option)
def guided(
    store: StoreName, network: NetworkChoice, layers: LayerChoice, episodes: EpisodeChoice,
    pictures: PictureChoice, target: str, as_json: bool,
) -> None:  # fmt: skip
    """Take filters' activations back to pictures: guided backpropagation.

    Examples
    --------
    attnstore cnn guided lab.attn --network vgg16 --layer features.28 --image table.jpg
    """
    from attnstore.ingest.cnn.results import add_guided

    _look(store, network, layers, episodes, pictures, add_guided, as_json, target=target)


def _look(
    root: StoreName, network: NetworkChoice, layers: LayerChoice, episodes: EpisodeChoice,
    choice: PictureChoice, add: Callable[..., Added], as_json: bool, **options: Any,
) -> None:  # fmt: skip
    from attnstore.store.opening import create_store

    every: Sequence[Pictures] = list(choice.of(root, episodes))
    if not every:
        raise UsageError("no picture: pass --image FILE, or --episode NAME of the store")
    loaded = network.load()
    chosen = layers.of(loaded)
    paths = create_store(root)
    for pictures in every:
        for layer, numbers in chosen:
            with _progress(f"{pictures.name} {layer.name}", "pictures") as progress:
                added = add(
                    paths, loaded, layer, numbers, pictures, progress=progress, size=choice.size,
                    redo=layers.redo, **options,
                )  # fmt: skip
            _say(added, as_json)
    _conclude(len(every) * len(chosen), root, as_json)


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    with progress_of(what) as advance:
        yield lambda done, all_: advance(done / all_, f"{done} of {all_} {unit}")


def _conclude(results: int, store: StoreName, as_json: bool) -> None:
    if not as_json:
        made = "1 result" if results == 1 else f"{results} results"
        say_made(f"{made} in {store}", f"attnstore render cnn {store} --out pictures")


def _say(added: Added, as_json: bool) -> None:
    commit = added.commit
    status = "committed" if added.computed else "present"
    told = {k: commit.summary[k] for k in ("name", "kind", "network", "layer", "filters")}
    if as_json:
        print_json([{
            "event": "layer", "status": status, "run": commit.run, "episode": commit.episode,
            "part": commit.part, "revision": commit.revision, **told,
        }])  # fmt: skip
        return
    say(
        f"{told['name']}: {told['kind']} of {told['network']} {told['layer']}, "
        f"{told['filters']} filters: {status} as {commit.part}"
    )
