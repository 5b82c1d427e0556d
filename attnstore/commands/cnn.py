"""``attnstore cnn``: what convolutional networks have learned and see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .cnn_inputs import layers_given, load_given, pictures_given
from .cnn_options import LAYERS, NETWORK, PICTURES, with_options
from .options import StoreName, console, need_store, print_json

if TYPE_CHECKING:
    from attnstore.ingest.cnn.results import Added


@click.group()
def cnn() -> None:
    """See what a convolutional network has learned: filters, feature maps, guided backpropagation.

    For any PyTorch network with Conv2d layers, and for the image encoder of Octo. Results are
    committed to the store, a part for each layer; `attnstore render cnn` draws them without torch.
    """


@cnn.command()
@with_options(NETWORK)
def layers(store: StoreName | None, as_json: bool, **given: Any) -> None:
    """List a network's convolutions, and an Octo's FiLM blocks with their γ and β.

    torchvision's networks need no weights for that.
    """
    if given["weights"] is None and given["network"].isidentifier():
        given["weights"] = "random"
    loaded = load_given(given)
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
@with_options(NETWORK, LAYERS)
@click.option("--size", type=click.IntRange(min=1), default=128, show_default=True,
              metavar="PIXELS", help="Of the image that is made.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(min=1), default=100, show_default=True,
              help="Steps of the ascent.")  # fmt: skip
@click.option("--rate", type=float, default=0.1, show_default=True,
              help="RMS of a step, in the network's units (standard deviations of pixels).")  # fmt: skip
@click.option("--blur", type=click.FloatRange(min=0), default=0.5, show_default=True,
              metavar="PIXELS", help="Gaussian blur of the image; 0: none.")  # fmt: skip
@click.option("--blur-every", type=click.IntRange(min=1), default=4, show_default=True,
              metavar="ITERATIONS", help="Iterations from one blur to the next.")  # fmt: skip
@click.option("--clip", type=click.FloatRange(min=0), default=0.0, show_default=True,
              metavar="RMS", help="Limit of a pixel's gradient, in RMS of the gradient; 0: none.")  # fmt: skip
@click.option("--decay", type=click.FloatRange(0, 1, max_open=True), default=0.005,
              show_default=True, help="L2 decay: share of the image lost at an iteration.")  # fmt: skip
@click.option("--jitter", type=click.IntRange(min=0), default=4, show_default=True,
              metavar="PIXELS", help="The image is rolled by up to this, and back.")  # fmt: skip
@click.option("--noise", type=click.FloatRange(min=0), default=0.1, show_default=True,
              help="Standard deviation of the start.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the start and of the jitter.")  # fmt: skip
@click.option("--shots", type=click.IntRange(min=0), default=12, show_default=True,
              help="Images on the way that are kept for the video; 0: none.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="Filters that climb at once; does not change the results.")  # fmt: skip
def filters(
    store: StoreName | None, as_json: bool, layers: tuple[str, ...], filters: tuple[int, ...] | None,
    redo: bool, batch: int, **given: Any,
) -> None:  # fmt: skip
    """Make the image that each filter answers most to: activation maximisation."""
    from attnstore.ingest.cnn.maximisation import Maximisation
    from attnstore.ingest.cnn.results import add_filters
    from attnstore.store.opening import create_store

    root = need_store(store)
    settings = Maximisation(**{f.name: given[f.name] for f in fields(Maximisation)})
    network = load_given(given)
    chosen = layers_given(network, layers, filters)
    paths = create_store(root)
    for layer, numbers in chosen:
        with _progress(f"{network.name} {layer.name}", "filters") as progress:
            added = add_filters(
                paths, network, layer, numbers, settings, batch=batch, redo=redo, progress=progress
            )
        _say(added, as_json)


@cnn.command()
@with_options(NETWORK, LAYERS, PICTURES)
def activations(
    store: StoreName | None, as_json: bool, layers: tuple[str, ...], filters: tuple[int, ...] | None,
    redo: bool, size: int, **given: Any,
) -> None:  # fmt: skip
    """Store the feature maps of chosen filters for pictures or stored keyframes."""
    from attnstore.ingest.cnn.results import add_activations

    _look(
        need_store(store),
        as_json,
        layers,
        filters,
        given,
        add_activations,
        {"size": size, "redo": redo},
    )


@cnn.command()
@with_options(NETWORK, LAYERS, PICTURES)
@click.option("--target", type=click.Choice(["max", "mean"]), default="max", show_default=True,
              help="The filter's strongest position, or the mean over positions.")  # fmt: skip
def guided(
    store: StoreName | None, as_json: bool, layers: tuple[str, ...], filters: tuple[int, ...] | None,
    redo: bool, size: int, target: str, **given: Any,
) -> None:  # fmt: skip
    """Take filters' activations back to pictures: guided backpropagation."""
    from attnstore.ingest.cnn.results import add_guided

    options = {"size": size, "redo": redo, "target": target}
    _look(need_store(store), as_json, layers, filters, given, add_guided, options)


def _look(
    root: Path, as_json: bool, names: Sequence[str], filters: tuple[int, ...] | None,
    given: dict[str, Any], add: Callable[..., Added], options: dict[str, Any],
) -> None:  # fmt: skip
    from attnstore.store.opening import create_store

    every = list(pictures_given(root, given))
    if not every:
        raise UsageError("no picture: pass --image FILE, or --episode NAME of the store")
    network = load_given(given)
    chosen = layers_given(network, names, filters)
    paths = create_store(root)
    for pictures in every:
        for layer, numbers in chosen:
            with _progress(f"{pictures.name} {layer.name}", "pictures") as progress:
                added = add(paths, network, layer, numbers, pictures, progress=progress, **options)
            _say(added, as_json)


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    with console().status(what) as status:
        yield lambda done, all_: status.update(f"{what}: {done} of {all_} {unit}")


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
    console().print(
        f"{told['name']}: {told['kind']} of {told['network']} {told['layer']}, "
        f"{told['filters']} filters: {status} as {commit.part}",
        markup=False,
        soft_wrap=True,
    )
