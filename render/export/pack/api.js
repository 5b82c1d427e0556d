// In place of viewer/api.js in a pack: the answers are in the page. The same exports.

import { keeping, Unanswered } from "./kept.js";
import { parseNpy } from "./npy.js";
import { absenceOf, formOf, keyOf } from "./questions.js";

/** The store beside the page. */
export const storeAddress = () => decodeURIComponent(new URL(`./${index.store}`, location.href).pathname);

/** What the page says where it leaves a choice out. */
export const ABSENT_WEIGHTING =
  "raw attention: value-weighted maps and rollout are made of all weights, which are not in this pack";

const kept = keeping(ask);
export const get = kept.get;
export const peek = kept.peek;
export const forget = kept.forget;

/** @param {string} store @returns {Promise<never>} */
export async function sql(store) {
  throw new Unanswered(`SQL is not in this pack: attnstore sql ${store} "…" beside this page`, 404);
}

const index = JSON.parse(textOf("pack-index"));
/** Rows of a chunk of JSON answers. @type {Map<string, Promise<any>>} */
const opened = new Map();

/** @param {string} id */
function textOf(id) {
  return document.getElementById(id)?.textContent ?? "";
}

/** @param {string} chunk */
function bytesOf(chunk) {
  return Uint8Array.from(atob(textOf(`pack-${chunk}`)), (c) => c.charCodeAt(0));
}

/** @param {string} chunk */
const inflated = (chunk) =>
  new Response(new Blob([bytesOf(chunk)]).stream().pipeThrough(new DecompressionStream("gzip")));

/** @param {string} chunk */
function rowsOf(chunk) {
  const known = opened.get(chunk) ?? inflated(chunk).json();
  opened.set(chunk, known);
  return known;
}

/** @param {any} question */
async function ask(question) {
  const key = keyOf(question);
  if (question.name === "episodes") return listed(question.parameters);
  const form = formOf(question);
  const place = { json: index.json, array: index.arrays, blob: index.blobs }[form][key];
  if (!place) throw new Unanswered(absenceOf(question) ?? missing(question), 404);
  if (form === "json") {
    const answer = (await rowsOf(place))[key];
    return question.name === "episode" ? rawAlone(answer) : answer;
  }
  const [chunk, about] = place;
  if (form === "blob") return new Blob([bytesOf(chunk)], { type: about });
  return parseNpy(await inflated(chunk).arrayBuffer(), about.split(","));
}

/**
 * An episode without the choice of a weighting: value-weighted maps are made of all weights, which are not here.
 * @param {any} episode
 */
const rawAlone = (episode) => ({
  ...episode,
  phases: Object.fromEntries(
    Object.entries(episode.phases).map(([path, phase]) => [path, { ...phase, values: false }]),
  ),
});

const COLLATOR = new Intl.Collator("en");

/** The list of episodes, filtered and in order, as the service does it. @param {any} parameters */
async function listed({ outcome, text, where, order, descending, limit, offset = 0 }) {
  if (where) throw new Unanswered("conditions in SQL are not in this pack: search for text", 404);
  const page = (await rowsOf(index.json[index.episodes]))[index.episodes];
  let rows = page.rows;
  if (outcome) rows = rows.filter((/** @type {any} */ r) => r.outcome === outcome);
  if (text)
    rows = rows.filter((/** @type {any} */ r) =>
      [r.name, r.instruction, r.task, r.run]
        .filter((v) => v !== null)
        .join(" ")
        .toLowerCase()
        .includes(text.toLowerCase()),
    );
  const sign = descending ? -1 : 1;
  rows = [...rows].sort((a, b) => {
    const [x, y] = [a[order], b[order]];
    if (x === y) return COLLATOR.compare(`${a.run} ${a.episode}`, `${b.run} ${b.episode}`);
    if (x === null || y === null) return x === null ? 1 : -1;
    return sign * (typeof x === "number" ? x - y : x < y ? -1 : 1);
  });
  return { ...page, offset, total: rows.length, rows: rows.slice(offset, offset + limit) };
}

/** @param {any} question */
function missing({ name, parameters }) {
  const { query, sink_corrected } = parameters;
  if (name === "maps" && sink_corrected) return "maps without sinks are not in this pack";
  const has = () => Object.keys(index.arrays).some((key) => key.includes(JSON.stringify(["query", query])));
  if (name === "maps" && query && !has())
    return `the maps of ${query} need the weights, which are not in this pack`;
  const at = ["phase", "layer", "step"].filter((n) => n in parameters).map((n) => `${n} ${parameters[n]}`);
  return `${name}${at.length ? ` of ${at.join(", ")}` : ""} is not in this pack`;
}
