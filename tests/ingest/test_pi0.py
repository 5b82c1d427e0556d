"""The Pi0 adapter: layouts, geometry, noise, loading, and what it says of a bad checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from ingest_fixtures import CHUNK, LAYERS, STEPS, arrays_of, make_job, observe
from numpy.typing import NDArray
from policy_contract import Case

from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.policies.base import Batch, ObservationError, PolicyError
from attnstore.ingest.policies.pi0 import loading
from attnstore.ingest.policies.pi0.layout import image_geometry
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy, parse_options, policy_names
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.store.commits.part import Part
from attnstore.store.errors import MissingExtraError, NotFoundError, UsageError
from attnstore.store.format.tokens import Axis

SIZES = {"16:9": (72, 128), "4:3": (60, 80), "square": (50, 50), "portrait": (90, 48)}
PROMPTS = ("wipe", "place the green cube into the pink bowl", "naïve 7")
PATCHES = 16


def spans(axis: Axis) -> list[tuple[str, str, int, int, int]]:
    return [(s.name, s.kind, s.start, s.stop, s.model_start) for s in axis]


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, loaded: Pi0Policy) -> Case:
        model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
        model.model.vlm.language_model.set_attn_implementation("eager")
        model.model.dit.set_attn_implementation("eager")

        def reference(batch: Batch) -> torch.Tensor:
            actions = model.sample_actions(**batch.inputs, num_steps=STEPS)
            assert isinstance(actions, torch.Tensor)
            return actions

        @torch.no_grad()
        def euler(batch: Batch) -> list[torch.Tensor]:
            given = dict(batch.inputs)
            chunk, mask = given.pop("noise"), given["attention_mask"]
            seen = {k: given[k] for k in ("attention_mask", "pixel_attention_mask", "state")}
            prefix = model.model.embed_prefix(
                given["input_ids"], given["pixel_values"], given["pixel_attention_mask"]
            )
            chunks = []
            for step in range(STEPS):
                cache = model.model.vlm(  # anew at each step: nothing of the last one can be in it
                    inputs_embeds=prefix, attention_mask=mask, position_ids=mask.cumsum(-1) - 1,
                    token_type_ids=torch.zeros_like(mask), use_cache=True,
                ).past_key_values  # fmt: skip
                time = torch.full((len(chunk),), 1 + step * (-1 / STEPS))
                velocity = model(noise=chunk, timestep=time, past_key_values=cache, **seen).logits
                chunk = chunk + (-1 / STEPS) * velocity  # rounded as theirs
                chunks.append(chunk)
            return chunks

        return Case(loaded, (observe(1), observe(2, "wipe")), loaded.model, reference, euler)


class TestLayout:
    @pytest.mark.parametrize("prompt", PROMPTS)
    @pytest.mark.parametrize(
        "cameras",
        [("wrist",), ("wrist", "side"), ("side", "wrist"), ("left", "wrist", "right")],
    )
    def test_it_is_read_off_the_batch(
        self, policy: Pi0Policy, prompt: str, cameras: tuple[str, ...]
    ) -> None:
        batch = policy.prepare([observe(1, prompt, cameras)])
        layout = batch.samples[0].layouts
        tokenizer = policy.processor.tokenizer
        words = tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
        images = PATCHES * len(cameras)
        ids = batch.inputs["input_ids"][0].tolist()
        image_id = policy.config.vlm_config.image_token_id
        assert ids[: images + 1 + len(words)] == [
            *[image_id] * images, tokenizer.bos_token_id, *words,
        ]  # fmt: skip

        wanted = [
            (f"image:{c}", "image", 16 * i, 16 * i + 16, 16 * i) for i, c in enumerate(cameras)
        ]
        end = images + len(words)
        wanted += [
            ("bos", "text", images, images + 1, images),
            ("task", "text", images + 1, end, images + 1),
            ("newline", "text", end, end + 1, end),
        ]
        assert spans(layout["prefix"].query) == spans(layout["prefix"].key) == wanted
        assert spans(layout["suffix"].query) == [
            ("state", "state", 0, 1, 0), ("action", "action", 1, 1 + CHUNK, 1),
        ]  # fmt: skip
        padded = len(ids)
        assert spans(layout["suffix"].key) == [
            *wanted,
            ("state", "state", end + 1, end + 2, padded),
            ("action", "action", end + 2, end + 2 + CHUNK, padded + 1),
        ]
        assert [s.camera for s in layout["prefix"].key][: len(cameras)] == list(cameras)
        assert list(batch.samples[0].geometry) == list(cameras)

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_the_strings_of_the_tokens_are_the_prompt(self, policy: Pi0Policy, prompt: str) -> None:
        axis = policy.prepare([observe(1, prompt)]).samples[0].layouts["prefix"].key
        texts = {s.name: [t.text for t in s.tokens] for s in axis if s.kind == "text"}
        assert (texts["bos"], texts["newline"]) == (["<bos>"], ["\n"])
        if prompt.isascii():
            assert "".join(texts["task"]) == prompt
        else:  # a character outside the vocabulary is two bytes, a token each
            assert "".join(texts["task"]) == prompt.replace("ï", "\\xc3\\xaf")
        roles = {s.name: s.role for s in axis if s.kind == "text"}
        assert roles == {"bos": "template", "task": "task", "newline": "template"}

    def test_the_layout_has_all_that_is_attended_to_and_nothing_else(
        self, policy: Pi0Policy
    ) -> None:
        batch = policy.prepare([observe(1, PROMPTS[0]), observe(2, PROMPTS[1])])
        assert batch.inputs["input_ids"].shape[1] > len(batch.samples[0].layouts["prefix"].key)
        with capture(policy) as session:
            policy.act(batch)
        for record in session.records:
            for row, sample in enumerate(batch.samples):
                layout = sample.layouts[record.phase]
                valid = [i for s in layout.query.model_slices for i in range(s.start, s.stop)]
                keys = [i for s in layout.key.model_slices for i in range(s.start, s.stop)]
                weights = record.weights[row][:, valid]
                seen = torch.nonzero(weights.amax((0, 1)) > 0).flatten().tolist()
                assert seen == keys

    def test_each_camera_feeds_its_own_tokens(self, policy: Pi0Policy) -> None:
        one = observe(1, cameras=("wrist", "side"))
        black = np.zeros_like(one.images["side"])
        other = replace(one, images={**one.images, "side": black})
        embedded = []
        for sight in (one, other):
            inputs = policy.prepare([sight]).inputs
            with torch.no_grad():
                embedded.append(
                    policy.model.model.embed_prefix(
                        inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"]
                    )[0]
                )
        differing = torch.nonzero((embedded[0] != embedded[1]).any(-1)).flatten().tolist()
        span = policy.prepare([one]).samples[0].layouts["prefix"].key.group("image:side")[0]
        assert differing == list(range(span.start, span.stop))

    def test_samples_of_one_batch_may_have_other_cameras(self, policy: Pi0Policy) -> None:
        """The processor fills the missing image with zeros and gives it no tokens."""
        sights = [observe(1, cameras=("wrist",)), observe(2, cameras=("wrist", "side"))]
        batch = policy.prepare(sights)
        alone = [policy.prepare([s]).samples[0] for s in sights]
        for ours, wanted in zip(batch.samples, alone, strict=True):
            assert spans(ours.layouts["prefix"].key) == spans(wanted.layouts["prefix"].key)
        actions = policy.act(batch)
        for row, sight in enumerate(sights):
            single = policy.act(policy.prepare([sight]))[0]
            torch.testing.assert_close(actions[row], single, rtol=1e-3, atol=1e-4)


class TestGeometry:
    """Against the pixels that the checkpoint's own processor makes."""

    def pixels(self, policy: Pi0Policy, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        sight = replace(observe(1), images={"wrist": image})
        values = policy.prepare([sight]).inputs["pixel_values"]
        assert values.shape[:3] == (1, 1, 3)
        return np.asarray(values[0, 0].float().mean(0))

    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_what_is_image_and_what_is_padding(
        self, policy: Pi0Policy, size: tuple[int, int]
    ) -> None:
        white = self.pixels(policy, np.full((*size, 3), 255, np.uint8))
        black = self.pixels(policy, np.zeros((*size, 3), np.uint8))
        shown = white != black
        geometry = policy.prepare([observe(1, cameras=("w",), size=size)]).samples[0].geometry["w"]
        assert (geometry.source, geometry.input, geometry.grid) == (size, (56, 56), (4, 4))
        rows, cols = geometry.resized
        wanted = np.zeros((56, 56), bool)
        wanted[:rows, :cols] = True
        np.testing.assert_array_equal(shown, wanted)
        by_patch = shown.reshape(4, 14, 4, 14).mean((1, 3))
        np.testing.assert_allclose(geometry.coverage(), by_patch, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_a_bright_block_of_the_source_lands_in_its_patch(
        self, policy: Pi0Policy, size: tuple[int, int]
    ) -> None:
        geometry = policy.prepare([observe(1, cameras=("w",), size=size)]).samples[0].geometry["w"]
        black = self.pixels(policy, np.zeros((*size, 3), np.uint8))
        embeddings = policy.model.model.vlm.vision_tower.embeddings
        tried = 0
        for row, col in np.argwhere(geometry.coverage() == 1):
            # the middle half of the patch: bicubic resampling reaches over its edge
            top, left = geometry.grid_to_source(row + 0.25, col + 0.25)
            bottom, right = geometry.grid_to_source(row + 0.75, col + 0.75)
            image = np.zeros((*size, 3), np.uint8)
            image[
                round(float(top)) : round(float(bottom)), round(float(left)) : round(float(right))
            ] = 255
            change = np.abs(self.pixels(policy, image) - black)
            by_patch = change.reshape(4, 14, 4, 14).sum((1, 3))
            assert by_patch[row, col] > 0.9 * by_patch.sum()

            with torch.no_grad():  # and in the token of that patch, row-major
                both = torch.from_numpy(np.stack([change * 0, change])).expand(3, 2, 56, 56)
                tokens = embeddings(both.transpose(0, 1).contiguous())
            moved = (tokens[1] - tokens[0]).norm(dim=-1)
            assert int(moved.argmax()) == row * 4 + col
            tried += 1
        assert tried >= 4

    def test_an_unknown_resize_rule_is_refused(self, policy: Pi0Policy) -> None:
        processor = build_tiny_pi0(layers=1)[1]
        processor.image_processor.size = {"shortest_edge": 56}
        ours = Pi0Policy.from_model(policy.model, processor)
        with pytest.raises(PolicyError, match="shortest_edge.*geometry is unknown"):
            image_geometry(ours.config, ours.processor, (36, 64))


class TestNoise:
    def test_the_seed_decides_and_nothing_else(self, policy: Pi0Policy) -> None:
        first = policy.prepare([observe(7), observe(8)]).inputs["noise"]
        torch.manual_seed(99)
        again = policy.prepare([observe(1), replace(observe(3), seed=7)]).inputs["noise"]
        assert first.shape == (2, CHUNK, 32)
        assert first.dtype == torch.float32
        assert torch.equal(first[0], again[1])
        assert not torch.equal(first[0], first[1])
        assert abs(float(torch.cat([first, again]).mean())) < 0.2
        assert 0.8 < float(torch.cat([first, again]).std()) < 1.2

    def test_the_largest_seed(self, policy: Pi0Policy) -> None:
        noises = [
            policy.prepare([replace(observe(1), seed=seed)]).inputs["noise"]
            for seed in (2**63 - 1, 2**63 - 2, 0)
        ]
        assert all(torch.isfinite(noise).all() for noise in noises)
        assert not torch.equal(noises[0], noises[1])  # as they are where a seed is cut to a float
        assert not torch.equal(noises[0], noises[2])


class TestLoading:
    def test_saved_and_loaded_gives_the_same_actions(self, policy: Pi0Policy) -> None:
        memory = Pi0Policy.from_model(*build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK))
        sights = [observe(1), observe(2, "wipe")]
        assert torch.equal(policy.act(policy.prepare(sights)), memory.act(memory.prepare(sights)))
        assert (memory.steps, memory.horizon, memory.action_dof) == (STEPS, CHUNK, 32)
        assert (memory.dtype, memory.device) == ("float32", "cpu")
        assert memory.phases == policy.phases
        assert {n: (p.layers, p.heads, p.steps) for n, p in policy.phases.items()} == {
            "prefix": (LAYERS, 8, None), "suffix": (LAYERS, 8, STEPS),
        }  # fmt: skip

    def test_weights_wait_for_their_first_use(self, checkpoint: Path) -> None:
        policy = load_policy("pi0", str(checkpoint))
        policy.prepare([observe(1)])
        assert policy.digest
        assert policy.dtype == "float32"
        assert "model" not in vars(policy)

    @pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 3e-3), ("float16", 2e-3)])
    def test_a_dtype_passes_the_health_gate(
        self, checkpoint: Path, recordings: Path, tmp_path: Path, dtype: str, tolerance: float
    ) -> None:
        policy = load_policy("pi0", str(checkpoint), dtype=dtype)
        dataset = DroidDataset(recordings)
        job = make_job(tmp_path / "s", policy, dataset, stride=16)
        assert job.run.dtype == dtype
        commit = ingest_episode(job, policy, dataset, dataset.episode_names()[0])
        assert isinstance(policy, Pi0Policy)
        assert {str(p.dtype) for p in policy.model.parameters()} == {f"torch.{dtype}"}
        part = Part(job.paths, commit)
        rows = part.table("keyframes").to_pylist()
        assert all(r["row_sum_min"] < 1 < r["row_sum_max"] for r in rows)
        stored = arrays_of(part)["prefix/attention"].astype(np.float64)
        np.testing.assert_allclose(stored.sum(-1), 1, atol=tolerance)

    def test_fewer_steps_on_request(self, checkpoint: Path) -> None:
        policy = load_policy("pi0", str(checkpoint), options={"steps": "2"})
        with capture(policy) as session:
            policy.act(policy.prepare([observe(1)]))
        assert session.counts == {"prefix": LAYERS, "suffix": 2 * LAYERS}
        assert policy.phases["suffix"].steps == 2

    def test_policies_are_found_by_entry_point(self, checkpoint: Path) -> None:
        assert "pi0" in policy_names()
        with pytest.raises(NotFoundError, match=r"no policy 'pi1'; installed: .*pi0"):
            load_policy("pi1", str(checkpoint))
        with pytest.raises(UsageError, match="pi0 has no variants; got 'droid'"):
            load_policy("pi0:droid", str(checkpoint))


