// The episodes of a store: filtered by text, outcome and SQL, in a table.

import { useAnswer } from "./answers.js";
import { Menu } from "./controls.js";
import { html, useEffect, useState } from "./html.js";
import { episodes as asked, LISTED, stores as listed } from "./questions.js";

/** @import {Change, ListedEpisode, View} from "./types" */

const NOTHING = { run: "", episode: "", otherRun: "", other: "" };
/** @type {View["order"][]} */
const ORDERS = ["name", "date", "outcome", "task", "keyframes", "committed"];
/** @type {[string, string, View["order"]][]} column, heading, order */
const COLUMNS = [
  ["name", "Episode", "name"],
  ["keyframes", "Keyframes", "keyframes"],
];

/** @param {{view: View, change: Change, open: (row: any) => void}} props */
export function Episodes({ view, change, open }) {
  const stores = useAnswer(listed()).value ?? [];
  const [limit, setLimit] = useState(LISTED);
  const draft = useDraft(view.text, (text) => change({ text }));
  const condition = useDraft(view.where, (where) => change({ where }), 600);
  const answer = useAnswer(view.store ? asked(view, limit) : null);
  const [last, setLast] = useState(/** @type {typeof answer.value | null} */ (null));
  useEffect(() => {
    if (answer.value) setLast(answer.value);
  }, [answer.value]);
  const page = answer.value ?? (answer.error ? null : last);
  const several = new Set(page?.rows.map((r) => r.run)).size > 1;
  const markOf = (/** @type {ListedEpisode} */ row) =>
    row.episode === view.episode && row.run === view.run
      ? "chosen"
      : row.episode === view.other && row.run === view.otherRun
        ? "other"
        : "";
  const sort = (/** @type {View["order"]} */ order) =>
    change(view.order === order ? { descending: !view.descending } : { order, descending: false });
  return html`
    <nav class="episodes" aria-label="Episodes">
      <div class="filters">
        ${
          stores.length > 1 &&
          html`
            <${Menu}
              label="Store"
              value=${view.store}
              options=${stores.map((s) => [s.id, s.id])}
              change=${(/** @type {string} */ store) => change({ ...NOTHING, store })}
            />
          `
        }
        <input
          type="search"
          id="filter"
          placeholder="name, task or words of the instruction"
          aria-label="Filter episodes"
          value=${draft.value}
          onInput=${draft.input}
        />
        <div class="field" role="radiogroup" aria-label="Outcome">
          <span class="choice">
            ${
              /** @type {const} */ (["", "success", "failure", "unknown"]).map(
                (o) => html`
                  <button
                    type="button"
                    role="radio"
                    aria-checked=${view.outcome === o}
                    onClick=${() => change({ outcome: o })}
                  >
                    ${o || "all"}
                  </button>
                `,
              )
            }
          </span>
        </div>
        <label class="field inline">
          <span>Order</span>
          <select value=${view.order} onChange=${(/** @type {any} */ x) => change({ order: x.target.value })}>
            ${ORDERS.map(
              (o) => html`
                <option value=${o}>${o}</option>
              `,
            )}
          </select>
          <button
            type="button"
            aria-pressed=${view.descending}
            aria-label="Descending"
            title="descending"
            onClick=${() => change({ descending: !view.descending })}
          >
            ${view.descending ? "↓" : "↑"}
          </button>
        </label>
        <label class="field">
          <span>SQL condition</span>
          <input
            class="code"
            spellcheck="false"
            placeholder="keyframes > 20 and task = 'cube'"
            value=${condition.value}
            onInput=${condition.input}
          />
        </label>
      </div>
      ${
        answer.error &&
        html`
          <p class="error" role="alert">${answer.error.message}</p>
        `
      }
      <div class="rows" aria-busy=${answer.pending}>
        <table>
          <thead>
            <tr>
              ${COLUMNS.map(
                ([name, heading, order]) => html`
                  <th
                    scope="col"
                    aria-sort=${view.order === order ? (view.descending ? "descending" : "ascending") : "none"}
                    class=${name}
                  >
                    <button type="button" class="plain" onClick=${() => sort(order)}>
                      ${heading}${view.order === order ? (view.descending ? " ↓" : " ↑") : ""}
                    </button>
                  </th>
                `,
              )}
            </tr>
          </thead>
          <tbody>
            ${page?.rows.map(
              (/** @type {ListedEpisode} */ row) => html`
                <tr key=${`${row.run}/${row.episode}`} class=${markOf(row)}>
                  <td>
                    <button
                      type="button"
                      class="plain open"
                      data-episode=${row.episode}
                      aria-current=${markOf(row) === "chosen" ? "true" : undefined}
                      onClick=${() => open(row)}
                    >
                      <i class=${`dot ${row.outcome}`} title=${row.outcome}></i>
                      <span class="title">${shortName(row.name)}</span>
                      <span class="quiet instruction">${row.instruction}</span>
                      ${
                        several &&
                        html`
                          <span class="quiet instruction">${row.run}</span>
                        `
                      }
                      <span class="hidden">${row.outcome}</span>
                    </button>
                  </td>
                  <td class="number">${row.keyframes}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
        ${
          page &&
          page.total > page.rows.length &&
          html`
            <button type="button" onClick=${() => setLimit(limit + LISTED)}>
              ${page.rows.length} of ${page.total}: show more
            </button>
          `
        }
        ${
          page &&
          page.total === 0 &&
          html`
            <p class="note">No episode matches.</p>
          `
        }
      </div>
      <p class="quiet small count">${page ? `${page.total} episode${page.total === 1 ? "" : "s"}` : "…"}</p>
    </nav>
  `;
}

/** Without the folders that repeat the outcome and the date. @param {string} name */
export const shortName = (name) => name.split("/").at(-1) || name;

/**
 * A text field that tells what was written when the writer pauses.
 * @param {string} value @param {(text: string) => void} tell @param {number} wait milliseconds
 */
function useDraft(value, tell, wait = 200) {
  const [draft, setDraft] = useState(value);
  useEffect(() => setDraft(value), [value]);
  useEffect(() => {
    if (draft === value) return;
    const timer = setTimeout(() => tell(draft), wait);
    return () => clearTimeout(timer);
  }, [draft]);
  return { value: draft, input: (/** @type {any} */ event) => setDraft(event.target.value) };
}
