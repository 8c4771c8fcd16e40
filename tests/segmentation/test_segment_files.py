"""Files in, masks out: every format, every defect, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latewood.cli import main
from latewood.errors import RequestError, WorkError
from latewood.segmentation import Segmentation, segment
from latewood.segmentation import image_files as files_module
from latewood.segmentation.contact_sheet import render_sheet
from latewood.segmentation.image_files import find_images, read_image, read_mask
from latewood.segmentation.segment_files import Done, _grown, overlay, segment_files

Blob = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def array(blob: Blob) -> np.ndarray:
    return (blob(40, 56)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["segment", *map(str, words)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "webp", "tga"])
def test_formats(array: np.ndarray, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    Image.fromarray(array).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(read_image(path), array)


def test_modes(array: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(array)
    expected = segment(array, preset="robust").mask
    for mode in ("RGBA", "CMYK", "P", "YCbCr"):
        path = tmp_path / f"{mode}.tif"
        image.convert(mode).save(path if mode != "P" else path.with_suffix(".png"))
        values = read_image(path if mode != "P" else path.with_suffix(".png"))
        assert values.shape[:2] == (40, 56) and values.dtype == np.uint8
        if mode != "P":
            found = segment(values, preset="robust").mask
            assert (found != expected).double().mean() < 0.01
    grey = image.convert("L")
    grey.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    deep = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), deep)
    assert torch.equal(segment(tmp_path / "deep.png").mask, segment(np.asarray(grey)).mask)


def test_pictures_are_turned_as_the_camera_was(array: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(array, -1))


def test_of_an_animation_the_first_frame_is_taken(array: np.ndarray, tmp_path: Path) -> None:
    first, second = Image.fromarray(array), Image.fromarray(255 - array)
    path = tmp_path / "moving.webp"
    first.save(path, save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(read_image(path), array)


def test_transparency_is_kept_for_the_white_ground(array: np.ndarray, tmp_path: Path) -> None:
    alpha = np.full((40, 56, 1), 255, np.uint8)
    alpha[:, :10] = 0
    path = tmp_path / "clear.png"
    Image.fromarray(np.concatenate([array, alpha], axis=2)).save(path)
    on_white = array.copy()
    on_white[:, :10] = 255
    assert torch.equal(segment(path).mask, segment(on_white).mask)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify"),
        (b"text", "cannot identify"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read as an image"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(WorkError, match=message) as error:
        read_image(path)
    assert str(error.value).count("broken.png") <= 2 and str(path) in str(error.value)


def test_torn_files(array: np.ndarray, tmp_path: Path) -> None:
    for ending in ("png", "jpg", "tif"):
        path = tmp_path / f"torn.{ending}"
        Image.fromarray(array).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(WorkError, match=f"torn.{ending}"):
            read_image(path)


def test_bombs_are_refused_before_they_are_decoded(
    array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).save(path)
    monkeypatch.setattr(files_module, "LARGEST", 8_999_999)
    with pytest.raises(WorkError, match="3000 x 3000 pixels are too many"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(WorkError, match="cannot be read"):
        read_image(path)


def test_values_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(WorkError, match="floating-point"):
        read_image(tmp_path / "float.tif")
    Image.fromarray(np.full((9, 9), 10**6, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(WorkError, match="32 bits"):
        read_image(tmp_path / "deep.tif")


def test_masks_are_read_at_half(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]]


def test_finding_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "inner.png").mkdir()
    found = find_images([tmp_path, tmp_path / "b.png", tmp_path / "notes.txt"])
    assert [path.name for path in found] == ["a.JPG", "b.png", "notes.txt"]
    with pytest.raises(RequestError, match="missing"):
        find_images([tmp_path / "missing"])
    with pytest.raises(RequestError, match="holds no images"):
        find_images([tmp_path / "inner.png"])
    with pytest.raises(RequestError, match="none given"):
        find_images([])


def test_what_is_passed_over_is_named(
    array: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "images" / "out"
    (images / "inner").mkdir(parents=True)
    Image.fromarray(array).save(images / "one.png")
    Image.fromarray(array).save(images / "noending", format="png")
    Image.fromarray(array).save(images / "inner" / "one.jpg")
    for name in ("photo.heic", "notes", ".hidden"):
        (images / name).write_bytes(b"nothing of an image")
    assert run(images, "--out", out, "--preset", "fast") == 0
    shown = capsys.readouterr().out
    assert "masks: 2" in shown
    names = [images / "inner", images / "notes", images / "photo.heic"]
    line = ", ".join(map(str, names))
    assert f"passed over: {line} (--recursive enters folders)" in shown
    assert "3 passed over" in (out / "index.html").read_text()
    # A second time the results lie in a folder inside: they are no images of anybody's.
    assert run(images, "--out", out, "--preset", "fast", "--recursive") == 0
    shown = capsys.readouterr().out
    assert "masks: 3" in shown and f"passed over: {names[1]}, {names[2]}" in shown
    with pytest.raises(RequestError, match=r"beside inner; .*--recursive"):
        only = tmp_path / "only"
        (only / "inner").mkdir(parents=True)
        find_images([only])


def test_the_outline_is_as_wide_as_a_square_window_makes_it() -> None:
    mask = torch.rand(60, 47, generator=torch.Generator().manual_seed(0)) > 0.97
    window = torch.nn.functional.max_pool2d(mask[None].float(), 7, 1, 3)[0] > 0
    assert torch.equal(_grown(mask, 3), window)


def test_a_folder_with_defects(
    array: np.ndarray, blob: Blob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    mask = blob(40, 56)[1].numpy()
    for name in ("one", "two"):
        Image.fromarray(array).save(images / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(images / f"{name}_mask.png")
    Image.fromarray(array).save(images / "one.jpg", quality=95)
    (images / "<b>broken.png").write_bytes(b"nothing")
    Image.fromarray(array).save(images / "alone.png")
    code = run(images, "--out", out, "--overlay", "--evaluate", images)
    shown = capsys.readouterr()
    assert code == 1
    assert len(shown.err.splitlines()) == 1
    assert "2 of 5 images failed" in shown.err
    assert "broken.png" in shown.err and "alone.png: has no true mask" in shown.err
    assert "masks: 3" in shown.out and "iou" in shown.out
    assert {path.name for path in out.iterdir()} == {
        *("one.png", "one-2.png", "two.png", "one-overlay.jpg", "one-2-overlay.jpg"),
        *("two-overlay.jpg", "segmentation.json", "index.html"),
    }
    expected = segment(array, preset="robust").mask.numpy()
    written = [out / "one.png", out / "one-2.png"]
    assert any(np.array_equal(np.asarray(Image.open(path)) == 255, expected) for path in written)
    records = json.loads((out / "segmentation.json").read_text())
    assert [set(record) == {"image", "error"} for record in records].count(True) == 2
    good = next(record for record in records if record.get("mask") == "two.png")
    assert good["agreement"]["iou"] > 0.9 and good["flags"] == []
    page = (out / "index.html").read_text()
    assert page.count("<figure>") == 3 and "2 failed" in page
    assert "&lt;b&gt;broken" in page and "<b>broken" not in page


def test_a_folder_without_defects(array: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "one.png")
    assert run(tmp_path / "one.png", "--out", tmp_path / "out", "--preset", "fast") == 0
    assert np.asarray(Image.open(tmp_path / "out" / "one.png")).shape == (40, 56)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png"),
        (["one.png", "--out", "."], "--out"),
        (["one.png", "--evaluate", "nowhere"], "--evaluate"),
        (["one.png", "--preset", "best"], "preset"),
        (["one.png", "--size", "2"], "size"),
        ([], "IMAGES"),
    ],
)
def test_wrong_requests(
    array: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    Image.fromarray(array).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png"]


def test_true_masks_of_another_size_are_named(array: np.ndarray, tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    Image.fromarray(array).save(images / "one.png")
    Image.fromarray(array[:20, :20, 0]).save(masks / "one.png")
    (done,) = segment_files([images], tmp_path / "out", segment, truth=masks)
    assert "20 x 20" in done.error and "56 x 40" in done.error
    assert not (tmp_path / "out" / "one.png").exists()


def test_an_image_too_large_for_the_memory_is_named(array: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "one.png")

    def greedy(image: Tensor) -> Segmentation:
        torch.empty(10**15)
        return segment(image)

    def wrong(image: Tensor) -> Segmentation:
        raise RuntimeError("a fault of the code")

    (done,) = segment_files([tmp_path], tmp_path / "out", greedy)
    assert done.error == f"{tmp_path / 'one.png'}: not enough memory"
    with pytest.raises(RuntimeError, match="fault"):
        segment_files([tmp_path], tmp_path / "out", wrong)


def test_true_masks_are_never_overwritten(array: np.ndarray, tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    Image.fromarray(array).save(images / "one.png")
    Image.fromarray(array[..., 0]).save(masks / "one.png")
    before = (masks / "one.png").read_bytes()
    with pytest.raises(RequestError, match="holds the true masks"):
        segment_files([images], images / ".." / "masks", segment, truth=masks)
    assert (masks / "one.png").read_bytes() == before


def test_the_overlay_darkens_the_background_and_draws_the_outline() -> None:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:15, 5:15] = True
    shown = overlay(torch.full((1, 20, 20), 0.8), mask)
    assert shown.shape == (20, 20, 3)
    assert shown[0, 0].tolist() == [71, 71, 71]
    assert shown[10, 10].tolist() == [204, 204, 204]
    assert shown[5, 10].tolist() == [255, 217, 26]


def test_the_page_counts_what_it_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"foreground": 0.5, "score": 1.0, "flags": ["constant"]}
    done = [Done(Path("a.png"), f"a{i}", record=record, preview=b"x") for i in range(3)]
    monkeypatch.setattr("latewood.segmentation.contact_sheet.LARGEST", 2)
    page = render_sheet(done)
    assert page.count("<figure>") == 2 and "1 more are in the folder" in page
    assert "constant" in page and "failed" not in page.split("</style>")[1]
