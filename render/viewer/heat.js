// A map drawn on the camera's own image, through the inverse geometry: pure functions, no DOM.
//
// The same definitions as store/format/geometry.py, render/picture/heatmap.py, render/picture/scale.py and render/picture/overlay.py;
// a test compares the two pixel by pixel. Every source pixel looks up its patch, instead of the small
// grid being stretched over the image: so letterbox, crop and flip are undone exactly.

/** @import {Blend, Blending, Geometry, Limits, PixelAxis, Sampler, Tables} from "./types" */

/** Brightness left to pixels that the policy never sees. */
export const UNSEEN = 0.3;
/** Brightness left to the image where a spotlight overlay has no heat. */
const FLOOR = 0.5;
/** Brightness that `auto` leaves to a picture where it has no heat, 0..1. */
const TARGET = 0.35;
/** How much brighter `auto` makes a dim picture at most. */
const MOST_GAIN = 3;
/** Below the smallest normal float32 a division by the range would overflow. */
const SMALLEST = 1.2e-38;

/**
 * Source point of an axis (0: rows, 1: columns) in patches.
 * @param {Geometry} g
 * @param {0 | 1} axis
 * @param {number} at pixel
 */
export function toGrid(g, axis, at) {
  const [start, length] = cropOf(g, axis);
  let u = (at - start) / length;
  if (axis === 0 ? g.flip_vertical : g.flip_horizontal) u = 1 - u;
  return (u * g.resized[axis] + g.offset[axis] - g.patch_origin[axis]) / g.patch[axis];
}

/**
 * Grid coordinate of an axis in source pixels: the inverse of `toGrid`.
 * @param {Geometry} g
 * @param {0 | 1} axis
 * @param {number} at patches
 */
export function toSource(g, axis, at) {
  const [start, length] = cropOf(g, axis);
  let u = (at * g.patch[axis] + g.patch_origin[axis] - g.offset[axis]) / g.resized[axis];
  if (axis === 0 ? g.flip_vertical : g.flip_horizontal) u = 1 - u;
  return u * length + start;
}

/**
 * Patch under a source pixel; null where the policy sees nothing.
 * @param {Geometry} g
 * @param {number} y
 * @param {number} x
 * @returns {[number, number] | null} row, column
 */
export function patchAt(g, y, x) {
  const found = /** @type {[number, number]} */ ([0, 0]);
  for (const axis of /** @type {const} */ ([0, 1])) {
    const at = axis === 0 ? y : x;
    const [start, length] = cropOf(g, axis);
    const [first, last] = edges(g, axis);
    const place = toGrid(g, axis, at);
    if (at < start || at >= start + length || place < first || place >= last) return null;
    found[axis] = Math.min(Math.max(Math.floor(place), 0), g.grid[axis] - 1);
  }
  return found;
}

/**
 * Corners of a patch on the source image, cut at the image's borders.
 * @param {Geometry} g
 * @param {number} row
 * @param {number} col
 */
export function patchBox(g, row, col) {
  const sides = /** @type {[number, number][]} */ ([]);
  for (const [axis, index] of /** @type {[0 | 1, number][]} */ ([
    [0, row],
    [1, col],
  ])) {
    const [start, length] = cropOf(g, axis);
    const ends = [toSource(g, axis, index), toSource(g, axis, index + 1)].sort((a, b) => a - b);
    const low = Math.max(ends[0], start);
    sides.push([low, Math.max(0, Math.min(ends[1], start + length) - low)]);
  }
  return { y: sides[0][0], x: sides[1][0], height: sides[0][1], width: sides[1][1] };
}

/**
 * How the pixels of an output look up the patches of a geometry.
 * @param {Geometry} g
 * @param {ArrayLike<number>} coverage (row * col) fraction of each patch that shows image
 * @param {number} height of the output
 * @param {number} width
 * @param {"bilinear" | "nearest"} interpolation
 * @returns {Sampler}
 */
export function sampler(g, coverage, height, width, interpolation) {
  const [rows, cols] = g.grid;
  let top = rows,
    bottom = 0,
    left = cols,
    right = 0;
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++)
      if (coverage[r * cols + c] > 0) {
        ((top = Math.min(top, r)), (bottom = Math.max(bottom, r + 1)));
        ((left = Math.min(left, c)), (right = Math.max(right, c + 1)));
      }
  const nearest = interpolation === "nearest";
  return {
    height,
    width,
    cols,
    y: pixelAxis(g, 0, height, top, bottom, nearest),
    x: pixelAxis(g, 1, width, left, right, nearest),
  };
}

