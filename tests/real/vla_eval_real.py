"""Recording vla-eval's model servers: its own server and client over a websocket; part of ``make test-lerobot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from ingest_fixtures import observe
from lerobot_fixture_real import CHUNK, save_act
from vla_eval.connection import Connection
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve_async

import attnstore
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.recording.vla_eval import RecordedServer


class Predicting(PredictModelServer):  # type: ignore[misc]
    """Acts by an adapter's policy."""

    policy: Any
    calls: int = 0

    def predict(self, obs: Any, ctx: Any) -> Any:
        return self.predict_batch([obs], [ctx])[0]

    def predict_batch(self, obs_batch: Any, ctx_batch: Any) -> Any:
        self.calls += 1
        seen = [observe(int(obs["seed"]), obs["task_description"]) for obs in obs_batch]
        return [{"actions": np.asarray(c)} for c in self.policy.act(self.policy.prepare(seen))]


class Server(RecordedServer, Predicting):
    pass


async def _act(port: int, task: dict[str, Any], steps: int, result: dict[str, Any] | None) -> None:
    async with Connection(f"ws://127.0.0.1:{port}") as client:
        await client.start_episode({"task": task})
        for step in range(steps):
            answer = await client.act({"seed": step, "task_description": "wipe"})
            assert len(answer["actions"]) == 7
        if result is not None:
            await client.end_episode(result)


@pytest.mark.parametrize("rows", [1, 2])
def test_episodes_of_two_clients_at_once(rows: int, tmp_path: Path) -> None:
    policy = load_policy("lerobot", str(save_act(tmp_path / "act")))
    server = Server(chunk_size=CHUNK, max_batch_size=rows, max_wait_time=0.2)
    server.policy = policy

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(serve_async, server, "127.0.0.1", 0)
            async with anyio.create_task_group() as clients:
                won = {"metrics": {"success": True}, "steps": 7}
                clients.start_soon(_act, port, {"name": "lift", "seed": 4}, 7, won)
                lost = {"metrics": {"success": False}, "steps": 3}
                clients.start_soon(_act, port, {"name": "wipe", "suite": "toy"}, 3, lost)
            await _act(port, {"name": "gone"}, 2, None)
            await anyio.sleep(0.3)  # until the server has seen that its client is gone
            tasks.cancel_scope.cancel()
        # vla-eval lets the queue of its batches go unclosed, and Python says so when the process ends.
        for stream in (server._send_stream, server._receive_stream):
            if stream is not None:
                stream.close()

    with attnstore.record(policy, tmp_path / "s", name="toy") as recorder:
        server.recorder = recorder
        anyio.run(run)
        assert not recorder.faults
    with attnstore.open(tmp_path / "s") as store:
        found = store.sql("select name, outcome, frames, keyframes from episodes order by name")
        assert found.fetchall() == [
            ("gone", "unknown", 2, 1), ("lift", "success", 7, 2), ("wipe", "failure", 3, 1),
        ]  # fmt: skip
        assert store.episode("gone").spec.attributes["ended"] == "the client disconnected"
        assert store.episode("lift").spec.attributes["seed"] == 4
        assert store.episode("wipe").spec.attributes["given"] == {"suite": "toy"}
        calls = store.sql(
            "select e.name, c.executed from calls c join episodes e using (run, episode) order by all"
        )
        assert calls.fetchall() == [("gone", 2), ("lift", 2), ("lift", 5), ("wipe", 3)]
