"""Masks of a detector: run lengths, JSON files, arrays, and every way in which they are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from droid_sample import sample_path
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnstore.query.objects.masks import open_detector_masks
from attnstore.store.errors import EpisodeError
from attnstore.store.format.rle import decode_rle, encode_rle, format_counts, parse_counts

SIZE = (4, 6)
EPISODE = "failure/2025-12-10/2025-12-10_09-07-36"


def mask(*pixels: tuple[int, int], size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    found = np.zeros(size, bool)
    for at in pixels:
        found[at] = True
    return found


def write(root: Path, frames: dict[str, Any], white_list: Any = None, camera: str = "") -> Path:
    """Write dinox_info.json; an entry's ``array`` becomes its mask file."""
    folder = root / "masks" / camera
    folder.mkdir(parents=True, exist_ok=True)
    for entries in frames.values():
        for entry in entries:
            if "array" in entry:
                np.save(folder / entry["mask_file"], entry.pop("array"), allow_pickle=True)
    suffix = f"_{camera}" if camera else ""
    (root / f"dinox_info{suffix}.json").write_text(json.dumps(frames))
    if white_list is not None:
        (root / "white_list.json").write_text(json.dumps(white_list))
    return root


def entry(name: str, array: Any = None, category: str = "cube", **more: Any) -> dict[str, Any]:
    found = {"bbox": [0, 0, 1, 1], "mask_file": name, "category": category, "score": 0.9, **more}
    return found if array is None else {**found, "array": array}


# Run lengths, worked out by hand from COCO's maskApi.c.


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([6], "6"),
        ([0, 24], "0h0"),  # 24 = 0b11000: bit 5 set, so a further digit keeps it positive
        ([16, 8], "`08"),
        ([40, 2], "X12"),
        ([2, 5, 3, 1], "253L"),  # the fourth: 1 - 5 = -4 = ...11100, one digit
        ([1, 2, 3, 40], "123V1"),  # 40 - 2 = 38 = 0b1 00110
        ([1, 40, 3, 1], "1X13iN"),  # 1 - 40 = -39: digits 25 | 32, then 30
    ],
)
def test_run_lengths_by_hand(counts: list[int], text: str) -> None:
    assert format_counts(counts) == text
    assert parse_counts(text) == counts


def test_runs_go_down_the_columns_and_start_outside() -> None:
    expected = [[0, 1, 1], [0, 1, 0]]
    for counts in ([2, 3, 1], "231"):
        assert decode_rle((2, 3), counts).astype(int).tolist() == expected
    assert encode_rle(np.array(expected, bool)) == "231"
    assert decode_rle((1, 2), [0, 2]).all()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 70))))
