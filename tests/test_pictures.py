"""What is written reads back as it was; files that cannot hold an image are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data.decoding import decode, examine
from p2p_jax.pictures import as_shown, save

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")


def noise(channels: int, dtype: str, shape=(11, 18)) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 65536, (*shape, channels))
    return ((values - 30000) / 7 if dtype == "float32" else values).astype(dtype)


KINDS = [(".png", c, d) for c in (1, 2, 3, 4) for d in ("uint8", "uint16")]
KINDS += [(s, c, d) for s in (".tiff", ".npy") for c in (1, 2, 3, 4, 5, 13)
          for d in ("uint8", "uint16", "float32")]  # fmt: skip


@pytest.mark.parametrize("suffix,channels,dtype", KINDS)
def test_what_is_written_reads_back(suffix, channels, dtype, tmp_path):
    for shape in ((11, 18), (1, 6), (6, 1), (1, 1), (3, 4)):
        image = noise(channels, dtype, shape)
        path = tmp_path / "deep" / f"picture{suffix}"
        save(path, image)
        back = decode(path.read_bytes())
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, image)
        assert "." + examine(path.read_bytes()).format == suffix
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
def test_views_are_written_as_they_look(suffix, tmp_path):
    image = noise(3, "uint16")
    for view in (image[::-1, ::2], image.swapaxes(0, 1), image[..., ::-1], image[..., 1:2]):
        save(tmp_path / f"a{suffix}", view)
        np.testing.assert_array_equal(decode((tmp_path / f"a{suffix}").read_bytes()), view)


def test_other_readers_see_the_same(tmp_path):
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        save(tmp_path / "a.png", noise(channels, "uint8"))
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(
                np.asarray(image).reshape(11, 18, -1), noise(channels, "uint8")
            )
        save(tmp_path / "b.png", noise(channels, "uint16"))
        data = (tmp_path / "b.png").read_bytes()
        assert data[24] == 16 and data[25] == {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        save(tmp_path / "c.npy", noise(channels, "float32"))
        np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), noise(channels, "float32"))
    for channels in (1, 2, 3, 4, 9):
        for dtype in ("uint8", "uint16", "float32"):
            save(tmp_path / "d.tiff", noise(channels, dtype))
            read = tifffile.imread(tmp_path / "d.tiff")
            assert read.shape == ((11, 18) if channels == 1 else (11, 18, channels))
            np.testing.assert_array_equal(read.reshape(11, 18, -1), noise(channels, dtype))
    save(tmp_path / "e.tiff", noise(3, "uint8"))
    with Image.open(tmp_path / "e.tiff") as image:
        np.testing.assert_array_equal(np.asarray(image), noise(3, "uint8"))


def test_tiffs_are_compressed_and_equal_each_time(tmp_path):
    image = np.zeros((200, 200, 5), np.float32)
    for name in ("a.tiff", "b.tiff"):
        save(tmp_path / name, image)
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()
    assert (tmp_path / "a.tiff").stat().st_size < image.nbytes / 50


@pytest.mark.parametrize("name,image,reason", [
    ("a.png", noise(3, "float32"), "a.png: a .png holds 1 to 4 channels of uint8 or uint16, not 3 "
                                   "of float32; .tiff and .npy do"),
    ("a.png", noise(5, "uint8"), "not 5 of uint8"),
    ("a.jpg", noise(3, "uint8"), "a.jpg: images are written as .png, .tiff, .npy"),
    ("a", noise(3, "uint8"), "a: images are written as"),
    ("a.npy", noise(3, "uint8").astype(np.int64), r"\[11, 18, 3\] int64 is no image"),
    ("a.npy", noise(3, "uint8")[..., 0], r"\[11, 18\] uint8 is no image; one is \[h, w, c\]"),
    ("a.tiff", noise(3, "uint8")[:0], r"\[0, 18, 3\] uint8 is no image"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(name, image, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        save(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
def test_a_failed_write_leaves_the_old_picture(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    save(path, noise(3, "uint8"))
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no more room"):
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no more room")))
        save(path, noise(3, "uint8") // 2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    save(path, noise(3, "uint8") // 2)
    assert path.read_bytes() != before


def test_as_shown():
    for channels, kept in ((1, 1), (2, 1), (3, 3), (4, 3), (9, 3)):
        image = noise(channels, "uint8")
        np.testing.assert_array_equal(as_shown(image), image[..., :kept])
        assert as_shown(image[None]).shape == (1, 11, 18, kept)
