"""GR00T N1.7 over the real LeRobot: ``make test-lerobot LEROBOT=/path/to/venv``."""

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
from lerobot_fixture_real import ACTION_DOF, CHUNK, STEPS, save_groot
from numpy.typing import NDArray
from policy_contract import Captured, Case, as_array, run_captured

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.base import Batch, Observation, ObservationError, PolicyError
from attnstore.ingest.policies.lerobot.groot import LeRobotGroot
from attnstore.ingest.policies.lerobot.policy import load_lerobot
from attnstore.ingest.recording.dataset import RecordingDataset
from attnstore.store.errors import HealthError

WORDS = ("put the red cube onto the pink plate", "wipe")
SIGHTS = (observe(1, WORDS[0]), observe(2, WORDS[1]))


def load(directory: Path, **options: str) -> LeRobotGroot:
    """Load a checkpoint and its weights as the command line does."""
    policy = load_lerobot(str(directory), options=options)
    assert isinstance(policy, LeRobotGroot)
    assert not policy.policy.training
    return policy


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def alone(policy: LeRobotGroot, sight: Observation) -> dict[str, Any]:
    """What LeRobot's preprocessor makes of one observation, so without padding."""
    return {k: v for k, v in policy.prepare([sight]).inputs.items() if k != "noise"}


