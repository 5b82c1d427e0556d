"""X-VLA over the real LeRobot: ``make test-lerobot LEROBOT=/path/to/venv``."""

from __future__ import annotations

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
from lerobot_fixture_real import STEPS, save_xvla
from policy_contract import Captured, Case, as_array, run_captured

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.base import Batch, ObservationError
from attnstore.ingest.policies.lerobot.policy import load_lerobot
from attnstore.ingest.policies.lerobot.xvla import LeRobotXvla
from attnstore.store.format.tokens import Axis

SIGHTS = (observe(1, "put the red cube onto the pink plate"), observe(2, "wipe"))


def load(directory: Path, **options: str) -> LeRobotXvla:
    """Load a checkpoint and its weights as the command line does."""
    policy = load_lerobot(str(directory), options=options)
    assert isinstance(policy, LeRobotXvla)
    assert not policy.policy.training
    return policy


@contextmanager
def by_hand(noise: Any) -> Iterator[None]:
    """This noise where any is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "randn", lambda *size, device, dtype: noise.to(device, dtype).reshape(size)
        )
        yield


def reference(policy: LeRobotXvla, batch: Batch) -> Any:
    """LeRobot's own call on what its preprocessor made."""
    inputs = {k: v.clone() for k, v in batch.inputs.items() if k != "noise"}
    with by_hand(batch.inputs["noise"]):
        return as_array(policy.policy.predict_action_chunk(inputs))


@torch.no_grad()
def euler(policy: LeRobotXvla, batch: Batch) -> list[Any]:
    """The chunk after each step, as the action space returns it: X-VLA's modules, a loop of ours."""
    model, given = policy.model, policy.policy._build_model_inputs(dict(batch.inputs))
    noise = batch.inputs["noise"].to(model.transformer.pos_emb.dtype)
    with by_hand(noise):
        made = model.forward_vlm(
            given["input_ids"], given["image_input"].to(noise.dtype), given["image_mask"]
        )
        chunk, chunks = noise, []
        for step in range(STEPS):
            t = torch.full((len(noise),), (STEPS - step) / STEPS, dtype=noise.dtype)
            proprio, hidden = model.action_space.preprocess(given["proprio"].to(noise.dtype), chunk)
            said = model.transformer(
                domain_id=given["domain_id"], action_with_noise=hidden, proprio=proprio, t=t, **made
            )
            left = torch.full((len(noise),), (STEPS - step - 1) / STEPS, dtype=noise.dtype).view(
                -1, 1, 1
            )
            chunk = noise * left + said * (1 - left)
            chunks.append(model.action_space.postprocess(chunk.clone()))
    return chunks


class XvlaContract(BlockingContract):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Case:
        policy = load(save_xvla(tmp_path_factory.mktemp("lerobot") / "checkpoint", **cls.options))
        return Case(
            policy, SIGHTS, module=policy.policy, reference=lambda b: reference(policy, b),
            euler=lambda b: euler(policy, b), dataset=lambda: DroidDataset(recordings, limit=1),
        )  # fmt: skip


def names(axis: Axis) -> list[str]:
    return [span.name for span in axis]


class TestXvla(XvlaContract):
    def test_the_first_view_is_in_the_prefix_and_the_others_apart(
        self, case: Case, captured: Captured
    ) -> None:
        first, other = "varied_camera_1", "hand_camera"  # as the configuration has them
        text = ["bos", "task", "eos", "padding"]
        before = [f"mean:{first}", f"image:{first}", *text]
        layouts = captured.batch.samples[0].layouts
        assert names(layouts["prefix"].key) == before
        policy: Any = case.policy
        empty = [f"empty_view[{i}]" for i in range(policy.config.num_image_views - 2)]
        assert empty
        aside = [f"mean:{other}", f"image:{other}", *empty]
        assert names(layouts["suffix"].key) == ["action", *before, *aside, "soft_prompt"]
        assert names(layouts["suffix"].query) == ["action", "soft_prompt"]

    def test_an_image_is_where_its_span_says(self, case: Case, captured: Captured) -> None:
        """What changes in the head's input when one view changes is that view's span."""
        policy = case.policy
        assert isinstance(policy, LeRobotXvla)

        def entering(sight: Any) -> Any:
            seen: list[Any] = []
            block = policy.model.transformer.blocks[0]
            hook = block.register_forward_pre_hook(
                lambda module, args: seen.append(args[0].clone())
            )
            try:
                policy.act(policy.prepare([sight]))
            finally:
                hook.remove()
            return seen[0][0]

        one = SIGHTS[0]
        before = entering(one)
        spans = {s.name: s for s in captured.batch.samples[0].layouts["suffix"].key}
        for camera in one.images:
            changed = replace(one, images={**one.images, camera: 255 - one.images[camera]})
            moved = (entering(changed) != before).any(-1).nonzero().flatten().tolist()
            low = spans[f"mean:{camera}"].model_start
            view = set(range(low, low + 1 + len(spans[f"image:{camera}"])))
            if camera == "hand_camera":
                assert set(moved) == view
            else:  # it is mixed with the prompt before
                through = range(low, spans["padding"].model_start + len(spans["padding"]))
                assert set(moved) == set(through)


