// Answers that are kept, by the questions' canonical names: wherever they come from.

import { formOf, isFresh, keyOf } from "./questions.js";

/** @import {Answered, Asked, Question, QuestionName} from "./types" */

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
 * Keep the latest answers of a way to ask.
 * @param {(question: Asked) => Promise<any>} ask
 */
export function keeping(ask) {
  /** @type {Map<string, Entry>} */
  const answers = new Map();
  const nameOf = (/** @type {Asked} */ question) => `${keyOf(question)} ${question.parameters.v ?? ""}`;

  /**
   * Ask, unless the answer is here or on its way.
   * @template {QuestionName} N
   * @param {Question<N>} question
   * @returns {Promise<Answered<N>>}
   */
  function get(question) {
    if (formOf(question) === "blob") return ask(question); // kept by who decodes it
    if (isFresh(question)) return ask(question);
    const name = nameOf(question);
    const known = answers.get(name);
    if (known) {
      answers.delete(name);
      answers.set(name, known);
      return known.promise;
    }
    /** @type {Entry} */
    const entry = { promise: ask(question) };
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
   * @template {QuestionName} N
   * @param {Question<N>} question
   * @returns {Answered<N> | undefined}
   */
  const peek = (question) => answers.get(nameOf(question))?.value;

  /** Drop the answers to a question, whatever its parameters. @param {QuestionName} name */
  function forget(name) {
    for (const key of answers.keys()) if (key.startsWith(`[${JSON.stringify(name)}`)) answers.delete(key);
  }

  return { get, peek, forget };
}
