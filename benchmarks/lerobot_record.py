"""``python -m benchmarks.lerobot_record``: what recording adds to a LeRobot policy's calls.

To be run in LeRobot's environment (docs/how-to/lerobot.md). Small policies that see images as large as their
environments give them, so that inputs have their real size and the recorder's part is not lost in the policy's
own. In replay mode, around `predict_action_chunk`, as `lerobot-eval` calls it: wall time in the caller's thread, over
that of the policy's own method, with and without the time that the thread waited for a processor.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from attnstore.ingest.recording.lerobot import record_lerobot

from .record import NOISE, starved

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
CALLS, WARM, SEEN = 60, 5, 8
PUSHT, ALOHA = "gym_pusht/PushT-v0", "gym_aloha/AlohaTransferCube-v0"
THREE = ("front", "left", "right")
ROOM_CAMERAS = (0, 1, 2)
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], int, str | None]] = {
    "act, pusht": ("act", {"observation.image": (3, 96, 96)}, 2, PUSHT),
    "act, aloha": ("act", {"observation.images.top": (3, 480, 640)}, 14, ALOHA),
    "smolvla, aloha": ("smolvla", {"observation.images.top": (3, 480, 640)}, 14, ALOHA),
    "act, noise": ("act", {"observation.images.top": (3, 480, 640)}, 14, None),
    "smolvla, noise": ("smolvla", {"observation.images.top": (3, 480, 640)}, 14, None),
    "act, three": ("act", {f"observation.images.{c}": (3, 480, 640) for c in THREE}, 14, None),
    "act, three rendered": (
        "act", {f"observation.images.{c}": (3, 480, 640) for c in THREE}, 14, ALOHA,
    ),
    "pi05, three": ("pi05", {f"observation.images.{c}": (3, 360, 640) for c in THREE}, 8, None),
    "pi05, three rendered": (
        "pi05", {f"observation.images.{c}": (3, 360, 640) for c in THREE}, 14, ALOHA,
    ),
}  # fmt: skip
"""Family, image features, degrees of freedom, and the environment that is seen; None: a smooth picture with a
camera's noise on every pixel, which takes the most bytes."""


def main() -> None:
    """Measure every case, or those that are named."""
    import lerobot_fixture_real as real

    os.environ.setdefault("MUJOCO_GL", "egl")
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(CASES)
    for name in asked:
        with tempfile.TemporaryDirectory() as folder, real.small():
            figures, size, dropped = measure(*CASES[name], Path(folder))
        what = ", ".join(
            f"{label} median {np.median(ms):.2f}, p99 {np.percentile(ms, 99):.1f} ms"
            for label, ms in figures.items()
        )
        print(f"{name}: {what}; {size / CALLS / 1e6:.3f} MB a call; {dropped} dropped", flush=True)


