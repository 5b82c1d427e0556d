"""The contract on OpenVLA-OFT's own code: ``make test-oft OFT=/path/to/checkout``.

Not collected by `make test`: its code is for a fork of transformers 4.40.1. The weights are random and
small (openvla_oft_checkpoint.py). What the adapter gives is compared with OpenVLA-OFT's own evaluation,
``get_vla_action`` of its experiments, and with a softmax over the unhooked model's own queries and keys.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from click.testing import CliRunner
from droid_sample import sample_path
from ingest_fixtures import observe
from numpy.typing import NDArray
from openvla_checkpoint import HEADS, LAYERS, small_towers
from openvla_fixture import EMPTY, KEY
from openvla_oft_checkpoint import evaluation, module_of, save_oft
from policy_contract import Case, as_array, run_captured

import attnstore
from attnstore.cli import cli
from attnstore.ingest.capture import HiddenRecord, Record, capture
from attnstore.ingest.policies.base import (
    LAST,
    Batch,
    HiddenChoice,
    Observation,
    ObservationError,
    PolicyError,
    Watch,
)
from attnstore.ingest.policies.openvla.oft.policy import DiffusionOftPolicy, OftPolicy
from attnstore.ingest.policies.registry import find_policy, load_policy
from attnstore.store.errors import AttnstoreError, UsageError

SIDE, WRIST = "varied_camera_1", "hand_camera"
OPTIONS = {"cameras": f"{SIDE},{WRIST}"}
NUMBERS = 8 * 7
STEPS = 5


@pytest.fixture(scope="session", autouse=True)
def _small() -> Iterator[None]:
    with small_towers():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oft")


@pytest.fixture(scope="session")
def regression(folder: Path) -> Path:
    return save_oft(folder / "regression")


@pytest.fixture(scope="session")
def diffusion(folder: Path) -> Path:
    return save_oft(folder / "diffusion", head="diffusion", seed=1)


def load(directory: Path, **options: str) -> OftPolicy:
    policy = load_policy("openvla-oft", str(directory), options={**OPTIONS, **options})
    assert isinstance(policy, OftPolicy)
    return policy


class Plain:
    """The checkpoint as OpenVLA-OFT's classes load it, unhooked; no adapter."""

    def __init__(self, directory: Path, steps: int | None = None) -> None:
        kind = module_of("extern.hf.modeling_prismatic").OpenVLAForActionPrediction
        heads, projectors = module_of("models.action_heads"), module_of("models.projectors")
        sizes = module_of("vla.constants")
        self.vla = kind.from_pretrained(directory, torch_dtype="auto").eval()
        self.vla.norm_stats = json.loads((directory / "dataset_statistics.json").read_text())
        self.vla.vision_backbone.set_num_images_in_input(2)
        width, self.noisy = self.vla.llm_dim, None
        if steps is None:
            self.head = self._part(
                heads.L1RegressionActionHead(width, width, sizes.ACTION_DIM), directory
            )
        else:
            self.head = self._part(
                heads.DiffusionActionHead(width, width, sizes.ACTION_DIM), directory
            )
            self.head.noise_scheduler.set_timesteps(steps)
            self.noisy = self._part(projectors.NoisyActionProjector(width), directory, "noisy")
        self.state = self._part(
            projectors.ProprioProjector(width, sizes.PROPRIO_DIM), directory, "proprio"
        )

    @staticmethod
    def _part(module: Any, directory: Path, name: str = "action_head") -> Any:
        (file,) = directory.glob(f"{name}*.pt")
        found = torch.load(file, weights_only=True)
        module.load_state_dict({k.removeprefix("module."): v for k, v in found.items()})
        return module.to(next(iter(found.values())).dtype).eval()

    def act(self, batch: Batch, row: int, seed: int = 0) -> NDArray[np.float64]:
        """Actions in the robot's units."""
        given = batch.inputs
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            actions, _ = self.vla.predict_action(
                input_ids=given["input_ids"][row], attention_mask=given["attention_mask"][row],
                pixel_values=given["pixel_values"][row].to(self.vla.dtype), unnorm_key=KEY,
                do_sample=False, proprio=given["state"][row][0].numpy(), proprio_projector=self.state,
                noisy_action_projector=self.noisy, action_head=self.head,
            )  # fmt: skip
        return np.asarray(actions)

    def normalised(self, batch: Batch, seeds: tuple[int, ...]) -> NDArray[np.float32]:
        """Actions before they are scaled to the robot's units, caught on the instance."""
        found: list[NDArray[np.float32]] = []
        scale = self.vla._unnormalize_actions

        def kept(actions: Any, key: str) -> Any:
            found.append(actions)
            return scale(actions, key)

        self.vla._unnormalize_actions = kept
        try:
            for row, seed in enumerate(seeds):
                self.act(batch, row, seed)
        finally:
            del self.vla._unnormalize_actions
        return np.stack(found)

    def passes(self, batch: Batch, row: int, seed: int = 0) -> list[tuple[Any, ...]]:
        """Hidden states of every pass of the language model, the embedding first."""
        found: list[tuple[Any, ...]] = []
        forward = self.vla.language_model.forward

        def kept(**given: Any) -> Any:
            output = forward(**given)
            found.append(output.hidden_states)
            return output

        self.vla.language_model.forward = kept
        try:
            self.act(batch, row, seed)
        finally:
            del self.vla.language_model.forward
        return found

    def weights(self, states: Any, layer: int) -> NDArray[np.float64]:
        """Softmax over all keys of a layer's own queries and keys, rotated, in float64; no mask."""
        block = self.vla.language_model.model.layers[layer]
        with torch.no_grad():
            entering = block.input_layernorm(states[layer])
            query = block.self_attn.q_proj(entering)[0].double().numpy()
            key = block.self_attn.k_proj(entering)[0].double().numpy()
        length, width = len(query), query.shape[1] // HEADS
        half = width // 2
        angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / half)

        def rotated(made: NDArray[np.float64]) -> NDArray[np.float64]:
            one, two = np.split(made.reshape(length, HEADS, width), 2, -1)
            cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
            return np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)

        scores = np.einsum("qhf,khf->hqk", rotated(query), rotated(key)) / np.sqrt(width)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(powers / powers.sum(-1, keepdims=True))


