// Rows of a query: sorted, as a table or a chart; a row that names something opens it.

import { colours, css, isLight } from "./colormaps.js";
import { Choice, Menu } from "./controls.js";
import { html, useMemo, useState } from "./html.js";
import { weight } from "./numbers.js";

/** @import {SqlRows, View} from "./types" */

const SHOWN = 500;
/** Marks of a chart, and cells of a heat table along a side, at most. */
const MARKS = 400,
  CELLS = 60;
const FORMS = ["table", "bar", "line", "heat"];
/** Colours of series, and ways to draw a colour that comes again: so many series can be told apart. */
const COLOURS = 4,
  TOLD_APART = 12;
const WIDTH = 900,
  HEIGHT = 320,
  LEFT = 60,
  BOTTOM = 60,
  TOP = 10;
/** Columns that say what to show, by their field of the view. @type {Record<string, keyof View>} */
const SHOWS = {
  phase: "phase",
  layer: "layer",
  head: "head",
  step: "step",
  keyframe: "keyframe",
  camera: "camera",
};

/**
 * What a row leads to; null if it names nothing that can be shown.
 * @param {string[]} names of the columns @param {readonly any[]} row @param {View} view
 * @returns {Partial<View> | null}
 */
export function leadsTo(names, row, view) {
  const value = (/** @type {string} */ name) => {
    const at = names.indexOf(name);
    return at < 0 || row[at] === null ? undefined : row[at];
  };
  /** @type {Record<string, any>} */
  const found = {};
  for (const [column, field] of Object.entries(SHOWS)) {
    const said = value(column);
    if (said !== undefined) found[field] = field === "head" ? String(said) : said;
  }
  const episode = value("episode"),
    run = value("run") ?? view.run;
  if (episode !== undefined && run) Object.assign(found, { run, episode });
  if (value("query_group") !== undefined) found.query = value("query_group");
  else if (found.phase) found.query = "";
  if (value("object") !== undefined) found.object = value("object");
  return Object.keys(found).length ? found : null;
}

/** @param {{rows: SqlRows, view: View, open: (found: Partial<View>) => void}} props */
export function Results({ rows: { columns, rows }, view, open }) {
  const [form, setForm] = useState("table");
  const [order, setOrder] = useState(/** @type {[number, boolean] | null} */ (null));
  const names = columns.map((c) => c.name);
  const sorted = useMemo(() => {
    if (!order || order[0] >= columns.length) return rows;
    const [at, down] = order;
    return [...rows].sort((a, b) => (down ? -1 : 1) * compare(a[at], b[at]) || 0);
  }, [rows, order]);
  const numeric = columns.flatMap((_, i) => (rows.some((r) => typeof r[i] === "number") ? [i] : []));
  return html`
    <div class="controls">
      <${Choice}
        label="Show as"
        value=${form}
        options=${numeric.length ? FORMS : ["table"]}
        change=${setForm}
      />
    </div>
    ${
      form === "table"
        ? html`
            <${Table}
              columns=${columns}
              names=${names}
              rows=${sorted}
              view=${view}
              open=${open}
              order=${order}
              sort=${setOrder}
            />
          `
        : html`
            <${Chart} key=${names.join()} form=${form} names=${names} rows=${sorted} numeric=${numeric} />
          `
    }
  `;
}

/**
 * @param {{columns: SqlRows["columns"], names: string[], rows: SqlRows["rows"], view: View,
 *   open: (found: Partial<View>) => void, order: [number, boolean] | null,
 *   sort: (order: [number, boolean]) => void}} props
 */
