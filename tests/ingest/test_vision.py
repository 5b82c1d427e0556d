"""Attention inside the image encoders: whose image it is, what is stored, that nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from click.testing import CliRunner
from ingest_fixtures import CAMERAS, CHUNK, LAYERS, STEPS, make_job, observe, problems, write_droid
from numpy.typing import NDArray

import attnstore
from attnstore.cli import cli
from attnstore.ingest.capture import Record, capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.encoders import all_layouts, owners
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.keyframes import observation
from attnstore.ingest.plan import describe_run, make_plan
from attnstore.ingest.policies.base import (
    Batch,
    EncoderShape,
    Observation,
    PhaseShape,
    Sample,
    Watch,
)
from attnstore.ingest.policies.hooks import HookedPolicy, Watched, eager_attention
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.ingest.policies.vision import encoder_attention, vision_shape
from attnstore.query import Episode
from attnstore.query.attention.structure import token_matrices
from attnstore.render.files.episode_images import render_images
from attnstore.store.errors import HealthError, SelectionError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.statistics import image_mass
from attnstore.store.format.tokens import Axis, Span, TokenLayout
from attnstore.store.opening import create_store

Weights = NDArray[np.float32]
VISION = Watch(vision=True)
ENCODER_LAYERS, ENCODER_HEADS, PATCHES = 2, 4, 16
HALF_STEP = 2.0**-12
"""Float16 rounds a weight below 1 by less."""


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One episode of three keyframes."""
    return write_droid(tmp_path_factory.mktemp("vision") / "toy", lengths=(17,))


@pytest.fixture(scope="module")
def dataset(episodes: Path) -> DroidDataset:
    return DroidDataset(episodes)


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, dataset: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store of a run with ``--vision``, of a batch of two keyframes and one of one."""
    root = tmp_path_factory.mktemp("store") / "toy.attn"
    job = make_job(root, loaded, dataset, batch_size=2, watch=VISION)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[0])
    return root


@pytest.fixture
def episode(ingested: Path, dataset: DroidDataset) -> Episode:
    return attnstore.open(ingested).episode(dataset.episode_names()[0])


@pytest.fixture(scope="module")
def wanted(loaded: Pi0Policy, dataset: DroidDataset) -> dict[tuple[int, str], Weights]:
    """(layer, head, query, key) of each keyframe's camera: SigLIP alone, one image at a time."""
    model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
    tower = model.model.vlm.vision_tower
    tower.set_attn_implementation("eager")
    name = dataset.episode_names()[0]
    info, found = dataset.info(name), {}
    for keyframe, frame in enumerate(dataset.frames(name, [0, 8, 16])):
        sight = observation(frame, info, 0)
        for camera, image in sight.images.items():
            alone = replace(sight, images={camera: image})
            pixels = loaded.prepare([alone]).inputs["pixel_values"][0, :1]
            with torch.no_grad():
                attentions = tower(pixels, output_attentions=True).attentions
            found[keyframe, camera] = torch.cat(attentions).numpy()
    return found