SIGHTS = (observe(1), observe(2, "wipe"))


class TestRegression(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, regression: Path) -> Case:
        policy, plain = load(regression), Plain(regression)

        def reference(batch: Batch) -> NDArray[np.float32]:
            return plain.normalised(batch, (0,) * len(batch))

        return Case(policy, SIGHTS, module=policy.model, reference=reference, seeded=False)


class TestDiffusion(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, diffusion: Path) -> Case:
        policy, plain = load(diffusion, steps=str(STEPS)), Plain(diffusion, STEPS)
        assert isinstance(policy, DiffusionOftPolicy)

        def reference(batch: Batch) -> NDArray[np.float32]:
            return plain.normalised(batch, tuple(s.seed for s in SIGHTS[: len(batch)]))

        def euler(batch: Batch) -> list[NDArray[np.float32]]:
            """The scheduler's output at each step, of a run of the unhooked model."""
            found: list[Any] = []
            scheduler = plain.head.noise_scheduler
            step = scheduler.step

            def kept(*given: Any) -> Any:
                output = step(*given)
                found.append(output.prev_sample.numpy())
                return output

            scheduler.step = kept
            try:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(torch, "randn", lambda **_: batch.inputs["noise"][0])
                    plain.act(batch, 0)
            finally:
                del scheduler.step
            return found

        return Case(policy, SIGHTS, module=policy.model, reference=reference, euler=euler)


def sized(seed: int, side: int = 224) -> Observation:
    return observe(seed, "Put the red cube onto the pink plate", size=(side, side))


