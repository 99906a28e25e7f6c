"""Procedural pairs: a street as flat labelled boxes (A), and the street itself (B).

A pair is a pure function of its index and size. Nearly all of B follows from A: the label tells the
material, textures are anchored to the edges and the axis of their box, and light comes from above,
so that a mirrored pair is another plausible pair. Only a faint noise cannot be told from A.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

VERSION = 1  # of the drawing; part of the fingerprint
MIN_SIZE = 32
TRAIN_EXAMPLES = 2000
EVAL_EXAMPLES = 64
EVAL_FIRST = 1_000_000  # index of the first evaluation pair

_Colour = tuple[int, int, int]
LABELS: dict[str, _Colour] = {
    "day": (52, 92, 196), "cloud": (112, 128, 148), "dusk": (88, 44, 128), "ground": (64, 64, 72),
    "brick": (196, 48, 40), "plank": (64, 168, 88), "stone": (150, 142, 104),
    "plaster": (240, 176, 40), "tile": (128, 24, 24), "slate": (40, 48, 88),
    "ledge": (244, 240, 224), "window": (0, 200, 240), "lit": (255, 244, 96),
    "door": (136, 72, 16), "shop": (0, 112, 136), "awning": (232, 72, 168),
    "rail": (160, 96, 224), "chimney": (216, 112, 72), "tree": (16, 96, 32),
}  # fmt: skip
_SKIES: dict[str, tuple[_Colour, _Colour]] = {  # top, horizon
    "day": ((70, 128, 208), (206, 226, 242)),
    "cloud": ((140, 148, 160), (222, 222, 220)),
    "dusk": ((44, 40, 92), (244, 158, 104)),
}
_WALLS = {
    "brick": (168, 84, 64), "plank": (164, 186, 164), "stone": (182, 174, 158),
    "plaster": (226, 196, 138), "chimney": (140, 76, 62), "tile": (176, 92, 62),
    "slate": (92, 102, 122),
}  # fmt: skip


class _Scene:
    """The two images [h, w, 3] while they are drawn, and the random choices.

    Attributes:
      unit: a 64th of the shorter side, in pixels; details are a few units large.
    """

    def __init__(self, index: int, size: tuple[int, int]) -> None:
        self.height, self.width = size
        self.unit = min(size) / 64
        self.labels = np.zeros((*size, 3), np.uint8)
        self.photo = np.zeros((*size, 3), np.float32)
        # Raw output: the same in every version of numpy.
        self._bits = np.random.Philox(key=index)

    def px(self, units: float) -> int:
        """A length in pixels, at least one."""
        return max(1, round(units * self.unit))

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return int(self._bits.random_raw()) / 2.0**64

    def among(self, low: int, high: int) -> int:
        """Uniform in low .. high."""
        return low + int(self.draw() * (high - low + 1))

    def noise(self, size: int) -> np.ndarray:
        """Uniform in -4 .. 4, float32 [size]."""
        raw = self._bits.random_raw(-(-size // 8)).view(np.uint8)[:size]
        return (raw % np.uint8(9)).astype(np.float32) - 4

    def put(
        self, y: int, x: int, label: str, image: np.ndarray, mask: np.ndarray | None = None
    ) -> None:
        """Draws `image` [h, w, 3] with its corner at (y, x); what lies outside is cut off."""
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + image.shape[0], self.height), min(x + image.shape[1], self.width)
        if top >= bottom or left >= right:
            return
        here = (slice(top, bottom), slice(left, right))
        part = (slice(top - y, bottom - y), slice(left - x, right - x))
        if mask is None:
            self.labels[here] = LABELS[label]
            self.photo[here] = image[part]
        else:
            self.labels[here][mask[part]] = LABELS[label]
            self.photo[here][mask[part]] = image[part][mask[part]]

    def shade(self, y: int, x: int, depth: int, width: int, dark: float) -> None:
        """Darkens below (y, x): by `dark` at the top, fading over `depth` rows."""
        left, right, bottom = max(x, 0), min(x + width, self.width), min(y + depth, self.height)
        if bottom > y >= 0 and right > left:
            fade = 1 - dark * (1 - np.arange(bottom - y, dtype=np.float32) / depth)
            self.photo[y:bottom, left:right] *= fade[:, None, None]


def render(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pair `index`: (A, B), each [h, w, 3] uint8, for a (height, width) of at least 32."""
    scene = _Scene(index, size)
    sky = tuple(_SKIES)[scene.among(0, 2)]
    ground = scene.height - scene.px(4 + 5 * scene.draw())
    scene.put(0, 0, sky, _ramp(*_SKIES[sky], ground, scene.width))
    pavement = _ramp((122, 118, 114), (84, 84, 90), scene.height - ground, scene.width)
    pavement[: scene.px(1)] = (178, 174, 166)
    scene.put(ground, 0, "ground", pavement)
    x = -scene.px(14 * scene.draw())
    while x < scene.width - scene.px(8):
        if scene.draw() < 0.2:  # a gap
            x += scene.px(4 + 9 * scene.draw())
            continue
        x = _house(scene, x, ground)
    for _ in range(scene.among(0, 2)):
        _tree(scene, ground)
    photo = scene.photo.reshape(-1)
    photo += scene.noise(photo.size)
    return scene.labels, np.clip(np.rint(photo), 0, 255).astype(np.uint8).reshape(*size, 3)


