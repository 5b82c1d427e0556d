"""Every benchmark runs at toy size and returns its figures; nothing is said about time."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is not installed: it is found from the checkout, also by child processes."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the trained one's shape: the package that carries it is not a test dependency."""
    trained = importlib.import_module("benchmarks.trained")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=48, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=12, max_position_embeddings=512, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    text = np.random.default_rng(0).integers(0, 100, 20_000).tolist()
    monkeypatch.setattr(trained, "_model", lambda: model)
    monkeypatch.setattr(trained, "_text", lambda: text)


def figures(name: str, directory: Path) -> dict[str, Any]:
    measure = importlib.import_module("benchmarks.measure")
    module = importlib.import_module(f"benchmarks.{name}")
    found = module.run(measure.Setting(directory, toy=True))
    assert len({f.name for f in found}) == len(found)
    for figure in found:
        assert math.isfinite(figure.value), figure.name
        json.dumps(figure.to_json())
    return {f.name: f for f in found}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("writer", ["float16: written per core", "log8: written per core"]),
        ("size", ["bfloat16 model: log8 smaller than HDF5", "float32 model: HDF5 gzip-4, size"]),
        ("slices", ["float16: one head's text rows, xarray, cached"]),
        ("tables", ["head_stats", "overview maps: mean of suffix", "files"]),
        ("chunks", ["prefix float16 zstd-1 bitshuffle (1,1,1,64,K): raw float16 over it"]),
        ("sql", ["layer x head x outcome over episode_stats", "one map, 2 episodes"]),
        ("objects", ["maps: a keyframe", "full: a keyframe, CPU"]),
        (
            "service",
            [
                "map of a head, all keyframes, npy, 2 clients, p50",
                "growth in 10 more",
                "under attack: SQL: count of episodes, 2 clients, p99",
            ],
        ),
        ("viewer", ["Pi0's size: first picture, new browser profile"]),
        ("rollout", ["float16: prefix, first"]),
        ("cnn", ["@1, one at a time", "@1, batches of 8"]),
        ("probe", ["Pi0 tiny: masks, 8 a batch, faster"]),
        ("rendering", ["faster", "bytes of ours over OpenCV's"]),
    ],
)
def test_runs(name: str, expected: list[str], tmp_path: Path) -> None:
    found = figures(name, tmp_path)
    assert set(expected) <= set(found)
    # A server may need no more memory, or give some back.
    counted = [f for f in found.values() if f.unit != "dB" and "growth in" not in f.name]
    assert all(f.value > 0 for f in counted)


@pytest.mark.usefixtures("untrained")
def test_maps_are_held_against_unrounded_ones(tmp_path: Path) -> None:
    found = {name: f.value for name, f in figures("maps", tmp_path).items()}
    assert [v for name, v in found.items() if name.startswith("mean, float32:")][:4] == [0] * 4
    off, size = (
        [found[f"mean, {bits} significant bits: {what}"] for bits in (7, 11)]
        for what in ("iou off by more than 1%", "packaged")
    )
    assert off[0] > off[1] > 0
    assert size[1] - size[0] == pytest.approx(4, abs=0.5)
    assert found["mean, log8: lift off by more than 10%"] > 0
    # 6 bits are within 2 ** -6 of themselves
    assert 2 < found["max, 6 significant bits: colour off by at most"] < 255 / 64


@pytest.mark.usefixtures("untrained")
def test_many_episodes_are_a_sound_store(tmp_path: Path) -> None:
    """Episodes of one's own id, with statistics that belong together, and attention of the first."""
    import attnstore

    scale = importlib.import_module("benchmarks.scale")
    episodes = importlib.import_module("benchmarks.episodes")
    verify = importlib.import_module("attnstore.store.commits.verify").verify
    paths = episodes.make_store(tmp_path / "lab.attn", 10, keyframes=3, toy=True)
    assert list(verify(paths)) == []
    with attnstore.open(paths.root) as store:
        assert len(store.episodes) == 10
        apart = store.sql(
            "select max(abs(entropy_mean - mean)), count(distinct entropy_mean), count(*) "
            "from episode_stats join (select run, episode, layer, head, phase, camera, step, "
            "avg(entropy) as mean from head_stats group by all) h using (run, episode, layer, head, "
            "phase, camera) where episode_stats.step is not distinct from h.step"
        ).fetchall()[0]
        assert apart[0] < 1e-5
        # noise beyond 1 is cut off, and alike
        assert apart[1] > apart[2] / 10 * episodes.DISTINCT / 2
        whole = [e for e in store.episodes.values() if len(e.part.commit.files) > 10]
        assert [e.attention("prefix", keyframe=0, layer=0).ndim for e in whole] == [3]
    (wall, cpu, memory) = scale._asked("open", paths.root, ["-c", scale.OPEN], 1)
    assert wall.value > 0
    assert cpu.value > 0
    assert memory.value > 10


def test_capture_runs(tmp_path: Path) -> None:
    found = figures("capture", tmp_path)
    assert found["Pi0 tiny, float16: capture and writing over sdpa"].value > 0
    assert found["Pi0 tiny: peak memory of plain inference"].value > 0


def test_aims() -> None:
    figure = importlib.import_module("benchmarks.measure").Figure
    assert figure("a", 1.05, "times", aim="<= 1.1").met is True
    assert figure("a", 1.15, "times", aim="<= 1.1").met is False
    assert figure("a", 39.0, "times", aim=">= 40").met is False
    assert figure("a", 39.0, "times").met is None


@pytest.mark.usefixtures("untrained")
def test_padding_is_where_the_model_has_it() -> None:
    labs = importlib.import_module("benchmarks.labs")
    trained = importlib.import_module("benchmarks.trained")
    (keyframe,) = trained.keyframes(1, prefix=520, actions=3, steps=1, layers=1)
    full = labs.padded_prefix(keyframe.prefix[0], 512)
    assert full.shape == (8, 968, 968)
    assert full.dtype == np.float32
    np.testing.assert_array_equal(full[:, :512, :512], keyframe.prefix[0][:, :512, :512].float())
    np.testing.assert_array_equal(
        full[:, 768:776, 768:776], keyframe.prefix[0][:, 512:, 512:].float()
    )
    assert not full[:, :512, 512:768].any()
    np.testing.assert_allclose(full.sum(-1), 1, atol=4e-3)
    suffix = labs.padded_suffix(keyframe.suffix[0][0], 512)
    assert suffix.shape == (8, 3, 971)
    np.testing.assert_array_equal(suffix[..., -3:], keyframe.suffix[0][0][..., -3:].float())
    np.testing.assert_allclose(suffix.sum(-1), keyframe.suffix[0][0].float().sum(-1), atol=1e-6)


def test_command_line_names_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no benchmark nothing; there are writer, size" in done.stderr
