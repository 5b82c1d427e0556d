"""openpi's server recorded, and what its ``PolicyRecorder`` wrote: whose a call is, and files that lie."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_fixture import save_checkpoint, stand_ins

import attnstore
from attnstore.cli import main
from attnstore.ingest.datasets.base import EpisodeInfo
from attnstore.ingest.datasets.openpi.message import pixels, read_message
from attnstore.ingest.datasets.openpi.records import RecordsDataset, read_step
from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.recording.dataset import RecordingDataset
from attnstore.ingest.recording.openpi import RecordingPolicy
from attnstore.store.errors import EpisodeError, IntegrityError, NotFoundError, UsageError


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of the command line, and all that it said."""
    with pytest.raises(SystemExit) as done:
        main(arguments)
    said = capsys.readouterr()
    return int(done.value.code or 0), said.out + said.err


RANDOM = np.random.default_rng(4)


def message(number: int, prompt: str = "wipe the table", **marks: Any) -> dict[str, Any]:
    """What openpi's DROID client sends, and what else lies in its observation."""
    random = np.random.default_rng(number)
    return {
        "observation/exterior_image_1_left": random.integers(0, 256, (48, 64, 3), np.uint8),
        "observation/wrist_image_left": random.integers(0, 256, (48, 64, 3), np.uint8),
        "observation/gripper_position": np.array([0.25]),
        "observation/joint_position": np.linspace(-1, 1, 7) + number,
        "clock": np.float64(number),  # the transforms never read it
        "spare_camera": random.integers(0, 256, (48, 64, 3), np.uint8),
        "prompt": prompt,
        **{f"attnstore/{key}": value for key, value in marks.items()},
    }


def frames_of(info: EpisodeInfo) -> tuple[int, ...]:
    assert info.keyframes is not None
    return info.keyframes


def floats(*values: Any) -> Any:
    return np.array(values, np.float32)


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if not key.startswith("attnstore/")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with stand_ins():
        yield save_checkpoint(tmp_path_factory.mktemp("openpi") / "pi05", "pi05_droid")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenpiPolicy:
    loaded = load_policy("openpi:pi05_droid", str(checkpoint), options={"steps": "2"})
    assert isinstance(loaded, OpenpiPolicy)
    return loaded


def recorded(store: Path) -> RecordingDataset:
    (directory,) = (store / "recordings").iterdir()
    return RecordingDataset(directory)


def test_calls_are_those_of_openpis_policy_and_keep_what_it_saw(
    policy: OpenpiPolicy, ram_path: Path
) -> None:
    """Actions bit for bit, marks and unread keys left out, noise reproducible from its seed."""
    sent = [
        message(i, episode="a", step=8 * i, task="clean", seed=5, scene="lab") for i in range(2)
    ]
    with attnstore.record(policy, ram_path / "s", mode="replay") as recorder:
        served = RecordingPolicy(recorder, seed=1)
        assert served.metadata == {"robot": "stand-in"}
        answers = [served.infer(each) for each in sent]
        own = np.full((15, 32), 0.5, np.float32)
        answers.append(served.infer(message(2, step=19), noise=own))
        assert served.infer({"attnstore/outcome": True, "attnstore/reward": 2.5}) == {}
        assert not recorder.faults
    dataset = recorded(ram_path / "s")
    info = dataset.info("a")
    assert (info.outcome, info.task, info.instruction) == ("success", "clean", "wipe the table")
    assert info.attributes == {"scene": "lab", "dropped": 0, "seed": 5, "reward": 2.5}
    assert info.keyframes == (0, 8, 19)
    for i, frame in enumerate(dataset.frames("a", frames_of(info))):
        assert frame.call is not None
        noise = own if i == 2 else policy.noise(frame.call.seed).numpy()
        assert (frame.call.seed == -1) == (i == 2)
        expected = policy.theirs.infer(plain(message(i)), noise=noise)
        np.testing.assert_array_equal(answers[i]["actions"], expected["actions"])
        np.testing.assert_array_equal(2 * frame.call.actions, expected["actions"])
        assert [c.camera for c in frame.cameras] == ["exterior_image_1_left", "wrist_image_left"]
        # joints before the gripper, as data sets have them
        np.testing.assert_array_equal(frame.state, floats(*(np.linspace(-1, 1, 7) + i), 0.25))
        geometry = frame.call.batch.samples[0].geometry
        assert geometry["wrist_image_left"].resized == (168, 224)


