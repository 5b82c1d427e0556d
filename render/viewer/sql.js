// The user's own SQL: tables at the side, completion, history, errors at their place, and ready-made questions.

import { sql as run } from "./api.js";
import { useAnswer } from "./answers.js";
import { Menu } from "./controls.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { namedQueries, tables as askTables } from "./questions.js";
import { Results } from "./results.js";
import { save } from "./share.js";
import { completions, placeOf, wordAt } from "./sql_words.js";

/** @import {Change, SqlRows, SqlTable, View} from "./types" */

const EXAMPLE =
  "select outcome, count(*) as episodes, sum(keyframes) as keyframes\nfrom episodes group by all";
const KEPT = 50;

/** Queries that ran, the latest first. @param {string} store @returns {string[]} */
function historyOf(store) {
  try {
    const found = JSON.parse(localStorage.getItem(`attnstore-sql-${store}`) ?? "[]");
    return Array.isArray(found) ? found.filter((q) => typeof q === "string") : [];
  } catch {
    return []; // a page that may keep nothing
  }
}

/** @param {string} store @param {string} query */
function remember(store, query) {
  const kept = [query, ...historyOf(store).filter((q) => q !== query)].slice(0, KEPT);
  try {
    localStorage.setItem(`attnstore-sql-${store}`, JSON.stringify(kept));
  } catch {
    // it holds until the page is left
  }
  return kept;
}