class TestDigest:
    def test_of_a_directory(self, checkpoint: Path, tmp_path: Path) -> None:
        copy = tmp_path / "another name"
        shutil.copytree(checkpoint, copy)
        digest = load_policy("pi0", str(checkpoint)).digest
        assert len(digest) == 64
        (copy / ".cache").mkdir()
        (copy / ".cache" / "lock").touch()
        assert load_policy("pi0", str(copy)).digest == digest
        weights = copy / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        assert load_policy("pi0", str(copy)).digest != digest

    def test_of_a_model_in_memory(self) -> None:
        model, processor = build_tiny_pi0(layers=1)
        digest = Pi0Policy.from_model(model, processor).digest
        assert Pi0Policy.from_model(*build_tiny_pi0(layers=1)).digest == digest
        other, _ = build_tiny_pi0(layers=1)
        with torch.no_grad():
            other.action_out_proj.weight[3, 4] += 1e-6
        assert Pi0Policy.from_model(other, processor).digest != digest
        processor.state_mean = [0.5] * 8
        assert Pi0Policy.from_model(model, processor).digest != digest

    def test_given_statistics_are_part_of_it(self, checkpoint: Path, tmp_path: Path) -> None:
        def digest(mean: float) -> str:
            file = tmp_path / "stats.json"
            file.write_text(json.dumps({"state_mean": [mean] * 8, "state_std": [2.0] * 8}))
            return load_policy("pi0", str(checkpoint), options={"stats": str(file)}).digest

        assert digest(0.0) == digest(0.0)
        assert len({load_policy("pi0", str(checkpoint)).digest, digest(0.0), digest(1.0)}) == 3


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _torn_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "pi0", ')


