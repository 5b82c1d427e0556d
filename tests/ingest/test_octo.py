"""The Octo adapter on a small flax model with Octo's module names; `octo_contract` on the real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import octo_fixture
import pytest
from blocking_contract import BlockingContract
from ingest_fixtures import observe, picture, write_droid
from numpy.typing import NDArray
from octo_fixture import HEADS, LAYERS, PATCHES, WORDS, OctoModel, build_octo, may_attend
from policy_contract import Case, as_array, run_captured, valid_weights

from attnstore.cli import main
from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import (
    LAST,
    Batch,
    Observation,
    ObservationError,
    PolicyError,
    Watch,
)
from attnstore.ingest.policies.convolution import Convolution, stem_geometry
from attnstore.ingest.policies.octo.inputs import random_keys, resize
from attnstore.ingest.policies.octo.policy import OctoPolicy
from attnstore.ingest.policies.registry import load_policy
from attnstore.query import open as open_for_reading
from attnstore.store.errors import AttnstoreError, HealthError, MissingExtraError, UsageError
from attnstore.store.format.tokens import Axis

SIDE, WRIST = "varied_camera_1", "hand_camera"
GREEN = "place the green cube into the pink bowl"


@pytest.fixture(scope="session")
def octo() -> OctoModel:
    return build_octo()


@pytest.fixture(scope="session")
def policy(octo: OctoModel) -> OctoPolicy:
    return OctoPolicy.from_model(octo)


def look(
    seed: int = 1, *, past: int = 1, instruction: str = GREEN, goal: bool = False
) -> Observation:
    """An observation with earlier views, as the pipeline gives it."""
    sight = observe(seed, instruction)
    views = dict(sight.images)
    for camera in (WRIST, SIDE):
        for back in range(1, past + 1):
            views[f"{camera}@-{back}"] = picture(100 * seed + 10 * back + len(camera))
        if goal:
            views[f"{camera}@goal"] = picture(999 + len(camera))
    return replace(sight, images=views)


def spans(axis: Axis) -> list[tuple[str, str, int, int]]:
    return [(s.name, s.kind, len(s), s.model_start) for s in axis]


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policy: OctoPolicy) -> Case:
        # the second is at its episode's start: nothing came before
        return Case(policy, (look(1), look(2, past=0, instruction="wipe")))


def test_actions_are_those_of_sample_actions(octo: OctoModel, policy: OctoPolicy) -> None:
    for sight in (look(1), look(2, past=0)):
        batch = policy.prepare([sight])
        seen, tasks = batch.inputs["observations"], batch.inputs["tasks"]
        key = batch.inputs["keys"][0]
        wanted = as_array(octo.sample_actions(seen, tasks, rng=key))
        np.testing.assert_array_equal(as_array(policy.act(batch)), wanted)
        np.testing.assert_array_equal(run_captured(policy, batch).actions, wanted)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            random_keys([2**40 + 5, 7]), [jax.random.PRNGKey(2**40 + 5), jax.random.PRNGKey(7)]
        )


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    values = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(values / values.sum(-1, keepdims=True))


def names(policy: OctoPolicy, window: int = 2) -> list[tuple[str, int]]:
    counts = [("obs_primary", PATCHES["primary"]), ("obs_wrist", PATCHES["wrist"]),
              ("obs_task_language", WORDS), ("readout_action", 1)]  # fmt: skip
    tokens = [("task_language", -1)] * WORDS
    return tokens + [(name, t) for t in range(window) for name, n in counts for _ in range(n)]


def test_weights_are_those_that_numpy_computes(octo: OctoModel, policy: OctoPolicy) -> None:
    """Layer by layer from the hidden states, the parameters, and Octo's rules."""
    hidden: list[NDArray[Any]] = []

    class Watcher:
        watch = Watch(token_stats=True)

        def __init__(self) -> None:
            self.weights: list[NDArray[Any]] = []

        def attention(self, phase: str, layer: int, weights: Any) -> None:
            assert (phase, layer) == ("joint", len(self.weights))
            assert len(hidden) == layer + 1
            self.weights.append(as_array(weights))

        def hidden(self, phase: str, layer: int, states: Any) -> None:
            if layer == LAST:  # of the readouts, after the last norm
                return
            assert (phase, layer) == ("joint", len(hidden) - 1)
            hidden.append(as_array(states))

    watcher: Any = Watcher()
    batch = policy.prepare([look(1), look(2, past=0)])
    plain = policy.act(batch)
    with policy.instrument(watcher):
        actions = policy.act(batch)
    np.testing.assert_array_equal(as_array(actions), as_array(plain))
    tokens = names(policy)
    rules = np.array([[may_attend(q, k) for k in tokens] for q in tokens])
    shown = np.array([[True] * len(tokens), [True] * len(tokens)])
    shown[1] = [not (t == 0 and n in ("obs_primary", "obs_wrist")) for n, t in tokens]
    blocks = octo.params["octo_transformer"]["BlockTransformer_0"]["Transformer_0"]
    assert len(hidden) == LAYERS + 1
    for layer, found in enumerate(watcher.weights):
        p = blocks[f"encoderblock_{layer}"]
        x = hidden[layer].astype(np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * np.asarray(p["LayerNorm_0"]["scale"]) + np.asarray(p["LayerNorm_0"]["bias"])
        at = p["MultiHeadDotProductAttention_0"]
        q, k = (
            np.einsum("btd,dhe->bhte", x, np.asarray(at[n]["kernel"]))
            + np.asarray(at[n]["bias"])[:, None]
            for n in ("query", "key")
        )
        logits = np.einsum("bhqe,bhke->bhqk", q, k) / np.sqrt(q.shape[-1])
        allowed = rules & shown[:, None, None, :]
        wanted = softmax(np.where(allowed, logits, -np.inf))
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        assert not found[~np.broadcast_to(allowed, found.shape)].any()


class TestLayout:
    def test_a_full_window(self, policy: OctoPolicy) -> None:
        layout = policy.prepare([look(1)]).samples[0].layouts["joint"]
        assert layout.query == layout.key
        words = policy.model.text_processor.tokenizer(GREEN, add_special_tokens=False)["input_ids"]
        n, pad = len(words), WORDS - 1 - len(words)
        wanted = [("task", "text", n), ("task_eos", "text", 1), ("task_pad", "other", pad)]
        for at in ("@-1", ""):
            wanted += [
                (f"image:{SIDE}{at}", "image", 16), (f"image:{WRIST}{at}", "image", 4),
                (f"task_repeat{at}", "text", n), (f"task_repeat_eos{at}", "text", 1),
                (f"task_repeat_pad{at}", "other", pad), (f"readout_action{at}", "readout", 1),
            ]  # fmt: skip
        starts = np.cumsum([0, *(count for _, _, count in wanted)]).tolist()
        found = spans(layout.query)
        assert found == [(*w, start) for w, start in zip(wanted, starts[:-1], strict=True)]
        assert starts[-1] == WORDS + 2 * (16 + 4 + WORDS + 1)
        task, end, padding = layout.query.spans[:3]
        assert "".join(t.text for t in task.tokens) == GREEN
        assert (task.role, end.role, padding.role) == ("task", "template", "padding")
        assert [t.text for t in padding.tokens] == ["<pad>"] * pad
        assert [s.camera for s in layout.key if s.camera] == [
            f"{SIDE}@-1", f"{WRIST}@-1", SIDE, WRIST,
        ]  # fmt: skip

    def test_before_the_first_frame_there_is_no_image(self, policy: OctoPolicy) -> None:
        batch = policy.prepare([look(1, past=0)])
        axis = batch.samples[0].layouts["joint"].query
        found = [s.name for s in axis]
        # Octo masks only the images of a timestep that is padding.
        assert found[3:7] == [
            "task_repeat@-1", "task_repeat_eos@-1", "task_repeat_pad@-1", "readout_action@-1",
        ]  # fmt: skip
        assert f"image:{SIDE}@-1" not in found
        assert batch.inputs["observations"]["timestep_pad_mask"].tolist() == [[False, True]]
        # the geometry of an episode does not change at its start
        assert set(batch.samples[0].geometry) == {SIDE, WRIST, f"{SIDE}@-1", f"{WRIST}@-1"}

    @pytest.mark.parametrize("window", [1, 3])
    def test_another_window(self, octo: OctoModel, window: int) -> None:
        policy = OctoPolicy.from_model(octo, options={"window": str(window)})
        assert policy.window == window
        captured = run_captured(policy, policy.prepare([look(1, past=window - 1)]))
        layout = captured.batch.samples[0].layouts["joint"]
        assert len(layout.query) == WORDS + window * (16 + 4 + WORDS + 1)
        assert [s.name for s in layout.query if s.kind == "readout"] == [
            f"readout_action{at}" for at in ("@-2", "@-1", "")[3 - window :]
        ]

    def test_a_masked_camera_and_one_that_is_left_out(self, octo: OctoModel) -> None:
        """Both give the same tokens, and the same attention among them."""
        rows = {}
        for way in ("none", "masked"):
            policy = OctoPolicy.from_model(octo, options={"wrist": way})
            captured = run_captured(policy, policy.prepare([look(1)]))
            sample = captured.batch.samples[0]
            layout = sample.layouts["joint"]
            assert set(sample.geometry) == {SIDE, f"{SIDE}@-1"}
            assert not [s for s in layout.key if s.camera and s.camera.startswith(WRIST)]
            rows[way] = [valid_weights(r[3], 0, layout) for r in captured.records]
            full = captured.records[0][3].shape[-1]
            assert full - len(layout.key) == (0 if way == "none" else 2 * PATCHES["wrist"])
        np.testing.assert_allclose(rows["none"], rows["masked"], atol=1e-6)

    def test_a_goal_instead_of_words(self, octo: OctoModel) -> None:
        policy = OctoPolicy.from_model(octo, options={"task": "goal"})
        assert policy.sees_goal
        assert policy.phases["joint"].query_groups == ("readout_action",)
        batch = policy.prepare([look(1, goal=True)])
        axis = batch.samples[0].layouts["joint"].query
        # rows of a masked instruction are uniform over everything: they are not stored
        assert not [s for s in axis if s.kind == "text" or s.role == "padding"]
        tasks = batch.inputs["tasks"]
        assert tasks["image_primary"].any()
        assert tasks["pad_mask_dict"]["image_primary"].tolist() == [True]
        assert tasks["pad_mask_dict"]["language_instruction"].tolist() == [False]
        weights = run_captured(policy, batch).records[0][3]
        np.testing.assert_allclose(weights[0, :, :WORDS], 1 / weights.shape[-1], rtol=1e-5)
        both = OctoPolicy.from_model(octo, options={"task": "both"})
        axis = both.prepare([look(1, goal=True)]).samples[0].layouts["joint"].query
        assert axis.group("task")
        with pytest.raises(ObservationError, match="no image of varied_camera_1@goal"):
            policy.prepare([look(1)])

    def test_no_repeated_task_tokens(self) -> None:
        policy = OctoPolicy.from_model(build_octo(repeat=False))
        assert policy.phases["joint"].query_groups == ("readout_action",)
        axis = policy.prepare([look(1)]).samples[0].layouts["joint"].query
        assert not [s for s in axis if s.name.startswith("task_repeat")]
        assert len(axis) == WORDS + 2 * (16 + 4 + 1)


class TestGeometry:
    def test_a_token_is_centred_on_a_multiple_of_16_pixels(self) -> None:
        """Golden: which pixels the gradient of a token of a SmallStem16 reaches."""

        class Bare(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                ones = nn.initializers.ones
                for _ in range(4):
                    x = nn.Conv(1, (3, 3), strides=(2, 2), padding=(1, 1), kernel_init=ones)(x)
                return nn.Conv(1, (1, 1), padding="VALID", kernel_init=ones)(x)

        image = jnp.zeros((1, 128, 96, 1))
        params = Bare().init(jax.random.PRNGKey(0), image)

        def tokens(x: Any) -> Any:
            return Bare().apply(params, x)

        grid = tuple(tokens(image).shape[1:3])
        assert grid == (8, 6)
        conv, embed = Convolution((3, 3), (2, 2), (1, 1)), Convolution((1, 1), (1, 1), (0, 0))
        geometry = stem_geometry((360, 640), (128, 96), grid, [conv] * 4 + [embed])
        assert geometry.patch == (16.0, 16.0)
        assert geometry.patch_origin == (-7.5, -7.5)
        assert geometry.receptive == (31.0, 31.0)
        gradient = jax.grad(lambda x, r, c: tokens(x)[0, r, c, 0])
        for row, col in [(0, 0), (3, 2), (7, 5), (4, 0)]:
            reached = np.argwhere(np.asarray(gradient(image, row, col))[0, :, :, 0])
            low, high = reached.min(0), reached.max(0) + 1
            field = geometry.receptive_field(row, col)
            assert [(s.start, s.stop) for s in field] == list(zip(low, high, strict=True))
            assert low.tolist() == [max(0, 16 * row - 15), max(0, 16 * col - 15)]
        # the centre of pixel (16, 32) of the input, on the camera's 360x640 image
        y, x = geometry.grid_to_source(np.array(1.5), np.array(2.5))
        np.testing.assert_allclose([y, x], [16.5 / 128 * 360, 32.5 / 96 * 640])
        assert geometry == type(geometry).from_json(geometry.to_json())

    def test_it_is_read_off_the_models_convolutions(self, policy: OctoPolicy) -> None:
        geometry = policy.prepare([look(1)]).samples[0].geometry
        for view in (SIDE, f"{SIDE}@-1"):
            assert geometry[view].input == (64, 64)
            assert geometry[view].grid == (4, 4)
            assert geometry[view].patch_origin == (-7.5, -7.5)
            assert geometry[view].receptive == (31.0, 31.0)
        assert geometry[WRIST].grid == (2, 2)

    def test_an_encoder_with_branches_is_refused(self) -> None:
        policy = OctoPolicy.from_model(build_octo(encoder="ResNet26"))
        with pytest.raises(PolicyError, match=r"geometry of the primary .* unknown \(ResNet26\)"):
            policy.prepare([look(1)])

    def test_images_are_stretched_and_anti_aliased(self) -> None:
        image = picture(3, 100, 60)
        small = resize(image, (32, 32))
        assert small.shape == (32, 32, 3)
        np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), atol=1.0)
        assert resize(small, (32, 32)) is small