def test_whose_a_call_is(policy: OpenpiPolicy, ram_path: Path) -> None:
    """Names, connections, prompts, outcomes; two connections at once do not mix."""
    with attnstore.record(policy, ram_path / "s", mode="replay", name="r") as recorder:
        served = RecordingPolicy(recorder, by_prompt=True, steps_per_call=8)

        async def named() -> None:
            served.infer(message(0, episode="one"))
            await asyncio.sleep(0)
            served.infer(message(1))  # still "one", although the other connection asked between
            served.infer(message(2, episode="two", outcome="failure"))

        async def unnamed() -> None:
            served.infer(message(3))
            await asyncio.sleep(0)
            served.infer(message(4))
            served.infer(message(5, prompt="pour"))

        async def server() -> None:
            await asyncio.gather(asyncio.create_task(named()), asyncio.create_task(unnamed()))

        asyncio.run(server())
        served.infer(message(6))  # no connection: this thread's
        served.reset()
        assert not recorder._open
        served.infer(message(7))
    dataset = recorded(ram_path / "s")
    first = {n: float(next(dataset.frames(n, [0])).state[3]) for n in dataset.episode_names()}
    by_call = {round(state): name for name, state in first.items()}
    assert by_call[0] == "one"
    assert by_call[2] == "two"
    lengths = {call: len(dataset.numbers(name)) for call, name in by_call.items()}
    assert lengths == {0: 2, 2: 1, 3: 2, 5: 1, 6: 1, 7: 1}
    infos = {call: dataset.info(name) for call, name in by_call.items()}
    assert {c: i.outcome for c, i in infos.items() if i.outcome != "unknown"} == {2: "failure"}
    assert infos[3].keyframes == (0, 8)
    assert infos[5].instruction == "pour"
    # a connection that ends ends its episode; the recorder ended only the last one
    assert [c for c, i in infos.items() if "ended" in i.attributes] == [7]