def test_encoding_and_decoding_are_inverse(pixels: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    decoded = decode_rle((pixels.shape[0], pixels.shape[1]), encode_rle(pixels))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ((2, 3), [2, 3], "runs of 5 pixels in all, the mask has 2 x 3 = 6"),
        ((2, 3), [-1, 7], "a run of -1 pixels"),
        ((2, 3), [2**70, 0], "runs of 1180591620717411303424 pixels"),
        ((0, 3), [], "0 x 3 pixels"),
        ((10**6, 10**6), [10**12], "1000000 x 1000000 pixels"),
        ((2, 3), "2\n", r"'\\n' is not a character"),
        ((2, 3), "2X", "ends within a number"),
    ],
)
def test_wrong_run_lengths(size: tuple[int, int], counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(size, counts)


# The detector's files.


def test_sample_masks() -> None:
    masks = open_detector_masks(EPISODE, sample_path() / EPISODE, "hand_camera")
    assert list(masks.frames) == [0, 24]
    first, second = (masks.read(frame, (360, 640)) for frame in masks.frames)
    assert [m.category for m in first] == ["green cube", "pink bowl"]
    assert [m.category for m in second] == ["green cube"]
    assert [m.score for m in first] == [0.924, 0.971]
    rows, cols = np.nonzero(first[0].pixels)
    assert (cols.min(), rows.min(), cols.max(), rows.max()) == (120, 49, 179, 94)  # its bbox


def test_detections_of_a_category_are_united(tmp_path: Path) -> None:
    one, two = mask((0, 0)), mask((3, 5))
    frames = {
        "7": [entry("a.npy", one, "cube"), entry("b.npy", two, " cube ", score=0.4),
              entry("c.npy", two, "bowl", score=None)]
    }  # fmt: skip
    bowl, cube = open_detector_masks("e", write(tmp_path, frames), "hand_camera").read(7, SIZE)
    assert (bowl.category, bowl.instances, bowl.score) == ("bowl", 1, None)
    assert (cube.category, cube.instances, cube.score) == ("cube", 2, 0.4)
    np.testing.assert_array_equal(cube.pixels, one | two)


def test_only_frames_of_the_white_list_are_trusted(tmp_path: Path) -> None:
    frames = {"0": [entry("a.npy", mask((0, 0)))], "25": [entry("b.npy", mask((1, 1)))], "50": []}
    assert list(open_detector_masks("e", write(tmp_path, frames), "hand_camera").frames) == [
        0, 25, 50,
    ]  # fmt: skip
    write(tmp_path, {}, [50, 25, 99])
    (tmp_path / "dinox_info.json").write_text(json.dumps(frames))
    masks = open_detector_masks("e", tmp_path, "hand_camera")
    assert list(masks.frames) == [25, 50]
    assert masks.read(50, SIZE) == []  # looked at, and nothing there
    write(tmp_path, frames, [1, 2])
    with pytest.raises(EpisodeError, match=r"white_list\.json trusts none of its 3 frames"):
        open_detector_masks("e", tmp_path, "hand_camera")


def test_side_cameras_have_files_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"0": [entry("a.npy", mask((0, 0)))]})
    write(tmp_path, {"8": [entry("a.npy", mask((2, 2)))]}, camera="varied_camera_2")
    masks = open_detector_masks("e", tmp_path, "varied_camera_2")
    assert list(masks.frames) == [8]
    assert masks.read(8, SIZE)[0].pixels[2, 2]
    with pytest.raises(
        EpisodeError, match=r"no masks of varied_camera_1.*coco_masks_varied_camera_1"
    ):
        open_detector_masks("e", tmp_path, "varied_camera_1")


@pytest.mark.parametrize("counts", ["231", [2, 3, 1]])
def test_run_lengths_instead_of_a_file(tmp_path: Path, counts: Any) -> None:
    raw = {"3": [{"category": "cube", "segmentation": {"size": [2, 3], "counts": counts}}]}
    (tmp_path / "dinox_info.json").write_text(json.dumps(raw))
    (found,) = open_detector_masks("e", tmp_path, "hand_camera").read(3, (2, 3))
    assert found.score is None
    assert found.pixels.astype(int).tolist() == [[0, 1, 1], [0, 1, 0]]


def coco(**changes: Any) -> dict[str, Any]:
    annotation = {
        "id": 1, "image_id": 10, "category_id": 2, "score": 0.5,
        "segmentation": {"size": [2, 3], "counts": "231"},
    }  # fmt: skip
    return {
        "images": [
            {"id": 10, "file_name": "hand_camera/00024.jpg"},
            {"id": 11, "file_name": "f_32.png"},
        ],
        "categories": [{"id": 2, "name": "green cube"}],
        "annotations": [{**annotation, **changes}],
    }


def named(*names: str) -> dict[str, Any]:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    return {**coco(), "images": images, "annotations": []}


@pytest.mark.parametrize(
    ("names", "frames"),
    [
        (("00000_png.rf.9f3c1b7e.jpg", "00008_png.rf.0a1b2c00000.jpg"), [0, 8]),
        (("COCO_val2014_000000000003.jpg", "COCO_val2014_000000000005.jpg"), [3, 5]),
        (("00004_640x480.png",), [4]),
        (("hand_camera_00004.png", "hand_camera_00012.png"), [4, 12]),
        (("cam\\\\frame00004.png", "cam\\\\frame00012.png"), [4, 12]),
    ],
)
def test_the_frames_number_in_a_name(tmp_path: Path, names: Any, frames: list[int]) -> None:
    (tmp_path / "coco_masks.json").write_text(json.dumps(named(*names)))
    assert list(open_detector_masks("e", tmp_path, "hand_camera").frames) == frames


def test_a_cameras_number_is_no_frames(tmp_path: Path) -> None:
    (tmp_path / "coco_masks_varied_camera_1.json").write_text(
        json.dumps(named("varied_camera_1_00004.png"))
    )
    assert list(open_detector_masks("e", tmp_path, "varied_camera_1").frames) == [4]


