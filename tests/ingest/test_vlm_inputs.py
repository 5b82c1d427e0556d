"""Vision-language models: geometry against the processors' own pixels, prompts, bad checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vlm_fixtures
from ingest_fixtures import observe
from numpy.typing import NDArray

from attnstore.ingest.policies.base import Observation, ObservationError, PolicyError
from attnstore.ingest.policies.prompt import token_bytes, token_text
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.policies.vlm.policy import VlmPolicy
from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Span

SIZES = {
    "16:9": (72, 128),
    "4:3": (90, 120),
    "square": (84, 84),
    "portrait": (150, 80),
    "odd": (61, 97),
}


@pytest.fixture(scope="module", params=["paligemma", "llava", "qwen2_vl", "qwen3_vl"])
def policy(request: pytest.FixtureRequest) -> VlmPolicy:
    return VlmPolicy.from_model(*vlm_fixtures.FAMILIES[request.param](), max_new_tokens=2)


def sight(image: NDArray[np.uint8], instruction: str = "wipe") -> Observation:
    return replace(observe(1), images={"wrist": image}, instruction=instruction)


def geometry_of(policy: VlmPolicy, size: tuple[int, int]) -> Geometry:
    return policy.prepare([sight(np.zeros((*size, 3), np.uint8))]).samples[0].geometry["wrist"]


def pixels(policy: VlmPolicy, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the encoder sees of an image, (height, width), from the processor's output."""
    inputs = policy.prepare([sight(image)]).inputs
    values = inputs["pixel_values"].float()
    if "image_grid_thw" not in inputs:
        return np.asarray(values[0].mean(0))
    # (rows/m, cols/m, m, m, channel, moment, patch, patch), as the encoder unfolds them
    processor = policy.processor.image_processor
    _, rows, cols = inputs["image_grid_thw"][0].tolist()
    p, m = processor.patch_size, processor.merge_size
    blocks = values.reshape(rows // m, cols // m, m, m, 3, 2, p, p).mean((4, 5))
    image_of = blocks.permute(0, 2, 4, 1, 3, 5).reshape(rows * p, cols * p)
    return np.asarray(image_of)


class TestGeometry:
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_what_the_encoder_sees_is_what_the_geometry_says(
        self, policy: VlmPolicy, size: tuple[int, int]
    ) -> None:
        """A linear ramp stays one under crop and resize: every pixel names its source."""
        geometry = geometry_of(policy, size)
        assert geometry.source == size
        assert (geometry.coverage() == 1).all()
        height, width = size
        ramps = np.indices(size)
        scale = (250 / height, 250 / width)
        black = pixels(policy, np.zeros((*size, 3), np.uint8))
        white = pixels(policy, np.full((*size, 3), 255, np.uint8))
        assert black.shape == geometry.input
        y, x = geometry.grid_to_source(
            (np.arange(float(geometry.input[0])) + 0.5) / geometry.patch[0],
            (np.arange(float(geometry.input[1])) + 0.5) / geometry.patch[1],
        )
        for axis, wanted in ((0, y[:, None]), (1, x[None, :])):
            ramp = np.repeat((ramps[axis] * scale[axis])[..., None], 3, -1).round().astype(np.uint8)
            seen = (pixels(policy, ramp) - black) / (white - black) * 255 / scale[axis] + 0.5
            inner = seen[3:-3, 3:-3]  # a filter reaches over the edge
            expected = np.broadcast_to(wanted, seen.shape)[3:-3, 3:-3]
            # within the rounding to whole grey values
            assert np.abs(inner - expected).max() < 1.1 / scale[axis] + 0.3
            assert abs(float((inner - expected).mean())) < 0.12

    @pytest.mark.parametrize("size", [(90, 120), (150, 80)])
    def test_a_bright_block_moves_the_token_of_its_patch(
        self, policy: VlmPolicy, size: tuple[int, int]
    ) -> None:
        geometry = geometry_of(policy, size)

        def tokens(image: NDArray[np.uint8]) -> Any:
            inputs = policy.prepare([sight(image)]).inputs
            keys = ("pixel_values", "image_grid_thw")
            given = {k: inputs[k] for k in keys if k in inputs}
            with torch.no_grad():
                found = policy.model.model.get_image_features(**given).pooler_output
            return (found[0] if isinstance(found, (list, tuple)) else found).reshape(-1, 32)

        before = tokens(np.zeros((*size, 3), np.uint8))
        assert len(before) == geometry.grid[0] * geometry.grid[1]
        right = 0
        for row, col in np.ndindex(*geometry.grid):
            top, left = geometry.grid_to_source(np.array(row + 0.1), np.array(col + 0.1))
            bottom, end = geometry.grid_to_source(np.array(row + 0.9), np.array(col + 0.9))
            image = np.zeros((*size, 3), np.uint8)
            image[
                round(float(top)) : round(float(bottom)), round(float(left)) : round(float(end))
            ] = 255
            moved = (tokens(image) - before).norm(dim=-1)
            right += int(moved.argmax()) == row * geometry.grid[1] + col
        # attention in the encoder mixes patches, so not every token moves most by its own
        assert right >= 0.75 * len(before)

    def test_golden(self) -> None:
        """Real checkpoints' numbers: PaliGemma 224, CLIP 336, Qwen2-VL, for 1280x720."""
        found = {}
        for name, options in (("paligemma", {"image": 224}), ("llava", {"image": 336})):
            policy = VlmPolicy.from_model(*vlm_fixtures.FAMILIES[name](**options))
            found[name] = geometry_of(policy, (720, 1280))
        paligemma, llava = found["paligemma"], found["llava"]
        assert (paligemma.grid, paligemma.crop, paligemma.resized) == ((16, 16), None, (224, 224))
        assert (llava.grid, llava.input) == ((24, 24), (336, 336))
        # 597x336 after the resize, 130 columns cut off on the left: 130 / 597 of 1280
        assert llava.crop == pytest.approx((0, 130 * 1280 / 597, 720, 336 * 1280 / 597))
        model, processor = vlm_fixtures.qwen2_vl()
        processor.image_processor = vlm_fixtures.transformers.Qwen2VLImageProcessor()
        qwen = geometry_of(VlmPolicy.from_model(model, processor), (720, 1280))
        # 720 / 28 = 25.7, 1280 / 28 = 45.7: 26 x 46 = 1196 tokens, fewer than 1280
        assert (qwen.grid, qwen.input, qwen.crop) == ((26, 46), (728, 1288), None)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": {"longest_edge": 56}}, "size {'longest_edge': 56} is not understood"),
            ({"do_pad": True}, "pads: its geometry is not understood"),
            ({"crop_size": {"height": 70, "width": 70}}, "padding in a crop is not understood"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, change: dict[str, Any], message: str) -> None:
        from attnstore.ingest.policies.vlm.geometry import plain_geometry

        processor = vlm_fixtures.llava()[1].image_processor
        for key, value in change.items():
            setattr(processor, key, value)
        with pytest.raises(PolicyError, match=message):
            plain_geometry(processor, 14, (72, 128), (56, 56))

    def test_pixels_that_contradict_the_configuration_are_refused(self) -> None:
        from attnstore.ingest.policies.vlm.geometry import plain_geometry

        processor = vlm_fixtures.paligemma()[1].image_processor
        with pytest.raises(
            PolicyError, match=r"made 64x64 of 72x128, its configuration says 56x56"
        ):
            plain_geometry(processor, 14, (72, 128), (64, 64))
        with pytest.raises(PolicyError, match="do not divide"):
            plain_geometry(processor, 15, (72, 128), (56, 56))

    def test_other_processors_are_refused(self) -> None:
        model, processor = vlm_fixtures.llava()
        processor.image_processor = vlm_fixtures.transformers.LlavaNextImageProcessor()
        with pytest.raises(
            PolicyError, match="LlavaNextImageProcessor: its geometry is not underst"
        ):
            VlmPolicy.from_model(model, processor)

    def test_a_class_token_among_the_image_tokens_is_refused(self) -> None:
        model, processor = vlm_fixtures.llava()
        processor.vision_feature_select_strategy = "full"
        policy = VlmPolicy.from_model(model, processor)
        with pytest.raises(
            PolicyError, match="34 image tokens, the cameras' patches are.*class tok"
        ):
            policy.prepare([observe(1)])


INSTRUCTIONS = (
    "wipe", "place the green cube into the pink bowl", "naïve 7 – ﬁne", "a", "image", "user",
    "{braces} stay", "你好 cube",
)  # fmt: skip


def spans_of(policy: VlmPolicy, instruction: str) -> tuple[Span, ...]:
    batch = policy.prepare([replace(observe(2), instruction=instruction)])
    return batch.samples[0].layouts["prefix"].key.spans


class TestPrompt:
    @pytest.mark.parametrize("instruction", INSTRUCTIONS)
    def test_the_task_is_the_instruction(self, policy: VlmPolicy, instruction: str) -> None:
        (task,) = [s for s in spans_of(policy, instruction) if s.role == "task"]
        tokenizer = policy.processor.tokenizer
        joined = b"".join(token_bytes(tokenizer, t.id) for t in task.tokens).decode()
        assert joined.strip() == instruction
        assert all(s.role == "template" for s in spans_of(policy, instruction)
                   if s.kind == "text" and s.name != "task")  # fmt: skip

    @pytest.mark.parametrize("instruction", ["a helpful assistant", "an", "assistant"])
    def test_it_is_not_mistaken_for_the_template(self, instruction: str) -> None:
        policy = VlmPolicy.from_model(*vlm_fixtures.qwen2_vl())
        spans = spans_of(policy, instruction)
        images = [s.start for s in spans if s.camera]
        (task,) = [s for s in spans if s.role == "task"]
        assert task.start > max(images)

    def test_a_template_is_around_it_and_part_of_the_digest(self, policy: VlmPolicy) -> None:
        model, processor = policy.model, policy.processor
        ours = VlmPolicy.from_model(model, processor, prompt="Where must I {instruction}? Say.")
        spans = spans_of(ours, "go")
        text = "".join(t.text for s in spans for t in s.tokens)
        assert "Where must I go? Say." in text
        (task,) = [s for s in spans if s.role == "task"]
        assert "".join(t.text for t in task.tokens).strip() == "go"
        assert ours.digest != policy.digest

    def test_positions_are_those_of_the_token_ids(self, policy: VlmPolicy) -> None:
        batch = policy.prepare([observe(1), replace(observe(2), instruction="wipe")])
        tokenizer = policy.processor.tokenizer
        for row, sample in enumerate(batch.samples):
            ids = batch.inputs["input_ids"][row].tolist()
            mask = batch.inputs["attention_mask"][row].tolist()
            seen: list[int] = []
            for span in sample.layouts["prefix"].key:
                own = list(range(span.model_start, span.model_start + len(span)))
                seen += own
                if span.kind == "image":
                    assert {ids[i] for i in own} == {policy.config.image_token_id}
                else:
                    assert [ids[i] for i in own] == [t.id for t in span.tokens]
                    assert [token_text(tokenizer, ids[i]) for i in own] == [
                        t.text for t in span.tokens
                    ]
            assert seen == [i for i, shown in enumerate(mask) if shown]

    def test_an_instruction_with_the_image_token_is_refused(self, policy: VlmPolicy) -> None:
        token = policy.processor.tokenizer.convert_ids_to_tokens(policy.config.image_token_id)
        with pytest.raises(ObservationError, match="the instruction .* contains"):
            spans_of(policy, f"look at {token}")

    def test_a_chat_template_that_changes_the_request_is_refused(self) -> None:
        model, processor = vlm_fixtures.llava()
        processor.chat_template = vlm_fixtures.LLAVA_TEMPLATE.replace(
            "part['text']", "(part['text'] | upper)"
        )
        policy = VlmPolicy.from_model(model, processor)
        with pytest.raises(PolicyError, match="chat template does not write the request as it is"):
            spans_of(policy, "wipe")


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _other_model(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')


def _no_processor(directory: Path) -> None:
    (directory / "processor_config.json").unlink()
    (directory / "tokenizer_config.json").unlink()


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _missing_weights(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    weights = load_file(file)
    del weights[next(k for k in sorted(weights) if "self_attn.q_proj" in k)]
    save_file(weights, file, metadata={"format": "pt"})


def _more_layers(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlm_fixtures.save("paligemma", tmp_path_factory.mktemp("saved") / "tiny")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_model, "of 'bert', not of an image-text-to-text model"),
        (_no_processor, "not a readable vision-language checkpoint"),
        (_no_weights, "weights cannot be loaded"),
        (_missing_weights, "1 weights are missing from the checkpoint"),
        (_more_layers, "weights are missing from the checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_named(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    spoil(directory)
    with pytest.raises(PolicyError, match=message) as failed:
        load_policy("vlm", str(directory)).watched()  # type: ignore[attr-defined]
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "describe it"}, r"prompt is a text with \{instruction\} in it, once"),
        ({"prompt": "{instruction}{instruction}"}, "once; got"),
        ({"max_new_tokens": "0"}, "at least 1; got '0'"),
        ({"max_new_tokens": "many"}, "whole number of generated tokens"),
        ({"steps": "3"}, "vlm has the options max_new_tokens, prompt; got 'steps'"),
    ],
)
def test_a_bad_option_is_named(saved: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_policy("vlm", str(saved), options=options)


def test_modules_are_found_by_structure_or_refused() -> None:
    from attnstore.ingest.policies.decoder import language_model, self_attention

    model, processor = vlm_fixtures.llava()
    policy = VlmPolicy.from_model(model, processor)
    names = {id(m): n for n, m in model.named_modules()}
    assert [names[id(w.module)] for w in policy.watched()] == [
        f"model.language_model.layers.{i}.self_attn" for i in range(vlm_fixtures.LAYERS)
    ]
    assert names[id(policy.encoder())] == "model.vision_tower"
    decoder = language_model(model)
    with pytest.raises(PolicyError, match="has 2 layers, its configuration 5"):
        self_attention(decoder, 5)
    decoder.layers[1].cross_attn = type("CrossAttention", (torch.nn.Identity,), {})()
    with pytest.raises(PolicyError, match="layer 1 has self_attn, cross_attn: one self-attention"):
        self_attention(decoder, 2)
    with pytest.raises(PolicyError, match="has no language model"):
        language_model(model.model.vision_tower)


def test_only_the_language_model_becomes_eager(policy: VlmPolicy) -> None:
    model = policy.model
    configs = (model.config, model.config.vision_config, model.config.text_config)
    before = [c._attn_implementation for c in configs]
    with policy.eager():
        assert [c._attn_implementation for c in configs] == [*before[:2], "eager"]
    assert [c._attn_implementation for c in configs] == before
