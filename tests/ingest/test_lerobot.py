"""The LeRobot adapters over stand-ins with LeRobot's module names: contract, layout, geometry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from blocking_contract import BlockingContract, run_blocked
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_fixtures import observe
from lerobot_fixture_models import (
    ACTION_DOF,
    CAMERAS,
    CHUNK,
    FRAME,
    STAND_INS,
    STATE_DOF,
    STATS,
    ActPolicy,
    Feature,
    Normalize,
    Pipeline,
    build,
    byte_level_tokenizer,
    fitted,
)
from policy_contract import Case, as_array, run_captured

from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.base import (
    ActionCoefficients,
    Observation,
    ObservationError,
    PolicyError,
    Watch,
)
from attnstore.ingest.policies.blocking import Blocked
from attnstore.ingest.policies.fast import written
from attnstore.ingest.policies.lerobot.base import LeRobotPolicy
from attnstore.ingest.policies.lerobot.loading import check_weights
from attnstore.ingest.policies.lerobot.policy import (
    FAMILIES,
    adapt_lerobot,
    load_lerobot,
    parse_cameras,
)
from attnstore.ingest.policies.prompt import pi05_spans, token_text
from attnstore.ingest.policies.registry import find_policy, load_policy
from attnstore.ingest.policies.resnet_field import resnet_geometry
from attnstore.ingest.policies.tiny import prompt_tokenizer
from attnstore.store.errors import AttnstoreError, MissingExtraError, NotFoundError, UsageError
from attnstore.store.format.tokens import Axis, Token

WORDS = ("put the red cube onto the pink plate", "wipe")


class LeRobotContract(BlockingContract):
    """Every family; the reference is the policy's own call."""

    family: str

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, recordings: Path) -> Case:
        policy = adapt_lerobot(*build(cls.family))

        def reference(batch: Any) -> Any:
            inputs = {k: v.clone() for k, v in batch.inputs.items() if k != "noise"}
            noise = {"noise": batch.inputs["noise"]} if policy.noisy else {}
            with policy.eager():  # Pi0 would leave its modules eager
                return policy.policy.predict_action_chunk(inputs, **noise)

        def euler(batch: Any) -> Any:
            with policy.eager():
                return [chunk[..., :ACTION_DOF] for chunk in policy.policy.euler(batch.inputs)]

        sights = (observe(1, WORDS[0]), observe(2, WORDS[1]))
        return Case(
            policy, sights, module=policy.policy, reference=reference, euler=euler,
            seeded=policy.noisy,
            dataset=lambda: DroidDataset(recordings, limit=1),
        )  # fmt: skip


class TestPi0(LeRobotContract):
    family = "pi0"


class TestPi05(LeRobotContract):
    family = "pi05"


class TestPi0Fast(LeRobotContract):
    family = "pi0_fast"


def test_steps_are_the_same_with_a_cache_and_without() -> None:
    """Weights, actions, and what happens where attention is blocked in a step that comes again."""
    found = []
    for cached in (True, False):
        policy, pipeline = build("pi0_fast")
        policy.config.use_kv_cache = policy.model.cached = cached
        adapted = adapt_lerobot(policy, pipeline)
        batch = adapted.prepare([observe(1, WORDS[0]), observe(2, WORDS[1])])
        image = batch.samples[1].layouts["decode"].key.spans[0]
        block = Blocked("decode", 0, (0,), tuple(range(len(image))))
        for blocked in ([], [block]):
            base = Case(adapted, (), module=policy)
            ran = run_blocked(base, batch, [[], blocked])
            found.append((ran.actions, ran.weights, ran.generated))
    for one, other in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[2] == other[2]
        assert one[1].keys() == other[1].keys()
        assert len(one[1]) == 2 + 2 * 4
        for place, weights in one[1].items():
            np.testing.assert_allclose(weights, other[1][place], atol=1e-5)


class TestAct(LeRobotContract):
    family = "act"


class TestSmolVla(LeRobotContract):
    family = "smolvla"


@cache
def shared(kind: str) -> LeRobotPolicy:
    """A policy that no test changes."""
    return adapt_lerobot(*build(kind))


@pytest.fixture(params=STAND_INS)
def policy(request: pytest.FixtureRequest) -> LeRobotPolicy:
    return shared(str(request.param))