function Table({ columns, names, rows, view, open, order, sort }) {
  const shown = rows.slice(0, SHOWN);
  const leads = shown.map((row) => leadsTo(names, row, view));
  const any = leads.some(Boolean);
  return html`
    <div class="result card" tabindex="0" role="region" aria-label="Rows">
      <table>
        <thead>
          <tr>
            ${
              any &&
              html`
                <td></td>
              `
            }
            ${columns.map((c, i) => {
              const down = order?.[0] === i ? order[1] : null;
              return html`
                <th
                  scope="col"
                  title=${c.type}
                  class=${typeof rows[0]?.[i] === "number" ? "number" : ""}
                  aria-sort=${down === null ? "none" : down ? "descending" : "ascending"}
                >
                  <button type="button" class="plain" onClick=${() => sort([i, down === false])}>
                    ${c.name}${down === null ? "" : down ? " ↓" : " ↑"}
                  </button>
                </th>
              `;
            })}
          </tr>
        </thead>
        <tbody>
          ${shown.map(
            (row, n) => html`
              <tr>
                ${
                  any &&
                  html`
                    <td>
                      ${
                        leads[n] &&
                        html`
                          <button
                            type="button"
                            class="link"
                            aria-label=${`Open row ${n + 1}`}
                            onClick=${() => open(/** @type {Partial<View>} */ (leads[n]))}
                          >
                            open
                          </button>
                        `
                      }
                    </td>
                  `
                }
                ${row.map(
                  (value) => html`
                    <td class=${typeof value === "number" ? "number" : ""}>${written(value)}</td>
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

/** @param {{form: string, names: string[], rows: SqlRows["rows"], numeric: number[]}} props */
function Chart({ form, names, rows, numeric }) {
  const others = names.map((_, i) => i).filter((i) => i !== numeric.at(-1));
  const [y, setY] = useState(numeric.at(-1) ?? 0);
  const [x, setX] = useState(others[0] ?? 0);
  const [by, setBy] = useState(others[1] ?? -1);
  const pick = (
    /** @type {string} */ label,
    /** @type {number} */ value,
    /** @type {(v: number) => void} */ set,
    /** @type {number[]} */ from,
    none = false,
  ) => html`
    <${Menu}
      label=${label}
      value=${String(value)}
      options=${[...(none ? [["-1", "none"]] : []), ...from.map((i) => [String(i), names[i]])]}
      change=${(/** @type {string} */ v) => set(Number(v))}
    />
  `;
  const all = names.map((_, i) => i);
  return html`
    <div class="card chart-card">
      <div class="controls">
        ${pick(form === "heat" ? "columns" : "along", x, setX, all)}
        ${pick(form === "heat" ? "rows" : "apart by", by, setBy, all, form !== "heat")}
        ${pick("value", y, setY, numeric)}
      </div>
      ${
        form === "heat"
          ? html`
              <${Heat} names=${names} rows=${rows} x=${x} y=${y} by=${by < 0 ? x : by} />
            `
          : html`
              <${Plot} bars=${form === "bar"} names=${names} rows=${rows} x=${x} y=${y} by=${by} />
            `
      }
    </div>
  `;
}

/** @param {{bars: boolean, names: string[], rows: SqlRows["rows"], x: number, y: number, by: number}} props */
function Plot({ bars, names, rows, x, y, by }) {
  /** @type {any[][]} */
  const used = rows
    .filter((r) => typeof r[y] === "number")
    .slice(0, MARKS)
    .map((r) => [...r]);
  const series = by < 0 ? [""] : [...new Set(used.map((r) => text(r[by])))];
  const places = [...new Set(used.map((r) => r[x]))].sort(compare);
  const linear = !bars && places.every((p) => typeof p === "number");
  const values = used.map((r) => r[y]);
  // a bar is as long as its value; of lines it is the course that is looked at
  const low = Math.min(...(bars ? [0] : []), ...values),
    top = Math.max(...(bars ? [0] : []), ...values);
  const inner = HEIGHT - TOP - BOTTOM,
    wide = WIDTH - LEFT - 10;
  const down = (/** @type {number} */ v) => TOP + inner * (1 - (v - low) / (top - low || 1));
  const slot = wide / Math.max(1, places.length);
  const [first, last] = [places[0], places.at(-1)];
  const across = (/** @type {any} */ p) =>
    linear ? LEFT + (wide * (p - first)) / (last - first || 1) : LEFT + slot * (places.indexOf(p) + 0.5);
  const every = Math.ceil(places.length / 12);
  return html`
    <span class="legend left">
      ${
        by >= 0 &&
        series.slice(0, TOLD_APART).map(
          (s, i) => html`
            <span>
              <i
                class=${
                  bars
                    ? `swatch fill-${(i % COLOURS) + 1} again-${Math.floor(i / COLOURS)}`
                    : `line line-${(i % COLOURS) + 1} again-${Math.floor(i / COLOURS)}`
                }
              ></i>
              ${s}
            </span>
          `,
        )
      }
      ${
        series.length > TOLD_APART &&
        html`
          <span class="quiet">${`and ${series.length - TOLD_APART} more, which look like these`}</span>
        `
      }
    </span>
    <svg
      class="plot"
      viewBox=${`0 0 ${WIDTH} ${HEIGHT}`}
      role="img"
      aria-label=${`${names[y]} along ${names[x]}${by >= 0 ? `, apart by ${names[by]}` : ""}: ${used.length} rows`}
    >
      ${[low, (low + top) / 2, top].map(
        (v) => html`
          <line class="rule" x1=${LEFT} x2=${WIDTH - 10} y1=${down(v)} y2=${down(v)} />
          <text x=${LEFT - 6} y=${down(v) + 4} text-anchor="end">${weight(v)}</text>
        `,
      )}
      ${places.map(
        (p, i) =>
          i % every === 0 &&
          html`
            <text
              x=${across(p)}
              y=${HEIGHT - BOTTOM + 14}
              text-anchor=${places.length > 6 && !linear ? "end" : "middle"}
              transform=${places.length > 6 && !linear ? `rotate(-30 ${across(p)} ${HEIGHT - BOTTOM + 14})` : undefined}
            >
              ${text(p).slice(0, 18)}
            </text>
          `,
      )}
      ${series.map((s, i) => {
        const own = used.filter((r) => by < 0 || text(r[by]) === s);
        const line = `mark-${(i % COLOURS) + 1} again-${Math.floor(i / COLOURS) % 3}`;
        if (!bars) {
          const sorted = [...own].sort((a, b) => compare(a[x], b[x]));
          const d = sorted
            .map((r, n) => `${n ? "L" : "M"}${across(r[x]).toFixed(1)} ${down(r[y]).toFixed(1)}`)
            .join("");
          return html`
            <path class=${`series ${line}`} d=${d} />
            ${own.map(
              (r) => html`
                <circle class=${line} cx=${across(r[x])} cy=${down(r[y])} r="2.6">
                  <title>${`${text(r[x])}${s ? `, ${s}` : ""}: ${weight(r[y])}`}</title>
                </circle>
              `,
            )}
          `;
        }
        const width = (0.8 * slot) / series.length;
        return own.map(
          (r) => html`
            <rect
              class=${line}
              x=${across(r[x]) - 0.4 * slot + i * width}
              y=${Math.min(down(r[y]), down(0))}
              width=${Math.max(1, width - 1)}
              height=${Math.abs(down(r[y]) - down(0))}
            >
              <title>${`${text(r[x])}${s ? `, ${s}` : ""}: ${weight(r[y])}`}</title>
            </rect>
          `,
        );
      })}
    </svg>
    ${
      rows.length > MARKS &&
      html`
        <p class="note">${`The first ${MARKS} of ${rows.length} rows are drawn.`}</p>
      `
    }
  `;
}

/** @param {{names: string[], rows: SqlRows["rows"], x: number, y: number, by: number}} props */
function Heat({ names, rows, x, y, by }) {
  const columns = [...new Set(rows.map((r) => r[x]))].sort(compare).slice(0, CELLS);
  const lines = [...new Set(rows.map((r) => r[by]))].sort(compare).slice(0, CELLS);
  /** @type {Map<string, number[]>} */
  const cells = new Map();
  for (const r of rows) {
    const v = r[y];
    if (typeof v !== "number") continue;
    const name = `${text(r[by])}\n${text(r[x])}`;
    cells.set(name, [...(cells.get(name) ?? []), v]);
  }
  const means = new Map([...cells].map(([name, own]) => [name, own.reduce((a, b) => a + b, 0) / own.length]));
  const all = [...means.values()];
  const [low, top] = [Math.min(...all), Math.max(...all)];
  const several = [...cells.values()].some((own) => own.length > 1);
  colours("viridis");
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Heat table">
      <table class="heat">
        <caption class="note">${`${names[y]}${several ? ", mean where several rows meet" : ""}`}</caption>
        <thead>
          <tr>
            <th scope="col">${`${names[by]} \\ ${names[x]}`}</th>
            ${columns.map(
              (c) => html`
                <th scope="col">${text(c)}</th>
              `,
            )}
          </tr>
        </thead>
        <tbody>
          ${lines.map(
            (l) => html`
              <tr>
                <th scope="row">${text(l)}</th>
                ${columns.map((c) => {
                  const v = means.get(`${text(l)}\n${text(c)}`);
                  if (v === undefined)
                    return html`
                      <td></td>
                    `;
                  const share = top > low ? (v - low) / (top - low) : 0;
                  return html`
                    <td
                      class="number"
                      style=${{ background: css("viridis", share), color: isLight("viridis", share) ? "#000" : "#fff" }}
                    >
                      ${weight(v)}
                    </td>
                  `;
                })}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}

/** Numbers by size, others by their text; nothing last. @param {any} a @param {any} b */
function compare(a, b) {
  if (a === b) return 0;
  if (a === null || b === null) return a === null ? 1 : -1;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return text(a) < text(b) ? -1 : 1;
}

/** @param {unknown} value */
const text = (value) =>
  value === null ? "NULL" : typeof value === "object" ? JSON.stringify(value) : String(value);

/** @param {unknown} value */
function written(value) {
  if (value === null)
    return html`
      <i class="quiet">NULL</i>
    `;
  if (typeof value === "number" && !Number.isInteger(value)) return String(+value.toPrecision(6));
  return text(value);
}
