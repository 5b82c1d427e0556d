"""LeRobot's policies: the adapter reads a checkpoint's type and chooses the family's.

LeRobot loads the checkpoint and prepares the observation; attnstore only looks on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnstore.store.errors import UsageError
from attnstore.store.format.tokens import TASK, TokenLayout

from ..about import About
from ..base import PhaseShape, Policy, PolicyError
from ..checkpoint import (
    CheckpointFiles,
    Recognised,
    check_options,
    check_variant,
    counted,
    directory_name,
    locate,
)
from ..released import WORDS, Released, flow, tokens, writing
from .act import LeRobotAct
from .base import LeRobotPolicy
from .groot import LeRobotGroot
from .loading import STEP_FIELDS, check_trusted, open_checkpoint, policy_type
from .molmoact2 import LeRobotMolmoAct2
from .pi import LeRobotPi0, LeRobotPi05
from .pi_fast import LeRobotPi0Fast
from .smolvla import LeRobotSmolVla
from .xvla import LeRobotXvla

FAMILIES: Mapping[str, type[LeRobotPolicy]] = {
    family.family: family
    for family in (
        LeRobotPi0,
        LeRobotPi05,
        LeRobotPi0Fast,
        LeRobotSmolVla,
        LeRobotAct,
        LeRobotGroot,
        LeRobotXvla,
        LeRobotMolmoAct2,
    )
}
_CNN = (
    "a convolutional encoder makes one vector of each image, and no attention ever sees its places"
)
WITHOUT_ATTENTION: Mapping[str, str] = {
    "diffusion": f"{_CNN}; a convolutional U-Net denoises the actions",
    "multi_task_dit": "of each image its encoder's class token alone conditions the denoiser, whose attention "
    "is among actions",
    "vqbet": f"{_CNN}; its transformer attends to one token an observation",
    "tdmpc": f"{_CNN}; its planner is made of dense layers",
    "gaussian_actor": f"{_CNN}; its networks are made of dense layers",
}
"""Types of LeRobot's that have no attention over images, and why."""
_VIDEO = "it makes video, and its tokens are places in space and time"
NOT_YET: Mapping[str, str] = {
    "eo1": "one Qwen2.5-VL makes the prefix and, at each denoising step, the actions, with the same modules",
    "evo1": "its images are prepared inside the policy, and its head attends to InternVL3's tokens by "
    "nn.MultiheadAttention",
    "wall_x": "its Qwen2.5-VL has experts of its own for images, words and noisy actions in one sequence",
    "vla_jepa": "its head attends to embodied tokens that its Qwen3-VL is asked for",
    "fastwam": _VIDEO,
    "lingbot_va": _VIDEO,
}
"""Types of LeRobot's that no adapter is written for, and what one would have to do."""
OPTIONS = ("cameras", "stats", "steps", "trust_remote_code")