def test_a_pause_begins_an_episode(
    policy: OpenpiPolicy, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnstore.ingest.recording import openpi

    now = [100.0]
    with attnstore.record(policy, ram_path / "s", mode="replay") as recorder:
        monkeypatch.setattr(openpi, "time", type("Clock", (), {"monotonic": lambda: now[0]}))
        served = RecordingPolicy(recorder, pause=10)
        for at in (100.0, 109.0, 118.5, 129.0):
            now[0] = at
            served.infer(message(0))
    dataset = recorded(ram_path / "s")
    assert sorted(len(dataset.numbers(n)) for n in dataset.episode_names()) == [1, 3]


def test_what_cannot_be_recorded_is_served_all_the_same(
    policy: OpenpiPolicy, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attnstore.record(policy, ram_path / "s", mode="replay") as recorder:
        served = RecordingPolicy(recorder)
        noise = policy.noise(3).numpy()

        def refuse(*_: Any) -> Any:
            raise RuntimeError("no layout")

        with monkeypatch.context() as patch:
            patch.setattr(policy._sequence, "sample", refuse)
            answer = served.infer(message(0, episode="a", step="far"), noise=noise)
        served.infer(message(1, step=-3))
        with pytest.raises(KeyError):  # what openpi raises, the caller gets
            served.infer({"prompt": "no camera"})
        expected = policy.theirs.infer(plain(message(0)), noise=noise)
        np.testing.assert_array_equal(answer["actions"], expected["actions"])
        assert {text.partition(":")[0] for text in recorder.faults} == {
            "a client's keys", "a policy call was dropped", "attnstore/step went back by 3; it is left out",
        }  # fmt: skip
    info = recorded(ram_path / "s").info("a")
    assert info.attributes["dropped"] == 2
    assert len(frames_of(info)) == 1


def test_messages_of_other_robots() -> None:
    """Nested keys, channels first, floats, and a prompt as openpi's transforms carry it."""
    picture = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    first = np.moveaxis(picture, -1, 0)
    sent = {
        "images": {"cam_high": first, "cam_left_wrist": picture},
        "depth": np.zeros((4, 6)),
        "left/camera": (picture / 255).astype(np.float32),
        "right/camera": picture,
        "state": np.arange(14),
        "gripper": 0.5,
        "prompt": np.asarray("fold"),
        "weights": np.zeros(4096),
    }
    found = read_message(sent, {"right/camera": "side"})
    assert list(found.cameras) == ["cam_high", "cam_left_wrist", "left.camera", "side"]
    assert found.cameras["cam_high"] == ("images", "cam_high")
    assert list(found.numbers) == [("state",), ("gripper",)]
    assert found.prompt == "fold"
    np.testing.assert_array_equal(pixels(first), picture)
    assert np.abs(found.pictures()["left.camera"].astype(int) - picture).max() <= 1


class Server:
    """Stands for openpi's server: asks the policy as a connection does, then is told to stop."""

    def __init__(self, policy: Any, host: str, port: int, metadata: Any) -> None:
        self._policy = policy
        assert (host, port, metadata) == ("127.0.0.1", 9000, {"robot": "stand-in"})

    def serve_forever(self) -> None:
        async def connection() -> None:
            content = message(0)
            del content["prompt"]
            self._policy.infer(content)

        async def run() -> None:
            await asyncio.create_task(connection())

        asyncio.run(run())
        os.kill(os.getpid(), 15)


def test_the_launcher(
    checkpoint: Path,
    ram_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``attnstore record openpi``, told to stop by SIGTERM, and the ingest that it makes possible."""
    store = str(ram_path / "s")
    module = sys.modules["openpi.serving.websocket_policy_server"]
    monkeypatch.setattr(module, "WebsocketPolicyServer", Server, raising=False)
    asked = [
        "record", "openpi", store, "--config", "pi05_droid", "--checkpoint", str(checkpoint),
        "--host", "127.0.0.1", "--port", "9000", "--name", "lab", "--rate", "15",
        "--policy-option", "steps=2", "--default-prompt", "sweep",
        "--policy-option", "cameras=hand_camera:observation/wrist_image_left",
    ]  # fmt: skip
    code, output = run(asked, capsys)
    assert code == 1
    assert "compiling takes minutes" in output
    code, output = run([*asked, "--no-compile"], capsys)
    assert code == 0, output
    assert "ws://127.0.0.1:9000 serves pi05_droid and records (replay) into " in output
    dataset = recorded(ram_path / "s")
    (name,) = dataset.episode_names()
    info = dataset.info(name)
    assert (info.instruction, info.rate, info.outcome) == ("sweep", 15.0, "unknown")
    assert dataset.cameras == ("exterior_image_1_left", "hand_camera")
    code, output = run([
            "ingest", "recording", store, "--policy", "openpi:pi05_droid", "--checkpoint", str(checkpoint),
            "--policy-option", "steps=2",
            "--policy-option", "cameras=hand_camera:observation/wrist_image_left",
        ],
        capsys,
    )  # fmt: skip
    assert code == 0, output
    with attnstore.open(store) as opened:
        assert opened.episode(name).maps("prefix", "hand_camera", layer=0, head=0).shape == (
            1,
            16,
            16,
        )


def test_a_live_recording_keeps_what_is_asked_for(
    checkpoint: Path,
    ram_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = sys.modules["openpi.serving.websocket_policy_server"]
    monkeypatch.setattr(module, "WebsocketPolicyServer", Server, raising=False)
    asked = [
        "--config", "pi05_droid", "--checkpoint", str(checkpoint), "--policy-option", "steps=2",
        "--default-prompt", "sweep", "--mode", "live", "--host", "127.0.0.1", "--port", "9000",
    ]  # fmt: skip
    for name, more in (("few", []), ("all", ["--precision", "log8", "--vision", "--token-stats"])):
        store = str(ram_path / name)
        code, output = run(["record", "openpi", store, *asked, *more], capsys)
        assert code == 0, output
        with attnstore.open(store) as opened:
            ((precision,),) = opened.sql("select precision from runs").fetchall()
            ((counted,),) = opened.sql("select count(*) > 0 from token_stats").fetchall()
            (episode,) = opened.episodes.values()
            kept = (precision, "vision" in episode.phases, counted)
        assert kept == (("log8", True, True) if more else ("float16", False, False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "pi05_droit"], "did you mean pi05_droid"),
        (["--config", "pi05_droid", "--pause", "-1"], "pause is a positive number of seconds"),
        (["--config", "pi05_droid", "--policy-option", "camera=x"], "camera"),
        (["--config", "pi05_droid", "--mode", "eager"], "'eager' is not one of 'live', 'replay'"),
    ],
)
def test_arguments_of_the_launcher(
    checkpoint: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["record", "openpi", str(tmp_path / "s"), "--checkpoint", str(checkpoint)]
    code, output = run([*asked, "--no-compile", *arguments], capsys)
    assert code == 2, output
    assert said in output


# What PolicyRecorder writes.


def write_step(directory: Path, step: int, content: Any) -> Path:
    """As ``PolicyRecorder.infer`` does."""
    path = directory / f"step_{step}.npy"
    with path.open("wb") as file:
        np.save(file, np.asarray(content))
    return path


def step(number: int, prompt: str = "wipe") -> dict[str, Any]:
    sent = {
        f"inputs/{k}": v for k, v in plain(message(number, prompt)).items() if k != "spare_camera"
    }
    actions = np.array([[number, 1, 2], [3, 4, 5]], np.float64)
    timing = {"outputs/policy_timing/infer_ms": 12.5, "outputs/at": np.float32(number)}
    return {**sent, "outputs/actions": actions, "outputs/state": np.zeros(8), **timing}


def test_policy_records_become_episodes(tmp_path: Path) -> None:
    prompts = ["wipe"] * 4 + ["pour"] * 3
    for i, prompt in enumerate(prompts):
        path = write_step(tmp_path, i, step(i, prompt))
        os.utime(path, (1000 + i + 60 * (i >= 6),) * 2)
    (tmp_path / "step_1.npy").unlink()
    dataset = RecordsDataset(tmp_path, begins=[3], pause=30)
    assert dataset.cameras == ("exterior_image_1_left", "wrist_image_left")
    assert list(dataset.episode_names()) == [
        "step_000000",
        "step_000003",
        "step_000004",
        "step_000006",
    ]
    info = dataset.info("step_000000")
    assert (info.instruction, info.frames, info.keyframes) == ("wipe", 3, (0, 2))
    assert (info.outcome, info.date) == ("unknown", "1970-01-01")
    frames = list(dataset.frames("step_000000", (0, 2)))
    sent = message(2)
    np.testing.assert_array_equal(frames[1].cameras[1].rgb, sent["observation/wrist_image_left"])
    np.testing.assert_array_equal(frames[1].action, floats(2, 1, 2))
    np.testing.assert_array_equal(
        frames[1].state, floats(*(np.linspace(-1, 1, 7) + 2), 2, 0.25)
    )  # what the client sent: its clock too
    assert list(RecordsDataset(tmp_path, episodes=["*4"]).episode_names()) == ["step_000004"]
    with pytest.raises(UsageError, match=r"no step_1\.npy .* steps 0 to 6"):
        RecordsDataset(tmp_path, begins=[1])
    with pytest.raises(NotFoundError, match=r"no step_N\.npy"):
        RecordsDataset(tmp_path / "..")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of a file may be another: no code runs, and nothing but one error is raised."""
    monkeypatch.chdir(tmp_path)
    path = write_step(tmp_path, 0, {**step(0), "inputs/extra": Evil()})
    with pytest.raises(IntegrityError, match=r"posix\.mkdir .* is refused"):
        read_step(path)
    assert not (tmp_path / "it-ran").exists()
    with pytest.raises(EpisodeError, match=r"step_0\.npy: it asks for posix\.mkdir"):
        RecordsDataset(tmp_path).info("step_000000")
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "|O", "fortran_order": False, "shape": ()})
    # an array that says to have 2^60 elements, and NumPy's class called by itself
    for code in (
        b"\x80\x03cnumpy\nndarray\n(\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10tR.",
        pickle.dumps(np.zeros(3), 3).replace(b"K\x03\x85", b"\x8a\x08" + b"\x00" * 7 + b"\x10\x85"),
    ):
        path.write_bytes(huge.getvalue() + code)
        with pytest.raises(IntegrityError):
            read_step(path)
    small = {
        "inputs/a": np.arange(3, dtype=">f4"),
        "inputs/b": np.float32(2),
        "inputs/c": np.array(["x"]),
    }
    whole = write_step(tmp_path, 0, small).read_bytes()
    found = read_step(path)
    assert found["inputs/b"] == 2
    assert found["inputs/a"].tolist() == [0, 1, 2]
    for at in range(len(whole)):
        for flipped in (
            whole[:at],
            whole[:at] + bytes([whole[at] ^ RANDOM.integers(1, 256)]) + whole[at + 1 :],
        ):
            path.write_bytes(flipped)
            try:
                read_step(path)
            except IntegrityError:
                pass


def test_records_from_the_command_line(
    checkpoint: Path, ram_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ram_path / "policy_records"
    records.mkdir()
    for i in range(3):
        content = step(i)
        del content["inputs/clock"]
        write_step(records, i, content)
    write_step(records, 3, {"inputs/prompt": "wipe"})
    asked = [
        "ingest", "openpi-records", str(ram_path / "s"), str(records), "--policy", "openpi:pi05_droid",
        "--checkpoint", str(checkpoint), "--policy-option", "steps=2",
    ]  # fmt: skip
    code, output = run(asked, capsys)
    assert code == 5, output
    assert "no camera image below inputs/" in output
    code, output = run([*asked, "--begin", "3"], capsys)
    assert code == 5, output
    with attnstore.open(ram_path / "s") as store:
        episode = store.episode("step_000000")
        assert list(episode.frames) == [0, 1, 2]
        np.testing.assert_array_equal(
            episode.policy_array("actions_recorded")[:, 0], floats(0, 1, 2)
        )
