"""OpenVLA: the contract on a small model with its seams, action tokens, prompts, pixels, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from droid_sample import sample_path
from ingest_fixtures import commits, make_job, observe, picture, problems
from numpy.typing import NDArray
from openvla_fixture import (
    EMPTY,
    HEADS,
    KEY,
    LAYERS,
    STATISTICS,
    VOCABULARY,
    TinyOpenvla,
    TinyProcessor,
    llama_tokenizer,
    unnormalised,
)
from policy_contract import Case, run_captured

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import observation
from attnstore.ingest.policies.base import Batch, Observation, ObservationError, PolicyError
from attnstore.ingest.policies.decoder import eager_self_attention
from attnstore.ingest.policies.openvla import policy as adapter
from attnstore.ingest.policies.openvla.image import center_cropped, image_geometry
from attnstore.ingest.policies.openvla.policy import OpenvlaPolicy
from attnstore.ingest.policies.registry import load_policy
from attnstore.query import open as open_for_reading
from attnstore.store.errors import AttnstoreError, UsageError

SIDE_CAMERA = "varied_camera_1"
CAMERA = {"camera": SIDE_CAMERA}


@pytest.fixture(scope="session")
def processor() -> TinyProcessor:
    return TinyProcessor(llama_tokenizer())


@pytest.fixture(scope="session")
def policy(processor: TinyProcessor) -> OpenvlaPolicy:
    return OpenvlaPolicy.from_model(TinyOpenvla(), processor, options=CAMERA)


def eager_twin() -> TinyOpenvla:
    """The same weights, eager from the start, known to no adapter."""
    twin = TinyOpenvla()
    twin.language_model.set_attn_implementation("eager")
    return twin


def ids_of(model: TinyOpenvla, batch: Batch, row: int) -> list[int]:
    """Generated token ids of one sample, by the model alone."""
    given = batch.inputs["input_ids"][row]
    found = model.generate(
        given, max_new_tokens=7, do_sample=False,
        attention_mask=batch.inputs["attention_mask"][row],
        pixel_values=batch.inputs["pixel_values"][row : row + 1],
    )  # fmt: skip
    return found[0, given.shape[1] :].tolist()


def bin_of(token: int) -> int:
    return min(max(VOCABULARY - token - 1, 0), 254)


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policy: OpenvlaPolicy) -> Case:
        twin = eager_twin()

        def reference(batch: Batch) -> NDArray[np.float32]:
            ids = [ids_of(twin, batch, row) for row in range(len(batch))]
            values = [[-1 + (2 * bin_of(i) + 1) / 255 for i in own] for own in ids]
            return np.array(values, np.float32)[:, None]

        sights = (observe(1), observe(2, "wipe"))
        return Case(policy, sights, module=policy.model, reference=reference, seeded=False)


def test_weights_are_those_of_one_pass_over_the_whole_sequence(policy: OpenvlaPolicy) -> None:
    """Without cache, without generation: every row is a row of the causal matrix."""
    batch = policy.prepare([observe(5)])
    captured = run_captured(policy, batch)
    twin = eager_twin()
    ids = ids_of(twin, batch, 0)
    (wrote,) = captured.session.generated
    assert [t.id for t in wrote.tokens] == ids
    whole = torch.cat([batch.inputs["input_ids"][0], torch.tensor([ids[:-1]])], 1)
    words = twin.language_model.get_input_embeddings()(whole)
    patches = twin.projector(twin.vision_backbone(batch.inputs["pixel_values"]))
    with torch.no_grad():
        wanted = twin.language_model(
            inputs_embeds=torch.cat([words[:, :1], patches, words[:, 1:]], 1),
            output_attentions=True,
        ).attentions
    length = whole.shape[1] - 6 + 256
    assert len(captured.records) == LAYERS * (1 + 7)
    for phase, layer, step, weights, _ in captured.records:
        own = wanted[layer].numpy()
        if phase == "prefix":
            own = own[:, :, :length, :length]
        else:
            assert step is not None
            own = own[:, :, length - 1 + step, : length + step][:, :, None]
        assert weights.shape == own.shape
        np.testing.assert_allclose(weights, own, atol=2e-6)


def test_the_sequence_is_bos_image_prompt_and_the_empty_token(policy: OpenvlaPolicy) -> None:
    sight = observe(1, "Wipe In: the cube")
    batch = policy.prepare([sight])
    layout = batch.samples[0].layouts["prefix"]
    assert [(s.name, s.model_start) for s in layout.key][:2] == [
        ("template[0]", 0),
        (f"image:{SIDE_CAMERA}", 1),
    ]
    image = layout.key.spans[1]
    assert (image.grid, len(image)) == ((16, 16), 256)
    (task,) = [s for s in layout.key if s.role == "task"]
    assert "".join(t.text for t in task.tokens).lstrip() == "wipe in: the cube"  # as in training
    said = "".join(t.text for s in layout.key for t in s.tokens)
    assert said == "<s> In: What action should the robot take to wipe in: the cube?\nOut: "
    assert layout.key.spans[-1].tokens[-1].id == EMPTY
    decode = batch.samples[0].layouts["decode"]
    assert len(decode.key) == len(layout.key) + 6
    vicuna = TinyOpenvla()
    vicuna.config.llm_backbone_id = "vicuna-v15-7b"
    older = OpenvlaPolicy.from_model(vicuna, policy.processor, options=CAMERA)
    spans = older.prepare([sight]).samples[0].layouts["prefix"].key
    said = "".join(t.text for s in spans for t in s.tokens)
    assert said.startswith("<s> A chat between a curious user")
    assert said.endswith(
        " USER: What action should the robot take to wipe in: the cube? ASSISTANT: "
    )


def test_an_instruction_that_stands_in_the_template_is_found_in_its_place(
    policy: OpenvlaPolicy,
) -> None:
    for words in ("take to", "s", "robot"):
        layout = policy.prepare([observe(1, words)]).samples[0].layouts["prefix"].key
        (task,) = [s for s in layout if s.role == "task"]
        assert "".join(t.text for t in task.tokens).strip(" ?").startswith(words)
        behind = "".join(t.text for s in layout.spans for t in s.tokens if s.start > task.start)
        assert behind.lstrip("?") == "\nOut: "


@pytest.fixture
def ending(
    processor: TinyProcessor,
) -> tuple[OpenvlaPolicy, list[Observation], list[int]]:
    """A model that ends early at some keyframes: its end marker is a token that it writes."""
    model = TinyOpenvla()
    free = OpenvlaPolicy.from_model(model, processor, options=CAMERA)
    sights = [observe(seed) for seed in range(4)]
    batch = free.prepare(sights)
    ids = [ids_of(model, batch, row) for row in range(4)]
    model.ends = (ids[0][2],)
    counts = [own.index(ids[0][2]) + 1 if ids[0][2] in own else 7 for own in ids]
    return free, sights, counts


def test_an_early_end_leaves_steps_out_and_acts_as_the_model_does(
    ending: tuple[OpenvlaPolicy, list[Observation], list[int]],
) -> None:
    policy, sights, counts = ending
    assert len(set(counts)) > 1, counts
    batch = policy.prepare(sights)
    captured = run_captured(policy, batch)
    for row, count in enumerate(counts):
        said = captured.session.generated[row]
        assert len(said.tokens) == len(said.actions) == count
        executed = policy.model.predict_action(
            batch.inputs["input_ids"][row], KEY, do_sample=False,
            attention_mask=batch.inputs["attention_mask"][row],
            pixel_values=batch.inputs["pixel_values"][row : row + 1],
        )  # fmt: skip
        # What was not generated the model takes from the prompt.
        np.testing.assert_allclose(
            unnormalised(captured.actions[row, 0].tolist()), executed, atol=1e-6
        )
        assert [a.value for a in said.actions] == executed[7 - count :].tolist()
        alone = run_captured(policy, policy.prepare([sights[row]]))
        assert alone.session.generated == [said]
        own = {(p, n, s): w[0] for p, n, s, w, _ in alone.records}
        there = {(p, n, s): w[row] for p, n, s, w, _ in captured.records}
        assert len([k for k in own if k[0] == "decode"]) == LAYERS * count
        for place, weights in own.items():
            queries, keys = weights.shape[1:]
            np.testing.assert_array_equal(there[place][:, :queries, :keys], weights)
            assert not there[place][:, :, keys:].any()


def test_an_ingest_stores_bins_and_values_of_every_step(
    policy: OpenvlaPolicy, ram_path: Path
) -> None:
    dataset = DroidDataset(sample_path(), limit=1)
    name = dataset.episode_names()[0]
    job = make_job(ram_path / "store", policy, dataset, stride=13, batch_size=2, precision="log8")
    ingest_episode(job, policy, dataset, name)
    assert problems(ram_path / "store") == []
    store = open_for_reading(ram_path / "store")
    rows = store.sql(
        "select keyframe, index, token_id, text, action_bin, action_normalised, action_value "
        "from tokens where axis = 'step' order by all"
    ).fetchall()
    episode = store.episode(name)
    actions = np.asarray(episode.policy_array("actions"))
    info = dataset.info(name)
    assert len(rows) == 7 * len(actions) == 14
    for keyframe, frame in enumerate(dataset.frames(name, (0, 13))):
        batch = policy.prepare([observation(frame, info, 0)])
        ids = ids_of(policy.model, batch, 0)
        executed = policy.model.predict_action(
            batch.inputs["input_ids"][0], KEY, do_sample=False,
            attention_mask=batch.inputs["attention_mask"][0],
            pixel_values=batch.inputs["pixel_values"],
        )  # fmt: skip
        own = rows[7 * keyframe : 7 * keyframe + 7]
        assert [r[2] for r in own] == ids
        assert [r[4] for r in own] == [bin_of(i) for i in ids]
        assert [r[6] for r in own] == executed.tolist()
        np.testing.assert_array_equal(
            actions[keyframe, 0], np.array([r[5] for r in own], np.float32)
        )
        assert [r[3] for r in own] == [f"{r[5]:.4f}" for r in own]
        np.testing.assert_allclose(unnormalised([r[5] for r in own]), executed, rtol=1e-12)
    # which number is chosen while it looks at the image most
    ((best,),) = store.sql(
        "select t.index from head_stats s join tokens t on (t.run, t.episode, t.keyframe, t.phase, "
        "t.index) = (s.run, s.episode, s.keyframe, s.phase, s.step) where s.weighting = 'raw' and "
        "s.phase = 'decode' and t.axis = 'step' group by all order by avg(s.camera_mass) desc limit 1"
    ).fetchall()
    assert 0 <= best < 7
    assert len(commits(ram_path / "store")) == 1


@pytest.mark.parametrize(
    ("strategy", "source", "resized", "offset", "crop"),
    [
        ("resize-naive", (480, 640), (224, 224), (0, 0), None),
        ("letterbox", (480, 640), (168, 224), (28, 0), None),
        ("letterbox", (720, 1280), (126, 224), (49, 0), None),
        ("letterbox", (130, 100), (224, 224 * 10 / 13), (0, 15 * 224 / 130), None),
        ("resize-crop", (480, 640), (224, 224), (0, 0), (0, 37 * 640 / 298, 480, 224 * 640 / 298)),
    ],
)  # fmt: skip
def test_geometry_of_each_way_to_resize(
    strategy: str, source: tuple[int, int], resized: Any, offset: Any, crop: Any
) -> None:
    found = image_geometry(source, strategy, (16, 16), 14.0, 224)
    np.testing.assert_allclose(found.resized, resized, atol=1e-9)
    np.testing.assert_allclose(found.offset, offset, atol=1e-9)
    if crop is None:
        assert found.crop is None
    else:
        assert found.crop is not None
        np.testing.assert_allclose(found.crop, crop, atol=1e-9)


def test_the_middle_is_cropped_as_bilinear_sampling_between_corners() -> None:
    image = picture(3, 224, 224)
    kept = 0.9**0.5
    line = torch.linspace(-kept, kept, 224)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij")[::-1], -1)[None]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.grid_sample(pixels, grid, align_corners=True)[0].permute(1, 2, 0)
    assert np.abs(center_cropped(image) - np.floor(wanted.numpy() + 0.5)).max() <= 1
    geometry = image_geometry((448, 448), "letterbox", (16, 16), 14.0, 224, center_crop=True)
    assert geometry.crop is not None
    np.testing.assert_allclose(geometry.crop[2:], [448 * kept] * 2)
    # a point stays where it is, as seen by both: the centre, and a mark
    marked = np.zeros((448, 448, 3), np.uint8)
    marked[100:108, 300:308] = 255
    seen = center_cropped(marked)[..., 0].astype(float)
    rows, cols = geometry.source_to_grid(np.array(104.0), np.array(304.0))
    at = (np.indices(seen.shape) + 0.5).reshape(2, -1) @ seen.ravel() / seen.sum()
    np.testing.assert_allclose(at / 14, [rows, cols], atol=0.02)


def test_what_is_cropped_is_what_the_policy_sees(processor: TinyProcessor) -> None:
    model = TinyOpenvla()
    plain = OpenvlaPolicy.from_model(model, processor, options=CAMERA)
    cropped = OpenvlaPolicy.from_model(model, processor, options={**CAMERA, "center_crop": "true"})
    sight = observe(1)
    one, other = plain.prepare([sight]), cropped.prepare([sight])
    assert (one.inputs["pixel_values"] != other.inputs["pixel_values"]).any()
    assert one.samples[0].geometry[SIDE_CAMERA].crop is None
    assert other.samples[0].geometry[SIDE_CAMERA].crop is not None
    assert plain.digest != cropped.digest


def test_several_statistics_are_named_and_one_is_chosen(processor: TinyProcessor) -> None:
    model = TinyOpenvla()
    short = {"action": {"q01": [-1.0, -2.0], "q99": [1.0, 2.0]}}
    model.norm_stats = {**STATISTICS, "other_lab": short}
    with pytest.raises(UsageError, match=r"unnorm_key=NAME; they are other_lab, toy_lab"):
        OpenvlaPolicy.from_model(model, processor)
    with pytest.raises(UsageError, match="unnorm_key=bridge: .* other_lab, toy_lab"):
        OpenvlaPolicy.from_model(model, processor, options={"unnorm_key": "bridge"})
    found = OpenvlaPolicy.from_model(model, processor, options={"unnorm_key": "other_lab"})
    assert (found.action_dof, found.phases["decode"].steps) == (2, 2)
    model.norm_stats = {"odd": {"action": {"mean": [0.0]}}}
    with pytest.raises(PolicyError, match="odd: no bounds q01 and q99"):
        OpenvlaPolicy.from_model(model, processor)


def test_cameras_are_asked_for(policy: OpenvlaPolicy, processor: TinyProcessor) -> None:
    free = OpenvlaPolicy.from_model(policy.model, processor)
    with pytest.raises(UsageError, match=r"camera=NAME; there are hand_camera, varied_camera_1"):
        free.prepare([observe(1)])
    with pytest.raises(ObservationError, match="no camera 'varied_camera_1'; there is wrist"):
        policy.prepare([observe(1, cameras=["wrist"])])
    assert free.prepare([observe(1, cameras=["wrist"])]).samples[0].geometry.keys() == {"wrist"}


def test_towers_with_other_grids_and_prompts_without_bos_are_refused(
    processor: TinyProcessor,
) -> None:
    model = TinyOpenvla()
    model.config.timm_model_ids[0] = "vit_base_patch16_224"
    with pytest.raises(PolicyError, match=r"grids \[\(14, 14\), \(16, 16\)\]"):
        OpenvlaPolicy.from_model(model, processor)
    model.config.timm_model_ids[0] = "convnext_base"
    with pytest.raises(PolicyError, match="convnext_base on 224x224 pixels"):
        OpenvlaPolicy.from_model(model, processor)

    class Bare(TinyProcessor):
        def __call__(self, text: str, image: Any) -> dict[str, torch.Tensor]:
            found = super().__call__(text, image)
            return {k: v[:, 1:] if v.ndim == 2 else v for k, v in found.items()}

    bare = OpenvlaPolicy.from_model(TinyOpenvla(), Bare(processor.tokenizer), options=CAMERA)
    with pytest.raises(PolicyError, match="not with BOS"):
        bare.prepare([observe(1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "transformers 4.40.1 and timm 0.9"),
        ({"trust_remote_code": "yes"}, "transformers 4.40.1 and timm 0.9"),
        ({"unnorm": "x"}, "openvla has the options trust_remote_code, unnorm_key, camera"),
    ],
)
def test_todays_transformers_and_unknown_options_are_refused(
    tmp_path: Path, options: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", object())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    with pytest.raises(AttnstoreError, match=message):
        load_policy("openvla", str(tmp_path), options=options)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({}, {}, "loading it runs that code; if you trust it: --policy-option trust_remote_code=true"),
        ({"trust_remote_code": "1"}, {}, "trust_remote_code is true or left out; got '1'"),
        ({"trust_remote_code": "true"}, {"model_type": "llama"}, "is of 'llama', not of 'openvla'"),
    ],
)  # fmt: skip
def test_nothing_is_run_that_is_not_trusted(
    tmp_path: Path,
    options: dict[str, str],
    config: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "check_environment", lambda: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla", **config}))
    (tmp_path / "configuration_prismatic.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(AttnstoreError, match=message):
        load_policy("openvla", str(tmp_path), options=options)


def test_a_checkpoint_of_oft_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "check_environment", lambda: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    (tmp_path / "action_head--50000_checkpoint.pt").touch()
    with pytest.raises(PolicyError, match=r"of OpenVLA-OFT \(action_head--50000_checkpoint.pt"):
        load_policy("openvla", str(tmp_path), options={"trust_remote_code": "true"})


class _Attention(torch.nn.Module):
    """As before transformers 4.48: weights on request, another implementation is a subclass."""

    def forward(
        self, states: Any, attention_mask: Any = None, output_attentions: Any = False
    ) -> Any:
        return states, attention_mask if output_attentions else None


class _SdpaAttention(_Attention):
    def forward(
        self, states: Any, attention_mask: Any = None, output_attentions: Any = False
    ) -> Any:
        return states, None


@pytest.mark.parametrize("positional", [False, True])
def test_an_implementation_that_is_a_class_is_eager_for_the_time_of_a_capture(
    positional: bool,
) -> None:
    module, mask = _SdpaAttention(), torch.ones(1)
    seen: list[tuple[int, list[str]]] = []
    given: dict[str, Any] = {} if positional else {"attention_mask": mask}
    arguments = (mask, mask, False) if positional else (mask,)
    with eager_self_attention([module]):

        def note(own: Any, args: Any, kwargs: Any) -> None:
            seen.append((len(args), sorted(kwargs)))

        module.register_forward_pre_hook(note, with_kwargs=True)
        assert module(*arguments, **given)[1] is mask
    assert type(module) is _SdpaAttention
    assert module(*arguments, **given)[1] is None
    wanted = (3, []) if positional else (1, ["attention_mask", "output_attentions"])
    assert seen[0] == wanted


def test_value_norms_and_vision(policy: OpenvlaPolicy) -> None:
    policy.check_values()
    with pytest.raises(UsageError, match="DINOv2 and SigLIP"):
        policy.encoder_shape()
    assert policy.phases["prefix"].heads == HEADS
