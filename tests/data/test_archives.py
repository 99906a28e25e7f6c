"""Archives as they come, and as an enemy or a bad line makes them."""

from __future__ import annotations

import gzip
import io
import random
import stat
import tarfile
import time
import tracemalloc
import zipfile

import pytest

from p2p_jax.data import archives, walk
from p2p_jax.data.pairs import DataError

FILES = {
    "facades/train/1.jpg": b"one" * 400,
    "facades/train/2.JPG": b"two" * 500,
    "facades/train/deep/3.png": b"three" * 10,
    "facades/val/1.jpg": b"four",
    "facades/test/1.npy": b"",
}
NAMES = [("train", "1"), ("train", "2"), ("train", "deep/3"), ("val", "1"), ("test", "1")]


def tar(files, mode="w:gz", fmt=tarfile.GNU_FORMAT):
    """Bytes of a tar; keys are names, values are bytes or a change of a header without data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=fmt) as archive:
        for name, value in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
            else:
                value(info)
                archive.addfile(info)
    return out.getvalue()


def zipped(files, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, value in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, value)
    return out.getvalue()


def write(tmp_path, data):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(data)
    return path


def read(tmp_path, data, **options):
    return list(archives.members(write(tmp_path, data), **options))


def refused(tmp_path, data, *words):
    with pytest.raises(DataError) as caught:
        read(tmp_path, data)
    message = str(caught.value)
    assert "set.tar.gz" in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_images_come_in_order_whatever_the_packing(tmp_path, mode, fmt):
    found = read(tmp_path, tar(FILES, mode, fmt))
    assert [(m.split, m.name) for m in found] == NAMES
    assert {m.file: m.data for m in found} == FILES


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_reads_like_tar(tmp_path, compression):
    files = [("facades/train/", b""), *FILES.items()]
    found = read(tmp_path, zipped(files, compression=compression))
    assert [(m.split, m.name) for m in found] == NAMES
    assert {m.file: m.data for m in found} == FILES


@pytest.mark.parametrize("lead", ["", "./", "./facades/", "sets/pix2pix/facades/", "PK/", "BZh1/"])
def test_leading_folders_do_not_matter(tmp_path, lead):
    found = read(tmp_path, tar({f"{lead}train/a/1.jpg": b"x"}, "w"))
    assert found == [("train", "a/1", f"{lead}train/a/1.jpg", b"x")]


def test_folders_and_what_systems_leave_behind_are_skipped(tmp_path):
    def folder(info):
        info.type = tarfile.DIRTYPE

    junk = ["f/._train", "f/train/._1.jpg", "f/train/.DS_Store", "__MACOSX/f/train/1.jpg"]
    junk += [".hidden/train/1.jpg", "f/train/Thumbs.db", "f/desktop.ini", "f/train/.jpg"]
    files = {"f/": folder, "f/train": folder, **dict.fromkeys(junk, b"x"), "f/train/1.jpg": b"y"}
    others, lines = [], []
    found = read(tmp_path, tar(files), others=others, log=lines.append)
    assert [m.data for m in found] == [b"y"] and not others and not lines


def test_other_files_are_told(tmp_path):
    files = {f"f/{i}.txt": b"" for i in range(150)} | FILES | {"facades/cover.jpg": b"c"}
    others, lines = [], []
    assert len(read(tmp_path, tar(files), others=others, log=lines.append)) == len(FILES)
    assert others == [f"f/{i}.txt" for i in range(100)]
    assert len(lines) == 1 and "151 files were not used" in lines[0] and "'f/0.txt'" in lines[0]


def test_splits_may_have_other_names(tmp_path):
    data = tar({"s/training/1.jpg": b"x", "s/eval/1.jpg": b"y"})
    found = read(tmp_path, data, splits=("training", "eval"))
    assert [(m.split, m.name) for m in found] == [("training", "1"), ("eval", "1")]
    refused(tmp_path, data, "'s/eval', 's/training'", "NAME/train")


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "_EVERY", 0.0)
    lines = []
    read(tmp_path, tar(FILES), log=lines.append)
    assert lines[-1] == "reading set.tar.gz: 0 of 0 MB, 5 images"


OUTSIDE = ["../train/1.jpg", "f/train/../../1.jpg", "/train/1.jpg", "C:/train/1.jpg"]
OUTSIDE += ["C:\\train\\1.jpg", "f\\train\\..\\..\\1.jpg", "\\train\\1.jpg", "c:train/1.jpg"]


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_that_lead_out_are_refused(tmp_path, name, pack):
    refused(tmp_path, pack({name: b"x"}), repr(name), "relative paths")


def test_backslashes_part_folders(tmp_path):
    found = read(tmp_path, zipped({"f\\train\\a\\1.jpg": b"x"}))
    assert found == [("train", "a/1", "f\\train\\a\\1.jpg", b"x")]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"V", "a device"),
    ],
)
@pytest.mark.parametrize("name", ["f/train/1.jpg", "f/README"])
def test_only_files_and_folders_are_allowed(tmp_path, kind, word, name):
    def change(info):
        info.type, info.linkname = kind, "/etc/passwd"

    refused(tmp_path, tar(FILES | {name: change}), repr(name), word, "files and folders")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO])
def test_zip_links_and_the_like_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("f/train/1.jpg")
    info.external_attr = mode << 16
    refused(tmp_path, zipped([(info, b"/etc/passwd")]), "f/train/1.jpg", "files and folders")


def test_zip_encrypted_or_rarely_packed_is_refused(tmp_path):
    rare = zipped(FILES, compression=zipfile.ZIP_BZIP2)
    refused(tmp_path, rare, "packed in a rare way")
    data = bytearray(zipped({"f/train/1.jpg": b"x"}))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    refused(tmp_path, bytes(data), "f/train/1.jpg", "is encrypted; allowed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("second", ["f/train/1.jpg", "f/train/1.png", "./f//train/1.jpg"])
def test_twice_the_same_is_refused(tmp_path, second, pack):
    data = pack([("f/train/1.jpg", b"x"), ("f/val/1.jpg", b"y"), (second, b"z")])
    refused(tmp_path, data, repr(second), "twice")


def test_two_sets_in_one_are_refused(tmp_path):
    refused(tmp_path, tar({"a/train/1.jpg": b"x", "b/train/2.jpg": b"y"}), "'b'", "'a'")


@pytest.mark.parametrize("name", ["f/train/1.jpg", "f/README"])
def test_too_large_a_member_is_refused_by_its_header(tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 1 << 20)
    data = tar({name: bytes((1 << 20) + 1)})
    refused(tmp_path, data, repr(name), "1048577", "1 MiB")
    assert len(read(tmp_path, tar({"f/train/1.jpg": bytes(1 << 20)}))) == 1


def test_zip_that_says_less_than_it_holds_takes_no_memory(tmp_path):
    data = bytearray(zipped({"f/train/1.jpg": bytes(1 << 25)}, compression=zipfile.ZIP_DEFLATED))
    start = data.index(b"PK\1\2") + 24
    data[start : start + 4] = (10).to_bytes(4, "little")
    tracemalloc.start()
    refused(tmp_path, bytes(data), "broken at member 1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_zip_that_says_more_than_it_holds_is_broken(tmp_path):
    data = bytearray(zipped({"f/train/1.jpg": b"x" * 100}, compression=zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (101).to_bytes(4, "little")
    refused(tmp_path, bytes(data), "holds less than it says")


def test_a_zip_that_lists_fewer_files_than_it_says_is_broken(tmp_path):
    data = bytearray(zipped(FILES))
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    data[first + 32 : first + 34] = (len(data) - 22 - second).to_bytes(2, "little")  # its comment
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 1
    refused(tmp_path, bytes(data), "the list of its files")


def endless(head):
    """A gzip file of 3 MB that unpacks to `head` and gigabytes of zeros."""
    return gzip.compress(head) + gzip.compress(bytes(1 << 24)) * 200


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("where", ["other", "image", "end", "extension"])
def test_bombs_are_refused_before_they_go_off(tmp_path, where):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 31
    head = {
        "other": header("f/notes.txt", 255 << 20),
        "image": header("f/train/1.jpg", 255 << 20),
        "end": tar({"f/train/1.jpg": b"x"}, "w"),
        "extension": long.tobuf(tarfile.GNU_FORMAT),
    }[where]
    path = write(tmp_path, endless(head))
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(DataError, match="archive" if where == "extension" else "200 times"):
        for _ in archives.members(path):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 5
    # An image is held in memory, and the limit is looked at from 64 MiB on.
    assert peak < (80 << 20 if where == "image" else 2 << 20)


def test_zip_bombs_are_refused(tmp_path):
    files = {f"f/train/{i}.jpg": bytes(1 << 24) for i in range(5)}
    refused(tmp_path, zipped(files, compression=zipfile.ZIP_DEFLATED), "200 times")


def test_memory_stays_flat(tmp_path):
    noise = random.Random(0).randbytes(1 << 16)
    data = tar({f"f/train/{i}.jpg": noise for i in range(400)}, "w:gz")
    path = write(tmp_path, data)
    count = sum(1 for _ in archives.members(path))  # what Python keeps for itself
    tracemalloc.start()
    count = sum(1 for _ in archives.members(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400 and peak < 2 << 20


def test_headers_are_not_kept(tmp_path):
    path = write(tmp_path, tar({f"f/train/{i}.jpg": b"" for i in range(4000)}))
    tracemalloc.start()
    count = sum(1 for _ in archives.members(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < 1.7e6  # 0.9 for names, 2.7 with the headers


def test_each_cut_is_noticed(tmp_path):
    for mode in ("w:gz", "w:bz2", "w:xz", "w"):
        data = tar(FILES, mode)
        # Without a checksum nothing is lost as long as one block of zeros is left behind the data.
        whole = (
            len(data) if mode != "w" else sum(512 + -(-len(v) // 512) * 512 for v in FILES.values())
        )
        cuts = {*range(0, whole, max(whole // 40, 1)), whole - 1}
        for cut in cuts:
            refused(tmp_path, data[:cut])
    for cut in range(1, len(data := zipped(FILES)), 97):
        refused(tmp_path, data[:cut])


def test_a_wrong_checksum_is_noticed_after_the_last_image(tmp_path):
    noise = {"facades/val/2.jpg": random.Random(0).randbytes(1 << 18), "NOTES": bytes(1 << 18)}
    data = bytearray(tar(FILES | noise))
    data[-8] ^= 1  # RFC 1952: CRC32 and length are the last 8 bytes
    found = []
    with pytest.raises(DataError, match=r"CRC.*run again"):
        for member in archives.members(write(tmp_path, bytes(data))):
            found.append(member)
    assert len(found) == 6


def test_a_broken_member_is_named(tmp_path):
    data = tar(FILES, "w")
    at = data.index(b"facades/train/deep/3.png")
    message = refused(tmp_path, data[: at + 540], "member 3", "'facades/train/2.JPG'")
    assert "download it anew" in message
    broken = data[:at] + b"X" + data[at + 1 :]
    refused(tmp_path, broken, "member 3", "bad checksum")
    emptied = data[:at] + bytes(512) + data[at + 512 :]
    refused(tmp_path, emptied, "at its end")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<html>not found</html>" * 100, "no archive"),
        (gzip.compress(b"<html>not found</html>" * 100), "no archive"),
        (b"PK\3\4nothing" * 100, "broken"),
        (b"", "broken"),
        (b"\x1f\x8b" + bytes(500), "broken"),
        (tar({}), "no image"),
        (zipped({}), "no image"),
        (tar({"f/train/1.txt": b"x"}), "'f/train/1.txt'"),
        (tar({"f/1.jpg": b"x", "2.jpg": b"x"}), "'.', 'f'"),
    ],
)
def test_what_is_no_set_is_told(tmp_path, data, word):
    refused(tmp_path, data, word)


def test_a_path_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path / "missing.tar", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            list(archives.members(path))


def test_stopping_early_closes_the_file(tmp_path):
    for data in (tar(FILES), tar(FILES, "w:xz"), zipped(FILES)):
        found = archives.members(write(tmp_path, data))
        next(found)
        found.close()  # a ResourceWarning is an error here


def test_impossible_headers_are_refused(tmp_path):
    negative = tarfile.TarInfo("f/train/1.jpg")
    negative.size = -512
    refused(tmp_path, negative.tobuf(tarfile.GNU_FORMAT) + bytes(2048), "archive")
    first = tar({"f/train/0.jpg": b"x"}, "w")[:1024]
    refused(tmp_path, first + negative.tobuf(tarfile.GNU_FORMAT) + bytes(2048), "impossible size")
    pax = tarfile.TarInfo("f/train/1.jpg")
    pax.pax_headers = {"size": "-1024"}
    refused(tmp_path, first + pax.tobuf(tarfile.PAX_FORMAT) + bytes(2048))


def mutated(data, draw):
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at : at + draw.randrange(1, 600)]
        else:
            data[at:at] = draw.choice((draw.randbytes(9), bytes(512), bytes(data[at : at + 512])))
        data = data or bytearray(b"\0")
    return bytes(data)


def test_mutated_archives_give_images_or_a_data_error(tmp_path):
    draw = random.Random(1)
    long = {f"facades/train/{'n' * 200}.jpg": b"long", "facades/über.txt": b""}
    packed = [tar(FILES | long, m, f) for m in ("w", "w:gz") for f in (1, 2)]
    packed += [tar(FILES, "w:bz2"), tar(FILES, "w:xz"), zipped(FILES)]
    packed += [zipped(FILES, compression=zipfile.ZIP_DEFLATED), *packed[:2]]
    refusals = 0
    for i in range(300):
        path = write(tmp_path, mutated(packed[i % len(packed)], draw))
        start = time.monotonic()
        try:
            assert all(isinstance(m, archives.Member) for m in archives.members(path))
        except DataError as error:
            refusals += 1
            assert "set.tar.gz" in str(error)
        assert time.monotonic() - start < 2
    assert 150 < refusals < 300