@torch.no_grad()
def euler(policy: LeRobotGroot, sight: Observation) -> list[Any]:
    """The model's chunk after each step: GR00T's own modules, a loop of ours, its own noise."""
    model, head = policy.model, policy.model.action_head
    inputs, autocast = alone(policy, sight), policy.config.use_bf16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), seeded(sight.seed):
        seen, given = model.prepare_input(
            policy.policy._filter_groot_inputs(inputs, include_action=False)
        )
        seen = model.backbone(seen)
        made = head._encode_features(seen, given)
        chunk = torch.randn(1, head.action_horizon, head.action_dim)
        masks = {}
        if head.config.use_alternate_vl_dit:
            masks = {
                "image_mask": seen.image_mask,
                "backbone_attention_mask": seen.backbone_attention_mask,
            }
        chunks = []
        for step in range(STEPS):
            at = torch.full((1,), step * 1000 // STEPS)
            own = head.action_encoder(chunk, at, given.embodiment_id)
            own = own + head.position_embedding(torch.arange(own.shape[1]))[None]
            out = head.model(
                hidden_states=torch.cat([made.state_features, own], 1),
                encoder_hidden_states=made.backbone_features, timestep=at, **masks,
            )  # fmt: skip
            velocity = head.action_decoder(out, given.embodiment_id)[:, -head.action_horizon :]
            chunk = chunk + 1 / STEPS * velocity
            chunks.append(chunk[:, :CHUNK, :ACTION_DOF])
    return chunks


class GrootContract(BlockingContract):
    """The reference is LeRobot's own call on one observation after the other, drawing its own noise."""

    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Case:
        directory = tmp_path_factory.mktemp("lerobot") / "checkpoint"
        policy = load(save_groot(directory, **cls.options))

        def sights(batch: Batch) -> tuple[Observation, ...]:
            # an ingest's batches have one observation of its own
            return SIGHTS if len(batch) == 2 else (ingested[-1],)

        ingested: list[Observation] = []
        prepare = policy.prepare

        def preparing(given: Any) -> Batch:
            ingested.extend(given)
            return prepare(given)

        policy.prepare = preparing  # type: ignore[method-assign,assignment]

        def reference(batch: Batch) -> Any:
            chunks = []
            for sight in sights(batch):
                with seeded(sight.seed):
                    chunks.append(policy.policy.predict_action_chunk(alone(policy, sight)))
            return as_array(torch.cat(chunks))

        def chunks(batch: Batch) -> list[Any]:
            own = [euler(policy, sight) for sight in sights(batch)]
            return [torch.cat(step) for step in zip(*own, strict=True)]

        return Case(
            policy, SIGHTS, module=policy.policy, reference=reference, euler=chunks,
            dataset=lambda: DroidDataset(recordings, limit=1),
        )  # fmt: skip


def seen_by(captured: Captured, layer: int) -> set[str]:
    """Which tokens a layer of the suffix attends to at all."""
    spans = captured.batch.samples[0].layouts["suffix"].key
    found: set[str] = set()
    for phase, own, _, weights, _ in captured.records:
        for span in spans if (phase, own) == ("suffix", layer) else ():
            if weights[0, ..., span.model_start : span.model_start + len(span)].any():
                found.add(span.kind)
    return found


class TestTurns(GrootContract):
    def test_text_images_and_its_own_tokens_in_turn(self, captured: Captured) -> None:
        own = {"state", "action"}
        assert [seen_by(captured, n) for n in range(4)] == [{"text"}, own, {"image"}, own]

    def test_a_sample_is_shown_as_it_is_alone(self, case: Case, captured: Captured) -> None:
        """The joint layers have no mask: padding would be attended to."""
        single = run_captured(case.policy, case.policy.prepare(SIGHTS[1:]))
        np.testing.assert_array_equal(single.actions[0], captured.actions[1])
        for (*place, small, _), (*other, whole, _) in zip(
            single.records, captured.records, strict=True
        ):
            assert place == other
            np.testing.assert_array_equal(whole[1][:, : small.shape[2], : small.shape[3]], small[0])

    @pytest.mark.parametrize("mode", ["live", "replay"])
    def test_rows_of_a_batch_are_recorded_each_as_it_acted(
        self, case: Case, tmp_path: Path, mode: str
    ) -> None:
        """Patches of all rows' images are in one array: a row of it would be a patch of somebody's."""
        policy: Any = case.policy
        with attnstore.record(policy, tmp_path / "s", mode=mode) as recorder:  # type: ignore[arg-type]
            episodes = [recorder.episode(f"row-{i}") for i in range(2)]
            with recorder.rows(episodes):
                chunks = policy.act(policy.prepare(SIGHTS))
            for episode in episodes:
                episode.finish(outcome="success")
        assert not recorder.faults
        if mode == "live":
            assert [o.status for o in recorder.outcomes] == ["committed"] * 2
        recorded = RecordingDataset(recorder.directory)
        for i, name in enumerate(recorded.episode_names()):
            (frame,) = recorded.frames(name, [0])
            assert frame.call is not None
            np.testing.assert_array_equal(frame.call.actions, as_array(chunks[i]))
            # alone, from its own inputs, it does the same again; live it was eager
            again, apart = as_array(policy.act(frame.call.batch)[0]), 1e-4 if mode == "live" else 0
            np.testing.assert_allclose(again, frame.call.actions, rtol=0, atol=apart)


class TestEverything(GrootContract):
    """The plain DiT: images and text at once; no layers between; as LeRobot runs it, under autocast."""

    options: ClassVar = {"alternate": False, "joint": 0, "use_bf16": True}

    def test_images_and_text_at_once(self, case: Case, captured: Captured) -> None:
        assert "joint" not in case.policy.phases
        assert [seen_by(captured, n) for n in (0, 2)] == [{"text", "image"}] * 2


def pixels(policy: LeRobotGroot, sight: Observation) -> NDArray[Any]:
    """What the encoder sees of the first camera, (height, width), by its merged token."""
    inputs = policy.prepare([sight]).inputs
    _, rows, cols = inputs["image_grid_thw"][0].tolist()
    # A token is 2x2 patches that follow each other; a patch is channel, moment, row, column.
    own = inputs["pixel_values"][: rows * cols].reshape(rows // 2, cols // 2, 2, 2, 3, 2, 16, 16)
    image = own[..., 0, 0, :, :].permute(0, 2, 4, 1, 3, 5).reshape(rows * 16, cols * 16)
    return np.asarray(image.double().numpy())


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"letter_box_transform": True},
        {"shortest_image_edge": 120, "crop_fraction": 0.8, "image_crop_size": None},
        {"use_albumentations": True},
        {"use_albumentations": True, "letter_box_transform": True, "crop_fraction": 0.9},
    ],
)
@pytest.mark.parametrize("place", [(30, 44), (48, 110)])
def test_a_bright_square_is_where_the_geometry_says(
    tmp_path: Path, processor: dict[str, Any], place: tuple[int, int]
) -> None:
    policy = load(save_groot(tmp_path / "c", processor=processor))
    dark = {camera: np.zeros((90, 160, 3), np.uint8) for camera in SIGHTS[0].images}
    lit = {camera: image.copy() for camera, image in dark.items()}
    y, x = place
    for image in lit.values():
        image[y - 4 : y + 4, x - 4 : x + 4] = 255
    found = pixels(policy, replace(SIGHTS[0], images=lit))
    found = np.abs(found - pixels(policy, replace(SIGHTS[0], images=dark)))
    geometry = policy.prepare([replace(SIGHTS[0], images=lit)]).samples[0].geometry["hand_camera"]
    assert found.shape == geometry.input
    rows, cols = np.indices(found.shape) + 0.5
    centre = np.array([(found * rows).sum(), (found * cols).sum()]) / found.sum()
    said = geometry.source_to_grid(np.array(float(y)), np.array(float(x)))
    np.testing.assert_allclose(centre, np.array(said) * geometry.patch, atol=0.6)
    shown = found.reshape(geometry.grid[0], 32, geometry.grid[1], 32).sum((1, 3))
    token = np.unravel_index(shown.argmax(), shown.shape)
    assert token == (int(said[0]), int(said[1]))


