"""MolmoAct2 over the real LeRobot: ``make test-lerobot LEROBOT=/path/to/venv``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from ingest_fixtures import observe
from lerobot_fixture_real import ACTION_DOF, CHUNK, STEPS, save_molmoact2
from policy_contract import Captured, Case, as_array, run_captured

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.base import Batch, ObservationError, PolicyError
from attnstore.ingest.policies.checkpoint import files_of
from attnstore.ingest.policies.lerobot.molmoact2 import LeRobotMolmoAct2
from attnstore.ingest.policies.lerobot.policy import load_lerobot, recognises
from attnstore.store.errors import UsageError
from attnstore.store.format.tokens import Axis

# LeRobot's own copy of Molmo's configuration calls what transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`rope_config_validation`:FutureWarning")
SIGHTS = (observe(1, "put the red cube onto the pink plate"), observe(2, "Task: Wipe."))


def load(directory: Path, **options: str) -> LeRobotMolmoAct2:
    """Load a checkpoint and its weights as the command line does."""
    policy = load_lerobot(str(directory), options=options)
    assert isinstance(policy, LeRobotMolmoAct2)
    assert not policy.policy.training
    return policy


@contextmanager
def by_hand(noise: Any) -> Iterator[None]:
    """This noise where any is drawn."""

    def drawn(size: Any, *, device: Any, dtype: Any, generator: Any) -> Any:
        return noise.to(device, dtype).reshape(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", drawn)
        yield


def reference(policy: LeRobotMolmoAct2, batch: Batch) -> Any:
    """LeRobot's own call on what its preprocessor made."""
    inputs = {k: v.clone() for k, v in batch.inputs.items() if k != "noise"}
    with by_hand(batch.inputs["noise"]):
        return as_array(policy.policy.predict_action_chunk(inputs))


@torch.no_grad()
def euler(policy: LeRobotMolmoAct2, batch: Batch) -> list[Any]:
    """The chunk after each step: MolmoAct2's modules, a loop of ours."""
    model = policy.policy._backbone()
    given = policy.policy._model_inputs(batch.inputs)
    low = policy.config.model_dtype == "bfloat16"
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=low),
        by_hand(batch.inputs["noise"]),
    ):
        seen = model(**given, use_cache=True)
        chunk = batch.inputs["noise"].to(model.action_expert.action_embed.weight.dtype)
        real = torch.arange(chunk.shape[-1]) < ACTION_DOF
        chunk = torch.where(real, chunk, 0)
        context = model.action_expert.prepare_context(
            encoder_kv_states=model._extract_kv_states(seen.past_key_values),
            encoder_attention_mask=model._get_encoder_attention_mask(
                given["input_ids"], given["attention_mask"]
            ),
            batch_size=len(chunk), seq_len=chunk.shape[1], device=chunk.device, dtype=chunk.dtype,
        )  # fmt: skip
        chunks = []
        for step in range(STEPS):
            at = torch.full((len(chunk),), step / STEPS)
            velocity = model.action_expert.forward_with_context(chunk, at, context=context)
            chunk = torch.where(real, chunk + 1 / STEPS * torch.where(real, velocity, 0), 0)
            chunks.append(chunk[:, :CHUNK, :ACTION_DOF].float())
    return chunks


class MolmoAct2Contract(BlockingContract):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Case:
        directory = tmp_path_factory.mktemp("lerobot") / "checkpoint"
        policy = load(save_molmoact2(directory, **cls.options))
        return Case(
            policy, SIGHTS, module=policy.policy, reference=lambda b: reference(policy, b),
            euler=lambda b: euler(policy, b), dataset=lambda: DroidDataset(recordings, limit=1),
        )  # fmt: skip


def names(axis: Axis) -> list[str]:
    return [span.name for span in axis]


