// An episode as the service describes it, ready to be drawn.

import { useAnswer } from "./answers.js";
import { useMemo } from "./html.js";
import { episode as asked } from "./questions.js";

/** @import {Camera, Described, Episode} from "./types" */

/**
 * @param {string} store
 * @param {string} run
 * @param {string} id
 * @returns {{episode: Episode | null, error?: Error}}
 */
export function useEpisode(store, run, id) {
  const answer = useAnswer(store && run && id ? asked(store, run, id) : null);
  const episode = useMemo(() => (answer.value ? read(answer.value, store) : null), [answer.value]);
  return { episode, error: answer.error };
}

/**
 * @param {Described} raw
 * @param {string} store
 * @returns {Episode}
 */
export function read(raw, store) {
  /** @type {Record<string, Camera>} */
  const cameras = {};
  for (const [name, camera] of Object.entries(raw.cameras))
    cameras[name] = { ...camera, coverage: Float32Array.from(camera.coverage.flat(), (v) => v ?? NaN) };
  return { ...raw, store, cameras };
}

/** Seconds since the first frame at a keyframe; null if the rate is not known. @param {Episode} e @param {number} keyframe */
export const secondsAt = (e, keyframe) => (e.rate ? e.frames[keyframe] / e.rate : null);
