// The episodes of a store: filtered by text, outcome and SQL, in a table that holds what is in sight.

import { useAnswer, useAnswers } from "./answers.js";
import { forget, get } from "./api.js";
import { Menu } from "./controls.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { Progress } from "./progress.js";
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

/** Height of a row, pixels: of two lines, and of three where the run is told. */
const ROW = 50,
  TALL = 70;
/** Rows beyond what is in sight, so that scrolling shows no gap. */
const BEYOND = 8;

/** @param {{view: View, change: Change, open: (row: any) => void}} props */
export function Episodes({ view, change, open }) {
  const stores = useAnswer(listed()).value ?? [];
  const draft = useDraft(view.text, (text) => change({ text }));
  const condition = useDraft(view.where, (where) => change({ where }), 600);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const wanted = useRef(-1);
  const [sight, setSight] = useState({ top: 0, height: 800 });
  const [turn, setTurn] = useState(0);
  const question = view.store ? asked(view, LISTED) : null;
  const answer = useAnswer(question && { ...question, turn });
  const ended = () => {
    forget("episodes");
    setTurn((old) => old + 1);
  };
  const [last, setLast] = useState(/** @type {typeof answer.value | null} */ (null));
  useEffect(() => {
    if (answer.value) setLast(answer.value);
  }, [answer.value]);
  useEffect(() => {
    // the first of a store is shown when it comes
    const row = turn && !view.episode ? answer.value?.rows[0] : null;
    if (row) change({ run: row.run, episode: row.episode });
  }, [answer.value, turn]);
  const page = answer.value ?? (answer.error ? null : last);
  const total = page?.total ?? 0;
  const several = new Set(page?.rows.map((r) => r.run)).size > 1;
  const height = several ? TALL : ROW;
  const from = Math.max(0, Math.min(total, Math.floor(sight.top / height)) - BEYOND);
  const to = Math.min(total, Math.ceil((sight.top + sight.height) / height) + BEYOND);
  // pages that are in sight; the first is there already
  const pages = Array.from(
    { length: Math.max(0, Math.ceil(to / LISTED) - Math.floor(from / LISTED)) },
    (_, i) => Math.floor(from / LISTED) + i,
  );
  const later = useAnswers(pages.map((n) => (n && view.store ? asked(view, LISTED, n * LISTED) : null)));
  const rowAt = (/** @type {number} */ i) => {
    const at = Math.floor(i / LISTED);
    return (at ? later[pages.indexOf(at)]?.value : page)?.rows[i % LISTED];
  };
  const filters = [view.store, view.text, view.where, view.outcome, view.order, view.descending].join("\n");
  useEffect(() => {
    const place = box.current;
    if (!place) return;
    const look = () => setSight({ top: place.scrollTop, height: place.clientHeight });
    const resized = new ResizeObserver(look);
    resized.observe(place);
    place.addEventListener("scroll", look, { passive: true });
    return () => {
      resized.disconnect();
      place.removeEventListener("scroll", look);
    };
  }, []);
  useEffect(() => {
    if (box.current) box.current.scrollTop = 0;
  }, [filters]);
  const indices = Array.from({ length: to - from }, (_, i) => from + i);
  const chosen = indices.find((i) => {
    const row = rowAt(i);
    return row && row.episode === view.episode && row.run === view.run;
  });
  const show = (/** @type {number} */ index) => {
    const place = box.current;
    if (!place) return;
    const head = place.querySelector("thead")?.clientHeight ?? 0;
    const [top, bottom] = [index * height, (index + 1) * height + head - place.clientHeight];
    place.scrollTop = Math.min(top, Math.max(bottom, place.scrollTop));
  };
  useEffect(() => {
    if (chosen !== undefined) show(chosen);
  }, [view.episode, view.run]);
  // a row that arrow keys lead to is focused when it is there
  useLayoutEffect(() => {
    const button = /** @type {HTMLElement | null | undefined} */ (
      box.current?.querySelector(`[data-index="${wanted.current}"]`)
    );
    if (!button) return;
    wanted.current = -1;
    button.focus({ preventScroll: true });
  });
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const index = Number(/** @type {HTMLElement} */ (event.target).dataset.index ?? NaN);
    const rows = Math.max(1, Math.floor(sight.height / height) - 1);
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -rows, PageDown: rows, Home: -Infinity, End: Infinity }[
      event.key
    ];
    if (Number.isNaN(index) || !step) return;
    event.preventDefault();
    event.stopPropagation();
    wanted.current = Math.min(total - 1, Math.max(0, index + step));
    show(wanted.current);
    setSight({ top: box.current?.scrollTop ?? 0, height: sight.height });
  };
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
          placeholder="name, task, instruction"
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
      <${Progress} store=${view.store} ended=${ended} />
      <div class="rows" ref=${box} aria-busy=${answer.pending} onKeyDown=${key}>
        <table aria-rowcount=${total + 1} style=${{ "--row": `${height}px` }}>
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
            ${
              from > 0 &&
              html`
                <tr class="gap" aria-hidden="true" style=${{ height: `${from * height}px` }}></tr>
              `
            }
            ${indices.map((i) => {
              const row = rowAt(i);
              return html`
                <tr key=${i} class=${row ? markOf(row) : ""} aria-rowindex=${i + 2}>
                  <td>
                    ${
                      row
                        ? html`
                            <button
                              type="button"
                              class="plain open"
                              data-episode=${row.episode}
                              data-index=${i}
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
                          `
                        : html`
                            <span class="quiet waiting">…</span>
                          `
                    }
                  </td>
                  <td class="number">${row?.keyframes}</td>
                </tr>
              `;
            })}
            ${
              to < total &&
              html`
                <tr class="gap" aria-hidden="true" style=${{ height: `${(total - to) * height}px` }}></tr>
              `
            }
          </tbody>
        </table>
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

/**
 * The episode before or after the chosen one, in the list as it is filtered and ordered.
 * @param {View} view @param {number} by
 * @returns {Promise<ListedEpisode | undefined>}
 */
export async function neighbourOf(view, by) {
  const pageOf = (/** @type {number} */ n) => get(asked(view, LISTED, n * LISTED));
  for (let n = 0, total = 1; n * LISTED < total; n++) {
    const page = await pageOf(n);
    total = page.total;
    const at = page.rows.findIndex((r) => r.episode === view.episode && r.run === view.run);
    if (at < 0) continue;
    const to = n * LISTED + at + by;
    return to < 0 ? undefined : (await pageOf(Math.floor(to / LISTED))).rows[to % LISTED];
  }
  return undefined;
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
