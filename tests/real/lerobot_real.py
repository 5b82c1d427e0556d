"""The LeRobot adapters over the real LeRobot: ``make test-lerobot LEROBOT=/path/to/venv``.

Not collected by `make test`: LeRobot needs Python 3.12 and older torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lerobot_fixture_real
import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from cli_fixtures import run
from ingest_fixtures import observe
from lerobot.datasets.lerobot_dataset import LeRobotDataset as Theirs
from lerobot_fixture_datasets import FPS, TASKS, TOP, WRIST, Content, write_v30
from lerobot_fixture_real import (
    ACTION_DOF,
    CHUNK,
    LESSON,
    STEPS,
    lessons,
    save_act,
    save_fast,
    save_pi,
    save_smolvla,
    small,
    taught_fast,
)
from policy_contract import Captured, Case, as_array, run_captured
from safetensors.torch import load_file, save_file

from attnstore.ingest.capture import Record, capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.datasets.lerobot.export import export_copy
from attnstore.ingest.policies.base import Batch, ObservationError, PolicyError
from attnstore.ingest.policies.lerobot.base import TOKENS, TOKENS_MASK, LeRobotPolicy
from attnstore.ingest.policies.lerobot.policy import load_lerobot
from attnstore.query import open as open_for_reading
from attnstore.store.errors import HealthError

WORDS = ("put the red cube onto the pink plate", "wipe")


def load(directory: Path, **options: str) -> LeRobotPolicy:
    """Load a checkpoint and its weights as the command line does."""
    if (directory.parent / "fast").exists() or "taught" in (directory / "config.json").read_text():
        options["trust_remote_code"] = "true"  # FAST's tokenizer lies beside it
    with small():
        policy = load_lerobot(str(directory), options=options)
        assert isinstance(policy, LeRobotPolicy)
        assert not policy.policy.training
    return policy


@torch.no_grad()
def euler(policy: LeRobotPolicy, batch: Batch) -> list[Any]:
    """The model's chunk after each step: LeRobot's velocities, a loop of our own."""
    from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

    inputs = {k: v.clone() for k, v in batch.inputs.items()}
    theirs, model, chunk = policy.policy, policy.policy.model, inputs.pop("noise")
    masks: Any
    images: Any
    text = inputs[TOKENS], inputs[TOKENS_MASK]
    more: dict[str, Any] = {}
    if policy.family == "smolvla":
        inputs = theirs._prepare_batch(inputs)
        images, core, masks = (
            theirs.prepare_images(inputs),
            model.vlm_with_expert,
            lambda seen: seen,
        )
        prefix = model.embed_prefix(*images, *text, state=theirs.prepare_state(inputs))
    else:
        images, core = theirs._preprocess_images(inputs), model.paligemma_with_expert
        masks, prefix = prepare_attention_masks_4d, model.embed_prefix(*images, *text)
        more = {"state": theirs.prepare_state(inputs)} if policy.family == "pi0" else {}
    embedded, valid, blocks = prefix
    _, cache = core.forward(
        attention_mask=masks(make_att_2d_masks(valid, blocks)), position_ids=valid.cumsum(1) - 1,
        past_key_values=None, inputs_embeds=[embedded, None], use_cache=True,
    )  # fmt: skip
    chunks = []
    for step in range(STEPS):
        velocity = model.denoise_step(
            x_t=chunk, prefix_pad_masks=valid, past_key_values=cache, **more,
            timestep=torch.full((len(chunk),), 1 + step * (-1 / STEPS)),
        )  # fmt: skip
        chunk = chunk + (-1 / STEPS) * velocity
        chunks.append(chunk)
    return chunks


class LeRobotContract(BlockingContract):
    """Every family: the reference is LeRobot's own call on what its preprocessor made."""

    save: Callable[[Path], Path]
    sights = (observe(1, WORDS[0]), observe(2, WORDS[1]))

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Case:
        policy = load(cls.save(tmp_path_factory.mktemp("lerobot") / "checkpoint"))

        def reference(batch: Batch) -> Any:
            inputs = {k: v.clone() for k, v in batch.inputs.items() if k != "noise"}
            noise = {"noise": batch.inputs["noise"]} if policy.noisy else {}
            with policy.eager():  # Pi0 would leave its modules eager
                return as_array(policy.policy.predict_action_chunk(inputs, **noise))

        def unpadded(batch: Batch) -> list[Any]:
            with policy.eager():
                return [chunk[..., :ACTION_DOF] for chunk in euler(policy, batch)]

        return Case(
            policy, cls.sights, module=policy.policy, reference=reference, euler=unpadded,
            seeded=policy.noisy,
            dataset=lambda: DroidDataset(recordings, limit=1),
        )  # fmt: skip