def _house(scene: _Scene, x: int, ground: int) -> int:
    """A house from `x` on, symmetric about its axis; gives where the next may start."""
    columns, floors = scene.among(1, 4), scene.among(1, 4)
    pane_w, pane_h = scene.px(4 + 3 * scene.draw()), scene.px(5.5 + 5 * scene.draw())
    gap, rise = scene.px(2.5 + 3 * scene.draw()), pane_h + scene.px(4 + 3 * scene.draw())
    base = scene.px(12 + 3 * scene.draw())  # height of the ground floor
    while floors > 1 and base + floors * rise > 0.88 * ground:
        floors -= 1
    width = columns * (pane_w + gap) + gap
    height = base + floors * rise
    top = ground - height
    material = ("brick", "plank", "stone", "plaster")[scene.among(0, 3)]
    _roof(scene, top, x, width)
    scene.put(top, x, material, _wall(material, height, width, scene.unit))
    scene.put(top, x, "ledge", _ledge(scene.px(2), width))
    scene.shade(top + scene.px(2), x, scene.px(4), width, 0.5)
    lit, railed = scene.draw() < 0.35, scene.draw() < 0.45
    middle = columns % 2 == 1 and scene.draw() < 0.5  # only the axis has balconies
    left = x + (width - columns * (pane_w + gap) + gap) // 2
    for floor in range(floors):
        y = top + floor * rise + scene.px(3.5)
        glow = lit and scene.draw() < 0.6
        for column in range(columns):
            at = left + column * (pane_w + gap)
            _window(scene, y, at, pane_h, pane_w, "lit" if glow else "window")
            if railed and floor and (not middle or column == columns // 2):
                _balcony(scene, y + pane_h, at, pane_w)
    belt = ground - base
    scene.put(belt, x, "ledge", _ledge(scene.px(1.5), width))
    scene.shade(belt + scene.px(1.5), x, scene.px(3), width, 0.4)
    if width > scene.px(14) and scene.draw() < 0.5:
        _shop(scene, belt, ground, x, width)
    else:
        for column in range(columns):
            at = left + column * (pane_w + gap)
            if column in ((columns - 1) // 2, columns // 2):
                door = scene.px(9.5)
                scene.put(ground - door, at, "door", _door(door, pane_w, scene.unit))
            else:
                _window(scene, belt + scene.px(3.5), at, scene.px(5), pane_w, "window")
    return x + width + (0 if scene.draw() < 0.6 else scene.px(6 * scene.draw()))


def _roof(scene: _Scene, top: int, x: int, width: int) -> None:
    """None, a hipped or a gabled one; perhaps with chimneys."""
    kind, cover = scene.among(0, 2), ("tile", "slate")[scene.among(0, 1)]
    if kind == 0:
        return
    height = scene.px(5 + 6 * scene.draw())
    slope = 0.5 * width if kind == 2 else min(0.8 * height, 0.4 * width)
    if scene.draw() < 0.6:
        stack = _wall("chimney", height + scene.px(3), scene.px(3), scene.unit)
        for side in (-1, 1):
            at = round(x + width / 2 + side * 0.3 * width - stack.shape[1] / 2)
            scene.put(top - stack.shape[0], at, "chimney", stack)
    row = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    mask = _from_axis(width)[None] <= width / 2 - slope * (1 - row)
    scene.put(top - height, x, cover, _wall(cover, height, width, scene.unit), mask)


def _window(scene: _Scene, y: int, x: int, height: int, width: int, label: str) -> None:
    scene.put(y, x, label, _pane(height, width, scene.unit, label))
    overhang = scene.px(1)
    scene.put(y + height, x - overhang, "ledge", _ledge(scene.px(1), width + 2 * overhang))
    scene.shade(y + height + scene.px(1), x - overhang, scene.px(2), width + 2 * overhang, 0.35)


def _balcony(scene: _Scene, sill: int, x: int, width: int) -> None:
    height, out = scene.px(4), scene.px(1.5)
    scene.put(sill - height, x - out, "rail", _rails(height, width + 2 * out, scene.unit))
    scene.put(sill, x - out, "ledge", _ledge(scene.px(1), width + 2 * out))
    scene.shade(sill + scene.px(1), x - out, scene.px(3), width + 2 * out, 0.5)


def _shop(scene: _Scene, belt: int, ground: int, x: int, width: int) -> None:
    edge, top = scene.px(2), belt + scene.px(2)
    front = _front(ground - top, width - 2 * edge, scene.unit)
    scene.put(top, x + edge, "shop", front)
    if scene.draw() < 0.6:
        depth = scene.px(3.5)
        scene.put(top, x + edge, "awning", _awning(depth, width - 2 * edge, scene.unit))
        scene.shade(top + depth, x + edge, scene.px(3), width - 2 * edge, 0.55)


def _tree(scene: _Scene, ground: int) -> None:
    wide, high = scene.px(8 + 8 * scene.draw()), scene.px(9 + 9 * scene.draw())
    stem, thick = scene.px(3 + 3 * scene.draw()), scene.px(1.5)
    x, foot = round(scene.draw() * scene.width), ground + scene.px(1)
    trunk = _ramp((70, 52, 40), (104, 80, 58), stem, thick)
    scene.put(foot - stem, x - thick // 2, "tree", trunk)
    across = _from_axis(wide)[None] / (wide / 2)
    row = np.arange(high, dtype=np.float32)[:, None]
    mask = across**2 + ((row + 0.5) / (high / 2) - 1) ** 2 <= 1
    leaves = _ramp((136, 172, 76), (34, 76, 42), high, wide)
    step = 2.2 * scene.unit
    leaves *= (1 + 0.16 * np.sin(row / step * 2) * np.cos(across * wide / 2 / step * 2))[..., None]
    scene.put(foot - stem - high + 1, x - wide // 2, "tree", leaves, mask)


# --- parts: images [h, w, 3] float32, functions of their size, symmetric about their axis ---------


def _recurring(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Remembers the small parts drawn last; they must not be written to."""

    @functools.lru_cache(maxsize=256)
    def cached(*args: int | float | str) -> np.ndarray:
        image = function(*args)
        image.flags.writeable = False
        return image

    return cached


def _from_axis(width: int) -> np.ndarray:
    """Distance of each column from the middle, float32 [w]."""
    return np.abs(np.arange(width, dtype=np.float32) - (width - 1) / 2)


def _rgb(colour: _Colour) -> np.ndarray:
    return np.array(colour, np.float32)


def _ramp(top: _Colour, bottom: _Colour, height: int, width: int) -> np.ndarray:
    """`top` fading into `bottom`."""
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    column = _rgb(top) * (1 - t) + _rgb(bottom) * t
    return np.repeat(column[:, None], width, axis=1)


def _wall(material: str, height: int, width: int, unit: float) -> np.ndarray:
    """A wall or roof: courses from the top down, joints from the axis outwards."""
    course, length, joint, relief = {
        "brick": (3, 6, 0.80, 0.07), "chimney": (3, 4, 0.82, 0.05), "stone": (6, 10, 0.78, 0.08),
        "plank": (3, 0, 0.74, 0.05), "tile": (3, 3, 0.76, 0.10), "slate": (4, 5, 0.80, 0.08),
        "plaster": (0, 0, 1.0, 0.0),
    }[material]  # fmt: skip
    light = np.linspace(1.05, 0.93, height, dtype=np.float32)[:, None] * np.ones(
        (1, width), np.float32
    )
    if course:
        course, line = max(2, round(course * unit)), max(1, round(0.8 * unit))
        y = np.arange(height)
        row = y // course
        light *= 1 + relief * (1 - 2 * (y % course) / (course - 1))[:, None].astype(np.float32)
        if length:
            length = max(2, round(length * unit))
            x = _from_axis(width)[None] + (row % 2)[:, None] * (length / 2)
            light *= 1 + relief * (2 * ((x // length + row[:, None] * 2) % 3) - 2) / 2
            light[(x % length) < line] *= (1 + joint) / 2
        light[y % course >= course - line] *= joint
    return _rgb(_WALLS[material]) * light[..., None]


def _ledge(height: int, width: int) -> np.ndarray:
    return _ramp((244, 238, 226), (196, 188, 176), height, width)


@_recurring
def _pane(height: int, width: int, unit: float, label: str) -> np.ndarray:
    """A window: frame, mullions, and glass that mirrors the sky or glows."""
    frame, bar = max(1, round(unit)), max(1, round(0.8 * unit))
    if label == "lit":
        glass = _ramp((255, 226, 150), (222, 150, 78), height, width)
        glass *= np.where(_from_axis(width) > 0.3 * width, 0.82, 1)[None, :, None]  # curtains
    else:
        glass = _ramp((34, 50, 72), (136, 168, 192), height, width)
        glass[round(0.34 * height) : round(0.5 * height)] += 34  # a cloud
    glass[frame : frame + max(1, round(1.5 * unit))] *= 0.72  # under the lintel
    wood = _rgb((238, 232, 220))
    if width >= 5 * unit + 1:
        middle = _from_axis(width) < max(bar, 1 + (width + 1) % 2) / 2
        glass[:, middle] = wood * 0.94
    if height >= 6 * unit:
        at = round(0.4 * height)
        glass[at : at + bar] = wood * 0.94
    glass[:frame], glass[-frame:] = wood * 0.9, wood
    glass[:, :frame] = glass[:, -frame:] = wood
    return glass


@_recurring
def _door(height: int, width: int, unit: float) -> np.ndarray:
    """Framed wood with panels below a light."""
    frame = max(1, round(unit))
    door = _ramp((122, 72, 40), (92, 52, 32), height, width)
    rows = np.arange(height)
    panel = (rows > 0.32 * height) & ((rows / height * 6) % 2 < 1.4)
    inner = _from_axis(width) < 0.5 * width - 2 * frame
    door[np.ix_(panel, inner)] *= 1.25
    door[:, _from_axis(width) < 0.6] *= 0.55
    door[frame : round(0.24 * height), frame:-frame] = (150, 178, 192)
    door[:frame] = door[:, :frame] = door[:, -frame:] = (214, 204, 188)
    return door


def _front(height: int, width: int, unit: float) -> np.ndarray:
    """A shop: sign, glass between posts, plinth."""
    sign, plinth = round(0.3 * height), max(1, round(2 * unit))
    front = _ramp((28, 44, 50), (128, 152, 150), height, width)
    front[round(0.55 * height) : round(0.66 * height)] += 26
    spread = max(3, round(8 * unit))
    front[:, (_from_axis(width) + spread / 2) % spread < max(1, round(unit))] = (60, 44, 36)
    front[:sign] = _ramp((56, 96, 92), (36, 70, 68), sign, width)
    letters = (_from_axis(width) < 0.3 * width) & ((_from_axis(width) // max(1, unit)) % 2 < 1)
    front[round(0.1 * height) : round(0.2 * height), letters] = (232, 210, 150)
    front[-plinth:] = (74, 60, 52)
    return front


def _awning(height: int, width: int, unit: float) -> np.ndarray:
    stripe = max(2, round(3 * unit))
    red = ((_from_axis(width) + stripe / 2) // stripe % 2 < 1)[None, :, None]
    cloth = np.where(red, _rgb((204, 62, 58)), _rgb((244, 236, 222)))
    return cloth * np.linspace(1.05, 0.8, height, dtype=np.float32)[:, None, None]


@_recurring
def _rails(height: int, width: int, unit: float) -> np.ndarray:
    """Dark bars before a shaded wall, and a hand rail."""
    bars = _from_axis(width) % max(2, round(2 * unit)) < max(1, round(0.8 * unit))
    column = np.where(bars[:, None], _rgb((40, 42, 48)), _rgb((140, 134, 130)))
    rails = np.repeat(column[None], height, axis=0)
    rails[: max(1, round(unit))] = (62, 64, 72)
    return rails
