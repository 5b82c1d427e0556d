"""The contract on openpi itself: ``make test-openpi OPENPI=/path/to/checkout``.

openpi's sources run unchanged: its configurations, transforms, tokenizer class, checkpoint loading
and models. Reduced are sizes only: openpi's own "dummy" Gemmas (4 layers, width 64), 2 of SigLIP's
27 layers, and random weights. Where openpi has not fetched PaliGemma's tokenizer yet, a small
SentencePiece model takes its place.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from blocking_contract import BlockingContract
from droid_sample import sample_path
from ingest_fixtures import arrays_of, commits, observe
from lerobot_fixture_datasets import TOP, WRIST, Content, write_v21
from openpi_prompt_model import sentencepiece_model
from policy_contract import Case, as_array, run_captured

import attnstore
from attnstore.cli import main
from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import Batch, Observation, PolicyError, Watch
from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories
from attnstore.ingest.recording.openpi import RecordingPolicy
from attnstore.ingest.reduction import compact
from attnstore.store.commits import StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.errors import UsageError

STATS = {"mean": [0.1] * 8, "std": [0.9] * 8, "q01": [-2.0] * 7 + [0.0], "q99": [2.0] * 7 + [1.0]}
SIGHTS = (observe(1, "wipe", size=(72, 128)), observe(2, "pick up the green cube", size=(72, 128)))
NAMES = ("pi05_droid", "pi0_droid")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Make openpi's models small enough for a test: only sizes change."""
    from openpi.models_pytorch import gemma_pytorch
    from openpi.training import config as configs
    from transformers.models.paligemma import modeling_paligemma

    mapping = gemma_pytorch.CONFIG_MAPPING

    def paligemma() -> Any:
        config = mapping["paligemma"]()
        config.vision_config.num_hidden_layers = 2
        return config

    class Projector(torch.nn.Module):
        # openpi sets the projection to 2048, the width of the full language model.
        def __init__(self, config: Any) -> None:
            super().__init__()
            size = config.vision_config.hidden_size
            self.linear = torch.nn.Linear(size, config.text_config.hidden_size)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            projected: torch.Tensor = self.linear(features)
            return projected

    patch.setattr(modeling_paligemma, "PaliGemmaMultiModalProjector", Projector)
    patch.setattr(
        gemma_pytorch, "CONFIG_MAPPING", {"paligemma": paligemma, "gemma": mapping["gemma"]}
    )
    for name in (*NAMES, "pi05_libero"):
        config = configs.get_config(name)
        model = replace(config.model, paligemma_variant="dummy", action_expert_variant="dummy")
        patch.setitem(configs._CONFIGS_DICT, name, replace(config, model=model))


def save_checkpoint(directory: Path, name: str, asset: str = "droid", stats: Any = STATS) -> Path:
    """A converted checkpoint of random weights, norm stats beside it."""
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
    from openpi.training.config import get_config
    from safetensors.torch import save_model

    config = get_config(name).model
    torch.manual_seed(0)
    model = PI0Pytorch(replace(config, pytorch_compile_mode=None))
    with torch.no_grad():
        for parameter in model.parameters():
            # openpi starts with zeros where training does not: the time would not be seen.
            if parameter.ndim == 2:
                parameter.normal_(std=0.2 * (64 / parameter.shape[-1]) ** 0.5)
    assets = directory / "assets" / asset
    assets.mkdir(parents=True)
    save_model(model, str(directory / "model.safetensors"))
    text = json.dumps({"norm_stats": {"state": stats, "actions": stats}})
    (assets / "norm_stats.json").write_text(text)
    fields = ("action_dim", "action_horizon", "paligemma_variant", "action_expert_variant")
    (directory / "config.json").write_text(json.dumps({f: getattr(config, f) for f in fields}))
    return directory


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    from openpi.shared.download import get_cache_dir

    root = tmp_path_factory.mktemp("openpi")
    with pytest.MonkeyPatch.context() as patch:
        if not (get_cache_dir() / "big_vision" / "paligemma_tokenizer.model").is_file():
            patch.setenv("OPENPI_DATA_HOME", str(root / "data"))
            (root / "data" / "big_vision").mkdir(parents=True)
            file = root / "data" / "big_vision" / "paligemma_tokenizer.model"
            file.write_bytes(sentencepiece_model())
        shrink(patch)
        yield {name: save_checkpoint(root / name, name) for name in NAMES}


