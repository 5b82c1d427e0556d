"""Cut the episodes of ``tests/data`` out of the full toy cube dataset.

    python scripts/make_sample.py SOURCE [--out tests/data/droid]

SOURCE is the dataset's directory, with ``success/`` and ``failure/`` in it. Two episodes keep their
full length and their videos as they are; two keep the first frames as image files, saved again at
a lower quality, and one of these the object masks of its wrist camera. Trajectories keep only the
datasets that attnstore reads. The same SOURCE and package versions give the same images; OUT is
replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import h5py
from PIL import Image

CAMERAS = ("hand_camera", "varied_camera_1", "varied_camera_2")
QUALITY = 50
"""JPEG quality of the image files; the source's is 80."""

KEPT = re.compile(
    r"observation/robot_state/(joint_positions|gripper_position|cartesian_position)"
    r"|action/(joint_velocity|gripper_position)"
    r"|observation/timestamp/control/step_start"
    r"|observation/camera_type/\d+"
    # images are the left eye's
    r"|observation/camera_intrinsics/\d+_left"
    r"|observation/camera_extrinsics/\d+_left(_gripper_offset)?"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """What is kept of one episode."""

    episode: str
    stills: int | None = None
    """Number of first frames, kept as image files; None keeps the whole episode as videos."""
    masks: bool = False
    """Whether the wrist camera's object masks of those frames are kept."""


CUTS = (
    Cut("success/2025-12-10/2025-12-10_09-00-39"),
    Cut("success/2025-12-12/2025-12-12_10-14-19", stills=25),
    Cut("failure/2025-12-10/2025-12-10_09-07-36", stills=25, masks=True),
    Cut("failure/2025-12-11/2025-12-11_09-44-16"),
)


def main() -> None:
    """Write the sample and print its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the full dataset's directory")
    data = Path(__file__).resolve().parents[1] / "tests" / "data" / "droid"
    parser.add_argument("--out", type=Path, default=data, help="default: tests/data/droid")
    options = parser.parse_args()
    missing = [cut.episode for cut in CUTS if not (options.source / cut.episode).is_dir()]
    if missing:
        parser.error(f"{options.source} does not have the episodes {', '.join(missing)}")
    if options.out.exists():
        shutil.rmtree(options.out)
    for cut in CUTS:
        cut_episode(options.source / cut.episode, options.out / cut.episode, cut)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {len(CUTS)} episodes, {size / 1e6:.2f} MB")


def cut_episode(source: Path, target: Path, cut: Cut) -> None:
    """Write one episode."""
    (target / "recordings").mkdir(parents=True)
    for name in ("instruction.txt", "calibration.json"):
        shutil.copyfile(source / name, target / name)
    cut_trajectory(source / "trajectory.h5", target / "trajectory.h5", cut.stills)
    (combined,) = source.glob("*.mp4")
    cut_video(combined, target / combined.name, cut.stills)
    if cut.stills is None:
        for camera in CAMERAS:
            video = Path("recordings", f"{camera}.mp4")
            shutil.copyfile(source / video, target / video)
        return
    for camera in CAMERAS:
        directory = Path("recordings", "frames", camera)
        (target / directory).mkdir(parents=True)
        for index in range(cut.stills):
            file = directory / f"{index:05d}.jpg"
            with Image.open(source / file) as image:
                image.save(target / file, quality=QUALITY, optimize=True)
    if cut.masks:
        cut_masks(source, target, cut.stills)


def cut_trajectory(source: Path, target: Path, steps: int | None) -> None:
    """Copy the first steps of the datasets that are kept, and all attributes."""
    # a chunk index costs more than compression saves in so few rows
    storage = {} if steps else {"compression": "gzip", "shuffle": True}
    with h5py.File(source, "r") as old, h5py.File(target, "w", libver="v110") as new:

        def copy(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset) and KEPT.fullmatch(name):
                new.create_dataset(name, data=item[:steps], **storage)

        old.visititems(copy)
        new.attrs.update(old.attrs)
        new.attrs["trajectory_length"] = len(new["observation/robot_state/joint_positions"])


def cut_video(source: Path, target: Path, frames: int | None) -> None:
    """Encode the first frames anew, small: a cut between key frames cannot be copied."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        images = old.streams.video[0]
        stream = new.add_stream("libx264", rate=images.average_rate, options={"crf": "30"})
        stream.width, stream.height, stream.pix_fmt = images.width, images.height, "yuv420p"
        for index, frame in enumerate(old.decode(images)):
            if index == frames:
                break
            new.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")))
        new.mux(stream.encode())


def cut_masks(source: Path, target: Path, frames: int) -> None:
    """Copy the wrist camera's detections and masks of the first frames."""
    detections = json.loads((source / "dinox_info.json").read_text("utf-8"))
    kept = {frame: found for frame, found in detections.items() if int(frame) < frames}
    (target / "dinox_info.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    (target / "masks").mkdir()
    for found in kept.values():
        for detection in found:
            file = Path("masks", detection["mask_file"])
            shutil.copyfile(source / file, target / file)
    allowed = json.loads((source / "white_list.json").read_text("utf-8"))
    (target / "white_list.json").write_text(json.dumps([i for i in allowed if i < frames]) + "\n")


if __name__ == "__main__":
    main()
