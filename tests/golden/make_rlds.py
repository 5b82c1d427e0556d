# mypy: ignore-errors
"""Make ``rlds.zip``: a small dataset written by TensorFlow Datasets itself.

    python -m venv tfds && tfds/bin/pip install tensorflow-cpu tensorflow-datasets importlib_resources
    cp make_rlds.py tiny/ (a folder with an empty __init__.py: TensorFlow Datasets asks for a package)
    tfds/bin/python -c "from tiny.make_rlds import make; make()"

`tests/ingest/test_rlds.py` makes the same numbers again with NumPy and compares.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

STEPS = 3


class TinyRobot(tfds.core.GeneratorBasedBuilder):
    """Four episodes of every kind of value that published datasets have."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        image = {"dtype": np.uint8, "encoding_format": "png"}
        step = {
            "observation": features.FeaturesDict(
                {
                    "image_0": features.Image(shape=(16, 24, 3), **image),
                    "wrist_image": features.Image(
                        shape=(16, 16, 3), dtype=np.uint8, encoding_format="jpeg"
                    ),
                    "depth": features.Image(
                        shape=(16, 24, 1), dtype=np.uint16, encoding_format="png"
                    ),
                    "state": features.Tensor(shape=(7,), dtype=np.float64),
                    "packed": features.Tensor(shape=(3,), dtype=np.float32, encoding="zlib"),
                    "words": features.Sequence(features.Scalar(np.int64)),
                }
            ),
            "action": features.Tensor(shape=(7,), dtype=np.float32),
            "reward": features.Scalar(np.float32),
            "is_first": features.Scalar(np.bool_),
            "language_instruction": features.Text(),
            "language_instruction_2": features.Text(),
        }
        episode = {"file_path": features.Text(), "episode_id": features.Scalar(np.int32)}
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "steps": features.Dataset(step),
                    "episode_metadata": features.FeaturesDict(episode),
                }
            )
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(3)), "val": self._generate_examples([3, 4])}

    def _generate_examples(self, episodes):
        for e in episodes:
            rng = np.random.default_rng(e)
            yield (
                e,
                {
                    "steps": [step(e, t, rng) for t in range(STEPS)],
                    "episode_metadata": {
                        "file_path": f"gs://lab/{('failure', 'success')[e % 2]}/day/{e}.h5",
                        "episode_id": e,
                    },
                },
            )


def step(e, t, rng):
    """Numbers of one step: `test_rlds.py` draws them in the same order."""
    return {
        "observation": {
            "image_0": rng.integers(0, 255, (16, 24, 3), dtype=np.uint8),
            "wrist_image": np.full((16, 16, 3), rng.integers(0, 255, 3), np.uint8),
            "depth": np.zeros((16, 24, 1), np.uint16),
            "state": rng.normal(size=7),
            "packed": rng.normal(size=3).astype(np.float32),
            "words": [1, 2][: t % 3],
        },
        "action": rng.normal(size=7).astype(np.float32),
        "reward": float(t == STEPS - 1 and e % 2),
        "is_first": t == 0,
        "language_instruction": "" if e == 2 else f"lift cube {e}",
        "language_instruction_2": "try it",
    }


def make():
    """Write the archive beside this file."""
    with tempfile.TemporaryDirectory() as root:
        builder = TinyRobot(data_dir=root)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
        folder = Path(root, "tiny_robot", "1.0.0")
        with zipfile.ZipFile(
            Path(__file__).with_name("rlds.zip"), "w", zipfile.ZIP_DEFLATED
        ) as out:
            for path in sorted(folder.iterdir()):
                out.write(path, path.name)