class TestMolmoAct2(MolmoAct2Contract):
    """As it is released: a network that was also taught to write tokens."""

    def test_the_ends_of_turns_are_in_the_prefix_alone(self, captured: Captured) -> None:
        state = [f"state[{i}]" for i in range(8)]
        whole = [
            "end[0]", "template[0]", "image:varied_camera_1", "template[1]", "image:hand_camera",
            "template[2]", "task", "template[3]", *state, "template[4]", "end[1]", "template[5]",
        ]  # fmt: skip
        for sample in captured.batch.samples:
            assert names(sample.layouts["prefix"].key) == whole
            seen = [name for name in whole if not name.startswith("end[")]
            assert names(sample.layouts["suffix"].key) == seen

    def test_the_task_is_what_the_policy_reads(self, captured: Captured) -> None:
        said = [
            "".join(token.text for span in sample.layouts["prefix"].key if span.name == "task" for token in span.tokens)
            for sample in captured.batch.samples
        ]  # fmt: skip
        assert [text.strip() for text in said] == [SIGHTS[0].instruction, "wipe"]

    def test_images_attend_to_one_another_and_words_to_what_is_before(
        self, captured: Captured
    ) -> None:
        layout = captured.batch.samples[0].layouts["prefix"].key
        at = {s.name: slice(s.model_start, s.model_start + len(s)) for s in layout}
        (weights,) = (w[0] for p, n, _, w, _ in captured.records if (p, n) == ("prefix", 0))
        assert (weights[:, at["image:varied_camera_1"], at["image:hand_camera"]] > 0).all()
        assert not weights[
            :, at["template[0]"].start : at["template[0]"].stop - 1, at["task"]
        ].any()
        assert not weights[:, at["task"], at["state[0]"]].any()

    def test_no_cuda_graph_replays_what_is_watched(self, case: Case) -> None:
        policy = case.policy
        assert isinstance(policy, LeRobotMolmoAct2)
        graphs = policy.policy._backbone().action_cuda_graph_manager
        assert graphs.enabled
        with policy.eager():
            assert not graphs.enabled
        assert graphs.enabled


class TestInBfloat16(MolmoAct2Contract):
    """Under autocast; a network that writes no tokens; tokens of 3x3 patches, 4 of which there are."""

    options: ClassVar = {
        "model_dtype": "bfloat16",
        "network": {"action_mode": "continuous", "adapter_config": {"pooling_attention_mask": False}},
        "images": {"size": {"height": 56, "width": 56}, "pooling_size": [3, 3]},
    }  # fmt: skip

    def test_the_suffix_sees_all_that_the_prefix_does(self, captured: Captured) -> None:
        layouts = captured.batch.samples[0].layouts
        assert names(layouts["suffix"].key) == names(layouts["prefix"].key)


