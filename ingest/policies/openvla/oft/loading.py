"""Loading an OpenVLA-OFT checkpoint, or adapting a model that is loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnstore.store.format.tokens import TASK

from ...about import About
from ...base import PolicyError
from ...checkpoint import (
    CheckpointFiles,
    Recognised,
    check_dtype,
    check_options,
    check_variant,
    directory_name,
    locate,
    model_type,
    one_line,
    unwrap,
)
from ...released import WORDS, joint, tokens
from ..loading import OFT, check_environment, oft_parts, read_statistics
from .parts import (
    LORA,
    UNMERGED,
    Parts,
    check_sizes,
    find_parts,
    load_film,
    load_model,
    load_parts,
    read_processor,
    refuse_unmerged,
)
from .policy import DiffusionOftPolicy, OftPolicy, read_steps
from .robot import Robot, pick_platform
from .sources import import_sources

OPTIONS = ("cameras", "unnorm_key", "platform", "center_crop", "prompt", "steps", "trained_steps")


def load_oft(
    checkpoint: str,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    options: Mapping[str, str] | None = None,
) -> OftPolicy:
    """Load an OpenVLA-OFT checkpoint; the model's weights at the first use.

    Its code is that of the checkout in this environment; none of the checkpoint's runs.

    Parameters
    ----------
    checkpoint
        Local directory or hub id, with the merged model and ``NAME--STEP_checkpoint.pt`` beside it.
    dtype
        Data type of the weights; None keeps the checkpoint's.
    device
        Torch device: ``cpu``, ``cuda:0``.
    revision
        Hub revision.
    options
        ``cameras=NAME,NAME``: those that the policy sees, in its order; needed where the data set has
        several. ``unnorm_key=NAME``: whose statistics scale actions and state; needed where the
        checkpoint has several. ``platform=libero|aloha|bridge``: whose constants it was trained with;
        needed where the weights' sizes do not say. ``center_crop=false``: do not crop, for a
        policy that was trained without random crops. ``steps=N``: denoising steps, ``trained_steps=N``
        those of the training. ``prompt=TEMPLATE``, with ``{instruction}`` in it.

    Raises
    ------
    UsageError
        If the data type, the variant or an option is not one of this adapter's, or one is needed.
    MissingExtraError
        If OpenVLA-OFT's checkout, its fork of transformers or a library is not there.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is no readable OpenVLA-OFT checkpoint.
    """
    check_variant(OFT, variant)
    check_dtype(OFT, dtype)
    given = dict(options or {})
    check_options(OFT, given, OPTIONS)
    check_environment(OFT)
    refuse_unmerged(checkpoint, Path(checkpoint).expanduser())
    directory = locate(checkpoint, revision)
    kind = model_type(checkpoint, Path(directory))
    if kind != "openvla":
        raise PolicyError(f"{checkpoint}: its config.json is of {kind!r}, not of 'openvla'")
    files = find_parts(checkpoint, directory)
    platform = pick_platform(given.get("platform"), files.action_dof, files.state_dof)
    sources = import_sources(platform)
    check_sizes(checkpoint, files, sources.robot)
    try:
        config, processor = read_processor(sources, directory)
    except Exception as error:
        raise PolicyError(
            f"{checkpoint}: not a readable OpenVLA-OFT checkpoint ({one_line(error)})"
        ) from error
    statistics = read_statistics(checkpoint, directory, config)

    def load() -> tuple[Any, Parts]:
        model = load_model(sources, checkpoint, directory, dtype)
        if files.film is not None:
            load_film(checkpoint, files.film, model, sources)
        model.norm_stats = statistics
        parts = load_parts(checkpoint, files, sources, int(model.llm_dim), read_steps(given))
        for part in (parts.head, parts.state, parts.noisy):
            if part is not None:
                part.to(device, model.dtype).eval()
        return model.to(device).eval(), parts

    return (DiffusionOftPolicy if files.diffusion else OftPolicy)(
        config, processor, sources.robot, statistics, load,
        directory=directory, takes_state=files.state is not None,
        checkpoint=directory_name(checkpoint),
        dtype=dtype, device=device, options=given,
    )  # fmt: skip


def adapt_oft(
    model: Any,
    processor: Any,
    parts: Parts,
    robot: Robot,
    *,
    checkpoint: str = "in memory",
    device: str = "cpu",
    options: Mapping[str, str] | None = None,
) -> OftPolicy:
    """Adapt a model that is loaded already, with what stands beside it.

    Raises
    ------
    UsageError
        As `load_oft`.
    """
    given = dict(options or {})
    check_options(OFT, given, OPTIONS)
    inner = unwrap(model)
    kind = OftPolicy if parts.noisy is None else DiffusionOftPolicy
    return kind(
        inner.config, processor, robot, inner.norm_stats, lambda: (model, parts),
        directory=None, takes_state=parts.state is not None,
        checkpoint=checkpoint, dtype=None, device=device, options=given,
    )  # fmt: skip


def recognises(files: CheckpointFiles) -> Recognised | None:
    """Whether a checkpoint is OpenVLA-OFT's, by what lies beside the model."""
    parts = oft_parts(files.names)
    if parts and files.config.get("model_type") == "openvla":
        return Recognised(OFT)
    if parts and LORA in files.names:
        return Recognised(OFT, UNMERGED)
    return None


_TESTED = (
    "OpenVLA-OFT's own code on its fork of transformers 4.40.1 with random weights (make test-oft); a small "
    "model with its seams in every test run"
)
_VISION = "no: two encoders look at an image, and a phase has one"
_BEFORE = "the cameras' images, a state token"
load_oft.about = (  # type: ignore[attr-defined]
    About(
        "OpenVLA-OFT, regression or tokens",
        {
            "joint": f"{_BEFORE}, the prompt, a token for each number of the chunk, all over all; one pass"
        },
        _TESTED,
        _VISION,
        adapter=OftPolicy,
        released=joint(
            "moojink/openvla-7b-oft-finetuned-libero-spatial",
            tokens(
                bos=1,
                front=(16, 16),
                wrist=(16, 16),
                proprio=1,
                template=14,
                task=WORDS,
                action=56,
                stop=1,
            ),
            (TASK, "action"),
            shape=(32, 32, 4096),
        ),
    ),
    About(
        "OpenVLA-OFT, diffusion",
        {
            "suffix": "a token for each number of the chunk, over itself, "
            f"{_BEFORE}, the timestep and the prompt; each denoising step"
        },
        _TESTED,
        _VISION,
        adapter=DiffusionOftPolicy,
    ),
)
load_oft.recognises = recognises  # type: ignore[attr-defined]
load_oft.value_norms = OftPolicy.value_norms  # type: ignore[attr-defined]
load_oft.hidden_states = OftPolicy.hidden_states  # type: ignore[attr-defined]
