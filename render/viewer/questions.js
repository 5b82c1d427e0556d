// What the page asks, as a pure function of what it shows: a list of views gives the list of answers
// that a pack needs.

/** @import {Brush, Episode, Phase, Question, View} from "./types" */

/** @typedef {Record<string, string | number | boolean>} Parameters */

/** Maps of all heads of a layer come together up to this size; above it, each head's alone. */
const TOGETHER = 24 << 20;
/** Where their mean is wanted; the service refuses more than 64 MB. */
const AVERAGED = 56 << 20;
/** Rows of tokens that are asked for at once. */
const ROWS = 4000;
/** Points of normalised time of a difference. */
export const MOMENTS = 21;

/** @returns {Question} */
export const stores = () => ({ path: "/v1/stores", parameters: {} });

/** @returns {Question} */
export const metrics = () => ({ path: "/v1/metrics", parameters: {} });

/** @param {string} store @returns {Question} */
export const namedQueries = (store) => ({ path: `${storePath(store)}/queries`, parameters: {} });

/** @param {View} view @param {number} limit @returns {Question} */
export function episodes(view, limit) {
  const where = view.where.trim();
  const text = view.text.trim();
  const quoted = text.toLowerCase().replaceAll("'", "''");
  const part = `contains(lower(concat_ws(' ', name, instruction, task, run)), '${quoted}')`;
  return {
    path: `${storePath(view.store)}/episodes`,
    parameters: {
      limit,
      order: view.order,
      ...(view.descending ? { descending: true } : {}),
      ...(view.outcome ? { outcome: view.outcome } : {}),
      ...(text || where
        ? { where: [text && part, where && `(\n${where}\n)`].filter(Boolean).join(" and ") }
        : {}),
    },
  };
}

/** @param {string} store @param {string} run @param {string} episode @returns {Question} */
export const episode = (store, run, episode) => ({
  path: episodePath({ store, run, episode }),
  parameters: {},
});

/** @param {Episode} e @param {number} keyframe @param {string} camera @returns {Question} */
export const frame = (e, keyframe, camera) => ({
  path: `${episodePath(e)}/frames/${keyframe}/${encodeURIComponent(camera)}`,
  parameters: { v: e.version },
});

/** Whether the maps of all heads are asked for at once. @param {Episode} e @param {View} view @param {string} camera */
export function headsTogether(e, view, camera) {
  const [rows, cols] = e.cameras[camera].grid;
  const size = 4 * e.frames.length * phaseOf(e, view).heads * rows * cols;
  return size <= (view.head === "mean" ? AVERAGED : TOGETHER);
}

/**
 * Maps of every keyframe: (keyframe, head, row, col), or (keyframe, row, col) of one head.
 * @param {Episode} e @param {View} view @param {string} camera
 * @param {number} head where heads come alone
 * @returns {Question}
 */
export const maps = (e, view, camera, head) => ({
  path: `${episodePath(e)}/maps`,
  parameters: {
    phase: view.phase,
    camera,
    layer: view.layer,
    ...(headsTogether(e, view, camera) ? {} : { head }),
    ...stepOf(e, view),
    reduce: view.reduce,
    ...(view.query ? { query: view.query } : {}),
    ...(view.sinks ? { sink_corrected: true } : {}),
    v: e.version,
  },
});

/**
 * A metric of every layer and head, over the episode or at a keyframe.
 * @param {Episode} e @param {View} view @param {string} camera @param {string} metric
 * @param {number | null} keyframe
 * @returns {Question}
 */
export const matrix = (e, view, camera, metric, keyframe) => ({
  path: `${episodePath(e)}/metrics/${encodeURIComponent(metric)}/matrix`,
  parameters: {
    phase: view.phase,
    camera,
    ...groupOf(e, view),
    ...stepOf(e, view),
    ...(keyframe === null ? {} : { keyframe }),
    v: e.version,
  },
});

/**
 * The head whose map, as it is shown, varies most over the episode.
 * @param {Episode} e @param {View} view @param {string} camera
 * @returns {Question}
 */
export const activeHead = (e, view, camera) => ({
  path: `${episodePath(e)}/active-head`,
  parameters: {
    phase: view.phase,
    camera,
    layer: view.layer,
    ...stepOf(e, view),
    reduce: view.reduce,
    ...(view.query ? { query: view.query } : {}),
    ...(view.sinks ? { sink_corrected: true } : {}),
    v: e.version,
  },
});

/**
 * A metric of all heads of the layer at every keyframe.
 * @param {Episode} e @param {View} view @param {string} camera @param {string} metric
 * @returns {Question}
 */
