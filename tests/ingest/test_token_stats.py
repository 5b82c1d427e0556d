"""Norms and cosines of hidden states, against NumPy over hooks on a model that attnstore never saw."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ingest_fixtures import (
    CHUNK,
    LAYERS,
    STEPS,
    arrays_of,
    commits,
    make_job,
    observe,
    problems,
    write_droid,
)
from numpy.typing import NDArray
from store_fixtures import POLICY, random_episode

import attnstore
from attnstore.ingest.capture import HiddenRecord, capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import describe_episode, observation
from attnstore.ingest.plan import describe_run, make_plan
from attnstore.ingest.policies.base import Watch
from attnstore.ingest.policies.hooks import HookedPolicy, Watched
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.ingest.token_stats import TokenStatistics
from attnstore.query import Episode
from attnstore.query.sql.named import named_query
from attnstore.render.charts.tokens import token_chart
from attnstore.store.commits import Attempt, StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import HealthError, NotFoundError, UsageError
from attnstore.store.opening import create_store
from attnstore.store.tables.base import TOKEN_METRICS
from attnstore.store.tables.parquet import ROW_GROUP

States = NDArray[np.float64]
BOTH = Watch(vision=True, token_stats=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DroidDataset:
    """One episode of three keyframes."""
    return DroidDataset(write_droid(tmp_path_factory.mktemp("tokens") / "toy", lengths=(17,)))


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, dataset: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("store") / "toy.attn"
    job = make_job(root, loaded, dataset, batch_size=2, watch=BOTH)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    return root


@pytest.fixture
def episode(ingested: Path) -> Episode:
    (commit,) = commits(ingested).values()
    return attnstore.open(ingested).from_commit(commit)


def chains(model: Any) -> dict[str, list[Any]]:
    """Modules whose outputs are the hidden states; the first one's input is the embedding."""
    return {
        "prefix": list(model.model.vlm.language_model.layers),
        "suffix": list(model.model.dit.layers),
        "vision": list(model.model.vlm.vision_tower.encoder.layers),
    }


def hidden_states(model: Any, inputs: Mapping[str, Any]) -> dict[str, list[States]]:
    """Per phase, every state in the order of the calls: embedding, layer 0, layer 1, ... ."""
    seen: dict[str, list[States]] = {phase: [] for phase in chains(model)}
    handles = []
    for phase, layers in chains(model).items():
        keep = seen[phase]
        handles.append(
            layers[0].register_forward_pre_hook(
                lambda m, args, keep=keep: keep.append(args[0].double().numpy().copy())
            )
        )
        for layer in layers:
            handles.append(
                layer.register_forward_hook(
                    lambda m, args, out, keep=keep: keep.append(out.double().numpy().copy())
                )
            )
    with torch.no_grad():
        model.sample_actions(**inputs, num_steps=STEPS)
    for handle in handles:
        handle.remove()
    return seen


def metrics(states: list[States], layer: int) -> States:
    """(metric, batch, token) of one pass's layer, ``states[0]`` being the embedding."""
    after, before, start = states[layer + 1], states[layer], states[0]

    def cosine(a: States, b: States) -> States:
        dot = np.einsum("btf,btf->bt", a, b)
        lengths = np.einsum("btf,btf->bt", a, a) * np.einsum("btf,btf->bt", b, b)
        # the embedding of padding is 0; it is not compared
        with np.errstate(invalid="ignore"):
            return np.asarray(dot / np.sqrt(lengths))

    return np.stack([np.sqrt((after**2).sum(-1)), cosine(after, before), cosine(after, start)])


