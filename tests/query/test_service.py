"""The query service's answers, against the Python API; a real server process."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import jsonschema_rs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from checkout import CHECKOUT
from service_fixtures import TOKEN, Server
from under_way import CAMERA, RECORDING, HandMade

import attnstore
from attnstore.query import Episode, Store
from attnstore.query.attention import rollout_map
from attnstore.query.groups.comparison import compare
from attnstore.query.sql.named import named_query
from attnstore.render import draw
from attnstore.render.picture.overlay import blend
from attnstore.render.picture.scale import data_limits
from attnstore.store.commits import hash_file, slug
from attnstore.store.errors import AttnstoreError

NAME = "2025-01-01_11-00-00"


@pytest.fixture(scope="module")
def store(served_stores: tuple[Path, Path, Path]) -> Store:
    return attnstore.open(served_stores[0])


@pytest.fixture(scope="module")
def episode(store: Store) -> Episode:
    return store.episode(NAME)


@pytest.fixture(scope="module")
def base(episode: Episode) -> str:
    return f"/v1/stores/lab/episodes/{episode.run}/{episode.id}"


def npy(server: Server, path: str, **parameters: Any) -> np.ndarray[Any, Any]:
    answer = server.get(path, {"Accept": "application/x-npy"}, **parameters)
    assert answer.status == 200, answer.body
    return np.asarray(np.load(io.BytesIO(answer.body), allow_pickle=False))


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.ascontiguousarray(image[..., ::-1], np.uint8)


class TestLists:
    def test_health_needs_no_token(self, server: Server) -> None:
        answer = server.ask("GET", "/v1/health", token=None)
        assert (answer.status, answer.json()["status"]) == (200, "ok")

    def test_several_stores(self, server: Server) -> None:
        found = {s["id"]: s for s in server.get("/v1/stores").json()}
        assert {k: v["episodes"] for k, v in found.items()} == {"lab": 4, "other": 1, "bad": 2}
        assert server.get("/v1/stores/lab").json() == found["lab"]
        assert server.get("/v1/stores/nowhere").status == 404
        assert len(server.get("/v1/stores/other/episodes").json()["rows"]) == 1

    def test_runs(self, server: Server, store: Store) -> None:
        rows = server.get("/v1/stores/lab/runs").json()["rows"]
        assert [r["run"] for r in rows] == store.runs
        one = server.get(f"/v1/stores/lab/runs/{store.runs[0]}").json()
        assert one["config"]["cameras"] == list(store.run(store.runs[0])[0].cameras)
        assert server.get("/v1/stores/lab/runs/none").status == 404

    def test_episodes_are_filtered_and_paged(self, server: Server) -> None:
        def names(**parameters: Any) -> list[str]:
            page = server.get("/v1/stores/lab/episodes", **parameters).json()
            return [r["name"][-8:] for r in page["rows"]]

        assert names() == ["12-00-00", "13-00-00", "10-00-00", "11-00-00"]
        assert names(outcome="success") == ["10-00-00", "11-00-00"]
        assert names(name="13-00") == ["13-00-00"]
        assert names(where="keyframes = 3", outcome="failure") == ["13-00-00"]
        assert names(text="FAILURE/") == ["12-00-00", "13-00-00"]
        assert names(text="it's not there") == []
        assert names(limit=2, offset=1) == ["13-00-00", "10-00-00"]
        assert names(order="keyframes", descending="true", limit=1) == ["11-00-00"]
        page = server.get("/v1/stores/lab/episodes", limit=1, offset=9).json()
        assert (page["total"], page["rows"]) == (4, [])
        assert server.get("/v1/stores/lab/episodes", limit=1).json()["total"] == 4

    def test_description(self, server: Server, base: str, episode: Episode) -> None:
        found = server.get(base).json()
        assert found["name"] == episode.name
        assert found["frames"] == episode.frames.tolist()
        camera = found["cameras"]["hand_camera"]
        np.testing.assert_allclose(
            camera["coverage"], episode.geometry("hand_camera").coverage(), atol=1e-6
        )
        suffix = found["phases"]["suffix"]
        assert (suffix["layers"], suffix["heads"], suffix["steps"]) == (2, 2, 2)
        key = episode.phase("suffix").key
        assert [(s["name"], s["start"], s["stop"]) for s in suffix["key"]] == [
            (s.name, s.start, s.stop) for s in key
        ]

    def test_tables_of_an_episode(self, server: Server, base: str, episode: Episode) -> None:
        for table in ("keyframes", "tokens", "spans", "sinks"):
            rows = server.get(f"{base}/{table}").json()
            stored = episode.part.table(table)
            assert rows["total"] == stored.num_rows
            assert sorted(r.get("start", 0) for r in rows["rows"]) == sorted(
                r.get("start", 0) for r in stored.to_pylist()
            )
        some = server.get(f"{base}/tokens", phase="prefix", axis="key", keyframe=1).json()["rows"]
        assert {(r["phase"], r["axis"], r["keyframe"]) for r in some} == {("prefix", "key", 1)}
        assert server.get(f"{base}/keyframes", phase="prefix").status == 422
        assert server.get(f"{base}/weights").status == 404

    def test_a_misspelt_parameter_is_noticed(self, server: Server, base: str) -> None:
        answer = server.get(f"{base}/attention", phase="prefix", layers=1)
        assert answer.status == 422
        assert "layers" in answer.message


class TestArrays:
    @pytest.mark.parametrize(
        "chosen",
        [
            {"phase": "prefix", "layer": 1, "head": 0, "keyframe": 0},
            {"phase": "prefix", "layer": [0, 1], "query": "text", "key": "image:hand_camera"},
            {"phase": "suffix", "step": -1, "head": slice(0, 1), "query": "action:0:2"},
            {"phase": "suffix", "step": 0, "layer": 0, "key": [3, 5], "query": 2},
        ],
        ids=str,
    )
    def test_slices(
        self, server: Server, base: str, episode: Episode, chosen: dict[str, Any]
    ) -> None:
        asked = dict(chosen)
        expected = episode.attention(asked.pop("phase"), **asked)
        said: dict[str, Any] = {
            k: ",".join(map(str, v)) if isinstance(v, list)
            else f"{v.start}:{v.stop}" if isinstance(v, slice) else v
            for k, v in chosen.items()
        }  # fmt: skip
        found = npy(server, f"{base}/attention", **said)
        assert found.dtype == np.float16  # as stored, which is exact
        np.testing.assert_array_equal(found, expected.values)
        as_json = server.get(f"{base}/attention", format="json", **said).json()
        assert as_json["dims"] == list(expected.dims)
        np.testing.assert_array_equal(np.array(as_json["values"], np.float32), expected.values)
        labels = as_json["coords"]["key_label"]["values"]
        assert labels == expected.coords["key_label"].values.tolist()

    def test_by_frame(self, server: Server, base: str, episode: Episode) -> None:
        found = npy(server, f"{base}/attention", phase="prefix", frame=8, layer=0, head=1)
        np.testing.assert_array_equal(
            found, episode.attention("prefix", frame=8, layer=0, head=1).values
        )
        answer = server.get(f"{base}/attention", phase="prefix", frame=9)
        assert answer.status == 400
        assert "no keyframe" in answer.message

    @pytest.mark.parametrize("phase", ["prefix", "suffix"])
    @pytest.mark.parametrize("reduce", ["max", "mean"])
    def test_maps(
        self, server: Server, base: str, episode: Episode, phase: str, reduce: Any
    ) -> None:
        url, camera = f"{base}/maps", "varied_camera_1"
        all_maps = npy(server, url, phase=phase, camera=camera, reduce=reduce)
        np.testing.assert_array_equal(all_maps, episode.maps(phase, camera, reduce=reduce).values)
        active = npy(server, url, phase=phase, camera=camera, reduce=reduce, layer=1, head="active")
        expected = episode.maps(phase, camera, layer=1, head="active", reduce=reduce)
        np.testing.assert_array_equal(active, expected.values)
        one = server.get(
            url, phase=phase, camera=camera, layer=1, head="active", keyframe=1, format="json"
        ).json()
        assert one["dims"] == ["row", "col"]
        assert one["coords"]["head"]["values"] == episode.active_head(
            phase, camera, layer=1, keyframe=1
        )
        mean = server.get(url, phase=phase, camera=camera, layer=1, head="mean", reduce=reduce)
        assert mean.json()["dims"] == ["keyframe", "row", "col"]
        found = npy(server, url, phase=phase, camera=camera, layer=1, head="mean", reduce=reduce)
        expected = episode.maps(phase, camera, layer=1, reduce=reduce).values.mean(1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        words = npy(server, url, phase=phase, camera=camera, query=0, layer=0, head=0)
        np.testing.assert_array_equal(
            words, episode.maps(phase, camera, query=0, layer=0, head=0).values
        )

    @pytest.mark.parametrize("phase", ["prefix", "suffix"])
    def test_rollout(self, server: Server, base: str, episode: Episode, phase: str) -> None:
        url, camera = f"{base}/rollout", "varied_camera_1"
        for query, group in (("", None), ("0", 0), ("1,2", [1, 2])):
            asked: dict[str, Any] = {"phase": phase, "camera": camera, "keyframe": 1, "layer": -1}
            found = npy(server, url, query=query, **asked)
            expected = rollout_map(episode, camera, phase, keyframe=1, query=group)
            np.testing.assert_array_equal(found, expected.values)
        told = server.get(url, phase=phase, camera=camera, keyframe=1, layer=0, step=0).json()
        first = rollout_map(episode, camera, phase, keyframe=1, step=0, layers=range(1))
        np.testing.assert_array_equal(np.array(told["values"], np.float32), first.values)
        assert told["dims"] == ["row", "col"]
        assert told["attrs"]["geometry"] == episode.geometry(camera).to_json()
        assert (told["attrs"]["layers"], told["attrs"]["query"]) == ([0], first.attrs["query"])

    def test_rollout_is_the_product_of_the_layers(
        self, server: Server, base: str, episode: Episode
    ) -> None:
        weights = np.nan_to_num(episode.attention("prefix", keyframe=0).values).mean(1)
        mixed = weights / 2 + np.eye(weights.shape[-1]) / 2
        one, two = mixed / mixed.sum(-1, keepdims=True)
        spec = episode.phase("prefix")
        task, patches = spec.query["task"], spec.key["image:hand_camera"]
        rows = np.arange(task.start, task.stop)
        here = ~np.isnan(episode.attention("prefix", keyframe=0, layer=0, head=0).values).all(1)
        product = (two @ one)[rows[here[rows]], patches.start : patches.stop].mean(0)
        where: dict[str, Any] = {"phase": "prefix", "camera": "hand_camera", "keyframe": 0}
        found = npy(server, f"{base}/rollout", layer=1, query="task", **where)
        np.testing.assert_allclose(found.ravel(), product, rtol=1e-5)
        wrong = server.get(f"{base}/rollout", layer=9, **where)
        assert (wrong.status, "layer 9 is out of range" in wrong.message) == (400, True)

    def test_sinks_are_taken_out(self, server: Server, base: str, episode: Episode) -> None:
        where: dict[str, Any] = {"phase": "prefix", "camera": "hand_camera"}
        raw = npy(server, f"{base}/maps", **where)
        corrected = npy(server, f"{base}/maps", sink_corrected="true", **where)
        differ = np.argwhere((raw != corrected) & ~np.isnan(raw))
        # the fixture plants one sink: layer 0, head 0, patch (0, 0)
        assert {tuple(d[1:]) for d in differ} == {(0, 0, 0, 0)}

    def test_absent_tokens_are_null(self, server: Server, base: str, episode: Episode) -> None:
        values = episode.attention("prefix", layer=0, head=0).values
        assert np.isnan(values).any()
        found = server.get(f"{base}/attention", phase="prefix", layer=0, head=0, format="json")
        shown = np.array(found.json()["values"], np.float32)
        np.testing.assert_array_equal(np.isnan(shown), np.isnan(values))

    def test_metrics(self, server: Server, base: str, episode: Episode) -> None:
        stats = episode.stats("suffix", "hand_camera", "entropy", step=-1).values
        where: dict[str, Any] = {"phase": "suffix", "camera": "hand_camera"}
        url = f"{base}/metrics/entropy"
        over = server.get(f"{url}/matrix", **where).json()
        np.testing.assert_allclose(over["values"], stats.mean(0), rtol=1e-6)
        assert (over["step"], over["unit"]) == (1, "0..1")
        at = server.get(f"{url}/matrix", keyframe=-1, **where).json()
        np.testing.assert_allclose(at["values"], stats[-1], rtol=1e-6)
        trace = server.get(f"{url}/trace", layer=1, head="all", **where).json()
        np.testing.assert_allclose(trace["values"], stats[:, 1].T, rtol=1e-6)
        assert trace["frames"] == episode.frames.tolist()
        active = server.get(f"{url}/trace", layer=1, **where).json()
        assert active["heads"] == [episode.active_head("suffix", "hand_camera", layer=1)]
        drift = server.get(f"{base}/metrics/drift/trace", layer=0, head=0, **where).json()
        assert drift["values"][0][0] is None
        assert server.get(f"{base}/metrics/beauty/matrix", **where).status == 404


class TestSql:
    QUERY = "select outcome, count(*) as n from episodes group by outcome order by 1"

    def test_forms(self, server: Server) -> None:
        expected = [("failure", 2), ("success", 2)]
        as_json = server.sql(self.QUERY).json()
        assert [tuple(r) for r in as_json["rows"]] == expected
        assert as_json["columns"][1] == {"name": "n", "type": "BIGINT"}
        lines = server.sql(self.QUERY, "application/x-ndjson").body.splitlines()
        assert [tuple(json.loads(line).values()) for line in lines] == expected
        assert server.sql(self.QUERY, "text/csv").body == b"outcome,n\nfailure,2\nsuccess,2\n"
        arrow = server.sql(self.QUERY, "application/vnd.apache.arrow.stream").body
        assert pa.ipc.open_stream(arrow).read_all()["n"].to_pylist() == [2, 2]
        parquet = server.sql(self.QUERY, "application/vnd.apache.parquet").body
        assert pq.read_table(io.BytesIO(parquet))["n"].to_pylist() == [2, 2]
        assert server.sql(self.QUERY, "text/html").status == 406
        # a browser's Accept gets the first form
        assert server.sql(self.QUERY, "text/html;q=0.9,*/*;q=0.8").json() == as_json

    def test_every_table_answers_as_in_python(self, server: Server, store: Store) -> None:
        for (table,) in store.sql(
            "select view_name from duckdb_views where not internal"
        ).fetchall():
            (expected,) = store.sql(f"select count(*) from {table}").fetchall()
            assert server.sql(f"select count(*) from {table}").json()["rows"] == [list(expected)]

    def test_keyframe_tables(self, server: Server, store: Store) -> None:
        query = (
            "select run, episode, layer, head, round(avg(entropy), 4) as e, max(mass['task']) "
            "from head_stats where phase = 'prefix' group by all order by all"
        )
        expected = store.sql(query).fetchall()
        assert len(expected) == 16
        found = server.sql(query).json()["rows"]
        np.testing.assert_allclose(
            [r[2:] for r in found], np.array([r[2:] for r in expected], float), rtol=1e-4
        )
        assert [r[:2] for r in found] == [list(r[:2]) for r in expected]

    def test_ready_made(self, server: Server, store: Store) -> None:
        names = [q["name"] for q in server.get("/v1/stores/lab/queries").json()]
        for name in names:
            answer = server.get(f"/v1/stores/lab/queries/{name}", format="csv")
            assert answer.status == 200, answer.body
        body = json.dumps({"named": "camera-by-layer"}).encode()
        kind = {"Content-Type": "application/json"}
        found = server.ask("POST", "/v1/stores/lab/sql", body, kind).json()
        expected = store.sql(named_query("camera-by-layer").sql)
        assert [c["name"] for c in found["columns"]] == expected.columns
        assert len(found["rows"]) == len(expected.fetchall())
        assert server.get("/v1/stores/lab/queries/nothing").status == 404

    def test_mistakes_are_told(self, server: Server) -> None:
        answer = server.sql("select outcom from episodes")
        assert answer.status == 400
        assert "outcome" in answer.message


class TestCompare:
    def test_success_against_failure(self, server: Server, store: Store) -> None:
        found = server.get("/v1/stores/lab/compare", by="outcome", metric="entropy").json()
        expected = compare(store, "entropy", by="outcome", permutations=999, bootstraps=0)
        assert (found["a"], found["b"], found["episodes_a"]) == ("success", "failure", 2)
        np.testing.assert_allclose(
            np.array(found["difference"]).ravel(), expected.results["difference"], rtol=1e-6
        )
        np.testing.assert_allclose(np.array(found["p"]).ravel(), expected.results["p"], rtol=1e-6)
        assert found["notes"] == list(expected.notes)
        by_sql = server.get(
            "/v1/stores/lab/compare", metric="entropy",
            a="outcome = 'success'", b="outcome = 'failure'",
        ).json()  # fmt: skip
        assert by_sql["a"] == "outcome = 'success'"
        assert by_sql["difference"] == found["difference"]

    @pytest.mark.parametrize(
        "condition", ["true) or (true", "1; drop table episodes", "(select 1", "name = 'x'"]
    )
    def test_conditions_are_the_sandbox_s(self, server: Server, condition: str) -> None:
        answer = server.get("/v1/stores/lab/compare", metric="entropy", a=condition, b="true")
        assert answer.status == 400

    def test_difference_map(self, server: Server, store: Store) -> None:
        found = server.get(
            "/v1/stores/lab/difference", by="outcome", phase="prefix", camera="hand_camera",
            layer=1, head=0, moments=3,
        ).json()  # fmt: skip
        assert found["dims"] == ["group", "moment", "row", "col"]
        groups = {}
        for outcome in ("success", "failure"):
            maps = [
                e.maps("prefix", "hand_camera", layer=1, head=0, reduce="mean").values.astype(float)
                for e in store.episodes.values()
                if e.outcome == outcome
            ]
            # 2 or 3 keyframes: the first, the middle (or the mean of both), the last
            placed = [m if len(m) == 3 else np.stack([m[0], m.mean(0), m[1]]) for m in maps]
            groups[outcome] = np.mean(placed, 0)
        values = np.array(found["values"])
        np.testing.assert_allclose(values[0], groups["success"], rtol=1e-5)
        np.testing.assert_allclose(
            values[2], groups["success"] - groups["failure"], rtol=1e-4, atol=1e-7
        )


class TestPictures:
    def test_frames_are_the_stored_bytes(self, server: Server, base: str, episode: Episode) -> None:
        answer = server.get(f"{base}/frames/1/hand_camera")
        assert answer.body == episode.image_bytes(1, "hand_camera")
        assert answer.headers["content-type"] == "image/jpeg"
        assert server.get(f"{base}/frames/9/hand_camera").status == 400
        assert server.get(f"{base}/frames/0/no_camera").status == 400

    def test_overlay(self, server: Server, base: str, episode: Episode) -> None:
        where: dict[str, Any] = {
            "phase": "suffix",
            "keyframe": 1,
            "layer": 1,
            "head": 0,
            "cmap": "viridis",
        }
        png = server.get(f"{base}/overlays/hand_camera", {"Accept": "image/png"}, **where)
        assert png.headers["content-type"] == "image/png"
        drawn = decoded(png.body)
        geometry = episode.geometry("hand_camera")
        maps = episode.maps("suffix", "hand_camera", layer=1, head=0, keyframe=1).values
        image = decoded(episode.image_bytes(1, "hand_camera"))
        limits = data_limits(maps[geometry.coverage() > 0])
        expected = blend(image, draw(maps, geometry), limits, cmap="viridis")
        np.testing.assert_array_equal(drawn, expected)

    def test_overlay_options(self, server: Server, base: str) -> None:
        where: dict[str, Any] = {"phase": "prefix", "keyframe": 0, "layer": 0, "head": 0}
        url = f"{base}/overlays/hand_camera"
        plain = server.get(url, format="png", **where).body
        for option in (
            {"head": 1}, {"alpha": 0.3}, {"cmap": "jet"}, {"scale": "0:0.5"},
            {"reduce": "mean"}, {"interpolation": "nearest"}, {"blend": "constant"},
            {"sink_corrected": "true"},
        ):  # fmt: skip
            answer = server.get(url, format="png", **(where | option))
            assert answer.status == 200, answer.body
            assert answer.body != plain, option
        scales = [
            [server.get(url, format="png", **(where | {"keyframe": k, "scale": s})).body for k in range(3)]
            for s in ("frame", "video")
        ]  # fmt: skip
        # the keyframe with the largest weight has the same scale either way, others have not
        assert 0 < sum(one == other for one, other in zip(*scales, strict=True)) < 3
        wide = server.get(url, format="webp", width=128, **where).body
        assert wide[8:12] == b"WEBP"
        assert decoded(wide).shape == (72, 128, 3)
        for wrong in ({"cmap": "rainbow"}, {"layer": 99}, {"scale": "x"}, {"query": "word:zebra"}):
            assert server.get(url, **(where | wrong)).status == 400, wrong
        assert server.get(url, {"Accept": "image/tiff"}, **where).status == 406
        assert server.get(url, alpha=2, **where).status == 422


class TestCaching:
    def test_etags(self, server: Server, base: str) -> None:
        url = f"{base}/maps"
        where: dict[str, Any] = {"phase": "prefix", "camera": "hand_camera", "layer": 0}
        first = server.get(url, **where)
        tag = first.headers["etag"]
        assert first.headers["cache-control"] == "private, no-cache"
        again = server.get(url, {"If-None-Match": tag}, **where)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert server.get(url, {"If-None-Match": tag}, **(where | {"layer": 1})).status == 200
        assert (
            server.get(url, {"If-None-Match": tag, "Accept": "application/x-npy"}, **where).status
            == 200
        )

    def test_a_named_version_is_kept_for_ever(self, server: Server, base: str) -> None:
        version = server.get(base).json()["version"]
        where: dict[str, Any] = {"phase": "prefix", "camera": "hand_camera"}
        kept = server.get(f"{base}/maps", v=version, **where)
        assert "immutable" in kept.headers["cache-control"]
        other = server.get(f"{base}/maps", v="9-000000000000", **where)
        assert other.headers["cache-control"] == "private, no-cache"

    def test_json_is_compressed_for_who_takes_it(self, server: Server, base: str) -> None:
        plain = server.get(base)
        packed = server.get(base, {"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 2
        tag = packed.headers["etag"]
        assert server.get(base, {"If-None-Match": tag}).status == 304


class TestFiles:
    def test_every_committed_file(self, server: Server, episode: Episode, store: Store) -> None:
        directory = episode.part.path.relative_to(store.paths.root).as_posix()
        files = episode.part.commit.files
        for file in (files[0], files[-1]):
            answer = server.get(f"/v1/stores/lab/files/{directory}/{file.path}")
            assert answer.body == (episode.part.path / file.path).read_bytes()
            assert answer.headers["etag"] == f'"{file.sha256}"'
            assert "immutable" in answer.headers["cache-control"]
            part = server.get(
                f"/v1/stores/lab/files/{directory}/{file.path}", {"Range": "bytes=1-3"}
            )
            assert (part.status, part.body) == (206, answer.body[1:4])

    def test_a_zarr_reader_needs_nothing_else(
        self, server: Server, episode: Episode, store: Store, tmp_path: Path
    ) -> None:
        directory = episode.part.path.relative_to(store.paths.root).as_posix()
        array = "attention.zarr/suffix/attention"
        copy = tmp_path / "copy"
        for file in episode.part.commit.files:
            if file.path.startswith(array):
                target = copy / file.path.removeprefix(f"{array}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                answer = server.get(f"/v1/stores/lab/files/{directory}/{file.path}")
                target.write_bytes(answer.body)
                assert hash_file(target) == file.sha256
        found = zarr.open_array(str(copy), mode="r")[:]
        np.testing.assert_array_equal(np.asarray(found), episode.attention("suffix").values)


def test_the_client_is_the_python_api(
    server: Server, store: Store, episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path))
    for url in (f"{server.url}/v1/stores/lab/?token={TOKEN}", f"{server.url}/v1/stores/lab"):
        monkeypatch.setenv("ATTNSTORE_TOKEN", TOKEN)
        remote = attnstore.open(url)
        assert TOKEN not in repr(remote)
        found = remote.episode(NAME)
        np.testing.assert_array_equal(
            found.attention("suffix", layer=1).values, episode.attention("suffix", layer=1).values
        )
        np.testing.assert_array_equal(
            found.maps("prefix", "hand_camera").values, episode.maps("prefix", "hand_camera").values
        )
        query = "select name, keyframes from episodes order by name"
        assert remote.sql(query).fetchall() == store.sql(query).fetchall()
    monkeypatch.delenv("ATTNSTORE_TOKEN")
    with pytest.raises(AttnstoreError, match="token"):
        attnstore.open(f"{server.url}/v1/stores/other")


def test_the_page_of_curl_commands(server: Server, tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "serve.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    assert sum(block.count("curl") for block in blocks) > 20
    # what a user types, with this server's address, and its store's id
    script = "".join(blocks).replace("http://127.0.0.1:8732", server.url)
    script = script.replace("/v1/stores/toy", "/v1/stores/lab")
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path, env=os.environ | {"ATTNSTORE_TOKEN": TOKEN}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.load(tmp_path / "slice.npy").ndim == 4
    assert decoded((tmp_path / "overlay.png").read_bytes()).shape == (36, 64, 3)
    with pa.ipc.open_stream(tmp_path / "stats.arrows") as stream:
        assert stream.read_all().num_rows > 0


class TestUnderWay:
    """Episodes that are being recorded, read while their journal grows."""

    def test_it_is_there_while_it_goes_on(
        self, server: Server, served_stores: tuple[Path, Path, Path]
    ) -> None:
        place = "/v1/stores/other/recordings"
        assert server.get(place).json() == []
        episode = HandMade(served_stores[1], "pick/1")
        weights = [episode.call(), episode.call()]
        (row,) = server.get(place).json()
        assert (row["name"], row["state"], row["calls"], row["step"]) == (
            "pick/1", "recording", 2, 8,
        )  # fmt: skip
        assert row["phases"] == ["prefix"]
        calls = f"{place}/{row['recording']}/{row['episode']}/calls"
        for call, shade in ((0, 0), (-1, 40)):
            picture = decoded(server.get(f"{calls}/{call}/pictures/{CAMERA}").body)
            np.testing.assert_allclose(picture, shade, atol=2)
            maps = npy(server, f"{calls}/{call}/maps/prefix/{CAMERA}")
            # the largest of the two words' weights on each patch
            expected = weights[call][:, 8:10, :8].max(1).reshape(1, 2, 2, 4)
            np.testing.assert_array_equal(maps, expected)
        heat = decoded(server.get(f"{calls}/-1/overlays/{CAMERA}").body).astype(int).sum(2)
        row_of, col_of = np.unravel_index(heat.argmax(), heat.shape)
        assert (row_of // 14, col_of // 14) == (1, 2)
        assert server.get(f"{calls}/2/pictures/{CAMERA}").status == 404
        assert server.get(f"{calls}/0/pictures/no_camera").status == 404
        assert (
            server.get(f"{place}/..%2f..%2fdata/{row['episode']}/calls/0/pictures/x").status == 404
        )
        # a call that is being written is not there yet
        with episode.path.open("ab") as file:
            file.write(b"ATNJ" + bytes(30))
        assert server.get(place).json()[0]["calls"] == 2
        episode.end()
        assert server.get(place).json() == []

    def test_a_dead_recorder_is_told_from_a_live_one(
        self, server: Server, served_stores: tuple[Path, Path, Path]
    ) -> None:
        done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, text=True, check=True)  # fmt: skip
        made = [
            HandMade(served_stores[2], "dead", pid=int(done.stdout)),
            HandMade(served_stores[2], "far", host="another-host"),
        ]
        for each in made:
            each.call()
        rows = {r["name"]: r for r in server.get("/v1/stores/bad/recordings").json()}
        assert {name: row["state"] for name, row in rows.items()} == {
            "dead": "dead", "far": "elsewhere",
        }  # fmt: skip
        assert 0 <= rows["dead"]["idle"] < 600


class TestOpenApi:
    def test_every_endpoint_answers_what_it_says(
        self, server: Server, base: str, store: Store
    ) -> None:
        api = server.get("/v1/openapi.json").json()
        _, _, _, place, _, run, episode = base.split("/")
        known = {
            "/objects/{metric}": "/objects/lift",
            "/policy/{name}": "/policy/state",
            "{store}": place, "{run}": run, "{episode}": episode, "{metric}": "entropy",
            "{name}": "camera-by-layer", "{camera}": "hand_camera", "{keyframe}": "0",
            "{path}": "attnstore.json", "{recording}": RECORDING, "{file}": slug("under-way"),
            "{call}": "-1", "{phase}": "prefix", "{other}": run,
        }  # fmt: skip
        asked = 0
        for path, operations in api["paths"].items():
            for method, operation in operations.items():
                assert operation["description"], path
                if method != "get":
                    continue
                for name, value in known.items():
                    path = path.replace(name, value)
                parameters = {
                    p["name"]: example[0]
                    for p in operation.get("parameters", ())
                    if p["in"] == "query" and (example := _examples(p["schema"]))
                }
                answer = server.get(path, **parameters)
                assert answer.status == 200, (path, parameters, answer.body)
                asked += 1
                content = operation["responses"]["200"]["content"]
                media_type = answer.headers["content-type"].partition(";")[0]
                assert media_type in content, (path, media_type)
                if media_type == "application/json":
                    # a field that the document does not know is as wrong as one that is missing
                    schema = _closed({**content[media_type]["schema"], **api})
                    jsonschema_rs.validate(schema, answer.json())
        assert asked > 20

    def test_no_page_of_another_host(self, server: Server) -> None:
        assert server.get("/docs").status == 404
        assert server.get("/redoc").status == 404


def _closed(schema: Any) -> Any:
    """The same schema, that allows no properties but those that it names."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed["additionalProperties"] = False
    return closed


def _examples(schema: dict[str, Any]) -> list[Any]:
    return schema.get("examples") or []