def measure(
    kind: str, images: dict[str, tuple[int, ...]], freedom: int, room: str | None, folder: Path
) -> tuple[dict[str, list[float]], int, int]:
    """Drive; return what a call took more, in ms, without waiting for a processor and by the clock; how long calls
    are that are recorded and, in turn, that are not; bytes, and calls that were dropped."""
    policy, preprocessor = _made(kind, images, freedom, folder)
    seen = list(_noisy(images, freedom) if room is None else _rendered(room, images))
    own: list[tuple[float, float]] = []
    ask = policy.predict_action_chunk

    def timed(batch: Any, **keywords: Any) -> Any:
        found, *took = _timed(lambda: ask(batch, **keywords))
        own.append((took[0], took[1]))
        return found

    policy.predict_action_chunk = timed
    added, plain, recorded, alone = [], [], [], []
    with (
        record_lerobot(policy, preprocessor, folder / "store", mode="replay") as made,
        made.episode("drive") as episode,
    ):
        for i in range(CALLS + WARM):
            batch = preprocessor(dict(seen[i % len(seen)]))
            own.clear()
            with torch.inference_mode():
                _, clock, waited = _timed(lambda b=batch: policy.predict_action_chunk(b))
            if i >= WARM:
                recorded.append(1e3 * clock)
                plain.append(1e3 * (clock - own[0][0]))
                added.append(1e3 * (clock - waited - own[0][0] + own[0][1]))
            time.sleep(0.1)  # the writing thread's turn, as between a robot's calls
            # In turn with calls that are not recorded: what it slows the policy itself is in the difference.
            batch = preprocessor(dict(seen[i % len(seen)]))
            made._here.inside = True  # as if the policy had been asked by the recorder
            with torch.inference_mode():
                _, clock, _ = _timed(lambda b=batch: ask(b))
            made._here.inside = False
            if i >= WARM:
                alone.append(1e3 * clock)
            time.sleep(0.1)
        made.recorder.flush()
        dropped = episode.dropped.total()
        episode.finish(outcome="success")
    size = sum(p.stat().st_size for p in made.recorder.directory.glob("*.journal"))
    figures = {
        "without waiting": added, "by the clock": plain, "recorded": recorded, "not recorded": alone,
    }  # fmt: skip
    return figures, size, dropped


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call gives, its seconds, and those of them that it waited for a processor."""
    waited, began = starved(), time.perf_counter()
    found = call()
    return found, time.perf_counter() - began, starved() - waited


def _made(kind: str, images: dict[str, tuple[int, ...]], freedom: int, folder: Path) -> Any:
    import lerobot_fixture_real as real
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    options = {
        "input_features": {
            **{name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in images.items()},
            "observation.state": PolicyFeature(FeatureType.STATE, (freedom,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (freedom,))},
    }
    save: dict[str, Callable[..., Path]] = {
        "act": real.save_act, "smolvla": real.save_smolvla,
        "pi05": lambda directory, **o: real.save_pi(directory, "pi05", **o),
    }  # fmt: skip
    checkpoint = save[kind](folder / kind, **options)
    policy = get_policy_class(kind).from_pretrained(checkpoint)
    policy.config.pretrained_path = checkpoint
    policy.eval()
    before, _ = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    return policy, before


def _noisy(images: dict[str, tuple[int, ...]], freedom: int) -> Iterator[dict[str, Any]]:
    """Yield what LeRobot's environments give: images 0..1, (1, channel, height, width)."""
    random = np.random.default_rng(0)
    for _ in range(SEEN):
        pictures = {}
        for name, (channels, height, width) in images.items():
            smooth = cv2.resize(random.uniform(0, 255, (8, 8, channels)), (width, height))
            noisy = np.clip(smooth + random.normal(0, NOISE, smooth.shape), 0, 255).astype(np.uint8)
            pictures[name] = (
                torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous().float() / 255
            )
        yield {**pictures, "observation.state": torch.zeros(1, freedom), "task": ["push the block"]}


def _rendered(room: str, images: dict[str, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Yield what an environment shows while random actions are carried out, as LeRobot prepares it.

    Three cameras are ALOHA's own: it gives its policies one of them.
    """
    import gymnasium
    from lerobot.envs.utils import preprocess_observation

    importlib.import_module(room.partition("/")[0])
    environment = gymnasium.make(room, obs_type="pixels_agent_pos")
    environment.reset(seed=0)
    environment.action_space.seed(0)
    for _ in range(SEEN):
        seen, *_ = environment.step(environment.action_space.sample())
        if len(images) > 1:
            physics = environment.unwrapped._env.physics
            seen["pixels"] = {
                feature.rpartition(".")[2]: physics.render(height, width, camera_id=camera).copy()
                for (feature, (_, height, width)), camera in zip(
                    images.items(), ROOM_CAMERAS, strict=True
                )
            }
        yield {**preprocess_observation(seen), "task": ["push the block"]}
    environment.close()


if __name__ == "__main__":
    main()