class TestPi0(LeRobotContract):
    save = staticmethod(lambda directory: save_pi(directory, "pi0"))


class TestPi05(LeRobotContract):
    save = staticmethod(lambda directory: save_pi(directory, "pi05"))


class TestPi05Bfloat16(LeRobotContract):
    save = staticmethod(lambda directory: save_pi(directory, "pi05", dtype="bfloat16"))


class TestPi0Fast(LeRobotContract):
    """Cut off before its action ends, so that every step arrives; the second sight is none that it knows."""

    save = staticmethod(lambda directory: taught_fast(directory, max_decoding_steps=8))
    sights = (lessons()[0][0], observe(11, LESSON[1]))


class TestPi0FastWithoutCache(LeRobotContract):
    """Every step computes all tokens before it again."""

    save = staticmethod(
        lambda directory: taught_fast(directory, max_decoding_steps=8, use_kv_cache=False)
    )
    sights = TestPi0Fast.sights


@pytest.mark.parametrize("cached", [True, False])
class TestFast:
    def test_weights_are_those_of_one_pass_over_the_whole_sequence(
        self, tmp_path: Path, cached: bool
    ) -> None:
        """LeRobot's training pass over prompt and what was written, in which a row is a step."""
        policy = load(taught_fast(tmp_path / "c", use_kv_cache=cached))
        batch = policy.prepare([lessons()[1][0]])
        captured = run_captured(policy, batch)
        (wrote,) = captured.session.generated
        ids = torch.tensor([[t.id for t in wrote.tokens]])
        model, inputs, bos = policy.policy.model, batch.inputs, policy.tokenizer.bos_token_id
        text = torch.cat([inputs[TOKENS], torch.tensor([[bos]])], 1)
        valid = torch.cat([inputs[TOKENS_MASK].bool(), torch.tensor([[True]])], 1)
        seen: list[Any] = []
        hooks = [
            w.module.register_forward_hook(lambda m, a, out: seen.append(out[1]))
            for w in policy.watched()
        ]
        with policy.eager(), torch.no_grad():
            embedded, pads, blocks, *_ = model.embed_prefix_fast(
                *policy.policy._preprocess_images(inputs), text, valid,
                ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool),
            )  # fmt: skip
            model.paligemma_with_expert.forward(
                attention_mask=torch.where(blocks[:, None], 0.0, -1e30),
                position_ids=pads.cumsum(1) - 1, inputs_embeds=[embedded, None], use_cache=False,
            )  # fmt: skip
        for hook in hooks:
            hook.remove()
        prompt = embedded.shape[1] - ids.shape[1] + 1
        assert len(captured.records) == 3 * (1 + ids.shape[1])
        rows = [
            i
            for s in batch.samples[0].layouts["prefix"].query.model_slices
            for i in range(s.start, s.stop)
        ]
        for phase, layer, step, weights, _ in captured.records:
            whole = as_array(seen[layer])
            if phase == "prefix":
                np.testing.assert_allclose(
                    weights[:, :, rows], whole[:, :, rows, :prompt], atol=2e-6
                )
                continue
            assert step is not None
            own = whole[:, :, prompt - 1 + step, : prompt + step][:, :, None]
            np.testing.assert_allclose(weights, own, atol=2e-6)

    def test_tokens_stand_for_the_spectrum_of_the_chunk(self, tmp_path: Path, cached: bool) -> None:
        policy = load(taught_fast(tmp_path / "c", use_kv_cache=cached))
        sights, taught = zip(*lessons(), strict=True)
        captured = run_captured(policy, policy.prepare(sights))
        np.testing.assert_allclose(captured.actions, np.stack(taught), atol=0.08)
        ended = [len(wrote.tokens) for wrote in captured.session.generated]
        assert len(set(ended)) > 1, "lessons of one length cannot tell whose action has ended"
        order, along = np.mgrid[:CHUNK, :CHUNK]
        waves = np.cos(np.pi * order * (along + 0.5) / CHUNK) * np.sqrt(2 / CHUNK)
        waves[0] /= np.sqrt(2)
        for wrote, chunk in zip(captured.session.generated, captured.actions, strict=True):
            assert [t.text for t in wrote.tokens[:2]] == ["Action", ":"]
            assert wrote.tokens[-1].text == "|"
            assert [c is None for c in wrote.coefficients] == [
                t.text in ("Action", ":", " ", "|") for t in wrote.tokens
            ]
            spectrum = np.zeros(CHUNK * ACTION_DOF)
            for own in wrote.coefficients:
                if own is not None:
                    spectrum[own.first : own.first + len(own.values)] = own.values
            made = waves.T @ spectrum.reshape(CHUNK, ACTION_DOF)
            np.testing.assert_allclose(chunk, made, atol=1e-6)
        assert len(captured.records) == 3 * (1 + max(ended))
        part: dict[int, list[Any]] = {}

        def keep(record: Record) -> None:
            if record.step is not None and record.layer == 0:
                part[record.step] = list(record.samples or ())

        with capture(policy, keep):
            policy.act(captured.batch)
        assert part == {n: [i for i, e in enumerate(ended) if n < e] for n in range(max(ended))}


