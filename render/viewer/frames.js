// Camera images as pixels, decoded ahead of time so that scrubbing does not wait for them.

import { get } from "./api.js";
import { frame } from "./questions.js";

/** @import {Episode} from "./types" */

/** Memory for decoded images, bytes. */
const MOST = 256 << 20;
const AT_ONCE = 4;

/** @type {Map<string, Uint8ClampedArray>} */
const decoded = new Map();
/** @type {Map<string, Promise<Uint8ClampedArray>>} */
const coming = new Map();
let size = 0;

/**
 * @param {Episode} e @param {string} camera @param {number} keyframe
 * @param {number} width of the output @param {number} height
 */
const nameOf = (e, camera, keyframe, width, height) =>
  [e.store, e.run, e.episode, e.version, camera, keyframe, width, height].join("\n");

/**
 * An image's pixels if they are here already.
 * @param {Episode} e @param {string} camera @param {number} keyframe
 * @param {number} width @param {number} height
 * @returns {Uint8ClampedArray | undefined} RGBA
 */
export const pixelsHere = (e, camera, keyframe, width, height) =>
  decoded.get(nameOf(e, camera, keyframe, width, height));

/**
 * An image's pixels.
 * @param {Episode} e @param {string} camera @param {number} keyframe
 * @param {number} width @param {number} height
 * @returns {Promise<Uint8ClampedArray>} RGBA
 */
export async function pixels(e, camera, keyframe, width, height) {
  const name = nameOf(e, camera, keyframe, width, height);
  const here = decoded.get(name);
  if (here) return here;
  let promise = coming.get(name);
  if (!promise) {
    promise = decode(await get(frame(e, keyframe, camera)), width, height).then((found) => {
      keep(name, found);
      return found;
    });
    coming.set(name, promise);
    promise.finally(() => coming.delete(name)).catch(() => {});
  }
  return promise;
}

/**
 * Decode the images of all keyframes, the next ones first, until they fill the memory for them.
 * @param {Episode} e @param {string[]} cameras @param {number} from keyframe
 * @param {(camera: string) => [number, number]} sizeOf width and height of the output
 * @param {AbortSignal} signal
 */
export async function preload(e, cameras, from, sizeOf, signal) {
  /** @type {{camera: string, keyframe: number, width: number, height: number}[]} */
  const wanted = [];
  let room = MOST;
  for (let i = 0; i < e.frames.length; i++)
    for (const camera of cameras) {
      const [width, height] = sizeOf(camera);
      room -= 4 * width * height;
      if (room > 0) wanted.push({ camera, keyframe: (from + i) % e.frames.length, width, height });
    }
  const work = async () => {
    for (let next = wanted.shift(); next && !signal.aborted; next = wanted.shift())
      await pixels(e, next.camera, next.keyframe, next.width, next.height).catch(() => {});
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

/** @param {Blob} blob @param {number} width @param {number} height */
async function decode(blob, width, height) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("this browser draws no canvas");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data;
}

/** @param {string} name @param {Uint8ClampedArray} found */
function keep(name, found) {
  decoded.set(name, found);
  size += found.length;
  for (const [old, data] of decoded) {
    if (size <= MOST) break;
    decoded.delete(old);
    size -= data.length;
  }
}
