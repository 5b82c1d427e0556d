# ruff: noqa: PT017 - what is raised, or is not, is judged by the file that was damaged
"""Thousands of damaged datasets: what is broken is named, and what is read is what the files say.

Each test damages one file of a small dataset in a seeded way, reads every episode, and mends it.
A reader may refuse an episode with an `EpisodeError`, or the dataset with one line if the file is
the dataset's. Where it accepts, every value is compared with a plain reading of the same files by
h5py, pyarrow, json or NumPy. ``python tests/ingest/test_mutated_datasets.py 20000`` runs a longer campaign.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import lerobot_fixture_datasets as made
import numpy as np
import pyarrow.parquet as pq
import pytest
from checkout import CHECKOUT
from hdf5_recordings import write_aloha, write_libero, write_robomimic
from lerobot_fixture_datasets import WRIST, Content
from mutations import mutated
from numpy.typing import NDArray
from PIL import Image

from attnstore.ingest.datasets.aloha import AlohaDataset
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.datasets.outcome import read_outcomes
from attnstore.ingest.datasets.rlds.dataset import RldsDataset
from attnstore.ingest.datasets.robomimic import RobomimicDataset
from attnstore.query.objects.masks import open_detector_masks
from attnstore.store.errors import AttnstoreError, EpisodeError, UsageError
from attnstore.store.format.rle import encode_rle

CAMERAS = ("hand_camera", "varied_camera_1")
LENGTH = 3
SIZE = (32, 48)
Values = dict[str, Any]
"""What was read of an episode: `info`, and per frame state, action, time and the cameras' pixels."""


def one_line(error: BaseException, named: Path = Path("/nowhere")) -> None:
    """Hold a message to its form: one line, not endless, no place but what the user named."""
    text = str(error).replace(str(named), "")
    assert "\n" not in text
    assert len(text) < 1500, text
    assert "/toy" not in text, text


def read_all(dataset: Any, name: str) -> Values:
    info = dataset.info(name)
    frames = list(dataset.frames(name, range(info.frames)))
    assert [f.index for f in frames] == list(range(info.frames))
    return {
        "instruction": info.instruction,
        "states": np.array([f.state for f in frames]),
        "actions": np.array([f.action for f in frames]),
        "times": [f.timestamp for f in frames],
        "pixels": {
            c.camera: [g.cameras[i].rgb for g in frames] for i, c in enumerate(frames[0].cameras)
        },
    }


def same(one: Values, other: Values, without: tuple[str, ...] = ()) -> None:
    assert one["instruction"] == other["instruction"]
    np.testing.assert_array_equal(one["states"], other["states"])
    np.testing.assert_array_equal(one["actions"], other["actions"])
    assert one["times"] == pytest.approx(other["times"]) if other["times"][0] is not None else True
    for camera, pictures in other["pixels"].items():
        if camera not in without:
            np.testing.assert_array_equal(one["pixels"][camera], pictures)


