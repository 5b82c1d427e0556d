// Colour maps, and what is asked of them.

import { ENCODED } from "./colour_tables.js";

/** Maps of attention, in the order in which they are offered. */
export const NAMES = ["inferno", "magma", "plasma", "viridis", "cividis", "turbo", "jet"];
/** Of differences: no difference is in the middle. */
export const DIVERGING = "RdBu";

/** @type {Map<string, Uint8Array>} */
const decoded = new Map();

/**
 * Colours of a map, (256 * 3).
 * @param {string} name
 */
export function colours(name) {
  let found = decoded.get(name);
  if (!found) {
    found = Uint8Array.from(atob(ENCODED[name] ?? ENCODED.inferno), (c) => c.charCodeAt(0));
    decoded.set(name, found);
  }
  return found;
}

/**
 * Colour of a share of the scale, for CSS.
 * @param {string} name
 * @param {number} share 0..1
 */
export function css(name, share) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return `rgb(${colours(name)
    .subarray(at, at + 3)
    .join(" ")})`;
}

/**
 * Whether text on a colour of the map is to be dark.
 * @param {string} name
 * @param {number} share 0..1
 */
export function isLight(name, share) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  const [r, g, b] = colours(name).subarray(at, at + 3);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}