class TestLeRobotsOwnSize(XvlaContract):
    """End-effector poses in 6 dimensions, in bfloat16, images as they are."""

    options: ClassVar = {
        "action_mode": "ee6d", "dtype": "bfloat16", "resize_imgs_with_padding": None,
        "empty_cameras": 0, "max_state_dim": 20,
    }  # fmt: skip

    def test_actions_have_the_action_spaces_size(self, case: Case) -> None:
        assert case.policy.action_dof == 20


def test_a_cell_is_centred_where_the_geometry_says(tmp_path: Path) -> None:
    """A ramp through LeRobot's resize and DaViT's convolutions, each a mean: a cell's value is its place."""
    policy = load(save_xvla(tmp_path / "c", resize_imgs_with_padding=(192, 256)))
    rows, cols = np.indices((90, 160), dtype=np.uint8)
    for axis, ramp in enumerate((rows, cols)):
        images = {camera: np.stack([ramp] * 3, -1) for camera in SIGHTS[0].images}
        batch = policy.prepare([replace(SIGHTS[0], images=images)])
        made, _ = policy.policy._prepare_images(dict(batch.inputs))
        values = made[0, :1, :1]
        for conv in policy.model.vlm.vision_tower.convs:
            kernel = torch.full((1, 1, conv.patch_size, conv.patch_size), conv.patch_size**-2.0)
            values = torch.nn.functional.conv2d(
                values, kernel, stride=conv.stride, padding=conv.padding
            )
        geometry = batch.samples[0].geometry["hand_camera"]
        assert geometry.grid == tuple(values.shape[-2:]) == (6, 8)
        inside = np.ix_(range(3, 6), range(1, 7))  # the rest sees padding
        places = ((values[0, 0] * 0.229 + 0.485) * 255 + 0.5).numpy()
        r, c = np.indices(geometry.grid) + 0.5
        said = geometry.grid_to_source(r, c)[axis]
        np.testing.assert_allclose(places[inside], said[inside], atol=0.05)


class TestRefused:
    def test_a_view_that_another_would_take_the_place_of(self, tmp_path: Path) -> None:
        policy = load(save_xvla(tmp_path / "c"))
        first = next(iter(policy.config.image_features)).removeprefix("observation.images.")
        images = {c: i for c, i in SIGHTS[0].images.items() if c != first}
        with pytest.raises(ObservationError, match=f"no image for observation.images.{first}"):
            policy.prepare([replace(SIGHTS[0], images=images)])

    def test_a_state_that_would_be_cut_and_images_of_two_sizes(self, tmp_path: Path) -> None:
        policy = load(save_xvla(tmp_path / "c", resize_imgs_with_padding=None))
        long = np.zeros(11, np.float32)
        with pytest.raises(ObservationError, match="11 components, c sees 9 and would cut it"):
            policy.prepare([replace(SIGHTS[0], state=long)])
        images = dict(SIGHTS[0].images)
        images["hand_camera"] = images["hand_camera"][:32]
        with pytest.raises(ObservationError, match="does not resize images, and they differ: "):
            policy.prepare([replace(SIGHTS[0], images=images)])


def test_steps_may_be_given(tmp_path: Path) -> None:
    policy = load(save_xvla(tmp_path / "c"), steps="2")
    assert policy.phases["suffix"].steps == 2
    assert len(run_captured(policy, policy.prepare(SIGHTS)).session.noisy_actions) == 2
