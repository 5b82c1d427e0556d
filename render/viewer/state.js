// What the page shows, and its writing in the address: a link shows the same.

import { ABSENT_WEIGHTING } from "./api.js";
import { NAMES } from "./colormaps.js";

/** @import {Brush, Episode, Phase, Span, View} from "./types" */

/** @type {Readonly<View>} */
export const START = Object.freeze({
  view: "look",
  store: "",
  run: "",
  episode: "",
  otherRun: "",
  other: "",
  phase: "",
  query: "",
  reduce: "max",
  weighting: "raw",
  layer: 0,
  head: "active",
  active: "image",
  step: -1,
  keyframe: 0,
  brush: "",
  object: "",
  outlines: true,
  grid: "heads",
  metric: "variance",
  matrix: "episode",
  traces: "camera_mass,entropy",
  camera: "",
  cmap: "inferno",
  alpha: 0.75,
  blend: "auto",
  interpolation: "bilinear",
  scale: "frame",
  sinks: false,
  text: "",
  outcome: "",
  where: "",
  order: "name",
  descending: false,
  sql: "",
  pairing: "episodes",
  wall: "",
  time: 0,
});

/** Fields that may have no other values. @type {Record<string, readonly string[]>} */
const CHOICES = {
  view: ["overview", "look", "heads", "actions", "causes", "knowledge", "compare", "sql"],
  reduce: ["max", "mean"],
  weighting: ["raw", "value", "rollout"],
  active: ["image", "lab"],
  matrix: ["episode", "keyframe"],
  cmap: NAMES,
  blend: ["auto", "spotlight", "proportional", "constant"],
  interpolation: ["bilinear", "nearest"],
  scale: ["frame", "episode", "cameras"],
  outcome: ["", "success", "failure", "unknown"],
  order: ["name", "date", "outcome", "task", "keyframes", "committed"],
  pairing: ["episodes", "runs", "wall", "groups"],
  grid: ["heads", "layers"],
};
/** A change of these is a step that the browser's Back undoes. @type {(keyof View)[]} */
const STEPS = ["view", "store", "run", "episode"];

/**
 * Read an address; what is wrong in it is left as it was.
 * @param {string} hash
 * @returns {View}
 */
export function parseView(hash) {
  /** @type {Record<string, any>} */
  const view = { ...START };
  let named = false;
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!Object.hasOwn(START, name)) continue;
    if (name === "view" || name === "episode") named = true;
    const usual = view[name];
    if (typeof usual === "number") {
      const number = text.trim() === "" ? NaN : Number(text);
      if (Number.isFinite(number)) view[name] = number;
    } else if (typeof usual === "boolean") view[name] = text === "1";
    else if (!CHOICES[name] || CHOICES[name].includes(text)) view[name] = text;
  }
  // an address that names no episode is of the store
  if (!named) view.view = "overview";
  view.alpha = Math.min(1, Math.max(0, view.alpha));
  view.time = Math.min(1, Math.max(0, view.time));
  for (const name of ["layer", "step", "keyframe"]) view[name] = Math.trunc(view[name]);
  return /** @type {View} */ (view);
}

/**
 * Write what differs from the start.
 * @param {View} view
 */
export function formatView(view) {
  const text = new URLSearchParams();
  for (const [name, value] of Object.entries(view))
    if (value !== START[/** @type {keyof View} */ (name)])
      text.set(name, typeof value === "boolean" ? (value ? "1" : "0") : String(value));
  return text.size ? `#${text}` : "";
}

/** Whether Back should lead from one to the other. @param {View} a @param {View} b */
export const isStep = (a, b) => STEPS.some((name) => a[name] !== b[name]);

/**
 * The view as the episode allows it: a layer that it lacks, or a phase, is replaced by one that it has.
 * @param {View} view
 * @param {Episode} e
 * @returns {View}
 */
export function fitted(view, e) {
  const paths = Object.keys(e.phases);
  const phase = paths.includes(view.phase) ? view.phase : paths.includes("prefix") ? "prefix" : paths[0];
  const { layers, heads, steps, query, query_groups, cameras } = e.phases[phase];
  const within = (/** @type {number} */ at, /** @type {number} */ count) =>
    Math.min(Math.max(at, 0), count - 1);
  const head = /^\d+$/.test(view.head) ? String(within(+view.head, heads)) : view.head;
  const tokens = query.at(-1)?.stop ?? 0;
  const isToken = /^\d+$/.test(view.query);
  const known = isToken
    ? +view.query < tokens
    : query_groups.includes(view.query) ||
      // a span, a kind, a role, a range in one, a word: word:cube
      query.some((s) => namesOf(s).some((n) => n === view.query || view.query.startsWith(`${n}:`))) ||
      (/^word:./.test(view.query) && query.some((s) => s.kind === "text"));
  const weighting = sourcesOf(view, e.phases[phase]).find((source) => source === view.weighting) ?? "raw";
  const brush = brushOf(view);
  const usual = query_groups[0] ?? query.find((s) => s.role === "task")?.name ?? query[0].name;
  return {
    ...view,
    phase,
    layer: within(view.layer, layers),
    weighting,
    head: head === "mean" || /^\d+$/.test(head) ? head : query_groups.length ? "active" : "mean",
    step: steps === null ? -1 : view.step >= 0 ? within(view.step, steps) : phase === "decode" ? 0 : -1,
    keyframe: within(view.keyframe, e.frames.length),
    query: known ? view.query : query_groups.length ? "" : usual,
    camera: cameras.includes(view.camera) ? view.camera : (cameras[0] ?? ""),
    brush: brush && inGrid(brush, e) ? view.brush : "",
    ...(weighting === "rollout" ? rolled(view) : {}),
  };
}

/**
 * What maps may be of, in this view.
 * @param {View} view @param {Phase} phase
 * @returns {View["weighting"][]}
 */
export const sourcesOf = (view, { values }) => [
  "raw",
  ...(values ? [/** @type {const} */ ("value")] : []),
  // other views show many maps at once, and a rollout reads all layers for one
  ...(view.view === "look" && !ABSENT_WEIGHTING ? [/** @type {const} */ ("rollout")] : []),
];

/**
 * What a rollout leaves no choice of: heads and query tokens are averaged, and a keyframe's map comes alone.
 * @param {View} view
 * @returns {Partial<View>}
 */
const rolled = ({ scale }) => ({
  head: "mean",
  reduce: "mean",
  sinks: false,
  scale: scale === "episode" ? "frame" : scale,
});

/** What its tokens are called, alone or with others. @param {Span} s @returns {string[]} */
export const namesOf = (s) => [s.name, s.kind, ...(s.role ? [s.role] : [])];

/**
 * The brushed patches.
 * @param {View} view
 * @returns {Brush | null}
 */
export function brushOf(view) {
  const found = view.brush.match(/^(.+):(\d+)-(\d+):(\d+)-(\d+)$/);
  if (!found) return null;
  const [r0, r1, c0, c1] = found.slice(2).map(Number);
  return { camera: found[1], rows: [r0, r1], cols: [c0, c1] };
}

/** @param {Brush} b */
export const formatBrush = (b) => `${b.camera}:${b.rows.join("-")}:${b.cols.join("-")}`;

/** @param {Brush} b @param {Episode} e */
function inGrid(b, e) {
  const grid = e.cameras[b.camera]?.grid;
  return (
    !!grid && b.rows[0] <= b.rows[1] && b.cols[0] <= b.cols[1] && b.rows[1] < grid[0] && b.cols[1] < grid[1]
  );
}