def test_they_are_those_of_the_model(
    loaded: Pi0Policy, episode: Episode, dataset: DroidDataset
) -> None:
    model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
    model.set_attn_implementation("eager")
    name = dataset.episode_names()[0]
    for keyframe, frame in enumerate(dataset.frames(name, [0, 8, 16])):
        batch = loaded.prepare([observation(frame, dataset.info(name), 0)])
        seen = hidden_states(model, batch.inputs)
        layouts = batch.samples[0].layouts
        prefix = [i for s in layouts["prefix"].query.model_slices for i in range(s.start, s.stop)]
        assert len(prefix) < seen["prefix"][0].shape[1], "there is no padding to strip"
        found = episode.token_stats("prefix").isel(keyframe=keyframe)
        for layer in range(LAYERS):
            wanted = metrics(seen["prefix"], layer)[:, 0, prefix]
            _assert_close(found.isel(layer=layer), wanted)
        found = episode.token_stats("suffix").isel(keyframe=keyframe)
        for step in range(STEPS):
            states = seen["suffix"][step * (LAYERS + 1) :][: LAYERS + 1]
            for layer in range(LAYERS):
                _assert_close(found.isel(step=step, layer=layer), metrics(states, layer)[:, 0])
        for row, camera in enumerate(frame.cameras):
            found = episode.token_stats("vision", camera=camera.camera).isel(keyframe=keyframe)
            for layer in range(2):
                _assert_close(found.isel(layer=layer), metrics(seen["vision"], layer)[:, row])


def _assert_close(found: Any, wanted: States) -> None:
    for name, values in zip(TOKEN_METRICS, wanted, strict=True):
        assert found[name].dims == ("token",)
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-5, err_msg=name)


def test_the_axes_have_names(episode: Episode) -> None:
    found = episode.token_stats("suffix")
    assert found.norm.dims == ("keyframe", "step", "layer", "token")
    assert found.norm.shape == (3, STEPS, LAYERS, 1 + CHUNK)
    assert found.token_kind.values.tolist() == ["state", *["action"] * CHUNK]
    found = episode.token_stats("prefix")
    assert found.norm.dims == ("keyframe", "layer", "token")
    assert found.frame.values.tolist() == [0, 8, 16]
    assert found.token_label.values[17] == "varied_camera_1[0,1]"
    assert set(found.token_role.values[found.token_kind == "text"]) == {"task", "template"}
    first = found.isel(layer=0)
    np.testing.assert_array_equal(first.cosine_previous, first.cosine_embedding)


def test_rows_join_with_the_tokens(ingested: Path, episode: Episode) -> None:
    store = attnstore.open(ingested)
    rows = store.sql(
        "select text, count(*) from token_stats s join tokens t "
        "using (run, episode, keyframe, phase, \"index\") where t.axis = 'query' "
        "and s.layer = 0 and s.keyframe = 0 and s.role = 'task' group by text, s.index "
        "order by s.index"
    ).fetchall()
    assert "".join(text for text, _ in rows) == episode.instruction
    assert {count for _, count in rows} == {1}
    ((count,),) = store.sql("select count(*) from token_stats").fetchall()
    spec = episode.spec.phases
    assert count == 3 * sum(p.layers * (p.steps or 1) * len(p.query) for p in spec.values())
    assert problems(ingested) == []


def test_token_evolution_is_the_median_and_the_mean(ingested: Path, episode: Episode) -> None:
    rows = attnstore.open(ingested).sql(named_query("token-evolution").sql).fetchall()
    action = episode.token_stats("suffix").isel(step=-1, token=slice(1, None))
    for layer in range(LAYERS):
        (row,) = [r for r in rows if r[1:4] == ("suffix", layer, "action")]
        of_layer = action.isel(layer=layer)
        assert row[6] == pytest.approx(float(of_layer.norm.median()), rel=1e-5)
        assert row[7] == pytest.approx(float(of_layer.cosine_previous.mean()), rel=1e-4)
    task = episode.token_stats("prefix").isel(layer=1)
    task = task.isel(token=np.flatnonzero(task.token_role == "task"))
    (row,) = [r for r in rows if r[1:5] == ("prefix", 1, "text", "task")]
    assert row[8] == pytest.approx(float(task.cosine_embedding.mean()), rel=1e-4)


