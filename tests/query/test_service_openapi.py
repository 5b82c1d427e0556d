"""Requests made from the OpenAPI document: whatever is asked, no 500, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from service_fixtures import TOKEN, Server

from attnstore.store.commits import StorePaths, all_commits

CASES = 8  # of each endpoint
CHECKS = ",".join(("not_a_server_error", "response_schema_conformance", "content_type_conformance"))


def test_every_operation_has_an_id_of_its_own(server: Server) -> None:
    """Generators of clients name functions after them."""
    paths = server.get("/v1/openapi.json").json()["paths"]
    ids = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(ids) == len(set(ids)) > 20
    assert {"get", "head"} <= set(paths["/v1/stores/{store}/files/{path}"])


def test_no_request_of_the_document_is_an_internal_error(
    server: Server, served_stores: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis", reason="where it is not, make test-pins: its rich is newer")
    commit = next(c for c in all_commits(StorePaths(served_stores[0])) if c.part == "base")
    document = server.get("/v1/openapi.json").json()
    real = {"store": "lab", "run": commit.run, "episode": commit.episode}
    folder = f"data/{commit.run}/{commit.episode}/base.{commit.attempt}"
    known = {
        "path": f"{folder}/head_stats.parquet", "metric": "entropy", "phase": "prefix",
        "camera": "hand_camera", "keyframe": 0,
    }  # fmt: skip
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                # Ids that exist, so that questions get past the first check.
                if parameter["in"] == "path" and parameter["name"] in real:
                    parameter["schema"] = {"type": "string", "enum": [real[parameter["name"]]]}
                elif parameter["in"] == "path" and parameter["name"] in known:
                    # Left to itself, the generator never finds one; what is not there is asked too.
                    parameter["schema"] = {"enum": [known[parameter["name"]], "no such"]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", file, "--url", server.url,
            "-H", f"Authorization: Bearer {TOKEN}", "--checks", CHECKS,
            "--max-examples", str(CASES), "--phases", "examples,fuzzing", "--seed", "1",
            "--generation-database", "none", "--request-timeout", "20", "--no-color",
        ],
        capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " 0 generated" not in done.stdout
