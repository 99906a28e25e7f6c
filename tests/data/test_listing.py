"""Which files make a pair, by their names alone."""

from __future__ import annotations

import json
import os

import pytest

from p2p_jax.data import files, listing
from p2p_jax.data.listing import images_in, manifest, singles, trees


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_images_are_told_from_other_files_by_their_suffix(tmp_path):
    touch(tmp_path, "b.JPG", "a b'\"é.png", "notes.txt", ".hidden.png", "below/c.npy", "x.tar.gz")
    touch(tmp_path, ".git/d.png", "below/deeper/e.webp", "below/f.md")
    assert images_in(tmp_path) == (["a b'\"é.png", "b.JPG"], ["notes.txt", "x.tar.gz"])
    images, others = images_in(tmp_path, deep=True)
    assert images == ["a b'\"é.png", "b.JPG", "below/c.npy", "below/deeper/e.webp"]
    assert others == ["below/f.md", "notes.txt", "x.tar.gz"]


def test_links_that_lead_back_are_not_followed(tmp_path):
    touch(tmp_path, "top/a.png", "elsewhere/b.png")
    (tmp_path / "top/loop").symlink_to(tmp_path / "top")
    (tmp_path / "top/self").symlink_to("self")
    (tmp_path / "top/there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "top")
    images, others = images_in(tmp_path / "top", deep=True)
    assert images == ["a.png", "there/b.png"]
    assert others == ["loop", "self", "there/back"]


def test_names_that_differ_in_suffix_only_are_a_problem(tmp_path):
    touch(tmp_path, "a.png", "a.jpg", "a.JPG", "b.png", "c.tar.png")
    found = singles(tmp_path, "train", deep=False)
    assert [item.name for item in found.items] == ["a", "b", "c.tar"]
    (problem,) = found.problems
    assert problem.startswith("train: a.JPG and a.jpg and a.png in ") and "rename" in problem


def test_trees_pair_equal_names_whatever_their_suffixes(tmp_path):
    touch(tmp_path, "A/1.png", "A/deep/2.jpg", "B/1.JPEG", "B/deep/2.npy", "B/x.txt")
    found = trees(tmp_path / "A", tmp_path / "B", "train")
    assert [item.name for item in found.items] == ["1", "deep/2"]
    assert found.items[1].files == (tmp_path / "A/deep/2.jpg", tmp_path / "B/deep/2.npy")
    assert found.problems == [] and found.others == ["B/x.txt"]


def test_all_that_is_wrong_with_trees_is_told_at_once(tmp_path):
    touch(tmp_path, "A/1.png", *(f"A/alone{i}.png" for i in range(58)), "B/1.png", "B/2.png")
    touch(tmp_path, "B/1.bmp")
    found = trees(tmp_path / "A", tmp_path / "B", "val")
    text = "\n".join(found.problems)
    assert len(found.problems) == 3
    assert "val: 58 of 59 images in" in text and " and 8 more; add" in text
    assert "1 of 2 images in" in text and "2.png; add the partners" in text
    assert "1.bmp and 1.png" in text


def test_names_that_are_no_text_are_refused_and_can_be_printed(tmp_path):
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/caf\xe9.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system refuses such names")
    (problem,) = singles(tmp_path, "train", deep=False).problems
    assert problem.encode("utf-8") and "1 names are not UTF-8: caf\\udce9.png" in problem


def test_a_large_folder_takes_no_longer_than_it_must(monkeypatch):
    """Any step that grows with the square of 50,000 names would take minutes."""
    names = [f"n{i:06d}.png" for i in range(50_000)]
    monkeypatch.setattr(listing, "entries", lambda folder: [(name, False) for name in names])
    found = trees(files.at("/x/A"), files.at("/x/B"), "train")
    assert len(found.items) == 50_000 and found.problems == []


# --- manifests -----------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    return touch(tmp_path, "a/1.png", "a/2.png", "b/1.jpg", "b/2.jpg", "odd, name.png")


def written(root, text, name="list.csv"):
    path = root / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_manifest_in_csv(images):
    text = (
        "\ufeffSource, Target ,split,name\r\n"
        "a/2.png,b/2.jpg,,\r\n"
        f"{images}/a/1.png,b/1.jpg,train,first\r\n"
        '"odd, name.png",b/1.jpg,a-b,\r\n'
    )
    splits, problems = manifest(written(images, text))
    assert problems == []
    assert [(i.name, i.files) for i in splits["train"]] == [
        ("a/2", (images / "a/2.png", images / "b/2.jpg")),
        ("first", (images / "a/1.png", images / "b/1.jpg")),
    ]
    assert [i.name for i in splits["a-b"]] == ["odd, name"] and set(splits) == {"train", "a-b"}


def test_a_manifest_in_json_lines(images):
    rows = [
        {"a": "a/1.png", "b": "b/1.jpg", "split": "val"},
        {"input": "./a/2.png", "output": "../" + images.name + "/b/2.jpg", "more": [1]},
    ]
    text = "\r\n".join(map(json.dumps, rows)) + "\n\n"
    splits, problems = manifest(written(images, "\ufeff" + text, "list.jsonl"))
    assert problems == []
    assert splits["val"][0].name == "a/1" and splits["train"][0].name == "a/2"
    assert splits["train"][0].files[1].samefile(images / "b/2.jpg")


@pytest.mark.parametrize(
    "text,wanted",
    [
        ("x,y\na/1.png,b/1.jpg\n", r"line 1: needs a file in one column 'a' .*there are x, y"),
        ("a/1.png,b/1.jpg\n", r"line 1: needs a file in one column 'a'"),
        ("a,b\na/1.png\n", r"line 2: needs 2 columns"),
        ("a,b\na/1.png,b/1.jpg,c\n", r"line 2: needs 2 columns"),
        ("a,b\na/1.png,\n", r"line 2: needs a file in one column 'b'"),
        ("a,source,b\na/1.png,a/2.png,b/1.jpg\n", r"line 1: needs a file in one column 'a'"),
        ("a,b\na/1.png,b/9.jpg\n", r"line 2: .*b/9.jpg does not exist"),
        ("a,b\na/1.png,b\n", r"line 2: 'b' is no image"),
        ("a,b\na/1.png,~nobody-here/b.png\n", r"line 2: cannot be looked at"),
        ("a,b,name\na/1.png,b/1.jpg,../x\n", r"line 2: name '../x' is not a relative path"),
        ("a,b,name\na/1.png,b/1.jpg,/x\n", r"line 2: name '/x' is not a relative path"),
        ("a,b,name\na/1.png,b/1.jpg,n\na/2.png,b/2.jpg,./n\n", r"line 3: .*named 'n' .*line 2"),
        ('a,b\n"a/1.png,b/1.jpg\n', r"is not CSV"),
        (b"a,b\n\xff.png,b/1.jpg\n", r"cannot be read as text"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named_by_its_line(images, text, wanted):
    _, problems = manifest(written(images, text))
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=wanted):
        raise AssertionError(problems[0])


def test_all_wrong_lines_are_told(images):
    lines = ["{", "[1]", '{"a": 1, "b": "b/1.jpg"}', '{"a": "a/1.png", "b": "b/1.jpg", "split": 3}',
             '{"a": "\\ud800.png", "b": "b/1.jpg"}', "1", '{"a": "a/1.png", "b": "b/1.jpg"}',
             "[" * 100_000]  # fmt: skip
    splits, problems = manifest(written(images, "\n".join(lines), "x.JSONL"))
    assert [p.split("line ")[1][0] for p in problems] == list("1234568")
    assert len(splits["train"]) == 1
    assert all(p.encode() for p in problems)
