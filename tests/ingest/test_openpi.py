"""The openpi adapter over a small Pi0.5 and Pi0: contract, layout, geometry, loading, bad input."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from cli_fixtures import run
from droid_sample import sample_path
from hypothesis import given
from hypothesis import strategies as st
from ingest_fixtures import observe, picture
from openpi_architecture import IMAGE_KEYS, euler
from openpi_fixture import (
    CONFIGS,
    STATS,
    ModelObservation,
    Normalize,
    ResizeImages,
    StandInPolicy,
    build_model,
    save_checkpoint,
    sentencepiece,
    stand_ins,
)
from policy_contract import (
    Case,
    as_array,
    plain_eager,
    run_captured,
    sample_episode,
)

import attnstore
from attnstore.cli import main
from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import Batch, ObservationError, PolicyError, Watch
from attnstore.ingest.policies.openpi.policy import OpenpiPolicy
from attnstore.ingest.policies.prompt import pi05_spans, token_text
from attnstore.ingest.policies.registry import load_policy, policy_names
from attnstore.store.errors import AttnstoreError, MissingExtraError, NotFoundError, UsageError
from attnstore.store.format.naming import find_tokens
from attnstore.store.format.tokens import Axis, Token

SIGHTS = (observe(1, "wipe", size=(72, 128)), observe(2, "pick up the green cube", size=(72, 128)))


@pytest.fixture(scope="module")
def openpi() -> Iterator[None]:
    with stand_ins():
        yield


@pytest.fixture(scope="module")
def checkpoint(openpi: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pi05_droid; not to be changed."""
    return save_checkpoint(tmp_path_factory.mktemp("openpi") / "pi05", "pi05_droid")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenpiPolicy:
    """It, loaded once as the command line does."""
    loaded = load_policy("openpi:pi05_droid", str(checkpoint))
    assert isinstance(loaded, OpenpiPolicy)
    return loaded


def in_memory(name: str) -> StandInPolicy:
    """A policy of random float32 weights, as a user may have one in a notebook."""
    config = CONFIGS[name]
    data = config.data.create(config.assets_dirs, config.model)
    stats = {"state": SimpleNamespace(**STATS)}
    normalize = Normalize(stats, data.use_quantile_norm)
    transforms = (*data.data_transforms.inputs, normalize, *data.model_transforms.inputs)
    policy = StandInPolicy(build_model(config.model), transforms)
    policy._sample_kwargs = {"num_steps": 3}
    return policy


def observed(batch: Batch) -> Any:
    """What the model is given of a batch."""
    inputs = {**batch.inputs, "image": dict(batch.inputs["image"])}
    del inputs["noise"]
    return ModelObservation.from_dict(inputs)


class TestPi05(BlockingContract):
    """A checkpoint directory, bfloat16."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policy: OpenpiPolicy) -> Case:
        def euler_of(batch: Batch) -> Any:
            with policy.eager():
                return euler(policy.model, observed(batch), batch.inputs["noise"], 10)

        return Case(policy, SIGHTS, policy.model, euler=euler_of)


class TestPi0(BlockingContract):
    """A policy object in memory, float32, against a model of its own without the adapter."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, openpi: None) -> Case:
        theirs = in_memory("pi0_droid")
        ours = OpenpiPolicy.from_policy(theirs)
        other = build_model(CONFIGS["pi0_droid"].model)

        def reference(batch: Batch) -> Any:
            noise = batch.inputs["noise"]
            return other.sample_actions("cpu", observed(batch), noise=noise, num_steps=3)

        def euler_of(batch: Batch) -> Any:
            return euler(other, observed(batch), batch.inputs["noise"], 3)

        return Case(ours, SIGHTS, theirs._model, reference, euler_of)


def spans(axis: Axis) -> list[tuple[str, str, int, int, int]]:
    return [(s.name, s.role or s.kind, s.start, s.stop, s.model_start) for s in axis]


