"""A tiny real Pi0, small DROID recordings, and comparisons of stores, shared by the ingest tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob
from attnstore.ingest.pipeline import Outcome, provenance
from attnstore.ingest.plan import describe_run
from attnstore.ingest.policies.base import ATTENTION_ONLY, Observation, Policy, Watch
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.store.commits import Commit, StorePaths, all_commits
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import save_run
from attnstore.store.commits.verify import verify
from attnstore.store.opening import create_store, open_store
from attnstore.store.tables.inventory import TABLES

CAMERAS = ("hand_camera", "varied_camera_1")
STEPS = 3
LAYERS = 3
CHUNK = 5


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Pi0 as transformers saves it; not to be changed."""
    pytest.importorskip("torch", reason="a model's test needs torch")
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny-pi0"
    model, processor = build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> Pi0Policy:
    """The checkpoint, loaded once; tests leave its weights as they are."""
    policy = load_policy("pi0", str(checkpoint))
    assert isinstance(policy, Pi0Policy)
    assert not policy.model.training
    return policy


@pytest.fixture
def policy(loaded: Pi0Policy) -> Iterator[Pi0Policy]:
    """The loaded policy, checked to have no hooks left afterwards."""
    yield loaded
    assert not [m for m in loaded.model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, else on disk.

    An episode syncs hundreds of files and directories, which no test here can tell from not
    syncing: killing a process loses nothing that was written.
    """
    memory = Path("/dev/shm")
    try:
        if shutil.disk_usage(memory).free < 128 << 20:
            raise OSError("too small")
        folder = Path(tempfile.mkdtemp(prefix="attnstore-", dir=memory))
    except OSError:
        yield tmp_path
        return
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def picture(seed: int, height: int = 36, width: int = 64) -> NDArray[np.uint8]:
    """A coloured image that differs from every other seed's."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def observe(
    seed: int = 0,
    instruction: str = "put the red cube onto the pink plate",
    cameras: Sequence[str] = CAMERAS,
    size: tuple[int, int] = (36, 64),
) -> Observation:
    """An observation made of random pictures and a random state."""
    rng = np.random.default_rng(seed)
    images = {c: picture(10 * seed + i, *size) for i, c in enumerate(cameras)}
    return Observation(images, instruction, rng.normal(size=8).astype(np.float32), seed)


def write_droid(
    root: Path,
    lengths: Sequence[int] = (17, 9, 20),
    instructions: Sequence[str] = ("place the green cube into the pink bowl", "wipe", "pick it up"),
) -> Path:
    """Write DROID episodes: the first ones are successes of one day, every third a failure."""
    for number, length in enumerate(lengths):
        outcome = "failure" if number % 3 == 2 else "success"
        name = f"2025-12-10_09-{number:02d}-00"
        episode = root / outcome / "2025-12-10" / name
        for i, camera in enumerate((*CAMERAS, "varied_camera_2")):
            folder = episode / "recordings" / "frames" / camera
            folder.mkdir(parents=True)
            for frame in range(length):
                image = picture(1000 * number + 100 * i + frame)
                assert cv2.imwrite(str(folder / f"{frame:05d}.jpg"), image)
        rng = np.random.default_rng(number)
        with h5py.File(episode / "trajectory.h5", "w") as file:
            state = "observation/robot_state"
            file[f"{state}/joint_positions"] = rng.normal(size=(length, 7))
            file[f"{state}/gripper_position"] = rng.random(length)
            file["action/joint_velocity"] = rng.normal(size=(length, 7))
            file["action/gripper_position"] = rng.random(length)
        (episode / "instruction.txt").write_text(instructions[number % len(instructions)] + "\n")
        (episode / "calibration.json").write_text("{}")
    return root


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 3, 2 and 3 keyframes at stride 8, each with its own instruction."""
    return write_droid(tmp_path_factory.mktemp("recordings") / "toy")


@dataclass
class Watcher:
    """An observer that remembers what it was told."""

    begun: list[str] = field(default_factory=list)
    keyframes: list[tuple[str, int]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def started(self, name: str) -> None:
        self.begun.append(name)

    def advanced(self, name: str, keyframes: int) -> None:
        self.keyframes.append((name, keyframes))

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def make_job(
    store: Path,
    policy: Policy,
    dataset: DroidDataset,
    *,
    batch_size: int = 1,
    stride: int = 8,
    precision: str = "float16",
    seed: int = 0,
    watch: Watch = ATTENTION_ONLY,
) -> EpisodeJob:
    """A job as the command line makes it."""
    run = describe_run(
        policy, policy.name, dataset, stride=stride, precision=precision, seed=seed, watch=watch
    )
    paths = create_store(store)
    save_run(paths, run, provenance(policy))
    return EpisodeJob(paths, run, batch_size, watch=watch)


def commits(store: Path) -> dict[str, Commit]:
    """The dataset's own name of every committed episode, and its commit."""
    found = list(all_commits(StorePaths(store)))
    named = {str(c.summary["name"]): c for c in found}
    assert len(named) == len(found)
    return named


