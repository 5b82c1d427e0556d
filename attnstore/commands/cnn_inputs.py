"""What the options of ``attnstore cnn`` name: the network, its layers, the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import UsageError

from .cnn_options import FILTERS

if TYPE_CHECKING:
    from attnstore.ingest.cnn.base import ConvNetwork, Layer
    from attnstore.ingest.cnn.pictures import Pictures


def load_given(given: Mapping[str, Any]) -> ConvNetwork:
    """Load the network that the options name."""
    name = given["network"]
    if name.startswith("octo:"):
        from attnstore.ingest.cnn.octo_network import load_stem

        if given["weights"] is not None or given["mean"] or given["std"]:
            raise UsageError(
                f"{name}: an Octo checkpoint brings its weights and its scale; drop --weights, "
                "--mean and --std"
            )
        return load_stem(name.removeprefix("octo:"), given["instruction"])
    if given["instruction"] is not None:
        raise UsageError(f"{name}: --instruction is of Octo's encoders; leave it out")
    from attnstore.ingest.cnn.loading import load_network

    return load_network(
        name, given["weights"], seed=given["init_seed"], mean=given["mean"], std=given["std"],
        trust=given["trust_pickle"], device=given["device"],
    )  # fmt: skip


def layers_given(
    network: ConvNetwork, names: Sequence[str], filters: tuple[int, ...] | None
) -> list[tuple[Layer, tuple[int, ...]]]:
    """Every layer and its filters, checked before anything is computed."""
    from attnstore.ingest.cnn.base import check_filters, find_layer

    found = dict.fromkeys(find_layer(network, name) for name in names)
    return [(layer, check_filters(layer, filters or (), FILTERS)) for layer in found]


def pictures_given(root: Path, given: Mapping[str, Any]) -> Iterator[Pictures]:
    """Picture files, and keyframes of the store's episodes, that the options name."""
    from attnstore.ingest.cnn.pictures import Pictures, picture_file

    for file in given["images"]:
        yield picture_file(file)
    if not given["episodes"]:
        for name in ("camera", "keyframes", "run"):
            if given[name] is not None:
                raise UsageError(f"--{name} is of episodes; pass --episode")
        return
    from attnstore.query import open as open_for_reading
    from attnstore.store.reader.selection import check_index

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