@torch.no_grad()
@pytest.mark.parametrize(
    "images",
    [
        {},
        {"size": {"height": 56, "width": 56}, "pooling_size": [3, 3]},
        {"size": {"height": 56, "width": 84}, "pooling_size": [2, 4]},
    ],
)
def test_a_block_of_pixels_changes_the_tokens_that_the_geometry_says(
    tmp_path: Path, images: dict[str, Any]
) -> None:
    """Through LeRobot's processor, the patches, their pooling and the prompt, up to the language model.

    The encoder's own attention is switched off, which would mix them all.
    """
    policy = load(save_molmoact2(tmp_path / "c", images=images))
    model = policy.policy._backbone()
    for block in model.vision_backbone.image_vit.transformer.resblocks:
        block.attention.wo.weight.zero_()
        block.attention.wo.bias.zero_()
    seen: list[Any] = []
    hook = model.transformer.blocks[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    dark = {camera: np.zeros((90, 160, 3), np.uint8) for camera in SIGHTS[0].images}

    def entering(pictures: dict[str, Any]) -> Any:
        batch = policy.prepare([replace(SIGHTS[0], images=pictures)])
        policy.act(batch)
        return seen.pop()[0], batch.samples[0]

    before, sample = entering(dark)
    found = set()
    for camera in dark:
        span = next(s for s in sample.layouts["prefix"].key if s.camera == camera)
        geometry = sample.geometry[camera]
        for top, left in [(0, 0), (2, 146), (40, 70), (78, 4), (78, 148), (20, 100)]:
            lit = {**dark, camera: dark[camera].copy()}
            lit[camera][top : top + 12, left : left + 12] = 255
            after, _ = entering(lit)
            changed = set((after != before).any(-1).nonzero().flatten().tolist())

            def cells(
                margin: float, top: int = top, left: int = left, g: Any = geometry
            ) -> set[int]:
                """Tokens of the boxes that the block reaches into, grown by a margin in pixels."""
                rows, cols = g.source_to_grid(
                    np.array([top - margin, top + 12 + margin]),
                    np.array([left - margin, left + 12 + margin]),
                )
                low = [max(0, int(np.floor(a[0]))) for a in (rows, cols)]
                high = [
                    min(n, int(np.ceil(a[1]))) for a, n in zip((rows, cols), g.grid, strict=True)
                ]
                return {
                    span.model_start + r * g.grid[1] + c  # noqa: B023 - called in this round
                    for r in range(low[0], high[0])
                    for c in range(low[1], high[1])
                }

            # A pixel of the input is mixed of its neighbours in the source, 160 of them for 56.
            assert cells(-2) <= changed <= cells(2), (camera, top, left)
            found |= changed
    assert len(found) >= 8
    hook.remove()


class TestRefused:
    @pytest.mark.parametrize(
        ("images", "why"),
        [
            ({"crop_mode": "overlap-and-resize-c2", "max_crops": 2, "overlap_margins": [1, 1]}, "cuts images"),
            ({"use_single_crop_col_tokens": True}, "marks each row's end"),
        ],
    )  # fmt: skip
    def test_images_that_are_no_one_grid(
        self, tmp_path: Path, images: dict[str, Any], why: str
    ) -> None:
        with pytest.raises(PolicyError, match=why):
            load(save_molmoact2(tmp_path / "c", images=images))

    def test_actions_that_are_written_as_tokens(self, tmp_path: Path) -> None:
        directory = save_molmoact2(tmp_path / "c")
        file = directory / "config.json"
        said = json.loads(file.read_text()) | {
            "action_mode": "both", "inference_action_mode": "discrete",
        }  # fmt: skip
        file.write_text(json.dumps(said))
        with pytest.raises(PolicyError, match="it writes its actions as tokens"):
            load(directory)

    def test_a_camera_without_which_the_others_would_be_numbered_anew(self, tmp_path: Path) -> None:
        policy = load(save_molmoact2(tmp_path / "c"))
        one = replace(SIGHTS[0], images=dict(list(SIGHTS[0].images.items())[:1]))
        with pytest.raises(ObservationError, match="would number the others anew"):
            policy.prepare([one])

    def test_statistics_without_what_stays_as_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="stats=FILE is not for a MolmoAct2"):
            load(save_molmoact2(tmp_path / "c"), stats="stats.json")

    def test_noise_of_a_generator_that_a_recording_does_not_have(self, tmp_path: Path) -> None:
        policy = load(save_molmoact2(tmp_path / "c", per_episode_seed=True, eval_seed=3))
        with pytest.raises(PolicyError, match="per_episode_seed"):
            policy.draw_noise(1)


def test_what_ai2_publishes_is_told_apart(tmp_path: Path) -> None:
    saved = save_molmoact2(tmp_path / "c")
    found = recognises(files_of(saved))
    assert found is not None
    assert found.missing is None
    found = recognises(files_of(tmp_path / "molmo"))
    assert found is not None
    assert "as Ai2 publishes it" in str(found.missing)


def test_steps_and_data_type_may_be_given(tmp_path: Path) -> None:
    directory = save_molmoact2(tmp_path / "c")
    policy = load(directory, steps="2")
    assert policy.phases["suffix"].steps == 2
    assert len(run_captured(policy, policy.prepare(SIGHTS)).session.noisy_actions) == 2
    assert policy.digest != load(directory).digest
    assert load_lerobot(str(directory), dtype="bfloat16").dtype == "bfloat16"
