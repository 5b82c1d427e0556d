"""Value norms against the model's own projections, and what is weighted by them against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import run
from ingest_fixtures import (
    CHUNK,
    LAYERS,
    STEPS,
    commits,
    make_job,
    problems,
    write_droid,
)
from numpy.typing import NDArray

import attnstore
from attnstore.ingest.capture import Record, capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import observation
from attnstore.ingest.policies.base import Watch
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.ingest.policies.values import ValueNorms, plain_linear, projections
from attnstore.query import Episode
from attnstore.query.attention.shares import shares
from attnstore.query.sql.named import named_query
from attnstore.store.errors import HealthError, NotFoundError, SelectionError
from attnstore.store.format.statistics import image_mass, image_variance
from attnstore.store.format.weighting import Weighting, value_weighted

Floats = NDArray[np.float64]
VALUES = Watch(values=True)
LAYER = 1
"""Where a value is planted."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DroidDataset:
    """One episode of three keyframes."""
    return DroidDataset(write_droid(tmp_path_factory.mktemp("values") / "toy", lengths=(17,)))


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, dataset: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("store") / "toy.attn"
    job = make_job(root, loaded, dataset, batch_size=2, watch=VALUES)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    return root


@pytest.fixture
def episode(ingested: Path) -> Episode:
    return episode_of(ingested)


def episode_of(root: Path) -> Episode:
    (commit,) = commits(root).values()
    return attnstore.open(root).from_commit(commit)


def parts_of(model: Any) -> dict[str, list[Any]]:
    return {
        "prefix": list(model.model.vlm.language_model.layers),
        "suffix": list(model.model.dit.layers),
    }


def norms_of_the_model(model: Any, inputs: Mapping[str, Any]) -> dict[str, list[Floats]]:
    """Per phase and call of a layer, (batch, head, key): every token's vector, written out in float64."""
    seen: dict[str, list[Floats]] = {"prefix": [], "suffix": []}
    values: dict[int, Floats] = {}
    handles = []

    def entering(phase: str, layer: int, module: Any, args: Any, kwargs: Any) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).double().numpy()
        own = hidden @ module.v_proj.weight.double().detach().numpy().T
        if phase == "prefix":
            values[layer] = own
        else:
            own = np.concatenate([values[layer], own], 1)
        output = module.o_proj.weight.double().detach().numpy()
        width = own.shape[-1]  # one key head
        heads = output.shape[1] // width
        each = [own @ output[:, h * width : (h + 1) * width].T for h in range(heads)]
        seen[phase].append(np.stack([np.linalg.norm(vectors, axis=-1) for vectors in each], 1))

    for phase, layers in parts_of(model).items():
        for i, layer in enumerate(layers):
            handles.append(
                layer.self_attn.register_forward_pre_hook(
                    lambda m, a, k, phase=phase, i=i: entering(phase, i, m, a, k), with_kwargs=True
                )
            )
    with torch.no_grad():
        model.sample_actions(**inputs, num_steps=STEPS)
    for handle in handles:
        handle.remove()
    return seen


def test_they_are_those_of_the_model(
    loaded: Pi0Policy, episode: Episode, dataset: DroidDataset
) -> None:
    """The policy's weights in a model without a hook of ours: prefix keys go through the expert's, too."""
    model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
    model.load_state_dict(loaded.model.state_dict())
    info = dataset.info(dataset.episode_names()[0])
    for keyframe, frame in enumerate(dataset.frames(info.name, [0, 8, 16])):
        batch = loaded.prepare([observation(frame, info, 0)])
        wanted = norms_of_the_model(model, batch.inputs)
        for phase, steps in (("prefix", 1), ("suffix", STEPS)):
            found = episode.value_norms(phase, keyframe=keyframe).values
            found = found.reshape(steps, LAYERS, *found.shape[-2:])
            own, stored = batch.samples[0].layouts[phase].key, episode.phase(phase).key
            model_at = np.concatenate([np.arange(s.start, s.stop) for s in own.model_slices])
            for step in range(steps):
                for layer in range(LAYERS):
                    ours = wanted[phase][step * LAYERS + layer][0][:, model_at]
                    for there, compact in stored.place(own):
                        np.testing.assert_allclose(
                            found[step, layer][:, there], ours[:, compact], rtol=2e-3, atol=1e-5
                        )
    prefix = episode.value_norms("prefix", keyframe=0)
    through = episode.value_norms("suffix", keyframe=0, key=slice(0, prefix.sizes["key"]))
    assert np.nanmedian(abs(through.isel(step=0).values / prefix.values - 1)) > 0.02
    np.testing.assert_array_equal(through.isel(step=0), through.isel(step=-1))


