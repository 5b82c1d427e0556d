// What the page asks, as a pure function of what it shows. Paths, and which of all this a pack answers, are
// in questions.json: Python reads them there.

import declared from "./questions.json" with { type: "json" };

/** @import {Asked, Brush, Episode, Phase, Question, QuestionName, View} from "./types" */

/** Points of normalised time of a difference. */
export const MOMENTS = 21;
/** Episodes that are listed at first. */
export const LISTED = declared.limits.listed;

/**
 * A question: its name, and the parameters that have a value.
 * @template {QuestionName} N
 * @param {N} name
 * @param {{[P in keyof Question<N>["parameters"]]: Question<N>["parameters"][P] | null}} parameters
 * @returns {Question<N>}
 */
function asks(name, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  return /** @type {any} */ ({ name, parameters: Object.fromEntries(given) });
}

/**
 * Canonical name of a question: equal for equal questions, whatever the version of the episode.
 * @param {Asked} question
 */
export function keyOf({ name, parameters }) {
  const named = Object.entries(parameters).filter(([parameter]) => parameter !== "v");
  named.sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([name, ...named.map(([parameter, value]) => [parameter, String(value)])]);
}

/** How an answer is read. @param {Asked} question @returns {"json" | "array" | "blob"} */
export const formOf = ({ name }) => /** @type {any} */ (declared.questions[name]).form ?? "json";

/** Whether an answer is not kept: it is another one each time. @param {Asked} question */
export const isFresh = ({ name }) => Boolean(/** @type {any} */ (declared.questions[name]).fresh);

/** Why a question is in no pack, if it is in none. @param {Asked} question @returns {string | undefined} */
export const absenceOf = ({ name }) => /** @type {any} */ (declared.questions[name]).absent;

/** Path and query string of a question. @param {Asked} question @returns {[string, URLSearchParams]} */
export function addressOf({ name, parameters }) {
  /** @type {Record<string, string>} */
  const rest = Object.fromEntries(Object.entries(parameters).map(([n, v]) => [n, String(v)]));
  const path = declared.questions[name].path.replace(/\{(\w+)\}/g, (_, /** @type {string} */ parameter) => {
    const value = rest[parameter];
    delete rest[parameter];
    return encodeURIComponent(value);
  });
  return [path, new URLSearchParams(rest)];
}

export const stores = () => asks("stores", {});

/** @param {string} store */
export const overview = (store) => asks("overview", { store });

export const tables = () => asks("tables", {});

export const metrics = () => asks("metrics", {});

/** @param {string} store */
export const namedQueries = (store) => asks("queries", { store });

/** @param {string} store */
export const recordings = (store) => asks("recordings", { store });

/**
 * Where the picture of a call of an episode under way is.
 * @param {string} store @param {{recording: string, episode: string}} row @param {number} call @param {string} camera
 */
export const recordedOverlay = (store, row, call, camera) =>
  `/v1/stores/${[store, "recordings", row.recording, row.episode, "calls", call, "overlays", camera].map(encodeURIComponent).join("/")}`;

/** @param {View} view @param {number} limit @param {number} [offset] */
export const episodes = (view, limit, offset = 0) =>
  asks("episodes", {
    store: view.store,
    limit,
    offset: offset || null,
    order: view.order,
    descending: view.descending || null,
    outcome: view.outcome || null,
    text: view.text.trim() || null,
    where: view.where.trim() || null,
  });

/** @param {string} store @param {string} run @param {string} episode */
export const episode = (store, run, episode) => asks("episode", { store, run, episode });

/** @param {Episode} e @param {number} keyframe @param {string} camera */
export const frame = (e, keyframe, camera) => asks("frame", { ...of(e), keyframe, camera });

/** Whether the maps of all heads are asked for at once. @param {Episode} e @param {View} view @param {string} camera */
export function headsTogether(e, view, camera) {
  const [rows, cols] = e.cameras[camera].grid;
  return 4 * e.frames.length * phaseOf(e, view).heads * rows * cols <= declared.limits.together;
}

/**
 * Maps of every keyframe: (keyframe, head, row, col), or (keyframe, row, col) of one head or their mean.
 * @param {Episode} e @param {View} view @param {string} camera
 * @param {number | "mean"} head where heads come alone
 */
export const maps = (e, view, camera, head) =>
  asks("maps", {
    ...of(e),
    phase: view.phase,
    camera,
    layer: view.layer,
    head: headsTogether(e, view, camera) ? null : head,
    step: stepOf(e, view),
    reduce: view.reduce,
    query: queryOf(e, view),
    sink_corrected: view.sinks || null,
    weighting: weightingOf(view),
  });

