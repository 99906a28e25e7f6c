"""Every source that reads images: the right pixels on the right side."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import SOURCES, DataError
from tests.data.making import halves, noise, options, quiet, save, unused

WAYS = ("AtoB", "BtoA")


def opened(source, path, tmp_path, **changes):
    where = options(source, path, tmp_path / "c", **changes)
    assert SOURCES[source].check(where) == []
    return SOURCES[source].open(where, quiet)


def same(pairs, names, sources, targets):
    assert list(pairs.names) == names and len(pairs) == len(names)
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        pair = pairs[i]
        for got, want, form in zip(pair, (source, target), pairs.forms, strict=True):
            assert got.dtype == want.dtype == form.dtype and got.shape == want.shape
            assert (got == want).all() and got.shape[-1] == form.channels
        assert tuple(pairs.sizes[i]) == pair.source.shape[:2]
    assert pairs.sizes.dtype == np.int32 and pairs.sizes.shape == (len(names), 2)


@pytest.mark.parametrize("way", WAYS)
def test_halves(tmp_path, way):
    made = halves(tmp_path / "d")
    train, held, notes = opened("folder", tmp_path / "d", tmp_path, direction=way)
    for split, pairs in (("train", train), ("val", held)):
        sides = [x[:, :8] for x in made[split]], [x[:, 8:] for x in made[split]]
        same(
            pairs, [f"p{i}" for i in range(len(made[split]))], *sides[:: 1 if way == "AtoB" else -1]
        )
    assert notes == () and train.fingerprint != held.fingerprint


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["{side}/{split}", "{split}/{side}"])
def test_two_trees(tmp_path, layout, way):
    names = ["a b'\"é", "deep/er/x", "y"]
    made = {}
    for split in ("train", "val"):
        for k, side in enumerate("AB"):
            for i, name in enumerate(names):
                suffix = [("png", "npy"), ("bmp", "webp"), ("TIFF", "png")][i][k]
                path = tmp_path / "d" / layout.format(side=side, split=split) / f"{name}.{suffix}"
                if suffix == "TIFF":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(noise(i + 10 * k)).save(path)
                    made[split, side, i] = noise(i + 10 * k)
                else:
                    how = {"lossless": True, "exact": True} if suffix == "webp" else {}
                    made[split, side, i] = save(path, noise(i + 10 * k + (split == "val")), **how)
    for split, pairs in zip(("train", "val"), opened("paired_folders", tmp_path / "d", tmp_path,
                                                     direction=way)[:2], strict=True):  # fmt: skip
        sides = [[made[split, side, i] for i in range(3)] for side in "AB"]
        same(pairs, names, *sides[:: 1 if way == "AtoB" else -1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifests(tmp_path, kind, way):
    a = [save(tmp_path / f"in/{i}.png", noise(i)) for i in range(4)]
    b = [save(tmp_path / f"out/of/{i}.npy", noise(i + 10)) for i in range(4)]
    rows = [
        {"a": f"in/{i}.png", "b": f"{tmp_path}/out/of/{i}.npy",
         "split": "val" if i == 3 else "train", "name": f"pair {i}" if i % 2 else ""}
        for i in range(4)
    ]  # fmt: skip
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        path.write_text("a,b,split,name\n" + "\n".join(",".join(row.values()) for row in rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    train, held, _ = opened("manifest", path, tmp_path, direction=way)
    turn = slice(None, None, 1 if way == "AtoB" else -1)
    same(train, ["in/0", "in/2", "pair 1"], *([s[0], s[2], s[1]] for s in (a, b)[turn]))
    same(held, ["pair 3"], *([s[3]] for s in (a, b)[turn]))


def test_an_edited_manifest_is_noticed(tmp_path, monkeypatch):
    from p2p_jax.data import builders

    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    images = [save(tmp_path / f"{i}.png", noise(i)) for i in range(4)]
    path = tmp_path / "list.csv"
    for order in ("0123", "1032", "0123"):
        rows = [f"{order[i]}.png,{order[i + 1]}.png,{s}" for i, s in ((0, "train"), (2, "val"))]
        path.write_text("\n".join(["a,b,split", *rows]))
        train = opened("manifest", path, tmp_path)[0]
        assert (train[0].source == images[int(order[0])]).all()
        assert (train[0].target == images[int(order[1])]).all()


def test_splits_of_a_manifest_that_are_not_there(tmp_path):
    save(tmp_path / "a.png", noise(0))
    (tmp_path / "list.csv").write_text("a,b,split\na.png,a.png,x\n")
    where = options("manifest", tmp_path / "list.csv", tmp_path / "c", hold_out=False)
    problems = SOURCES["manifest"].check(where)
    assert [p.split(":")[0] for p in problems] == ["data.train_split", "eval.split"]
    assert all("there are x" in p for p in problems)
    with pytest.raises(DataError, match="is a folder; it must be a file"):
        SOURCES["manifest"].open(options("manifest", tmp_path, tmp_path / "c"), unused)
    many = "\n".join(["a,b", *["no.png,no.png"] * 500])
    (tmp_path / "list.csv").write_text(many)
    problems = SOURCES["manifest"].check(where)
    assert len(problems) == 21 and problems[-1].startswith("and 48")


@pytest.mark.parametrize("source,task", [("colorization", "colorize"), ("inpaint", "inpaint")])
def test_photos_alone_have_a_source_without_channels(tmp_path, source, task):
    made = [save(tmp_path / f"d/train/{n}.png", noise(i)) for i, n in enumerate(["a", "b/c"])]
    held = [save(tmp_path / "d/val/a.png", noise(9))]
    train, eval_, _ = opened(source, tmp_path / "d", tmp_path)
    same(train, ["a", "b/c"], [x[..., :0] for x in made], made)
    same(eval_, ["a"], [held[0][..., :0]], held)
    assert SOURCES[source].task == task


def test_single_images_have_no_targets(tmp_path):
    made = [save(tmp_path / f"d/{n}.png", noise(i)) for i, n in enumerate(["a", "b/c"])]
    for eval_split in ("val", "", "test"):
        _, pairs, notes = opened("single", tmp_path / "d", tmp_path, eval_split=eval_split)
        same(pairs, ["a", "b/c"], made, [x[..., :0] for x in made])
        assert "all 2 images there are taken, in these folders too: b." in notes[0]
    one = save(tmp_path / "d/test/x.png", noise(5))
    _, pairs, _ = opened("single", tmp_path / "d", tmp_path, eval_split="test", hold_out=False)
    same(pairs, ["x"], [one], [one[..., :0]])
    where = options("single", tmp_path / "d", tmp_path / "c", eval_split="no", hold_out=False)
    (problem,) = SOURCES["single"].check(where)
    assert "has no split 'no' (eval.split)" in problem
    (tmp_path / "d/a.png").write_bytes(b"x")
    where = options("single", tmp_path / "d", tmp_path / "c", eval_split="val")
    with pytest.raises(DataError, match=r"^val\[0\] .*a.png: broken or truncated"):
        SOURCES["single"].open(where, quiet)
    assert not SOURCES["single"].trains


# --- edges ---------------------------------------------------------------------------------------


def photo(seed, size=(24, 32)):
    """Something with edges: a few discs on a soft ground."""
    image = np.zeros((*size, 3), np.uint8)
    draw = np.random.default_rng(seed)
    for _ in range(6):
        colour = tuple(int(v) for v in draw.integers(0, 256, 3))
        cv2.circle(image, tuple(int(v) for v in draw.integers(0, 24, 2)), 6, colour, -1)
    return image


def drawn(image, low, high):
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[-1] == 3 else image[..., 0]
    soft = cv2.GaussianBlur(grey, (5, 5), 1.0)
    return 255 - cv2.Canny(soft, low, high, L2gradient=True)[..., None]


@pytest.mark.parametrize("way", WAYS)
def test_edges(tmp_path, way):
    made = [save(tmp_path / f"d/train/{i}.png", photo(i)) for i in range(5)]
    made.append(save(tmp_path / "d/train/x.png", photo(9)[..., :1]))
    save(tmp_path / "d/val/0.png", photo(7))
    names = [*map(str, range(5)), "x"]
    first = {}
    for thresholds in ((100, 200), (20, 50)):
        train, _, _ = opened("edges", tmp_path / "d", tmp_path, canny=thresholds, direction=way)
        lines = [drawn(image, *thresholds) for image in made]
        rgb = [np.broadcast_to(image, (24, 32, 3)) for image in made]
        same(train, names, *((lines, rgb) if way == "AtoB" else (rgb, lines)))
        first[thresholds] = train.fingerprint
    assert len(set(first.values())) == 2  # the edges are others, so the data are


def test_photos_that_have_no_edges_are_named(tmp_path):
    save(tmp_path / "d/train/a.npy", noise(0, dtype=np.uint16))
    save(tmp_path / "d/train/b.png", photo(1))
    save(tmp_path / "d/train/c.png", noise(1, 1, 1))
    save(tmp_path / "d/train/d.png", noise(1, channels=4))
    (tmp_path / "d/train/e.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError) as caught:
        SOURCES["edges"].open(
            options("edges", tmp_path / "d", tmp_path / "c", eval_split=""), quiet
        )
    assert [p.split("/")[-1][:6] for p in caught.value.problems] == ["a.npy:", "d.png:", "e.jpg:"]
    assert "edges are found in photos of 8 bits" in str(caught.value)


# --- labels --------------------------------------------------------------------------------------

PALETTE = ((0, 0, 0), (200, 30, 30), (0, 120, 255))


def classes(seed, size=(8, 8), count=3):
    return np.random.default_rng(seed).integers(0, count, (*size, 1)).astype(np.uint8)


def painted(indices):
    return np.array(PALETTE, np.uint8)[indices[..., 0]]


@pytest.mark.parametrize("way", WAYS)
def test_coloured_labels_in_halves(tmp_path, way):
    maps, photos = [classes(i) for i in range(3)], [noise(i, 8, 8) for i in range(3)]
    for i in range(3):
        whole = np.concatenate([photos[i], painted(maps[i])], 1)
        save(tmp_path / "d" / ("train" if i else "val") / f"{i}.png", whole)
    side = "target" if way == "AtoB" else "source"
    train, held, _ = opened("labels", tmp_path / "d", tmp_path, direction=way, labels=side,
                            palette=PALETTE)  # fmt: skip
    turn = slice(None, None, 1 if way == "AtoB" else -1)
    same(train, ["1", "2"], *(photos[1:], maps[1:])[turn])
    same(held, ["0"], *(photos[:1], maps[:1])[turn])


@pytest.mark.parametrize("kind", ["palette PNG", "index PNG", "colours", "JPEG", "npy16"])
def test_labels_in_trees(tmp_path, kind):
    maps = [classes(i, (16, 16)) for i in range(2)]
    extra = dict(palette=(), classes=3)
    for i, indices in enumerate(maps):
        path = tmp_path / "d/A/train" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "palette PNG":
            image = Image.fromarray(indices[..., 0])
            image.putpalette([9, 9, 9, 200, 0, 0, 1, 2, 3])
            assert image.mode == "P"
            image.save(path)
        elif kind == "index PNG":
            save(path, indices)
        elif kind == "npy16":
            np.save(path.with_suffix(".npy"), indices.astype(np.uint16))
        elif kind == "colours":
            save(path, painted(indices))
            extra = dict(palette=PALETTE)
        else:
            maps[i] = indices = np.kron(classes(i, (2, 2))[..., 0], np.ones((8, 8), np.uint8))[
                ..., None
            ]
            Image.fromarray(painted(indices)).save(
                path.with_suffix(".jpg"), quality=95, subsampling=0
            )
            extra = dict(palette=PALETTE, label_tolerance=60)
        save(tmp_path / "d/B/train" / f"{i}.png", noise(i, 16, 16))
    train, held, _ = opened("labels", tmp_path / "d", tmp_path, labels="source", **extra)
    for pairs in (train, held):
        i = int(pairs.names[0])
        same(pairs, [str(i)], [maps[i]], [noise(i, 16, 16)])


def test_labels_on_both_sides_and_of_single_images(tmp_path):
    maps = {side: [classes(i + k) for i in range(3)] for k, side in enumerate("AB")}
    for side in "AB":
        for i in range(3):
            save(tmp_path / f"d/train/{side}/{i}.png", maps[side][i])
    train, held, _ = opened("labels", tmp_path / "d", tmp_path, labels="both", classes=3)
    for pairs in (train, held):
        chosen = [int(name) for name in pairs.names]
        same(pairs, list(pairs.names), *([maps[side][i] for i in chosen] for side in "AB"))
    _, pairs, _ = opened("single", tmp_path / "d/train/A", tmp_path, labels="source", classes=3)
    same(pairs, ["0", "1", "2"], maps["A"], [np.zeros((8, 8, 0), np.uint8)] * 3)


def test_what_is_wrong_with_labels_is_told(tmp_path):
    halves(tmp_path / "d")
    check = SOURCES["labels"].check
    (problem,) = check(options("labels", tmp_path / "d", tmp_path / "c"))
    assert problem.startswith("data.palette: say which colours")
    (problem,) = check(
        options("labels", tmp_path / "d", tmp_path / "c", palette=PALETTE, classes=2)
    )
    assert problem.startswith("data.classes: 2 is not the 3 colours")
    assert len(check(options("labels", tmp_path / "e", tmp_path / "c"))) == 2
    where = options("labels", tmp_path / "d", tmp_path / "c", labels="target", palette=PALETTE)
    with pytest.raises(DataError) as caught:
        SOURCES["labels"].open(where, quiet)
    assert len(caught.value.problems) == 8  # each image once
    assert "train[0] " in str(caught.value) and "have the colour of no class" in str(caught.value)
    save(tmp_path / "t/A/trian/a.png", noise(0))
    save(tmp_path / "t/B/trian/a.png", noise(0))
    (problem,) = check(options("labels", tmp_path / "t", tmp_path / "c", classes=2))
    assert "PATH/A/SPLIT" in problem and "paired_folders" not in problem


def test_other_palettes_make_other_sets(tmp_path):
    for split in ("train", "val"):
        whole = np.concatenate([noise(0, 8, 8), painted(classes(0))], 1)
        save(tmp_path / "d" / split / "0.png", whole)
    prints = set()
    for palette in (PALETTE, PALETTE[::-1]):
        train, _, _ = opened("labels", tmp_path / "d", tmp_path, labels="target", palette=palette)
        prints.add(train.fingerprint)
        want = classes(0) if palette is PALETTE else 2 - classes(0)
        assert (train[0].target == want).all()
    assert len(prints) == 2


def test_every_source_has_a_line_in_both_tables():
    from p2p_jax.data.sources import GATHER

    assert set(SOURCES) - set(GATHER) == {"synthetic"}


def test_jpegs_are_read_as_by_pillow(tmp_path):
    """Turned upright by EXIF, odd sizes, grey among colour."""
    exif = Image.Exif()
    exif[0x0112] = 6
    want = []
    for i, mode in enumerate(["RGB", "L"]):
        image = Image.fromarray(noise(i, 16, 10)).convert(mode)
        (tmp_path / "d/train").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / f"d/train/{i}.jpg", exif=exif, quality=100, subsampling=0)
        with Image.open(tmp_path / f"d/train/{i}.jpg") as back:
            array = np.asarray(back.convert("RGB") if mode == "L" else back)
        want.append(np.rot90(array, -1))
    train, _, _ = opened("folder", tmp_path / "d", tmp_path, eval_split="train")
    same(train, ["0", "1"], [x[:, :8] for x in want], [x[:, 8:] for x in want])
