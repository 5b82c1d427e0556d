// The user's own SQL, and ready-made questions.

import { sql as run } from "./api.js";
import { useAnswer } from "./answers.js";
import { Menu } from "./controls.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { namedQueries } from "./questions.js";
import { save } from "./share.js";

/** @import {Change, SqlRows, View} from "./types" */

const SHOWN = 500;
const EXAMPLE =
  "select outcome, count(*) as episodes, sum(keyframes) as keyframes\nfrom episodes group by all";

/** @param {{view: View, change: Change, open: (row: any) => void}} props */
export function Sql({ view, change, open }) {
  const named = useAnswer(namedQueries(view.store)).value ?? [];
  const [draft, setDraft] = useState(view.sql || EXAMPLE);
  const [rows, setRows] = useState(/** @type {SqlRows | null} */ (null));
  const [state, setState] = useState(/** @type {{error?: string, busy?: boolean, ms?: number}} */ ({}));
  const asked = useRef(0);
  const ask = async (/** @type {string} */ query) => {
    const number = ++asked.current,
      began = performance.now();
    change({ sql: query });
    setState({ busy: true });
    try {
      const found = await run(view.store, query);
      if (number !== asked.current) return;
      setRows(found);
      setState({ ms: performance.now() - began });
    } catch (error) {
      if (number === asked.current)
        setState({ error: String(error instanceof Error ? error.message : error) });
    }
  };
  useEffect(() => {
    if (view.sql) ask(view.sql);
  }, [view.store]);
  const download = async () => {
    try {
      save(await run(view.store, view.sql || draft, "csv"), "rows.csv");
    } catch (error) {
      setState({ error: String(error instanceof Error ? error.message : error) });
    }
  };
  return html`
    <section class="sql" aria-label="SQL">
      <div class="editor card">
        <label class="field">
          <span>
            Query, on the tables of the store: episodes, keyframes, head_stats, episode_stats, tokens …
          </span>
          <textarea
            class="code"
            rows="6"
            spellcheck="false"
            value=${draft}
            onInput=${(/** @type {any} */ x) => setDraft(x.target.value)}
            onKeyDown=${(/** @type {KeyboardEvent} */ x) => x.key === "Enter" && (x.ctrlKey || x.metaKey) && ask(draft)}
          ></textarea>
        </label>
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
          <button type="button" onClick=${download}>CSV</button>
          <span class="quiet" role="status">
            ${state.busy ? "running …" : state.ms !== undefined && rows ? `${rows.rows.length} rows in ${state.ms.toFixed(0)} ms` : ""}
          </span>
        </div>
        ${
          state.error &&
          html`
            <pre class="error" role="alert">${state.error}</pre>
          `
        }
      </div>
      ${
        rows &&
        !state.error &&
        html`
          <${Rows} rows=${rows} open=${open} />
        `
      }
    </section>
  `;
}

/** @param {{rows: SqlRows, open: (row: any) => void}} props */
function Rows({ rows: { columns, rows }, open }) {
  const [run, episode] = ["run", "episode"].map((name) => columns.findIndex((c) => c.name === name));
  return html`
    <div class="result card" tabindex="0" role="region" aria-label="Rows">
      <table>
        <thead>
          <tr>
            ${columns.map(
              (c, i) => html`
                <th scope="col" title=${c.type} class=${typeof rows[0]?.[i] === "number" ? "number" : ""}>
                  ${c.name}
                </th>
              `,
            )}
          </tr>
        </thead>
        <tbody>
          ${rows.slice(0, SHOWN).map(
            (row) => html`
              <tr>
                ${row.map(
                  (value, i) => html`
                    <td class=${typeof value === "number" ? "number" : ""}>
                      ${
                        i === episode && run >= 0
                          ? html`
                              <button
                                type="button"
                                class="link"
                                onClick=${() => open({ run: row[run], episode: value })}
                              >
                                ${value}
                              </button>
                            `
                          : shown(value)
                      }
                    </td>
                  `,
                )}
              </tr>
            `,
          )}
        </tbody>
      </table>
      ${
        rows.length > SHOWN &&
        html`
          <p class="quiet">The first ${SHOWN} of ${rows.length} rows; CSV has all.</p>
        `
      }
      ${
        rows.length === 0 &&
        html`
          <p class="quiet">No rows.</p>
        `
      }
    </div>
  `;
}

/** @param {unknown} value */
function shown(value) {
  if (value === null)
    return html`
      <i class="quiet">NULL</i>
    `;
  if (typeof value === "number" && !Number.isInteger(value)) return String(+value.toPrecision(6));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