/**
 * Attention rollout up to the layer, at a keyframe: (row, col).
 * @param {Episode} e @param {View} view @param {string} camera @param {number} keyframe
 */
export const rollout = (e, view, camera, keyframe) =>
  asks("rollout", {
    ...of(e),
    phase: view.phase,
    camera,
    keyframe,
    layer: view.layer,
    step: stepOf(e, view),
    query: queryOf(e, view),
  });

/**
 * A metric of every layer and head, over the episode or at a keyframe.
 * @param {Episode} e @param {View} view @param {string} camera @param {string} metric
 * @param {number | null} keyframe
 */
export const matrix = (e, view, camera, metric, keyframe) =>
  asks("matrix", {
    ...of(e),
    metric,
    phase: view.phase,
    camera,
    query: groupOf(e, view),
    step: stepOf(e, view),
    keyframe,
    weighting: weightingOf(view),
  });

/**
 * The head whose map, as it is shown, varies most over the episode.
 * @param {Episode} e @param {View} view @param {string} camera
 */
export const activeHead = (e, view, camera) =>
  asks("active_head", {
    ...of(e),
    phase: view.phase,
    camera,
    layer: view.layer,
    step: stepOf(e, view),
    reduce: view.reduce,
    active: view.active,
    query: queryOf(e, view),
    sink_corrected: view.sinks || null,
    weighting: weightingOf(view),
  });

/**
 * A metric of all heads of the layer at every keyframe.
 * @param {Episode} e @param {View} view @param {string} camera @param {string} metric
 */
export const trace = (e, view, camera, metric) =>
  asks("trace", {
    ...of(e),
    metric,
    phase: view.phase,
    camera,
    layer: view.layer,
    head: "all",
    query: groupOf(e, view),
    step: stepOf(e, view),
    weighting: weightingOf(view),
  });

/**
 * Text tokens of the phase's queries: of all keyframes, or if these are many, of the shown one.
 * @param {Episode} e @param {View} view
 * @returns {Question<"tokens"> | null} null if the phase's queries hold no text
 */
export function tokens(e, view) {
  const spans = phaseOf(e, view).query.filter((s) => s.kind === "text");
  const count = e.frames.length * spans.reduce((sum, s) => sum + s.stop - s.start, 0);
  if (!count) return null;
  const keyframe = count > declared.limits.tokens ? view.keyframe : null;
  return asks("tokens", { ...of(e), phase: nameOf(view), axis: "query", keyframe });
}

/** Tokens that the policy generated, one a step of phase decode. @param {Episode} e */
export const generated = (e) => asks("generated", { ...of(e), phase: "decode", axis: "step" });

/** Objects of the episode whose masks are known. @param {Episode} e */
export const objects = (e) => asks("objects", placeOf(e));

/** Masks of the objects at every keyframe. @param {Episode} e */
export const masks = (e) => asks("masks", placeOf(e));

/**
 * How much every head's map lies on an object, at every keyframe.
 * @param {Episode} e @param {View} view @param {string} camera @param {string} metric
 */
export const objectMetric = (e, view, camera, metric) =>
  asks("object_metric", {
    ...placeOf(e),
    metric,
    object: view.object,
    camera,
    phase: view.phase,
    query: groupOf(e, view),
    step: stepOf(e, view),
    weighting: weightingOf(view),
  });

/**
 * One of the policy's own arrays, of all keyframes.
 * @param {Episode} e @param {"actions" | "actions_recorded" | "state"} name
 * @returns {Question<"policy_array"> | null} null if the episode has none
 */
export const policyArray = (e, name) => (e.policy[name] ? asks("policy_array", { ...of(e), name }) : null);

/**
 * The action chunk after every denoising step of a keyframe: (step, horizon, action_dof).
 * @param {Episode} e @param {number} keyframe
 * @returns {Question<"denoising"> | null} null if nothing is denoised
 */
export const denoising = (e, keyframe) =>
  e.policy.denoising ? asks("denoising", { ...of(e), name: "denoising", keyframe }) : null;

/** What interventions did to the actions. @param {Episode} e */
export const interventions = (e) => asks("interventions", placeOf(e));

/**
 * Deletion and insertion curves, at a keyframe or over all.
 * @param {Episode} e @param {number | null} keyframe
 */
export const curves = (e, keyframe) => asks("curves", { ...placeOf(e), keyframe });

/** Whether its failure was seen coming. @param {Episode} e */
export const failure = (e) => asks("failure", placeOf(e));

/** What is read off hidden states of the episode's run. @param {Episode} e */
export const linearProbes = ({ store, run }) => asks("linear_probes", { store, run });

