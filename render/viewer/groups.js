// Successes against failures of a run: mean maps aligned by normalised time, and which heads differ.

import { useAnswer, useAnswers } from "./answers.js";
import { colours, DIVERGING } from "./colormaps.js";
import { Menu } from "./controls.js";
import { blending as blendingOf, limitsOf } from "./heat.js";
import { html, useMemo } from "./html.js";
import { mapAtTime, symmetric } from "./maps.js";
import { Grid } from "./matrix.js";
import { headText, layerName, weight, weightedText } from "./numbers.js";
import { objectMetricOf } from "./objects.js";
import { Pane, shownMap } from "./pane.js";
import { activeHead, comparison, difference, metrics as listed } from "./questions.js";

/** @import {Change, Differing, Episode, Maps, View} from "./types" */

/** @param {{e: Episode, view: View, change: Change}} props */
export function Groups({ e, view: wished, change }) {
  // a metric of an object is not compared between groups here
  const view = objectMetricOf(wished.metric) ? { ...wished, metric: "variance" } : wished;
  const { camera } = view;
  const [active] = useAnswers([view.head === "active" ? activeHead(e, view, camera) : null]);
  const head =
    view.head === "mean" ? "mean" : view.head !== "active" ? Number(view.head) : (active.value?.head ?? null);
  const answer = useAnswer(head === null ? null : difference(e, view, camera, head));
  const groups = useMemo(() => (answer.value ? read(answer.value) : null), [answer.value]);
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const apart = useMemo(() => blendingOf(colours(DIVERGING), 0.9, "signed"), []);
  const keyframe = Math.round(view.time * (e.frames.length - 1));
  if (answer.error)
    return html`
      <p class="error" role="alert">${answer.error.message}</p>
    `;
  const { coverage } = e.cameras[camera];
  const fits = groups && groups.a.size === coverage.length;
  const shared = fits ? limitsOf([groups.a.data, groups.b.data], coverage) : null;
  const far = fits ? symmetric(limitsOf([groups.difference.data], coverage)) : null;
  const label = `${layerName(view.layer)} ${headText(head)}${weightedText(view)}`;
  return html`
    ${
      groups &&
      !fits &&
      html`
        <p class="error">The patch grid of the groups is not this episode's.</p>
      `
    }
    ${
      groups &&
      fits &&
      html`
        <p class="quiet">
          Means of every episode of run ${e.run}, each counted once, drawn on the image of the chosen episode.
        </p>
        <div class="panes three">
          ${
            /** @type {const} */ ([
              [`${groups.names[0]} (${groups.counts[0]})`, groups.a, false],
              [`${groups.names[1]} (${groups.counts[1]})`, groups.b, false],
              [`${groups.names[0]} minus ${groups.names[1]}`, groups.difference, true],
            ]).map(
              ([title, maps, signed]) => html`
                <div>
                  <h2>${title}</h2>
                  <${Pane}
                    e=${e}
                    view=${{ ...view, keyframe, cmap: signed ? DIVERGING : view.cmap }}
                    camera=${camera}
                    blending=${signed ? apart : blending}
                    shown=${shownMap(mapAtTime(maps, view.time), (signed ? far : shared) ?? [0, 1], label)}
                  />
                </div>
              `,
            )
          }
        </div>
      `
    }
    <${Heads} e=${e} view=${view} change=${change} />
  `;
}

/** Which heads differ. @param {{e: Episode, view: View, change: Change}} props */
function Heads({ e, view, change }) {
  const metrics = useAnswer(listed()).value ?? [];
  const answer = useAnswer(comparison(e, view, view.camera));
  const found = answer.value;
  return html`
    <section class="card" aria-label="Which heads differ">
      <h2>Which heads differ</h2>
      <div class="controls tight">
        <${Menu}
          label="Metric"
          value=${view.metric}
          options=${metrics.map((m) => [m.name, m.name])}
          change=${(/** @type {string} */ name) => change({ metric: name })}
        />
      </div>
      ${
        answer.error &&
        html`
          <p class="error" role="alert">${answer.error.message}</p>
        `
      }
      ${
        answer.pending &&
        html`
          <p class="quiet" role="status">comparing …</p>
        `
      }
      ${
        found &&
        html`
          <div class="columns">
            <div>
              <p class="quiet small">
                ${`Cliff's δ of ${found.metric}: red where ${found.a} (${found.episodes_a}) is larger, `}
                ${`blue where ${found.b} (${found.episodes_b}) is; • is significant after correction.`}
              </p>
              <${Grid}
                values=${found.cliffs_delta}
                colours=${DIVERGING}
                layer=${view.layer}
                head=${view.head}
                unit=""
                name="Cliff's delta"
                ends=${[-1, 1]}
                marks=${found.significant}
                choose=${(/** @type {number} */ layer, /** @type {number} */ head) => change({ layer, head: String(head) })}
              />
            </div>
            <div>
              ${found.notes.map(
                (note) => html`
                  <p class="note">${note}</p>
                `,
              )}
              <table class="small">
                <thead>
                  <tr>
                    ${["layer", "head", "difference", "Cliff's δ", "p", "q"].map(
                      (h) => html`
                        <th scope="col">${h}</th>
                      `,
                    )}
                  </tr>
                </thead>
                <tbody>
                  ${found.table.slice(0, 8).map(
                    (r) => html`
                      <tr>
                        <td class="number">${r.layer}</td>
                        <td class="number">${r.head}</td>
                        <td class="number">${weight(r.difference)}</td>
                        <td class="number">${weight(r.cliffs_delta)}</td>
                        <td class="number">${weight(r.p)}</td>
                        <td class="number">${weight(r.q)}</td>
                      </tr>
                    `,
                  )}
                </tbody>
              </table>
            </div>
          </div>
        `
      }
    </section>
  `;
}

/** @param {Differing} answer (group, moment, row, col) */
function read(answer) {
  const [, moments, rows, cols] = answer.shape;
  const values = /** @type {(number | null)[][][][]} */ (answer.values);
  /** @returns {Maps} */
  const maps = (/** @type {number} */ group) => ({
    keyframes: moments,
    heads: 1,
    size: rows * cols,
    data: Float32Array.from(values[group].flat(2), (v) => v ?? NaN),
  });
  const { a, b, episodes_a, episodes_b } = /** @type {Record<string, any>} */ (answer.attrs);
  return { a: maps(0), b: maps(1), difference: maps(2), names: [a, b], counts: [episodes_a, episodes_b] };
}