@pytest.fixture(scope="session")
def policies(checkpoints: dict[str, Path]) -> dict[str, OpenpiPolicy]:
    logging.getLogger().setLevel(logging.WARNING)
    return {n: OpenpiPolicy(str(d), variant=n) for n, d in checkpoints.items()}


@torch.no_grad()
def euler(model: Any, batch: Batch) -> list[Any]:
    """The chunk after each of 10 steps: openpi's velocities, a loop of our own."""
    from openpi.models.model import Observation as Theirs
    from openpi.models_pytorch.pi0_pytorch import make_att_2d_masks

    inputs = {**batch.inputs, "image": dict(batch.inputs["image"])}
    chunk, dt, time = inputs.pop("noise"), torch.tensor(-0.1), torch.tensor(1.0)
    seen = model._preprocess_observation(Theirs.from_dict(inputs), train=False)
    embedded, valid, blocks = model.embed_prefix(*seen[:4])
    _, cache = model.paligemma_with_expert.forward(
        attention_mask=model._prepare_attention_masks_4d(make_att_2d_masks(valid, blocks)),
        position_ids=valid.cumsum(1) - 1, past_key_values=None, inputs_embeds=[embedded, None],
        use_cache=True,
    )  # fmt: skip
    chunks = []
    for _ in range(10):
        at = time.expand(len(chunk))
        chunk = chunk + dt * model.denoise_step(seen[4], valid, cache, chunk, at)
        time = time + dt
        chunks.append(chunk)
    return chunks


class OpenpiContract(BlockingContract):
    config: str

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policies: dict[str, OpenpiPolicy]) -> Case:
        policy = policies[cls.config]

        def of_the_batch(batch: Batch) -> list[Any]:
            with policy.eager():
                return euler(policy.model, batch)

        return Case(policy, SIGHTS, policy.model, euler=of_the_batch)


class TestPi05(OpenpiContract):
    config = "pi05_droid"


class TestPi0(OpenpiContract):
    config = "pi0_droid"


def droid_observation(sight: Observation) -> dict[str, Any]:
    """What openpi's own DROID client sends, written out."""
    return {
        "observation/exterior_image_1_left": sight.images["varied_camera_1"],
        "observation/wrist_image_left": sight.images["hand_camera"],
        "observation/joint_position": sight.state[:7],
        "observation/gripper_position": sight.state[7:],
        "prompt": sight.instruction,
    }


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_those_of_openpis_own_infer(checkpoints: dict[str, Path], name: str) -> None:
    """The same observation through ``Policy.infer`` of an openpi policy without the adapter."""
    from openpi.policies.policy_config import create_trained_policy
    from openpi.training.config import get_config

    config = get_config(name)
    config = replace(config, model=replace(config.model, pytorch_compile_mode=None))
    theirs = create_trained_policy(config, checkpoints[name], pytorch_device="cpu")
    ours = OpenpiPolicy.from_policy(theirs)
    batch = ours.prepare(SIGHTS[1:])
    noise = batch.inputs["noise"].numpy()
    wanted = theirs.infer(droid_observation(SIGHTS[1]), noise=noise)["actions"]
    captured = run_captured(ours, batch)
    outputs = {"state": as_array(batch.inputs["state"])[0], "actions": captured.actions[0]}
    np.testing.assert_array_equal(theirs._output_transform(outputs)["actions"], wanted)
    assert wanted.shape == (config.model.action_horizon, 8)
    # and by hand: the model's chunk is normalised, Pi0.5's by quantiles, with 24 components to spare
    low, high, mean, std = (np.array(STATS[key]) for key in ("q01", "q99", "mean", "std"))
    chunk = captured.actions[0, :, :8].astype(np.float64)
    by_hand = (chunk + 1) / 2 * (high - low) + low if name == "pi05_droid" else chunk * std + mean
    np.testing.assert_allclose(wanted, by_hand, rtol=1e-4, atol=1e-5)


def test_shapes_and_golden_geometry(policies: dict[str, OpenpiPolicy]) -> None:
    policy = policies["pi05_droid"]
    batch = policy.prepare([observe(3, size=(720, 1280))])
    sample = batch.samples[0]
    geometry = sample.geometry["varied_camera_1"]
    assert (geometry.resized, geometry.offset, geometry.grid) == ((126, 224), (49, 0), (16, 16))
    shapes = {(p, w.shape) for p, _, _, w, _ in run_captured(policy, batch).records}
    assert shapes == {("prefix", (1, 8, 968, 968)), ("suffix", (1, 8, 15, 983))}
    prefix = sample.layouts["prefix"].key
    assert [(s.name, s.model_start) for s in prefix][:3] == [
        ("image:varied_camera_1", 0), ("image:hand_camera", 256), ("bos", 768),
    ]  # fmt: skip
    assert [s.name for s in prefix if s.role == "state"] == [f"state[{i}]" for i in range(8)]


