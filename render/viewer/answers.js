// Answers as Preact state.

import { get, peek } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";
import { keyOf } from "./kept.js";

/** @import {Question} from "./types" */

/**
 * @template T
 * @typedef {{value?: T, error?: Error, pending: boolean}} Answer
 */

const PENDING = Object.freeze({ pending: true });
const NOTHING = Object.freeze({ pending: false });

/**
 * Ask several questions; each answer is there when it comes.
 * @param {(Question | null | undefined)[]} questions null asks nothing
 * @param {"json" | "array" | "blob"} form
 * @returns {Answer<any>[]}
 */
export function useAnswers(questions, form = "json") {
  const keys = questions.map((q) => (q ? `${keyOf(q)} ${q.parameters.v ?? ""}` : ""));
  const all = keys.join("\n");
  const [known, setKnown] = useState(/** @type {Record<string, Answer<any>>} */ ({}));
  useEffect(() => {
    let wanted = true;
    questions.forEach((question, i) => {
      if (!question || peek(question, form) !== undefined) return;
      const note = (/** @type {Answer<any>} */ answer) => {
        if (wanted)
          setKnown((old) => ({
            ...Object.fromEntries(keys.filter((k) => old[k]).map((k) => [k, old[k]])),
            [keys[i]]: answer,
          }));
      };
      get(question, form).then(
        (value) => note({ value, pending: false }),
        (error) => note({ error, pending: false }),
      );
    });
    return () => {
      wanted = false;
    };
  }, [all, form]);
  // what was shown stays, even if it was dropped in favour of newer answers
  const held = useRef(/** @type {Record<string, Answer<any>>} */ ({}));
  const answers = questions.map((question, i) => {
    if (!question) return NOTHING;
    const value = peek(question, form);
    return value !== undefined
      ? { value, pending: false }
      : (known[keys[i]] ?? held.current[keys[i]] ?? PENDING);
  });
  held.current = Object.fromEntries(keys.map((key, i) => [key, answers[i]]).filter(([key]) => key));
  return answers;
}

/**
 * Ask one question.
 * @param {Question | null | undefined} question
 * @param {"json" | "array" | "blob"} form
 * @returns {Answer<any>}
 */
export const useAnswer = (question, form = "json") => useAnswers([question], form)[0];