class TestStored:
    def test_each_camera_has_the_attention_of_its_own_image(
        self, episode: Episode, wanted: dict[tuple[int, str], Weights]
    ) -> None:
        shape = (ENCODER_LAYERS, ENCODER_HEADS, PATCHES, PATCHES)
        assert len(wanted) == 3 * len(CAMERAS)
        for (keyframe, camera), weights in wanted.items():
            assert weights.shape == shape
            found = episode.attention("vision", camera=camera, keyframe=keyframe).values
            assert np.abs(found.astype(np.float32) - weights).max() <= HALF_STEP
            # so far are they from those of every other image
            others = [w for at, w in wanted.items() if at != (keyframe, camera)]
            assert min(np.abs(weights - w).max() for w in others) > 0.01

    def test_it_reads_by_name(self, episode: Episode) -> None:
        assert episode.phases == ("prefix", "suffix", "vision")
        assert (episode.layers("vision"), episode.heads("vision")) == (2, 4)
        assert episode.steps("vision") is None
        array = episode.attention(phase="vision", camera="hand_camera", layer=1, head=2)
        assert array.dims == ("keyframe", "query", "key")
        assert array.attrs["camera"] == "hand_camera"
        assert array["key_label"].values[5] == "hand_camera[1,1]"
        same = episode.attention("vision/hand_camera", layer=1, head=2, key="image")
        np.testing.assert_array_equal(array.values, same.values)
        lazy = episode.attention("vision", camera="varied_camera_1", lazy=True)
        np.testing.assert_array_equal(
            lazy.isel(layer=0, keyframe=2).values,
            episode.attention("vision", camera="varied_camera_1", layer=0, keyframe=2).values,
        )
        assert "vision/hand_camera/attention" in str(
            episode.explain("vision/hand_camera", keyframe=0)
        )

    @pytest.mark.parametrize(
        ("phase", "camera", "message"),
        [
            ("vision", None, "of one camera: name one of hand_camera, varied_camera_1"),
            ("vision", "wrist", "no camera 'wrist' in phase vision; there are: hand_camera"),
            ("prefix", "hand_camera", "not of one camera: .* key='image:hand_camera'"),
            ("joint", None, "no phase 'joint'; there are: prefix, suffix, vision"),
        ],
    )
    def test_a_camera_goes_with_vision_only(
        self, episode: Episode, phase: str, camera: str | None, message: str
    ) -> None:
        with pytest.raises(SelectionError, match=message):
            episode.attention(phase, camera=camera)

    def test_statistics_and_maps_are_of_the_patches(
        self, episode: Episode, wanted: dict[tuple[int, str], Weights]
    ) -> None:
        for (keyframe, camera), weights in wanted.items():
            received = weights.mean(2)
            maps = received.reshape(2, 4, 4, 4)
            cover = episode.geometry(camera).coverage()
            inside, outside = image_mass(maps, cover)
            shown = (maps * cover).reshape(2, 4, 16)
            spread = (maps - (inside / cover.sum())[..., None, None]) ** 2 * cover
            for metric, expected in (
                ("variance", spread.sum((-2, -1)) / cover.sum()),
                ("grid_variance", received.var(-1)),
                ("camera_mass", inside),
                ("letterbox_mass", outside),
                ("confidence", weights.max(3).mean(2)),
                ("argmax_row", shown.argmax(-1) // 4),
            ):
                found = episode.stats("vision", camera, metric).values[keyframe]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
            drawn = episode.maps("vision", camera, keyframe=keyframe, reduce="mean").values
            np.testing.assert_allclose(drawn, maps, rtol=2**-11)
            drawn = episode.maps("vision", camera, keyframe=keyframe, reduce="max").values
            np.testing.assert_allclose(drawn, weights.max(2).reshape(maps.shape), rtol=2**-6)
        rows = episode.part.table("head_stats").to_pylist()
        rows = [r for r in rows if r["phase"] == "vision"]
        assert {(r["camera"], r["query_group"], r["step"]) for r in rows} == {
            (camera, "image", None) for camera in CAMERAS
        }
        assert len(rows) == 3 * 2 * ENCODER_LAYERS * ENCODER_HEADS

    def test_the_tables_name_the_camera(self, episode: Episode) -> None:
        rows = [r for r in episode.part.table("spans").to_pylist() if r["phase"] == "vision"]
        assert sorted((r["keyframe"], r["axis"], r["camera"], r["span"]) for r in rows) == sorted(
            (k, axis, c, f"image:{c}")
            for k in range(3)
            for axis in ("query", "key")
            for c in CAMERAS
        )
        assert {(r["start"], r["stop"], r["rows"], r["cols"]) for r in rows} == {(0, 16, 4, 4)}

    def test_the_token_matrix_is_the_cameras_own(self, episode: Episode) -> None:
        found = {m.phase: m for m in token_matrices(episode)}
        assert [s.name for s in found["vision/hand_camera"].keys] == ["image:hand_camera"]
        assert list(found) == list(episode.spec.phases)
        assert "vision, varied_camera_1" in episode._repr_html_()

    def test_any_reader_opens_it(self, episode: Episode) -> None:
        tree = xr.open_datatree(episode.part.path / "attention.zarr", engine="zarr")
        array = tree["vision/hand_camera/attention"]
        assert array.dims == ("keyframe", "layer", "head", "query", "key")
        np.testing.assert_allclose(array.sum("key"), 1, atol=2e-3)
        assert set(tree["maps/vision/image"].children) == set(CAMERAS)

    def test_pictures(self, episode: Episode, tmp_path: Path) -> None:
        written = render_images(episode, tmp_path, phases=["vision"], layers=[1], heads=False)
        assert [p.name for p in written[:-1]] == ["vision_L1_attn_vis_max.jpg"] * 3
        picture = cv2.imread(str(written[0]))
        assert picture is not None
        assert picture.std() > 20

    def test_the_commands_cope(self, ingested: Path) -> None:
        assert problems(ingested) == []
        before = sorted(p for p in ingested.rglob("*") if p.is_file() and "catalog" not in str(p))
        for command in (["ls"], ["ls", "--runs"], ["verify"], ["gc"]):
            done = CliRunner().invoke(cli, [*command, str(ingested)])
            assert done.exit_code == 0, done.output
        after = sorted(p for p in ingested.rglob("*") if p.is_file() and "catalog" not in str(p))
        assert after == before


class TestRun:
    def test_it_is_off_by_default_and_another_run(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        plain = make_job(ram_path / "s", policy, dataset)
        job = make_job(ram_path / "s", policy, dataset, watch=VISION)
        assert not plain.watch.vision
        assert job.run.id != plain.run.id
        assert job.run.options["vision"] == [ENCODER_LAYERS, ENCODER_HEADS]
        assert "vision" not in plain.run.options

    def test_the_forecast_includes_it(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        without, plan = (
            make_plan(replace(job, watch=w), policy, dataset) for w in (Watch(), VISION)
        )
        attention = ENCODER_LAYERS * ENCODER_HEADS * PATCHES * PATCHES * 2
        maps = 2 * 4 * ENCODER_LAYERS * ENCODER_HEADS * PATCHES
        assert plan.keyframe_bytes - without.keyframe_bytes == len(CAMERAS) * (attention + maps)
        assert plan.tokens["vision/hand_camera"] == (PATCHES, PATCHES)
        assert "vision/hand_camera" not in without.tokens

    def test_the_command_line_asks_for_it(self, checkpoint: Path, episodes: Path) -> None:
        command = [
            "ingest", "droid", str(checkpoint.parent / "none.attn"), str(episodes), "--policy", "pi0", "--checkpoint",
            str(checkpoint), "--dry-run",
        ]  # fmt: skip
        for options, said in (([], False), (["--vision", "--token-stats"], True)):
            done = CliRunner().invoke(cli, [*command, *options])
            assert done.exit_code == 0, done.output
            assert ("vision/hand_camera 16 x 16 tokens" in done.output) is said


class TestCapture:
    def test_a_gap_in_the_batch_is_nobodys(self, policy: Pi0Policy) -> None:
        batch = policy.prepare([observe(1), observe(2, cameras=("varied_camera_1",))])
        assert batch.encoded == (
            (0, "hand_camera"),
            (0, "varied_camera_1"),
            (1, "varied_camera_1"),
            None,
        )
        alone = policy.prepare([observe(2, cameras=("varied_camera_1",))])
        found = []
        for each in (batch, alone):
            with capture(policy, watch=VISION) as session:
                policy.act(each)
            records = [r for r in session.records if r.phase == "vision"]
            assert [r.layer for r in records] == [0, 1]
            found.append([(r, owners(r, len(r.weights), each)) for r in records])
        for (record, mine), (single, only) in zip(*found, strict=True):
            assert only == [(0, 0, "vision/varied_camera_1")]
            row = [r for r, i, path in mine if (i, path) == (1, "vision/varied_camera_1")]
            torch.testing.assert_close(record.weights[row], single.weights[:1])
            assert len(mine) == 3

    def test_actions_are_bitwise_those_of_the_eager_model(self, policy: Pi0Policy) -> None:
        model = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]
        model.set_attn_implementation("eager")
        batch = policy.prepare([observe(1), observe(2)])
        eager = model.sample_actions(**batch.inputs, num_steps=STEPS)
        with capture(policy, lambda record: None, watch=VISION):
            assert torch.equal(policy.act(batch), eager)

    def test_the_encoder_is_eager_only_inside(self, policy: Pi0Policy) -> None:
        tower = policy.encoder()
        hooks = [len(m._forward_hooks) for m in policy.model.modules()]
        assert tower.config._attn_implementation == "sdpa"
        with capture(policy):
            assert tower.config._attn_implementation == "sdpa"
        with capture(policy, watch=VISION):
            assert tower.config._attn_implementation == "eager"
            assert policy.model.config._attn_implementation == "sdpa"
        with pytest.raises(ZeroDivisionError), capture(policy, watch=VISION):
            1 / 0  # noqa: B018
        assert tower.config._attn_implementation == "sdpa"
        assert [len(m._forward_hooks) for m in policy.model.modules()] == hooks

    def test_without_it_the_encoder_is_not_watched(self, policy: Pi0Policy) -> None:
        with capture(policy) as session:
            policy.act(policy.prepare([observe(1)]))
        assert set(session.counts) == {"prefix", "suffix"}

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            ((), r"lists the images \[\] in the vision tower"),
            (((0, "hand_camera"), (0, "hand_camera")), "its samples have .*varied_camera_1"),
            (
                ((0, "hand_camera"), (0, "varied_camera_1"), None),
                "phase vision: 4 layers arrived, 6 were expected .2 layers x 3 images",
            ),
        ],
    )
    def test_a_list_that_is_not_the_batchs_is_refused(
        self,
        policy: Pi0Policy,
        dataset: DroidDataset,
        ram_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        listed: tuple[tuple[int, str] | None, ...],
        message: str,
    ) -> None:
        prepare = policy.prepare

        def wrong(observations: Sequence[Observation]) -> Batch:
            return replace(prepare(observations), encoded=listed)

        monkeypatch.setattr(policy, "prepare", wrong)
        job = make_job(ram_path / "s", policy, dataset, watch=VISION)
        with pytest.raises(HealthError, match=message):
            ingest_episode(job, policy, dataset, dataset.episode_names()[0])

    def test_more_images_than_listed_are_refused(self, policy: Pi0Policy) -> None:
        batch = policy.prepare([observe(1)])
        record = Record("vision", 0, None, torch.zeros(2, 4, 16, 16), first=1)
        with pytest.raises(HealthError, match="3 images went through .* the batch lists 2"):
            owners(record, 2, batch)


