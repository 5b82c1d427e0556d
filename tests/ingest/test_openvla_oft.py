"""OpenVLA-OFT: the contract on a small model with its seams, layout, state, platforms, what it is told by."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from ingest_fixtures import observe
from numpy.typing import NDArray
from openvla_fixture import KEY, LAYERS, TinyProcessor, llama_tokenizer
from openvla_oft_fixture import CHUNK, DOF, OFT_STATISTICS, ROBOT, STEPS, TinyOft, oft_parts_of
from policy_contract import Case, run_captured

from attnstore.ingest.policies.base import Batch, ObservationError, PolicyError
from attnstore.ingest.policies.blocking import Blocked, block_by_mask
from attnstore.ingest.policies.hooks import Watched
from attnstore.ingest.policies.openvla.oft.loading import adapt_oft
from attnstore.ingest.policies.openvla.oft.parts import Parts, find_parts
from attnstore.ingest.policies.openvla.oft.policy import OftPolicy, parse_cameras
from attnstore.ingest.policies.openvla.oft.robot import pick_platform, scaled_state
from attnstore.ingest.policies.openvla.oft.sources import import_sources
from attnstore.ingest.policies.registry import find_policy
from attnstore.ingest.policies.sdpa import SdpaTap, block_sdpa
from attnstore.store.errors import HealthError, MissingExtraError, UsageError

SIDE, WRIST = "varied_camera_1", "hand_camera"
CAMERAS = {"cameras": f"{SIDE},{WRIST}"}


@pytest.fixture(scope="session")
def processor() -> TinyProcessor:
    return TinyProcessor(llama_tokenizer())


def adapted(processor: TinyProcessor, *, diffusion: bool = False, **options: str) -> OftPolicy:
    if diffusion:
        options["steps"] = str(STEPS)
    parts = oft_parts_of(diffusion=diffusion)
    return adapt_oft(TinyOft(), processor, parts, ROBOT, options={**CAMERAS, **options})


def reference_of(parts: Parts, images: int, seeds: tuple[int, ...] | None = None) -> Any:
    """Actions of a model of its own, called as a user calls it, known to no adapter.

    Without seeds its noise is that of the batch.
    """
    twin = TinyOft()
    twin.vision_backbone.set_num_images_in_input(images)

    def reference(batch: Batch) -> NDArray[np.float32]:
        found: list[Any] = []
        for row in range(len(batch)):
            given = batch.inputs
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices=[]),
                pytest.MonkeyPatch.context() as patch,
            ):
                if seeds is None:
                    patch.setattr(torch, "randn", lambda noise=given["noise"][row], **_: noise)
                else:
                    torch.manual_seed(seeds[row])
                twin.__dict__["_unnormalize_actions"] = lambda a, key: found.append(a)
                twin.predict_action(
                    given["input_ids"][row], KEY, attention_mask=given["attention_mask"][row],
                    pixel_values=given["pixel_values"][row], do_sample=False,
                    proprio=given["state"][row][0].numpy(), proprio_projector=parts.state,
                    noisy_action_projector=parts.noisy, action_head=parts.head, use_film=False,
                )  # fmt: skip
        return np.stack(found)

    return reference


SIGHTS = (observe(1), observe(2, "wipe"))


class TestRegression(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, processor: TinyProcessor) -> Case:
        policy = adapted(processor)
        wanted = reference_of(oft_parts_of(diffusion=False), 2, (0, 0))
        return Case(policy, SIGHTS, module=policy.model, reference=wanted, seeded=False)


class TestDiffusion(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, processor: TinyProcessor) -> Case:
        policy = adapted(processor, diffusion=True, cameras=SIDE)
        parts = oft_parts_of(diffusion=True)
        wanted = reference_of(parts, 1, tuple(s.seed for s in SIGHTS))

        def euler(batch: Batch) -> list[NDArray[np.float32]]:
            """From what the projector of noisy actions was given, and the chunk itself."""
            found: list[Any] = []
            assert parts.noisy is not None
            handle = parts.noisy.register_forward_pre_hook(
                lambda m, args: found.append(args[0].reshape(1, CHUNK, DOF).numpy())
            )
            chunk = reference_of(parts, 1)(batch)
            handle.remove()
            return [*found[1:], chunk]

        return Case(policy, SIGHTS, module=policy.model, reference=wanted, euler=euler)


def test_every_token_has_its_place_in_the_sequence(processor: TinyProcessor) -> None:
    batch = adapted(processor).prepare([observe(1)])
    (layout,) = batch.samples[0].layouts.values()
    names = [(s.name, s.kind, len(s)) for s in layout.key]
    assert names[:4] == [
        ("template[0]", "text", 1),
        (f"image:{SIDE}", "image", 256),
        (f"image:{WRIST}", "image", 256),
        ("state", "state", 1),
    ]
    assert names[-4:] == [
        ("action[0]", "action", 7),
        ("action[1]", "action", 7),
        ("action[2]", "action", 7),
        ("end", "other", 2),
    ]
    said = "".join(t.text for s in layout.key for t in s.tokens)
    assert said == (
        "<s> In: What action should the robot take to put the red cube onto the pink plate?\nOut:"
    )
    # BOS, images, state, the prompt without BOS, an empty word; numbers; the end marker
    prompt = batch.inputs["input_ids"][0].shape[1] - 1
    assert layout.key.spans[-4].model_start == 1 + 512 + 1 + prompt
    assert len(layout.key) == 1 + 512 + 1 + prompt + 1 + CHUNK * DOF + 1
    (steps,) = adapted(processor, diffusion=True).prepare([observe(1)]).samples[0].layouts.values()
    assert [s.name for s in steps.query] == ["action[0]", "action[1]", "action[2]"]
    assert [s.name for s in steps.key][3:5] == ["state", "timestep"]
    assert len(steps.key) == len(layout.key) + 1
    assert steps.query.spans[0].model_start == layout.key.spans[-4].model_start + 1


@pytest.mark.parametrize("diffusion", [False, True])
def test_weights_are_those_of_an_eager_twin(processor: TinyProcessor, diffusion: bool) -> None:
    """Its own ``output_attentions``, of the first pass."""
    policy = adapted(processor, diffusion=diffusion)
    batch = policy.prepare([observe(4)])
    captured = run_captured(policy, batch)
    given: list[Any] = []
    handle = policy.model.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    policy.act(batch)
    handle.remove()
    twin = TinyOft()
    twin.language_model.set_attn_implementation("eager")
    assert len(captured.records) == LAYERS * len(given)
    for _, layer, step, weights, _ in captured.records:
        with torch.no_grad():
            wanted = twin.language_model(**given[step or 0], output_attentions=True).attentions
        np.testing.assert_allclose(weights, wanted[layer].numpy(), atol=2e-6)
    assert (captured.records[0][3][0, :, 0, -1] > 0).all(), "both ways"


def test_the_state_is_scaled_as_its_evaluation_does(processor: TinyProcessor) -> None:
    low = np.array(OFT_STATISTICS[KEY]["proprio"]["q01"])
    high = np.array(OFT_STATISTICS[KEY]["proprio"]["q99"])
    state = low + (high - low) * np.array([0, 0.25, 0.5, 0.75, 1, -1, 2, 0.5])
    found = scaled_state(state, OFT_STATISTICS, KEY, ROBOT)
    np.testing.assert_allclose(found, [-1, -0.5, 0, 0.5, 1, -1, 1, 0], atol=1e-6)
    masked = {KEY: {"proprio": {**OFT_STATISTICS[KEY]["proprio"], "mask": [True] * 7 + [False]}}}
    assert scaled_state(state, masked, KEY, ROBOT)[-1] == 0.5
    with pytest.raises(ObservationError, match="has 3 numbers, the policy was trained with 8"):
        adapted(processor).prepare([replace(observe(1), state=np.zeros(3, np.float32))])
    with pytest.raises(PolicyError, match="proprio needs q01 of 8 numbers, has none"):
        model = TinyOft()
        model.norm_stats = {KEY: {"action": OFT_STATISTICS[KEY]["action"]}}
        adapt_oft(model, processor, oft_parts_of(diffusion=False), ROBOT)


def test_which_platform_the_weights_are_of() -> None:
    assert pick_platform(None, 7, 8) == "libero"
    assert pick_platform(None, 7, 7) == "bridge"
    assert pick_platform(None, 14, None) == "aloha"
    for sizes, fit in (((7, None), "libero or bridge"), ((6, 6), "no platform")):
        with pytest.raises(UsageError, match=rf"as {fit} of OpenVLA-OFT.*platform=NAME"):
            pick_platform(None, *sizes)
    with pytest.raises(UsageError, match="platform is one of libero, aloha, bridge; got 'r2d2'"):
        pick_platform("r2d2", 7, 8)


def test_options_that_do_not_fit_are_refused(processor: TinyProcessor) -> None:
    with pytest.raises(UsageError, match="has no diffusion head and acts in one pass"):
        adapted(processor, steps="5")
    for text in ("a,,b", "a,a", ""):
        with pytest.raises(UsageError, match="cameras is NAME,NAME, each once"):
            parse_cameras(text)
    with pytest.raises(ObservationError, match="no camera 'hand_camera'; there is varied_camera_1"):
        adapted(processor).prepare([observe(1, cameras=(SIDE,))])
    unnamed = adapt_oft(TinyOft(), processor, oft_parts_of(diffusion=False), ROBOT)
    with pytest.raises(UsageError, match="--policy-option cameras=NAME,NAME; there are"):
        unnamed.prepare([observe(1)])
    one = unnamed.prepare([observe(1, cameras=(SIDE,))])
    assert list(one.samples[0].geometry) == [SIDE]
    assert run_captured(unnamed, one).actions.shape == (1, CHUNK, DOF)


def test_sources_that_are_another_projects_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingExtraError, match="package prismatic: not found; .*--no-deps"):
        import_sources("libero")
    (tmp_path / "prismatic").mkdir()
    (tmp_path / "prismatic" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="is not OpenVLA-OFT's"):
        import_sources("libero")
    assert "prismatic" not in sys.modules


CONFIG = '{"model_type": "openvla"}'
HEAD = "action_head--150_checkpoint.pt"


def test_a_checkpoint_is_told_from_openvlas_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG)
    (tmp_path / "dataset_statistics.json").touch()
    assert find_policy(str(tmp_path)) == "openvla", "a fine-tuned OpenVLA has statistics, too"
    for part in ("action_head", "proprio_projector", "vision_backbone"):
        file = tmp_path / f"{part}--latest_checkpoint.pt"
        file.touch()
        assert find_policy(str(tmp_path)) == "openvla-oft"
        file.unlink()
    (tmp_path / "config.json").unlink()
    (tmp_path / HEAD).touch()
    (tmp_path / "lora_adapter").mkdir()
    with pytest.raises(UsageError, match=r"openvla-oft's: .*merge_lora_weights_and_save\.py"):
        find_policy(str(tmp_path))


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    torch.save({"module.noise_predictor.mlp_resnet.fc2.weight": torch.zeros(7, 4)}, tmp_path / HEAD)
    with pytest.raises(PolicyError, match="predicts noise, and there is no noisy_action_projector"):
        find_parts("mine", str(tmp_path))
    torch.save({"model.fc2.weight": torch.zeros(14, 4)}, tmp_path / HEAD)
    found = find_parts("mine", str(tmp_path))
    assert (found.action_dof, found.state_dof, found.diffusion) == (14, None, False)
    (tmp_path / "action_head--9_checkpoint.pt").touch()
    with pytest.raises(PolicyError, match=r"2 files of action_head: action_head--150.*leave one"):
        find_parts("mine", str(tmp_path))
    (tmp_path / HEAD).unlink()
    with pytest.raises(PolicyError, match="action_head--9_checkpoint.pt cannot be read"):
        find_parts("mine", str(tmp_path))


class Both(torch.nn.Module):
    """Calls sdpa with the mask that it is given, whatever kind it is."""

    def forward(self, x: torch.Tensor, attention_mask: Any = None, causal: bool = False) -> Any:
        call: Any = torch.nn.functional.scaled_dot_product_attention
        return call(x, x, x, attention_mask, is_causal=causal)


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "additive"])
def test_calls_of_sdpa_are_blocked_whatever_mask_they_have(kind: str) -> None:
    """Against the same block in an additive mask that the module is given."""
    module, tap = Both(), SdpaTap()
    states = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    watched = [Watched("joint", 0, module, tap.weights(module))]
    blocked = [[], [Blocked("joint", 0, (2, 4), (0, 1))]]
    allowed = torch.ones(5, 5, dtype=torch.bool)
    if kind != "none":
        allowed = allowed.tril()
    added = torch.zeros(5, 5).masked_fill(~allowed, torch.finfo().min)
    with block_by_mask(watched, blocked):
        wanted = module(hidden_states := states, attention_mask=added[None, None])
    assert hidden_states is states
    masks: dict[str, dict[str, Any]] = {
        "none": {}, "causal": {"causal": True}, "boolean": {"attention_mask": allowed},
        "additive": {"attention_mask": added},
    }  # fmt: skip
    given = masks[kind]
    with tap.over([module]), block_sdpa(watched, blocked):
        found = module(states, **given)
        weights = watched[0].weights(found)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(weights @ states, found)
    assert not weights[1, :, [2, 4], :2].any()
    assert weights[0, :, 2, :2].all()
    torch.testing.assert_close(module(states, **given)[0], found[0])
    everything = [[], [Blocked("joint", 0, (0,), (0, 1, 2, 3, 4))]]
    with (
        pytest.raises(HealthError, match="joint layer 0: a query has nothing left"),
        block_sdpa(watched, everything),
    ):
        module(states, **given)
