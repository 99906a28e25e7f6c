"""The page of an evaluation: its file, its small copies, and what a browser makes of it."""

from __future__ import annotations

import io
import json
import os
import time
import urllib.parse

import buckets
import numpy as np
import pytest
from browser import browser
from PIL import Image

from p2p_jax import page, pictures, report, thumbs
from p2p_jax.data import synthetic

NAMES = ["plain", "a b#1?%41", '"><script>alert(1)</script>', "ünï&amp;", "sub/x", "\udcff"]
BETTER = {"eval/l1": "min", "eval/psnr": "max", "eval/fid": "min", "eval/iou/sky": "max"}
LOG = [
    {"step": step, "images": step, "split": split, **figures}
    for step in range(0, 101, 10)
    for split, figures in (
        ("train", {"loss/disc": 0.7 - step / 200, "images_per_sec": 50.0}),
        ("val", {"eval/l1": 0.5 / (1 + step), "eval/psnr": None if step == 50 else step / 5}),
    )
    if step or split == "val"
]


def _examples(folder, names, targets=True, size=(32, 40)):
    """Pictures and rows; l1 grows from the first to the last, and psnr falls."""
    rows = []
    for i, name in enumerate(names):
        source, target = synthetic.render(i, size)
        kinds = {"source": source, "images": target // 2, "target": target}
        for kind in list(kinds)[: 3 if targets else 2]:
            pictures.save(folder / kind / f"{name}.png", kinds[kind])
        figures = {"eval/l1": 0.1 + i / 100, "eval/psnr": 20.0 - i} if targets else {}
        rows.append({"name": name, **figures})
    return rows


def _given(rows, targets=True):
    figures = {"eval/l1": 0.125, "eval/psnr": 17.5, "eval/fid": 99.5, "eval/iou/sky": 0.5}
    return dict(
        title="<b>val</b> $x {{data}}",
        metrics=figures if targets else {},
        intervals={"eval/l1": [0.1, 0.15], "eval/fid": [float("nan"), 1.0]},
        about={"eval/fid": "from <weights>.pth"},
        better=BETTER,
        baseline={"eval/l1": 0.25} if targets else {},
        baseline_name="best <constant>",
        rows=rows,
        targets=targets,
        log=LOG,
        identity={"step": 100, "split": "val", "dropout": True, "data": "0123456789abcdef" * 2},
        legend=[("sky", "#3050ff")],
    )


def _write(folder, rows, targets=True, **changes):
    page.write_eval_page(folder, **(_given(rows, targets) | changes))
    return (folder / "index.html").read_text()


def _data(text):
    """The JSON block."""
    block = text.partition('<script type="application/json" id="data">')[2].partition("</script>")
    return json.loads(block[0])


# --- the file ------------------------------------------------------------------------------------


def test_nothing_of_a_name_becomes_markup_and_nothing_is_fetched(tmp_path):
    text = _write(tmp_path, _examples(tmp_path, NAMES))
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)" in text and "<script>alert" not in text and "<b>val" not in text
    assert "<title>&lt;b&gt;val&lt;/b&gt; $x {{data}}</title>" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    data = _data(text)
    assert [row["name"] for row in data["rows"]] == NAMES
    for row in data["rows"]:
        for entry in row["pictures"]:
            for link in [entry] if isinstance(entry, str) else entry:
                path = os.fsdecode(urllib.parse.unquote_to_bytes(link))
                assert link.isascii() and (tmp_path / path).is_file(), link


def test_figures_carry_their_intervals_their_baseline_and_what_they_are(tmp_path):
    data = _data(_write(tmp_path, []))
    l1, psnr, fid, sky = data["figures"]
    assert (l1["name"], l1["values"], l1["baseline"]) == ("l1", [0.125], 0.25)
    assert l1["intervals"] == [[0.1, 0.15]] and l1["better"] == "min"
    assert psnr["baseline"] is None and psnr["intervals"] == [None]
    assert fid["about"] == "from <weights>.pth" and fid["intervals"] == [None]
    assert sky["name"] == "iou/sky"
    facts = dict(data["facts"])
    assert facts == {"step": "100", "split": "val", "dropout": "on", "data": "0123456789ab…"}


def test_a_figure_of_this_step_is_in_its_curve_whether_logged_yet_or_not(tmp_path):
    row = {"name": "a", "eval/l1": 1.0}
    before = _write(tmp_path, [row], log=[row for row in LOG if row["step"] < 100])
    logged = {"step": 100, "images": 1, "split": "val", "eval/l1": 0.125, "eval/psnr": 17.5}
    after = _write(tmp_path, [row], log=[*(row for row in LOG if row["step"] < 100), logged])
    assert before == after
    curve = next(c for c in _data(after)["curves"] if c["name"] == "eval/l1")
    assert curve["series"][0]["points"][-1] == [100, 0.125] and curve["baseline"] == 0.25