def test_flow_and_fast_on_one_backbone_are_compared_by_one_command(
    tmp_path: Path, recordings: Path
) -> None:
    """Pi0 gets the language model and the encoder of the taught Pi0-FAST."""
    fast = taught_fast(tmp_path / "fast")
    flow = save_pi(tmp_path / "flow", "pi0")
    weights = load_file(flow / "model.safetensors")
    shared = {k: v for k, v in load_file(fast / "model.safetensors").items() if k in weights}
    assert sum("paligemma.model" in name for name in shared) > 30
    save_file(weights | shared, flow / "model.safetensors")
    store = tmp_path / "runs.attn"
    with small():
        for checkpoint in (flow, fast):
            done = run("ingest", "droid", store, recordings, "--checkpoint", checkpoint, "--limit", "1",
                       "--stride", "8", "--policy-option", "trust_remote_code=true")  # fmt: skip
            assert done.returncode == 0, done.stderr
    opened = open_for_reading(store)
    runs = [row[0] for row in opened.sql("select run from runs order by policy").fetchall()]
    shown = run("compare", "runs", store, *runs, "--out", tmp_path / "diff.png")
    assert shown.returncode == 0, shown.stderr
    assert "hand_camera" in shown.stdout
    assert (tmp_path / "diff.png").stat().st_size > 1000
    rows = opened.sql(
        "select text, action_coefficients, action_coefficient from tokens "
        "where axis = 'step' and keyframe = 0 order by index"
    ).fetchall()
    assert [r[0] for r in rows[:3]] == ["Action", ":", " "]
    numbers = [(text, values) for text, values, _ in rows if values is not None]
    assert [text.split() for text, _ in numbers] == [
        [f"{round(10 * v)}" for v in values] for _, values in numbers
    ]
    first = [place for *_, place in rows if place is not None]
    lengths = [len(values) for _, values in numbers]
    assert first == np.cumsum([0, *lengths[:-1]]).tolist()


