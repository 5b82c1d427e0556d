"""The contract on OpenVLA's own code: ``make test-openvla OPENVLA=/path/to/checkout``.

Not collected by `make test`: its code is for transformers 4.40.1 and timm 0.9. It is loaded as from any
checkpoint, with ``trust_remote_code``; the weights are random and small (openvla_checkpoint.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from blocking_contract import BlockingContract
from click.testing import CliRunner
from droid_sample import sample_path
from ingest_fixtures import observe
from numpy.typing import NDArray
from openvla_checkpoint import LAYERS, save_openvla, small_towers, sources
from openvla_fixture import KEY, unnormalised
from PIL import Image
from policy_contract import Case, as_array, run_captured

import attnstore
from attnstore.cli import cli
from attnstore.ingest.policies.base import Batch, PolicyError
from attnstore.ingest.policies.openvla.policy import OpenvlaPolicy
from attnstore.ingest.policies.openvla.prismatic import PROMPT
from attnstore.ingest.policies.registry import load_policy
from attnstore.store.errors import UsageError

auto: Any = getattr(transformers, "AutoModelForVision2Seq")  # noqa: B009 - gone from 5
CAMERA = "varied_camera_1"
OPTIONS = {"trust_remote_code": "true", "camera": CAMERA}


@pytest.fixture(scope="session", autouse=True)
def _small() -> Iterator[None]:
    with small_towers():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_openvla(sources(), tmp_path_factory.mktemp("openvla") / "tiny")


def load(directory: Path, **options: str) -> OpenvlaPolicy:
    policy = load_policy("openvla", str(directory), options={**OPTIONS, **options})
    assert isinstance(policy, OpenvlaPolicy)
    return policy


@pytest.fixture(scope="session")
def policy(checkpoint: Path) -> OpenvlaPolicy:
    loaded = load(checkpoint)
    assert type(loaded.model).__module__.endswith("modeling_prismatic")
    return loaded


def plain(directory: Path, implementation: str, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint as its README loads it; no adapter."""
    return auto.from_pretrained(
        directory, attn_implementation=implementation, torch_dtype=dtype, trust_remote_code=True
    ).eval()


