// The canvas: pointers to pixels, with undo and redo.

import {box, flood, packed, snapped, stroke, unpacked} from "./raster.js";

const KEPT = 64 * 2 ** 20; // bytes of what can be undone

export class Board {
  /**
   * @param canvas what is drawn on.
   * @param cursor shows the pen.
   * @param about size and kind of what is drawn; see the server's /about.
   * @param changed called after each change; picked, with the colour under the pointer.
   */
  constructor(canvas, cursor, about, {changed, picked}) {
    Object.assign(this, {canvas, cursor, changed, picked});
    [this.width, this.height] = [about.width, about.height];
    [canvas.width, canvas.height] = [this.width, this.height];
    this.context = canvas.getContext("2d", {willReadFrequently: true});
    this.tool = "brush";
    this.size = about.brush;
    this.colour = this.background = about.background;
    this.tolerance = ["photo", "grey"].includes(about.kind) ? 24 : about.kind === "palette" ? 12 : 0;
    this.undone = [];
    this.done = [];
    this.pointer = null;
    this.pixels = new Uint32Array(this.width * this.height).fill(packed(this.background));
    this.show();
    this.listen();
  }

  listen() {
    const {canvas} = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.cancel(event));
    canvas.addEventListener("pointerleave", () => canvas.parentNode.classList.remove("over"));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Where an event is, in pixels. */
  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) / frame.width) * this.width,
      ((event.clientY - frame.top) / frame.height) * this.height,
    ];
  }

  down(event) {
    if (this.pointer !== null || event.button !== 0) return;
    const at = this.at(event);
    if (this.tool === "pick" || event.altKey) {
      const [x, y] = at.map(Math.floor);
      this.picked(unpacked(this.pixels[y * this.width + x]));
      return;
    }
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.before = this.pixels.slice();
    this.start = this.last = at;
    if (this.tool === "fill") {
      flood(this.pixels, this.width, this.height, at, packed(this.colour), this.tolerance);
      this.show();
    } else {
      this.draw(at, event.shiftKey);
    }
    this.changed();
  }

  move(event) {
    this.point(event);
    if (event.pointerId !== this.pointer || this.tool === "fill") return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.draw(this.at(each), event.shiftKey);
    this.changed();
  }

  up(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.remember(this.before);
    this.changed();
  }

  cancel(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.pixels = this.before;
    this.show();
    this.changed();
  }

  draw(at, straight) {
    const {pixels, width, height, tool, size} = this;
    const colour = packed(tool === "erase" ? this.background : this.colour);
    if (tool === "brush" || tool === "erase") {
      stroke(pixels, width, height, this.last, at, size, colour);
    } else {
      pixels.set(this.before); // what was shown of the line or box so far
      const end = straight ? straightened(this.start, at, tool) : at;
      if (tool === "line") stroke(pixels, width, height, this.start, end, size, colour);
      else box(pixels, width, height, this.start, end, tool === "frame" ? size : 0, colour);
    }
    this.last = at;
    this.show();
  }

  /** Moves the ring that shows the pen. */
  point(event) {
    const frame = this.canvas.getBoundingClientRect(), scale = frame.width / this.width;
    const ring = ["brush", "erase", "line"].includes(this.tool) && event.pointerType !== "touch";
    const [x, y] = this.at(event).map((value) => snapped(value, this.size) * scale);
    const side = `${Math.max(3, this.size * scale)}px`;
    Object.assign(this.cursor.style, {left: `${x}px`, top: `${y}px`, width: side, height: side});
    this.canvas.parentNode.classList.toggle("over", ring);
  }

  show() {
    const bytes = new Uint8ClampedArray(this.pixels.buffer);
    this.context.putImageData(new ImageData(bytes, this.width, this.height), 0, 0);
  }

  /** Keeps what the pixels were, so far as there is room. */
  remember(before) {
    this.done.push(before);
    this.undone = [];
    while (this.done.length * before.byteLength > KEPT && this.done.length > 1) this.done.shift();
  }

  /** Puts other pixels in place, as one step that can be undone. */
  replace(pixels) {
    this.remember(this.pixels);
    this.pixels = pixels;
    this.show();
    this.changed();
  }

  clear() {
    this.replace(new Uint32Array(this.pixels.length).fill(packed(this.background)));
  }

  /** Puts a picture of the canvas's size in place. */
  async load(blob) {
    const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none"});
    const scratch = new OffscreenCanvas(this.width, this.height).getContext("2d");
    scratch.drawImage(bitmap, 0, 0, this.width, this.height);
    const {data} = scratch.getImageData(0, 0, this.width, this.height);
    this.replace(new Uint32Array(data.buffer.slice(0)));
  }

  undo() {
    this.step(this.done, this.undone);
  }

  redo() {
    this.step(this.undone, this.done);
  }

  step(from, to) {
    if (!from.length || this.pointer !== null) return;
    to.push(this.pixels);
    this.pixels = from.pop();
    this.show();
    this.changed();
  }

  /** What is drawn, as a PNG. */
  png() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }
}

/** The end of a line at a multiple of 45 degrees, or of a box that is square. */
function straightened([x, y], at, tool) {
  const dx = at[0] - x, dy = at[1] - y, side = Math.max(Math.abs(dx), Math.abs(dy));
  if (tool !== "line") return [x + Math.sign(dx) * side, y + Math.sign(dy) * side];
  const angle = (Math.round(Math.atan2(dy, dx) / (Math.PI / 4)) * Math.PI) / 4;
  const length = Math.hypot(dx, dy);
  return [x + Math.cos(angle) * length, y + Math.sin(angle) * length];
}
