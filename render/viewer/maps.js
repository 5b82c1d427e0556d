// Maps of a camera at every keyframe, of the head that is shown: pure functions.

/** @import {Camera, Limits, Maps, NumberArray} from "./types" */

/**
 * Maps as they arrive: (keyframe, head, row, col), or (keyframe, row, col) of one head.
 * @param {NumberArray} array
 * @returns {Maps}
 */
export function mapsOf({ shape, data }) {
  const [rows, cols] = shape.slice(-2);
  return { keyframes: shape[0], heads: shape.length === 4 ? shape[1] : 1, size: rows * cols, data };
}

/**
 * Maps of one head, or their mean over heads.
 * @param {Maps} maps
 * @param {number | "mean"} head
 * @returns {Maps}
 */
export function ofHead({ keyframes, heads, size, data }, head) {
  if (heads === 1) return { keyframes, heads, size, data };
  const chosen = new Float32Array(keyframes * size);
  for (let k = 0; k < keyframes; k++) {
    const into = chosen.subarray(k * size, (k + 1) * size),
      from = k * heads * size;
    if (head !== "mean") {
      into.set(data.subarray(from + head * size, from + (head + 1) * size));
      continue;
    }
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < size; i++) into[i] += data[from + h * size + i] / heads;
  }
  return { keyframes, heads: 1, size, data: chosen };
}

/**
 * One keyframe's map of a head, or their mean, (row * col); of a head nothing is copied.
 * @param {Maps} maps of all heads, or of the one
 * @param {number | "mean"} head @param {number} keyframe
 */
export function headAt({ heads, size, data }, head, keyframe) {
  const from = keyframe * heads * size;
  if (heads === 1) return data.subarray(from, from + size);
  if (head !== "mean") return data.subarray(from + head * size, from + (head + 1) * size);
  const mean = new Float32Array(size);
  for (let h = 0; h < heads; h++) for (let i = 0; i < size; i++) mean[i] += data[from + h * size + i] / heads;
  return mean;
}

/** One keyframe's map, (row * col). @param {Maps} maps @param {number} keyframe */
export const mapAt = ({ data, size }, keyframe) => data.subarray(keyframe * size, (keyframe + 1) * size);

/**
 * A map at a point of normalised time, interpolated linearly between keyframes.
 * @param {Maps} maps of one head
 * @param {number} time 0: first keyframe, 1: last
 */
export function mapAtTime(maps, time) {
  const place = time * (maps.keyframes - 1);
  const low = Math.min(Math.floor(place), Math.max(maps.keyframes - 2, 0));
  const high = Math.min(low + 1, maps.keyframes - 1),
    share = place - low;
  const a = mapAt(maps, low),
    b = mapAt(maps, high);
  // a share of 0 takes nothing from the other map, NaN neither
  return a.map((v, i) => (share === 0 ? v : share === 1 ? b[i] : v * (1 - share) + b[i] * share));
}

/**
 * Attention on the image and on the letterbox, of a map that is a mean over queries.
 * @param {ArrayLike<number>} map
 * @param {Camera} camera
 */
export function massOf(map, { coverage }) {
  let image = 0,
    letterbox = 0;
  for (let i = 0; i < map.length; i++) {
    image += map[i] * coverage[i];
    letterbox += map[i] * (1 - coverage[i]);
  }
  return { image, letterbox };
}

/**
 * Largest value among the patches that show image, and where.
 * @param {ArrayLike<number>} map
 * @param {Camera} camera
 */
export function peakOf(map, { coverage, grid }) {
  let at = -1;
  for (let i = 0; i < map.length; i++)
    if (coverage[i] > 0 && !Number.isNaN(map[i]) && (at < 0 || map[i] > map[at])) at = i;
  return at < 0 ? null : { value: map[at], row: Math.floor(at / grid[1]), col: at % grid[1] };
}

/**
 * Limits that are the same for a value and its negative.
 * @param {Limits} limits
 * @returns {Limits}
 */
export function symmetric([low, top]) {
  const most = Math.max(-low, top);
  return [-most, most];
}