def test_coco_data_set(tmp_path: Path) -> None:
    (tmp_path / "coco_masks.json").write_text(json.dumps(coco()))
    masks = open_detector_masks("e", tmp_path, "hand_camera")
    assert list(masks.frames) == [24, 32]
    (found,) = masks.read(24, (2, 3))
    assert (found.category, found.score, int(found.pixels.sum())) == ("green cube", 0.5, 3)
    assert masks.read(32, (2, 3)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (coco(category_id=7), "annotation 0: there is no category 7; there are: 2 green cube"),
        (coco(image_id=7), "annotation 0: there is no image 7"),
        (coco(score="high"), "annotation 0: the score is a number; got 'high'"),
        ({**coco(), "categories": [{"id": 2, "name": " "}]}, "the category is a text, not empty"),
        ({**coco(), "images": [{"id": 10, "file_name": "a.jpg"}]}, "does not end with the frame"),
        ({"images": []}, "not a COCO data set"),
        (named("a/00000.png", "b/0.png"), "'a/00000.png' and 'b/0.png' are both frame 0"),
        (named("varied_camera_1/00000.png"), "is varied_camera_1's, the file is hand_camera's"),
        (named("varied_camera_1_00000.png"), "is varied_camera_1's, the file is hand_camera's"),
        (
            named("ep-hand_camera-00000.png", "ep-varied_camera_2-00008.png"),
            "is varied_camera_2's",
        ),
        (named("00000_9f3c1b7e2a_21.png"), "the frame's number could be 00000 or 21"),
        (named("7_00000.png", "8_00001.png"), "could be 7 or 00000"),
        (
            {
                **coco(),
                "images": [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}],
            },
            "image id 1 stands twice: '1.png' and '2.png'",
        ),
        (
            {**coco(), "categories": [{"id": 2, "name": "cube"}, {"id": 2, "name": "bowl"}]},
            "category id 2 stands twice: 'cube' and 'bowl'",
        ),
        (
            {**coco(), "images": [{"id": True, "file_name": "1.png"}]},
            "is a number or a text; got True",
        ),
        ([], "not a COCO data set"),
    ],
)
def test_broken_coco_data_set(tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "coco_masks.json").write_text(json.dumps(change))
    with pytest.raises(EpisodeError, match=f"episode e: coco_masks.json: .*{message}"):
        open_detector_masks("e", tmp_path, "hand_camera")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 1, 2, 0]], "annotation 0: the segmentation is a polygon"),
        ([], "the segmentation is empty \\(\\[\\]\\), a box without a mask"),
        ({"size": [2, 3.5], "counts": [6]}, "size is two whole numbers"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "runs are whole numbers"),
        ({"size": [2, 3], "counts": [1]}, "runs of 1 pixels in all"),
        ({"size": [2, 3]}, "KeyError"),
        ({"size": [2], "counts": [2]}, "is not COCO's"),
        ({"size": [2, 3], "counts": {"a": 1}}, "is not COCO's"),
        ({"size": [3, 2], "counts": [6]}, "the mask is 2x3 pixels, the camera's image 3x2"),
    ],
)
def test_broken_segmentation(tmp_path: Path, segmentation: Any, message: str) -> None:
    (tmp_path / "coco_masks.json").write_text(json.dumps(coco(segmentation=segmentation)))
    masks = open_detector_masks("e", tmp_path, "hand_camera")
    with pytest.raises(EpisodeError, match=message):
        masks.read(24, (2, 3))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "not an object whose keys are frames"),
        ({"0": [], "00000": []}, "'0' and '00000' are both frame 0"),
        ({"x": []}, "'x' is not a frame index"),
        ({"-1": []}, "'-1' is not a frame index"),
        ({"0": {}}, "frame 0: not a list of detections"),
        ({"0": [{"category": "cube"}]}, "frame 0, detection 0: has neither mask_file nor segm"),
        ({"0": [3]}, "frame 0, detection 0: has neither"),
        ({"0": [entry("a.npy"), entry("a.npy", None, "")]}, "detection 1: the category is a text"),
        ({"0": [entry("a.npy", score=True)]}, "the score is a number; got True"),
        ({"0": [entry("../a.npy")]}, "mask_file '../a.npy' is not a name below masks/"),
        ({"0": [entry("/etc/passwd")]}, "is not a name below masks/"),
        ({"0": [entry("")]}, "is not a name below masks/"),
        ({"0": [{"mask_file": 3, "category": "cube"}]}, "mask_file 3 is not a name"),
        ({}, "it has no frames"),
    ],
)  # fmt: skip
def test_broken_detector_file(tmp_path: Path, frames: Any, message: str) -> None:
    (tmp_path / "dinox_info.json").write_text(json.dumps(frames))
    with pytest.raises(EpisodeError, match=f"dinox_info.json: .*{message}"):
        open_detector_masks("e", tmp_path, "hand_camera")


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000, '{"0": [], "0": []}'])
def test_unreadable_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "dinox_info.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EpisodeError, match=r"dinox_info\.json: not readable as JSON"):
        open_detector_masks("e", tmp_path, "hand_camera")