def test_a_fast_policy_that_writes_no_action_is_a_failure_of_the_episode(tmp_path: Path) -> None:
    policy = load(save_fast(tmp_path / "c", rounds=0))
    with pytest.raises(HealthError, match="wrote no action: LeRobot wants 'Action:'"):
        run_captured(policy, policy.prepare([observe(1)]))


def test_a_fast_policy_that_draws_its_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"draws its tokens at random \(temperature 0.5\)"):
        load(taught_fast(tmp_path / "c", temperature=0.5))


class TestAct(LeRobotContract):
    save = staticmethod(save_act)


class TestSmolVla(LeRobotContract):
    save = staticmethod(save_smolvla)

    def test_actions_are_causal_and_every_second_layer_sees_the_prefix_alone(
        self, captured: Captured
    ) -> None:
        blocks = [w[..., -CHUNK:] for phase, _, _, w, _ in captured.records if phase == "suffix"]
        assert not any(np.triu(block, 1).any() for block in blocks)
        assert [block.any() for block in blocks] == [True, False, True, False] * STEPS


class TestSmolVlaMarked(LeRobotContract):
    """With marks around images, text padded to its maximum, and the prefix padded."""

    save = staticmethod(
        lambda directory: save_smolvla(
            directory,
            add_image_special_tokens=True,
            pad_language_to="max_length",
            prefix_length=160,
        )
    )


class TestSmolVlaSelfAttention(LeRobotContract):
    save = staticmethod(lambda directory: save_smolvla(directory, attention_mode="self_attn"))