def predicted(model: Any, batch: Batch, row: int) -> NDArray[np.float64]:
    """``predict_action``, in the robot's units."""
    found: NDArray[np.float64] = model.predict_action(
        input_ids=batch.inputs["input_ids"][row],
        attention_mask=batch.inputs["attention_mask"][row],
        pixel_values=batch.inputs["pixel_values"][row : row + 1].to(model.dtype),
        unnorm_key=KEY,
        do_sample=False,
    )
    return found


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policy: OpenvlaPolicy, checkpoint: Path) -> Case:
        eager = plain(checkpoint, "eager")

        def reference(batch: Batch) -> NDArray[np.float32]:
            bounds = eager.norm_stats[KEY]["action"]
            low, high = np.array(bounds["q01"]), np.array(bounds["q99"])
            rows = []
            for row in range(len(batch)):
                executed = predicted(eager, batch, row)
                scaled = 2 * (executed - low) / (high - low) - 1
                given = np.where(bounds["mask"], scaled, executed)
                near = np.abs(eager.bin_centers[None] - given[:, None]).argmin(1)
                rows.append(eager.bin_centers[near].astype(np.float32))
            return np.stack(rows)[:, None]

        sights = (observe(1), observe(2, "wipe"))
        return Case(policy, sights, module=policy.model, reference=reference, seeded=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_actions_are_predict_actions_bit_for_bit(
    checkpoint: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """The adapter's model is as it is loaded by default, sdpa; captured it is the eager one."""
    directory = save_openvla(sources(), tmp_path / "typed", dtype=dtype, seed=1)
    policy = load(directory)
    assert policy.dtype == str(dtype).removeprefix("torch.")
    attention = policy.watched()[0].module
    assert type(attention).__name__ == "LlamaSdpaAttention"
    eager, sdpa = plain(directory, "eager", dtype), plain(directory, "sdpa", dtype)
    for seed in range(4):
        sight = observe(seed)
        batch = policy.prepare([sight])
        captured = run_captured(policy, batch)
        (said,) = captured.session.generated
        executed = np.array([a.value for a in said.actions])
        np.testing.assert_array_equal(executed, predicted(eager, batch, 0))
        np.testing.assert_allclose(
            unnormalised(captured.actions[0, 0].tolist()), executed, atol=1e-6
        )
        assert type(attention).__name__ == "LlamaSdpaAttention"
        # not captured, it is what a user's own script does: the processor's output as it is
        prompt = PROMPT.replace("{instruction}", sight.instruction)
        image = Image.fromarray(np.ascontiguousarray(sight.images[CAMERA]))
        inputs = policy.processor(prompt, image).to("cpu", dtype=dtype)
        usual = sdpa.predict_action(**inputs, unnorm_key=KEY, do_sample=False)
        normalised = as_array(policy.act(batch))[0, 0]
        np.testing.assert_allclose(unnormalised(normalised.tolist()), usual, atol=1e-6)


def test_weights_are_those_that_the_eager_model_returns(
    policy: OpenvlaPolicy, checkpoint: Path
) -> None:
    """`output_attentions` of a wholly eager model, generating by itself."""
    batch = policy.prepare([observe(3)])
    captured = run_captured(policy, batch)
    wanted = plain(checkpoint, "eager").generate(
        batch.inputs["input_ids"][0], attention_mask=batch.inputs["attention_mask"][0],
        pixel_values=batch.inputs["pixel_values"], max_new_tokens=7, do_sample=False,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    length = batch.inputs["input_ids"][0].shape[1]
    (said,) = captured.session.generated
    assert wanted.sequences[0, length:].tolist() == [t.id for t in said.tokens]
    assert len(captured.records) == LAYERS * (1 + 7)
    for phase, layer, step, weights, _ in captured.records:
        own = wanted.attentions[step or 0][layer].numpy()
        np.testing.assert_array_equal(weights, own[:, :, -1:] if phase == "decode" else own)
    assert {r[3].shape[-1] for r in captured.records if r[0] == "prefix"} == {256 + length}


def test_a_script_that_forgets_the_mask_fails_in_eager_attention(
    policy: OpenvlaPolicy, checkpoint: Path
) -> None:
    """Why the adapter writes token 29871 itself: predict_action does not lengthen the mask."""
    image = Image.fromarray(np.ascontiguousarray(observe(1).images[CAMERA]))
    inputs = policy.processor(PROMPT.replace("{instruction}", "wipe"), image)
    with pytest.raises(RuntimeError, match="size of tensor"):
        plain(checkpoint, "eager").predict_action(**inputs, unnorm_key=KEY, do_sample=False)


SIZES = {"16:9": (72, 128), "4:3": (90, 120), "portrait": (150, 80), "odd": (61, 97)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_what_the_towers_see_is_what_the_geometry_says(
    tmp_path: Path, checkpoint: Path, strategy: str, size: tuple[int, int]
) -> None:
    """A mark's centre in the real processor's pixels, and where the geometry has it."""
    directory = tmp_path / "resized"
    shutil.copytree(checkpoint, directory)
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_resize_strategy": strategy}))
    policy = load(directory)
    height, width = size
    for y, x in ((0.5, 0.5), (0.3, 0.6), (0.7, 0.45)):
        row, col = int(y * height), int(x * width)
        image = np.zeros((*size, 3), np.uint8)
        blank = observe(1)
        marked = image.copy()
        marked[row - 4 : row + 4, col - 4 : col + 4] = 255
        seen = [policy.prepare([replace(blank, images={CAMERA: i})]) for i in (marked, image)]
        geometry = seen[0].samples[0].geometry[CAMERA]
        rows, cols = geometry.source_to_grid(np.array(float(row)), np.array(float(col)))
        both = seen[0].inputs["pixel_values"] - seen[1].inputs["pixel_values"]
        for tower in both[0].split(3):
            light = tower.mean(0).numpy().clip(0)
            at = (np.indices(light.shape) + 0.5).reshape(2, -1) @ light.ravel() / light.sum()
            np.testing.assert_allclose(at / 14, [rows, cols], atol=0.06)
    whole = np.full((*size, 3), 255, np.uint8)
    light = policy.prepare([replace(blank, images={CAMERA: whole})]).inputs["pixel_values"][0, 3:]
    bright = (light.mean(0).numpy() > 0.5).reshape(16, 14, 16, 14).mean((1, 3))
    np.testing.assert_allclose(bright, geometry.coverage(), atol=0.08)


def test_one_tower_and_its_digest(tmp_path: Path) -> None:
    directory = save_openvla(sources(), tmp_path / "siglip", backbone="siglip-vit-so400m")
    policy = load(directory)
    batch = policy.prepare([observe(1)])
    assert batch.inputs["pixel_values"].shape == (1, 3, 224, 224)
    captured = run_captured(policy, batch)
    assert len(captured.records) == LAYERS * 8
    assert len(policy.digest) == 64
    assert policy.digest != load(directory, prompt="Do {instruction} now").digest


def test_statistics_beside_the_checkpoint_take_their_place(
    checkpoint: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "tuned"
    shutil.copytree(checkpoint, directory)
    own = {f"lab_{i}": {"action": {"q01": [-1.0] * 3, "q99": [3.0] * 3}} for i in (1, 2)}
    (directory / "dataset_statistics.json").write_text(json.dumps(own))
    with pytest.raises(UsageError, match="they are lab_1, lab_2"):
        load(directory)
    policy = load(directory, unnorm_key="lab_2")
    captured = run_captured(policy, policy.prepare([observe(1)]))
    assert captured.actions.shape == (1, 1, 3)
    (said,) = captured.session.generated
    assert [a.value for a in said.actions] == [2 * (a.normalised + 1) - 1 for a in said.actions]
    (directory / "dataset_statistics.json").write_text("{")
    with pytest.raises(PolicyError, match="dataset_statistics.json"):
        load(directory, unnorm_key="lab_2")


def test_missing_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "broken"
    shutil.copytree(checkpoint, directory)
    weights = load_file(directory / "model.safetensors")
    del weights["projector.fc1.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=r"1 weights are missing .*: projector.fc1.weight"):
        run_captured(policy := load(directory), policy.prepare([observe(1)]))


def test_the_command_line_from_end_to_end(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "openvla.attn"

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    common = ("ingest", "droid", store, sample_path(), "--policy", "openvla", "--checkpoint",
              checkpoint, "--policy-option", "trust_remote_code=true", "--limit", 1, "--stride", 13,
              "--token-stats")  # fmt: skip
    refused = CliRunner().invoke(cli, [str(a) for a in common])
    assert refused.exit_code != 0
    assert "--policy-option camera=NAME" in str(refused.exception)
    given = (*common, "--policy-option", f"camera={CAMERA}")
    assert "prefix" in run(*given, "--dry-run")
    run(*given)
    assert "every committed file" in run("verify", store)
    run("render", "images", store, "--out", tmp_path / "out", "--width", 160, "--layers", 1)
    assert len(list((tmp_path / "out").rglob("decode_L1_step00*.jpg"))) == 2
    opened = attnstore.open(store)
    rows = opened.sql(
        "select keyframe, count(*), min(action_bin), max(abs(action_normalised)) from tokens "
        "where axis = 'step' group by all order by all"
    ).fetchall()
    assert [r[:2] for r in rows] == [(0, 7), (1, 7)]
    assert all(r[2] >= 0 and r[3] <= 1 for r in rows)
    run("probe", "knockout", store, sample_path(), "--checkpoint", checkpoint, "--policy-option",
        "trust_remote_code=true", "--policy-option", f"camera={CAMERA}", "--help")  # fmt: skip