class TestCapture:
    def test_a_weight_on_a_masked_token_is_an_error(self) -> None:
        policy = OctoPolicy.from_model(build_octo(leaky=True))
        batch = policy.prepare([look(1)])
        with (
            pytest.raises(HealthError, match=r"joint layer 0: a masked token gets a weight of"),
            capture(policy),
        ):
            policy.act(batch)
        policy.act(batch)

    def test_the_heads_own_attention_is_no_layer(self, policy: OctoPolicy) -> None:
        captured = run_captured(policy, policy.prepare([look(1)]))
        assert [(p, layer) for p, layer, *_ in captured.records] == [
            ("joint", layer) for layer in range(LAYERS)
        ]
        assert captured.records[0][3].shape[:2] == (1, HEADS)

    def test_vision_is_refused(self, policy: OctoPolicy) -> None:
        with pytest.raises(UsageError, match="convolutional and has no attention"):
            policy.encoder_shape()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"side": "x"},
                "octo has the options primary, wrist, task, window, statistics; got 'side'",
            ),
            ({"window": "9"}, "window is 1 to 5 observations; got '9'"),
            ({"window": "two"}, "window is 1 to 5 observations; got 'two'"),
            ({"task": "sing"}, "task is one of language, goal, both; got 'sing'"),
            ({"primary": "none", "wrist": "masked"}, "no camera is given to octo"),
            ({"statistics": "bridge"}, "takes no state, so the option statistics has no use"),
        ],
    )
    def test_a_bad_one_is_refused(
        self, octo: OctoModel, options: dict[str, str], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            OctoPolicy.from_model(octo, options=options)

    def test_slots_are_the_models(self) -> None:
        model = build_octo(slots=("primary", "overhead"))
        with pytest.raises(UsageError, match="which camera is the model's 'overhead'"):
            OctoPolicy.from_model(model)
        policy = OctoPolicy.from_model(model, options={"overhead": WRIST})
        sample = policy.prepare([look(1)]).samples[0]
        assert sample.geometry[WRIST].grid == (2, 2)

    def test_a_slot_may_take_any_camera(self, octo: OctoModel) -> None:
        policy = OctoPolicy.from_model(octo, options={"primary": WRIST, "wrist": SIDE})
        batch = policy.prepare([look(1)])
        np.testing.assert_array_equal(
            batch.inputs["observations"]["image_primary"][0, -1],
            resize(look(1).images[WRIST], (64, 64)),
        )
        assert batch.samples[0].geometry[WRIST].grid == (4, 4)

    def test_a_camera_that_is_not_there(self, octo: OctoModel) -> None:
        policy = OctoPolicy.from_model(octo, options={"primary": "overhead"})
        with pytest.raises(ObservationError, match="no image of overhead, octo's 'primary'; there"):
            policy.prepare([look(1)])
        policy = OctoPolicy.from_model(octo)
        strange = replace(look(1), images={"top": picture(1)})
        with pytest.raises(ObservationError, match=r"which camera is octo's 'primary'\? Say"):
            policy.prepare([strange])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture's model under the name that Octo's package has."""
    for name in ("octo", "octo.model", "octo.model.octo_model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["octo.model.octo_model"].OctoModel = OctoModel  # type: ignore[attr-defined]


def write_checkpoint(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True)
    content = {"model": {"observation_tokenizers": {}}, "seed": 0, **config}
    (directory / "config.json").write_text(json.dumps(content))
    (directory / "example_batch.msgpack").write_bytes(b"")
    (directory / "dataset_statistics.json").write_text("{}")
    (directory / "0").mkdir()
    return directory


class TestLoading:
    def test_a_checkpoint(self, installed: None, tmp_path: Path, policy: OctoPolicy) -> None:
        directory = write_checkpoint(tmp_path / "octo-tiny")
        loaded = load_policy("octo", str(directory), options={"window": "1"})
        assert (loaded.name, loaded.checkpoint, loaded.dtype) == ("octo", "octo-tiny", "float32")
        assert (loaded.horizon, loaded.action_dof) == (octo_fixture.HORIZON, octo_fixture.DOF)
        assert loaded.digest != policy.digest
        assert len(policy.digest) == 64

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda d: (d / "dataset_statistics.json").unlink(),
                "no dataset_statistics.json in it",
            ),
            (lambda d: (d / "0").rmdir(), "no numbered directory of weights"),
            (lambda d: (d / "config.json").write_text("{"), "config.json is not an Octo model's"),
            (lambda d: (d / "config.json").write_text("[]"), "config.json is not an Octo model's"),
            (
                lambda d: (d / "config.json").write_text(
                    '{"broken": 1, "model": {"observation_tokenizers": {}}}'
                ),
                "not a readable Octo checkpoint \\(KeyError: 'heads'\\)",
            ),
        ],
    )
    def test_a_broken_one(self, installed: None, tmp_path: Path, change: Any, message: str) -> None:
        directory = write_checkpoint(tmp_path / "octo-tiny")
        change(directory)
        with pytest.raises(AttnstoreError, match=message) as caught:
            load_policy("octo", str(directory))
        assert "\n" not in str(caught.value)

    def test_no_such_directory(self) -> None:
        with pytest.raises(AttnstoreError, match="no such checkpoint directory"):
            load_policy("octo", "rail-berkeley/octo-small-1.5")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dtype": "bfloat16"}, "octo computes in float32"),
            ({"revision": "main"}, "has no revisions"),
            ({"device": "cuda:3"}, "jax has no device 'cuda:3'; it has"),
        ],
    )
    def test_what_octo_has_not(
        self, installed: None, tmp_path: Path, arguments: Mapping[str, Any], message: str
    ) -> None:
        directory = write_checkpoint(tmp_path / "octo-tiny")
        with pytest.raises(UsageError, match=message):
            load_policy("octo", str(directory), **arguments)

    def test_without_the_package(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "octo-tiny")
        before = set(sys.modules)
        with pytest.raises(
            MissingExtraError, match="needs the octo package: pip install --no-deps"
        ):
            load_policy("octo", str(directory))
        assert not {"tensorflow", "dlimp"} & (set(sys.modules) - before)


def test_the_observer_sees_each_call_alone(policy: OctoPolicy) -> None:
    batch: Batch = policy.prepare([look(1)])
    counts: Sequence[int] = []
    with capture(policy) as session:
        policy.act(batch)
        policy.act(batch)
        counts = [session.counts["joint"], len(session.records)]
    assert counts == [2 * LAYERS, 2 * LAYERS]
    policy.act(batch)
    assert session.counts["joint"] == 2 * LAYERS


class TestCommand:
    def test_an_ingest(
        self, installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoint = write_checkpoint(tmp_path / "octo-tiny")
        recordings = write_droid(tmp_path / "recordings", lengths=(9,))
        store = tmp_path / "octo.attn"
        common = ["ingest", "droid", store, recordings, "--policy", "octo", "--checkpoint", checkpoint,
                  "--policy-option", "wrist=none", "--json"]  # fmt: skip
        assert run(*common, "--dry-run") == 0
        forecast = json.loads(capsys.readouterr().out.splitlines()[0])
        # the forecast is of a full window, which the first frame has not
        tokens = WORDS + 2 * (PATCHES["primary"] + WORDS + 1)
        weights = LAYERS * HEADS * tokens**2 * 2
        assert weights <= forecast["keyframe_bytes"] <= 1.1 * weights
        assert run(*common, "--token-stats") == 0
        episode = open_for_reading(store).episode("2025-12-10_09-00-00")
        assert episode.cameras == (SIDE, f"{SIDE}@-1")
        frames = episode.part.table("frames")["camera"].to_pylist()
        assert frames == [SIDE, SIDE, f"{SIDE}@-1"]
        rows = episode.part.table("token_stats").to_pylist()
        assert len(rows) == LAYERS * (2 * tokens - PATCHES["primary"])
        assert {r["kind"] for r in rows} == {"text", "other", "image", "readout"}
        assert all(r["norm"] > 0 for r in rows)

    def test_vision(self, installed: None, tmp_path: Path, capsys: Any) -> None:
        checkpoint = write_checkpoint(tmp_path / "octo-tiny")
        recordings = write_droid(tmp_path / "recordings", lengths=(9,))
        code = run("ingest", "droid", tmp_path / "octo.attn", recordings, "--policy", "octo",
                   "--checkpoint", checkpoint, "--vision")  # fmt: skip
        assert code == 2
        assert "octo's image encoder is convolutional" in capsys.readouterr().err


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)
