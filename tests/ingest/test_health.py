"""The health gate: what must not be committed, each with its message; and quarantine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ingest_fixtures import CHUNK, LAYERS, STEPS, Watcher, commits, make_job, problems

from attnstore.ingest.capture import Record, Session
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.health import ROW_TOLERANCE, check_axes, check_rows
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.policies.base import Batch, PhaseShape, Sample
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.store.commits import all_commits
from attnstore.store.commits.quarantine import quarantined
from attnstore.store.errors import HealthError
from attnstore.store.format.tokens import Axis, Span, TokenLayout

Damage = Callable[[torch.Tensor], torch.Tensor | None]


@pytest.fixture
def own(policy: Pi0Policy) -> Pi0Policy:
    """A model of this test's own, to be damaged."""
    model, processor = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)
    return Pi0Policy.from_model(model, processor)


@pytest.fixture
def dataset(recordings: Path) -> DroidDataset:
    return DroidDataset(recordings)


def damage(policy: Pi0Policy, phase: str, layer: int, change: Damage) -> None:
    """Change the weights that a layer returns, as a faulty kernel would."""
    core = policy.model.model
    part = core.vlm.language_model if phase == "prefix" else core.dit
    part.layers[layer].self_attn.register_forward_hook(
        lambda module, args, output: (output[0], change(output[1]))
    )


def reason(policy: Pi0Policy, dataset: DroidDataset, store: Path) -> str:
    """Why the first episode is refused; nothing of it is left."""
    job = make_job(store, policy, dataset)
    with pytest.raises(HealthError) as caught:
        ingest_episode(job, policy, dataset, dataset.episode_names()[0])
    assert caught.value.exit_code == 5
    left = {p.relative_to(store).parts[0] for p in store.rglob("*") if p.is_file()}
    assert left == {"attnstore.json", "runs", "commits"}
    assert not list(all_commits(job.paths))
    return str(caught.value)


