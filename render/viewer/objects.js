// Objects of an episode: outlines on the pictures, numbers of the shown head, and one that is chosen.

import { useAnswer, useAnswers } from "./answers.js";
import { html, useList, useMemo } from "./html.js";
import { outlineOf } from "./masks.js";
import { weight } from "./numbers.js";
import { masks as askMasks, objectMetric, objects as askObjects, phaseOf } from "./questions.js";

/** @import {Change, Episode, Mask, ObjectMetric, View} from "./types" */

/** @typedef {{object: string, path: string, line: number, chosen: boolean}} Outline */

/** Metrics against an object that are offered, by how they are named among the metrics of heads. */
export const OBJECT_METRICS = ["lift", "pointing_hit", "overlap_ratio"];
const PREFIX = "object:";

/** The metric of objects that a name among the metrics means; null if it is one of heads. @param {string} name */
export const objectMetricOf = (name) => (name.startsWith(PREFIX) ? name.slice(PREFIX.length) : null);

/** @param {string} metric of objects */
export const nameOfMetric = (metric) => PREFIX + metric;

/**
 * Choose an object, or none: the matrix and a trace show how much it is looked at.
 * @param {View} view @param {string} object
 * @returns {Partial<View>}
 */
export function choosing(view, object) {
  const traces = view.traces.split(",").filter((name) => name && !objectMetricOf(name));
  if (object)
    return { object, metric: nameOfMetric("lift"), traces: [nameOfMetric("lift"), ...traces].join(",") };
  return {
    object: "",
    metric: objectMetricOf(view.metric) ? "variance" : view.metric,
    traces: traces.join(","),
  };
}

/** Names of the episode's objects, in order. @param {Episode} e */
export function useObjects(e) {
  const listed = useAnswer(askObjects(e)).value ?? [];
  const names = useList([...new Set(listed.map((o) => o.object))].sort());
  return { listed, names };
}

/**
 * Outlines of the objects at a keyframe, by camera.
 * @param {Episode} e @param {View} view
 * @returns {Record<string, Outline[]>}
 */
export function useOutlines(e, view) {
  const { names } = useObjects(e);
  const wanted = names.length > 0 && (view.outlines || view.object !== "");
  const all = useAnswer(wanted ? askMasks(e) : null).value;
  return useMemo(() => {
    /** @type {Record<string, Outline[]>} */
    const found = {};
    for (const mask of /** @type {Mask[]} */ (all ?? [])) {
      const chosen = mask.object === view.object;
      if (mask.keyframe !== view.keyframe || !(chosen || view.outlines)) continue;
      (found[mask.camera] ??= []).push({
        object: mask.object,
        path: outlineOf(mask),
        line: (names.indexOf(mask.object) % 4) + 1,
        chosen,
      });
    }
    return found;
  }, [all, names, view.keyframe, view.object, view.outlines]);
}

/**
 * Values of a metric against the chosen object, of a layer's head at every keyframe.
 * @param {ObjectMetric} answer @param {number} layer @param {number | "mean" | null} head
 * @returns {(number | null)[]}
 */
export const objectLine = ({ values }, layer, head) =>
  values.map((layers) => {
    const row = layers[layer] ?? [];
    if (head !== "mean") return row[head ?? -1] ?? null;
    const there = row.filter((v) => v !== null);
    return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
  });

/**
 * A metric against the chosen object by layer and head: at a keyframe, or its mean over those that have it.
 * @param {ObjectMetric} answer @param {number | null} keyframe
 * @returns {(number | null)[][]}
 */
export function objectMatrix({ values }, keyframe) {
  if (keyframe !== null) return values[keyframe];
  return values[0].map((row, l) =>
    row.map((_, h) => {
      const there = values.map((layers) => layers[l][h]).filter((v) => v !== null);
      return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
    }),
  );
}

/**
 * The objects as choices, each with its lift of the shown head.
 * @param {{e: Episode, view: View, change: Change, headOf: (camera: string) => number | "mean" | null}} props
 */
export function ObjectStrip({ e, view, change, headOf }) {
  const { listed, names } = useObjects(e);
  const { camera } = view;
  const measured = phaseOf(e, view).query_groups.length > 0;
  const lifts = useAnswers(
    names.map((object) =>
      measured && listed.some((o) => o.object === object && o.camera === camera)
        ? objectMetric(e, { ...view, object }, camera, "lift")
        : null,
    ),
  );
  if (!names.length) return null;
  const head = headOf(camera);
  return html`
    <section class="card objects" aria-label="Objects">
      <h2>
        Objects
        <span class="quiet">
          ${` lift of the shown head on ${camera}: 1 if it were looked at as much as its area; click one to follow it`}
        </span>
      </h2>
      <div class="strip">
        ${names.map((object, i) => {
          const answer = lifts[i].value;
          const lift = answer && objectLine(answer, view.layer, head)[view.keyframe];
          return html`
            <button
              type="button"
              class="object"
              aria-pressed=${view.object === object}
              title=${lifts[i].error?.message ?? ""}
              onClick=${() => change(choosing(view, view.object === object ? "" : object))}
            >
              <i class=${`line line-${(i % 4) + 1}`}></i>
              ${object}
              ${
                typeof lift === "number" &&
                html`
                  ${" "}
                  <b>${`× ${weight(lift)}`}</b>
                `
              }
            </button>
          `;
        })}
        <label class="check">
          <input
            type="checkbox"
            checked=${view.outlines}
            onChange=${(/** @type {any} */ x) => change({ outlines: x.target.checked })}
          />
          outlines
        </label>
      </div>
    </section>
  `;
}
