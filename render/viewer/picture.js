// A camera's image with heat on it, on a canvas.

import { pixels, pixelsHere } from "./frames.js";
import { blend, heatOf, sampler } from "./heat.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./html.js";

/** @import {Camera, Episode, Limits, Blending} from "./types" */

/** Largest width that is drawn, pixels: scrubbing stays fluent. */
const WIDEST = 800;

/**
 * Width and height of a camera's picture.
 * @param {Camera} camera
 * @param {number} [widest] pixels
 * @returns {[number, number]}
 */
export function pictureSize({ width, height }, widest = WIDEST) {
  const scale = Math.min(1, widest / width);
  return [Math.round(width * scale), Math.round(height * scale)];
}

/**
 * Canvas of one camera at one keyframe.
 * @param {{e: Episode, camera: string, keyframe: number, map: Float32Array | null, limits: Limits,
 *   blending: Blending, interpolation: "bilinear" | "nearest", label: string, pending: boolean, widest?: number}} props
 */
export function Picture({
  e,
  camera,
  keyframe,
  map,
  limits,
  blending,
  interpolation,
  label,
  pending,
  widest,
}) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const about = e.cameras[camera];
  const [width, height] = pictureSize(about, widest);
  const name = `${e.run}/${e.episode} ${camera} ${keyframe}`;
  const [, setArrived] = useState("");
  const [failed, setFailed] = useState({ name: "", message: "" });
  const blank = useMemo(() => new Uint8ClampedArray(4 * width * height).fill(64), [width, height]);
  // without its image a map is still a map
  const here = pixelsHere(e, camera, keyframe, width, height) ?? (failed.name === name ? blank : undefined);
  const lookup = useMemo(
    () => sampler(about.geometry, about.coverage, height, width, interpolation),
    [about, height, width, interpolation],
  );
  const buffers = useMemo(
    () => ({ heat: new Float32Array(width * height), data: new ImageData(width, height) }),
    [width, height],
  );
  useEffect(() => {
    if (here) return;
    let wanted = true;
    pixels(e, camera, keyframe, width, height).then(
      () => wanted && setArrived(name),
      (error) => wanted && setFailed({ name, message: error.message }),
    );
    return () => {
      wanted = false;
    };
  }, [here, e, camera, keyframe, width, height]);
  useLayoutEffect(() => {
    const context = canvas.current?.getContext("2d", { willReadFrequently: true });
    if (!context || !here || pending) return;
    if (map) blend(here, heatOf(map, lookup, buffers.heat), limits, blending(here), buffers.data.data);
    else buffers.data.data.set(here);
    context.putImageData(buffers.data, 0, 0);
    if (canvas.current) canvas.current.dataset.drawn = `${keyframe}`;
    if (map) firstPicture();
  });
  return html`
    <canvas
      ref=${canvas}
      class=${pending || !here ? "picture waiting" : "picture"}
      width=${width}
      height=${height}
      role="img"
      aria-label=${label}
      aria-busy=${pending || !here}
    ></canvas>
    ${
      failed.name === name &&
      html`
        <p class="error" role="alert">${failed.message}</p>
      `
    }
  `;
}

let drawn = false;

/** Leave a mark in the browser's timeline: the benchmark reads it. */
function firstPicture() {
  if (drawn) return;
  drawn = true;
  performance.mark("first-picture");
}
