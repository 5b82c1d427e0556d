"""Vision-language models: the contract, text instead of actions, a number of steps that varies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vlm_fixtures
from blocking_contract import BlockingContract
from droid_sample import sample_path
from ingest_fixtures import arrays_of, commits, make_job, observe, problems
from policy_contract import Case, run_captured

from attnstore.cli import main
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import observation
from attnstore.ingest.policies.base import Generated
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.policies.vlm.policy import CAUSAL, VlmPolicy
from attnstore.query import open as open_for_reading
from attnstore.store.commits import StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.errors import HealthError
from attnstore.store.format.tokens import Token

STEPS = 4


def load(name: str, root: Path) -> VlmPolicy:
    directory = vlm_fixtures.save(name, root / name)
    policy = load_policy("vlm", str(directory), options={"max_new_tokens": str(STEPS)})
    assert isinstance(policy, VlmPolicy)
    assert policy.model.config.text_config._attn_implementation == "sdpa"
    return policy


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vlm")


@pytest.fixture(scope="session", params=["paligemma", "llava", "qwen2_vl"])
def family(request: pytest.FixtureRequest, root: Path) -> VlmPolicy:
    """One with every kind of processor and mask, saved and loaded."""
    return load(request.param, root)


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, family: VlmPolicy) -> Case:
        return Case(family, (observe(1), observe(2, "wipe")), module=family.model, seeded=False)


@pytest.mark.parametrize("name", vlm_fixtures.FAMILIES)
def test_weights_are_those_that_the_eager_model_returns_itself(name: str) -> None:
    """The oracle shares nothing with capture: `output_attentions` of a wholly eager model."""
    model, processor = vlm_fixtures.FAMILIES[name](seed=3)
    model.generation_config.eos_token_id = None
    policy = VlmPolicy.from_model(model, processor, max_new_tokens=STEPS)
    batch = policy.prepare([observe(5)])
    plain = policy.generate(batch)
    captured = run_captured(policy, batch)
    assert captured.actions.shape == (1, 0, 0)
    assert captured.session.generated == plain  # as with sdpa and no capture

    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model.generate(
            **batch.inputs, do_sample=False, max_new_tokens=STEPS,
            output_attentions=True, return_dict_in_generate=True,
        )  # fmt: skip
    length = batch.inputs["input_ids"].shape[1]
    assert wanted.sequences[0, length:].tolist() == [t.id for t in plain[0].tokens]
    assert len(captured.records) == vlm_fixtures.LAYERS * (1 + STEPS)
    for phase, layer, step, weights, _ in captured.records:
        own = wanted.attentions[step or 0][layer].numpy()
        if phase == "decode":
            own = own[:, :, -1:]
        np.testing.assert_allclose(weights, own, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "causal"), [("paligemma", False), ("llava", True), ("qwen2_vl", True)]
)
def test_the_mask_is_known_and_seen(name: str, causal: bool) -> None:
    policy = VlmPolicy.from_model(*vlm_fixtures.FAMILIES[name](), max_new_tokens=1)
    assert policy.phases["prefix"].causal is causal
    batch = policy.prepare([observe(1, "wipe"), observe(2)])
    start = batch.samples[0].layouts["prefix"].key.spans[0].model_start
    assert start > 0  # the shorter prompt is padded on the left
    weights = run_captured(policy, batch).records[0][3][0][:, start:, start:]
    above = np.triu(weights.max(0), 1)[np.triu_indices(weights.shape[-1], 1)]
    assert (above > 0).all() != causal
    assert (above == 0).all() == causal


def test_a_mask_that_is_not_what_is_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAUSAL, "paligemma", True)
    policy = VlmPolicy.from_model(*vlm_fixtures.paligemma(), max_new_tokens=1)
    with pytest.raises(HealthError, match="tokens attend to tokens behind them"):
        run_captured(policy, policy.prepare([observe(1)]))


@dataclass
class Ended:
    """A policy that ends early at some keyframes, and what it wrote there."""

    policy: VlmPolicy
    texts: list[Generated]
    dataset: DroidDataset
    name: str


@pytest.fixture(scope="module")
def ended() -> Ended:
    """Its end marker is what it would have written second at the first keyframe."""
    model, processor = vlm_fixtures.paligemma(seed=1)
    policy = VlmPolicy.from_model(model, processor, max_new_tokens=STEPS)
    dataset = DroidDataset(sample_path(), limit=1)
    name = dataset.episode_names()[0]
    info = dataset.info(name)
    sights = [observation(f, info, 0) for f in dataset.frames(name, (0, 8, 16, 24))]
    free = [policy.generate(policy.prepare([s]))[0] for s in sights]
    model.generation_config.eos_token_id = [free[0].tokens[1].id]
    texts = [policy.generate(policy.prepare([s]))[0] for s in sights]
    assert len(texts[0].tokens) == 2
    assert len({len(t.tokens) for t in texts}) > 1, [len(t.tokens) for t in texts]
    return Ended(policy, texts, dataset, name)


class TestSteps:
    @pytest.fixture(params=[1, 3])
    def store(self, request: pytest.FixtureRequest, ended: Ended, ram_path: Path) -> Path:
        """An ingest, keyframe by keyframe and in a batch whose samples end at other steps."""
        path = ram_path / "store"
        job = make_job(
            path, ended.policy, ended.dataset, batch_size=request.param, precision="log8"
        )
        ingest_episode(job, ended.policy, ended.dataset, ended.name)
        return path

    def test_a_step_that_a_keyframe_lacks_is_absent_everywhere(
        self, ended: Ended, store: Path
    ) -> None:
        assert problems(store) == []
        part = Part(StorePaths(store), commits(store)[ended.name])
        counts = [len(t.tokens) for t in ended.texts]
        stored = arrays_of(part)
        codes = stored["decode/attention"]
        assert codes.shape[:2] == (4, STEPS)
        spec = part.spec.phases["decode"]
        prompt = len(part.spec.phases["prefix"].key)
        assert [(s.name, s.kind, len(s)) for s in spec.query] == [("next", "readout", 1)]
        assert spec.key.spans[-1].name == "generated"
        assert len(spec.key) == prompt + STEPS - 1
        for keyframe, count in enumerate(counts):
            for step in range(STEPS):
                keys = prompt + step if step < count else 0
                assert (codes[keyframe, step, ..., :keys] < 255).all()
                assert (codes[keyframe, step, ..., keys:] == 255).all()
        maps = stored["maps/decode/readout/hand_camera/mean"]
        there = np.isfinite(maps).all(axis=(2, 3, 4, 5))
        assert there.tolist() == [[s < n for s in range(STEPS)] for n in counts]

        rows = part.table("head_stats").filter(
            part.table("head_stats")["phase"].to_numpy(zero_copy_only=False) == "decode"
        )
        each = vlm_fixtures.LAYERS * vlm_fixtures.HEADS * 2
        assert rows.num_rows == each * sum(counts)
        for row in rows.to_pylist():
            assert row["step"] < counts[row["keyframe"]]
            assert abs(sum(share for _, share in row["mass"]) - 1) < 1e-4
            assert row["entropy"] is not None
            assert (row["step_drift"] is None) == (row["step"] == 0)
            earlier = row["keyframe"] > 0 and row["step"] < counts[row["keyframe"] - 1]
            assert (row["drift"] is not None) == earlier
        assert part.table("sinks").num_rows >= 0

    def test_the_text_is_found_where_one_looks_for_it(self, ended: Ended, store: Path) -> None:
        opened = open_for_reading(store)
        found = opened.sql("select generated from keyframes order by keyframe").fetchall()
        assert [text for (text,) in found] == [t.text for t in ended.texts]
        rows = opened.sql(
            "select keyframe, text from tokens where phase = 'decode' and axis = 'step' "
            "order by keyframe, index"
        ).fetchall()
        assert rows == [(k, t.text) for k, own in enumerate(ended.texts) for t in own.tokens]
        keys = opened.sql(
            "select keyframe, token_id from tokens where axis = 'key' and role = 'generated' "
            "order by keyframe, index"
        ).fetchall()
        wanted = [(k, t.id) for k, own in enumerate(ended.texts) for t in own.tokens[:-1]]
        assert keys == wanted  # what is chosen last is never attended to
        episode = opened.episode(ended.name)
        assert episode.generated(0) == tuple(t.text for t in ended.texts[0].tokens)
        with pytest.raises(Exception, match="no array policy/actions"):
            episode.policy_array("actions")
        assert episode.policy_array("state").shape[0] == 4

    def test_a_step_from_the_end_is_that_of_each_text(self, ended: Ended, store: Path) -> None:
        episode = open_for_reading(store).episode(ended.name)
        counts = [len(t.tokens) for t in ended.texts]
        assert len(set(counts)) > 1
        camera = episode.cameras[0]
        for back in (-1, -2, -STEPS):
            maps = episode.maps("decode", camera, step=back).values
            mass, _ = episode.mass("decode", camera, layer=1, step=back)
            for keyframe, count in enumerate(counts):
                one = episode.maps("decode", camera, step=back, keyframe=keyframe, layer=1).values
                np.testing.assert_array_equal(maps[keyframe, 1], one)
                if count + back < 0:
                    assert np.isnan(one).all()
                    assert np.isnan(mass[keyframe]).all()
                    continue
                given: dict[str, Any] = {"step": count + back, "keyframe": keyframe, "layer": 1}
                wanted = episode.maps("decode", camera, **given).values
                assert np.isfinite(wanted).all()
                np.testing.assert_array_equal(one, wanted)
                own = episode.stats("decode", camera, "camera_mass").values[
                    keyframe, count + back, 1
                ]
                np.testing.assert_array_equal(mass[keyframe], own)
                head = episode.active_head("decode", camera, layer=1, step=back, keyframe=keyframe)
                assert head == episode.active_head("decode", camera, **given)
        some = episode.maps("decode", camera, step=-1, keyframe=[2, 0], head=1).values
        np.testing.assert_array_equal(
            some, episode.maps("decode", camera, step=-1).values[[2, 0], :, 1]
        )

    def test_the_stored_weights_are_those_of_a_capture(self, ended: Ended, store: Path) -> None:
        episode = open_for_reading(store).episode(ended.name)
        info = ended.dataset.info(ended.name)
        frames = list(ended.dataset.frames(ended.name, episode.spec.frames))
        for keyframe, frame in enumerate(frames):
            batch = ended.policy.prepare([observation(frame, info, 0)])
            captured = run_captured(ended.policy, batch)
            (wrote,) = captured.session.generated
            assert wrote == ended.texts[keyframe]
            for phase, layer, step, weights, _ in captured.records:
                if phase == "decode":
                    ours = episode.attention(
                        phase, keyframe=keyframe, step=step, layer=layer
                    ).values
                    keys = weights.shape[-1]
                    np.testing.assert_allclose(ours[..., :keys], weights[0], rtol=0.03, atol=3e-5)
                    assert np.isnan(ours[..., keys:]).all()

    def test_pictures_say_what_was_chosen_and_what_has_ended(
        self, ended: Ended, store: Path, tmp_path: Path
    ) -> None:
        from attnstore.render.files.episode_images import render_images
        from attnstore.render.files.episode_videos import render_videos

        episode = open_for_reading(store).episode(ended.name)
        shared: dict[str, Any] = {"layers": [1], "heads": False, "workers": 1}
        written = render_images(episode, tmp_path, **shared)
        names = {p.name for p in written}
        assert names == {
            "prefix_L1_attn_vis_max.jpg", "decode_L1_step00_attn_vis_max.jpg", "pi05.md",
        }  # fmt: skip
        late = render_images(episode, tmp_path, step=-1, phases=["decode"], **shared)
        assert {p.name for p in late} == {
            f"decode_L1_step{STEPS - 1:02d}_attn_vis_max.jpg",
            "pi05.md",
        }
        clips = render_videos(episode, tmp_path, phases=["decode"], **shared)
        assert clips[0].name == "L01_decode_step00_max.webm"


class TestGate:
    """What a policy says that it generated has to be what arrived."""

    @pytest.mark.parametrize("lie", [0, 1, 5])
    def test_a_wrong_count_is_refused(
        self, ended: Ended, lie: int, ram_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def said(batch: Any, real: Any = ended.policy.generate) -> list[Generated]:
            real(batch)
            return [Generated((Token(7, "x"),) * lie, "x")]

        monkeypatch.setattr(ended.policy, "generate", said)
        job = make_job(ram_path / "store", ended.policy, ended.dataset)
        with pytest.raises(HealthError, match=r"phase (decode|prefix)"):
            ingest_episode(job, ended.policy, ended.dataset, ended.name)
        assert commits(ram_path / "store") == {}


def test_the_command_line_from_end_to_end(
    root: Path, ram_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = vlm_fixtures.save("paligemma", root / "cli", image=112)

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert stop.value.code in (0, None), said.err
        return said.out

    store = ram_path / "store"
    run(
        "ingest", "droid", store, sample_path(), "--policy", "vlm", "--checkpoint", checkpoint,
        "--limit", 1, "--stride", 13, "--policy-option", "max_new_tokens=2",
        "--policy-option", "prompt=Where is the robot to {instruction}?",
    )  # fmt: skip
    assert "every committed file" in run("verify", store)
    task = run("sql", store, "--json",
               "select string_agg(text, '' order by index) t from tokens "
               "where keyframe = 0 and phase = 'prefix' and axis = 'query' and role = 'task'")  # fmt: skip
    assert "place the green cube into the pink bowl" in task
    out = tmp_path / "out"
    run("render", "images", store, "--out", out, "--layers", "1", "--width", 160)
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("00013/*.jpg"))
    assert [f.rpartition("/")[2] for f in found] == [
        "decode_L1_step00_attn_vis_max.jpg", "prefix_L1_attn_vis_max.jpg",
    ]  # fmt: skip