class TestLayout:
    def test_pi05_by_hand(self, policy: OpenpiPolicy) -> None:
        """Quantiles are -2..2 for joints and 0..1 for the gripper: 256 bins of 1/64 and 1/256."""
        state = np.array([0.01, 1.99, -2, 1.01, -0.99, 0.51, -3, 0.252], np.float32)
        sight = replace(observe(1, "wipe_the\nbowl ", size=(72, 128)), state=state)
        batch = policy.prepare([sight])
        layout = batch.samples[0].layouts
        values = ["128", "255", "0", "192", "64", "160", "-1", "64"]
        text = f"Task: wipe the bowl, State: {' '.join(values)};\nAction: "
        count = int(batch.inputs["tokenized_prompt_mask"].sum())
        found = layout["prefix"].key
        assert "".join(t.text for s in found for t in s.tokens) == "<s>" + text
        strings = {s.name: "".join(t.text for t in s.tokens) for s in found if s.tokens}
        assert strings == {
            "bos": "<s>", "task_label": "Task:", "task": " wipe the bowl", "state_label": ", State:",
            **{f"state[{i}]": f" {value}" for i, value in enumerate(values)},
            "action_label": ";\nAction: ",
        }  # fmt: skip
        assert spans(found)[:3] == [
            ("image:varied_camera_1", "image", 0, 256, 0),
            ("image:hand_camera", "image", 256, 512, 256),
            ("bos", "template", 512, 513, 768),
        ]
        assert [s.role for s in found if s.name.startswith("state[")] == ["state"] * 8
        assert {s.mass_name for s in found if s.kind == "text"} == {
            "task", "state", "template",
        }  # fmt: skip
        digits = [s for s in found if s.name.startswith("state[")]
        assert find_tokens(found, "state").tolist() == list(range(digits[0].start, digits[-1].stop))
        assert not len(find_tokens(found, "word:state")), "the label is no word of the instruction"
        assert len(find_tokens(found, "template:word:state")) == 1
        assert len(found) == 512 + count
        assert all(s.model_start == 768 + s.start - 512 for s in found if s.kind == "text")
        assert spans(layout["suffix"].query) == [("action", "action", 0, 15, 0)]
        assert spans(layout["suffix"].key) == [
            *spans(found), ("action", "action", 512 + count, 527 + count, 968),
        ]  # fmt: skip

    def test_pi0_by_hand(self, openpi: None) -> None:
        ours = OpenpiPolicy.from_policy(in_memory("pi0_droid"))
        layout = ours.prepare([observe(1, "wipe", size=(72, 128))]).samples[0].layouts
        word = len(sentencepiece().encode("wipe"))
        end = 513 + word
        assert spans(layout["prefix"].key)[2:] == [
            ("bos", "template", 512, 513, 768),
            ("task", "task", 513, end, 769),
            ("newline", "template", end, end + 1, 769 + word),
        ]
        assert spans(layout["suffix"].query) == [
            ("state", "state", 0, 1, 0), ("action", "action", 1, 11, 1),
        ]  # fmt: skip
        assert spans(layout["suffix"].key)[-2:] == [
            ("state", "state", end + 1, end + 2, 768 + 48),
            ("action", "action", end + 2, end + 12, 768 + 49),
        ]

    def test_phases(self, policy: OpenpiPolicy) -> None:
        shapes = {n: (p.layers, p.heads, p.steps) for n, p in policy.phases.items()}
        assert shapes == {"prefix": (2, 8, None), "suffix": (2, 8, 10)}
        batch = policy.prepare(SIGHTS)
        captured = run_captured(policy, batch)
        assert {(p, w.shape) for p, _, _, w, _ in captured.records} == {
            ("prefix", (2, 8, 968, 968)), ("suffix", (2, 8, 15, 983)),
        }  # fmt: skip
        # Input by input, so the third one's two black images come last.
        assert captured.session.encoded_images == len(batch.encoded) == 6
        cameras = ("varied_camera_1", "hand_camera")
        assert batch.encoded == (*((row, c) for c in cameras for row in (0, 1)), None, None)
        noisy = [as_array(n) for n in captured.session.noisy_actions]
        assert len(noisy) == 10
        np.testing.assert_array_equal(noisy[0], as_array(batch.inputs["noise"]))

    def test_the_time_of_denoising_reaches_the_attention(self, policy: OpenpiPolicy) -> None:
        """Pi0.5 gives it to the norms only: with the same noisy actions, weights still differ."""
        model, seen = policy.model, []
        hook = model.action_in_proj.register_forward_hook(lambda m, a, o: torch.ones_like(o))
        captured = run_captured(policy, policy.prepare(SIGHTS[:1]))
        hook.remove()
        seen = [w for p, layer, _, w, _ in captured.records if (p, layer) == ("suffix", 1)]
        assert (seen[0] != seen[9]).any()


