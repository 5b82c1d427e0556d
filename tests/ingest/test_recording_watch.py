"""Looking at an episode while it is recorded: in Rerun, and from the journal as far as it is written."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_fixtures import observe
from numpy.typing import NDArray
from recording_policy import Still

import attnstore
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.recording import onlooker
from attnstore.store.commits import StorePaths
from attnstore.store.errors import NotFoundError, UsageError
from attnstore.store.recordings.journal import SPOOL, SUFFIX
from attnstore.store.recordings.progress import UnderWay

torch = pytest.importorskip("torch", reason="a model's test needs torch")
CAMERA = "hand_camera"


def test_what_is_seen_under_way_is_what_the_store_has(policy: Pi0Policy, ram_path: Path) -> None:
    """In Rerun and from the spool: the maps, shares and pictures that are committed afterwards."""
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    from rerun_recording import read

    store, out = ram_path / "s", ram_path / "rrd"
    seen = {}
    with (
        attnstore.record(policy, store, rerun=out) as recorder,
        recorder.episode("one", seed=3) as episode,
    ):
        for i in range(3):
            policy.act(policy.prepare([observe(i)]))
            episode.advance(5)
        recorder.flush()
        (progress,) = UnderWay(StorePaths(store).recordings).episodes()
        _, maps = UnderWay(StorePaths(store).recordings).call(
            progress.recording, progress.episode, 1
        )
        seen = {(m.phase, m.camera): m for m in maps}
        until = time.monotonic() + 120
        while not list(out.glob("*.rrd")) and time.monotonic() < until:
            time.sleep(0.05)  # another process, which may be slow to start
        episode.finish(outcome="failure", reward=0.5)
    assert not recorder.faults
    assert (progress.state, progress.calls, progress.step) == ("recording", 3, 10)
    assert set(progress.phases) == {"prefix", "suffix"}
    assert not UnderWay(StorePaths(store).recordings).episodes()
    (file,) = out.glob("*.rrd")
    rows = read(file)
    with attnstore.open(store) as opened:
        stored = opened.episodes["one"]
        for phase in ("prefix", "suffix"):
            step: Any = "last" if phase == "suffix" else None
            group = seen[phase, CAMERA].query
            assert group == stored.phase(phase).query_groups[0]
            # Of the weights: stored maps are of log8
            weights = stored.attention(phase, query=group, key=f"image:{CAMERA}", step=step)
            grid = stored.geometry(CAMERA).grid
            expected = weights.values.max(3).reshape(*weights.shape[:3], *grid)
            mass = stored.stats(phase, CAMERA, "camera_mass", step=step).values
            logged = rows[f"maps/{phase}/{CAMERA}"]
            assert [row["keyframe"] for row in logged] == [0, 1, 2]
            assert [row["frame"] for row in logged] == [0, 5, 10]
            for keyframe, row in enumerate(logged):
                (tensor,) = row["Tensor:data"]
                live = np.reshape(tensor["buffer"], tensor["shape"])
                np.testing.assert_allclose(live, expected[keyframe], rtol=1e-3, atol=1e-6)
                (shares,) = [
                    r["Scalars:scalars"]
                    for r in rows[f"metrics/camera_mass/{phase}/{CAMERA}/L00"]
                    if r.get("keyframe") == keyframe
                ]
                np.testing.assert_allclose(shares, mass[keyframe, 0], rtol=1e-3)
            np.testing.assert_allclose(seen[phase, CAMERA].maps, expected[1], rtol=1e-3, atol=1e-6)
            middle = len(expected[0]) // 2
            shares = [
                r["Scalars:scalars"]
                for r in rows[f"metrics/camera_share/{phase}/L{middle:02d}"]
                if r.get("keyframe") is not None
            ]
            each = [stored.stats(phase, c, "camera_mass", step=step).values for c in stored.cameras]
            np.testing.assert_allclose(
                shares, np.stack([m[:, middle].mean(-1) for m in each], -1), rtol=1e-3
            )
            heads = [
                int(r["Scalars:scalars"][0])
                for r in rows[f"metrics/active_head/{phase}/{CAMERA}/L{middle:02d}"]
                if r.get("keyframe") is not None
            ]
            variance = stored.geometry(CAMERA).coverage()
            for keyframe, head in enumerate(heads):
                assert head == _most_varied(expected[keyframe, middle], variance)
            assert len(rows[f"camera/{CAMERA}/heat/{phase}/L{middle:02d}"]) == 3
        pictures = [bytes(r["EncodedImage:blob"][0]) for r in rows[f"camera/{CAMERA}"]]
        assert pictures == [stored.image_bytes(k, CAMERA) for k in range(3)]
        actions = [r["Scalars:scalars"] for r in rows["policy/actions"] if "keyframe" in r]
        given = stored.policy_array("actions")[:, 0]
        np.testing.assert_allclose([a for a in actions if a is not None], given, rtol=1e-6)
    assert "outcome failure, reward 0.5" in rows["instruction"][-1]["TextDocument:text"][0]


def _most_varied(maps: NDArray[Any], coverage: NDArray[Any]) -> int:
    """Weighted variance, spelled out."""
    spread = []
    for one in maps:
        mean = (one * coverage).sum() / coverage.sum()
        spread.append((coverage * (one - mean) ** 2).sum())
    return int(np.argmax(spread))


def test_a_viewer_that_does_not_read_delays_nothing(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    monkeypatch.setattr(onlooker, "GRACE", 1.0)
    policy, connected, took = Still(), threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept() -> None:
            held.append(server.accept()[0])  # and never reads
            connected.set()

        threading.Thread(target=accept, daemon=True).start()
        address = f"rerun+http://127.0.0.1:{server.getsockname()[1]}/proxy"
        recording = attnstore.record(policy, ram_path / "s", mode="replay", rerun=address)
        with recording as recorder, recorder.episode("one") as episode:
            policy.act(policy.prepare([policy.see(0)]))
            assert connected.wait(60)
            for i in range(1, 100):
                batch = policy.prepare([policy.see(i % 50)])
                began = time.thread_time()
                policy.act(batch)
                took.append(time.thread_time() - began)
                time.sleep(0.002)
            assert recorder.dropped == 0
            episode.finish(outcome="success")
            began = time.monotonic()
        held[0].close()
    assert np.median(took) < 0.01
    assert time.monotonic() - began < 15
    (fault,) = recorder.faults
    assert "did not read" in fault or "too slow" in fault
    (journal,) = (ram_path / "s").rglob(f"*{SUFFIX}")
    assert journal.stat().st_size  # nothing of the recording is lost
    with pytest.raises(UsageError, match="HOST:9876/proxy"):
        attnstore.record(policy, ram_path / "s", mode="replay", rerun="http://127.0.0.1:1")


@pytest.mark.filterwarnings("ignore:.*fork")  # of JAX, where another test has loaded it
def test_a_live_recorder_is_told_from_a_dead_one(ram_path: Path) -> None:
    policy, store = Still(), ram_path / "s"
    under_way = UnderWay(StorePaths(store).recordings)
    assert under_way.episodes() == []
    with attnstore.record(policy, store, mode="replay") as recorder:
        with recorder.episode("replayed") as episode:
            policy.act(policy.prepare([policy.see(1)]))
            recorder.flush()
            (progress,) = under_way.episodes()
            assert (progress.name, progress.state, progress.calls) == ("replayed", "recording", 1)
            assert (progress.mode, progress.phases) == ("replay", ())
            call, maps = under_way.call(progress.recording, progress.episode, -1)
            assert call.pictures[0].camera == CAMERA
            assert maps == []
            with pytest.raises(NotFoundError, match="has 1 calls so far; got 1"):
                under_way.call(progress.recording, progress.episode, 1)
            with pytest.raises(NotFoundError, match="among those that are listed"):
                under_way.call("..", progress.episode, 0)
            policy.act(policy.prepare([policy.see(2)]))
            recorder.flush()
            assert under_way.episodes()[0].calls == 2
            episode.finish(outcome="success")
        recorder.flush()
        assert under_way.episodes() == []  # and is the replay's from here on
        # One that is killed: another process's, which is gone
        child = os.fork()
        if child == 0:
            try:
                left = recorder.episode("left")
                left._append(left._head | {"pid": os.getpid()})
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        (journal,) = store.rglob(f"left*{SUFFIX}")
        (dead,) = under_way.episodes()
        assert (dead.name, dead.state) == ("left", "dead")
        assert not journal.with_suffix(SPOOL).exists()
