"""``python -m benchmarks.lerobot_record``: what recording adds to a LeRobot policy's calls.

To be run in LeRobot's environment (docs/how-to/lerobot.md). Small policies that see images as large as their
environments give them, so that inputs have their real size and the recorder's part is not lost in the policy's
own. In replay mode, around `predict_action_chunk`, as `lerobot-eval` calls it: wall time in the caller's thread, over
that of the policy's own method, with and without the time that the thread waited for a processor.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from attnstore.ingest.recording.lerobot import record_lerobot

from .record import NOISE, starved

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
CALLS, WARM = 60, 5
CASES = {
    "act, pusht": ("act", {"observation.image": (3, 96, 96)}, 2),
    "act, aloha": ("act", {"observation.images.top": (3, 480, 640)}, 14),
    "act, three cameras": ("act", {f"observation.images.{c}": (3, 480, 640) for c in "abc"}, 14),
    "smolvla, aloha": ("smolvla", {"observation.images.top": (3, 480, 640)}, 14),
    "pi05, three cameras": ("pi05", {f"observation.images.{c}": (3, 360, 640) for c in "abc"}, 8),
}
"""Family, image features, degrees of freedom."""


def main() -> None:
    """Measure every case, or those that are named."""
    import lerobot_fixture_real as real

    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(CASES)
    for name in asked:
        with tempfile.TemporaryDirectory() as folder, real.small():
            added, plain, size, dropped = measure(*CASES[name], Path(folder))
        what = ", ".join(
            f"{label} median {np.median(ms):.2f}, p99 {np.percentile(ms, 99):.1f} ms"
            for label, ms in (("without waiting", added), ("by the clock", plain))
        )
        print(f"{name}: {what}; {size / CALLS / 1e6:.3f} MB a call; {dropped} dropped", flush=True)


def measure(
    kind: str, images: dict[str, tuple[int, ...]], freedom: int, folder: Path
) -> tuple[list[float], list[float], int, int]:
    """Drive; return what a call took more, in ms, without waiting for a processor and by the clock."""
    policy, preprocessor = _made(kind, images, freedom, folder)
    random = np.random.default_rng(0)
    seen = [_observation(images, freedom, random) for _ in range(8)]
    own: list[tuple[float, float]] = []
    ask = policy.predict_action_chunk

    def timed(batch: Any, **keywords: Any) -> Any:
        found, *took = _timed(lambda: ask(batch, **keywords))
        own.append((took[0], took[1]))
        return found

    policy.predict_action_chunk = timed
    added, plain = [], []
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
                plain.append(1e3 * (clock - own[0][0]))
                added.append(1e3 * (clock - waited - own[0][0] + own[0][1]))
            time.sleep(0.1)  # the writing thread's turn, as between a robot's calls
        made.recorder.flush()
        dropped = episode.dropped.total()
        episode.finish(outcome="success")
    size = sum(p.stat().st_size for p in made.recorder.directory.glob("*.journal"))
    return added, plain, size, dropped


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


def _observation(images: dict[str, tuple[int, ...]], freedom: int, random: Any) -> dict[str, Any]:
    """What LeRobot's environments give: images 0..1, (1, channel, height, width)."""
    pictures = {}
    for name, (channels, height, width) in images.items():
        smooth = cv2.resize(random.uniform(0, 255, (8, 8, channels)), (width, height))
        noisy = np.clip(smooth + random.normal(0, NOISE, smooth.shape), 0, 255).astype(np.uint8)
        pictures[name] = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous().float() / 255
    return {**pictures, "observation.state": torch.zeros(1, freedom), "task": ["push the block"]}


if __name__ == "__main__":
    main()
