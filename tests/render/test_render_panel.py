"""Pictures: colours, scales, texts, and where the overlay's pixels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from attnstore.render.picture import colormap, image_file, label, overlay
from attnstore.render.picture.layout import Box, Layout, arrange
from attnstore.render.picture.look import Look
from attnstore.render.picture.panel import Pane, Panel
from attnstore.render.picture.scale import ColorScale, Limits, data_limits
from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.format.geometry import Geometry

Image = NDArray[np.uint8]
SIZES = {
    "one": [(180, 320)],
    "two": [(180, 320), (180, 320)],
    "different": [(180, 320), (240, 320)],
    "portrait": [(320, 180), (320, 240)],
    "mixed": [(320, 180), (180, 320)],
    "three": [(180, 320), (240, 320), (224, 224)],
}


def geometry(size: tuple[int, int], anchor: str = "top-left") -> Geometry:
    return Geometry.letterbox(size, (56, 56), (14, 14), anchor=anchor)


def photo(size: tuple[int, int], seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(60, 200, (*size, 3), np.uint8)


def panel_of(sizes: list[tuple[int, int]], look: Look) -> tuple[Panel, dict[str, Image]]:
    panel = Panel({f"camera_{i}": geometry(s) for i, s in enumerate(sizes)}, look)
    return panel, {f"camera_{i}": photo(s, i) for i, s in enumerate(sizes)}


# --- colours ---


@pytest.mark.parametrize("name", colormap.CODES)
def test_tables_are_rgb_and_frozen(name: str) -> None:
    table = colormap.table(name)
    assert table.shape == (256, 3)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0
    if name in ("inferno", "magma", "plasma"):
        assert table[-1, 0] > 200  # red is first: the bright end is yellow, not light blue


@pytest.mark.parametrize("name", sorted(colormap.PERCEPTUALLY_UNIFORM))
def test_uniform_maps_only_get_lighter(name: str) -> None:
    light = colormap.table(name).astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > -1.5).all()
    assert light[-1] > light[0] + 100


def test_the_default_is_uniform() -> None:
    assert colormap.DEFAULT in colormap.PERCEPTUALLY_UNIFORM
    assert Look().cmap == colormap.DEFAULT


def test_levels() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf]])
    assert colormap.levels(values, 0, 1).tolist() == [[0, 0, 128, 255, 255, 0, 255]]
    assert colormap.levels(np.array([[0.2, 0.3]]), 0.2, 0.3).tolist() == [[0, 255]]
    coloured = colormap.apply(values, 0, 1, "jet")
    assert coloured[0, 4].tolist() == colormap.table("jet")[255].tolist()
    with pytest.raises(UsageError, match="vmin < vmax"):
        colormap.levels(values, 1, 1)
    with pytest.raises(UsageError, match="one of"):
        colormap.table("rainbow")


# --- scale ---


def test_data_limits() -> None:
    assert data_limits(np.array([0.1, 0.4, np.nan, np.inf])) == (0, 0.4)
    assert data_limits(np.array([-0.5, 0.25])) == (-0.5, 0.25)
    for empty in (np.zeros(3), np.full(3, np.nan), np.array([]), np.array([1e-42])):
        assert data_limits(empty) == (0, 1)


def test_limits_by_scope() -> None:
    g = {"a": geometry((180, 320)), "b": geometry((180, 320))}
    low, high = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    low[:, 0, 0], high[1, 1, 1] = 0.1, 0.7
    low[:, 3, 3] = 99.0  # letterbox: not on the scale
    maps = {"a": low, "b": high}
    assert ColorScale("video").limits(maps, g) == {"a": (0, 0.1), "b": (0, 0.7)}
    assert ColorScale("video", shared=True).limits(maps, g) == {"a": (0, 0.7), "b": (0, 0.7)}
    fixed = ColorScale("fixed", 0.01, 0.05).limits(maps, g)
    assert fixed == {"a": (0.01, 0.05), "b": (0.01, 0.05)}


def test_scale_from_text() -> None:
    assert ColorScale.parse("frame") == ColorScale("frame")
    assert ColorScale.parse("0:0.05") == ColorScale("fixed", 0, 0.05)
    for text in ("", "movie", "1:0", "0:x", "nan:1", "0:inf", "0.5"):
        with pytest.raises(UsageError, match="colour scale"):
            ColorScale.parse(text)


# --- overlay ---


@pytest.mark.parametrize("style", ["spotlight", "proportional", "constant"])
def test_blend_against_its_formula(style: overlay.Blend) -> None:
    image = photo((20, 30))
    heat = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    drawn = overlay.blend(image, heat, Limits(0, 1), cmap="viridis", alpha=0.6, style=style)
    level = np.rint(heat * 255).astype(int)
    share = level[..., None] / 255
    opacity = {
        "constant": np.full_like(share, 0.6),
        "proportional": 0.6 * share,
        "spotlight": 0.6 * np.sqrt(share),
    }[style]
    dimmed = image * (0.5 + 0.5 * share) if style == "spotlight" else image
    expected = dimmed * (1 - opacity) + colormap.table("viridis")[level] * opacity
    assert np.abs(drawn - expected).max() <= 2


def luminance(colour: np.ndarray[Any, Any]) -> float:
    """WCAG's relative luminance of sRGB, 0..255, by its definition."""
    part = np.asarray(colour, np.float64) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("cmap", ["inferno", "viridis", "turbo"])