def test_a_compiled_model(checkpoints: dict[str, Path]) -> None:
    """``pytorch_compile_mode`` at its default: captured uncompiled, without a compilation."""
    from openpi.policies.policy_config import create_trained_policy
    from openpi.training.config import get_config

    theirs = create_trained_policy(
        get_config("pi05_droid"), checkpoints["pi05_droid"], pytorch_device="cpu"
    )
    ours = OpenpiPolicy.from_policy(theirs)
    torch._dynamo.utils.counters.clear()
    batch = ours.prepare(SIGHTS[:1])
    captured = run_captured(ours, batch)
    assert len(captured.records) == 4 + 4 * 10
    assert not torch._dynamo.utils.counters["frames"]


def test_a_tokenizer_that_cannot_be_fetched_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A server that refuses stands for Google's; gcsfs logs its traceback before it raises."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": {"code": 400, "message": "no"}}')

        def log_message(self, *_: Any) -> None:
            pass

    directory = unsized(checkpoints["pi05_droid"], tmp_path / "full")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                sys.executable, "-m", "attnstore", "ingest", "droid", str(tmp_path / "s"),
                sample_path(), "--policy", "openpi:pi05_droid", "--checkpoint", directory, "--dry-run",
            ],
            env={
                **os.environ, "OPENPI_DATA_HOME": str(tmp_path / "data"),
                "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}",
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("attnstore: openpi cannot make the transforms of pi05_droid (")
    assert done.stderr.endswith("paligemma_tokenizer.model into $OPENPI_DATA_HOME/big_vision/\n")


def unsized(checkpoint: Path, directory: Path) -> Path:
    """The checkpoint, its configuration's sizes not said: it is not loaded."""
    shutil.copytree(checkpoint, directory, ignore=lambda *_: {"config.json"})
    return directory


def test_messages(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = str(checkpoints["pi05_droid"])
    with pytest.raises(UsageError, match="did you mean pi05_droid"):
        OpenpiPolicy(directory, variant="pi05_droit")
    with pytest.raises(UsageError, match="pi0_fast_droid is a Pi0FASTConfig"):
        OpenpiPolicy(directory, variant="pi0_fast_droid")
    with pytest.raises(PolicyError, match="action_horizon 15, configuration pi0_droid has 10"):
        OpenpiPolicy(directory, variant="pi0_droid")
    (tmp_path / "params").mkdir()
    with pytest.raises(PolicyError, match="convert it .*--config_name pi05_droid"):
        OpenpiPolicy(str(tmp_path), variant="pi05_droid")


def test_the_checkout_is_the_one_that_was_named() -> None:
    import openpi

    root = Path(os.environ["OPENPI"]).resolve()
    assert root in Path(next(iter(openpi.__path__))).resolve().parents


def test_what_happens_inside_is_shown_on_request(
    policies: dict[str, OpenpiPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image encoders and hidden states, of openpi's patched transformers."""
    ours = policies["pi05_droid"]
    batch = ours.prepare(SIGHTS[:1])
    layers: set[tuple[str, int]] = set()
    watch = Watch(vision=True, token_stats=True)
    with capture(
        ours, lambda r: None, watch=watch, hidden=lambda r: layers.add((r.phase, r.layer))
    ) as session:
        actions = as_array(ours.act(batch))
    monkeypatch.setattr(ours.encoder().config, "_attn_implementation", "eager")
    np.testing.assert_array_equal(actions, run_captured(ours, batch).actions)
    shape = ours.encoder_shape()
    assert (shape.layers, shape.heads, shape.grid) == (2, 16, (16, 16))
    assert session.counts == {"prefix": 4, "suffix": 40, "vision": 6}
    assert {("prefix", i) for i in range(-1, 4)} <= layers
    assert {("suffix", i) for i in range(-1, 4)} <= layers


@contextmanager
def serving(policy: RecordingPolicy) -> Iterator[int]:
    """openpi's own server around a recorded policy, in a thread; yields its port."""
    from openpi.serving.websocket_policy_server import WebsocketPolicyServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = WebsocketPolicyServer(policy, "127.0.0.1", port, policy.metadata)
    loop = asyncio.new_event_loop()
    running = loop.create_task(server.run())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(running)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(running.cancel)
        thread.join()
        loop.close()


def episodes_over_the_wire(policy: OpenpiPolicy, store: Path, mode: Any) -> list[Any]:
    """Two clients of openpi's at once: one names its episode, the other says nothing."""
    from openpi_client.websocket_client_policy import (  # type: ignore[import-not-found]
        WebsocketClientPolicy,
    )

    answers = []
    with attnstore.record(policy, store, mode=mode) as recorder:
        with serving(RecordingPolicy(recorder, seed=7)) as port:
            named, silent = (WebsocketClientPolicy("127.0.0.1", port) for _ in range(2))
            assert named.get_server_metadata() == policy.theirs.metadata
            for call, sight in enumerate(SIGHTS):
                marks = {"attnstore/episode": "named", "attnstore/step": 8 * call}
                answers.append(named.infer({**droid_observation(sight), **marks}))
                answers.append(silent.infer(droid_observation(sight)))
            assert "actions" not in named.infer({"attnstore/outcome": "success"})
            for client in (named, silent):
                client._ws.close()
        recorder.flush()
    assert not recorder.faults, recorder.faults
    return answers


def test_recorded_over_a_websocket_live_and_by_replay(
    checkpoints: dict[str, Path], policies: dict[str, OpenpiPolicy], tmp_path: Path
) -> None:
    """openpi's real server and client: actions of plain openpi, the same attention both ways."""
    from openpi.policies.policy_config import create_trained_policy
    from openpi.training.config import get_config

    policy = policies["pi05_droid"]
    config = get_config("pi05_droid")
    config = replace(config, model=replace(config.model, pytorch_compile_mode=None))
    plain = create_trained_policy(config, checkpoints["pi05_droid"], pytorch_device="cpu")
    stores = {mode: tmp_path / mode for mode in ("live", "replay")}
    given = {m: episodes_over_the_wire(policy, s, m) for m, s in stores.items()}
    arguments = [
        "ingest", "recording", str(tmp_path / "later"), str(stores["replay"]),
        "--policy", "openpi:pi05_droid", "--checkpoint", str(checkpoints["pi05_droid"]),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert not done.value.code
    (directory,) = recording_directories(stores["replay"])
    dataset = RecordingDataset(directory)
    names = dataset.episode_names()
    assert len(names) == 2
    assert {n: dataset.info(n).outcome for n in names if n == "named"} == {"named": "success"}
    for name in names:
        info = dataset.info(name)
        frames = list(dataset.frames(name, info.keyframes or ()))
        assert info.keyframes == ((0, 8) if name == "named" else (0, 1))
        for call, frame in enumerate(frames):
            assert frame.call is not None
            noise = policy.noise(frame.call.seed).numpy()
            wanted = plain.infer(droid_observation(SIGHTS[call]), noise=noise)["actions"]
            for answers in given.values():
                answer = answers[2 * call + (name != "named")]["actions"]
                np.testing.assert_array_equal(answer, wanted)
            # and the attention of plain openpi on what it would have been given
            batch = policy.prepare([replace(SIGHTS[call], seed=frame.call.seed)])
            expected = run_captured(policy, batch)
            with attnstore.open(tmp_path / "later") as store:
                episode = store.episode(name)
                stored = episode.attention("suffix", layer=3, step="last", keyframe=call)
            weights = [w for p, layer, _, w, _ in expected.records if (p, layer) == ("suffix", 3)]
            layout = batch.samples[0].layouts["suffix"]
            own = compact(torch.as_tensor(weights[-1])[0], layout).half().numpy()
            # the prompts differ in length, and what lies between is aligned
            for part in (slice(0, 512), slice(-15, None)):
                np.testing.assert_array_equal(np.squeeze(stored)[..., part], own[..., part])
    live, later = ({c: arrays_of(Part(StorePaths(s), commit)) for c, commit in commits(s).items()}
                   for s in (stores["live"], tmp_path / "later"))  # fmt: skip
    assert live["named"].keys() == later["named"].keys()
    for array, values in live["named"].items():
        np.testing.assert_array_equal(values, later["named"][array])


def libero(root: Path) -> Path:
    """A LeRobot data set with the columns of openpi's LIBERO one."""
    write_v21(root, Content())
    columns = {
        "observation.state": "state",
        "action": "actions",
        TOP: "image",
        WRIST: "wrist_image",
    }
    for path in (root / "meta").glob("*.json*"):
        text = path.read_text()
        for old, new in columns.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        path.write_text(text)
    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        names = [columns.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(names).replace_schema_metadata(None), path)
    for path in list(root.glob("videos/*/*")):
        path.rename(path.with_name(columns[path.name]))
    return root


def test_libero(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """``pi05_libero``, whose prompt has no state, on columns that are called otherwise."""
    stats = {key: values[:7] for key, values in STATS.items()}
    asset = "physical-intelligence/libero"
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "pi05_libero", asset, stats)
    store, dataset = tmp_path / "s", libero(tmp_path / "dataset")
    with pytest.raises(SystemExit) as done:
        main([
            "ingest", "lerobot", str(store), str(dataset), "--policy", "openpi:pi05_libero",
            "--checkpoint", str(checkpoint), "--state-column", "state", "--action-column", "actions",
            "--limit", "1", "--stride", "8",
        ])  # fmt: skip
    assert not done.value.code
    with attnstore.open(store) as opened:
        episode = opened.episode("episode_000000")
        assert episode.cameras == ("image", "wrist_image")
        spans = [s.name for s in episode.phase("prefix").key.spans]
        assert spans == ["image:image", "image:wrist_image", "bos", "task", "newline"]
        assert episode.attention("suffix", layer=0, step="last", keyframe=0).shape[-2] == 10


LAUNCH = """
import runpy
import sys

import pytest
from openpi_real import shrink

shrink(pytest.MonkeyPatch())
sys.argv = sys.argv[1:]
if sys.argv[0] == "attnstore":
    runpy.run_module("attnstore", run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A process whose openpi is as small as this one's."""


def drive_over(port: int, block: str) -> None:
    """Ask as the page's block of a client does, twice, and go away in a second episode."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    client = WebsocketClientPolicy("127.0.0.1", port)
    asked, told = block.strip().splitlines()
    for step, sight in zip((0, 8), SIGHTS, strict=True):
        exec(asked, {"client": client, "observation": droid_observation(sight), "step": step})
    exec(told, {"client": client})
    client.infer({**droid_observation(SIGHTS[0]), "attnstore/episode": "cube-0008"})
    client._ws.close()


@pytest.mark.parametrize("way", ["command", "python"])
def test_the_page_as_it_stands(checkpoints: dict[str, Path], tmp_path: Path, way: str) -> None:
    """docs/how-to/openpi.md, "Record it while it drives": on a CPU, not compiled, at a free port."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "openpi.md").read_text()
    section = page.partition("\n## Record it while it drives\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(?:python)?\n(.*?)^```", section, re.M | re.S)
    command, afterwards, client, program, _ = blocks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])

    def told(text: str, changes: dict[str, str]) -> str:
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        return text

    where = str(checkpoints["pi05_droid"])
    here = {"${CHECKPOINT}_pytorch": where, "--device cuda": "--device cpu"}
    (tmp_path / "launch.py").write_text(f"import sys\nsys.path[:0] = {sys.path!r}\n{LAUNCH}")
    launch = [sys.executable, "-W", "ignore", str(tmp_path / "launch.py")]
    if way == "command":
        at = f" --no-compile --host 127.0.0.1 --port {port}"
        asked = shlex.split(told(command, here)) + shlex.split(at)
    else:
        changes = {
            "CHECKPOINT": repr(where), '"cuda:0"': '"cpu"', "compiled=True": "compiled=False",
            "port=8000": f"port={port}",
        }  # fmt: skip
        (tmp_path / "program.py").write_text(told(program, changes))
        asked = ["program.py"]
    with subprocess.Popen([*launch, *asked], cwd=tmp_path) as server:
        try:
            drive_over(port, client)
        finally:
            server.send_signal(signal.SIGTERM if way == "command" else signal.SIGINT)
            code = server.wait(60)
    assert code == (0 if way == "command" else -signal.SIGINT)
    (tmp_path / "outcomes.json").write_text('[{"episode": "cube-0008", "outcome": "failure"}]')
    for line in told(afterwards, here).replace("\\\n", " ").splitlines():
        subprocess.run([*launch, *shlex.split(line)], cwd=tmp_path, check=True)
    with attnstore.open(tmp_path / "robot.attn") as store:
        found = store.sql("select name, outcome, keyframes from episodes order by name").fetchall()
        assert found == [("cube-0007", "success", 2), ("cube-0008", "failure", 1)]
        assert {d for (d,) in store.sql("select action_difference from calls").fetchall()} == {0}