def _other_model(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')


def _no_type(directory: Path) -> None:
    (directory / "config.json").write_text('{"hidden_size": 8}')


def _no_processor(directory: Path) -> None:
    (directory / "processor_config.json").unlink()


def _no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _no_statistics(directory: Path) -> None:
    edit_json(directory / "processor_config.json", state_mean=None)


BAD: dict[Callable[[Path], None], str] = {
    _no_config: "no config.json in it; a checkpoint directory is expected",
    _torn_config: "its config.json cannot be read",
    _other_model: "its config.json is of 'bert', not 'pi0'",
    _no_type: "its config.json is of None, not 'pi0'",
    _no_processor: "not a readable Pi0 checkpoint",
    _no_tokenizer: "not a readable Pi0 checkpoint",
    _no_statistics: "no state_mean and state_std.* pass --policy-option stats=FILE",
}


class TestErrors:
    def test_an_older_transformers(
        self, checkpoint: Path, policy: Pi0Policy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With 5.22 and before, the state's statistics were lost and the actions were others."""
        monkeypatch.setattr(loading, "require", lambda *_: SimpleNamespace(__version__="5.22.0"))
        with pytest.raises(MissingExtraError, match="needs transformers 5.23 or newer, and 5.22.0"):
            load_policy("pi0", str(checkpoint))
        with pytest.raises(MissingExtraError, match="5.23"):
            Pi0Policy.from_model(policy.model, policy.processor)

    @pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__.strip("_"))
    def test_a_bad_checkpoint(
        self, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]
    ) -> None:
        directory = tmp_path / "ck"
        shutil.copytree(checkpoint, directory)
        damage(directory)
        with pytest.raises(PolicyError, match=BAD[damage]) as caught:
            load_policy("pi0", str(directory))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1

    def test_truncated_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        directory = tmp_path / "ck"
        shutil.copytree(checkpoint, directory)
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:50_000])
        policy = load_policy("pi0", str(directory))
        with pytest.raises(PolicyError, match="^ck: weights cannot be loaded") as caught:
            policy.act(policy.prepare([observe(1)]))
        assert "\n" not in str(caught.value)

    def test_missing_weights_are_not_made_up(self, checkpoint: Path, tmp_path: Path) -> None:
        """The transformers library fills them with random numbers, and warns."""
        from safetensors.torch import load_file, save_file

        directory = tmp_path / "ck"
        shutil.copytree(checkpoint, directory)
        weights = load_file(directory / "model.safetensors")
        del weights["action_out_proj.weight"]
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        policy = load_policy("pi0", str(directory))
        with pytest.raises(PolicyError, match=r"1 weights are missing .*: action_out_proj\.weight"):
            policy.act(policy.prepare([observe(1)]))

    def test_statistics_from_a_file(self, checkpoint: Path, tmp_path: Path) -> None:
        directory = tmp_path / "ck"
        shutil.copytree(checkpoint, directory)
        _no_statistics(directory)
        stats = tmp_path / "stats.json"
        stats.write_text(json.dumps({"state_mean": [1.0] * 8, "state_std": [2.0] * 8}))
        policy = load_policy("pi0", str(directory), options={"stats": str(stats)})
        sight = observe(1)
        state = policy.prepare([sight]).inputs["state"][0]
        np.testing.assert_allclose(state[:8], (sight.state - 1) / 2, rtol=1e-6)
        assert state[8:].tolist() == [0.0] * 24

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"state_mean": [0]}'])
    def test_a_bad_file_of_statistics(
        self, checkpoint: Path, tmp_path: Path, content: str | None
    ) -> None:
        stats = tmp_path / "stats.json"
        if content is not None:
            stats.write_text(content)
        with pytest.raises(PolicyError, match="JSON with state_mean and state_std is expected"):
            load_policy("pi0", str(checkpoint), options={"stats": str(stats)})

    @pytest.mark.parametrize("missing", ["/no/such/checkpoint", "./nothing", "a/b/c"])
    def test_no_such_directory(self, missing: str) -> None:
        with pytest.raises(NotFoundError, match="no such checkpoint directory") as caught:
            load_policy("pi0", missing)
        assert caught.value.exit_code == 3

    def test_a_file_is_no_checkpoint(self, checkpoint: Path) -> None:
        with pytest.raises(NotFoundError, match="no such checkpoint directory"):
            load_policy("pi0", str(checkpoint / "config.json"))

    def test_a_hub_checkpoint_that_cannot_be_fetched(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(PolicyError, match="neither a directory nor a hub checkpoint") as caught:
            load_policy("pi0", "nobody/nothing")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": "abc"}, "steps is a whole number .*; got 'abc'"),
            ({"steps": "0"}, "steps is a whole number .*; got '0'"),
            ({"steps": "-1"}, "steps is a whole number .*; got '-1'"),
            ({"step": "3"}, "pi0 has the options stats, steps; got 'step'"),
        ],
    )
    def test_bad_options(self, checkpoint: Path, options: dict[str, str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_policy("pi0", str(checkpoint), options=options)

    @pytest.mark.parametrize("pair", ["steps", "=3", ""])
    def test_an_option_is_key_and_value(self, pair: str) -> None:
        with pytest.raises(UsageError, match="a policy option is KEY=VALUE"):
            parse_options([pair])
        assert parse_options(["a=1=2", "b="]) == {"a": "1=2", "b": ""}

    def test_an_unknown_dtype(self, checkpoint: Path) -> None:
        with pytest.raises(
            UsageError, match="dtype is one of float32, bfloat16, float16; got 'int4'"
        ):
            load_policy("pi0", str(checkpoint), dtype="int4")

    @pytest.mark.parametrize(
        ("length", "message"),
        [
            (40, "has 40 components, the policy takes at most 32"),
            (64, "has 64 components, the policy takes at most 32"),
            (7, "has 7 components, the processor's state_mean has 8"),
        ],
    )
    def test_a_state_that_does_not_fit(self, policy: Pi0Policy, length: int, message: str) -> None:
        sight = replace(observe(1), state=np.zeros(length, np.float32))
        with pytest.raises(ObservationError, match=message):
            policy.prepare([sight])

    def test_statistics_of_length_1_are_not_stretched(self, policy: Pi0Policy) -> None:
        processor = build_tiny_pi0(layers=1, state_dof=1)[1]
        ours = Pi0Policy.from_model(policy.model, processor)
        with pytest.raises(ObservationError, match="state_mean has 1"):
            ours.prepare([observe(1)])

    def test_what_the_processor_refuses(self, policy: Pi0Policy) -> None:
        """Three cameras leave no room for padding, so prompts of one batch must be equally long."""
        cameras = ("left", "wrist", "right")
        sights = [observe(1, PROMPTS[0], cameras), observe(2, PROMPTS[1], cameras)]
        with pytest.raises(ObservationError, match="the Pi0 processor refuses") as caught:
            policy.prepare(sights)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("module", ["torch", "transformers"])
    def test_a_missing_extra_names_the_command(self, checkpoint: Path, module: str) -> None:
        done = without(module, f"load_policy('pi0', {str(checkpoint)!r})")
        assert done.stdout == (
            f"MissingExtraError 2 policy pi0 needs {module}: pip install 'attnstore[ingest]'\n"
        )


def without(module: str, call: str, extra: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a call in a process in which a module cannot be imported, as if it were not installed."""
    code = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from attnstore.ingest.policies.registry import load_policy
from attnstore.store.errors import AttnstoreError
try:
    {call}
except AttnstoreError as error:
    print(type(error).__name__, error.exit_code, error)
"""
    return subprocess.run(
        [sys.executable, "-c", code, *extra],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
