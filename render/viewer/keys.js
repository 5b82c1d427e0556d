// Keys that work anywhere on the page, except where text is written.

import { useEffect, useRef } from "./html.js";
import { choosing } from "./objects.js";
import { phaseOf } from "./questions.js";
import { sourcesOf } from "./state.js";

/** @import {Change, Episode, View} from "./types" */

/**
 * @param {{e: Episode | null, view: View, change: Change, togglePlay: () => void, help: () => void,
 *   neighbour: (by: number) => void}} page
 */
export function useKeys(page) {
  const latest = useRef(page);
  latest.current = page;
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (target.closest("textarea, select, input:not([type=range]):not([type=checkbox])")) return;
      const arrow = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
      if (arrow && target.closest("input[type=range], [role=radiogroup], [role=toolbar], [role=grid]"))
        return;
      if (event.key === " " && target.closest("button, input, summary, a")) return;
      if (act(event.key, latest.current)) event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

/**
 * @param {string} key
 * @param {Parameters<typeof useKeys>[0]} page
 * @returns {boolean} whether the key means something
 */
function act(key, { e, view, change, togglePlay, help, neighbour }) {
  if (key === "?") return (help(), true);
  if (key === "/") {
    document.getElementById("filter")?.focus();
    return true;
  }
  if (key === "n" || key === "p") return (neighbour(key === "n" ? 1 : -1), true);
  if (!e || view.view === "sql" || view.view === "overview") return false;
  const { layers, heads } = phaseOf(e, view);
  const sources = sourcesOf(view, phaseOf(e, view));
  const last = e.frames.length - 1;
  const head = /^\d+$/.test(view.head) ? Number(view.head) : -1;
  const keyframe = (/** @type {number} */ to) =>
    view.view === "compare" && last > 0
      ? { time: Math.min(1, Math.max(0, view.time + (to - view.keyframe) / last)) }
      : { keyframe: Math.min(last, Math.max(0, to)) };
  /** @type {Record<string, Partial<View>>} */
  const changes = {
    ArrowLeft: keyframe(view.keyframe - 1),
    ArrowRight: keyframe(view.keyframe + 1),
    Home: view.view === "compare" ? { time: 0 } : { keyframe: 0 },
    End: view.view === "compare" ? { time: 1 } : { keyframe: last },
    ArrowUp: { layer: Math.max(0, view.layer - 1) },
    ArrowDown: { layer: Math.min(layers - 1, view.layer + 1) },
    w: { weighting: sources[(sources.indexOf(view.weighting) + 1) % sources.length] },
    Escape: { query: "", brush: "", ...choosing(view, "") },
  };
  /** @type {Record<string, Partial<View>>} */
  const ofHead = {
    "[": { head: String(Math.max(0, head < 0 ? 0 : head - 1)) },
    "]": { head: String(Math.min(heads - 1, head + 1)) },
    a: { head: "active" },
    m: { head: "mean" },
    s: { sinks: !view.sinks },
  };
  if (view.weighting !== "rollout") Object.assign(changes, ofHead);
  if (key === " ") return (togglePlay(), true);
  if (!changes[key]) return false;
  change(changes[key]);
  return true;
}