/** What a run is. @param {string} store @param {string} run */
export const run = (store, run) => asks("run", { store, run });

/**
 * How far apart the maps are in another run, head by head.
 * @param {Episode} e @param {View} view @param {string} other
 */
export const divergence = (e, view, other) =>
  asks("divergence", {
    ...placeOf(e),
    other,
    phase: view.phase,
    camera: view.camera,
    query: groupOf(e, view),
    step: stepOf(e, view),
    reduce: view.reduce,
    weighting: weightingOf(view),
  });

/** Which pixels each intervention of a keyframe replaced. @param {Episode} e @param {number} keyframe */
export const interventionMasks = (e, keyframe) => asks("intervention_masks", { ...placeOf(e), keyframe });

/** Sinks of the phase, of every layer and head. @param {Episode} e @param {View} view */
export const sinks = (e, view) => asks("sinks", { ...of(e), phase: nameOf(view) });

/**
 * How every query token attends to the patches from the first brushed one to the last:
 * (query, key) of one head, or (head, query, key).
 * @param {Episode} e @param {View} view @param {Brush} brush
 * @param {number | null} head null for all
 * @returns {Question<"attention"> | null} null if the camera is not among the keys
 */
export function attending(e, view, brush, head) {
  const span = phaseOf(e, view).key.find((s) => s.camera === brush.camera);
  if (!span) return null;
  const cols = e.cameras[brush.camera].grid[1];
  const first = span.start + brush.rows[0] * cols + brush.cols[0];
  const last = span.start + brush.rows[1] * cols + brush.cols[1];
  return asks("attention", {
    ...of(e),
    phase: view.phase,
    keyframe: view.keyframe,
    layer: view.layer,
    head,
    step: stepOf(e, view),
    key: `${first}:${last + 1}`, // one range, however many rows
    weighting: weightingOf(view),
  });
}

/**
 * Mean maps of successes and failures of the store, aligned by normalised time.
 * @param {Episode} e whose phase, layer and head are shown
 * @param {View} view @param {string} camera @param {number | "mean"} head
 */
export const difference = (e, view, camera, head) =>
  asks("difference", {
    ...groupsOf(e),
    phase: view.phase,
    camera,
    layer: view.layer,
    head,
    query: groupOf(e, view),
    step: phaseOf(e, view).steps === null ? null : view.step, // the last of each, however many it has
    reduce: view.reduce,
    moments: MOMENTS,
    weighting: weightingOf(view),
  });

/**
 * Which heads differ between successes and failures of the run.
 * @param {Episode} e @param {View} view @param {string} camera
 */
export const comparison = (e, view, camera) =>
  asks("comparison", {
    ...groupsOf(e),
    metric: view.metric,
    phase: view.phase,
    camera,
    query: groupOf(e, view),
    step: view.step < 0 ? null : stepOf(e, view),
    weighting: weightingOf(view),
  });

/** @param {Episode} e @param {View} view @returns {Phase} */
export const phaseOf = (e, view) => e.phases[view.phase];

/** Whether the view's queries are a group that the ingest kept statistics of. @param {Episode} e @param {View} view */
export const isStored = (e, view) => view.query === "" || phaseOf(e, view).query_groups.includes(view.query);

/** The step that is shown, from the first; null in a one-pass phase. @param {Episode} e @param {View} view */
export function stepOf(e, view) {
  const { steps } = phaseOf(e, view);
  return steps === null ? null : view.step < 0 ? steps + view.step : view.step;
}

/** The weighting where it is not the usual one. @param {View} view @returns {"value" | null} */
const weightingOf = (view) => (view.weighting === "value" ? "value" : null);

/** The phase without the camera of an encoder. @param {View} view */
const nameOf = (view) => view.phase.split("/")[0];

/** @param {Episode} e @param {View} view */
const queryOf = (e, view) => view.query || (phaseOf(e, view).query_groups[0] ?? null);

/** The group that statistics are of: the phase's own, where the queries that are shown have none. @param {Episode} e @param {View} view */
const groupOf = (e, view) => queryOf(e, isStored(e, view) ? view : { ...view, query: "" });

/** @param {Episode} e */
const of = ({ store, run, episode, version }) => ({ store, run, episode, v: version });

/** Of what comes after the episode, and changes without its version. @param {Episode} e */
const placeOf = ({ store, run, episode }) => ({ store, run, episode });

/** @param {Episode} e */
const groupsOf = (e) => ({
  store: e.store,
  by: /** @type {const} */ ("outcome"),
  where: `run = '${e.run.replaceAll("'", "''")}'`,
});
