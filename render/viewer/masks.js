// Masks of objects: COCO's run lengths, and the outline of what they cover. Pure functions.

/** @import {Mask} from "./types" */

/**
 * Run lengths from COCO's string, as store/format/rle.py.
 * @param {string} text
 */
export function parseCounts(text) {
  /** @type {number[]} */
  const counts = [];
  let value = 0,
    shift = 0;
  for (let i = 0; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 48;
    value |= (digit & 31) << shift;
    shift += 5;
    if (digit & 32) continue;
    if (digit & 16) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
    value = shift = 0;
  }
  return counts;
}

/**
 * Which pixels are covered, (height * width), 1 or 0.
 * @param {{height: number, width: number, counts: string}} mask
 */
export function pixelsOf({ height, width, counts }) {
  const covered = new Uint8Array(height * width);
  let at = 0;
  parseCounts(counts).forEach((length, i) => {
    if (i % 2)
      for (let k = at; k < at + length; k++) covered[(k % height) * width + Math.floor(k / height)] = 1;
    at += length;
  });
  return covered;
}

/** @type {WeakMap<object, string>} */
const paths = new WeakMap();

/**
 * The border between what is covered and what is not, as a path of SVG in pixels.
 * @param {Mask} mask
 */
export function outlineOf(mask) {
  const known = paths.get(mask);
  if (known !== undefined) return known;
  const { height, width } = mask,
    covered = pixelsOf(mask);
  const inside = (/** @type {number} */ y, /** @type {number} */ x) =>
    y >= 0 && x >= 0 && y < height && x < width ? covered[y * width + x] : 0;
  const path = [];
  for (let y = 0; y <= height; y++)
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && inside(y - 1, x) !== inside(y, x);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) (path.push(`M${start} ${y}H${x}`), (start = -1));
    }
  for (let x = 0; x <= width; x++)
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && inside(y, x - 1) !== inside(y, x);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) (path.push(`M${x} ${start}V${y}`), (start = -1));
    }
  const found = path.join("");
  paths.set(mask, found);
  return found;
}
