// What is being written in SQL: the word at the caret, how it may go on, where an error is. Pure functions.

/** @import {SqlTable} from "./types" */

/** @typedef {{text: string, about: string}} Completion */

const KEYWORDS =
  "select from where group by order having limit join using on as distinct case when then else end and or not in is null between like with qualify over partition desc asc all exclude filter union".split(
    " ",
  );
const FUNCTIONS =
  "count avg min max sum median stddev_samp quantile_cont arg_max arg_min round coalesce nullif lower upper contains list corr row_number stands_for_phase active_head counting_object_parts".split(
    " ",
  );
const MOST = 8;

/**
 * The word that ends at the caret, and what it is qualified by: `e` of `e.key`.
 * @param {string} text @param {number} caret
 */
export function wordAt(text, caret) {
  const found = text.slice(0, caret).match(/(?:(\w+)\.)?(\w*)$/);
  const word = found?.[2] ?? "";
  return { word, start: caret - word.length, of: found?.[1] ?? "" };
}

/**
 * How the word at the caret may go on: columns of the tables that the query names come first.
 * @param {string} text @param {number} caret @param {readonly SqlTable[]} tables
 * @returns {Completion[]}
 */
export function completions(text, caret, tables) {
  const { word, of } = wordAt(text, caret);
  if (!word && !of) return [];
  const words = new Set(text.toLowerCase().match(/\w+/g));
  const alias = of && text.match(new RegExp(`\\b(\\w+)\\s+(?:as\\s+)?${of}\\b`, "i"))?.[1];
  const named = of
    ? tables.filter((t) => t.name === of || t.name === alias)
    : tables.filter((t) => words.has(t.name));
  /** @type {Completion[]} */
  const all = named.flatMap((t) =>
    t.columns.map((c) => ({
      text: c.name,
      about: `${t.name}: ${c.definition}${c.unit ? ` (${c.unit})` : ""}`,
    })),
  );
  if (!of) {
    all.push(...tables.map((t) => ({ text: t.name, about: `table: ${t.row}` })));
    all.push(...FUNCTIONS.map((f) => ({ text: `${f}(`, about: "function" })));
    all.push(...KEYWORDS.map((k) => ({ text: k, about: "" })));
    if (!named.length)
      all.push(...tables.flatMap((t) => t.columns.map((c) => ({ text: c.name, about: `of ${t.name}` }))));
  }
  const start = word.toLowerCase();
  const seen = new Set();
  return all
    .filter(({ text: t }) => {
      const fits = t.toLowerCase().startsWith(start) && t.toLowerCase() !== start && !seen.has(t);
      if (fits) seen.add(t);
      return fits;
    })
    .slice(0, MOST);
}

/**
 * Where an error of the service says that it is.
 * @param {string} message @param {string} text the query
 * @returns {{line: string, column: number, start: number, stop: number} | null} column from 0; the word as a range
 */
export function placeOf(message, text) {
  const found = message.match(/\(line (\d+), column (\d+)\)\s*$/);
  if (!found) return placeOfName(message, text);
  const lines = text.split("\n");
  const number = Number(found[1]) - 1;
  const line = lines[number];
  if (line === undefined) return null;
  const column = Math.min(Number(found[2]) - 1, line.length);
  const start = lines.slice(0, number).reduce((sum, l) => sum + l.length + 1, 0) + column;
  const length = line.slice(column).match(/^(\w+|\S)/)?.[0].length ?? 0;
  return { line, column, start, stop: start + length };
}

/**
 * Where the name stands that an error is about, if it says no place: DuckDB does so for some.
 * @param {string} message @param {string} text
 */
function placeOfName(message, text) {
  const name = message.match(/(?:column|function|with name) "?(\w+)"?/i)?.[1];
  const start = name ? text.search(new RegExp(`\\b${name}\\b`, "i")) : -1;
  if (!name || start < 0) return null;
  const before = text.slice(0, start).split("\n");
  const column = before[before.length - 1].length;
  return { line: text.split("\n")[before.length - 1], column, start, stop: start + name.length };
}