HAND = (
    ("bos", "template", ["<bos>"]),
    ("task_label", "template", ["Task", ":"]),
    ("task", "task", [" wipe", " it", ", State", ": 3"]),
    ("state_label", "template", [",", " State", ":"]),
    ("state[0]", "state", [" ", "1", "2"]),
    ("state[1]", "state", [" -", "1"]),
    ("state[2]", "state", [" 255"]),
    ("action_label", "template", [";", "\n", "Action", ":", " "]),
)


class TestPrompt:
    def test_by_hand(self) -> None:
        """The instruction itself may read like the end of a prompt."""
        tokens = [Token(7, text) for _, _, texts in HAND for text in texts]
        found = pi05_spans(tokens, bos=True, start=40, model_start=100)
        assert found is not None
        assert [(s.name, s.role, [t.text for t in s.tokens]) for s in found] == list(HAND)
        assert [s.start for s in found] == [40, 41, 43, 47, 50, 53, 55, 56]
        assert [s.model_start - s.start for s in found] == [60] * 8
        assert found[-1].stop == 40 + len(tokens)

    @pytest.mark.parametrize(
        "text",
        ["", "wipe\n", "Task: wipe, State: ;\nAction: ", "Task: wipe, State: 1 2", "State: 1;\nAction: "],
    )  # fmt: skip
    def test_other_text_is_not_taken_for_a_prompt(self, text: str) -> None:
        tokens = [Token(1, c) for c in text]
        assert pi05_spans(tokens, bos=False, start=0, model_start=0) is None

    def test_a_token_over_two_values(self) -> None:
        tokens = [Token(1, t) for t in ("Task:", " a", ", State:", " 1 2", ";\nAction: ")]
        assert pi05_spans(tokens, bos=False, start=0, model_start=0) is None

    @given(
        task=st.text(st.characters(codec="utf-8", exclude_characters="\n_"), max_size=30),
        values=st.lists(st.integers(-1, 255), min_size=1, max_size=9),
    )
    def test_values_and_task_are_found_in_any_prompt(self, task: str, values: list[int]) -> None:
        """Also where SentencePiece writes a character as its bytes."""
        text = f"Task: {task.strip()}, State: {' '.join(map(str, values))};\nAction: "
        model = sentencepiece()
        pieces = SimpleNamespace(convert_ids_to_tokens=model.id_to_piece)
        ids = model.encode(text, add_bos=True)
        tokens = [Token(i, token_text(pieces, i)) for i in ids]
        found = pi05_spans(tokens, bos=True, start=0, model_start=0)
        assert found is not None
        assert [t for s in found for t in s.tokens] == tokens
        strings = {s.name: model.decode([t.id for t in s.tokens]) for s in found}
        numbers = [int(strings[f"state[{i}]"]) for i in range(len(values))]
        assert numbers == values
        assert strings.get("task", "").strip() == model.decode(model.encode(task.strip())).strip()