def test_a_planted_massive_activation_is_found(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    """One patch of the wrist camera becomes 300 times as long in layer 1, as visual sinks do."""

    def swell(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 6] *= 300
        return output

    layer = policy.model.model.vlm.language_model.layers[1]
    handle = layer.register_forward_hook(swell)
    try:
        job = make_job(ram_path / "s", policy, dataset, stride=16, watch=Watch(token_stats=True))
        ingest_episode(job, policy, dataset, dataset.episode_names()[0])
    finally:
        handle.remove()
    rows = attnstore.open(ram_path / "s").sql(named_query("massive-activations").sql)
    found = [dict(zip(rows.columns, r, strict=True)) for r in rows.fetchall()]
    # what is that long stays so: the residual stream carries it to every later layer
    assert {(r["phase"], r["layer"], r["span"], r["index"]) for r in found} == {
        ("prefix", layer, "image:hand_camera", 6) for layer in range(1, LAYERS)
    }
    assert all(r["camera"] == "hand_camera" and r["keyframes"] == 2 for r in found)
    assert all(50 < r["times_median"] < 600 for r in found)


class TestOnlyWhenAsked:
    def test_without_it_no_layer_is_hooked(self, policy: Pi0Policy) -> None:
        layers = policy.model.model.vlm.language_model.layers
        with capture(policy):
            assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        with capture(policy, watch=Watch(token_stats=True)) as session:
            assert all(layer._forward_hooks for layer in layers)
            policy.act(policy.prepare([observe(1)]))
        assert session.hidden_counts == {"prefix": LAYERS, "suffix": LAYERS * STEPS}

    def test_weights_and_actions_are_the_same(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        name, found = dataset.episode_names()[0], []
        for place, watch in (("a", Watch()), ("b", Watch(token_stats=True))):
            job = make_job(ram_path / place, policy, dataset, stride=16, watch=watch)
            found.append(Part(job.paths, ingest_episode(job, policy, dataset, name)))
        without, with_them = (arrays_of(part) for part in found)
        assert sorted(without) == sorted(with_them)
        for path, values in without.items():
            np.testing.assert_array_equal(values, with_them[path])
        tables = [{p.name for p in part.path.glob("*.parquet")} for part in found]
        assert tables[1] - tables[0] == {"token_stats.parquet"}
        store = attnstore.open(ram_path / "a")
        assert store.sql("from token_stats").fetchall() == []
        with pytest.raises(
            NotFoundError, match="no token statistics; .* --token-stats` keeps them"
        ):
            store.episode(name).token_stats("prefix")

    def test_it_is_another_run_with_another_forecast(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        asked = make_job(ram_path / "s", policy, dataset, watch=Watch(token_stats=True))
        assert job.run.id != asked.run.id
        assert asked.run.options["token_stats"] is True
        sizes = [make_plan(j, policy, dataset).keyframe_bytes for j in (job, asked)]
        layouts = policy.prepare([observe(1, dataset.info(dataset.episode_names()[0]).instruction)])
        prefix = len(layouts.samples[0].layouts["prefix"].query)
        assert sizes[1] - sizes[0] == 12 * LAYERS * (prefix + STEPS * (1 + CHUNK))


@contextmanager
def statistics(policy: Pi0Policy, dataset: DroidDataset) -> Iterator[TokenStatistics]:
    name = dataset.episode_names()[0]
    spec, _ = describe_episode(
        dataset.info(name), dataset.frames(name, [0]), policy,
        indices=[0], seed=0, precision="float16",
    )  # fmt: skip
    frame = next(iter(dataset.frames(name, [0])))
    batch = policy.prepare([observation(frame, dataset.info(name), 0)])
    yield TokenStatistics(spec, batch, [s.layouts for s in batch.samples])


def test_a_hidden_state_of_zero_has_no_direction(policy: Pi0Policy, dataset: DroidDataset) -> None:
    with statistics(policy, dataset) as found:
        states = torch.ones(1, 1 + CHUNK, 4)
        found.add(HiddenRecord("suffix", -1, 0, states))
        states[:, 2] = 0  # in place, as some models go on
        found.add(HiddenRecord("suffix", 0, 0, states))
        found.add(HiddenRecord("suffix", 1, 0, -states))
        (rows,) = found.rows(0, 0)
    shape = (1, LAYERS, 1 + CHUNK)  # of the one step that came
    norm, previous, embedding = (rows[name].reshape(shape)[0] for name in TOKEN_METRICS)
    assert norm[:2].tolist() == [[2, 2, 0, 2, 2, 2]] * 2
    assert np.isnan(previous[:, 2]).all()
    assert np.isnan(embedding[:, 2]).all()
    assert previous[0, 0] == embedding[0, 0] == 1
    assert previous[1, 0] == embedding[1, 0] == -1
    assert np.isnan(norm[2]).all(), "a layer that never came has no value"


def test_hidden_states_of_other_tokens_are_refused(
    policy: Pi0Policy, dataset: DroidDataset
) -> None:
    with statistics(policy, dataset) as found:
        found.add(HiddenRecord("suffix", -1, 0, torch.ones(1, 4, 4)))
        with pytest.raises(HealthError, match="suffix layer 0: .* ends at 6, .* have 4 tokens"):
            found.add(HiddenRecord("suffix", 0, 0, torch.ones(1, 4, 4)))


def test_layers_that_are_never_called_are_noticed(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = policy.layers
    monkeypatch.setattr(policy, "layers", lambda watched: layers(watched)[1:])
    job = make_job(ram_path / "s", policy, dataset, watch=Watch(token_stats=True))
    with pytest.raises((HealthError, KeyError)):
        ingest_episode(job, policy, dataset, dataset.episode_names()[0])
    monkeypatch.setattr(policy, "layers", lambda watched: [])
    with pytest.raises(
        HealthError, match="prefix: 0 layers' hidden states arrived, 3 were expected"
    ):
        ingest_episode(job, policy, dataset, dataset.episode_names()[0])


def test_attention_outside_a_list_of_layers_is_refused(policy: Pi0Policy) -> None:
    alone = [Watched("prefix", 0, torch.nn.Linear(1, 1))]
    with pytest.raises(UsageError, match="hidden states: prefix layer 0 stands in no list"):
        HookedPolicy.layers(policy, alone)


def test_a_policy_may_refuse(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise UsageError("--token-stats: its layers are no modules")

    monkeypatch.setattr(policy, "check_hidden", refuse)
    job = make_job(ram_path / "s", policy, dataset, watch=Watch(token_stats=True))
    with pytest.raises(UsageError, match="its layers are no modules"):
        make_plan(job, policy, dataset)


def test_many_rows_do_not_wait_in_memory(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "s")
    writer = EpisodeWriter(Attempt(paths, "r", "e", "base"), random_episode().spec, POLICY)
    size = ROW_GROUP // 4 + 1
    for block in range(9):
        writer.add_rows("token_stats", _rows(size, block))
        assert writer.rows("token_stats").num_rows < ROW_GROUP
    writer._spill("token_stats")
    writer._files["token_stats"].close()
    found = pq.read_table(writer.attempt.path / "token_stats.parquet")
    assert found["index"].to_pylist() == list(range(9 * size))
    assert set(found["keyframe"].to_pylist()) == set(range(9))
    assert found["run"][0].as_py() == "r"
    assert isinstance(paths, StorePaths)


def _rows(size: int, block: int) -> dict[str, Any]:
    texts = {name: [None] * size for name in ("camera", "step", "role")}
    return {
        **texts,
        "keyframe": [block] * size,
        "phase": ["prefix"] * size,
        "span": ["task"] * size,
        "kind": pa.repeat(pa.scalar("text"), size),
        "layer": [0] * size,
        "index": list(range(block * size, (block + 1) * size)),
        **{name: np.zeros(size, np.float32) for name in TOKEN_METRICS},
    }


def test_the_runs_differ_by_what_is_asked(policy: Pi0Policy, dataset: DroidDataset) -> None:
    ids = {
        describe_run(
            policy, "pi0", dataset, stride=8, precision="float16", seed=0, watch=watch
        ).id
        for watch in (BOTH, replace(BOTH, vision=False), replace(BOTH, token_stats=False), Watch())
    }  # fmt: skip
    assert len(ids) == 4


def test_the_chart_has_a_curve_for_every_span(episode: Episode, tmp_path: Path) -> None:
    stats = episode.token_stats("prefix")
    chart = token_chart(stats)
    spans = ["image:hand_camera", "image:varied_camera_1", "bos", "task", "newline"]
    for text in (*spans, *(f"prefix: {name}" for name in TOKEN_METRICS)):
        assert f">{text}</text>" in chart.svg
    assert chart.svg.count("<polyline") == len(spans) * len(TOKEN_METRICS)
    ElementTree.fromstring(chart.svg)
    # the higher a number, the nearer to the top: the first panel's first curve is of the norm
    (first, *_) = re.findall(r'<polyline points="([^"]*)"', chart.svg)
    heights = [float(point.split(",")[1]) for point in first.split()]
    means = stats.norm.isel(token=slice(0, 16)).mean(("keyframe", "token")).values
    assert np.argsort(heights).tolist() == np.argsort(-means).tolist()
    assert "suffix: norm" in token_chart(episode.token_stats("suffix"), step=0).svg
