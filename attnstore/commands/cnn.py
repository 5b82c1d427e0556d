"""``attnstore cnn``: what convolutional networks have learned and see; and ``render cnn``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attnstore.store.errors import UsageError

from .options import (
    StoreName,
    console,
    json_option,
    need_store,
    print_json,
    store_option,
    store_to_read,
)

if TYPE_CHECKING:
    from attnstore.ingest.cnn.base import ConvNetwork, Layer
    from attnstore.ingest.cnn.pictures import Pictures
    from attnstore.ingest.cnn.results import Added

F = TypeVar("F", bound=Callable[..., Any])
FILTERS = 16
"""Filters of a layer that are taken unless some are named."""


@click.group()
def cnn() -> None:
    """See what a convolutional network has learned: filters, feature maps, guided backpropagation.

    For any PyTorch network with Conv2d layers, and for the image encoder of Octo. Results are
    committed to the store, a part for each layer; `attnstore render cnn` draws them without torch.
    """


def _numbers(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    return None if value is None else _ranges(value)


def _ranges(text: str) -> tuple[int, ...]:
    """Numbers of ``0,3,8-11``."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise click.BadParameter(
                f"numbers and ranges such as 0,3,8-11 are expected; got {text!r}"
            )
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def _values(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else tuple(float(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"numbers such as 0.485,0.456,0.406 are expected; got {value!r}"
        ) from None


_NETWORK = (
    click.option("--network", required=True, metavar="NAME|MODULE:CALLABLE|FILE",
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
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps."),
)  # fmt: skip
_LAYERS = (
    click.option("--layer", "layers", multiple=True, required=True, metavar="NAME|@NUMBER",
                 help="Convolution: features.10, 10, or @4 for the fifth; repeatable."),
    click.option("--filters", "filters", callback=_numbers, metavar="LIST",
                 help=f"0,3,8-11.  [default: the first {FILTERS}]"),
    click.option("--redo", is_flag=True, help="Compute what is there with the same settings, too."),
)  # fmt: skip
_PICTURES = (
    click.option("--image", "images", multiple=True, type=click.Path(path_type=Path),
                 help="Picture file; repeatable."),
    click.option("--episode", "episodes", multiple=True,
                 help="Episode of the store: its keyframes' images; repeatable."),
    click.option("--run", help="Run of the episodes."),
    click.option("--camera", help="Of the episodes.  [default: the only one]"),
    click.option("--keyframes", callback=_numbers, metavar="LIST", help="0,2,5-7.  [default: all]"),
    click.option("--size", type=click.IntRange(min=1), default=224, show_default=True,
                 metavar="PIXELS", help="Shorter side of the network's input; the aspect stays."),
)  # fmt: skip


def _with(*groups: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed([o for group in groups for o in group]):
            function = option(function)
        return json_option(store_option(function))

    return add


@cnn.command()
@_with(_NETWORK)
def layers(store: StoreName | None, as_json: bool, **given: Any) -> None:
    """List a network's convolutions; torchvision's need no weights for that."""
    if given["weights"] is None and given["network"].isidentifier():
        given["weights"] = "random"
    loaded = _load(given)
    rows = [{"number": x.index, "layer": x.name, "filters": x.filters} for x in loaded.layers]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{loaded.name}, weights: {loaded.weights}")
    for row in rows:
        click.echo(f"@{row['number']:<4} {row['layer']}  {row['filters']} filters")
    for name, gamma, beta in getattr(loaded, "film", ()):
        click.echo(f"{name}: norms of γ {gamma:.3g}, of β {beta:.3g} (0: does nothing)")


@cnn.command()
@_with(_NETWORK, _LAYERS)
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
    from attnstore.store.paths import create_store

    root = need_store(store)
    settings = Maximisation(**{f.name: given[f.name] for f in fields(Maximisation)})
    network = _load(given)
    chosen = _layers(network, layers, filters)
    paths = create_store(root)
    for layer, numbers in chosen:
        with _progress(f"{network.name} {layer.name}", "filters") as progress:
            added = add_filters(
                paths, network, layer, numbers, settings, batch=batch, redo=redo, progress=progress
            )
        _say(added, as_json)


@cnn.command()
@_with(_NETWORK, _LAYERS, _PICTURES)
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
@_with(_NETWORK, _LAYERS, _PICTURES)
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


@click.command("cnn")
@store_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Directory to write below.")  # fmt: skip
@click.option("--kind", "kinds", type=click.Choice(["filters", "activations", "guided"]),
              multiple=True, help="Only these results; repeatable.")  # fmt: skip
@click.option("--network", help="Only this network.")
@click.option("--layer", "layers", multiple=True, help="Only this layer; repeatable.")
@click.option("--run", help="Only this run.")
@click.option("--episode", help="Only this episode, or picture file's name.")
@click.option("--columns", type=click.IntRange(1, 64), default=8, show_default=True,
              help="Pictures in a row.")  # fmt: skip
@click.option("--height", type=click.IntRange(32, 1024), default=160, show_default=True,
              metavar="PIXELS", help="Of a small picture.")  # fmt: skip
@click.option("--cmap", default="inferno", show_default=True, help="Of feature maps.")
@click.option("--singles/--no-singles", default=True, show_default=True,
              help="Draw every filter on its own, too.")  # fmt: skip
@click.option("--videos/--no-videos", default=True, show_default=True,
              help="Of the ascent, and over keyframes.")  # fmt: skip
@click.option("--codec", type=click.Choice(["vp9", "av1", "h264", "mjpeg"]), default="vp9",
              show_default=True, help="Of the videos.")  # fmt: skip
@json_option
def render_cnn(
    store: StoreName | None, out: Path, kinds: tuple[str, ...], network: str | None,
    layers: tuple[str, ...], run: str | None, episode: str | None, as_json: bool, **look: Any,
) -> None:  # fmt: skip
    """Draw the results of `attnstore cnn`: grids, single filters, videos."""
    from attnstore.query import open as open_for_reading
    from attnstore.query.cnn import cnn_results
    from attnstore.render.cnn import write_results

    opened = open_for_reading(store_to_read(store))
    found = cnn_results(
        opened, run=run, episode=episode, kinds=kinds, network=network, layers=layers
    )
    count = 0
    with console().status("drawing"):
        for path in write_results(found, out, **look):
            count += 1
            if as_json:
                print_json([{"event": "written", "path": str(path)}])
    if not as_json:
        console().print(f"{count} files below {out}", markup=False, soft_wrap=True)


def _load(given: dict[str, Any]) -> ConvNetwork:
    name = given["network"]
    if name.startswith("octo:"):
        from attnstore.ingest.cnn.octo_network import load_stem

        if given["weights"] is not None or given["mean"] or given["std"]:
            raise UsageError(
                f"{name}: an Octo checkpoint brings its weights and its scale; drop --weights, "
                "--mean and --std"
            )
        return load_stem(name.removeprefix("octo:"))
    from attnstore.ingest.cnn.loading import load_network

    return load_network(
        name, given["weights"], seed=given["init_seed"], mean=given["mean"], std=given["std"],
        trust=given["trust_pickle"], device=given["device"],
    )  # fmt: skip


def _layers(
    network: ConvNetwork, names: Sequence[str], filters: tuple[int, ...] | None
) -> list[tuple[Layer, tuple[int, ...]]]:
    """Every layer and its filters, checked before anything is computed."""
    from attnstore.ingest.cnn.base import check_filters, find_layer

    found = dict.fromkeys(find_layer(network, name) for name in names)
    return [(layer, check_filters(layer, filters or (), FILTERS)) for layer in found]


def _look(
    root: Path, as_json: bool, names: Sequence[str], filters: tuple[int, ...] | None,
    given: dict[str, Any], add: Callable[..., Added], options: dict[str, Any],
) -> None:  # fmt: skip
    from attnstore.store.paths import create_store

    every = list(_pictures(root, given))
    if not every:
        raise UsageError("no picture: pass --image FILE, or --episode NAME of the store")
    network = _load(given)
    chosen = _layers(network, names, filters)
    paths = create_store(root)
    for pictures in every:
        for layer, numbers in chosen:
            with _progress(f"{pictures.name} {layer.name}", "pictures") as progress:
                added = add(paths, network, layer, numbers, pictures, progress=progress, **options)
            _say(added, as_json)


def _pictures(root: Path, given: dict[str, Any]) -> Iterator[Pictures]:
    from attnstore.ingest.cnn.pictures import Pictures, picture_file

    for file in given["images"]:
        yield picture_file(file)
    if not given["episodes"]:
        for name in ("camera", "keyframes", "run"):
            if given[name] is not None:
                raise UsageError(f"--{name} is of episodes; pass --episode")
        return
    from attnstore.query import open as open_for_reading
    from attnstore.query.selection import check_index

    store = open_for_reading(root)
    for name in given["episodes"]:
        episode = store.episode(name, run=given["run"])
        camera = given["camera"] or (episode.cameras[0] if len(episode.cameras) == 1 else None)
        if camera not in episode.cameras:
            told = f"no camera {camera}" if camera else "several cameras, name one with --camera"
            raise UsageError(f"{episode.name}: {told}; it has {', '.join(episode.cameras)}")
        keyframes = tuple(
            check_index(k, len(episode.frames), "keyframe")
            for k in given["keyframes"] or range(len(episode.frames))
        )
        yield Pictures(
            episode.run, episode.id, episode.name,
            tuple(episode.image_bytes(k, camera) for k in keyframes),
            # The attempt, and not the revision: an episode may be ingested again.
            episode.part.commit.attempt, keyframes, tuple(int(episode.frames[k]) for k in keyframes),
            camera,
        )  # fmt: skip


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