/** @param {{view: View, change: Change}} props */
export function Sql({ view, change }) {
  const named = useAnswer(namedQueries(view.store)).value ?? [];
  const tables = useAnswer(askTables());
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const [draft, setDraft] = useState(view.sql || EXAMPLE);
  const [rows, setRows] = useState(/** @type {SqlRows | null} */ (null));
  const [state, setState] = useState(/** @type {{error?: string, busy?: boolean, ms?: number}} */ ({}));
  const [history, setHistory] = useState(() => historyOf(view.store));
  const [offered, setOffered] = useState(/** @type {ReturnType<typeof completions>} */ ([]));
  const [at, setAt] = useState(-1);
  const asked = useRef(0);
  const ask = async (/** @type {string} */ query) => {
    const number = ++asked.current,
      began = performance.now();
    change({ sql: query });
    setOffered([]);
    setState({ busy: true });
    try {
      const found = await run(view.store, query);
      if (number !== asked.current) return;
      setRows(found);
      setState({ ms: performance.now() - began });
      setHistory(remember(view.store, query));
    } catch (error) {
      if (number !== asked.current) return;
      const message = String(error instanceof Error ? error.message : error);
      setState({ error: message });
      const place = placeOf(message, query);
      if (place && box.current?.value === query && document.activeElement === box.current)
        box.current.setSelectionRange(place.start, place.stop);
    }
  };
  useEffect(() => {
    if (view.sql) ask(view.sql);
    setHistory(historyOf(view.store));
  }, [view.store]);
  const download = async () => {
    try {
      save(await run(view.store, view.sql || draft, "csv"), "rows.csv");
    } catch (error) {
      setState({ error: String(error instanceof Error ? error.message : error) });
    }
  };
  /** Put text in place of a range, with the caret behind it. @param {string} text @param {number} start @param {number} stop */
  const put = (text, start, stop) => {
    const field = box.current;
    if (!field) return;
    field.focus();
    field.setSelectionRange(start, stop);
    // what was written stays in the browser's own undo
    if (!document.execCommand("insertText", false, text)) field.setRangeText(text, start, stop, "end");
    setDraft(field.value);
    setOffered([]);
  };
  const insert = (/** @type {string} */ name) => {
    const field = box.current;
    if (field) put(name, field.selectionStart, field.selectionEnd);
  };
  const accept = (/** @type {number} */ i) => {
    const field = box.current;
    if (!field || !offered[i]) return;
    const { start } = wordAt(field.value, field.selectionStart);
    put(offered[i].text, start, field.selectionStart);
  };
  const offer = () => {
    const field = box.current;
    if (!field) return;
    setAt(-1);
    setOffered(completions(field.value, field.selectionStart, tables.value ?? []));
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return ask(draft);
    if (event.key === " " && event.ctrlKey) return (event.preventDefault(), offer());
    if (!offered.length) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const by = event.key === "ArrowDown" ? 1 : -1;
      setAt((at + by + offered.length + (at < 0 && by < 0 ? 1 : 0)) % offered.length);
    } else if (event.key === "Tab" && !event.shiftKey) accept(Math.max(at, 0));
    else if (event.key === "Enter" && at >= 0) accept(at);
    else if (event.key === "Escape") setOffered([]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const place = state.error ? placeOf(state.error, view.sql) : null;
  const open = (/** @type {Partial<View>} */ found) => change({ view: "look", ...found });
  return html`
    <div class="sql-view">
      <section class="sql" aria-label="SQL">
        <div class="editor card">
          <label class="field">
            <span>
              Query, on the tables of the store: episodes, keyframes, head_stats, episode_stats, tokens …
            </span>
            <textarea
              ref=${box}
              class="code"
              rows="6"
              spellcheck="false"
              autocomplete="off"
              aria-autocomplete="list"
              aria-controls="completions"
              aria-activedescendant=${at >= 0 ? `completion-${at}` : undefined}
              value=${draft}
              onInput=${(/** @type {any} */ x) => (setDraft(x.target.value), offer())}
              onKeyDown=${key}
              onBlur=${() => setTimeout(() => document.activeElement === box.current || setOffered([]), 150)}
            ></textarea>
          </label>
          <div
            id="completions"
            class="completions"
            role="listbox"
            aria-label="Completions: arrow keys choose, Tab takes one"
            hidden=${!offered.length}
          >
            ${offered.map(
              ({ text, about }, i) => html`
                <div
                  id=${`completion-${i}`}
                  role="option"
                  aria-selected=${i === at}
                  class=${i === Math.max(at, 0) ? "first" : ""}
                  onMouseDown=${(/** @type {Event} */ x) => (x.preventDefault(), accept(i))}
                >
                  <span class="code">${text}</span>
                  <span class="quiet small">${about}</span>
                </div>
              `,
            )}
          </div>
          <div class="buttons">
            <button type="button" class="primary" onClick=${() => ask(draft)} title="Ctrl Enter">Run</button>
            <${Menu}
              label="ready-made"
              inline
              value=""
              options=${[["", "choose a question …"], ...named.map((q) => [q.name, q.question])]}
              change=${(/** @type {string} */ name) => {
                const found = named.find((q) => q.name === name);
                if (found) (setDraft(found.sql), ask(found.sql));
              }}
            />
            ${
              history.length > 0 &&
              html`
                <${Menu}
                  label="history"
                  inline
                  value=""
                  options=${[
                    ["", `${history.length} that ran …`],
                    ...history.map((q, i) => [String(i), q.replace(/\s+/g, " ").slice(0, 90)]),
                  ]}
                  change=${(/** @type {string} */ i) => {
                    const query = history[Number(i)];
                    if (i !== "" && query) (setDraft(query), ask(query));
                  }}
                />
              `
            }
            <button type="button" onClick=${download}>CSV</button>
            <span class="quiet" role="status">
              ${state.busy ? "running …" : state.ms !== undefined && rows ? `${rows.rows.length} rows in ${state.ms.toFixed(0)} ms` : ""}
            </span>
          </div>
          ${
            state.error &&
            html`
              <pre class="error" role="alert">
${state.error}${place ? `\n\n${place.line}\n${" ".repeat(place.column)}${"^".repeat(Math.max(1, place.stop - place.start))}` : ""}</pre>
            `
          }
        </div>
        ${
          rows &&
          !state.error &&
          html`
            <${Results} rows=${rows} view=${view} open=${open} />
          `
        }
      </section>
      <${Tables} tables=${tables.value ?? []} error=${tables.error} insert=${insert} />
    </div>
  `;
}

/** @param {{tables: readonly SqlTable[], error: Error | undefined, insert: (name: string) => void}} props */
function Tables({ tables, error, insert }) {
  const [wanted, setWanted] = useState("");
  const words = wanted.trim().toLowerCase();
  const fits = (/** @type {string} */ text) => text.toLowerCase().includes(words);
  const found = tables
    .map((t) => ({
      ...t,
      columns: fits(t.name) ? t.columns : t.columns.filter((c) => fits(`${c.name} ${c.definition}`)),
    }))
    .filter((t) => t.columns.length);
  return html`
    <aside class="card tables" aria-label="Tables and columns">
      <h2>
        Tables
        <span class="quiet">${" a click writes the name"}</span>
      </h2>
      <input
        type="search"
        placeholder="table, column or what it means"
        aria-label="Find a column"
        value=${wanted}
        onInput=${(/** @type {any} */ x) => setWanted(x.target.value)}
      />
      ${
        error &&
        html`
          <p class="note">${error.message}</p>
        `
      }
      ${found.map(
        (t) => html`
          <details key=${t.name} open=${words !== ""}>
            <summary>
              <span class="code">${t.name}</span>
              <span class="quiet small">${` a row is ${t.row}`}</span>
            </summary>
            <button type="button" class="link code" onClick=${() => insert(t.name)}>
              ${`write ${t.name}`}
            </button>
            <ul>
              ${t.columns.map(
                (c) => html`
                  <li>
                    <button type="button" class="link code" onClick=${() => insert(c.name)}>${c.name}</button>
                    <span class="quiet small">
                      ${` ${c.type.toLowerCase()}${c.unit ? `, ${c.unit}` : ""}: ${c.definition}`}
                    </span>
                  </li>
                `,
              )}
            </ul>
          </details>
        `,
      )}
    </aside>
  `;
}