def test_chunks_of_aloha_are_in_its_joints_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot turns what SmolVLA ends with; the chunks before are turned alike."""
    monkeypatch.setattr(lerobot_fixture_real, "STATE_DOF", 14)
    monkeypatch.setattr(lerobot_fixture_real, "ACTION_DOF", 14)
    policy = load(save_smolvla(tmp_path / "c", adapt_to_pi_aloha=True))
    state = np.linspace(0.01, 0.2, 14, dtype=np.float32)
    captured = run_captured(policy, policy.prepare([replace(observe(1), state=state)]))
    wanted = [
        as_array(chunk)[..., :14].astype(np.float64) for chunk in euler(policy, captured.batch)
    ]
    for chunk in wanted:
        chunk[..., [1, 2, 8, 9]] *= -1
        angle = chunk[..., [6, 13]] * (1.5 - 0.4) + 0.4
        chunk[..., [6, 13]] = (angle + 0.6213) / (1.4910 + 0.6213)
    found = [*(as_array(n) for n in captured.session.noisy_actions[1:]), captured.actions]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_actions_are_before_the_postprocessor(tmp_path: Path, kind: str) -> None:
    """Normalised: Pi0's by mean and deviation, Pi0.5's by quantiles; all statistics are alike."""
    from lerobot.policies.factory import make_pre_post_processors

    policy = load(save_pi(tmp_path / "c", kind))
    _, after = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path / "c"))
    actions = as_array(policy.act(policy.prepare([observe(1)])))
    by_hand = actions * 1.3 + 0.1 if kind == "pi0" else (actions + 1) / 2 * 5 - 2.5
    np.testing.assert_allclose(after(torch.tensor(actions)), by_hand, rtol=1e-4, atol=1e-5)


class TestLoading:
    def test_weights_that_lerobot_drops_with_a_warning_are_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        directory = save_pi(tmp_path / "c", "pi05")
        file = directory / "model.safetensors"
        weights = load_file(file)
        weights.pop(next(name for name in weights if "q_proj" in name))
        save_file(weights, file)
        capsys.readouterr()
        with pytest.raises(PolicyError, match="weights cannot be loaded"):
            load(directory)
        assert capsys.readouterr().out == ""

    def test_statistics_and_steps_may_be_given(self, tmp_path: Path) -> None:
        directory = save_act(tmp_path / "c")
        stats = tmp_path / "stats.json"
        stats.write_text('{"observation.state": {"mean": [0, 0], "std": [1, 1]}}')
        with pytest.raises(ObservationError, match="mean of observation.state has 2"):
            load(directory, stats=str(stats)).prepare([observe(1)])
        with pytest.raises(PolicyError, match="has no steps to set"):
            load(directory, steps="2")
        pi0 = save_pi(tmp_path / "pi0", "pi0")
        assert load(pi0, steps="2").phases["suffix"].steps == 2
        assert load(pi0).digest != load(pi0, steps="2").digest


class TestDatasets:
    def test_both_readers_see_the_same(self, tmp_path: Path) -> None:
        root = write_v30(tmp_path / "toy")
        rows = [("episode_000001", 3, 0.5), ("episode_000002", 0, 0.25)]
        export_copy(str(root), tmp_path / "copy", ("episode", "frame", "mass"), rows)
        for folder in (root, tmp_path / "copy"):
            theirs = Theirs("lab/toy", root=folder, video_backend="pyav")
            ours = LeRobotDataset(folder)
            for index in (0, 5, 16, 17, 20, 26, 37):
                item = theirs[index]
                name = f"episode_{int(item['episode_index']):06d}"
                frame = next(iter(ours.frames(name, [int(item["frame_index"])])))
                for camera, column in zip(frame.cameras, (TOP, WRIST), strict=True):
                    image = (item[column].permute(1, 2, 0).numpy() * 255).round()
                    np.testing.assert_array_equal(camera.rgb, image.astype(np.uint8))
                np.testing.assert_allclose(frame.state, item["observation.state"])
                assert item["task"] == ours.info(name).instruction
        assert theirs.meta.features["attention.mass"]["shape"] == (1,)
        assert float(theirs[20]["attention.mass"]) == 0.5
        assert np.isnan(float(theirs[21]["attention.mass"]))
        assert set(theirs.meta.stats) == {"observation.state", "action", "timestamp"}

    def test_a_dataset_that_lerobot_wrote(self, tmp_path: Path) -> None:
        content = Content(images=True)
        features = {
            key: {**feature, "shape": tuple(feature["shape"])}
            for key, feature in content.features.items()
            if key in ("observation.state", "action", TOP, WRIST, "next.success")
        }
        made = Theirs.create("lab/made", fps=FPS, root=tmp_path / "made", features=features)
        for episode, length in enumerate(content.lengths):
            for f in range(length):
                row = {
                    "observation.state": np.array(content.state(episode, f), np.float32),
                    "action": np.array(content.action(episode, f), np.float32),
                    TOP: content.picture(episode, TOP, f),
                    WRIST: content.picture(episode, WRIST, f),
                    "next.success": np.array([episode in content.successes and f == length - 1]),
                    "task": TASKS[content.task(episode)],
                }
                made.add_frame(row)
            made.save_episode()
        made.finalize()
        ours = LeRobotDataset(tmp_path / "made", outcome_column="next.success")
        for episode, name in enumerate(ours.episode_names()):
            info = ours.info(name)
            assert info.instruction == TASKS[content.task(episode)]
            assert info.outcome == ("success" if episode in content.successes else "failure")
            for frame in ours.frames(name, [0, 3, 8]):
                for camera, column in zip(frame.cameras, (TOP, WRIST), strict=True):
                    wanted = content.picture(episode, column, frame.index).astype(int)
                    # its AV1 loses more than the next frame's difference of 10 leaves room for twice
                    loss = np.abs(camera.rgb - wanted).max()
                    assert loss <= (9 if column == TOP else 0)
        export_copy(
            str(tmp_path / "made"), tmp_path / "more", ("episode", "frame", "mass"), [(0, 0, 0.5)]
        )
        theirs = Theirs("lab/more", root=tmp_path / "more", video_backend="pyav")
        assert float(theirs[0]["attention.mass"]) == 0.5
