// Layer × head: a metric of every head; a click shows that head.

import { useAnswer } from "./answers.js";
import { css, isLight } from "./colormaps.js";
import { Menu } from "./controls.js";
import { html, useMemo, useRef } from "./html.js";
import { headName, layerName, weight } from "./numbers.js";
import { nameOfMetric, OBJECT_METRICS, objectMatrix, objectMetricOf } from "./objects.js";
import { matrix as asked, metrics as listed, objectMetric } from "./questions.js";

/** @import {Change, Episode, View} from "./types" */

const COLOURS = "viridis";

/** @param {{e: Episode, view: View, change: Change, keyframe: number, active: number | "mean" | null}} props */
export function HeadMatrix({ e, view, change, keyframe, active }) {
  const metrics = useAnswer(listed()).value ?? [];
  const ofObject = view.object ? objectMetricOf(view.metric) : null;
  // a link may name a metric of an object and no object
  const name = ofObject || !objectMetricOf(view.metric) ? view.metric : "variance";
  const at = view.matrix === "keyframe" ? keyframe : null;
  const ofHeads = useAnswer(view.camera && !ofObject ? asked(e, view, view.camera, name, at) : null);
  const ofMask = useAnswer(view.camera && ofObject ? objectMetric(e, view, view.camera, ofObject) : null);
  const answer = ofObject ? ofMask : ofHeads;
  const values = ofObject ? ofMask.value && objectMatrix(ofMask.value, at) : ofHeads.value?.values;
  const metric = ofObject ? ofMask.value : metrics.find((m) => m.name === name);
  const { cameras } = e.phases[view.phase];
  return html`
    <section class="card" aria-label="Layers and heads">
      <h2>Layer × head</h2>
      <div class="controls tight">
        <${Menu}
          label="Metric"
          value=${name}
          title=${metric?.definition ?? ""}
          options=${[
            ...(view.object ? OBJECT_METRICS.map((m) => [nameOfMetric(m), `${m} of ${view.object}`]) : []),
            ...metrics.map((m) => [m.name, m.name]),
          ]}
          change=${(/** @type {string} */ name) => change({ metric: name })}
        />
        <${Menu}
          label="Camera"
          value=${view.camera}
          options=${cameras.map((c) => [c, c])}
          change=${(/** @type {string} */ camera) => change({ camera })}
        />
        <${Menu}
          label="Over"
          value=${view.matrix}
          options=${[
            ["episode", "episode"],
            ["keyframe", "keyframe"],
          ]}
          change=${(/** @type {any} */ over) => change({ matrix: over })}
        />
      </div>
      ${
        answer.error &&
        html`
          <p class="error">${answer.error.message}</p>
        `
      }
      ${
        answer.value &&
        values &&
        html`
          <${Grid}
            values=${values}
            colours=${COLOURS}
            layer=${view.layer}
            head=${view.head}
            active=${view.head === "active" ? active : null}
            unit=${answer.value.unit}
            name=${ofObject ? `${ofObject} of ${view.object}` : name}
            choose=${(/** @type {number} */ layer, /** @type {number} */ head) => change({ layer, head: String(head), ...(view.weighting === "rollout" && { weighting: "raw" }) })}
          />
        `
      }
      ${
        metric &&
        html`
          <p class="quiet small">${metric.definition}${metric.unit ? ` (${metric.unit})` : ""}</p>
        `
      }
    </section>
  `;
}

/**
 * Cells of a metric by layer (rows) and head.
 * @param {{values: (number | null)[][], colours: string, layer: number, head: string, unit: string, name: string,
 *   active?: number | null, ends?: [number, number], marks?: boolean[][], choose: (layer: number, head: number) => void}} props
 */
export function Grid({ values, colours, layer, head, active = null, unit, name, ends, marks, choose }) {
  const grid = useRef(/** @type {HTMLElement | null} */ (null));
  const [low, top] = useMemo(() => {
    const all = values.flat().filter((v) => v !== null);
    return ends ?? (all.length ? [Math.min(...all), Math.max(...all)] : [0, 1]);
  }, [values, ends]);
  const heads = values[0]?.length ?? 0;
  const at = /^\d+$/.test(head) ? Number(head) : -1;
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const to = [
      Math.min(Math.max(layer + step[0], 0), values.length - 1),
      Math.min(Math.max(Math.max(at, 0) + step[1], 0), heads - 1),
    ];
    choose(to[0], to[1]);
    /** @type {HTMLElement | null | undefined} */ (
      grid.current?.querySelector(`[data-cell="${to[0]}-${to[1]}"]`)
    )?.focus();
  };
  const markOf = (/** @type {number} */ l, /** @type {number} */ h) =>
    l !== layer ? "" : h === at ? "of-layer chosen" : h === active ? "of-layer active" : "of-layer";
  return html`
    <div
      class="matrix"
      ref=${grid}
      role="grid"
      aria-label=${`${name} by layer and head`}
      onKeyDown=${key}
      style=${{ gridTemplateColumns: `2.2em repeat(${heads}, minmax(0, 1fr))` }}
    >
      <div role="row" class="row">
        <span></span>
        ${Array.from(
          { length: heads },
          (_, h) => html`
            <span class="head" role="columnheader">${heads <= 16 || h % 4 === 0 ? h : ""}</span>
          `,
        )}
      </div>
      ${values.map(
        (row, l) => html`
          <div role="row" class="row">
            <span class="layer" role="rowheader">${l}</span>
            ${row.map((v, h) => {
              const share = v === null || top === low ? 0 : (v - low) / (top - low);
              return html`
                <button
                  type="button"
                  role="gridcell"
                  data-cell=${`${l}-${h}`}
                  tabindex=${l === layer && h === Math.max(at, 0) ? 0 : -1}
                  class=${`${markOf(l, h)} ${isLight(colours, share) ? "light" : ""}`}
                  aria-selected=${l === layer && h === at}
                  aria-label=${`layer ${l} head ${h}: ${weight(v)}`}
                  title=${`${layerName(l)} ${headName(h)}: ${weight(v)} ${unit}`}
                  style=${{ background: v === null ? "transparent" : css(colours, share) }}
                  onClick=${() => choose(l, h)}
                >
                  ${marks?.[l]?.[h] ? "•" : ""}
                </button>
              `;
            })}
          </div>
        `,
      )}
    </div>
    <div class="scale">
      <span>${weight(low)}</span>
      <span class="bar">
        <i
          class="ramp"
          style=${{
            background: `linear-gradient(90deg, ${Array.from({ length: 9 }, (_, i) => css(colours, i / 8)).join(", ")})`,
          }}
        ></i>
      </span>
      <span>${weight(top)}</span>
      <span class="readout">
        ${
          (at >= 0 || active !== null) &&
          html`
            ${`${layerName(layer)} ${headName(at >= 0 ? at : (active ?? 0))}${at < 0 ? " (active)" : ""}: `}
            <b>${weight(values[layer]?.[at >= 0 ? at : (active ?? 0)])}</b>
          `
        }
      </span>
    </div>
  `;
}