def test_nan(own: Pi0Policy, dataset: DroidDataset, tmp_path: Path) -> None:
    def one_nan(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        weights[0, 3, 7, 0] = float("nan")
        return weights

    damage(own, "prefix", 2, one_nan)
    assert reason(own, dataset, tmp_path / "s") == (
        "keyframe 0, prefix layer 2: attention rows sum to nan .. nan, not to 1 within 0.0001 "
        "(float32); weights may be NaN or are not probabilities"
    )


def test_nan_in_padding_is_nobodys(own: Pi0Policy, dataset: DroidDataset, tmp_path: Path) -> None:
    """Padding queries are nonsense anyhow, and are not stored."""

    def last_row(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        weights[:, :, -1] = float("nan")
        return weights

    damage(own, "prefix", 1, last_row)
    name = dataset.episode_names()[-1]  # its prompt, "wipe", leaves padding
    assert dataset.info(name).instruction == "wipe"
    ingest_episode(make_job(tmp_path / "s", own, dataset), own, dataset, name)


@pytest.mark.parametrize("factor", [1.01, 0.99, 2.0])
def test_rows_that_do_not_sum_to_1(
    own: Pi0Policy, dataset: DroidDataset, tmp_path: Path, factor: float
) -> None:
    def scale(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        weights[0, 5, 2] *= factor
        return weights

    damage(own, "suffix", 1, scale)
    said = reason(own, dataset, tmp_path / "s")
    assert said.startswith("keyframe 0, suffix layer 1, step 0: attention rows sum to ")
    assert f"{factor:g}" in said


@pytest.mark.parametrize("dtype", ROW_TOLERANCE)
def test_the_tolerance_is_the_dtypes(dtype: str) -> None:
    record = Record("prefix", 0, None, torch.zeros(1, 1, 1, 1, dtype=getattr(torch, dtype)))
    tolerance = ROW_TOLERANCE[dtype]
    check_rows(record, 1 - 0.9 * tolerance, 1 + 0.9 * tolerance, 0)
    for low, high in ((1 - 1.1 * tolerance, 1), (1, 1 + 1.1 * tolerance)):
        with pytest.raises(HealthError, match=f"within {tolerance:g} \\({dtype}\\)"):
            check_rows(record, low, high, 0)


def test_no_weights_at_all(own: Pi0Policy, dataset: DroidDataset, tmp_path: Path) -> None:
    damage(own, "suffix", 0, lambda weights: None)
    said = reason(own, dataset, tmp_path / "s")
    assert said.startswith("suffix layer 0: GemmaAttention returned no (batch, head, query, key)")


def test_a_layer_that_does_not_arrive(
    own: Pi0Policy, dataset: DroidDataset, tmp_path: Path
) -> None:
    """A layer that calls its attention's forward directly goes past every hook."""
    attention = own.model.model.dit.layers[1].self_attn

    class Bypass(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return attention.forward(*args, **kwargs)

    watched = own.watched()
    own.watched = lambda: watched  # type: ignore[method-assign]
    own.model.model.dit.layers[1].self_attn = Bypass()
    assert reason(own, dataset, tmp_path / "s") == (
        "phase suffix: 6 layers arrived, 9 were expected (3 layers x 3 steps)"
    )


def test_too_few_heads(own: Pi0Policy, dataset: DroidDataset, tmp_path: Path) -> None:
    damage(own, "prefix", 0, lambda weights: weights[:, :7])
    assert reason(own, dataset, tmp_path / "s") == (
        "prefix layer 0: 7 heads arrived, the policy's configuration has 8"
    )


def test_a_layout_that_is_longer_than_the_axis(
    own: Pi0Policy, dataset: DroidDataset, tmp_path: Path
) -> None:
    damage(own, "prefix", 1, lambda weights: weights[..., :30])
    said = reason(own, dataset, tmp_path / "s")
    assert said.startswith("prefix layer 1: the token layout ends at ")
    assert said.endswith(", the attention's axis has 30 tokens")


def test_each_axis_is_checked() -> None:
    axis = Axis((Span("state", "state", 0, 3, 2),))
    layout = TokenLayout("suffix", axis, axis)
    shape = PhaseShape(1, 2, 1, ())
    check_axes(Record("suffix", 0, 0, torch.zeros(1, 2, 5, 5)), layout, shape)
    for size in ((4, 5), (5, 4)):
        with pytest.raises(HealthError, match="layout ends at 5, .* axis has 4 tokens"):
            check_axes(Record("suffix", 0, 0, torch.zeros(1, 2, *size)), layout, shape)


class Blind(Pi0Policy):
    """Acts on images that were encoded before: the vision tower does not run."""

    def act(self, batch: Batch) -> Any:
        embed = self.model.model.embed_prefix
        cached = {"done": None}

        def once(*args: Any, **kwargs: Any) -> Any:
            if cached["done"] is None:
                tower = self.model.model.vlm.vision_tower
                hooks, tower._forward_hooks = tower._forward_hooks, type(tower._forward_hooks)()
                try:
                    cached["done"] = embed(*args, **kwargs)
                finally:
                    tower._forward_hooks = hooks
            return cached["done"]

        self.model.model.embed_prefix = once
        try:
            return super().act(batch)
        finally:
            del self.model.model.embed_prefix


def test_a_vision_tower_that_did_not_run(
    own: Pi0Policy, dataset: DroidDataset, tmp_path: Path
) -> None:
    blind = Blind.from_model(own.model, own.processor)
    assert reason(blind, dataset, tmp_path / "s") == (
        "0 images went through the vision tower, 2 camera images were given"
    )


class TestQuarantine:
    """A sick episode is set aside with its reason; the others go on."""

    @pytest.fixture
    def sick(self, own: Pi0Policy) -> set[str]:
        """Names whose attention is NaN at the second keyframe; fill it before ingesting."""
        names: set[str] = set()
        self.current = ""
        self.calls = 0

        def fail(weights: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return weights * float("nan") if self.current in names and self.calls > 1 else weights

        damage(own, "prefix", 0, fail)
        return names

    def ingest(self, policy: Pi0Policy, dataset: DroidDataset, store: Path) -> Watcher:
        test = self

        class Teller(Watcher):
            def started(self, name: str) -> None:
                test.current, test.calls = name, 0
                super().started(name)

        watcher = Teller()
        job = make_job(store, policy, dataset)
        report = ingest_all(job, policy, dataset, dataset.episode_names(), watcher)
        assert report.outcomes == watcher.outcomes
        return watcher

    def test_reason_file_and_the_others(
        self, own: Pi0Policy, dataset: DroidDataset, tmp_path: Path, sick: set[str]
    ) -> None:
        names = list(dataset.episode_names())
        sick.add(names[1])
        store = tmp_path / "s"
        watcher = self.ingest(own, dataset, store)
        assert [o.status for o in watcher.outcomes] == ["committed", "quarantined", "committed"]
        said = watcher.outcomes[1].reason
        assert said.startswith("keyframe 1, prefix layer 0: attention rows sum to nan")
        assert sorted(commits(store)) == [names[0], names[2]]
        assert problems(store) == []
        (file,) = store.glob("quarantine/*/*/*.json")
        entry = json.loads(file.read_text())
        assert (entry["name"], entry["reason"]) == (names[1], said)
        assert not list((store / "data").glob(f"*/{file.parent.name}/*"))
        assert [e["name"] for e in quarantined(make_job(store, own, dataset).paths)] == [names[1]]

        # sick again: a second reason beside the first; then well
        second = self.ingest(own, dataset, store)
        assert [o.status for o in second.outcomes] == ["present", "quarantined", "present"]
        assert len(list(store.glob("quarantine/*/*/*.json"))) == 2
        sick.clear()
        third = self.ingest(own, dataset, store)
        assert [o.status for o in third.outcomes] == ["present", "committed", "present"]
        assert quarantined(make_job(store, own, dataset).paths) == []
        assert sorted(commits(store)) == names


def test_the_session_counts_of_a_mixed_batch() -> None:
    """Cameras of a batch are padded with empty images, which the vision tower encodes too."""
    from attnstore.ingest.health import check_complete

    sample = Sample({}, {})
    geometry: Any = {"a": None, "b": None}
    batch = Batch({}, (replace(sample, geometry=geometry), replace(sample, geometry={"a": None})))  # type: ignore[dict-item]
    check_complete(Session(encoded_images=4), {}, batch, encoder=True)
    check_complete(Session(encoded_images=0), {}, batch, encoder=False)
    with pytest.raises(HealthError, match="2 images went .* 3 camera images were given"):
        check_complete(Session(encoded_images=2), {}, batch, encoder=True)
