// The one way to data: questions of questions.js, whose answers are JSON, arrays or blobs. A page that
// carries its answers with it replaces this module and finds them by `keyOf`.

import { keeping, Unanswered } from "./kept.js";
import { parseNpy } from "./npy.js";
import { addressOf, formOf } from "./questions.js";

/** @import {Asked} from "./types" */

/** What Python opens the store by. @param {string} store */
export const storeAddress = (store) => `${location.origin}/v1/stores/${store}`;

/** What is said where a choice of weighting is left out; nothing, since here none is. @type {string} */
export const ABSENT_WEIGHTING = "";

const kept = keeping(ask);
export const get = kept.get;
export const peek = kept.peek;
export const forget = kept.forget;

/**
 * Run a query of the user on a store.
 * @param {string} store
 * @param {string} query
 * @param {"json" | "csv"} form
 * @returns {Promise<any>} `SqlRows`, or a `Blob` of CSV
 */
export async function sql(store, query, form = "json") {
  const response = await send(`/v1/stores/${encodeURIComponent(store)}/sql?format=${form}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ query }),
  });
  return form === "json" ? response.json() : response.blob();
}

/** @param {Asked} question */
async function ask(question) {
  const form = formOf(question);
  const [path, text] = addressOf(question);
  if (form === "array") text.set("format", "npy");
  // of a browser's few connections, maps come first: everything else is beside the pictures
  const priority = form === "array" ? "high" : "auto";
  const response = await send(`${path}${text.size ? `?${text}` : ""}`, { priority });
  if (form === "json") return response.json();
  if (form === "blob") return response.blob();
  const dims = response.headers.get("X-Attnstore-Dims") ?? "";
  return parseNpy(await response.arrayBuffer(), dims.split(","));
}

/**
 * @param {string} url
 * @param {RequestInit} options
 */
async function send(url, options) {
  for (let tries = 0; ; tries++) {
    let response;
    try {
      response = await fetch(url, options);
    } catch {
      throw new Unanswered("the service does not answer: is `attnstore serve` still running?", 0);
    }
    if (response.ok) return response;
    if (response.status === 429 && tries < 5) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(seconds, 5)));
      continue;
    }
    if (response.status === 401)
      throw new Unanswered("open the address that `attnstore serve` printed, with its token", 401);
    const said = await response.json().catch(() => null);
    throw new Unanswered(said?.error?.message ?? `HTTP ${response.status}`, response.status);
  }
}
