// In place of viewer/api.js in a pack: the answers are in the page. The same exports.

import { keeping, keyOf, Unanswered } from "./kept.js";
import { parseNpy } from "./npy.js";

/** The store beside the page. */
export const addressOf = () => decodeURIComponent(new URL(`./${index.store}`, location.href).pathname);

const kept = keeping(ask);
export const get = kept.get;
export const peek = kept.peek;

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

/** @param {any} question @param {"json" | "array" | "blob"} form */
async function ask(question, form) {
  const key = keyOf(question);
  if (form === "json" && index.lists[question.path]) return listed(question);
  const place = { json: index.json, array: index.arrays, blob: index.blobs }[form][key];
  if (!place) throw new Unanswered(missing(question), 404);
  if (form === "json") return (await rowsOf(place))[key];
  const [chunk, about] = place;
  if (form === "blob") return new Blob([bytesOf(chunk)], { type: about });
  return parseNpy(await inflated(chunk).arrayBuffer(), about.split(","));
}

const COLLATOR = new Intl.Collator("en");

/** The list of episodes, filtered and in order, as the service does it. @param {any} question */
async function listed({ path, parameters }) {
  const key = index.lists[path];
  const page = (await rowsOf(index.json[key]))[key];
  const { outcome, where, order, descending } = parameters;
  let rows = page.rows;
  if (outcome) rows = rows.filter((/** @type {any} */ r) => r.outcome === outcome);
  if (where) {
    const text = where.match(/^contains\(lower\(concat_ws\([^)]*\)\), '((?:[^']|'')*)'\)$/)?.[1];
    if (text === undefined) throw new Unanswered("conditions in SQL are not in this pack: search for text", 404);
    const wanted = text.replaceAll("''", "'");
    rows = rows.filter((/** @type {any} */ r) =>
      [r.name, r.instruction, r.task, r.run].filter((v) => v !== null).join(" ").toLowerCase().includes(wanted));
  }
  const sign = descending ? -1 : 1;
  rows = [...rows].sort((a, b) => {
    const [x, y] = [a[order], b[order]];
    if (x === y) return COLLATOR.compare(`${a.run} ${a.episode}`, `${b.run} ${b.episode}`);
    if (x === null || y === null) return x === null ? 1 : -1;
    return sign * (typeof x === "number" ? x - y : x < y ? -1 : 1);
  });
  return { ...page, total: rows.length, rows };
}

/** @param {any} question */
function missing({ path, parameters }) {
  const what = path.split("/").at(-1);
  if (what === "attention") return "weights between tokens are not in this pack: attnstore pull --tier full";
  if (what === "difference" || what === "compare") return "groups of episodes are compared by attnstore compare; not in this pack";
  if (what === "maps" && parameters.sink_corrected) return "maps without sinks are not in this pack";
  if (what === "maps" && parameters.query) return `the maps of ${parameters.query} need the weights, which are not in this pack`;
  const at = ["phase", "layer", "step"].filter((n) => n in parameters).map((n) => `${n} ${parameters[n]}`);
  return `${what}${at.length ? ` of ${at.join(", ")}` : ""} is not in this pack`;
}