def test_statistics_are_of_the_weighted_rows(episode: Episode) -> None:
    """Of unrounded weights at ingest, of stored ones here: equal to the stored precision."""
    for phase in ("prefix", "suffix"):
        spec = episode.phase(phase)
        weights = episode.attention(phase, query=spec.query_groups[0]).values.astype(np.float64)
        norms = episode.value_norms(phase).values.astype(np.float64)
        absent = np.isnan(weights)
        weighted = np.where(absent, 0, weights) * np.nan_to_num(norms)[..., None, :]
        weighted = weighted / weighted.sum(-1, keepdims=True)
        found = episode.attention(phase, query=spec.query_groups[0], weighting="value").values
        np.testing.assert_allclose(found[~absent], weighted[~absent], rtol=2e-5, atol=1e-9)
        assert np.isnan(found[absent]).all()
        there = np.asarray(~absent.all(-1))
        mean = np.where(there[..., None], weighted, 0).sum(-2) / there.sum(-1)[..., None]
        for camera in episode.cameras:
            (span,) = [s for s in spec.key if s.camera == camera]
            assert span.grid is not None
            maps = mean[..., span.start : span.stop].reshape(*mean.shape[:-1], *span.grid)
            coverage = episode.geometry(camera).coverage()
            drawn = episode.maps(phase, camera, step="all", reduce="mean", weighting="value")
            np.testing.assert_allclose(drawn, maps, rtol=1e-4, atol=1e-7)
            got = episode.stats(phase, camera, ["camera_mass", "variance"], weighting="value")
            np.testing.assert_allclose(got.camera_mass, image_mass(maps, coverage)[0], rtol=2e-3)
            np.testing.assert_allclose(
                got.variance, image_variance(maps, coverage), rtol=1e-2, atol=1e-9
            )
            raw = episode.stats(phase, camera, "camera_mass")
            assert np.abs(raw - got.camera_mass).max() > 1e-3
        both = [shares(episode, phase, weighting=w) for w in ("raw", "value")]
        for each in both:
            np.testing.assert_allclose(each.sum("span"), 1, atol=2e-3)
        assert np.abs(both[0] - both[1]).max() > 1e-3


@contextmanager
def without_value(policy: Pi0Policy, layer: int, token: int) -> Iterator[None]:
    """A model in which one prefix token has a value vector of zero in one layer."""
    core = parts_of(policy.model)["prefix"][layer].self_attn

    def zero(module: Any, args: Any, output: Any) -> Any:
        output = output.clone()
        output[:, token] = 0
        return output

    handle = core.v_proj.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def test_a_token_that_carries_nothing_is_dark(
    loaded: Pi0Policy, episode: Episode, dataset: DroidDataset, ram_path: Path
) -> None:
    camera = episode.cameras[0]
    (span,) = [s for s in episode.phase("prefix").key if s.camera == camera]
    raw = episode.maps("prefix", camera, layer=LAYER, reduce="mean", keyframe=0).values
    head = int(raw.reshape(len(raw), -1).max(-1).argmax())
    row, col = np.unravel_index(raw[head].argmax(), raw[head].shape)
    at = int(np.ravel_multi_index((row, col), raw[head].shape))
    job = make_job(ram_path / "s", loaded, dataset, watch=VALUES)
    with without_value(loaded, LAYER, span.model_start + at):
        ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    assert problems(ram_path / "s") == []
    planted = episode_of(ram_path / "s")
    asked: dict[str, Any] = {"layer": LAYER, "head": head, "reduce": "mean", "keyframe": 0}
    before = planted.maps("prefix", camera, **asked).values
    after = planted.maps("prefix", camera, **asked, weighting="value").values
    assert np.unravel_index(before.argmax(), before.shape) == (row, col)
    assert after[row, col] == 0
    assert (np.delete(after.ravel(), at) > 0).all()
    assert planted.value_norms("prefix", layer=LAYER, head=head, keyframe=0)[span.start + at] == 0
    # its own layer alone, and through the expert's projection as well
    assert planted.value_norms("prefix", layer=LAYER - 1, keyframe=0)[:, span.start + at].all()
    assert not planted.value_norms("suffix", layer=LAYER)[..., span.start + at].any()
    store = attnstore.open(ram_path / "s")
    rows = store.sql(
        "select weighting, argmax_row, argmax_col from head_stats where phase = 'prefix' and "
        f"keyframe = 0 and camera = '{camera}' and layer = {LAYER} and head = {head} order by all"
    ).fetchall()
    assert rows[0] == ("raw", row, col)
    assert rows[1][0] == "value"
    assert rows[1][1:] != (row, col)
    wanted: Any
    weighting: Weighting
    for weighting, wanted in (("raw", before), ("value", after)):
        coverage = planted.geometry(camera).coverage()
        variance = planted.map_variance(
            "prefix", camera, layer=LAYER, keyframe=0, reduce="mean", weighting=weighting
        )
        assert variance[head] == pytest.approx(float(image_variance(wanted, coverage)), rel=2e-2)


