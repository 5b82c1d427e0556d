"""Making a network from what the command line names; nothing is ever downloaded."""

from __future__ import annotations

import difflib
import importlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import NotFoundError, UsageError

from ..optional import require
from ..policies.checkpoint import one_line

if TYPE_CHECKING:
    import torch

    from .torch_network import TorchNetwork

CACHE, RANDOM, OWN = "cache", "random", "own"
Normal = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per channel, of pixels 0..1."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the pixels that torchvision's networks were trained with."""
CENTRED = (0.5,), (0.5,)


def load_network(
    network: str,
    weights: str | None = None,
    *,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust: bool = False,
    device: str = "cpu",
) -> TorchNetwork:
    """Load a convolutional network.

    Parameters
    ----------
    network
        A name of torchvision (``vgg16``), ``MODULE:CALLABLE`` (imported, called without
        arguments), or a file with a whole pickled module.
    weights
        ``cache``: torchvision's weights in the user's cache; ``random``; ``own``: those that a
        callable loads itself; or a file: a state dict (also under a key ``state_dict`` or
        ``model``), safetensors, or a TorchScript archive, of which the weights alone are taken.
        By default ``cache`` for torchvision's networks, ``random`` for a callable.
    seed
        Of random weights.
    mean, std
        Of the pixels; by default torchvision's, or 0.5 for other networks: inputs of -1..1.
    trust
        Allow a pickled module, whose file can run any code when it is loaded.

    Raises
    ------
    UsageError
        If a name is unknown, a file is of another network, or `trust` is needed.
    NotFoundError
        If a file is not there, or torchvision's weights are not in the cache.
    """
    require("torch", "ingest", "attnstore cnn")
    from .torch_network import TorchNetwork

    where = Path(network).expanduser()
    normal: Normal = CENTRED
    if ":" in network and not where.exists():
        # the environment's own code, as any import is: no question of trust
        module, name = _call(network, seed), network.rpartition(":")[2]
        source, trained = f"random weights, seed {seed}", False
        if weights == CACHE:
            raise UsageError(f"{network}: only torchvision's networks have weights in the cache")
    elif where.is_file():
        module, name = _pickled(where, trust), where.stem
        source, trained = where.name, True
        if weights is not None:
            raise UsageError(
                f"{network} is a file with a whole module, weights included; drop --weights"
            )
    else:
        module, name = _torchvision(network, seed), network
        weights = weights or CACHE
        normal = IMAGENET
        source, trained = f"random weights, seed {seed}", False
    if weights == CACHE:
        file, source, normal = _cached(network)
        _fill(module, file, name)
        trained = True
    elif weights == OWN and ":" in network:
        source, trained = f"of {network}", True
    elif weights == RANDOM:
        source, trained = f"random weights, seed {seed}", False
    elif weights is not None:
        file = Path(weights).expanduser()
        if not file.is_file():
            raise NotFoundError(
                f"no weights file {weights}; --weights is {CACHE}, {RANDOM}, {OWN} or a file"
            )
        _fill(module, file, name)
        source, trained = file.name, True
    return TorchNetwork(
        module, name=name, weights=source, trained=trained, mean=mean or normal[0],
        std=std or normal[1], device=device,
    )  # fmt: skip


def _torchvision(name: str, seed: int) -> torch.nn.Module:
    import torch

    models = require("torchvision.models", "ingest", f"network {name}")
    known = models.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.3) or ["vgg16"]
        raise UsageError(
            f"{name!r} is no network of torchvision (nearest: {', '.join(near)}), no file and no "
            "MODULE:CALLABLE"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: torch.nn.Module = models.get_model(name, weights=None, **_without_aids(name))
    return module


def _without_aids(name: str) -> dict[str, Any]:
    # Both warn that their initialisation is slow or will change; it is what torchvision does.
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _call(network: str, seed: int) -> torch.nn.Module:
    import torch

    where, _, name = network.rpartition(":")
    try:
        factory = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{network}: cannot be imported ({error})") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = factory()
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{network} gives a {type(module).__name__}, no torch.nn.Module")
    return module


def _pickled(file: Path, trust: bool) -> torch.nn.Module:
    import torch

    if _is_torchscript(file):
        raise UsageError(
            f"{file.name} is TorchScript, whose compiled layers cannot be looked into; name the "
            "network (--network vgg16) and pass the file as --weights"
        )
    if not trust:
        raise UsageError(
            f"{file.name}: a file with a whole module runs code when it is loaded; add "
            "--trust-pickle if you trust it, or name the network and pass the file as --weights"
        )
    try:
        module = torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling raises what it likes
        raise UsageError(f"{file.name}: cannot be loaded ({one_line(error)})") from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{file.name} holds a {type(module).__name__}, no module; name the network and pass "
            "the file as --weights"
        )
    return module


def _cached(name: str) -> tuple[Path, str, Normal]:
    """File of torchvision's weights in the user's cache, their name, and their normalisation."""
    import torch

    models = require("torchvision.models", "ingest", f"network {name}")
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    choices = list(models.get_model_weights(name))
    for choice in choices:
        file = cache / choice.url.rpartition("/")[2]
        if file.is_file():
            shown = choice.transforms()
            return file, choice.name, (shown.mean, shown.std)
    wanted = " or ".join(choice.url.rpartition("/")[2] for choice in choices) or "no weights"
    raise NotFoundError(
        f"{name}: {wanted} is not in {cache}; copy it there, pass a file as --weights, or "
        f"--weights {RANDOM} for an untrained network"
    )


def _fill(module: torch.nn.Module, file: Path, name: str) -> None:
    """Load weights into a network, all of them and nothing else."""
    state = _state(file)
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    own = module.state_dict()
    missing = [k for k in own if k not in state]
    other = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or other or shapes:
        said = [f"it has no {missing[0]} ({len(missing)} missing)"] if missing else []
        said += [f"{name} has no {other[0]} ({len(other)} too many)"] if other else []
        said += [
            f"{k} is {tuple(state[k].shape)} and not {tuple(own[k].shape)}" for k in shapes[:1]
        ]
        raise UsageError(f"{file.name} has weights of another network: {'; '.join(said)}")
    module.load_state_dict(state)


def _state(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        if file.suffix == ".safetensors":
            return dict(require("safetensors.torch", "ingest", file.name).load_file(file))
        if _is_torchscript(file):
            return dict(torch.jit.load(file, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
        value = torch.load(file, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # zip, pickle and torch raise what they like
        raise UsageError(f"{file.name}: no weights that can be read ({one_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(hasattr(v, "shape") for v in value.values()):
        raise UsageError(f"{file.name}: a state dict is expected (names to tensors)")
    return dict(value)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