def picture(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


# --- DROID ---


def write_droid(root: Path, films: bool = False) -> Path:
    for number in range(2):
        episode = root / "success/2025-12-10" / f"2025-12-10_09-0{number}-00"
        for i, camera in enumerate(CAMERAS):
            shots = [picture(100 * number + 10 * i + frame) for frame in range(LENGTH)]
            if films:
                film(episode / f"recordings/{camera}.mp4", shots)
                continue
            for frame, shot in enumerate(shots):
                path = episode / f"recordings/frames/{camera}/{frame:05d}.{('png', 'jpg')[i]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(shot).save(path)
        rng = np.random.default_rng(number)
        with h5py.File(episode / "trajectory.h5", "w") as file:
            file["observation/robot_state/joint_positions"] = rng.normal(size=(LENGTH, 7))
            file["observation/robot_state/gripper_position"] = rng.random(LENGTH)
            file["action/joint_velocity"] = rng.normal(size=(LENGTH, 7))
            file["action/gripper_position"] = rng.random(LENGTH)
            file["observation/timestamp/control/step_start"] = 10**12 + 50 * np.arange(LENGTH)
            file.attrs["success"] = True
        (episode / "instruction.txt").write_text(f"pick cube {number}\n")
        (episode / "calibration.json").write_text('{"26368109": {}}')
    return root


def film(path: Path, shots: list[NDArray[np.uint8]]) -> None:
    size, made.SIZE = made.SIZE, SIZE
    try:
        made.write_video(path, shots, gop=2)
    finally:
        made.SIZE = size


def plain_trajectory(episode: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """States and actions, by h5py."""
    with h5py.File(episode / "trajectory.h5") as file:
        state = [
            file[f"observation/robot_state/{k}_position{s}"][()]
            for k, s in (("joint", "s"), ("gripper", ""))
        ]
        action = [
            file[f"action/{k}"][()]
            for k in ("joint_velocity", "gripper_position")
            if f"action/{k}" in file
        ]
    joined = [
        [np.asarray(a, np.float64).reshape(len(a), -1) for a in part] for part in (state, action)
    ]
    states = np.concatenate(joined[0], 1).astype(np.float32)
    if len(action) < 2:
        return states, np.empty((len(states), 0))
    return states, np.concatenate(joined[1], 1).astype(np.float32)


def plain_droid(episode: Path) -> Values:
    """What the files of an episode say, read without attnstore."""
    states, actions = plain_trajectory(episode)
    shots: dict[str, list[Any]] = {}
    for camera in CAMERAS:
        for path in sorted((episode / "recordings/frames" / camera).glob("*")):
            shots.setdefault(camera, []).append(np.asarray(Image.open(path).convert("RGB")))
    return {
        "instruction": " ".join((episode / "instruction.txt").read_text("utf-8-sig").split()),
        "states": states,
        "actions": actions,
        "times": [None],
        "pixels": shots,
    }


def damage_droid(root: Path, pristine: Mapping[str, Values], rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        dataset = DroidDataset(root)
        for name in pristine:
            hit = file.startswith(name)
            try:
                values = read_all(dataset, name)
            except EpisodeError as error:
                assert hit, f"{name} is refused for {file}: {error}"
                assert error.episode == name
                one_line(error)
                continue
            if not hit or file.endswith("calibration.json"):
                same(values, pristine[name])
            elif not file.endswith(
                ".mp4"
            ):  # the codec has no checksum, and no other decoder is here
                with np.errstate(all="ignore"):
                    plain = plain_droid(root / name)
                if plain["pixels"]:
                    same(values, plain)
                else:
                    same(values, {**plain, "pixels": pristine[name]["pixels"]})
            else:
                same(values, pristine[name], without=(Path(file).stem,))
        return f"{file}: {how}"


# --- DROID as published ---

PUBLISHED = {
    "hand_camera": "13062452",
    "varied_camera_1": "22008760",
    "varied_camera_2": "24400334",
}
KEYS = ("wrist_cam_serial", "ext1_cam_serial", "ext2_cam_serial")


def write_published(root: Path) -> Path:
    sentences = {}
    for number in range(2):
        episode = root / f"success/2023-07-07/Fri_Jul__7_09:4{number}:23_2023"
        for i, serial in enumerate(PUBLISHED.values()):
            shots = [picture(100 * number + 10 * i + frame) for frame in range(LENGTH)]
            film(episode / f"recordings/MP4/{serial}.mp4", shots)
        rng = np.random.default_rng(number)
        with h5py.File(episode / "trajectory.h5", "w") as file:
            file["observation/robot_state/joint_positions"] = rng.normal(size=(LENGTH, 7))
            file["observation/robot_state/gripper_position"] = rng.random(LENGTH)
        uuid = f"RAD+{number}"
        said = {"uuid": uuid, "success": True, **dict(zip(KEYS, PUBLISHED.values(), strict=True))}
        (episode / f"metadata_{uuid}.json").write_text(json.dumps(said))
        sentences[uuid] = {"language_instruction1": "", "language_instruction2": f"pick {number}"}
    (root / "aggregated-annotations-1.json").write_text(json.dumps(sentences))
    return root


def damage_published(root: Path, pristine: Mapping[str, Values], rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        whole = file.startswith("aggregated")
        dataset = DroidDataset(root)
        assert list(dataset.episode_names()) == list(pristine)
        for name, plain in pristine.items():
            hit = file.startswith(name)
            try:
                values = read_all(dataset, name)
            except EpisodeError as error:
                assert hit or whole, f"{name} is refused for {file}: {error}"
                one_line(error)
                continue
            except UsageError as error:
                assert whole, f"{file}: {error}"
                one_line(error, root)
                continue
            if whole:
                said = json.loads((root / file).read_bytes())[f"RAD+{name[-9]}"]
                texts = [said.get(f"language_instruction{i}") for i in (1, 2, 3)]
                assert values["instruction"] == next(
                    t.strip() for t in texts if isinstance(t, str) and t.strip()
                )
            expected = {**plain, "instruction": values["instruction"]}
            if hit and file.endswith("trajectory.h5"):
                with np.errstate(all="ignore"):
                    expected["states"], expected["actions"] = plain_trajectory(root / name)
            same(values, expected, without=tuple(PUBLISHED) if hit else ())
            if hit and file.endswith(".json"):
                said = json.loads((root / file).read_bytes())
                for camera, key in zip(CAMERAS, KEYS, strict=False):
                    (known,) = [c for c, serial in PUBLISHED.items() if serial == str(said[key])]
                    if known in plain["pixels"]:  # of three cameras two are read
                        np.testing.assert_array_equal(
                            values["pixels"][camera], plain["pixels"][known]
                        )
        return f"{file}: {how}"


# --- LeRobot ---


def write_lerobot(root: Path, version: str) -> Path:
    content = Content(lengths=(3, 2), images=True)
    (made.write_v30 if version == "v3.0" else made.write_v21)(root, content)
    if version == "v2.0":
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.0"}))
    return root


def plain_lerobot(root: Path, name: str, pristine: Values) -> Values:
    index = int(name.removeprefix("episode_"))
    if (root / "meta/tasks.jsonl").exists():
        data = root / made.V21_DATA.format(episode_chunk=0, episode_index=index)
        tasks = {}
        for line in (root / "meta/tasks.jsonl").read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a broken line says nothing
                row = json.loads(line)
                tasks[row["task_index"]] = row["task"]
    else:
        data = root / made.DATA
        table = pq.read_table(root / "meta/tasks.parquet").to_pydict()
        texts = next(v for k, v in table.items() if k != "task_index")
        tasks = dict(zip([unboxed(i) for i in table["task_index"]], texts, strict=True))
    rows: list[dict[str, Any]] = []
    with pq.ParquetFile(data) as stored:
        for group in range(stored.num_row_groups):
            with contextlib.suppress(OSError):  # another episode's
                rows += stored.read_row_group(group, columns=COLUMNS).to_pylist()
    rows = [r for r in rows if unboxed(r["episode_index"]) == index]
    return {
        "instruction": tasks[unboxed(rows[0]["task_index"])],
        "states": np.array([np.ravel(r["observation.state"]) for r in rows], np.float32),
        "actions": np.array([np.ravel(r["action"]) for r in rows], np.float32),
        "times": [float(unboxed(r["timestamp"])) for r in rows],
        "pixels": {**pristine["pixels"], "wrist": [pixels_of(unboxed(r[WRIST])) for r in rows]},
    }


COLUMNS = ["episode_index", "task_index", "timestamp", "observation.state", "action", WRIST]


def unboxed(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def pixels_of(cell: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))


def damage_lerobot(root: Path, pristine: Mapping[str, Values], rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        whole = file in ("meta/info.json", "meta/tasks.parquet", "meta/tasks.jsonl")
        whole = whole or file in ("meta/episodes.jsonl", "meta/episodes/chunk-000/file-000.parquet")
        read: dict[str, Values] = {}
        try:
            dataset = LeRobotDataset(root, cameras=("top", "wrist"))
            names = dataset.episode_names()
        except AttnstoreError as error:
            assert whole, f"the dataset is refused for {file}: {error}"
            one_line(error, root)
            return f"{file}: {how}"
        # one that is lost without a word is the worst
        assert (
            file == "meta/info.json" or set(names) >= set(pristine) or (whole and "episode" in file)
        )
        for name in names:
            try:
                read[name] = read_all(dataset, name)
            except EpisodeError as error:
                own = name.removeprefix("episode_") in file or "file-000" in file
                assert whole or own, f"{name} is refused for {file}: {error}"
                one_line(error)
            except AttnstoreError as error:  # tasks are read with the first episode
                assert whole, f"{file}: {error}"
                one_line(error, root)
        for name, values in read.items():
            assert name in pristine, f"{name} was made up"
            if not file.endswith(".mp4"):
                same(values, plain_lerobot(root, name, pristine[name]))
            else:
                same(values, pristine[name], without=("top",))
        return f"{file}: {how}"


# --- RLDS ---


def write_rlds(root: Path) -> Path:
    with zipfile.ZipFile(CHECKOUT / "tests/golden/rlds.zip") as archive:
        archive.extractall(root)
    return root


def damage_rlds(root: Path, pristine: Mapping[str, Values], rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        described = file.endswith(".json")
        try:
            dataset = RldsDataset(root)
            names = dataset.episode_names()
        except AttnstoreError as error:
            assert described, f"the dataset is refused for {file}: {error}"
            one_line(error, root)
            return f"{file}: {how}"
        # one that is lost without a word is the worst
        assert described or set(names) == set(pristine) or dataset.absent_files == (file,)
        for name in names:
            try:
                values = read_all(dataset, name)
            except EpisodeError as error:
                own = described or dataset.file_of(name) == file
                assert own, f"{name} is refused for {file}: {error}"
                one_line(error, root)
                continue
            if not described:  # the records have checksums
                same(values, pristine[name])
                continue
            # a description may name fewer columns, and count the episodes otherwise
            texts = {p["instruction"]: p for p in pristine.values()}
            known = texts.get(values["instruction"]) or next(
                p for p in pristine.values() if np.array_equal(p["states"], values["states"])
            )
            pixels = {c: known["pixels"][c] for c in values["pixels"]}
            plain = {**known, "instruction": values["instruction"], "pixels": pixels}
            if values["actions"].shape[1] == 0:
                plain["actions"] = values["actions"]
            same(values, plain)
        return f"{file}: {how}"


# --- HDF5 demonstrations ---


def write_demonstrations(root: Path) -> Path:
    write_libero(root / "open_the_drawer_demo.hdf5", (3, 3))
    write_robomimic(root / "can.hdf5", (True, False))
    for path in root.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:  # one dataset of two structures: the same columns
            for group in file["data"].values():
                for key in [k for k in group["obs"] if k.startswith("robot0")]:
                    del group["obs"][key]
                if "agentview_rgb" in group["obs"]:
                    group["obs"].move("agentview_rgb", "agentview_image")
                else:
                    group["obs/ee_states"] = group["actions"][:, :6]
                    group["obs/gripper_states"] = group["actions"][:, :2]
    return root


def write_episodes_of_aloha(root: Path) -> Path:
    write_aloha(root / "success/episode_0.hdf5", 0)
    write_aloha(root / "failure/episode_1.hdf5", 1, compress=True)
    return root


def open_hdf5(root: Path) -> Any:
    if (root / "can.hdf5").exists():
        return RobomimicDataset(
            root,
            cameras=("agentview_image",),
            state=("obs/ee_states", "obs/gripper_states"),
            action=("actions",),
            instruction="x",
        )
    return AlohaDataset(root, cameras=("cam_low", "cam_high"), jpeg_colours="rgb", instruction="x")


def plain_hdf5(root: Path, name: str) -> Values:
    """What an episode's columns say, by h5py and Pillow."""
    aloha = (root / f"{name}.hdf5").exists()
    path = root / f"{name if aloha else name.rpartition('/')[0]}.hdf5"
    with h5py.File(path, locking=False) as file:
        group = file if aloha else file["data"][name.rpartition("/")[2]]
        columns = ("observations/qpos",) if aloha else ("obs/ee_states", "obs/gripper_states")
        cameras = ("cam_low", "cam_high") if aloha else ("agentview_image",)
        wide = [
            np.asarray(group[c][()], np.float64)
            for c in (*columns, "action" if aloha else "actions")
        ]
        wide = [w.reshape(len(w), -1) for w in wide]
        shots = {c: group[f"{'observations/images' if aloha else 'obs'}/{c}"][()] for c in cameras}
    pixels = {
        c: v[..., :3]
        if v.ndim == 4
        else [np.asarray(Image.open(io.BytesIO(row.tobytes()))) for row in v]
        for c, v in shots.items()
    }
    with np.errstate(all="ignore"):
        states, actions = (
            np.concatenate(wide[:-1], 1).astype(np.float32),
            wide[-1].astype(np.float32),
        )
    return {
        "instruction": "x",
        "states": states,
        "actions": actions,
        "times": [None],
        "pixels": pixels,
    }


def damage_hdf5(root: Path, pristine: Mapping[str, Values], rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        stem = file.removesuffix(".hdf5")
        try:
            dataset = open_hdf5(root)
            names = list(dataset.episode_names())
        except AttnstoreError as error:  # a file that is gone, or the columns of the first
            one_line(error, root)
            return f"{file}: {how}"
        gone = not (root / file).is_file()
        assert gone or {n.partition("/demo")[0] for n in names} == {
            n.partition("/demo")[0] for n in pristine
        }
        for name in names:
            hit = name.startswith(stem)
            try:
                values = read_all(dataset, name)
            except EpisodeError as error:
                assert hit, f"{name} is refused for {file}: {error}"
                one_line(error)
                continue
            same(values, plain_hdf5(root, name) if hit else pristine[name])
        return f"{file}: {how}"


# --- masks ---


def write_masks(root: Path, kind: str) -> Path:
    """Masks of frames 0, 8 and 16: two cubes and a bowl at each."""
    pixels = {
        f: [np.random.default_rng([f, i]).random(SIZE) > 0.6 for i in range(3)] for f in (0, 8, 16)
    }
    root.mkdir(parents=True)
    names = ["cube", "cube", "bowl"]

    def runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
        return {"size": list(SIZE), "counts": encode_rle(mask)}

    if kind == "coco":
        images = [{"id": f + 1, "file_name": f"hand_camera/{f:05d}.png"} for f in pixels]
        kinds = [{"id": 1, "name": "cube"}, {"id": 2, "name": "bowl"}]
        annotations = [
            {"id": i, "image_id": f + 1, "category_id": 1 + (name == "bowl"), "segmentation": runs(m), "score": 0.5}
            for f, masks in pixels.items()
            for i, (name, m) in enumerate(zip(names, masks, strict=True))
        ]  # fmt: skip
        text = json.dumps({"images": images, "categories": kinds, "annotations": annotations})
        (root / "coco_masks.json").write_text(text)
        return root
    found: dict[str, Any] = {}
    (root / "masks").mkdir()
    for frame, masks in pixels.items():
        for i, (name, mask) in enumerate(zip(names, masks, strict=True)):
            entry: dict[str, Any] = {"bbox": [0, 0, 1, 1], "category": name, "score": 0.5 + i / 10}
            if kind == "npy":
                np.save(root / "masks" / f"{frame:05d}_{i}.npy", mask)
                entry["mask_file"] = f"{frame:05d}_{i}.npy"
            else:
                entry["segmentation"] = runs(mask)
            found.setdefault(str(frame), []).append(entry)
    (root / "dinox_info.json").write_text(json.dumps(found))
    (root / "white_list.json").write_text("[0, 8, 16]")
    return root


def plain_masks(root: Path) -> dict[tuple[int, str], NDArray[np.bool_]]:
    """Union of masks by frame and category, as the files say it, decoded run by run."""
    found: dict[tuple[int, str], NDArray[np.bool_]] = {}
    if (root / "coco_masks.json").exists():
        raw = json.loads((root / "coco_masks.json").read_bytes())
        frames = {i["id"]: int(Path(i["file_name"]).stem) for i in raw["images"]}
        names = {c["id"]: c["name"] for c in raw["categories"]}
        entries = [(frames[a["image_id"]], names[a["category_id"]], a) for a in raw["annotations"]]
    else:
        raw = json.loads((root / "dinox_info.json").read_bytes())
        entries = [(int(f), e["category"], e) for f, found in raw.items() for e in found]
    for frame, name, entry in entries:
        if "mask_file" in entry:
            mask = np.load(root / "masks" / entry["mask_file"])
        else:
            mask = runs_of(entry["segmentation"])
        key = frame, " ".join(name.split())
        found[key] = found[key] | mask if key in found else mask
    if (root / "white_list.json").exists():
        trusted = json.loads((root / "white_list.json").read_bytes())
        found = {key: mask for key, mask in found.items() if key[0] in trusted}
    return found


def runs_of(raw: Mapping[str, Any]) -> NDArray[np.bool_]:
    """COCO's runs, decoded by the letter of maskApi.c, one pixel at a time."""
    counts = raw["counts"]
    if isinstance(counts, str):
        lengths: list[int] = []
        place = 0
        while place < len(counts):
            value = shift = 0
            while True:
                digit = ord(counts[place]) - 48
                value |= (digit & 31) << shift
                place, shift = place + 1, shift + 5
                if not digit & 32:
                    break
            value -= (1 << shift) if digit & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        counts = lengths
    flat = [i % 2 == 1 for i, n in enumerate(counts) for _ in range(n)]
    return np.array(flat).reshape(raw["size"][::-1]).T


def damage_masks(root: Path, pristine: Any, rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        try:
            source = open_detector_masks("e", root, "hand_camera")
            read = {(f, m.category): m.pixels for f in source.frames for m in source.read(f, SIZE)}
        except EpisodeError as error:
            one_line(error)
            return f"{file}: {how}"
        plain = plain_masks(root)
        assert set(read) == set(plain), how
        for key, mask in read.items():
            np.testing.assert_array_equal(mask, plain[key])
        return f"{file}: {how}"


# --- outcome files ---


def write_outcomes(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "o.csv").write_text("episode_index,outcome\n0,success\n1,failure\n2,success\n")
    (root / "o.json").write_text('{"0": "success", "1": "failure", "2": "unknown"}')
    rows = [{"episode": i, "success": i != 1} for i in range(3)]
    (root / "list.json").write_text(json.dumps(rows))
    return root


def damage_outcomes(root: Path, pristine: Any, rng: random.Random) -> str:
    with mutated(root, rng) as (file, how):
        path = root / file
        try:
            read = read_outcomes(path)
        except UsageError as error:
            one_line(error, path)
            return f"{file}: {how}"
        words = {
            "true": "success",
            "1": "success",
            "1.0": "success",
            "": "unknown",
            "none": "unknown",
        }
        words |= dict.fromkeys(("false", "0", "0.0"), "failure")
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as stream:
                pairs = [(r["episode_index"], r["outcome"]) for r in csv.DictReader(stream)]
        else:
            raw = json.loads(path.read_bytes())
            rows = (
                [(r.get("episode"), r.get("success")) for r in raw] if isinstance(raw, list) else []
            )
            pairs = rows or list(raw.items())
        plain = {
            int(str(k).removeprefix("episode_").removesuffix(".0")): str(v).strip().lower()
            for k, v in pairs
        }
        assert read == {k: words.get(v, v) for k, v in plain.items()}, how
        return f"{file}: {how}"


Damage = Callable[[Path, Any, random.Random], str]
KINDS: dict[str, tuple[Callable[[Path], Path], Damage, int]] = {
    "droid-stills": (write_droid, damage_droid, 400),
    "droid-mp4": (lambda root: write_droid(root, films=True), damage_droid, 150),
    "droid-published": (write_published, damage_published, 40),
    "lerobot-2.0": (lambda root: write_lerobot(root, "v2.0"), damage_lerobot, 80),
    "lerobot-2.1": (lambda root: write_lerobot(root, "v2.1"), damage_lerobot, 150),
    "lerobot-3.0": (lambda root: write_lerobot(root, "v3.0"), damage_lerobot, 250),
    "rlds": (write_rlds, damage_rlds, 250),
    "robomimic": (write_demonstrations, damage_hdf5, 50),
    "aloha": (write_episodes_of_aloha, damage_hdf5, 50),
    "masks-npy": (lambda root: write_masks(root, "npy"), damage_masks, 400),
    "masks-runs": (lambda root: write_masks(root, "runs"), damage_masks, 500),
    "masks-coco": (lambda root: write_masks(root, "coco"), damage_masks, 500),
    "outcomes": (write_outcomes, damage_outcomes, 800),
}


def pristine_of(kind: str, root: Path) -> dict[str, Values]:
    if kind.startswith("droid"):
        return {
            name: read_all(DroidDataset(root), name) for name in DroidDataset(root).episode_names()
        }
    if kind.startswith("lerobot"):
        dataset = LeRobotDataset(root, cameras=("top", "wrist"))
        return {name: read_all(dataset, name) for name in dataset.episode_names()}
    if kind in ("robomimic", "aloha"):
        return {n: read_all(open_hdf5(root), n) for n in open_hdf5(root).episode_names()}
    if kind == "rlds":
        return {n: read_all(RldsDataset(root), n) for n in RldsDataset(root).episode_names()}
    return {}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_or_makes_no_difference(kind: str, tmp_path: Path) -> None:
    write, damage, count = KINDS[kind]
    root = write(tmp_path / "toy")
    pristine = pristine_of(kind, root)
    for seed in range(count):
        try:
            damage(root, pristine, random.Random(f"{kind} {seed}"))
        except Exception as error:
            error.add_note(f"seed {seed}: {kind} {seed}")
            raise


def campaign(count: int, kinds: list[str], start: int) -> None:
    """Damage on and on, and print what is wrong once per kind of failure."""
    import traceback

    warnings.simplefilter("error")
    for kind in [k for k in kinds if k in KINDS] or list(KINDS):
        write, damage, _ = KINDS[kind]
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        root = write(folder / "toy")
        pristine = pristine_of(kind, root)
        seen: dict[str, int] = {}
        for seed in range(start, start + count):
            try:
                damage(root, pristine, random.Random(f"{kind} {seed}"))
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{type(error).__name__} {last.filename}:{last.lineno}"
                seen[key] = seen.get(key, 0) + 1
                if seen[key] <= 2 and "-v" in sys.argv:
                    traceback.print_exc()
                if seen[key] <= 2:
                    print(kind, seed, key, " ".join(str(error).split())[:400], flush=True)
        print(kind, count, "done", seen, flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    campaign(int(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
