// Drawing into pixels without soft edges, so that labels stay labels. Pixels are a Uint32Array of
// width * height, as a little-endian canvas has them; coordinates are in pixels, corners whole.

/** '#rrggbb' as one pixel. */
export function packed(hex) {
  const value = parseInt(hex.slice(1), 16);
  return ((0xff << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/** One pixel as '#rrggbb'. */
export function unpacked(pixel) {
  const value = ((pixel & 255) << 16) | (pixel & 0xff00) | ((pixel >> 16) & 255);
  return "#" + value.toString(16).padStart(6, "0");
}

/** Where a pen of a size is put down: whole pixels get it, and a point never gets none. */
export function snapped(value, size) {
  return size % 2 ? Math.floor(value) + 0.5 : Math.round(value);
}

const clamp = (value, most) => Math.max(0, Math.min(most, value));

/** A line with round ends: all pixels whose middle is near enough. */
export function stroke(pixels, width, height, from, to, size, colour) {
  const reach = Math.max(size / 2, 0.5), limit = reach * reach + 1e-6;
  const [x0, y0, x1, y1] = [...from, ...to].map((value) => snapped(value, size));
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  const left = clamp(Math.floor(Math.min(x0, x1) - reach), width);
  const right = clamp(Math.ceil(Math.max(x0, x1) + reach), width);
  const top = clamp(Math.floor(Math.min(y0, y1) - reach), height);
  const bottom = clamp(Math.ceil(Math.max(y0, y1) + reach), height);
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const px = x + 0.5 - x0, py = y + 0.5 - y0;
      const along = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
      const ex = px - along * dx, ey = py - along * dy;
      if (ex * ex + ey * ey <= limit) pixels[y * width + x] = colour;
    }
  }
}

/** A box between two corners, filled, or a frame of a thickness. */
export function box(pixels, width, height, from, to, thickness, colour) {
  const left = clamp(Math.floor(Math.min(from[0], to[0])), width);
  const right = clamp(Math.floor(Math.max(from[0], to[0])) + 1, width);
  const top = clamp(Math.floor(Math.min(from[1], to[1])), height);
  const bottom = clamp(Math.floor(Math.max(from[1], to[1])) + 1, height);
  for (let y = top; y < bottom; y++) {
    const whole = !thickness || y < top + thickness || y >= bottom - thickness;
    for (let x = left; x < right; x++) {
      if (whole || x < left + thickness || x >= right - thickness) pixels[y * width + x] = colour;
    }
  }
}

/** Fills what hangs together in one colour, up to a tolerance in each channel. */
export function flood(pixels, width, height, at, colour, tolerance) {
  const x = Math.floor(at[0]), y = Math.floor(at[1]);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const seed = pixels[y * width + x], seen = new Uint8Array(pixels.length);
  const like = (pixel) => pixel === seed || (tolerance > 0 && [0, 8, 16].every(
    (shift) => Math.abs(((pixel >> shift) & 255) - ((seed >> shift) & 255)) <= tolerance));
  const open = [y * width + x];
  seen[open[0]] = 1;
  while (open.length) {
    const i = open.pop(), column = i % width;
    pixels[i] = colour;
    for (const [next, inside] of [[i - 1, column > 0], [i + 1, column < width - 1],
      [i - width, i >= width], [i + width, i + width < pixels.length]]) {
      if (inside && !seen[next] && like(pixels[next])) {
        seen[next] = 1;
        open.push(next);
      }
    }
  }
}