/**
 * @param {Geometry} g
 * @param {0 | 1} axis
 * @param {number} size of the output, pixels
 * @param {number} first patch that shows image
 * @param {number} stop one after the last
 * @param {boolean} nearest
 * @returns {PixelAxis}
 */
function pixelAxis(g, axis, size, first, stop, nearest) {
  const [start, length] = cropOf(g, axis);
  const [begin, end] = edges(g, axis);
  const low = new Uint16Array(size),
    high = new Uint16Array(size);
  const share = new Float32Array(size),
    seen = new Uint8Array(size);
  for (let i = 0; i < size; i++) {
    const at = (i + 0.5) * (g.source[axis] / size);
    const place = toGrid(g, axis, at);
    seen[i] = +(at > start && at < start + length && place >= begin && place < end);
    if (nearest) {
      low[i] = high[i] = Math.min(Math.max(Math.floor(place), first), stop - 1);
      continue;
    }
    // between patch centres, clamped to the outermost patches that show image: letterbox never bleeds in
    const centred = Math.min(Math.max(place - 0.5, first), stop - 1);
    low[i] = Math.max(first, Math.min(Math.floor(centred), stop - 2));
    high[i] = Math.min(low[i] + 1, stop - 1);
    share[i] = centred - low[i];
  }
  return { low, high, share, seen };
}

/**
 * Heat of every pixel; NaN where the policy sees nothing, or where the map is NaN.
 * @param {ArrayLike<number>} map (row * col)
 * @param {Sampler} s
 * @param {Float32Array} [into]
 * @returns {Float32Array} (height * width)
 */
export function heatOf(map, s, into) {
  const { height, width, cols, y, x } = s;
  const heat = into ?? new Float32Array(height * width);
  const values = new Float32Array(cols),
    there = new Float32Array(cols);
  let gaps = false;
  for (let i = 0; i < map.length; i++) if (Number.isNaN(map[i])) gaps = true;
  for (let i = 0; i < height; i++) {
    const at = i * width;
    if (!y.seen[i]) {
      heat.fill(NaN, at, at + width);
      continue;
    }
    const upper = y.low[i] * cols,
      lower = y.high[i] * cols,
      share = y.share[i];
    for (let c = 0; c < cols; c++) {
      const a = map[upper + c],
        b = map[lower + c];
      if (!gaps) {
        values[c] = a + (b - a) * share;
        continue;
      }
      // absent patches take no part; their neighbours' weights are scaled up to 1
      const p = Number.isNaN(a) ? 0 : 1 - share,
        q = Number.isNaN(b) ? 0 : share;
      values[c] = (p && a * p) + (q && b * q);
      there[c] = p + q;
    }
    for (let j = 0; j < width; j++) {
      const l = x.low[j],
        h = x.high[j],
        t = x.share[j];
      let v = values[l] + (values[h] - values[l]) * t;
      if (gaps) v /= there[l] + (there[h] - there[l]) * t;
      heat[at + j] = x.seen[j] ? v : NaN;
    }
  }
  return heat;
}

/**
 * Per level of heat: the colour times its opacity, and what is kept of the image, as overlay.py.
 * @param {Uint8Array} colours (256 * 3)
 * @param {number} alpha opacity of the strongest heat
 * @param {Blend | "signed"} style signed: of differences, whose middle is nothing
 * @param {number} [floor] brightness left to the image where a spotlight has no heat
 * @param {number} [gain] how much brighter the image is made
 * @returns {Tables}
 */
export function tables(colours, alpha, style, floor = FLOOR, gain = 1) {
  const colour = new Float32Array(768),
    keep = new Float32Array(256);
  for (let i = 0; i < 256; i++) {
    const level = i / 255;
    let opacity = alpha * level,
      kept = 1 - opacity;
    if (style === "constant") ((opacity = alpha), (kept = 1 - alpha));
    if (style === "signed") ((opacity = alpha * Math.abs(2 * level - 1)), (kept = 1 - opacity));
    if (style === "spotlight" || style === "auto") {
      opacity = alpha * Math.sqrt(level);
      kept = (1 - opacity) * (floor + (1 - floor) * level);
    }
    keep[i] = Math.round(255 * kept) / 255;
    for (let k = 0; k < 3; k++) colour[3 * i + k] = Math.round(colours[3 * i + k] * opacity);
  }
  return { colour, keep, gain };
}

