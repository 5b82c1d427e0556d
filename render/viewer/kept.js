// Answers that are kept, by the questions' canonical names: wherever they come from.

/** @import {Question} from "./types" */

/** @typedef {"json" | "array" | "blob"} Form */
/** @typedef {{promise: Promise<any>, value?: any}} Entry */

const MOST = 300;

/** A question without an answer: refused by the service, or not in this pack. */
export class Unanswered extends Error {
  /**
   * @param {string} message
   * @param {number} status of HTTP; 0 if the service is not reached
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Canonical name of a question: equal for equal questions, whatever the version of the episode.
 * @param {Question} question
 */
export function keyOf({ path, parameters }) {
  const named = Object.entries(parameters).filter(([name]) => name !== "v");
  const text = new URLSearchParams(named.map(([name, value]) => [name, String(value)]));
  text.sort();
  return named.length ? `${path}?${text}` : path;
}

/**
 * Keep the latest answers of a way to ask.
 * @param {(question: Question, form: Form) => Promise<any>} ask
 */
export function keeping(ask) {
  /** @type {Map<string, Entry>} */
  const answers = new Map();
  const nameOf = (/** @type {Question} */ question, /** @type {Form} */ form) =>
    `${form} ${keyOf(question)} ${question.parameters.v ?? ""}`;

  /**
   * Ask, unless the answer is here or on its way.
   * @param {Question} question
   * @param {Form} form
   * @returns {Promise<any>} of JSON, `NumberArray` or `Blob`
   */
  function get(question, form = "json") {
    if (form === "blob") return ask(question, form); // kept by who decodes it
    const name = nameOf(question, form);
    const known = answers.get(name);
    if (known) {
      answers.delete(name);
      answers.set(name, known);
      return known.promise;
    }
    /** @type {Entry} */
    const entry = { promise: ask(question, form) };
    answers.set(name, entry);
    entry.promise.then(
      (value) => (entry.value = value),
      () => answers.delete(name),
    );
    for (const old of answers.keys()) {
      if (answers.size <= MOST) break;
      answers.delete(old);
    }
    return entry.promise;
  }

  /**
   * The answer if it is here already; undefined if not.
   * @param {Question} question
   * @param {Form} form
   * @returns {any}
   */
  const peek = (question, form = "json") => answers.get(nameOf(question, form))?.value;

  return { get, peek };
}