class TestGeometry:
    def test_golden(self, policy: OpenpiPolicy) -> None:
        """1280x720 becomes 224x126, 49 rows of padding above and below; 96 patches are half or more."""
        geometry = policy.prepare([observe(1, size=(720, 1280))]).samples[0].geometry
        assert list(geometry) == ["varied_camera_1", "hand_camera"]
        for own in geometry.values():
            assert (own.source, own.input, own.resized) == ((720, 1280), (224, 224), (126, 224))
            assert (own.offset, own.grid, own.patch) == ((49, 0), (16, 16), (14.0, 14.0))
            rows = own.coverage()[:, 0].tolist()
            assert rows == [0.0] * 3 + [0.5] + [1.0] * 8 + [0.5] + [0.0] * 3
            assert (own.coverage() == own.coverage()[:, :1]).all()
            y, x = own.grid_to_source(np.array(8.0), np.array(8.0))
            assert (float(y), float(x)) == (360.0, 640.0)

    @pytest.mark.parametrize("size", [(360, 640), (480, 640), (224, 224), (90, 48), (50, 50)])
    def test_it_is_what_the_transforms_do(
        self, policy: OpenpiPolicy, size: tuple[int, int]
    ) -> None:
        images = {c: np.full((*size, 3), 255, np.uint8) for c in ("hand_camera", "varied_camera_1")}
        batch = policy.prepare([replace(observe(1), images=images)])
        for key, camera in zip(IMAGE_KEYS, ("varied_camera_1", "hand_camera"), strict=False):
            shown = batch.inputs["image"][key][0].numpy().min(-1) == 255
            by_patch = shown.reshape(16, 14, 16, 14).mean((1, 3))
            np.testing.assert_allclose(batch.samples[0].geometry[camera].coverage(), by_patch)

    def test_each_camera_goes_to_its_own_input(self, policy: OpenpiPolicy) -> None:
        shade = {"hand_camera": 200, "varied_camera_1": 40}
        images = {c: np.full((72, 128, 3), v, np.uint8) for c, v in shade.items()}
        for cameras in (images, dict(reversed(images.items()))):
            inputs = policy.prepare([replace(observe(1), images=cameras)]).inputs
            assert [int(inputs["image"][k].max()) for k in IMAGE_KEYS] == [40, 200, 0]
            assert [bool(inputs["image_mask"][k]) for k in IMAGE_KEYS] == [True, True, False]

    @pytest.mark.parametrize(
        "change",
        [
            lambda image: image[:, ::-1], lambda image: image[::-1],
            lambda image: np.roll(image, 14, 0),
            lambda image: np.asarray(image[49:175].repeat(2, 0)[:224]),
        ],
        ids=["mirrored", "upside down", "shifted", "cropped"],
    )  # fmt: skip
    def test_anything_but_a_letterbox_is_refused(
        self, openpi: None, change: Callable[[Any], Any]
    ) -> None:
        @dataclass(frozen=True)
        class Changed(ResizeImages):
            def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
                data = super().__call__(data)
                return {**data, "image": {k: change(v) for k, v in data["image"].items()}}

        theirs = in_memory("pi05_droid")
        transforms = [
            Changed(224, 224) if isinstance(t, ResizeImages) else t
            for t in theirs._input_transform.transforms
        ]
        ours = OpenpiPolicy.from_model(theirs._model, transforms)
        with pytest.raises(PolicyError, match="base_0_rgb: openpi does not just letterbox"):
            ours.prepare(SIGHTS[:1])