class TestRefused:
    def test_cameras_that_groot_would_drop_or_miss(self, tmp_path: Path) -> None:
        policy = load(save_groot(tmp_path / "c"))
        one = replace(SIGHTS[0], images=dict(list(SIGHTS[0].images.items())[:1]))
        with pytest.raises(ObservationError, match="GR00T would go on with 1 of them"):
            policy.prepare([one])
        said = {
            "modality_configs": {"new_embodiment": {"video": {"modality_keys": ["hand_camera"]}}}
        }
        policy = load(save_groot(tmp_path / "other" / "c", processor=said))
        with pytest.raises(ObservationError, match="was trained with hand_camera, and the obs"):
            policy.prepare([SIGHTS[0]])

    def test_a_state_that_groot_would_not_normalise(self, tmp_path: Path) -> None:
        directory = save_groot(tmp_path / "c")
        stats = tmp_path / "stats.json"
        stats.write_text('{"action": {"min": [0], "max": [1]}}')
        with pytest.raises(ObservationError, match="no min of observation.state"):
            load(directory, stats=str(stats)).prepare([SIGHTS[0]])
        stats.write_text('{"observation.state": {"min": [0, 0], "max": [1, 1]}}')
        with pytest.raises(ObservationError, match="min of observation.state has 2"):
            load(directory, stats=str(stats)).prepare([SIGHTS[0]])

    def test_several_moments(self, tmp_path: Path) -> None:
        two = {"modality_configs": {"new_embodiment": {"video": {"delta_indices": [-1, 0]}}}}
        with pytest.raises(PolicyError, match="it sees 2 moments at once"):
            load(save_groot(tmp_path / "c", processor=two))

    def test_noise_that_is_drawn_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = load(save_groot(tmp_path / "c"))
        batch = policy.prepare([SIGHTS[0]])
        drawn = torch.randn(1, 6, 10)
        monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn)
        with pytest.raises(HealthError, match="0 times; once is expected"):
            policy.act(batch)


def test_steps_may_be_given(tmp_path: Path) -> None:
    directory = save_groot(tmp_path / "c")
    policy = load(directory, steps="2")
    assert policy.phases["suffix"].steps == 2
    assert len(run_captured(policy, policy.prepare(SIGHTS)).session.noisy_actions) == 2
    assert policy.digest != load(directory).digest