def test_ready_made_questions_do_not_mix_the_two(ingested: Path, ram_path: Path,
    loaded: Pi0Policy, dataset: DroidDataset) -> None:  # fmt: skip
    """The answers of a store with value norms are those of one without."""
    job = make_job(ram_path / "s", loaded, dataset, batch_size=2)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    names = ("most-active-heads", "camera-by-layer", "padding-mass", "largest-drift", "step-drift",
             "confident-heads")  # fmt: skip
    for name in names:
        tables = []
        for root in (ingested, ram_path / "s"):
            relation = attnstore.open(root).sql(named_query(name).sql)
            run = relation.columns.index("run")
            tables.append([row[:run] + row[run + 1 :] for row in relation.fetchall()])
        assert tables[0] == tables[1], name


def test_a_query_over_both_is_told(ingested: Path) -> None:
    mixed = "select avg(variance) from head_stats"
    said = "head_stats has rows of the attention as it is and weighted by value norms"
    assert said in run("sql", ingested, mixed, "--csv").stderr
    for plain in (
        f"{mixed} where weighting = 'raw'",
        "from sinks limit 1",
        "select count(*) from episodes",
    ):
        assert "weighted" not in run("sql", ingested, plain, "--csv").stderr
    assert "weighted" not in run("sql", ingested, "--named", "camera-by-layer", "--csv").stderr


def test_without_them_it_says_so(loaded: Pi0Policy, dataset: DroidDataset, ram_path: Path) -> None:
    job = make_job(ram_path / "s", loaded, dataset, stride=16)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    episode = episode_of(ram_path / "s")
    camera = episode.cameras[0]
    asked: list[Callable[[], Any]] = [
        lambda: episode.value_norms("prefix"),
        lambda: episode.attention("prefix", weighting="value"),
        lambda: episode.maps("prefix", camera, weighting="value"),
        lambda: episode.stats("prefix", camera, "entropy", weighting="value"),
        lambda: shares(episode, "prefix", weighting="value"),
    ]
    for ask in asked:
        with pytest.raises(NotFoundError, match="has no value norms; ingest it again"):
            ask()
    with pytest.raises(SelectionError, match="weighting is one of raw, value; got 'norm'"):
        episode.maps("prefix", camera, weighting="norm")  # type: ignore[arg-type]


def test_values_that_are_not_what_is_mixed_are_refused(
    loaded: Pi0Policy, dataset: DroidDataset
) -> None:
    """A layer that gates its heads before the projection, as some models do."""
    info = dataset.info(dataset.episode_names()[0])
    (frame,) = dataset.frames(info.name, [0])
    batch = loaded.prepare([observation(frame, info, 0)])
    core: Any = parts_of(loaded.model)["suffix"][0].self_attn.o_proj
    gate = core.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    try:
        with (
            pytest.raises(HealthError, match=r"suffix layer 0: .* value norms would be wrong"),
            capture(loaded, lambda record: None, watch=VALUES),
        ):
            loaded.act(batch)
    finally:
        gate.remove()


def test_query_heads_share_key_heads_in_order() -> None:
    """Six query heads on two key heads: the first three share the first."""
    generator = torch.Generator().manual_seed(0)
    output = torch.nn.Linear(24, 40, bias=True)
    values = torch.randn(3, 5, 2, 4, generator=generator)
    found = ValueNorms().of(values, output, heads=6)
    weight = output.weight.detach().double()
    for head in range(6):
        own = values[:, :, head // 3].double() @ weight[:, 4 * head : 4 * head + 4].T
        np.testing.assert_allclose(found[:, head], own.norm(dim=-1), rtol=1e-5)


def test_grams_follow_the_weights() -> None:
    norms, output = ValueNorms(), torch.nn.Linear(8, 8)
    values = torch.ones(1, 1, 1, 8)
    first = norms.of(values, output, heads=1)
    with torch.no_grad():
        output.weight.mul_(2)
    np.testing.assert_allclose(norms.of(values, output, heads=1), 2 * first, rtol=1e-6)


def test_layers_whose_weights_are_not_plain_have_no_projections() -> None:
    class Adapted(torch.nn.Linear):
        base_layer = None

    class Attention(torch.nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.v_proj, self.o_proj = torch.nn.Linear(4, 4), output

    assert projections(Attention(torch.nn.Linear(4, 4))) is not None
    assert projections(Attention(Adapted(4, 4))) is None
    assert projections(torch.nn.Linear(4, 4)) is None
    assert not plain_linear(None)


def test_rows_of_nothing_have_no_shares() -> None:
    weights = np.array([[0.5, 0.5], [1.0, 0.0]])
    with np.errstate(invalid="ignore"):
        found = value_weighted(weights, np.array([0.0, 2.0]))
    np.testing.assert_array_equal(found, [[0, 1], [np.nan, np.nan]])


def test_records_carry_none_unless_asked(loaded: Pi0Policy, dataset: DroidDataset) -> None:
    info = dataset.info(dataset.episode_names()[0])
    (frame,) = dataset.frames(info.name, [0])
    seen: list[Record] = []
    with capture(loaded, seen.append):
        loaded.act(loaded.prepare([observation(frame, info, 0)]))
    assert all(record.norms is None for record in seen)