@contextmanager
def prefix_input(policy: LeRobotPolicy) -> Iterator[list[Any]]:
    """The embedded sequence that enters the prefix, (batch, token, feature)."""
    seen: list[Any] = []
    if policy.family == "smolvla":
        core = policy.model.vlm_with_expert

        def forward(**given: Any) -> Any:
            seen.append(given["inputs_embeds"][0])
            return type(core).forward(core, **given)

        core.forward = forward
        try:
            yield seen
        finally:
            del core.forward
        return
    layer = policy.layers(policy.watched()[:1])[0]
    handle = layer.module.register_forward_pre_hook(
        lambda module, args: seen.append(layer.states(args[0]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def embedded(policy: LeRobotPolicy, sight: Observation) -> Any:
    with prefix_input(policy) as seen:
        policy.act(policy.prepare([sight]))
    return seen[0][0]


def places(axis: Axis, *names: str) -> set[int]:
    return {
        i for s in axis if s.name in names for i in range(s.model_start, s.model_start + len(s))
    }


class TestLayout:
    def test_what_changes_in_the_sequence_is_what_its_span_says(
        self, policy: LeRobotPolicy
    ) -> None:
        sight = observe(1, WORDS[0])
        axis = policy.prepare([sight]).samples[0].layouts["prefix"].query
        before = embedded(policy, sight)
        for camera in sight.images:
            images = dict(sight.images) | {camera: 255 - sight.images[camera]}
            changed = (embedded(policy, replace(sight, images=images)) != before).any(-1)
            assert set(changed.nonzero()[:, 0].tolist()) == places(axis, f"image:{camera}")
        state = replace(sight, state=sight.state + 0.7)
        changed = (embedded(policy, state) != before).any(-1).nonzero()[:, 0].tolist()
        names = [s.name for s in axis if s.kind == "state" or s.role == "state"]
        wanted = places(axis, *names)
        assert bool(changed) == bool(wanted)
        # Pi0.5's digits move what follows them; nothing before them may change.
        assert not wanted or min(changed) >= min(wanted)
        assert policy.family in ("pi05", "pi0_fast") or set(changed) == wanted

    def test_cameras_stand_in_the_policy_s_order(self, policy: LeRobotPolicy) -> None:
        for layout in policy.prepare([observe(1)]).samples[0].layouts.values():
            cameras = [s.camera for s in layout.key if s.camera]
            assert cameras == ["varied_camera_1", "hand_camera"]

    def test_every_text_token_has_its_string(self, policy: LeRobotPolicy) -> None:
        axis = policy.prepare([observe(1, WORDS[0])]).samples[0].layouts["prefix"].query
        text = "".join(t.text for s in axis for t in s.tokens if s.role == "task")
        if policy.family == "act":
            assert text == ""
        else:
            assert text.strip() == WORDS[0]

    def test_pi05_writes_the_state_into_the_prompt(self) -> None:
        sight = observe(1, WORDS[0])
        layouts = shared("pi05").prepare([sight]).samples[0].layouts
        spans = [s for s in layouts["prefix"].query if s.role == "state"]
        assert [s.name for s in spans] == [f"state[{i}]" for i in range(STATE_DOF)]
        normal = (sight.state - 0.1) / 2
        bins = np.digitize(normal, np.linspace(-1, 1, 257)[:-1]) - 1
        assert ["".join(t.text for t in s.tokens).strip() for s in spans] == [str(b) for b in bins]
        assert [s.name for s in layouts["suffix"].query] == ["action"]

    def test_pi0_has_a_state_token(self) -> None:
        layouts = adapt_lerobot(*build("pi0")).prepare([observe(1)]).samples[0].layouts
        assert [(s.name, len(s)) for s in layouts["suffix"].query] == [
            ("state", 1),
            ("action", CHUNK),
        ]

    def test_a_camera_that_is_not_there_shifts_the_text(self) -> None:
        policy = adapt_lerobot(*build("pi0"))
        both = policy.prepare([observe(1)]).samples[0].layouts["prefix"].query
        one = (
            policy.prepare([observe(1, cameras=["hand_camera"])]).samples[0].layouts["prefix"].query
        )
        starts = [next(s.model_start for s in x if s.kind == "text") for x in (both, one)]
        assert starts == [48, 48]  # three images' tokens, shown or not
        assert [s.model_start for s in one][:1] == [0]
        assert len(one) == len(both) - 16

    def test_smolvla_gives_zero_to_actions_where_it_attends_to_the_prefix_alone(self) -> None:
        policy = adapt_lerobot(*build("smolvla"))
        batch = policy.prepare([observe(1)])
        with capture(policy) as session:
            policy.act(batch)
        blocks = [r.weights[..., -CHUNK:] for r in session.records if r.phase == "suffix"]
        own = [bool(block.any()) for block in blocks]
        assert policy.phases["suffix"].causal
        assert not any(block.triu(1).any() for block in blocks)
        assert own == [True, False, True, False] * (len(own) // 4)


def test_chunks_of_aloha_are_in_its_joints_at_every_step() -> None:
    """LeRobot turns what SmolVLA ends with; the chunks before are turned alike."""
    theirs, pipeline = build("smolvla")
    theirs.config.adapt_to_pi_aloha = True
    policy = adapt_lerobot(theirs, pipeline)
    captured = run_captured(policy, policy.prepare([observe(1)]))
    wanted = [as_array(chunk)[..., :ACTION_DOF] for chunk in theirs.euler(captured.batch.inputs)]
    for chunk in wanted:
        chunk[..., 1] *= -1
        chunk[..., 6] = chunk[..., 6] * 0.5208 + 0.4837
    found = [*(as_array(n) for n in captured.session.noisy_actions[1:]), captured.actions]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


class TestCameras:
    def test_a_feature_may_be_named(self) -> None:
        policy = adapt_lerobot(*build("act"), cameras={"left": CAMERAS[0], "right": CAMERAS[1]})
        sample = policy.prepare([observe(1, cameras=["right", "left"])]).samples[0]
        assert list(sample.geometry) == ["left", "right"]

    def test_the_checkpoint_s_own_renaming_is_kept(self) -> None:
        policy = adapt_lerobot(*build("act", rename={"observation.images.wrist": CAMERAS[1]}))
        sample = policy.prepare([observe(1, cameras=["wrist", "varied_camera_1"])]).samples[0]
        assert list(sample.geometry) == ["varied_camera_1", "wrist"]

    def test_an_unknown_camera_is_named_with_the_repair(self) -> None:
        policy = adapt_lerobot(*build("pi0"))
        with pytest.raises(
            ObservationError, match="--policy-option cameras=top:observation.images"
        ):
            policy.prepare([observe(1, cameras=["top"])])
        twice = adapt_lerobot(*build("pi0"), cameras={"top": CAMERAS[0]})
        with pytest.raises(ObservationError, match="two cameras would have that"):
            twice.prepare([observe(1, cameras=["varied_camera_1", "top"])])

    def test_act_needs_every_camera(self) -> None:
        with pytest.raises(PolicyError, match="missing is observation.images.varied_camera_1"):
            adapt_lerobot(*build("act")).prepare([observe(1, cameras=["hand_camera"])])

    def test_options(self) -> None:
        with pytest.raises(UsageError, match="cameras is CAMERA:FEATURE"):
            parse_cameras("wrist")
        with pytest.raises(UsageError, match="no image feature 'x'; it has observation.images"):
            adapt_lerobot(*build("act"), cameras={"wrist": "x"})


class TestState:
    def test_statistics_of_another_length_are_not_stretched(self) -> None:
        short = replace(observe(1), state=np.zeros(1, np.float32))
        with pytest.raises(
            ObservationError, match="state has 1 components, .* mean of observation.state has 8"
        ):
            shared("pi05").prepare([short])

    def test_without_statistics_a_state_is_not_let_through(self) -> None:
        policy, pipeline = build("pi05")
        bare = Pipeline(
            [
                Normalize({"action": STATS}) if isinstance(s, Normalize) else s
                for s in pipeline.steps
            ]
        )
        with pytest.raises(ObservationError, match="pass --policy-option stats=FILE"):
            adapt_lerobot(policy, bare).prepare([observe(1)])

    def test_what_the_preprocessor_raises_is_said_in_a_line(self) -> None:
        def fail(batch: Any) -> Any:
            raise KeyError("observation.velocity")

        policy, pipeline = build("act")
        broken = Pipeline([*pipeline.steps, fail])
        with pytest.raises(
            ObservationError, match="preprocessor cannot take the observation .KeyError"
        ):
            adapt_lerobot(policy, broken).prepare([observe(1)])

    def test_several_observations_at_once_are_refused(self) -> None:
        policy, pipeline = build("act")
        policy.config.n_obs_steps = 2
        with pytest.raises(PolicyError, match="sees 2 observations at once"):
            adapt_lerobot(policy, pipeline)

    def test_an_environment_s_state_is_refused(self) -> None:
        policy, pipeline = build("act")
        policy.config.env_state_feature = Feature((3,))
        with pytest.raises(PolicyError, match="environment's state"):
            adapt_lerobot(policy, pipeline).prepare([observe(1)])


class TestGeometry:
    @settings(max_examples=40, deadline=None)
    @given(height=st.integers(8, 400), width=st.integers(8, 400), centre=st.booleans())
    def test_coverage_is_where_the_image_is(self, height: int, width: int, centre: bool) -> None:
        kind = "pi0" if centre else "smolvla"
        policy: Any = shared(kind)
        size = FRAME if centre else 64
        shape = policy._geometry((height, width))
        image = fitted(torch.ones(1, 3, height, width), size, size, centre=centre)[0, 0]
        rows, cols = shape.grid
        cells = image.reshape(rows, size // rows, cols, size // cols).mean((1, 3))
        np.testing.assert_allclose(shape.coverage(), cells.numpy(), atol=1e-5)

    def test_golden(self) -> None:
        policy, pipeline = build("pi0")
        policy.config.image_resolution = (224, 224)
        pi: Any = adapt_lerobot(policy, pipeline)
        shape = pi._geometry((720, 1280))
        assert (shape.resized, shape.offset, shape.grid) == ((126, 224), (49, 0), (16, 16))
        smol: Any = shared("smolvla")
        shape = smol._geometry((36, 64))
        assert (shape.resized, shape.offset, shape.grid) == ((36, 64), (28, 0), (4, 4))

    def test_a_resnet_cell_looks_around_its_patch_s_centre(self) -> None:
        torch.manual_seed(0)
        cell = (4, 5)
        net = torchvision.models.resnet18(weights=None).double().eval()
        # One block of each stage, with its stride: the other widens the field alike on all sides.
        # A mean over the pool's window, since a maximum passes no gradient to most of it.
        blocks = [stage[0] for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
        pool = torch.nn.AvgPool2d(3, 2, 1)
        body = torch.nn.Sequential(net.conv1, net.bn1, net.relu, pool, *blocks)
        image = torch.rand(1, 3, 384, 384, dtype=torch.float64, requires_grad=True)
        features = body(image)
        shape = resnet_geometry((384, 384), "resnet18", False)
        assert features.shape[2:] == shape.grid
        features[0, :, cell[0], cell[1]].abs().sum().backward()
        assert image.grad is not None
        touched = image.grad[0].abs().sum(0).nonzero()
        low, high = touched.min(0).values, touched.max(0).values
        centre = [(lo + hi + 1) / 2 for lo, hi in zip(low.tolist(), high.tolist(), strict=True)]
        middle = [np.array(float(c)) + 0.5 for c in cell]
        assert centre == [float(x) for x in shape.grid_to_source(*middle)]

    @pytest.mark.parametrize(
        ("name", "dilated", "cell"),
        [("resnet18", False, (8, 8)), ("resnet50", False, (7, 8)), ("resnet50", True, (16, 15))],
    )
    def test_a_resnet_cell_is_computed_from_its_receptive_field(
        self, name: str, dilated: bool, cell: tuple[int, int]
    ) -> None:
        replaced = [False, False, dilated]
        net = torchvision.models.get_model(
            name, weights=None, replace_stride_with_dilation=replaced
        ).eval()
        net.maxpool = torch.nn.AvgPool2d(3, 2, 1)  # a maximum passes no gradient to most of it
        with torch.no_grad():
            for conv in (m for m in net.modules() if isinstance(m, torch.nn.Conv2d)):
                conv.weight.fill_(1 / conv.weight[0].numel())  # nothing cancels, no unit is off
        body = torch.nn.Sequential(*list(net.children())[:-2])
        image: Any = torch.ones(1, 3, 480, 480, requires_grad=True)
        features = body(image)
        shape = resnet_geometry((480, 480), name, dilated)
        assert features.shape[2:] == shape.grid
        features[0, 0, cell[0], cell[1]].backward()
        touched = image.grad[0].sum(0).nonzero()
        low, high = touched.min(0).values.tolist(), touched.max(0).values.tolist()
        field = shape.receptive_field(*cell)
        assert [(s.start, s.stop - 1) for s in field] == list(zip(low, high, strict=True))
        assert shape.receptive == ((435.0,) * 2 if name == "resnet18" else (427.0,) * 2)
        # the outermost cells see nothing but image
        assert (shape.coverage() == 1).all()

    @pytest.mark.parametrize("size", [(480, 640), (36, 64), (33, 97)])
    def test_the_grid_is_the_feature_map_s(self, size: tuple[int, int]) -> None:
        backbone = ActPolicy().model.backbone
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, *size))["feature_map"]
        assert tuple(features.shape[2:]) == resnet_geometry(size, "resnet18", False).grid


def checkpoint(directory: Path, config: Any, *files: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for file in files:
        (directory / file).write_text("{}")
    return str(directory)


class TestLoading:
    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            (
                {"type": "somebodys"},
                PolicyError,
                "type 'somebodys' are not supported; pi0, pi05, pi0_fast, smolvla, act",
            ),
            (
                {"model_type": "pi0"},
                PolicyError,
                "not LeRobot's, it has no type; it is a transformers model of type 'pi0'",
            ),
            (
                {"type": "act"},
                PolicyError,
                "no policy_preprocessor.json in it, .*migrate_policy_normalization",
            ),
            ([1], PolicyError, "config.json cannot be read"),
        ],
    )
    def test_a_checkpoint_that_is_not_understood(
        self, tmp_path: Path, config: Any, error: type[AttnstoreError], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            load_policy("lerobot", checkpoint(tmp_path, config))

    def test_the_variant_is_what_the_checkpoint_must_be(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="of type 'act', not 'pi05'"):
            load_policy("lerobot:pi05", checkpoint(tmp_path, {"type": "act"}))
        with pytest.raises(
            UsageError, match="lerobot's variants are pi0, pi05, pi0_fast, smolvla, act"
        ):
            load_lerobot(str(tmp_path), variant="pi5")

    @pytest.mark.parametrize(
        ("file", "others"),
        [
            ("adapter_config.json", ("config.json", "policy_preprocessor.json")),
            ("adapter_model.safetensors", ("config.json", "policy_preprocessor.json")),
            ("adapter_config.json", ()),
        ],
    )
    def test_a_fine_tuning_by_peft_is_not_taken_for_its_base(
        self, tmp_path: Path, file: str, others: tuple[str, ...]
    ) -> None:
        """What LeRobot's training by adapters leaves: they lie beside the configuration."""
        for other in others:
            (tmp_path / other).write_text('{"type": "pi05", "use_peft": true}')
        (tmp_path / file).write_text('{"peft_type": "LORA"}')
        with pytest.raises(PolicyError, match=f"{file} in it: .*PEFT.*base model; .*merge_and"):
            load_policy("lerobot", str(tmp_path))

    def test_a_stranger_s_tokenizer_does_not_run_its_code_unasked(self, tmp_path: Path) -> None:
        """Wherever it is named: LeRobot loads it with its code in any case."""
        directory = Path(
            checkpoint(
                tmp_path,
                {"type": "pi0_fast", "action_tokenizer_name": "physical-intelligence/fast"},
                "policy_preprocessor.json",
            )
        )
        with pytest.raises(MissingExtraError):
            load_lerobot(str(directory))
        step = {"registry_name": "x", "config": {"action_tokenizer_name": "evil/fast"}}
        (directory / "policy_postprocessor.json").write_text(json.dumps({"steps": [step]}))
        with pytest.raises(UsageError, match="names the tokenizer 'evil/fast', and LeRobot runs"):
            load_lerobot(str(directory))
        with pytest.raises(MissingExtraError):
            load_lerobot(str(directory), options={"trust_remote_code": "true"})
        with pytest.raises(UsageError, match="trust_remote_code is true or left out; got 'yes'"):
            load_lerobot(str(directory), options={"trust_remote_code": "yes"})

    def test_without_lerobot_the_extra_is_named(self, tmp_path: Path) -> None:
        directory = checkpoint(tmp_path, {"type": "act"}, "policy_preprocessor.json")
        with pytest.raises(MissingExtraError, match=r"pip install 'attnstore\[lerobot\]'"):
            load_lerobot(directory)

    def test_options(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="steps is a whole number"):
            load_lerobot(str(tmp_path), options={"steps": "0"})
        with pytest.raises(
            UsageError, match="lerobot has the options cameras, stats, steps, trust_remote_code"
        ):
            load_lerobot(str(tmp_path), options={"camera": "a:b"})
        with pytest.raises(NotFoundError, match="no such checkpoint directory"):
            load_lerobot(str(tmp_path / "none"))

    def test_a_policy_of_another_type(self) -> None:
        policy, pipeline = build("act")
        policy.config.type = "somebodys"
        with pytest.raises(PolicyError, match="type 'somebodys' are not supported; pi0, "):
            adapt_lerobot(policy, pipeline)

    @pytest.mark.parametrize(
        "kind", ["diffusion", "multi_task_dit", "vqbet", "tdmpc", "gaussian_actor"]
    )
    def test_a_policy_without_attention_over_images(self, tmp_path: Path, kind: str) -> None:
        """Found by its files, like any of LeRobot's; why it cannot be captured is said then."""
        directory = checkpoint(
            tmp_path, {"type": kind, "input_features": {}}, "policy_preprocessor.json"
        )
        name = find_policy(directory)
        with pytest.raises(
            PolicyError, match=f"type '{kind}' has no attention over images to capture: .*image"
        ):
            load_policy(name, directory)

    @pytest.mark.parametrize(("kind", "why"), [("eo1", "Qwen2.5-VL makes"), ("wall_x", "experts")])
    def test_a_policy_that_no_adapter_is_written_for(
        self, tmp_path: Path, kind: str, why: str
    ) -> None:
        directory = checkpoint(
            tmp_path, {"type": kind, "input_features": {}}, "policy_preprocessor.json"
        )
        with pytest.raises(
            PolicyError, match=f"type '{kind}' are not supported yet: .*{why}.*; pi0, "
        ):
            load_policy(find_policy(directory), directory)

    def test_weights_that_were_not_taken_are_noticed(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        policy = ActPolicy()
        file = tmp_path / "model.safetensors"
        state = {k: v.clone() for k, v in policy.state_dict().items()}
        save_file(state, file)
        check_weights("c", policy, file)
        save_file({k.removeprefix("model."): v for k, v in state.items()}, file)
        check_weights("c", policy, file)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(1)
        with pytest.raises(PolicyError, match="has not the checkpoint's weights"):
            check_weights("c", policy, file)
        file.write_bytes(b"short")
        with pytest.raises(PolicyError, match="model.safetensors cannot be read"):
            check_weights("c", policy, file)

    def test_digest_and_dtype(self) -> None:
        policy, pipeline = build("act")
        ours = adapt_lerobot(policy, pipeline)
        assert ours.dtype == "float32"
        assert ours.digest == adapt_lerobot(policy, pipeline).digest
        other = FAMILIES["act"](
            policy.config, pipeline, policy, checkpoint="c", digest_with={"steps": "3"}
        )
        assert other.digest != ours.digest


class TestFast:
    """FAST's tokens over a byte-level vocabulary, in which a character may be several tokens."""

    def test_each_token_has_the_numbers_that_end_in_it(self) -> None:
        words, fast = (
            prompt_tokenizer(),
            SimpleNamespace(bpe_tokenizer=byte_level_tokenizer(), min_token=-100, scale=10),
        )
        own = fast.bpe_tokenizer("".join(map(chr, (100, 97, 300, 112))))["input_ids"]
        assert len(own) == 5, "300 is two bytes and here two tokens"
        ids = [7, *(600 - i for i in own), 8]
        found = written(words, fast, ids, range(1, 6), own)
        assert found.coefficients == (
            None,
            ActionCoefficients(0, (0.0,)),
            ActionCoefficients(1, (-0.3,)),
            ActionCoefficients(2, ()),
            ActionCoefficients(2, (20.0,)),
            ActionCoefficients(3, (1.2,)),
            None,
        )
        assert [t.id for t in found.tokens] == ids
        assert [t.text for t in found.tokens[1:6]] == ["0", "-3", f"<{own[2]}>", "200", "12"]

    @pytest.mark.parametrize("strange", [-1, 100_000])
    def test_what_fast_cannot_decode_has_no_numbers(self, strange: int) -> None:
        """LeRobot moves the robot by zeros then, and logs a line."""
        words, fast = (
            prompt_tokenizer(),
            SimpleNamespace(bpe_tokenizer=byte_level_tokenizer(), min_token=0, scale=10),
        )
        found = written(words, fast, [300, 301], [0, 1], [5, strange])
        assert found.coefficients == (None, None)
        assert all(t.text for t in found.tokens)

    def test_the_prompt_ends_where_the_policy_begins(self) -> None:
        words = prompt_tokenizer()
        ids = words("Task: wipe, State: 12 -1;\n")["input_ids"]
        tokens = [Token(i, token_text(words, i)) for i in ids]
        spans = pi05_spans(tokens, bos=False, start=3, model_start=9)
        assert spans is not None
        assert [s.name for s in spans] == [
            "task_label", "task", "state_label", "state[0]", "state[1]", "state_end",
        ]  # fmt: skip
        assert "".join(t.text for t in spans[-1].tokens) == ";\n"
        assert (spans[0].start, spans[0].model_start, spans[-1].stop) == (3, 9, 3 + len(ids))


class TestMore:
    """``--vision`` and ``--token-stats``."""

    @pytest.mark.parametrize("kind", ["pi0", "pi05", "act"])
    def test_hidden_states_are_those_of_the_layout_s_tokens(self, kind: str) -> None:
        policy = shared(kind)
        policy.check_hidden()
        batch = policy.prepare([observe(1, WORDS[0]), observe(2, WORDS[1])])
        plain = policy.act(batch)
        seen: list[Any] = []
        with capture(
            policy, lambda record: None, watch=Watch(token_stats=True), hidden=seen.append
        ):
            actions = policy.act(batch)
        assert torch.equal(actions, plain)
        for phase, shape in policy.phases.items():
            found = [h for h in seen if h.phase == phase]
            assert len(found) == (shape.layers + 1) * (shape.steps or 1)
            last = batch.samples[0].layouts[phase].query.model_slices[-1].stop
            assert {h.states.shape[0] for h in found} == {2}
            assert all(h.states.shape[1] >= last for h in found)
        # The embedding that enters layer 0 is the sequence that the layout describes.
        with prefix_input(policy) as entered:
            policy.act(batch)
        first = next(h for h in seen if h.phase == "prefix")
        assert torch.equal(first.states, entered[0])

    def test_the_vision_tower_of_pi05(self) -> None:
        policy = shared("pi05")
        batch = policy.prepare([observe(1, WORDS[0]), observe(2, WORDS[1])])
        assert batch.encoded == (
            (0, "varied_camera_1"), (1, "varied_camera_1"), (0, "hand_camera"), (1, "hand_camera"),
            None, None,
        )  # fmt: skip
        shape = policy.encoder_shape()
        images = 0
        with capture(policy, watch=Watch(vision=True)) as session:
            policy.act(batch)
        for record in session.records:
            if record.phase == "vision":
                images += int(record.weights.shape[0])
                assert record.weights.shape[1:] == (shape.heads, 16, 16)
        assert images == len(batch.encoded) * shape.layers

    def test_what_cannot_be_shown_is_refused(self) -> None:
        with pytest.raises(UsageError, match="--vision: policy lerobot:act"):
            shared("act").encoder_shape()


def test_pixels_of_what_a_preprocessor_gets() -> None:
    """Rounded to the nearest byte, as torch does; bytes as they are; other whole numbers are refused."""
    policy = shared("act")
    values = torch.linspace(-0.1, 1.1, 2 * 3 * 40 * 50).reshape(2, 3, 40, 50)
    wanted = (values * 255).round().clamp(0, 255).to(torch.uint8)
    raw = {CAMERAS[0]: values, CAMERAS[1]: wanted}
    seen, fill = policy.observations(raw, ["a", "b"])
    fill()
    for row, each in enumerate(seen):
        assert len(each.images) == 2
        for image in each.images.values():
            np.testing.assert_array_equal(image, wanted[row].permute(1, 2, 0).numpy())
    with pytest.raises(ObservationError, match="an image of int16"):
        policy.observations({CAMERAS[0]: torch.zeros(3, 4, 4, dtype=torch.int16)}, ["a"])