@pytest.mark.parametrize("brightness", [12, 30, 60, 110, 170, 220, 245])
def test_auto_keeps_heat_and_picture_visible(brightness: int, cmap: str) -> None:
    """By number: what is under no heat can be seen, in every light; and heat apart from it."""
    texture = np.where(np.indices((32, 64)).sum(0) // 4 % 2, 1.25, 0.75)[..., None]
    image = np.clip(brightness * texture, 0, 255).astype(np.uint8).repeat(3, 2)
    heat = np.zeros((32, 64), np.float32)
    heat[:, 32:48], heat[:, 48:] = 0.5, 1
    drawn = overlay.blend(image, heat, Limits(0, 1), cmap=cmap, style="auto")
    cold, warm, hot = (drawn[:, a : a + 16].reshape(-1, 3).mean(0) for a in (0, 32, 48))
    # neither swallowed by a projector's black nor as bright as heat
    assert 30 <= cold.mean() <= 130
    if cmap != "turbo":  # which ends in a dark red, apart by its hue
        assert (luminance(hot) + 0.05) / (luminance(cold) + 0.05) >= 3
    lab = cv2.cvtColor(np.array([[cold, warm, hot]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    assert np.linalg.norm(lab[1] - lab[0]) >= 20
    assert np.linalg.norm(lab[2] - lab[0]) >= (50 if cmap != "turbo" else 40)
    # the picture's own contrast is not less than it was, of what was not white already
    ratio = [
        (luminance(p[:, :16].max((0, 1))) + 0.05) / (luminance(p[:, :16].min((0, 1))) + 0.05)
        for p in (drawn, image)
    ]
    assert ratio[0] >= min(ratio[1], 1.25)
    if brightness == 12:
        worse = overlay.blend(image, heat, Limits(0, 1), cmap=cmap, style="spotlight")
        assert worse[:, :16].mean() < 10 < drawn[:, :16].mean()


def test_no_heat_leaves_a_proportional_overlay_alone() -> None:
    image = photo((8, 8))
    drawn = overlay.blend(image, np.zeros((8, 8), np.float32), Limits(0, 1), style="proportional")
    np.testing.assert_array_equal(drawn, image)


def test_unseen_pixels_get_no_colour() -> None:
    image, heat = np.full((4, 4, 3), 100, np.uint8), np.ones((4, 4), np.float32)
    heat[:, 2:] = np.nan
    drawn = overlay.blend(image, heat, Limits(0, 1))
    assert (drawn[:, 2:] == 30).all()
    assert (drawn[:, :2] != 30).any()


def test_overlay_refusals() -> None:
    image, heat = photo((4, 4)), np.ones((4, 5), np.float32)
    with pytest.raises(UsageError, match="its heat"):
        overlay.blend(image, heat, Limits(0, 1))
    with pytest.raises(UsageError, match="alpha"):
        Look(alpha=1.5)
    with pytest.raises(UsageError, match="blend is"):
        Look(blend="multiply")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pane width"):
        Look(pane_width=9)
    with pytest.raises(UsageError, match="font"):
        Look(font="no/such.ttf")


# --- text ---

TEXTS = ["plain", "ünïcode ß", "置く 蓝", "куб", "😀☃", "a\nb\tc\0d", "\ud800 lone", "עברית", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_written(text: str) -> None:
    canvas = np.zeros((60, 400, 3), np.uint8)
    written = label.write(canvas, text, 5, 30, size=24, color=(255, 255, 255), room=380)
    assert "\n" not in written
    assert canvas.any() == bool(text)
    assert not canvas[:, 390:].any()


def test_a_character_without_a_glyph_is_spelled_and_not_a_question_mark() -> None:
    canvas, plain = np.zeros((2, 40, 600, 3), np.uint8)
    written = label.write(canvas, "pick \U0001f34e\ufe0f?", 5, 20, size=24, color=(255, 255, 255))
    assert written == "pick U+1F34E ?"
    label.write(plain, "pick U+1F34E ?", 5, 20, size=24, color=(255, 255, 255))
    np.testing.assert_array_equal(canvas, plain)
    assert label.fit("漢\U0001f34e", 500, 24)[0].endswith("U+1F34E")
    if label._opencv_face() is not None:  # OpenCV 5
        assert label.spelled("куб 漢字 한글 →") == "куб 漢字 한글 →"


@pytest.mark.parametrize("height", [4, 12, 20, 24, 35, 59, 200])
def test_the_numbers_of_a_colour_bar_are_apart_from_each_other(height: int) -> None:
    panel, _ = panel_of([(180, 320)], Look(pane_width=640))
    box = Box(20, 40, 10, height)
    canvas = np.zeros((300, 200, 3), np.uint8)
    texts = panel.sheet.draw_numbers(canvas, box, Limits(0, 0.12))
    lit = canvas[:, 36:].any(axis=(1, 2))
    rows = np.flatnonzero(np.diff(np.r_[0, lit.astype(int), 0]) == 1)
    assert len(rows) == len(texts), "each is on rows of its own"
    assert texts == (
        ["0-0.12"] if height < 46 else ["0.12", "0"] if height < 69 else ["0.12", "0.06", "0"]
    )


def test_the_width_is_that_of_every_image() -> None:
    for sizes in SIZES.values():
        assert all(b.overlay.width == 320 for b in arrange(sizes, 320).blocks)
    (narrow,) = arrange([(4000, 100)], 320).blocks
    assert narrow.overlay.height == 640


def test_text_stays_on_the_canvas() -> None:
    canvas = np.zeros((20, 40, 3), np.uint8)
    for x, y in ((-30, 10), (30, 10), (5, -5), (5, 25), (500, 500)):
        label.write(canvas, "far too long for it", x, y, size=20, color=(9, 9, 9))
    assert canvas.shape == (20, 40, 3)


def test_long_text_shrinks_then_is_cut() -> None:
    text = "place the red cube into the bowl"
    full = label.width(text, 30)
    assert label.fit(text, full, 30) == (text, 30)
    shrunk, size = label.fit(text, full - 40, 30)
    assert shrunk == text
    assert 12 <= size < 30
    cut, size = label.fit(text, 100, 30)
    assert cut.endswith("…")
    assert size == 12
    assert label.width(cut, size) <= 100
    assert label.fit(text, 1, 30)[0] == ""
    # an untrusted instruction of a gigabyte is not measured
    assert len(label.printable("x" * 10_000_000)) == label.LONGEST


def test_anchors() -> None:
    for anchor, side in (("left", slice(50, None)), ("right", slice(None, 50))):
        canvas = np.zeros((40, 100, 3), np.uint8)
        label.write(canvas, "Hi", 50, 20, size=20, color=(255, 0, 0), anchor=anchor)  # type: ignore[arg-type]
        lit = np.asarray(canvas[..., 0].any(axis=0))
        assert lit.any()
        assert lit[side].sum() == lit.sum()
        assert not canvas[..., 1:].any()


def test_a_bad_font_is_named(tmp_path: Path) -> None:
    font = tmp_path / "not.ttf"
    font.write_bytes(b"no font")
    with pytest.raises(NotFoundError, match=r"not\.ttf is not a font file"):
        label.write(
            np.zeros((9, 9, 3), np.uint8), "x", 0, 4, size=9, color=(1, 1, 1), font=str(font)
        )


# --- layout ---


def boxes(layout: Layout) -> list[Box]:
    return [layout.title] + [
        box
        for b in layout.blocks
        for box in (b.original, b.overlay, b.bar, b.original_label, b.overlay_label)
    ]


@pytest.mark.parametrize("lines", [None, 1, 2])
@pytest.mark.parametrize("pane_width", [64, 320, 640, 1280])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_boxes_are_apart_and_on_the_canvas(
    sizes: list[tuple[int, int]], pane_width: int, lines: int | None
) -> None:
    layout = arrange(sizes, pane_width, lines)
    assert layout.width % 2 == layout.height % 2 == 0
    taken = np.zeros((layout.height, layout.width), int)
    for box in boxes(layout):
        assert min(box) >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
        taken[box.slices] += 1
    assert taken.max() == 1
    for block, (height, width) in zip(layout.blocks, sizes, strict=True):
        assert block.original[2:] == block.overlay[2:]
        assert block.overlay.width <= pane_width
        ratio = block.overlay.width / block.overlay.height
        assert ratio == pytest.approx(width / height, rel=0.06)


def test_two_cameras_have_their_overlays_in_one_column() -> None:
    for lines in (1, 2):
        first, second = arrange([(720, 1280)] * 2, 640, lines).blocks
        assert first.original.y == first.overlay.y
        assert first.overlay.x == second.overlay.x


# --- the picture ---


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_planted_patch_is_in_the_overlay_pane_at_its_place(sizes: list[tuple[int, int]]) -> None:
    panel, images = panel_of(sizes, Look(interpolation="nearest", pane_width=320))
    base = panel.base("instruction", "detail", images, "frame 0")
    dark = {c: Pane(np.zeros((4, 4)), Limits(0, 1), "L00 H00") for c in images}
    for camera, geo in panel.geometries.items():
        box = panel.blocks[camera].overlay
        row, col = 1, 2 if geo.coverage()[1, 2] > 0 else 0
        planted = np.zeros((4, 4))
        planted[row, col] = 1
        lit = {**dark, camera: Pane(planted, Limits(0, 1), "L00 H00")}
        differs = panel.compose(base, lit).pixels != panel.compose(base, dark).pixels
        # the resize rule again, from the pane's own pixels
        height, width = geo.source
        side = max(height, width)
        y = (np.arange(box.height) + 0.5) * height / box.height
        x = (np.arange(box.width) + 0.5) * width / box.width
        rows = np.floor(y * (int(height * 56 / side) / height) / 14) == row
        cols = np.floor(x * (int(width * 56 / side) / width) / 14) == col
        expected = np.zeros(differs.shape[:2], bool)
        expected[box.slices] = np.outer(rows, cols)
        np.testing.assert_array_equal(differs.any(-1), expected)


def test_letterbox_heat_changes_no_pixel() -> None:
    panel, images = panel_of(SIZES["two"], Look())
    base = panel.base("instruction", "detail", images, "frame 0")
    padding = np.where(panel.geometries["camera_0"].coverage() > 0, 0.0, 1e9)
    pictures = [
        panel.compose(base, {c: Pane(m, Limits(0, 1), "L00 H00") for c in images})
        for m in (np.zeros((4, 4)), padding)
    ]
    np.testing.assert_array_equal(pictures[0].pixels, pictures[1].pixels)


def test_texts_and_originals() -> None:
    panel, images = panel_of([(360, 640), (360, 640)], Look())
    base = panel.base("stack the cups", "success", images, "frame 32, keyframe 5/23")
    notes = ["31 % of attention on this image, 12 % on its padding"]
    panes = {c: Pane(np.eye(4), Limits(0, 0.125), "L05 H03", notes) for c in images}
    picture = panel.compose(base, panes)
    for text in ("stack the cups", "success", "camera_1", "frame 32, keyframe 5/23", "L05 H03",
                 *notes, "0.12", "0.062", "0"):  # fmt: skip
        assert text in picture.texts
    silent = panel.compose(base, {c: Pane(np.eye(4), Limits(0, 0.125), "") for c in images})
    differs = (picture.pixels != silent.pixels).any(-1)
    for camera, block in panel.blocks.items():
        assert differs[block.overlay_label.slices].any()
        differs[block.overlay_label.slices] = False
        np.testing.assert_array_equal(picture.pixels[block.original.slices], images[camera])
    assert not differs.any()
    # composing changes nothing that the next picture needs
    np.testing.assert_array_equal(picture.pixels, panel.compose(base, panes).pixels)


def test_everything_said_is_whole_at_the_usual_size() -> None:
    """Nothing of a two-camera picture may be cut short, sink-corrected or not."""
    two = {c: geometry((720, 1280)) for c in ("hand_camera", "varied_camera_1")}
    images = {c: photo((720, 1280)) for c in two}
    notes = ["100 % of attention on this image, 100 % on its padding"]
    for said, lines in ((notes, None), ([*notes, "sink-corrected, 100 % removed"], 2)):
        panel = Panel(two, Look(), lines)
        place = "frame 10000, keyframe 1250/1250"
        base = panel.base("place the red cube into the purple bowl", "", images, place)
        panes = {c: Pane(np.eye(4), Limits(0, 1e-5), "L17 H15, most active", said) for c in two}
        assert not [t for t in panel.compose(base, panes).texts if t.endswith("…")]


@pytest.mark.parametrize("title", TEXTS)
def test_any_instruction_can_be_a_title(title: str) -> None:
    panel, images = panel_of(SIZES["three"], Look(pane_width=96))
    base = panel.base(title, title, images, title)
    panes = {c: Pane(np.eye(4), Limits(0, 1), title, [title]) for c in images}
    picture = panel.compose(base, panes)
    assert picture.pixels.shape == (panel.layout.height, panel.layout.width, 3)


def test_an_absent_camera_says_so() -> None:
    panel, images = panel_of(SIZES["one"], Look(pane_width=640))
    base = panel.base("i", "d", images, "frame 0")
    nothing = Pane(np.full((4, 4), np.nan), data_limits(np.array([np.nan])), "L00 H00", ["3 %"])
    assert "no attention stored" in panel.compose(base, {"camera_0": nothing}).texts


def test_a_wrong_image_size_is_named() -> None:
    panel, _ = panel_of(SIZES["one"], Look())
    with pytest.raises(UsageError, match="camera_0: image is 10x20 pixels, its geometry 320x180"):
        panel.base("i", "d", {"camera_0": photo((20, 10))}, "frame 0")
    with pytest.raises(UsageError, match="at least one camera"):
        Panel({})


# --- image files ---


@pytest.mark.parametrize(
    ("name", "error"), [("a.png", 0), ("a.jpg", 3), ("a.webp", 4), ("a.jpeg", 3)]
)
def test_image_files(tmp_path: Path, name: str, error: float) -> None:
    image = np.full((40, 60, 3), (200, 40, 90), np.uint8)
    path = image_file.write(tmp_path / "new" / name, image, 95)
    assert [p.name for p in path.parent.iterdir()] == [name]
    back = image_file.decode(path.read_bytes(), "episode", "picture")
    assert np.abs(back.astype(int) - image).mean() <= error


def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def interrupted() -> None:
        with image_file.complete(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_image_refusals(tmp_path: Path) -> None:
    image = photo((4, 4))
    with pytest.raises(UsageError, match="format is one of jpg, png, webp; got 'gif'"):
        image_file.write(tmp_path / "a.gif", image)
    with pytest.raises(UsageError, match="between 1 and 100"):
        image_file.write(tmp_path / "a.jpg", image, 0)
    whole = image_file.encode(photo((64, 64)), "png")
    for broken in (b"", b"no image", whole[:40]):
        with pytest.raises(EpisodeError, match="episode e: hand at keyframe 3 is not a readable"):
            image_file.decode(broken, "e", "hand at keyframe 3")
    assert list(tmp_path.iterdir()) == []
