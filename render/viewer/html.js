// Preact with htm's templates. Text from stores becomes text nodes and attributes, never markup.

import { h, render } from "./vendor/preact.js";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

/** Tagged template: elements from markup. */
export const html = /** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */ (htm.bind(h));

export { render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/**
 * The list of last time, as long as its items are the same: a dependency of effects and memos.
 * @template T
 * @param {T[]} items
 * @returns {T[]}
 */
export function useList(items) {
  const kept = useRef(items);
  const same =
    kept.current.length === items.length && items.every((item, i) => Object.is(item, kept.current[i]));
  if (!same) kept.current = items;
  return kept.current;
}
