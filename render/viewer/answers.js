// Answers as Preact state.

import { get, peek } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";
import { keyOf } from "./questions.js";

/** @import {Answered, Asked, Question, QuestionName} from "./types" */

/**
 * @template T
 * @typedef {{value?: T, error?: Error, pending: boolean}} Answer
 */

const PENDING = Object.freeze({ pending: true });
const NOTHING = Object.freeze({ pending: false });

/**
 * Ask several questions; each answer is there when it comes.
 * @template {QuestionName} N
 * @param {(Question<N> | null | undefined)[]} questions null asks nothing
 * @returns {Answer<Answered<N>>[]}
 */
export function useAnswers(questions) {
  const keys = questions.map((q) =>
    q ? `${keyOf(q)} ${/** @type {Asked} */ (q).parameters.v ?? ""} ${q.turn ?? ""}` : "",
  );
  const all = keys.join("\n");
  const [known, setKnown] = useState(/** @type {Record<string, Answer<Answered<N>>>} */ ({}));
  useEffect(() => {
    let wanted = true;
    questions.forEach((question, i) => {
      if (!question) return;
      if (peek(question) !== undefined) {
        // another part of the page asked the same, and its answer came after this one was drawn
        if (answers[i].pending) setKnown((old) => ({ ...old }));
        return;
      }
      const note = (/** @type {Answer<Answered<N>>} */ answer) => {
        if (wanted)
          setKnown((old) => ({
            ...Object.fromEntries(keys.filter((k) => old[k]).map((k) => [k, old[k]])),
            [keys[i]]: answer,
          }));
      };
      get(question).then(
        (value) => note({ value, pending: false }),
        (error) => note({ error, pending: false }),
      );
    });
    return () => {
      wanted = false;
    };
  }, [all]);
  // what was shown stays, even if it was dropped in favour of newer answers
  const held = useRef(/** @type {Record<string, Answer<Answered<N>>>} */ ({}));
  const answers = questions.map((question, i) => {
    if (!question) return NOTHING;
    const value = peek(question);
    return value !== undefined
      ? { value, pending: false }
      : (known[keys[i]] ?? held.current[keys[i]] ?? PENDING);
  });
  held.current = Object.fromEntries(keys.map((key, i) => [key, answers[i]]).filter(([key]) => key));
  return answers;
}

/**
 * Ask one question.
 * @template {QuestionName} N
 * @param {Question<N> | null | undefined} question
 * @returns {Answer<Answered<N>>}
 */
export const useAnswer = (question) => useAnswers([question])[0];
