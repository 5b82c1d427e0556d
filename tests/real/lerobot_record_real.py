"""Recording LeRobot's own loops, over the real LeRobot and its gymnasiums; part of ``make test-lerobot``."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ingest_fixtures import arrays_of, commits, observe
from lerobot_fixture_real import (
    save_act,
    save_fast,
    save_groot,
    save_molmoact2,
    save_pi,
    save_smolvla,
    small,
)

import attnstore
from attnstore.cli import cli
from attnstore.commands.record import run_lerobot_eval
from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.policies.base import HiddenChoice, Watch
from attnstore.ingest.policies.lerobot.base import LeRobotPolicy
from attnstore.ingest.policies.lerobot.policy import load_lerobot
from attnstore.ingest.recording.lerobot import record_lerobot
from attnstore.store.commits import StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.errors import UsageError

ROOMS = {
    "pusht": ("observation.image", (3, 96, 96), 2, 2),
    "aloha": ("observation.images.top", (3, 480, 640), 14, 14),
}
SAVE: dict[str, Any] = {
    "act": save_act, "smolvla": save_smolvla,
    "pi0": lambda directory, **o: save_pi(directory, "pi0", **o),
    "pi05": lambda directory, **o: save_pi(directory, "pi05", **o),
    "pi0_fast": lambda directory, **o: save_fast(
        directory, rounds=0, validate_action_token_prefix=False, max_decoding_steps=6, **o
    ),
    "groot": save_groot,
    "molmoact2": lambda directory, **o: save_molmoact2(
        directory, inference_action_mode="continuous", **o
    ),
}  # fmt: skip
LENGTH = 7
pytestmark = pytest.mark.filterwarnings("default")  # the gymnasiums' own, of deprecated parts


@pytest.fixture(autouse=True)
def reduced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small modules wherever LeRobot makes some, and no screen."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with small():
        yield


def checkpoint_for(room: str, kind: str, folder: Path) -> Path:
    from lerobot.configs.types import FeatureType, PolicyFeature

    camera, size, state, action = ROOMS[room]
    features = {
        camera: PolicyFeature(FeatureType.VISUAL, size),
        "observation.state": PolicyFeature(FeatureType.STATE, (state,)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action,))}
    made: Path = SAVE[kind](folder / kind, input_features=features, output_features=outputs)
    return made


def arguments(checkpoint: Path, room: str, out: Path, episodes: int, rows: int) -> list[str]:
    return [
        f"--policy.path={checkpoint}", f"--env.type={room}", f"--env.episode_length={LENGTH}",
        f"--eval.n_episodes={episodes}", f"--eval.batch_size={rows}", "--eval.use_async_envs=false",
        "--policy.device=cpu", f"--output_dir={out}", "--seed=7",
    ]  # fmt: skip


def results(out: Path) -> tuple[list[float], list[bool]]:
    """Rewards and successes that lerobot-eval wrote."""
    found = json.loads((out / "eval_info.json").read_text())["per_task"][0]["metrics"]
    return found["sum_rewards"], found["successes"]


def assert_same_attention(one: Path, other: Path) -> None:
    """Hold two drives to the same arrays, actions among them; only the clock tells them apart."""
    ours, theirs = commits(one), commits(other)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        left, right = (
            arrays_of(Part(StorePaths(s), c[name])) for s, c in ((one, ours), (other, theirs))
        )
        assert sorted(left) == sorted(right)
        assert any(path.endswith("attention") for path in left)
        for path, values in left.items():
            np.testing.assert_array_equal(values, right[path], err_msg=f"{name} {path}")


def run(*said: object) -> str:
    done = CliRunner().invoke(cli, [str(s) for s in said], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("room", "kind"),
    [
        ("pusht", "act"),
        ("pusht", "smolvla"),
        ("pusht", "pi0"),
        ("pusht", "pi05"),
        ("pusht", "pi0_fast"),
        ("pusht", "groot"),
        ("pusht", "molmoact2"),
        ("aloha", "act"),
    ],
)
def test_it_does_what_it_would_alone_and_replays_bit_for_bit(
    room: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gym_pusht.envs.pusht import PushTEnv  # warns of its own age when it is imported
    from lerobot.scripts import lerobot_eval

    checkpoint = checkpoint_for(room, kind, tmp_path)
    given = {
        w: arguments(checkpoint, room, tmp_path / w, 2, 1) for w in ("alone", "live", "replay")
    }
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *given["alone"]])
    taken: list[Any] = []

    def taking(self: Any, action: Any) -> Any:
        taken.append(np.array(action))
        return step(self, action)

    step = PushTEnv.step
    monkeypatch.setattr(PushTEnv, "step", taking)
    lerobot_eval.main()
    for mode in ("live", "replay"):
        run("record", "lerobot-eval", tmp_path / f"{mode}.attn", "--mode", mode, "--", *given[mode])
        assert results(tmp_path / mode) == results(tmp_path / "alone")
    if room == "pusht":
        assert len(taken) == 3 * 2 * LENGTH
        for drive in (taken[2 * LENGTH : 4 * LENGTH], taken[4 * LENGTH :]):
            np.testing.assert_array_equal(drive, taken[: 2 * LENGTH])
    assert not vars(lerobot_eval)["rollout"].__name__.startswith("through")
    trusted = ["--policy-option", "trust_remote_code=true"] if kind == "pi0_fast" else []
    run(
        "ingest", "recording", tmp_path / "replay.attn", "--policy", "lerobot",
        "--checkpoint", checkpoint, *trusted,
    )  # fmt: skip
    assert_same_attention(tmp_path / "live.attn", tmp_path / "replay.attn")
    with attnstore.open(tmp_path / "replay.attn") as store:
        calls = store.sql("select frame, executed, action_difference from calls order by all")
        assert calls.fetchall() == [(0, 5, 0.0), (0, 5, 0.0), (5, 2, 0.0), (5, 2, 0.0)]
        rewards = store.sql("select outcome from episodes").fetchall()
        assert rewards == [("success" if s else "failure",) for s in results(tmp_path / "live")[1]]


def test_rows_end_at_their_own_times_with_their_own_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gym_pusht.envs.pusht import PushTEnv

    step, reset = PushTEnv.step, PushTEnv.reset

    def resetting(self: Any, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.planned = seed % 3
        self.taken = 0
        return reset(self, seed=seed, options=options)

    def stepping(self: Any, action: Any) -> Any:
        observation, reward, _, _, info = step(self, action)
        self.taken += 1
        # of seeds 7, 8, 9, 10: planned 1 succeeds after 3 steps, 2 fails after 6, 0 runs to the limit
        over = self.taken == {0: 99, 1: 3, 2: 6}[self.planned]
        info["is_success"] = bool(over and self.planned == 1)
        return observation, reward, over, False, info

    monkeypatch.setattr(PushTEnv, "reset", resetting)
    monkeypatch.setattr(PushTEnv, "step", stepping)
    checkpoint = checkpoint_for("pusht", "act", tmp_path)
    said = run(
        "record", "lerobot-eval", tmp_path / "s", "--json", "--",
        *arguments(checkpoint, "pusht", tmp_path / "out", 4, 3),
    )  # fmt: skip
    assert json.loads(said.splitlines()[-1])["episodes"] == 6
    assert results(tmp_path / "out")[1] == [True, False, False, True]
    with attnstore.open(tmp_path / "s") as store:
        rows = store.sql("select name, outcome, frames, keyframes from episodes order by name")
        assert rows.fetchall() == [
            ("pusht_0/episode_0000", "success", 3, 1), ("pusht_0/episode_0001", "failure", 6, 2),
            ("pusht_0/episode_0002", "failure", LENGTH, 2), ("pusht_0/episode_0003", "success", 3, 1),
            ("pusht_0/episode_0004", "failure", 6, 2), ("pusht_0/episode_0005", "failure", LENGTH, 2),
        ]  # fmt: skip
        assert store.sql("select max(action_difference) from calls").fetchall() == [(0.0,)]
        names = ("pusht_0/episode_0000", "pusht_0/episode_0004")
        kept = {n: store.episode(n).spec.attributes for n in names}
        assert [a["seed"] for a in kept.values()] == [7, 11]
        assert [a["counted"] for a in kept.values()] == [True, False]


def test_a_dataset_that_an_evaluation_recorded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.scripts import lerobot_eval

    checkpoint = checkpoint_for("pusht", "act", tmp_path)
    said = arguments(checkpoint, "pusht", tmp_path / "out", 1, 1)
    # LeRobot 0.6.1 takes another size for the recording than PushT's frames have
    said += ["--eval.recording=true", "--env.observation_height=96", "--env.observation_width=96"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *said])
    lerobot_eval.main()
    dataset = LeRobotDataset(tmp_path / "out/recordings/pusht_0", state=["agent_pos"])
    assert dataset.of_an_evaluation
    assert list(dataset.episode_names()) == ["episode_000000"]


@pytest.mark.parametrize("kind", ["pi05", "smolvla"])
def test_chunks_of_another_thread_in_real_time_chunking(kind: str, tmp_path: Path) -> None:
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    checkpoint = SAVE[kind](tmp_path / kind)
    policy = load_lerobot(str(checkpoint))
    assert isinstance(policy, LeRobotPolicy)
    theirs = policy.policy
    theirs.config.pretrained_path = str(checkpoint)
    theirs.config.rtc_config = RTCConfig(execution_horizon=3)
    theirs.init_rtc_processor()
    raw = {
        **{f: torch.rand(3, 36, 64) for f in policy.config.image_features if "absent" not in f},
        "observation.state": torch.rand(8), "task": "wipe",
    }  # fmt: skip
    chunks: list[Any] = []

    def drive() -> None:
        left = None
        for _ in range(3):
            chunk = theirs.predict_action_chunk(
                policy.preprocessor(dict(raw)), inference_delay=1, prev_chunk_left_over=left
            )
            chunks.append(chunk.clone())
            left = chunk[:, 2:]

    torch.manual_seed(5)
    drive()
    for mode in ("live", "replay"):
        torch.manual_seed(5)
        with record_lerobot(theirs, policy.preprocessor, tmp_path / mode, mode=mode) as made:
            thread = threading.Thread(target=drive)
            thread.start()
            thread.join()
            theirs.reset()
            assert not made.recorder.faults
    assert len(chunks) == 9
    for i in range(3):
        torch.testing.assert_close(chunks[3 + i], chunks[i], rtol=0, atol=0)
        torch.testing.assert_close(chunks[6 + i], chunks[i], rtol=0, atol=0)
    assert not torch.equal(chunks[0], chunks[1])
    # It is guided by gradients, through the layers; what is shown of them has none.
    shown: list[Any] = []
    watch = Watch(values=True, hidden=HiddenChoice())
    with capture(
        policy, lambda r: shown.extend([r.weights, r.norms]), watch=watch,
        hidden=lambda r: shown.append(r.states),
    ) as session:  # fmt: skip
        theirs.predict_action_chunk(
            policy.preprocessor(dict(raw)), inference_delay=1, prev_chunk_left_over=chunks[0][:, 2:]
        )
    assert len(shown) > 20
    assert not any(values.requires_grad for values in [*shown, *session.noisy_actions])
    run(
        "ingest",
        "recording",
        tmp_path / "replay",
        "--policy",
        "lerobot",
        "--checkpoint",
        checkpoint,
    )
    assert_same_attention(tmp_path / "live", tmp_path / "replay")


def test_a_compiled_policy_is_replayed_within_a_tolerance(tmp_path: Path) -> None:
    checkpoint = save_pi(tmp_path / "pi05", "pi05")
    policy = load_lerobot(str(checkpoint))
    assert isinstance(policy, LeRobotPolicy)
    theirs = policy.policy
    theirs.config.pretrained_path = str(checkpoint)
    theirs.model.sample_actions = torch.compile(theirs.model.sample_actions, backend="aot_eager")
    sight = observe(1)
    raw = {
        **{f"observation.images.{c}": torch.from_numpy(i).permute(2, 0, 1) / 255 for c, i in sight.images.items()},
        "observation.state": torch.from_numpy(sight.state), "task": sight.instruction,
    }  # fmt: skip
    with (
        record_lerobot(theirs, policy.preprocessor, tmp_path / "s", mode="replay") as made,
        made.episode("one") as episode,
    ):
        for _ in range(2):
            theirs.predict_action_chunk(policy.preprocessor(dict(raw)))
            episode.advance(5)
        episode.finish(outcome=True)
    run(
        "ingest", "recording", tmp_path / "s", "--policy", "lerobot", "--checkpoint", checkpoint,
        "--tolerance", "1e-4",
    )  # fmt: skip
    with attnstore.open(tmp_path / "s") as store:
        ((worst,),) = store.sql("select max(action_difference) from calls").fetchall()
        assert 0 <= worst <= 1e-4
        print(f"compiled against eager: {worst:g}")


def test_what_is_refused(tmp_path: Path) -> None:
    from attnstore.ingest.recording.lerobot import EvalRecorder

    with pytest.raises(UsageError, match="what is behind -- is its own: --nonsense=1"):
        run_lerobot_eval(EvalRecorder(tmp_path / "s", {}), ["--nonsense=1"])
    policy = load_lerobot(str(save_act(tmp_path / "act")))
    assert isinstance(policy, LeRobotPolicy)
    with pytest.raises(UsageError, match="a replay needs the checkpoint that drove"):
        record_lerobot(policy.policy, policy.preprocessor, tmp_path / "s", mode="replay")