KINDS = {
    "regression": {},
    "no state": {"state": False},
    "FiLM": {"film": True},
    "diffusion": {"head": "diffusion"},
    "diffusion, FiLM": {"head": "diffusion", "film": True},
    "tokens": {"head": None, "state": False},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("images", [1, 2])
def test_actions_are_those_of_its_own_evaluation_bit_for_bit(
    tmp_path: Path, kind: Any, images: int
) -> None:
    """Whole: ``get_vla``, ``get_action_head``, ``get_proprio_projector``, ``get_vla_action``, in bfloat16.

    Its loading writes into a checkpoint, so it gets a copy.
    """
    directory = save_oft(tmp_path / "mine", dtype=torch.bfloat16, **kind)
    theirs = shutil.copytree(directory, tmp_path / "theirs")
    cameras = [SIDE, WRIST][:images]
    options = {"cameras": ",".join(cameras), "center_crop": "false"}
    diffusion, takes_state = kind.get("head") == "diffusion", kind.get("state", True)
    if diffusion:
        options["steps"] = "7"
    if not takes_state:
        with pytest.raises(UsageError, match="as libero or .*bridge of OpenVLA-OFT"):
            load(directory, **options)
        options["platform"] = "libero"
    policy = load(directory, **options)
    settings = SimpleNamespace(
        pretrained_checkpoint=str(theirs), load_in_8bit=False, load_in_4bit=False,
        use_film=kind.get("film", False), lora_rank=4, num_images_in_input=images,
        use_l1_regression="head" not in kind, use_diffusion=diffusion, num_diffusion_steps_train=50,
        num_diffusion_steps_inference=7, use_proprio=takes_state, unnorm_key=KEY,
        center_crop=False,
    )  # fmt: skip
    with evaluation() as utils:
        vla = utils.get_vla(settings)
        processor, width = utils.get_processor(settings), vla.llm_dim
        parts: dict[str, Any] = {"use_film": settings.use_film}
        if takes_state:
            parts["proprio_projector"] = utils.get_proprio_projector(settings, width, 8)
        if kind.get("head", "l1") is not None:
            parts["action_head"] = utils.get_action_head(settings, width)
        if diffusion:
            parts["noisy_action_projector"] = utils.get_noisy_action_projector(settings, width)
        for seed in range(2):
            sight = sized(seed)
            given = {"full_image": sight.images[SIDE], "state": sight.state.astype(np.float64)}
            if images == 2:
                given["wrist_image"] = sight.images[WRIST]
            torch.manual_seed(sight.seed)
            wanted = utils.get_vla_action(
                settings, vla, processor, given, sight.instruction, **parts
            )
            captured = run_captured(policy, policy.prepare([sight]))
            scaled = vla._unnormalize_actions(captured.actions[0], KEY)
            # Numbers of tokens are float64 there, and stored in float32.
            near = 1e-7 if kind.get("head", "l1") is None else 0
            np.testing.assert_allclose(scaled, np.stack(wanted), rtol=0, atol=near)
    if settings.use_film:
        seen: list[Any] = []
        handle = policy.encoder().register_forward_hook(lambda m, a, out: seen.append(out))
        for instruction in ("wipe", "put the red cube onto the pink plate"):
            policy.act(policy.prepare([replace(sized(0), instruction=instruction)]))
        handle.remove()
        assert (seen[0] != seen[images]).any(), "words change what a tower makes of the same image"


@pytest.mark.parametrize("steps", [None, STEPS])
def test_weights_are_a_softmax_over_the_unhooked_models_own_queries_and_keys(
    regression: Path, diffusion: Path, steps: int | None
) -> None:
    directory = regression if steps is None else diffusion
    policy = load(directory, **({} if steps is None else {"steps": str(steps)}))
    plain = Plain(directory, steps)
    batch = policy.prepare([observe(3)])
    captured = run_captured(policy, batch)
    passes = plain.passes(batch, 0, 3)
    assert len(captured.records) == LAYERS * len(passes) == LAYERS * (steps or 1)
    length = 1 + 512 + 1 + (steps is not None) + batch.inputs["input_ids"][0].shape[1] - 1 + 1
    length += NUMBERS + 1
    for _, layer, step, weights, _ in captured.records:
        wanted = plain.weights(passes[step or 0], layer)
        assert weights.shape == (1, HEADS, length, length)
        np.testing.assert_allclose(weights[0], wanted, atol=3e-6)
    # in both directions: BOS attends to the end marker, which a causal model could not
    assert (captured.records[0][3][0, :, 0, -1] > 0).all()


@pytest.mark.parametrize("steps", [None, STEPS])
def test_hidden_states_and_value_norms_are_those_of_the_unhooked_model(
    regression: Path, diffusion: Path, steps: int | None
) -> None:
    directory = regression if steps is None else diffusion
    policy = load(directory, **({} if steps is None else {"steps": str(steps)}))
    plain = Plain(directory, steps)
    batch = policy.prepare([observe(3)])
    passes = plain.passes(batch, 0, 3)
    (layout,) = batch.samples[0].layouts.values()
    first = next(s.model_start for s in layout.key if s.kind == "action")
    hidden: list[HiddenRecord] = []
    norms: list[Record] = []
    with capture(
        policy, norms.append, watch=Watch(values=True, hidden=HiddenChoice()), hidden=hidden.append
    ):
        policy.act(batch)
    for record in hidden:
        states = passes[record.step or 0]
        assert isinstance(record.states, torch.Tensor)
        if record.layer == LAST:  # what the head reads; the model's own slice of its output
            wanted = states[-1][:, first : first + NUMBERS]
        elif record.layer == LAYERS - 1:  # transformers returns it after the final norm
            norm = plain.vla.language_model.model.norm
            torch.testing.assert_close(norm(record.states), states[-1], rtol=0, atol=1e-6)
            continue
        else:
            wanted = states[record.layer + 1]
        torch.testing.assert_close(record.states, wanted, rtol=0, atol=0)
    assert len(hidden) == (LAYERS + 2) * (steps or 1)
    for shown in norms:
        block = plain.vla.language_model.model.layers[shown.layer]
        with torch.no_grad():
            entering = block.input_layernorm(passes[shown.step or 0][shown.layer])
            values = block.self_attn.v_proj(entering)[0].view(-1, HEADS, 8)
            parts = block.self_attn.o_proj.weight.view(32, HEADS, 8)
            wanted = torch.einsum("khf,ohf->hko", values, parts).norm(dim=-1)
        assert shown.norms is not None
        torch.testing.assert_close(shown.norms[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_number_is_read_off_the_token_before_its_placeholder(regression: Path) -> None:
    """By the unhooked model: which position of the last hidden states moves which action."""
    policy, plain = load(regression), Plain(regression)
    batch = policy.prepare([observe(1)])
    layout = batch.samples[0].layouts["joint"]
    spans = {s.name: s for s in layout.key}
    ids = batch.inputs["input_ids"][0][0].tolist()
    assert ids[-1] != EMPTY, "predict_action adds it"
    prompt = 1 + 512 + 1 + len(ids) - 1  # of the empty word that stands at the prompt's end
    assert spans["action[0]"].model_start == prompt
    assert spans["end"].model_start == prompt + NUMBERS
    assert [len(spans[f"action[{i}]"]) for i in range(8)] == [7] * 8
    assert layout.key.spans[-1].stop == prompt + NUMBERS + 2
    base = plain.normalised(batch, (0,))[0]

    def moved(position: int) -> list[int]:
        """Actions that change with the hidden state at a position."""

        def change(module: Any, args: Any, output: Any) -> Any:
            states = output.hidden_states[-1].clone()
            states[:, position] += 3
            return replace_states(output, states)

        handle = plain.vla.language_model.register_forward_hook(change)
        try:
            found = plain.normalised(batch, (0,))[0]
        finally:
            handle.remove()
        return np.flatnonzero((found != base).any(-1)).tolist()

    def replace_states(output: Any, states: Any) -> Any:
        output.hidden_states = (*output.hidden_states[:-1], states)
        return output

    for number, span in enumerate(spans[f"action[{i}]"] for i in range(8)):
        assert moved(span.model_start) == [number]
        assert moved(span.model_start + 6) == [number]
    assert moved(prompt - 1) == []
    assert moved(prompt + NUMBERS) == [], "the last placeholder is not read"


SIZES = {"16:9": (72, 128), "portrait": (150, 80), "odd": (61, 97)}


@pytest.mark.parametrize("crop", ["true", "false"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_what_the_towers_see_is_where_the_geometry_says_for_every_camera(
    regression: Path, size: tuple[int, int], crop: str
) -> None:
    """A mark in one camera lights that camera's channels, at the place that its geometry has."""
    policy = load(regression, center_crop=crop)
    height, width = size
    blank = {c: np.zeros((*size, 3), np.uint8) for c in (SIDE, WRIST)}
    for number, camera in enumerate((SIDE, WRIST)):
        for y, x in ((0.5, 0.5), (0.3, 0.6), (0.7, 0.45)):
            row, col = int(y * height), int(x * width)
            marked = blank[camera].copy()
            marked[row - 4 : row + 4, col - 4 : col + 4] = 255
            base = observe(1)
            seen = [
                policy.prepare([replace(base, images={**blank, camera: image})])
                for image in (marked, blank[camera])
            ]
            geometry = seen[0].samples[0].geometry[camera]
            rows, cols = geometry.source_to_grid(np.array(float(row)), np.array(float(col)))
            both = (seen[0].inputs["pixel_values"][0] - seen[1].inputs["pixel_values"][0])[0]
            towers = both.split(3)
            assert len(towers) == 4
            for which, tower in enumerate(towers):
                light = tower.mean(0).numpy().clip(0)
                if which // 2 != number:
                    assert not light.any()
                    continue
                at = (np.indices(light.shape) + 0.5).reshape(2, -1) @ light.ravel() / light.sum()
                np.testing.assert_allclose(at / 14, [rows, cols], atol=0.08)


def test_patches_of_each_camera_stand_where_the_layout_says(regression: Path) -> None:
    """By the unhooked model: which positions of its embedding change with which camera, or the state."""
    policy, plain = load(regression), Plain(regression)
    sight = observe(1)
    base = policy.prepare([sight])
    spans = {s.name: s for s in base.samples[0].layouts["joint"].key}
    before = plain.passes(base, 0)[0][0][0]

    def changed(other: Observation) -> list[int]:
        after = plain.passes(policy.prepare([other]), 0)[0][0][0]
        return np.flatnonzero((after != before).any(-1).numpy()).tolist()

    for camera in (SIDE, WRIST):
        image = 255 - sight.images[camera]
        span = spans[f"image:{camera}"]
        found = changed(replace(sight, images={**sight.images, camera: image}))
        assert found == list(range(span.model_start, span.model_start + 256))
    assert changed(replace(sight, state=sight.state * 0.5)) == [spans["state"].model_start]


def test_which_checkpoint_it_is_is_found_from_its_files(
    folder: Path, regression: Path, diffusion: Path, tmp_path: Path
) -> None:
    assert find_policy(str(regression)) == "openvla-oft"
    assert find_policy(str(diffusion)) == "openvla-oft"
    tokens = save_oft(tmp_path / "tokens", head=None, state=False)
    assert find_policy(str(tokens)) == "openvla", "nothing beside the model says so"
    with pytest.raises(AttnstoreError, match="this transformers 4.40.1 is OpenVLA-OFT's"):
        load_policy("openvla", str(tokens), options={"trust_remote_code": "true"})
    unmerged = tmp_path / "unmerged"
    (unmerged / "lora_adapter").mkdir(parents=True)
    for file in regression.glob("*.pt"):
        shutil.copy(file, unmerged)
    with pytest.raises(UsageError, match=r"merge_lora_weights_and_save\.py"):
        find_policy(str(unmerged))
    with pytest.raises(PolicyError, match="LoRA weights are not merged"):
        load(unmerged)


def test_broken_checkpoints_are_refused(regression: Path, diffusion: Path, tmp_path: Path) -> None:
    def changed(name: str, directory: Path = regression) -> Path:
        return Path(shutil.copytree(directory, tmp_path / name))

    twice = changed("twice")
    shutil.copy(next(twice.glob("action_head*")), twice / "action_head--9_checkpoint.pt")
    with pytest.raises(PolicyError, match="2 files of action_head: .*leave one"):
        load(twice)
    lost = changed("lost", diffusion)
    next(lost.glob("noisy*")).unlink()
    with pytest.raises(PolicyError, match="predicts noise, and there is no noisy_action_projector"):
        load(lost)
    torn = changed("torn")
    next(torn.glob("action_head*")).write_bytes(b"torn")
    with pytest.raises(PolicyError, match=r"action_head--.* cannot be read"):
        load(torn)
    bare = changed("bare")
    statistics = json.loads((bare / "dataset_statistics.json").read_text())
    del statistics[KEY]["proprio"]
    (bare / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(PolicyError, match="proprio needs q01 of 8 numbers, has none"):
        load(bare)
    with pytest.raises(UsageError, match="in one pass: leave it out"):
        load(regression, steps="5")
    with pytest.raises(UsageError, match="steps=60: the training had 50"):
        load(diffusion, steps="60")
    with pytest.raises(UsageError, match="needs a process of its own"):
        load(regression, platform="aloha")
    policy = load(regression)
    with pytest.raises(ObservationError, match="has 7 numbers, the policy was trained with 8"):
        policy.prepare([replace(observe(1), state=np.zeros(7, np.float32))])
    with pytest.raises(ObservationError, match="no camera 'hand_camera'"):
        policy.prepare([observe(1, cameras=(SIDE,))])
    unnamed = load_policy("openvla-oft", str(regression))
    with pytest.raises(
        UsageError, match="cameras=NAME,NAME; there are hand_camera, varied_camera_1"
    ):
        unnamed.prepare([observe(1)])


def test_constants_are_those_of_the_platform_whatever_the_command_line_says(
    regression: Path,
) -> None:
    """OpenVLA-OFT looks for ``aloha`` in the command line; the chunk would be another."""
    script = (
        "from attnstore.ingest.policies.registry import load_policy\n"
        "import sys\n"
        f"p = load_policy('openvla-oft', {str(regression)!r}, options={OPTIONS!r})\n"
        "print(p.horizon, p.action_dof, [m for m in sys.modules if m == 'prismatic'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "store-of-aloha-and-bridge"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert run.stdout == "8 7 []\n", run.stderr


def test_the_command_line_from_end_to_end(
    regression: Path, diffusion: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    for directory, phase, more in (
        (regression, "joint", ()),
        (diffusion, "suffix", ("--policy-option", f"steps={STEPS}")),
    ):
        store = tmp_path / f"{phase}.attn"
        cameras = ("--policy-option", f"cameras={SIDE},{WRIST}")
        common = ("ingest", "droid", store, sample_path(), "--checkpoint", directory, "--limit", 1,
                  "--stride", 13, "--token-stats", *more)  # fmt: skip
        refused = CliRunner().invoke(cli, [str(a) for a in common])
        assert refused.exit_code != 0
        assert "--policy-option cameras=NAME,NAME" in str(refused.exception)
        assert phase in run(*common, *cameras, "--dry-run")
        run(*common, *cameras)
        assert "every committed file" in run("verify", store)
        run("render", "images", store, "--out", tmp_path / phase, "--width", 160, "--layers", 1)
        assert list((tmp_path / phase).rglob(f"*{phase}*.jpg"))
        episode = attnstore.open(store).episode("2025-12-10_09-07-36")
        found = episode.attention(phase, keyframe=0, layer=1, query="action", key="task")
        assert found.sizes["query"] == NUMBERS
        gripper = episode.attention(phase, keyframe=0, layer=1, query="action[7]", key="image")
        assert gripper.sizes["query"] == 7
        run("probe", "knockout", store, "--checkpoint", directory, *cameras, *more,
            "--query", "action", "--key", f"image:{WRIST}", "--layers", "0-1")  # fmt: skip


@pytest.mark.parametrize("mode", ["live", "replay"])
def test_it_is_recorded_while_it_drives(diffusion: Path, tmp_path: Path, mode: Any) -> None:
    """Live, and captured later from the very same inputs, noise included."""
    options = {"steps": str(STEPS)}
    policy, store = load(diffusion, **options), tmp_path / "driven.attn"
    acted = []
    with (
        attnstore.record(policy, store, mode=mode) as recorder,
        recorder.episode("one", instruction="wipe") as episode,
    ):
        for seed in range(2):
            acted.append(as_array(policy.act(policy.prepare([observe(seed)])))[0])
            episode.advance(8)
        episode.finish(outcome="success")
    if mode == "replay":
        given = [f"--policy-option={k}={v}" for k, v in {**OPTIONS, **options}.items()]
        command = ["ingest", "recording", str(store), "--checkpoint", str(diffusion), *given]
        done = CliRunner().invoke(cli, [*command, "--tolerance", "0"])
        assert done.exit_code == 0, (done.output, done.exception)
    (name,) = attnstore.open(store).episodes
    found = attnstore.open(store).episode(name)
    np.testing.assert_array_equal(found.policy_array("actions"), np.stack(acted))
    assert found.attention("suffix", layer=1, query="action", key="image").sizes["keyframe"] == 2


ALOHA = "ALOHA" if "aloha" in " ".join(sys.argv) else ""


def test_a_platform_in_a_process_of_its_own() -> None:
    """OpenVLA-OFT's constants are picked by words of the command line: here of pytest's."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "of_aloha"],
        capture_output=True, text=True, check=False, env=os.environ, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "1 passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.skipif(not ALOHA, reason="constants of another platform")
def test_of_aloha(tmp_path: Path) -> None:
    """25 actions of 14 numbers, scaled by the least and the largest; found from the weights' sizes."""
    sizes = module_of("vla.constants")
    assert (sizes.NUM_ACTIONS_CHUNK, sizes.ACTION_DIM, sizes.PROPRIO_DIM) == (25, 14, 14)
    directory = save_oft(tmp_path / "two-arms")
    bounds = {"min": [-1.0] * 14, "max": [2.0] * 14}
    statistics = {KEY: {"action": bounds, "proprio": bounds}}
    (directory / "dataset_statistics.json").write_text(json.dumps(statistics))
    policy, plain = load(directory), Plain(directory)
    batch = policy.prepare([replace(observe(1), state=np.full(14, 1.25, np.float32))])
    assert batch.inputs["state"][0].tolist() == [[0.5] * 14]
    captured = run_captured(policy, batch)
    assert captured.actions.shape == (1, 25, 14)
    np.testing.assert_array_equal(captured.actions, plain.normalised(batch, (0,)))
    names = [s.name for s in batch.samples[0].layouts["joint"].key if s.kind == "action"]
    assert names == [f"action[{i}]" for i in range(25)]


def test_one_tower_takes_one_image(tmp_path: Path) -> None:
    directory = save_oft(tmp_path / "siglip", backbone="siglip-vit-so400m")
    policy = load(directory, cameras=SIDE)
    batch = policy.prepare([observe(1)])
    assert batch.inputs["pixel_values"][0].shape == (1, 3, 224, 224)
    assert len(run_captured(policy, batch).records) == LAYERS
    with pytest.raises(UsageError, match="several images with two vision towers only"):
        load(directory).prepare([observe(1)])