class ClassTokenPolicy(HookedPolicy):
    """CLIP's tower, called once per camera with the whole batch as openpi does, and a Llama."""

    name, checkpoint, dtype, digest = "toy", "in memory", "float32", "0" * 64
    horizon, action_dof, denoiser_steps = 2, 3, False

    def __init__(self) -> None:
        small: dict[str, Any] = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "attn_implementation": "sdpa",
        }  # fmt: skip
        torch.manual_seed(3)
        vision = transformers.CLIPVisionConfig(image_size=56, patch_size=14, **small)
        text = transformers.LlamaConfig(vocab_size=8, **small)
        self.model: Any = torch.nn.Module()
        self.model.tower = transformers.CLIPVisionModel(vision)
        self.model.decoder = transformers.LlamaModel(text)
        self.model.eval()
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.phases = {"prefix": PhaseShape(2, 2, None, ("image",))}
        self.observations: list[Observation] = []

    def pixels(self, image: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(cv2.resize(image, (56, 56)) / np.float32(255)).permute(2, 0, 1)

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        cameras = list(observations[0].images)
        images = {c: torch.stack([self.pixels(o.images[c]) for o in observations]) for c in cameras}
        spans = tuple(
            Span(f"image:{c}", "image", 16 * i, 16 * i + 16, 16 * i, camera=c, grid=(4, 4))
            for i, c in enumerate(cameras)
        )
        layout = TokenLayout("prefix", Axis(spans), Axis(spans))
        geometry = {
            c: Geometry(i.shape[:2], (56, 56), (56, 56), (0, 0), (4, 4), (14.0, 14.0))
            for c, i in observations[0].images.items()
        }
        samples = tuple(Sample({"prefix": layout}, geometry) for _ in observations)
        order = tuple((i, c) for c in cameras for i in range(len(observations)))
        return Batch({"images": images}, samples, order)

    def act(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            parts = [
                self.model.tower(pixel_values=i).last_hidden_state[:, 1:]
                for i in batch.inputs["images"].values()
            ]
            states = self.model.decoder(inputs_embeds=torch.cat(parts, 1)).last_hidden_state
        actions: torch.Tensor = states[:, :2, :3]
        return actions

    def watched(self) -> Sequence[Watched]:
        return [Watched("prefix", i, x.self_attn) for i, x in enumerate(self.model.decoder.layers)]

    def eager(self) -> AbstractContextManager[None]:
        return eager_attention([w.module for w in self.watched()])

    def encoder(self) -> Any:
        return self.model.tower

    def encoder_shape(self) -> EncoderShape:
        return vision_shape(self.model.tower.config)


@pytest.fixture(scope="module")
def toy() -> ClassTokenPolicy:
    return ClassTokenPolicy()


@pytest.fixture(scope="module")
def opened(
    toy: ClassTokenPolicy, dataset: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> Episode:
    """What the toy policy attends to, stored."""
    root = tmp_path_factory.mktemp("toy") / "toy.attn"
    job = make_job(root, toy, dataset, batch_size=2, watch=VISION)
    ingest_episode(job, toy, dataset, dataset.episode_names()[0])
    assert problems(root) == []
    return attnstore.open(root).episode(dataset.episode_names()[0])


class TestClassToken:
    def test_one_call_per_camera_is_told_apart(
        self, toy: ClassTokenPolicy, opened: Episode, dataset: DroidDataset
    ) -> None:
        tower = ClassTokenPolicy().model.tower
        tower.set_attn_implementation("eager")
        name = dataset.episode_names()[0]
        for keyframe, frame in enumerate(dataset.frames(name, [0, 8, 16])):
            for shown in frame.cameras:
                with torch.no_grad():
                    out = tower(toy.pixels(shown.rgb)[None], output_attentions=True)
                wanted = torch.cat(out.attentions).numpy()
                found = opened.attention("vision", camera=shown.camera, keyframe=keyframe).values
                assert found.shape == (2, 2, 17, 17)
                assert np.abs(found.astype(np.float32) - wanted).max() <= HALF_STEP
        assert opened.attention("vision", camera="hand_camera").values.std(0).max() > 0.01

    def test_the_class_token_is_a_span_and_a_query_group(self, opened: Episode) -> None:
        spec = opened.phase("vision", "hand_camera")
        assert [(s.name, s.kind, s.start, s.stop) for s in spec.key] == [
            ("class", "other", 0, 1), ("image:hand_camera", "image", 1, 17),
        ]  # fmt: skip
        assert spec.query_groups == ("image", "class")
        weights = opened.attention("vision", camera="hand_camera").values.astype(np.float32)
        maps = opened.maps("vision", "hand_camera", query="class").values
        np.testing.assert_allclose(
            maps.reshape(3, 2, 2, 16), weights[..., 0, 1:], rtol=0.03, atol=1e-4
        )
        mass = dict(opened.part.table("head_stats").to_pylist()[-1]["mass"])
        assert set(mass) >= {"class"}
        rows = [r for r in opened.part.table("spans").to_pylist() if r["span"] == "class"]
        assert {r["camera"] for r in rows} == set(CAMERAS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "model", "leading"),
        [
            (transformers.SiglipVisionConfig, transformers.SiglipVisionModel, 0),
            (transformers.CLIPVisionConfig, transformers.CLIPVisionModel, 1),
            (transformers.ViTConfig, transformers.ViTModel, 1),
            (transformers.Dinov2Config, transformers.Dinov2Model, 1),
            (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel, 5),
        ],
    )
    def test_encoders_whose_layers_are_found(self, config: Any, model: Any, leading: int) -> None:
        """A pooling head, which SigLIP has here, is none of the layers."""
        tower = model(
            config(hidden_size=24, intermediate_size=24, num_hidden_layers=3, image_size=42,
                   num_attention_heads=2, patch_size=14)
        ).eval()  # fmt: skip
        shape = vision_shape(tower.config)
        assert (shape.layers, shape.heads, shape.grid) == (3, 2, (3, 3))
        assert sum(count for _, count in shape.leading) == leading
        modules = encoder_attention(tower, shape.layers)
        seen = []
        for module in modules:
            module.register_forward_hook(lambda m, a, output: seen.append(output[1]))
        with torch.no_grad(), eager_attention(modules):
            tower(torch.rand(2, 3, 42, 42))
        assert [tuple(w.shape) for w in seen] == [(2, 2, leading + 9, leading + 9)] * 3
        for weights in seen:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def test_windows_are_refused(self) -> None:
        config = transformers.Qwen2_5_VLConfig().vision_config
        with pytest.raises(
            UsageError, match="--vision: .*'qwen2_5_vl.*' cannot be stored; supported"
        ):
            vision_shape(config)

    def test_merged_patches_are_refused(
        self, policy: Pi0Policy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(policy, "encoder_shape", lambda: EncoderShape(2, 4, (8, 8)))
        sample = policy.prepare([observe(1)]).samples[0]
        with pytest.raises(
            UsageError, match="has 8 x 8 patches, hand_camera has 4 x 4 image tokens"
        ):
            all_layouts(policy, sample, VISION)

    def test_a_policy_that_shows_no_encoder(self, tmp_path: Path) -> None:
        class Blind(ClassTokenPolicy):
            encoder_shape = HookedPolicy.encoder_shape

        with pytest.raises(UsageError, match="--vision: policy toy does not show"):
            describe_run(
                Blind(), "toy", DroidDataset(write_droid(tmp_path, lengths=(1,))),
                stride=8, precision="float16", seed=0, watch=VISION,
            )  # fmt: skip

    def test_a_tower_without_attention(self) -> None:
        with pytest.raises(
            UsageError, match="Sequential has no list of 2 layers with self-attention"
        ):
            encoder_attention(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), 2)


def test_weights_that_are_only_given_on_request() -> None:
    """Transformers before 5 throws an encoder's weights away unless its caller wants them."""

    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor, output_attentions: bool = False) -> Any:
            weights = torch.softmax(x @ x.transpose(-1, -2), -1)[:, None]
            return x, weights if output_attentions else None

    class Old(ClassTokenPolicy):
        attention = Attention()

        def watched_encoder(self) -> Sequence[Watched]:
            return [Watched("vision", 0, self.attention)]

        def eager(self) -> AbstractContextManager[None]:
            return nullcontext()

        def watched(self) -> Sequence[Watched]:
            return []

    policy = Old()
    with capture(policy, watch=VISION) as session:
        policy.attention(torch.rand(2, 5, 4))
        policy.attention(torch.rand(1, 5, 4), False)
    assert [(tuple(r.weights.shape), r.first) for r in session.records] == [
        ((2, 1, 5, 5), 0), ((1, 1, 5, 5), 2),
    ]  # fmt: skip
    assert policy.attention(torch.rand(1, 5, 4))[1] is None


def test_a_store_that_is_new_has_no_vision(ram_path: Path) -> None:
    create_store(ram_path / "s")
    rows = attnstore.open(ram_path / "s").sql("from head_stats where phase = 'vision'").fetchall()
    assert rows == []