export const trace = (e, view, camera, metric) => ({
  path: `${episodePath(e)}/metrics/${encodeURIComponent(metric)}/trace`,
  parameters: {
    phase: view.phase,
    camera,
    layer: view.layer,
    head: "all",
    ...groupOf(e, view),
    ...stepOf(e, view),
    v: e.version,
  },
});

/**
 * Text tokens of the phase's queries: of all keyframes, or if these are many, of the shown one.
 * @param {Episode} e @param {View} view
 * @returns {Question | null} null if the phase's queries hold no text
 */
export function tokens(e, view) {
  const spans = phaseOf(e, view).query.filter((s) => s.kind === "text");
  const count = e.frames.length * spans.reduce((sum, s) => sum + s.stop - s.start, 0);
  if (!count) return null;
  /** @type {Parameters} */
  const which = count <= ROWS ? { limit: ROWS } : { keyframe: view.keyframe };
  const phase = view.phase.split("/")[0];
  return { path: `${episodePath(e)}/tokens`, parameters: { phase, axis: "query", ...which, v: e.version } };
}

/** Tokens that the policy generated, one a step of phase decode. @param {Episode} e @returns {Question} */
export const generated = (e) => ({
  path: `${episodePath(e)}/tokens`,
  parameters: { phase: "decode", axis: "step", v: e.version },
});

/** Sinks of the phase, of every layer and head. @param {Episode} e @param {View} view @returns {Question} */
export const sinks = (e, view) => ({
  path: `${episodePath(e)}/sinks`,
  parameters: { phase: view.phase.split("/")[0], v: e.version },
});

/**
 * How every query token attends to the patches from the first brushed one to the last:
 * (query, key) of one head, or (head, query, key).
 * @param {Episode} e @param {View} view @param {Brush} brush
 * @param {number | null} head null for all
 * @returns {Question | null} null if the camera is not among the keys
 */
export function attending(e, view, brush, head) {
  const span = phaseOf(e, view).key.find((s) => s.camera === brush.camera);
  if (!span) return null;
  const cols = e.cameras[brush.camera].grid[1];
  const first = span.start + brush.rows[0] * cols + brush.cols[0];
  const last = span.start + brush.rows[1] * cols + brush.cols[1];
  return {
    path: `${episodePath(e)}/attention`,
    parameters: {
      phase: view.phase,
      keyframe: view.keyframe,
      layer: view.layer,
      ...(head === null ? {} : { head }),
      ...stepOf(e, view),
      key: `${first}:${last + 1}`, // one range, however many rows
      v: e.version,
    },
  };
}

/**
 * Mean maps of successes and failures of the store, aligned by normalised time.
 * @param {Episode} e whose phase, layer and head are shown
 * @param {View} view @param {string} camera @param {number | "mean"} head
 * @returns {Question}
 */
export const difference = (e, view, camera, head) => ({
  path: `${storePath(e.store)}/difference`,
  parameters: {
    by: "outcome",
    where: `run = '${e.run.replaceAll("'", "''")}'`,
    phase: view.phase,
    camera,
    layer: view.layer,
    head,
    ...groupOf(e, view),
    ...stepOf(e, view),
    reduce: view.reduce,
    moments: MOMENTS,
  },
});

/**
 * Which heads differ between successes and failures of the run.
 * @param {Episode} e @param {View} view @param {string} camera
 * @returns {Question}
 */
export const comparison = (e, view, camera) => ({
  path: `${storePath(e.store)}/compare`,
  parameters: {
    by: "outcome",
    where: `run = '${e.run.replaceAll("'", "''")}'`,
    metric: view.metric,
    phase: view.phase,
    camera,
    ...groupOf(e, view),
    ...(view.step < 0 ? {} : stepOf(e, view)),
  },
});

/** @param {Episode} e @param {View} view @returns {Phase} */
export const phaseOf = (e, view) => e.phases[view.phase];

/** Whether the view's queries are a group that the ingest kept statistics of. @param {Episode} e @param {View} view */
export const isStored = (e, view) => view.query === "" || phaseOf(e, view).query_groups.includes(view.query);

/** @param {Episode} e @param {View} view @returns {Parameters} */
const stepOf = (e, view) => (phaseOf(e, view).steps === null ? {} : { step: view.step });

/** @param {Episode} e @param {View} view @returns {Parameters} */
const groupOf = (e, view) => (view.query && isStored(e, view) ? { query: view.query } : {});

/** @param {string} store */
const storePath = (store) => `/v1/stores/${encodeURIComponent(store)}`;

/** @param {{store: string, run: string, episode: string}} e */
const episodePath = (e) =>
  `${storePath(e.store)}/episodes/${encodeURIComponent(e.run)}/${encodeURIComponent(e.episode)}`;