def test_long_logs_are_thinned_to_means_and_short_ones_kept():
    log = [{"step": i, "split": "train", "loss/disc": float(i % 4)} for i in range(1, 2401)]
    made = page.curves([log, log[:100]])
    assert made["thinned"] == 4
    long, short = (series["points"] for series in made["curves"][0]["series"])
    assert len(long) == 600 and {v for _, v in long} == {1.5} and long[-1][0] == 2400
    assert short == [[i, float(i % 4)] for i in range(1, 101)]


def test_curves_are_in_order_and_one_point_is_none():
    log = [
        {"step": 1, "split": "val", "eval/a": 1.0, "eval/once": 1.0},
        {"step": 2, "split": "train", "time/x": 1.0, "loss/b": 2.0},
        {"step": 3, "split": "val", "eval/a": float("nan")},
        {"step": 4, "split": "train", "time/x": 1.0, "loss/b": 2.0},
        {"step": 4, "split": "test", "eval/a": 3.0},
        {"step": 5, "split": "test", "eval/a": 3.0},
    ]
    made = page.curves([log], {}, {"eval/a": "min"})["curves"]
    assert [c["name"] for c in made] == ["loss/b", "eval/a of val", "eval/a of test", "time/x"]
    assert made[1]["better"] == "min" and made[1]["series"][0]["points"] == [[1, 1.0], [3, None]]


def test_a_page_in_a_bucket_is_the_same_as_on_a_disk(tmp_path, monkeypatch):
    rows = _examples(tmp_path, ["a", "b#1"], size=(300, 200))
    _write(tmp_path, rows)
    bucket = buckets.make(monkeypatch)
    for path in sorted(tmp_path.glob("*/*.png")):
        if path.parent.name != "thumbs":
            bucket.pipe_file(f"gs://bucket/run/{path.relative_to(tmp_path)}", path.read_bytes())
    page.write_eval_page(buckets.workdir(), **(_given(rows)))
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {name.removeprefix("run/") for name in bucket.names()} == names
    assert bucket.cat_file("gs://bucket/run/index.html") == (tmp_path / "index.html").read_bytes()


def test_writing_again_gives_the_same_to_the_bit(tmp_path):
    rows = _examples(tmp_path, NAMES[:3], size=(300, 200))

    def written():
        _write(tmp_path, rows)
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    assert written() == written()


# --- small copies --------------------------------------------------------------------------------


def _noise(shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((600, 300, 3), (256, 128)), ((100, 2000, 1), (26, 512))]
)
def test_large_photos_become_small_jpegs(tmp_path, shape, wanted):
    pictures.save(tmp_path / "a.png", _noise(shape))
    (copy,) = thumbs.make([thumbs.Job(tmp_path / "a.png", tmp_path / "t" / "a.b")])
    assert copy.path == tmp_path / "t" / "a.b.jpg" and copy.size == shape[:2]
    with Image.open(copy.path) as image:
        assert image.size == wanted[::-1] and image.format == "JPEG"


def test_label_maps_keep_their_very_colours(tmp_path):
    colours = np.array([[255, 0, 1], [0, 255, 2], [3, 0, 255]], np.uint8)
    pictures.save(tmp_path / "a.png", colours[_noise((700, 500)) % 3])
    (copy,) = thumbs.make([thumbs.Job(tmp_path / "a.png", tmp_path / "t")])
    with Image.open(copy.path) as image:
        assert image.format == "PNG" and image.size == (183, 256)
        found = np.unique(np.asarray(image).reshape(-1, 3), axis=0)
    assert sorted(found.tolist()) == sorted(colours.tolist())


