"""Which pairs are trained on, which are evaluated, and what is said about it."""

from __future__ import annotations

import shutil

import pytest

from p2p_jax.data import SOURCES, DataError
from p2p_jax.data.splits import seeded_split
from tests.data.making import halves, noise, options, quiet, save, sets

FOLDER = SOURCES["folder"]


@pytest.fixture
def folder(tmp_path):
    halves(tmp_path / "data", 12, 4)
    return tmp_path / "data"


def test_a_missing_evaluation_split_is_held_out_and_told(folder, tmp_path):
    shutil.rmtree(folder / "val")
    where = options("folder", folder, tmp_path / "c")
    train, held, notes = FOLDER.open(where, quiet)
    assert sorted([*train.names, *held.names]) == sorted(f"p{i}" for i in range(12))
    assert notes == (
        f"there is no split 'val': of 12 pairs {len(held)} are held out for evaluation and "
        f"{len(train)} are trained on (data.split_seed=0).",
    )
    assert len(sets(tmp_path / "c")) == 1 and train.fingerprint != held.fingerprint
    for source in (train, held):
        for i, name in enumerate(source.names):
            assert (source[i].source == noise(int(name[1:]))[:, :8]).all()
    other = FOLDER.open(options("folder", folder, tmp_path / "c", split_seed=3), quiet)
    assert other.eval.names != held.names


def test_no_evaluation_split_asked_for_holds_out_too(folder, tmp_path):
    _, held, notes = FOLDER.open(options("folder", folder, tmp_path / "c", eval_split=""), quiet)
    assert len(held) >= 1 and notes[0].startswith("data.eval_split is empty: of 12 pairs")


def test_the_training_split_may_be_evaluated(folder, tmp_path):
    where = options("folder", folder, tmp_path / "c", eval_split="train", eval_examples=5)
    train, held, _ = FOLDER.open(where, quiet)
    assert held.names == train.names[:5] and len(sets(tmp_path / "c")) == 1


def test_the_held_out_pairs_stay_when_files_are_added():
    names = [f"image{i}" for i in range(300)]
    train, held = seeded_split(names, 0)
    assert sorted(train + held) == list(range(300)) and 15 <= len(held) <= 50
    more = sorted([*names, *(f"another{i}" for i in range(100))])
    _, more_held = seeded_split(more, 0)
    assert {names[i] for i in held} == {more[i] for i in more_held} & set(names)
    assert seeded_split(names, 1)[1] != held


@pytest.mark.parametrize("seed", range(8))
def test_both_sides_of_a_small_split_have_one(seed):
    for count in (2, 3, 5):
        train, held = seeded_split([f"n{i}" for i in range(count)], seed)
        assert train and held
    with pytest.raises(DataError, match="at least 2"):
        seeded_split(["one"], seed)


def test_the_split_does_not_move():
    """Golden: another version of this function would train on what was evaluated."""
    names = [f"image{i}" for i in range(60)]
    assert seeded_split(names, 7)[1] == GOLDEN


GOLDEN = [4, 26, 31, 34, 46, 57]


# --- broken files --------------------------------------------------------------------------------


def test_broken_files_are_replaced_in_training_and_left_out_of_evaluation(folder, tmp_path):
    (folder / "train/p1.BMP").write_bytes(b"BM")
    (folder / "train/p3.png").write_bytes(b"")
    (folder / "val/p0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert [p.split(" ")[0] for p in caught.value.problems] == ["train[1]", "train[5]", "val[0]"]
    lines = []
    where = options("folder", folder, tmp_path / "c", on_error="substitute")
    train, held, notes = FOLDER.open(where, lines.append)
    assert len(train) == 12 and held.names == ("p1", "p2", "p3")
    assert notes[0].startswith(
        "train: 2 of 12 cannot be used, another pair is trained on for each:"
    )
    assert notes[1].startswith("val: 1 of 4 cannot be used, they are left out of evaluation:")
    assert "p1.BMP: broken" in notes[0] and "p0.png: broken" in notes[1]
    assert train.names[5] == "p3"
    good = {noise(i).tobytes() for i in range(12)} - {noise(1).tobytes(), noise(3).tobytes()}
    for i, name in enumerate(train.names):
        pair = train[i]
        whole = [n for n in range(12) if (noise(n)[:, :8] == pair.source).all()]
        assert len(whole) == 1 and noise(whole[0]).tobytes() in good
        assert (noise(whole[0])[:, 8:] == pair.target).all()
        assert name in ("p1", "p3") or whole == [int(name[1:])]
    told = [line for line in lines if line.startswith("substituted:")]
    assert len(told) == 2 and "train[1] p1" in told[0]


def test_a_held_out_pair_that_is_broken_is_not_evaluated(folder, tmp_path):
    shutil.rmtree(folder / "val")
    where = options("folder", folder, tmp_path / "c", on_error="substitute", split_seed=1)
    names = FOLDER.open(where, quiet).eval.names
    assert len(names) >= 1
    victim = next((folder / "train").glob(f"{names[0]}.*"))
    victim.write_bytes(b"")
    if len(names) == 1:
        with pytest.raises(DataError, match="no sound pair is left"):
            FOLDER.open(where, quiet)
    else:
        assert FOLDER.open(where, quiet).eval.names == names[1:]


def test_a_split_without_a_sound_image_is_refused_with_the_reasons(folder, tmp_path):
    for path in (folder / "val").iterdir():
        path.write_bytes(b"")
    where = options("folder", folder, tmp_path / "c", on_error="substitute")
    with pytest.raises(DataError) as caught:
        FOLDER.open(where, quiet)
    assert [p.split(" ")[0] for p in caught.value.problems] == [f"val[{i}]" for i in range(4)]


def test_only_broken_pairs_within_the_cap_are_refused(folder, tmp_path):
    for i in (0, 1):
        next((folder / "train").glob(f"p{i}.*")).write_bytes(b"")
    where = options("folder", folder, tmp_path / "c", on_error="substitute", max_examples=1)
    with pytest.raises(DataError, match="no sound pair is left"):
        FOLDER.open(where, quiet)


def test_a_damaged_copy_is_told_while_training(folder, tmp_path):
    where = options("folder", folder, tmp_path / "c", on_error="substitute")
    FOLDER.open(where, quiet)
    lines = []
    train = FOLDER.open(where, lines.append).train
    for path in (tmp_path / "c").glob("pairs-*/*train*.array_record*"):
        data = bytearray(path.read_bytes())
        at = data.find(b"p3")
        data[at] ^= 1
        path.write_bytes(data)
    for i in range(12):
        train[i]
    assert any("substituted: train[5] p3: the prepared copy" in line for line in lines)


def test_real_names_with_surprises(tmp_path):
    save(tmp_path / "d/all/a.b'\" é.png", noise(0))
    save(tmp_path / "d/a-b/x y.png", noise(1))
    where = options("folder", tmp_path / "d", tmp_path / "c", train_split="all", eval_split="a-b")
    train, held, _ = FOLDER.open(where, quiet)
    assert train.names == ("a.b'\" é",) and held.names == ("x y",)
    assert (train[0].source == noise(0)[:, :8]).all() and (held[0].source == noise(1)[:, :8]).all()