class TestCameras:
    def options(self, checkpoint: Path, **options: str) -> OpenpiPolicy:
        loaded = load_policy("openpi:pi05_droid", str(checkpoint), options=options)
        assert isinstance(loaded, OpenpiPolicy)
        return loaded

    def cameras(self, policy: OpenpiPolicy, *names: str) -> list[str]:
        return list(policy.prepare([observe(1, cameras=names)]).samples[0].geometry)

    def test_by_name_or_by_option(self, checkpoint: Path, policy: OpenpiPolicy) -> None:
        assert self.cameras(policy, "side", "wrist_left") == ["side", "wrist_left"]
        assert self.cameras(policy, "hand_camera", "varied_camera_2")[0] == "varied_camera_2"
        assert self.cameras(self.options(checkpoint, wrist="a"), "a", "b") == ["b", "a"]
        assert self.cameras(self.options(checkpoint, base="a"), "a", "b") == ["a", "b"]
        swapped = self.options(checkpoint, base="hand_camera", wrist="varied_camera_1")
        assert self.cameras(swapped, "hand_camera", "varied_camera_1")[0] == "hand_camera"

    @pytest.mark.parametrize(
        ("options", "names", "message"),
        [
            ({}, ("a", "b"), "which of a, b is the wrist camera.*--policy-option wrist=NAME"),
            ({}, ("hand", "wrist"), "which of hand, wrist is the wrist camera"),
            ({}, ("hand_camera",), "sees 2 cameras.*gives 1: hand_camera"),
            ({}, ("hand_camera", "b", "c"), "gives 3: hand_camera, b, c"),
            ({"base": "x"}, ("a", "b"), "option base=x: no such camera; the dataset gives a, b"),
            ({"base": "a", "wrist": "a"}, ("a", "b"), "two cameras; got a for both"),
        ],
    )
    def test_what_is_not_clear_is_asked_for(
        self, checkpoint: Path, options: dict[str, str], names: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            self.cameras(self.options(checkpoint, **options), *names)


def test_a_compiled_model(openpi: None) -> None:
    """``torch.compile`` as openpi applies it: to ``sample_actions``, at construction."""
    theirs = in_memory("pi05_droid")
    ours = OpenpiPolicy.from_policy(theirs)
    batch = ours.prepare(SIGHTS[:1])
    eager = as_array(plain_eager(ours, batch))
    theirs._model.sample_actions = torch.compile(theirs._model.sample_actions, backend="eager")
    torch._dynamo.utils.counters.clear()
    captured = run_captured(OpenpiPolicy.from_policy(theirs), batch)
    np.testing.assert_array_equal(captured.actions, eager)
    assert len(captured.records) == 2 + 2 * 3
    assert not torch._dynamo.utils.counters["frames"]


class TestLoading:
    def test_weights_wait_for_their_first_use(self, checkpoint: Path) -> None:
        ours = load_policy("openpi:pi05_droid", str(checkpoint))
        ours.prepare(SIGHTS[:1])
        assert ours.phases
        assert ours.digest
        assert (ours.dtype, ours.horizon, ours.action_dof) == ("bfloat16", 15, 32)
        assert (ours.name, ours.checkpoint) == ("openpi", "pi05")
        assert "model" not in vars(ours)
        assert "openpi" in policy_names()

    def test_data_types(self, checkpoint: Path, policy: OpenpiPolicy) -> None:
        loaded = load_policy("openpi:pi05_droid", str(checkpoint), dtype="float32")
        assert isinstance(loaded, OpenpiPolicy)
        assert loaded.dtype == "float32"
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
        theirs: Any = policy.watched()[0].module.q_proj
        ours: Any = loaded.watched()[0].module.q_proj
        assert theirs.weight.dtype == torch.bfloat16
        assert torch.equal(ours.weight, theirs.weight.float())
        with pytest.raises(UsageError, match="one of bfloat16, float32; got 'float16'"):
            load_policy("openpi:pi05_droid", str(checkpoint), dtype="float16")

    def test_steps(self, checkpoint: Path) -> None:
        ours = load_policy("openpi:pi05_droid", str(checkpoint), options={"steps": "2"})
        captured = run_captured(ours, ours.prepare(SIGHTS[:1]))
        assert captured.session.counts == {"prefix": 2, "suffix": 4}
        for bad in ("0", "x", "-1"):
            with pytest.raises(UsageError, match="whole number of denoising steps, at least 1"):
                load_policy("openpi:pi05_droid", str(checkpoint), options={"steps": bad})
        with pytest.raises(UsageError, match="has the options base, .*, steps; got 'stats'"):
            load_policy("openpi:pi05_droid", str(checkpoint), options={"stats": "x"})

    def test_the_digest_is_of_weights_and_norm_stats(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "another"
        shutil.copytree(checkpoint, copy)
        (copy / "optimizer.pt").write_bytes(b"not what acts")
        digest = load_policy("openpi:pi05_droid", str(checkpoint)).digest
        assert load_policy("openpi:pi05_droid", str(copy)).digest == digest
        stats = copy / "assets" / "droid" / "norm_stats.json"
        stats.write_text(stats.read_text().replace("2.0", "2.5"))
        assert load_policy("openpi:pi05_droid", str(copy)).digest != digest

    def test_the_digest_says_which_camera_goes_where(self, checkpoint: Path) -> None:
        """Otherwise a run with cameras swapped would be taken for the same run, and skipped."""
        swap = {"base": "hand_camera", "wrist": "varied_camera_1"}
        digests = {
            load_policy("openpi:pi05_droid", str(checkpoint), options=options).digest
            for options in ({}, {"steps": "10"}, swap, {"base": "varied_camera_1"})
        }
        assert len(digests) == 3

    def test_the_digest_in_memory(self, openpi: None) -> None:
        one = OpenpiPolicy.from_policy(in_memory("pi0_droid"))
        theirs = in_memory("pi0_droid")
        assert OpenpiPolicy.from_policy(theirs).digest == one.digest
        with torch.no_grad():
            theirs._model.action_out_proj.weight[0, 0] += 1e-6
        assert OpenpiPolicy.from_policy(theirs).digest != one.digest
        assert (one.steps, one.checkpoint, one.device, one.dtype) == (
            3,
            "in memory",
            "cpu",
            "float32",
        )

    def test_the_command_line(self, checkpoint: Path, ram_path: Path) -> None:
        store = ram_path / "store"
        with pytest.raises(SystemExit) as done:
            main([
                "ingest", "droid", str(store), str(sample_path()), "--policy", "openpi:pi05_droid",
                "--checkpoint", str(checkpoint), "--limit", "1",
                "--stride", "16", "--policy-option", "steps=2",
            ])  # fmt: skip
        assert not done.value.code
        episode = attnstore.open(store).episode(sample_episode().episode_names()[0])
        weights = episode.attention(phase="suffix", query="action", key="state[3]", step=-1)
        assert weights.sizes["keyframe"] == 2
        assert (weights.max("key") > 0).all()


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _jax(directory: Path) -> None:
    _no_weights(directory)
    (directory / "params").mkdir()


def _no_assets(directory: Path) -> None:
    shutil.rmtree(directory / "assets")


def _other_assets(directory: Path) -> None:
    (directory / "assets" / "droid").rename(directory / "assets" / "trossen")


def _torn_stats(directory: Path) -> None:
    (directory / "assets" / "droid" / "norm_stats.json").write_text("{")


def _other_horizon(directory: Path) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_horizon": 10}))


BAD: Mapping[Callable[[Path], None], str] = {
    _no_weights: "no model.safetensors in it; a directory written by openpi's convert_jax",
    _jax: r"a JAX checkpoint .*uv run examples/convert_jax_model_to_pytorch\.py --checkpoint_dir "
    r"\S+/bad --config_name pi05_droid --output_path \S+/bad_pytorch && cp -r \S+/bad/assets",
    _no_assets: r"assets/droid/norm_stats\.json are missing, there are none; .*cp -r JAX_CHECKPOINT",
    _other_assets: "missing, there are those of trossen",
    _torn_stats: "its norm stats cannot be used .JSONDecodeError",
    _other_horizon: "its config.json has action_horizon 10, configuration pi05_droid has 15",
}


class TestErrors:
    @pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__.strip("_"))
    def test_a_bad_checkpoint(
        self, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]
    ) -> None:
        shutil.copytree(checkpoint, tmp_path / "bad")
        damage(tmp_path / "bad")
        with pytest.raises(PolicyError, match=BAD[damage]) as caught:
            load_policy("openpi:pi05_droid", str(tmp_path / "bad"))
        assert "\n" not in str(caught.value)

    def test_weights_of_another_model(self, checkpoint: Path, tmp_path: Path) -> None:
        """Both have 15 actions, but only Pi0.5 has the norms of time."""
        shutil.copytree(checkpoint, tmp_path / "bad")
        (tmp_path / "bad" / "config.json").unlink()
        ours = load_policy("openpi:pi0_droid", str(tmp_path / "bad"))
        with pytest.raises(PolicyError, match="openpi cannot load it as pi0_droid") as caught:
            ours.act(ours.prepare(SIGHTS[:1]))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "openpi",
                "needs the name of its configuration: --policy openpi:pi05_droid; there are",
            ),
            (
                "openpi:pi05_droit",
                "no configuration 'pi05_droit'; did you mean pi05_droid, pi0_droid",
            ),
            ("openpi:pi0_fast_droid", "runs Pi0 and Pi0.5; pi0_fast_droid is a SimpleNamespace"),
            ("openpi:debug_pi05", "configuration debug_pi05 has no asset id"),
        ],
    )
    def test_a_configuration_that_is_none(self, checkpoint: Path, name: str, message: str) -> None:
        with pytest.raises(AttnstoreError, match=message):
            load_policy(name, str(checkpoint))

    def test_a_tokenizer_that_cannot_be_fetched_is_one_line(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """gcsfs logs a traceback before it raises, and openpi's imports have set up logging."""
        fetching = [logging.getLogger(name) for name in ("gcsfs", "gcsfs.retry", "asyncio")]

        def tokenizer(length: int) -> None:
            try:
                raise OSError("Cannot connect to host storage.googleapis.com:443")
            except OSError as error:
                for logger in fetching:
                    logger.exception("out of retries on exception: %s", error)
                raise

        monkeypatch.setattr("openpi_fixture.PaligemmaTokenizer", tokenizer)
        monkeypatch.setattr(fetching[0], "level", logging.INFO)
        logged = logging.StreamHandler(io.StringIO())
        logging.getLogger().addHandler(logged)
        try:
            done = run(
                "ingest", "droid", tmp_path / "s", sample_path(), "--policy", "openpi:pi05_droid",
                "--checkpoint", checkpoint, "--dry-run",
            )  # fmt: skip
            assert logged.stream.getvalue() == ""
            logging.getLogger("gcsfs").error("as before")
        finally:
            logging.getLogger().removeHandler(logged)
        assert logged.stream.getvalue() == "as before\n"
        assert (done.returncode, done.stdout) == (1, "")
        (said,) = done.stderr.splitlines()
        assert said.startswith("attnstore: openpi cannot make the transforms of pi05_droid (OSErr")
        assert said.endswith("put paligemma_tokenizer.model into $OPENPI_DATA_HOME/big_vision/")
        assert [logger.level for logger in fetching] == [logging.INFO, 0, 0]

    def test_lora_adapters_that_the_conversion_dropped(self, openpi: None, tmp_path: Path) -> None:
        """What would be shown were the base model's maps. What train_pytorch.py wrote is whole."""
        from safetensors.torch import load_file, save_file

        directory = save_checkpoint(tmp_path / "converted", "pi0_low_mem")
        with pytest.raises(PolicyError, match="by LoRA .small_lora.*drops them.*Merge"):
            load_policy("openpi:pi0_low_mem", str(directory))
        with pytest.raises(PolicyError, match="paligemma_variant 'small_lora', conf.* pi0_droid"):
            load_policy("openpi:pi0_droid", str(directory))
        (directory / "metadata.pt").touch()
        load_policy("openpi:pi0_low_mem", str(directory))
        (directory / "metadata.pt").unlink()
        weights = load_file(directory / "model.safetensors")
        save_file({**weights, "q_proj.lora_A": torch.zeros(1)}, directory / "model.safetensors")
        load_policy("openpi:pi0_low_mem", str(directory))

    def test_no_such_directory(self, openpi: None) -> None:
        with pytest.raises(NotFoundError, match="no such checkpoint directory"):
            load_policy("openpi:pi05_droid", "/no/such/checkpoint")
        with pytest.raises(
            UsageError, match="gs://openpi-assets.* is a JAX checkpoint: download it"
        ):
            load_policy("openpi:pi05_droid", "gs://openpi-assets/checkpoints/pi05_droid")

    def test_openpi_is_not_installed(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "openpi"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "openpi", None)
        with pytest.raises(
            MissingExtraError, match="git clone https://.*uv sync.*attnstore"
        ) as caught:
            load_policy("openpi:pi05_droid", str(checkpoint))
        assert "\n" not in str(caught.value)

    def test_transformers_is_not_patched(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "transformers.models.siglip.check", None)
        with pytest.raises(PolicyError, match="transformers 4.53.2 with openpi's patches.*cp -r"):
            load_policy("openpi:pi05_droid", str(checkpoint))

    def test_a_policy_in_jax(self, openpi: None) -> None:
        theirs = in_memory("pi0_droid")
        theirs._is_pytorch_model = False
        with pytest.raises(PolicyError, match="runs in JAX"):
            OpenpiPolicy.from_policy(theirs)

    def test_a_state_that_does_not_fit(self, policy: OpenpiPolicy) -> None:
        with pytest.raises(ObservationError, match="7 components.* norm stats are of 8"):
            policy.prepare([replace(SIGHTS[0], state=np.zeros(7, np.float32))])

    def test_a_prompt_that_openpi_would_cut(self, policy: OpenpiPolicy) -> None:
        sight = replace(SIGHTS[0], instruction="wipe " * 200)
        with pytest.raises(ObservationError, match="more than the 200 tokens.*shorten the instr"):
            policy.prepare([sight])

    def test_what_a_transform_refuses(self, policy: OpenpiPolicy) -> None:
        deep = {**SIGHTS[0].images, "hand_camera": np.tile(picture(1), 2)}
        with pytest.raises(ObservationError, match="openpi's ResizeImages refuses it"):
            policy.prepare([replace(SIGHTS[0], images=deep)])


@pytest.mark.parametrize("name", ["pi05_droid", "pi0_droid"])
def test_what_happens_inside_is_shown_on_request(openpi: None, name: str) -> None:
    """Image encoders and hidden states: the same actions, and every layer of every image."""
    ours = OpenpiPolicy.from_policy(in_memory(name))
    batch = ours.prepare(SIGHTS)
    seen: list[tuple[str, int, int | None]] = []
    watch = Watch(vision=True, token_stats=True)
    with capture(
        ours, lambda r: None, watch=watch, hidden=lambda r: seen.append((r.phase, r.layer, r.step))
    ) as session:
        actions = as_array(ours.act(batch))
    ours.encoder().config._attn_implementation = "eager"  # as the capture had it
    np.testing.assert_array_equal(actions, as_array(plain_eager(ours, batch)))
    shape = ours.encoder_shape()
    assert (shape.layers, shape.heads, shape.grid, shape.leading) == (2, 4, (16, 16), ())
    # In phase vision images are counted, at each of 2 layers: three inputs of two samples.
    assert session.counts == {"prefix": 2, "suffix": 6, "vision": 12}
    layers: list[tuple[str, int, int | None]] = [("prefix", i, None) for i in (-1, 0, 1)]
    layers += [("suffix", i, step) for step in range(3) for i in (-1, 0, 1)]
    assert [s for s in seen if s[0] != "vision"] == layers