def load_lerobot(
    checkpoint: str,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Policy:
    """Load a LeRobot checkpoint; its weights at the first use.

    Parameters
    ----------
    checkpoint
        Local directory or hub id, with ``policy_preprocessor.json``.
    variant
        Policy type that the checkpoint must have: ``pi05``; None takes any that is supported.
    dtype
        Data type of the weights, for pi0, pi05 and pi0_fast.
    device
        Torch device.
    revision
        Hub revision.
    options
        ``cameras=wrist:observation.images.hand,...``: image feature per camera of the dataset where
        they are not called alike; ``stats=FILE``: statistics (a LeRobotDataset's
        ``meta/stats.json``) in place of the checkpoint's; ``steps=N``: denoising steps;
        ``trust_remote_code=true``: tokenizers that the checkpoint names may run their code.

    Raises
    ------
    UsageError
        If the variant or an option is not LeRobot's, or code would run that is not trusted.
    MissingExtraError
        If LeRobot is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is not one of a supported type.
    """
    given = dict(options or {})
    check_options("lerobot", given, OPTIONS)
    check_variant("lerobot", variant, FAMILIES)
    steps = counted(given, "steps", "denoising steps")
    cameras = parse_cameras(given.get("cameras"))
    directory = Path(locate(checkpoint, revision))
    kind = policy_type(checkpoint, directory)
    if kind not in FAMILIES:
        raise PolicyError(f"{checkpoint}: {_unsupported(kind)}")
    if variant not in (None, kind):
        raise PolicyError(f"{checkpoint}: its config.json is of type {kind!r}, not {variant!r}")
    check_trusted(checkpoint, directory, given.pop("trust_remote_code", None))
    source = open_checkpoint(
        checkpoint,
        revision=revision,
        device=device,
        dtype=dtype,
        steps=steps,
        stats=given.get("stats"),
    )
    digest_with = {key: value for key, value in given.items() if key != "stats"}
    if "stats" in given:
        digest_with["stats"] = Path(given["stats"]).read_text()
    return FAMILIES[kind](
        source.config,
        source.preprocessor,
        source,
        checkpoint=directory_name(checkpoint),
        cameras=cameras,
        digest_with=digest_with,
    )


def recognises(files: CheckpointFiles) -> Recognised | None:
    """Whether a checkpoint is LeRobot's; of a type that is not supported the adapter says so itself."""
    kind = files.config.get("type")
    if files.config.get("model_type") == "Gr00tN1d7":
        return Recognised(
            "lerobot",
            "it is GR00T N1.7 as NVIDIA publishes it, which names no cameras; load it with LeRobot's "
            "GrootPolicy, save it with its processors, and name that directory",
        )
    if files.config.get("model_type") == "molmoact2":
        return Recognised(
            "lerobot",
            "it is MolmoAct2 as Ai2 publishes it, which names no cameras; load it with LeRobot's "
            "MolmoAct2Policy (checkpoint_path), save it with its processors, and name that directory",
        )
    return (
        Recognised("lerobot")
        if isinstance(kind, str) and "input_features" in files.config
        else None
    )


_TESTED = (
    "LeRobot 0.6.1 on Python 3.12, random weights (make test-lerobot); "
    "the real libraries' modules in every test run"
)
_PI_PREFIX = "the cameras' images, those that are there first, then the prompt; one pass"
_GEMMA, _GEMMA_EXPERT = (18, 8, 2048), (18, 8, 1024)
_SIGLIP = (16, 16)
_WITH_STATE = tokens(front=_SIGLIP, wrist=_SIGLIP, bos=1, task=WORDS, state_text=47)


def _released_groot() -> Released:
    image = (8, 8)
    seen = tokens(front=image, wrist=image, template=14, task=WORDS)
    own = tokens(state=1, action=40)
    keys = seen.followed_by(own, model_offset=len(seen))
    return Released(
        "nvidia/GR00T-N1.7-3B, the first 16 layers of Cosmos-Reason2-2B",
        {
            "prefix": PhaseShape(16, 16, None, (TASK,), causal=True, features=2048),
            "joint": PhaseShape(4, 32, None, (TASK,), features=2048),
            "suffix": PhaseShape(32, 32, 4, ("action",), features=1536, last="action"),
        },
        {
            "prefix": TokenLayout("prefix", seen, seen),
            "joint": TokenLayout("joint", seen, seen),
            "suffix": TokenLayout("suffix", own, keys),
        },
    )


def _released_xvla() -> Released:
    image = (7, 7)
    seen = tokens(mean_front=1, front=image, task=WORDS, padding_text=64 - WORDS)
    own, prompts = tokens(action=32), tokens(soft_prompt=32)
    keys = own.followed_by(seen, model_offset=32)
    for other in (tokens(mean_wrist=1, wrist=image), tokens(mean_side=1, side=image), prompts):
        keys = keys.followed_by(other, model_offset=len(keys))
    return Released(
        "lerobot/xvla-base, three views of 224 pixels",
        {
            "prefix": PhaseShape(12, 16, None, (TASK,), features=1024),
            "suffix": PhaseShape(24, 16, 10, ("action",), features=1024, last="action"),
        },
        {
            "prefix": TokenLayout("prefix", seen, seen),
            "suffix": TokenLayout("suffix", own.followed_by(prompts, model_offset=len(keys)), keys),
        },
        "float32",
    )


load_lerobot.about = (  # type: ignore[attr-defined]
    About(
        "LeRobot pi0",
        {"prefix": _PI_PREFIX, "suffix": "a state token and the action chunk; each denoising step"},
        _TESTED,
        adapter=LeRobotPi0,
        released=flow(
            "lerobot/pi0_base",
            tokens(front=_SIGLIP, wrist=_SIGLIP, bos=1, task=WORDS, newline=1),
            tokens(state=1, action=50),
            shape=_GEMMA,
            expert=_GEMMA_EXPERT,
            steps=10,
        ),
    ),
    About(
        "LeRobot pi05",
        {
            "prefix": f"{_PI_PREFIX}, the state's numbers in it",
            "suffix": "the action chunk; each denoising step",
        },
        _TESTED,
        adapter=LeRobotPi05,
        released=flow(
            "lerobot/pi05_base, a state of 8 numbers",
            _WITH_STATE,
            tokens(action=50),
            shape=_GEMMA,
            expert=_GEMMA_EXPERT,
            steps=10,
        ),
    ),
    About(
        "LeRobot pi0_fast",
        {
            "prefix": f"{_PI_PREFIX}, the state's numbers in it, and a BOS behind it",
            "decode": "the generated token, FAST's with the numbers that it stands for, over all before it; "
            "each token",
        },
        "LeRobot 0.6.1 on Python 3.12, a small one taught four chunks (make test-lerobot); the real libraries' "
        "modules in every test run",
        adapter=LeRobotPi0Fast,
        released=writing(
            "lerobot/pi0fast-base, a state of 8 numbers, 256 tokens written (fewer are usual)",
            _WITH_STATE,
            shape=_GEMMA,
            steps=256,
        ),
    ),
    About(
        "LeRobot smolvla",
        {
            "prefix": "the cameras' images, the instruction, the state; one pass",
            "suffix": "the action chunk, over the prefix and, in some layers, itself; each denoising step",
        },
        _TESTED,
        adapter=LeRobotSmolVla,
        released=flow(
            "lerobot/smolvla_base",
            tokens(front=(8, 8), wrist=(8, 8), task=WORDS, newline=1, state=1),
            tokens(action=50),
            shape=(16, 15, 960),
            expert=(16, 15, 720),
            steps=10,
        ),
    ),
    About(
        "LeRobot act",
        {
            "prefix": "latent, state, and the cameras' images; one pass",
            "suffix": "the action chunk, over the prefix; one pass",
        },
        _TESTED,
        "no: its encoder is convolutional; attnstore cnn looks into it",
        adapter=LeRobotAct,
        released=flow(
            "lerobot/act_aloha_sim_transfer_cube_human, one camera of 640x480",
            tokens(latent=1, state=1, top=(15, 20)),
            tokens(action=100),
            shape=(4, 8, 512),
            expert=(1, 8, 512),
            steps=1,
            sees_itself=False,
            dtype="float32",
        ),
    ),
    About(
        "LeRobot groot (GR00T N1.7)",
        {
            "prefix": "the cameras' images, then the instruction, in Qwen3-VL's chat; one pass",
            "joint": "the same tokens, in both directions, in the layers behind the language model; one pass",
            "suffix": "a state token and the action chunk, in turn over the text, themselves, the images, "
            "themselves; each denoising step",
        },
        "LeRobot 0.6.1 on Python 3.12, random weights (make test-lerobot); the head's part in every test run",
        "no: its encoder gets the patches of all images in one sequence",
        adapter=LeRobotGroot,
        released=_released_groot(),
    ),
    About(
        "LeRobot xvla (X-VLA)",
        {
            "prefix": "the first camera's image, then the instruction and its padding; one pass",
            "suffix": "the action chunk and soft prompts, over the actions, what the prefix made, the other "
            "cameras' images and soft prompts; each denoising step",
        },
        "LeRobot 0.6.1 on Python 3.12, random weights (make test-lerobot)",
        "no: its encoder attends in windows, and over channels",
        adapter=LeRobotXvla,
        released=_released_xvla(),
    ),
    About(
        "LeRobot molmoact2 (MolmoAct2)",
        {
            "prefix": "the cameras' images, then the prompt with the state's numbers; one pass",
            "suffix": "the action chunk, over the prefix; its attention among actions is not stored; each "
            "denoising step",
        },
        "LeRobot 0.6.1 on Python 3.12, random weights (make test-lerobot)",
        "no: its encoder gives no weights, and a token pools several of its patches",
        adapter=LeRobotMolmoAct2,
        released=flow(
            "allenai/MolmoAct2, a state of 8 numbers",
            tokens(front=(14, 14), wrist=(14, 14), template=66, task=WORDS, state_text=8),
            tokens(action=30),
            shape=(36, 32, 2560),
            expert=(36, 8, 768),
            steps=10,
            sees_itself=False,
        ),
    ),
)
load_lerobot.recognises = recognises  # type: ignore[attr-defined]
load_lerobot.value_norms = LeRobotPolicy.value_norms  # type: ignore[attr-defined]
load_lerobot.hidden_states = LeRobotPolicy.hidden_states  # type: ignore[attr-defined]


def adapt_lerobot(
    policy: Any,
    preprocessor: Any,
    *,
    checkpoint: str = "in memory",
    cameras: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> LeRobotPolicy:
    """Adapt a LeRobot policy that is loaded already, compiled or not.

    Parameters
    ----------
    policy
        ``PI05Policy``, ``ACTPolicy``, ..., in evaluation mode.
    preprocessor
        Its preprocessor, as ``make_pre_post_processors`` returns it.
    checkpoint
        What the run calls it.
    cameras
        Image feature per camera, where they are not called alike.
    directory
        Checkpoint that its weights are those of: it is then the same policy as `load_lerobot` gives, with
        the option ``steps`` if it denoises in another number of steps than the checkpoint says.

    Raises
    ------
    PolicyError
        If its type is not supported.
    """
    kind = str(policy.config.type)
    if kind not in FAMILIES:
        raise PolicyError(_unsupported(kind))
    steps = None if directory is None else _other_steps(policy.config, directory)
    return FAMILIES[kind](
        policy.config,
        preprocessor,
        policy,
        checkpoint=checkpoint,
        cameras=cameras,
        digest_with=None if steps is None else {"steps": str(steps)},
        directory=directory,
    )


def _unsupported(kind: str) -> str:
    if (why := WITHOUT_ATTENTION.get(kind)) is not None:
        return f"a policy of type {kind!r} has no attention over images to capture: {why}"
    why = f" yet: {NOT_YET[kind]}" if kind in NOT_YET else ""
    return f"policies of type {kind!r} are not supported{why}; {', '.join(FAMILIES)} are"


def _other_steps(config: Any, directory: Path) -> int | None:
    """Denoising steps of a configuration, if they are not those of the checkpoint's."""
    said = json.loads((directory / "config.json").read_bytes())
    for name in STEP_FIELDS:
        if name in said and hasattr(config, name) and getattr(config, name) != said[name]:
            return int(getattr(config, name))
    return None


def parse_cameras(text: str | None) -> dict[str, str]:
    """Parse ``camera:feature,camera:feature``.

    Examples
    --------
    >>> parse_cameras("wrist:observation.images.hand")
    {'wrist': 'observation.images.hand'}
    """
    cameras = {}
    for pair in (text or "").split(",") if text else ():
        camera, colon, feature = pair.strip().partition(":")
        if not colon or not camera or not feature:
            raise UsageError(
                f"cameras is CAMERA:FEATURE,...: wrist:observation.images.hand; got {pair!r}"
            )
        cameras[camera] = feature
    return cameras