def problems(store: Path) -> list[str]:
    """What `verify` says."""
    return [str(p) for p in verify(open_store(store))]


def arrays_of(part: Part) -> dict[str, NDArray[Any]]:
    """Every array of a part as it is stored, by its path."""
    root = part.path / "attention.zarr"
    found = {}
    for file in sorted(root.rglob("zarr.json")):
        path = file.parent.relative_to(root).as_posix()
        if json.loads(file.read_bytes())["node_type"] == "array":
            block = part.block(path)
            found[path] = block.read((slice(None),) * len(block.shape))
    return found


def assert_same_store(one: Path, other: Path) -> None:
    """Hold two stores to the same episodes, arrays and tables, bit for bit."""
    ours, theirs = commits(one), commits(other)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        a, b = Part(StorePaths(one), ours[name]), Part(StorePaths(other), theirs[name])
        assert a.spec == b.spec
        left, right = arrays_of(a), arrays_of(b)
        assert sorted(left) == sorted(right)
        assert len(left) > 12
        for path, values in left.items():
            np.testing.assert_array_equal(values, right[path], err_msg=f"{name} {path}")
        for table in TABLES:
            assert a.table(table).equals(b.table(table)), f"{name} {table}"
        # timing, host and ids differ; everything else of the summary may not
        summaries = [{**c.summary, "seconds": 0} for c in (ours[name], theirs[name])]
        assert summaries[0] == summaries[1]


def attnstore_command(*arguments: object) -> list[str]:
    """The command line as a user's shell starts it."""
    return [sys.executable, "-m", "attnstore", *map(str, arguments)]


def run_attnstore(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False} | options
    done: subprocess.CompletedProcess[str] = subprocess.run(
        attnstore_command(*arguments), **options
    )
    return done


ZYGOTE = """
import json, os, sys
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
import cv2, duckdb, h5py, numpy, pyarrow.parquet, rich.progress, tensorstore, torch, torchvision, xarray, zarr
from transformers import AutoProcessor, PI0Config, PI0ForConditionalGeneration, PI0ImageProcessor, PI0Processor
from transformers.models.paligemma import modeling_paligemma
from transformers.models.siglip import modeling_siglip
import attnstore.ingest.policies.pi0.policy, attnstore.ingest.recorder, attnstore.ingest.workers
from attnstore.cli import main

def child(arguments, output):
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        main(arguments)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            child(request["arguments"], request["output"])
    print(answer, flush=True)
"""


class Zygote:
    """Starts the command line in forks of a process that has imported everything.

    Importing torch and transformers takes seconds, far longer than the ingests that are killed
    here. It runs single-threaded, so that it may fork.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *arguments: object, output: Path) -> int:
        """Start ``attnstore ARGUMENTS``; stdout and stderr are appended to a file."""
        return self._ask(arguments=[str(a) for a in arguments], output=str(output))

    def wait(self, pid: int) -> int:
        """Exit code, negative for a signal."""
        return self._ask(wait=pid)

    def run(self, *arguments: object, output: Path) -> int:
        """Run to the end."""
        return self.wait(self.start(*arguments, output=output))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests of a process."""
    pytest.importorskip("torch", reason="a model's test needs torch")
    zygote = Zygote()
    yield zygote
    zygote.close()