@pytest.mark.parametrize("raw", [{"0": 1}, [0, "a"], [True], [-1], 3])
def test_broken_white_list(tmp_path: Path, raw: Any) -> None:
    write(tmp_path, {"0": []}, raw)
    with pytest.raises(EpisodeError, match=r"white_list\.json: not a list of frame indices"):
        open_detector_masks("e", tmp_path, "hand_camera")


def _archive(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, mask())


def _cut(file: Path) -> None:
    np.save(file, mask())
    file.write_bytes(file.read_bytes()[:-5])


def _huge(file: Path) -> None:
    np.save(file, mask())
    data = file.read_bytes()
    file.write_bytes(data.replace(b"(4, 6), }          ", b"(400000000, 600), }"))
    assert file.read_bytes() != data


def _save(array: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda file: np.save(file, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "frame 3, detection 0: masks/a.npy is missing"),
        (_save(mask((0, 0)).astype(np.uint8)), "holds uint8 of shape .4, 6.; a mask is bool"),
        (_save(mask((0, 0))[None]), r"holds bool of shape \(1, 4, 6\)"),
        (_save(np.array([print, None])), "masks/a.npy is not a NumPy array file"),
        (_save(np.zeros((6, 4), bool)), "the mask is 4x6 pixels, the camera's image 6x4"),
        (lambda file: file.write_bytes(b"no array"), "is not a NumPy array file"),
        (lambda file: file.write_bytes(b""), "is not a NumPy array file"),
        (_archive, "is an archive; one array is expected"),
        (_cut, "is not a NumPy array file"),
        (_huge, "is not a NumPy array file"),
    ],
)
def test_broken_mask_file(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    write(tmp_path, {"3": [entry("a.npy")]})
    make(tmp_path / "masks" / "a.npy")
    masks = open_detector_masks("e", tmp_path, "hand_camera")
    with pytest.raises(EpisodeError, match=message):
        masks.read(3, SIZE)


def test_a_mask_file_may_be_a_link_into_a_cache(tmp_path: Path) -> None:
    """As git-annex and the Hugging Face hub keep their files."""
    write(tmp_path / "episode", {"3": [entry("a.npy")]})
    np.save(tmp_path / "blob.npy", mask((1, 2)))
    (tmp_path / "episode" / "masks" / "a.npy").symlink_to("../../blob.npy")
    (cube,) = open_detector_masks("e", tmp_path / "episode", "hand_camera").read(3, SIZE)
    assert np.array_equal(cube.pixels, mask((1, 2)))


def test_the_digest_follows_every_input(tmp_path: Path) -> None:
    def digest() -> str:
        return open_detector_masks("e", tmp_path, "hand_camera").digest()

    write(tmp_path, {"3": [entry("a.npy", mask((0, 0)))]})
    seen = [digest(), digest()]
    assert seen[0] == seen[1]
    np.save(tmp_path / "masks" / "a.npy", mask((0, 1)))
    seen.append(digest())
    (tmp_path / "white_list.json").write_text("[3]")
    seen.append(digest())
    (tmp_path / "dinox_info.json").write_text(json.dumps({"3": [entry("a.npy", None, "bowl")]}))
    seen.append(digest())
    (tmp_path / "masks" / "a.npy").unlink()
    seen.append(digest())
    assert len(set(seen)) == 5
