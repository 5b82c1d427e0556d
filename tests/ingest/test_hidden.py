"""Hidden states as stored, against the ``output_hidden_states`` of a model that attnstore never saw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ingest_fixtures import CHUNK, LAYERS, STEPS, commits, make_job, observe, problems, write_droid
from numpy.typing import NDArray

import attnstore
from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.hidden import parse_hidden
from attnstore.ingest.keyframes import observation
from attnstore.ingest.plan import make_plan
from attnstore.ingest.policies.base import HiddenChoice, Watch
from attnstore.ingest.policies.hooks import instead
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.query import Episode
from attnstore.store.commits.part import Part
from attnstore.store.errors import (
    HealthError,
    IntegrityError,
    NotFoundError,
    SelectionError,
    UsageError,
)
from attnstore.store.format.hidden import HIDDEN_BITS

States = NDArray[np.float64]
CHOICE = HiddenChoice((-1, 1), ("task", "image:hand_camera", "action"))
WATCH = Watch(hidden=CHOICE)
WITHIN = 2.0**-HIDDEN_BITS
FRAMES = (0, 8, 16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DroidDataset:
    """Two episodes of three and of two keyframes."""
    return DroidDataset(write_droid(tmp_path_factory.mktemp("hidden") / "toy", lengths=(17, 9)))


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, dataset: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("store") / "toy.attn"
    job = make_job(root, loaded, dataset, batch_size=2, watch=WATCH)
    for name in dataset.episode_names():
        ingest_episode(job, loaded, dataset, name)
    return root


@pytest.fixture(scope="module")
def episode(ingested: Path, dataset: DroidDataset) -> Episode:
    return attnstore.open(ingested).episode(dataset.episode_names()[0])


def oracle(model: Any, inputs: Mapping[str, Any]) -> dict[str, list[list[States]]]:
    """Per phase and call: what enters layer 0, what leaves each but the last, and the final norm's output."""
    seen: dict[str, list[list[States]]] = {"prefix": [], "suffix": []}
    parts = {"prefix": model.model.vlm.language_model, "suffix": model.model.dit}
    with ExitStack() as stack:
        for phase, part in parts.items():

            def forward(original: Any, *args: Any, phase: str = phase, **kwargs: Any) -> Any:
                found = original(*args, **{**kwargs, "output_hidden_states": True})
                seen[phase].append([s.double().numpy().copy() for s in found.hidden_states])
                return found

            stack.enter_context(instead(part, "forward", forward))
        with torch.no_grad():
            model.sample_actions(**inputs, num_steps=STEPS)
    return seen


def rms_normed(model: Any, phase: str, states: Any) -> States:
    """The model's own last norm of given states."""
    part = {"prefix": model.model.vlm.language_model, "suffix": model.model.dit}[phase]
    with torch.no_grad():
        return part.norm(torch.from_numpy(np.asarray(states, np.float32))).double().numpy()  # type: ignore[no-any-return]


def span_means(states: States, spans: Sequence[Any]) -> States:
    return np.stack([states[s.model_start : s.model_start + len(s)].mean(0) for s in spans])