def test_small_pictures_are_their_own_copies_unless_wanted_apart(tmp_path):
    pictures.save(tmp_path / "a.png", _noise((20, 20, 3)))
    job = thumbs.Job(tmp_path / "a.png", tmp_path / "t")
    assert thumbs.make([job]) == [(tmp_path / "a.png", (20, 20))]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert thumbs.make([job], apart=True) == [(tmp_path / "t.png", (20, 20))]
    assert (tmp_path / "t.png").read_bytes() == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_of_any_kind_are_shown_at_their_brightness(tmp_path, dtype, channels):
    level = 3 * (np.iinfo(dtype).max // 4)
    image = np.full((300, 300, channels), level, dtype)
    image[..., -1] -= _noise((300, 300)).astype(dtype) // 8  # not flat, so a photo
    pictures.save(tmp_path / "a.png", image)
    (copy,) = thumbs.make([thumbs.Job(tmp_path / "a.png", tmp_path / "t")])
    with Image.open(copy.path) as small:
        assert small.mode == "L" or (small.mode == "RGB" and channels > 1)
        assert abs(np.asarray(small)[..., :1].mean() - 191) < 20


def test_a_picture_that_is_not_there_is_none_and_a_broken_one_is_named(tmp_path):
    assert thumbs.make([thumbs.Job(tmp_path / "no.png", tmp_path / "t")]) == [None]
    out = io.BytesIO()
    Image.fromarray(_noise((300, 300, 3))).save(out, "PNG")
    (tmp_path / "cut.png").write_bytes(out.getvalue()[:5000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture"):
        thumbs.make([thumbs.Job(tmp_path / "cut.png", tmp_path / "t")])
    assert report.plain(_data(_write(tmp_path, [{"name": "no"}]))["rows"])[0]["pictures"] == [
        *(None, None, None)
    ]


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab():
    with browser() as tab:
        yield tab


def _open(tab, folder):
    tab.clear()
    tab.look(1200, 800)
    tab.page.goto((folder / "index.html").as_uri())
    return tab.page


def _shown(opened):
    return opened.eval_on_selector_all(".card .name", "all => all.map(n => n.textContent)")


@pytest.mark.slow
def test_the_gallery_sorts_finds_and_survives_any_name(tab, tmp_path):
    _write(tmp_path, _examples(tmp_path, NAMES, size=(128, 160)))
    opened = _open(tab, tmp_path)
    assert opened.inner_text("h1") == "<b>val</b> $x {{data}}"
    assert _shown(opened) == NAMES  # best first: the least l1
    opened.click("text=worst first")
    assert _shown(opened) == NAMES[::-1]
    opened.select_option("#gallery select", "psnr")
    assert _shown(opened) == NAMES[::-1]  # the least psnr is the worst
    opened.click("text=best first")
    assert _shown(opened) == NAMES
    opened.select_option("#gallery select", "name")
    assert _shown(opened)[1:3] == ["a b#1?%41", "plain"]
    opened.click("text=Z to A")
    assert _shown(opened).index("plain") < _shown(opened).index("a b#1?%41")
    opened.fill("input[type=search]", "SUB")
    assert _shown(opened) == ["sub/x"] and "1 of 6" in opened.inner_text("[role=status]")
    opened.fill("input[type=search]", "nothing")
    assert opened.is_visible("text=No name has this in it.")
    opened.fill("input[type=search]", "")
    opened.wait_for_function(
        "[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth)"
    )
    assert opened.inner_text(".legend") == "sky"
    assert tab.problems == []


@pytest.mark.slow
def test_the_slider_moves_by_drag_and_by_keys_and_a_click_enlarges(tab, tmp_path):
    _write(tmp_path, _examples(tmp_path, ["a", "b"], size=(128, 128)))
    opened = _open(tab, tmp_path)
    pair = opened.locator(".card .pair").first

    def clip():
        over = pair.locator(".over")
        text = over.evaluate("image => getComputedStyle(image).clipPath")
        return float(text.removeprefix("inset(0px 0px 0px ").removesuffix("%)"))

    assert clip() == 50
    pair.scroll_into_view_if_needed()
    box = pair.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] * 0.8, y, steps=4)
    opened.mouse.up()
    assert clip() == pytest.approx(80, abs=1) and not opened.is_visible("dialog")
    pair.focus()
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    assert clip() == 2 and pair.get_attribute("aria-valuenow") == "2"
    pair.click()
    assert opened.is_visible("dialog") and opened.inner_text("dialog .title") == "a"
    full = opened.eval_on_selector_all("dialog img", "all => all.map(i => i.getAttribute('src'))")
    assert full == ["images/a.png", "target/a.png"]
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("dialog .title") == "b"
    opened.click("dialog >> text=difference")
    mode = "image => getComputedStyle(image).mixBlendMode"
    assert opened.eval_on_selector("dialog .over", mode) == "difference"
    opened.click("dialog >> text=side by side")
    assert opened.locator("dialog img").count() == 3
    opened.keyboard.press("Escape")
    assert not opened.is_visible("dialog") and tab.problems == []


@pytest.mark.slow
def test_curves_are_drawn_read_and_scaled(tab, tmp_path):
    _write(tmp_path, _examples(tmp_path, ["a"]))
    opened = _open(tab, tmp_path)
    names = opened.eval_on_selector_all(".chart", "all => all.map(c => c.dataset.name)")
    assert names == ["loss/disc", "eval/l1", "eval/psnr", "images_per_sec"]
    chart = opened.locator("[data-name='eval/l1'].chart")
    assert "0.125" in chart.locator(".read").inner_text()
    line = chart.locator("path").first
    linear = line.get_attribute("d")
    assert linear.count("L") == 10
    opened.click("text=log >> nth=-1")
    assert line.get_attribute("d") != linear and line.get_attribute("d").count("L") == 10
    svg = chart.locator("svg")
    box = svg.bounding_box()
    opened.mouse.move(box["x"] + 0.14 * box["width"], box["y"] + 60)
    assert chart.locator(".read").inner_text().split() == ["0.5", "step", "0"]
    others = opened.locator("[data-name='loss/disc'] .read").inner_text()
    assert others.split() == ["0.65", "step", "10"]
    svg.focus()
    opened.keyboard.press("ArrowRight")
    assert "step 10" in chart.locator(".read").inner_text()
    tile = opened.locator(".tile[data-name=l1]").inner_text()
    assert "95% interval 0.1 to 0.15" in tile and "best <constant> 0.25 \u2013 beaten" in tile
    assert opened.inner_text(".tile[data-name=fid] .about") == "from <weights>.pth"
    assert opened.locator(".bars .track").count() == 1 and tab.problems == []


@pytest.mark.slow
def test_a_baseline_within_the_interval_is_neither_beaten_nor_missed(tab, tmp_path):
    _write(tmp_path, _examples(tmp_path, ["a"]), baseline={"eval/l1": 0.14, "eval/psnr": 20.0})
    opened = _open(tab, tmp_path)
    unsure, without = (opened.inner_text(f".tile[data-name={name}]") for name in ("l1", "psnr"))
    assert "0.14 \u2013 within the interval" in unsure and "beaten" not in unsure
    assert "20 \u2013 not reached" in without


@pytest.mark.slow
def test_what_is_not_there_is_said(tab, tmp_path):
    rows = _examples(tmp_path / "photos", ["a"], targets=False)
    _write(tmp_path / "photos", rows, targets=False, log=[])
    opened = _open(tab, tmp_path / "photos")
    assert "without targets" in opened.inner_text("#figures .empty")
    assert "metrics.jsonl holds no lines" in opened.inner_text("#curves .empty")
    assert opened.locator(".card img").count() == 2 and opened.locator(".pair").count() == 0
    opened.click(".card .pane >> nth=0")
    assert opened.locator("dialog img").count() == 2
    _write(tmp_path / "none", [{"name": "gone"}])
    opened = _open(tab, tmp_path / "none")
    assert opened.locator(".pane.missing").count() == 2
    _write(tmp_path / "none", [])
    assert "no examples" in _open(tab, tmp_path / "none").inner_text("#gallery .empty")
    assert tab.problems == []


@pytest.mark.slow
def test_a_thousand_images_load_lightly(tab, tmp_path):
    names = [f"{i:04}" for i in range(1000)]
    rows = _examples(tmp_path, names[:1], size=(64, 64))
    for kind in ("source", "images", "target"):
        for name in names[1:]:
            os.link(tmp_path / kind / f"{names[0]}.png", tmp_path / kind / f"{name}.png")
    rows = [rows[0] | {"name": name, "eval/l1": 1 / (1 + i)} for i, name in enumerate(names)]
    text = _write(tmp_path, rows)
    assert len(text) < 400_000
    began = time.monotonic()
    opened = _open(tab, tmp_path)
    opened.wait_for_selector(".card img")
    assert time.monotonic() - began < 5
    assert opened.locator(".card").count() == 1000 and _shown(opened)[0] == "0999"
    opened.wait_for_timeout(300)
    assert 1 < len(tab.requests) < 500  # of 3000: the others when they come near
    began = time.monotonic()
    opened.click("text=worst first")
    assert _shown(opened)[0] == "0000" and time.monotonic() - began < 3
    assert tab.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_any_window_in_light_and_dark(tab, tmp_path, width, dark):
    _write(tmp_path, _examples(tmp_path, NAMES[:2]))
    opened = _open(tab, tmp_path)
    tab.look(width, 700, dark)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    light = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g)[0] > 128"
    assert opened.evaluate(light) is not dark
    opened.click(".theme >> text=dark")
    assert opened.evaluate(light) is False