/**
 * How heat is drawn on pictures: `auto` goes by each picture's own brightness, as overlay.py.
 * @param {Uint8Array} colours (256 * 3)
 * @param {number} alpha
 * @param {Blend | "signed"} style
 * @returns {Blending}
 */
export function blending(colours, alpha, style) {
  if (style !== "auto") {
    const fixed = tables(colours, alpha, style);
    return () => fixed;
  }
  /** @type {Map<string, Tables>} */
  const made = new Map();
  return (image) => {
    const [floor, gain] = light(image);
    const name = `${floor} ${gain}`;
    let found = made.get(name);
    if (!found) made.set(name, (found = tables(colours, alpha, "auto", floor, gain)));
    return found;
  };
}

/** @type {WeakMap<Uint8ClampedArray, [number, number]>} */
const lights = new WeakMap();

/**
 * By its mean luma: how much is left of a bright picture where it has no heat, and how much brighter a dim
 * one is made.
 * @param {Uint8ClampedArray} image RGBA
 * @returns {[number, number]} floor and gain, to hundredths
 */
export function light(image) {
  let found = lights.get(image);
  if (!found) {
    let sum = 0;
    for (let p = 0; p < image.length; p += 4)
      sum += 0.299 * image[p] + 0.587 * image[p + 1] + 0.114 * image[p + 2];
    const share = TARGET / Math.max(sum / (image.length / 4) / 255, 1e-3);
    const rounded = (/** @type {number} */ v) => Math.round(100 * v) / 100;
    found = [rounded(Math.min(1, Math.max(FLOOR, share))), rounded(Math.min(MOST_GAIN, Math.max(1, share)))];
    lights.set(image, found);
  }
  return found;
}

/**
 * Draw heat onto an image.
 * @param {Uint8ClampedArray} image RGBA
 * @param {Float32Array} heat
 * @param {Limits} limits heat at the ends of the colours
 * @param {Tables} t
 * @param {Uint8ClampedArray} into RGBA
 */
export function blend(image, heat, [low, top], t, into) {
  const stretch = 255 / (top - low),
    { gain } = t;
  for (let i = 0, p = 0; i < heat.length; i++, p += 4) {
    const v = heat[i];
    let r = image[p],
      g = image[p + 1],
      b = image[p + 2];
    if (gain !== 1) {
      r = r * gain > 255 ? 255 : r * gain;
      g = g * gain > 255 ? 255 : g * gain;
      b = b * gain > 255 ? 255 : b * gain;
    }
    if (v !== v) ((into[p] = r * UNSEEN), (into[p + 1] = g * UNSEEN), (into[p + 2] = b * UNSEEN));
    else {
      const scaled = (v - low) * stretch;
      const level = scaled <= 0 ? 0 : scaled >= 255 ? 255 : (scaled + 0.5) | 0;
      const keep = t.keep[level],
        at = 3 * level;
      into[p] = r * keep + t.colour[at];
      into[p + 1] = g * keep + t.colour[at + 1];
      into[p + 2] = b * keep + t.colour[at + 2];
    }
    into[p + 3] = 255;
  }
}

/**
 * Limits that show every value of the patches that show image: from 0 (or the smallest, if negative).
 * @param {Iterable<ArrayLike<number>>} maps
 * @param {ArrayLike<number>} coverage
 * @returns {Limits}
 */
export function limitsOf(maps, coverage) {
  let low = 0,
    top = -Infinity;
  for (const map of maps)
    for (let i = 0; i < map.length; i++)
      if (coverage[i % coverage.length] > 0 && Number.isFinite(map[i])) {
        if (map[i] < low) low = map[i];
        if (map[i] > top) top = map[i];
      }
  return top - low > SMALLEST ? [low, top] : [0, 1];
}

/**
 * @param {Geometry} g
 * @param {0 | 1} axis
 */
function cropOf(g, axis) {
  return g.crop ? [g.crop[axis], g.crop[axis + 2]] : [0, g.source[axis]];
}

/**
 * Where patches begin and end along an axis, in patches.
 * @param {Geometry} g
 * @param {0 | 1} axis
 */
function edges(g, axis) {
  const count = g.grid[axis],
    size = g.patch[axis];
  if (!g.receptive) return [0, count];
  const first = -g.patch_origin[axis] / size,
    last = (g.input[axis] - g.patch_origin[axis]) / size;
  const reach = g.receptive[axis] / size / 2;
  return [Math.max(first, Math.min(0, 0.5 - reach)), Math.min(last, Math.max(count, count - 0.5 + reach))];
}