def assert_close(found: Any, wanted: Any) -> None:
    """Within the bits that are stored, and float32's own noise of sums."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=WITHIN, atol=3e-6 * scale)


def test_they_are_those_of_the_model(
    loaded: Pi0Policy, episode: Episode, dataset: DroidDataset
) -> None:
    model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
    model.set_attn_implementation("eager")
    name = dataset.episode_names()[0]
    means = {phase: episode.hidden(phase) for phase in ("prefix", "suffix")}
    last = episode.hidden("suffix", tokens="last")
    every = {phase: episode.hidden(phase, tokens="all") for phase in ("prefix", "suffix")}
    assert means["prefix"].dims == ("keyframe", "layer", "span", "feature")
    assert means["suffix"].dims == ("keyframe", "step", "layer", "span", "feature")
    assert last.dims == ("keyframe", "step", "query", "feature")
    assert every["suffix"].dims == ("keyframe", "step", "layer", "query", "feature")
    assert means["prefix"].layer.values.tolist() == [-1, *range(LAYERS)]
    assert every["prefix"].layer.values.tolist() == [-1, 1]
    assert set(every["prefix"].query_span.values) == {"task", "image:hand_camera"}
    for keyframe, frame in enumerate(dataset.frames(name, FRAMES)):
        batch = loaded.prepare([observation(frame, dataset.info(name), 0)])
        seen = oracle(model, batch.inputs)
        layouts = batch.samples[0].layouts
        for phase, calls in seen.items():
            for step, states in enumerate(calls):
                at = {"keyframe": keyframe} | ({"step": step} if phase == "suffix" else {})
                found, spans = means[phase].isel(at), list(layouts[phase].query)
                assert found.span.values.tolist() == [s.name for s in spans]
                for layer in range(-1, LAYERS - 1):
                    wanted = span_means(states[layer + 1][0], spans)
                    assert_close(found.sel(layer=layer).values, wanted)
                # transformers shows no output of the last layer but that of the norm behind it
                chosen = [s for s in spans if s.name in ("task", "image:hand_camera", "action")]
                for layer in CHOICE.layers:
                    wanted = np.concatenate(
                        [states[layer + 1][0][s.model_start :][: len(s)] for s in chosen]
                    )
                    own = every[phase].isel(at).sel(layer=layer).values
                    assert_close(own[~np.isnan(own[:, 0])], wanted)
            if phase == "suffix":
                for step, states in enumerate(calls):
                    wanted = states[-1][0][-CHUNK:]
                    assert_close(last.isel(keyframe=keyframe, step=step).values, wanted)


def test_the_last_layer_is_what_the_last_norm_gets(
    loaded: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    watch = Watch(hidden=HiddenChoice((LAYERS - 1,), ("action",)))
    job = make_job(ram_path / "s", loaded, dataset, watch=watch)
    commit = ingest_episode(job, loaded, dataset, dataset.episode_names()[1])
    episode = Episode(Part(job.paths, commit))
    states = episode.hidden("suffix", tokens="all", layer=-1)
    assert states.dims == ("keyframe", "step", "query", "feature")
    normed = rms_normed(loaded.model, "suffix", states.values)
    last = episode.hidden("suffix", tokens="last").values
    np.testing.assert_allclose(normed, last, rtol=4e-3, atol=2e-3 * np.abs(last).max())


def test_actions_and_attention_are_the_same(
    loaded: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    batch = loaded.prepare([observe(1), observe(2)])
    with capture(loaded) as plain:
        actions = loaded.act(batch)
    with capture(loaded, watch=WATCH) as session:
        again = loaded.act(batch)
    assert torch.equal(actions, again)
    for ours, theirs in zip(plain.records, session.records, strict=True):
        assert torch.equal(ours.weights, theirs.weights)
    assert session.hidden_counts == {"prefix": LAYERS, "suffix": LAYERS * STEPS}


class TestReading:
    def test_selections(self, episode: Episode) -> None:
        whole = episode.hidden("suffix")
        part = episode.hidden("suffix", layer=-1, span="action", step="last", keyframe=1)
        assert part.dims == ("feature",)
        wanted = whole.isel(keyframe=1, step=-1).sel(layer=LAYERS - 1, span="action")
        np.testing.assert_array_equal(part, wanted)
        assert (int(part.layer), str(part.span.values), int(part.frame)) == (2, "action", 8)
        embedding = episode.hidden("prefix", layer="embedding", span=["task"])
        np.testing.assert_array_equal(
            embedding, episode.hidden("prefix").sel(layer=-1, span=["task"])
        )
        np.testing.assert_array_equal(
            episode.hidden("prefix", layer=slice(1, None), frame=16),
            episode.hidden("prefix").isel(keyframe=2).sel(layer=[1, 2]),
        )
        word = episode.hidden("prefix", tokens="all", layer=1, span="word:cube", keyframe=0)
        assert [w.strip() for w in word.query_label.values.tolist()] == ["cube"]
        lazy = episode.hidden("suffix", layer=0, lazy=True)
        np.testing.assert_array_equal(lazy[1].values, episode.hidden("suffix", layer=0)[1])

    def test_what_is_not_there_is_said(self, episode: Episode) -> None:
        asked: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (NotFoundError, r"layer 0 of prefix .* of embedding, 1 it is; .*--hidden 0",
             {"phase": "prefix", "tokens": "all", "layer": 0}),
            (NotFoundError, "prefix has no hidden states 'last'; its policy makes no actions",
             {"phase": "prefix", "tokens": "last"}),
            (SelectionError, "prefix has no span 'tasks'; there are image:",
             {"phase": "prefix", "span": "tasks"}),
            (SelectionError, "prefix layer 9 is out of range", {"phase": "prefix", "layer": 9}),
            (SelectionError, "tokens is one of mean, last, all",
             {"phase": "prefix", "tokens": "every"}),
            (SelectionError, "max_bytes", {"phase": "prefix", "max_bytes": 10}),
        ]  # fmt: skip
        for kind, text, given in asked:
            with pytest.raises(kind, match=text):
                episode.hidden(**given)

    def test_many_episodes(self, ingested: Path, dataset: DroidDataset) -> None:
        store = attnstore.open(ingested)
        both = store.hidden(phase="suffix", layer=1, span="action")
        assert both.dims == ("keyframe", "step", "feature")
        start = 0
        for name in dataset.episode_names():
            one = store.episode(name).hidden("suffix", layer=1, span="action")
            here = both.isel(keyframe=slice(start, start + len(one)))
            np.testing.assert_array_equal(here, one)
            assert set(here.episode.values) == {name}
            assert here.number.values.tolist() == list(range(len(one)))
            start += len(one)
        assert start == both.sizes["keyframe"] == 5
        words = store.hidden(phase="prefix", layer=1, tokens="all", span="task")
        for name in dataset.episode_names():
            one = store.episode(name).hidden("prefix", layer=1, tokens="all", span="task")
            here = words.isel(keyframe=np.flatnonzero(words.episode == name))
            np.testing.assert_array_equal(here[:, : one.sizes["query"]], one)
        with pytest.raises(SelectionError, match="max_bytes"):
            store.hidden(phase="prefix", max_bytes=1000)

    def test_sql_says_what_there_is(self, ingested: Path) -> None:
        rows = (
            attnstore.open(ingested)
            .sql(
                "select distinct phase, form, span, layers, steps, features from hidden_states "
                "where span in ('task', 'action') order by all"
            )
            .fetchall()
        )
        width = rows[0][-1]
        assert rows == [
            ("prefix", "mean", "task", [-1, 0, 1, 2], None, width),
            ("prefix", "tokens", "task", [-1, 1], None, width),
            ("suffix", "last", "action", None, STEPS, rows[-1][-1]),
            ("suffix", "mean", "action", [-1, 0, 1, 2], STEPS, rows[-1][-1]),
            ("suffix", "tokens", "action", [-1, 1], STEPS, rows[-1][-1]),
        ]
        assert problems(ingested) == []


@contextmanager
def swollen(policy: Pi0Policy, factor: float) -> Iterator[None]:
    """A model whose layer 1 adds massive activations to one image token."""

    def swell(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 6, 3] = factor
        return output

    handle = policy.model.model.vlm.language_model.layers[1].register_forward_hook(swell)
    try:
        yield
    finally:
        handle.remove()


def test_what_float16_does_not_hold_is_stored_as_it_is(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    watch = Watch(hidden=HiddenChoice((1,), ("image:hand_camera",)))
    job = make_job(ram_path / "s", policy, dataset, stride=16, watch=watch)
    with swollen(policy, 3e5):
        commit = ingest_episode(job, policy, dataset, dataset.episode_names()[1])
    episode = Episode(Part(job.paths, commit))
    states = episode.hidden("prefix", tokens="all", layer=1, keyframe=0)
    mean = episode.hidden("prefix", layer=1, span="image:hand_camera", keyframe=0)
    assert float(states[6, 3]) == pytest.approx(3e5, rel=WITHIN)
    assert float(mean[3]) == pytest.approx(float(states[:, 3].mean()), rel=2 * WITHIN)
    assert np.isfinite(states.values).all()
    assert np.abs(states.values[:, 4]).max() < 100


def test_what_is_infinite_is_refused(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    """In the last layer, behind which no row would tell."""

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 6, 3] = torch.inf
        return output

    layer = policy.model.model.vlm.language_model.layers[LAYERS - 1]
    handle = layer.register_forward_hook(spoil)
    job = make_job(ram_path / "s", policy, dataset, stride=16, watch=Watch(hidden=HiddenChoice()))
    try:
        with pytest.raises(HealthError, match="prefix layer 2: a hidden state is not finite; "):
            ingest_episode(job, policy, dataset, dataset.episode_names()[1])
    finally:
        handle.remove()


def test_a_missing_layer_is_noticed(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(ram_path / "s", policy, dataset, stride=16, watch=Watch(hidden=HiddenChoice()))
    layers = policy.layers
    monkeypatch.setattr(policy, "layers", lambda watched: layers(watched)[1:])
    with pytest.raises(HealthError, match="prefix step 0 layer -1: no hidden states arrived"):
        ingest_episode(job, policy, dataset, dataset.episode_names()[1])
    monkeypatch.undo()
    monkeypatch.setattr(policy, "projection", lambda: None)
    with pytest.raises(HealthError, match="suffix: the last hidden states of 0 of 3 steps"):
        ingest_episode(job, policy, dataset, dataset.episode_names()[1])


class TestChoice:
    def test_text(self) -> None:
        assert parse_hidden("2,0-1") == HiddenChoice((0, 1, 2))
        for text in ("", "a", "1-", "-1", ":task"):
            with pytest.raises(UsageError, match="--hidden"):
                parse_hidden(text)

    def test_what_is_none_is_refused_before_the_first_episode(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        for text, said in (
            ("7", "--hidden: no layer 7; prefix has 0 to 2, suffix has 0 to 2"),
            ("1:tasks", "--hidden: no span 'tasks'; there are image:"),
            ("1,5:task", "--hidden: no layer 5; prefix has 0 to 2$"),
        ):
            watch = Watch(hidden=parse_hidden(text))
            job = make_job(ram_path / "s", policy, dataset, watch=watch)
            with pytest.raises(UsageError, match=said):
                make_plan(job, policy, dataset)
            with pytest.raises(UsageError, match=said):
                ingest_episode(job, policy, dataset, dataset.episode_names()[1])

    def test_without_them_it_says_so(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset, stride=16)
        ingest_episode(job, policy, dataset, dataset.episode_names()[1])
        store = attnstore.open(ram_path / "s")
        with pytest.raises(NotFoundError, match="no hidden states; .* without --no-hidden"):
            store.episode(dataset.episode_names()[1]).hidden("prefix")
        assert store.sql("from hidden_states").fetchall() == []

    def test_the_runs_differ(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        watches = (Watch(), Watch(hidden=HiddenChoice()), WATCH)
        jobs = [make_job(ram_path / "s", policy, dataset, watch=w) for w in watches]
        assert len({job.run.id for job in jobs}) == 3


def test_damage_is_found(ingested: Path, dataset: DroidDataset, ram_path: Path) -> None:
    shutil.copytree(ingested, ram_path / "s")
    name = dataset.episode_names()[0]
    part = Part(attnstore.open(ram_path / "s").paths, commits(ram_path / "s")[name])
    folder = part.path / "attention.zarr/hidden/suffix/last/c"
    (file,) = (each for each in folder.rglob("*") if each.is_file())
    data = bytearray(file.read_bytes())
    data[40] ^= 0xFF
    file.write_bytes(data)
    assert any("hidden/suffix/last" in str(p) for p in problems(ram_path / "s"))
    with pytest.raises(IntegrityError):
        Episode(part).hidden("suffix", tokens="last")
