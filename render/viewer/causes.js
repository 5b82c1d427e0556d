// What matters: what interventions did to the action, as a map on the picture and in numbers.

import { useAnswer } from "./answers.js";
import { colours } from "./colormaps.js";
import { Choice, Menu } from "./controls.js";
import { pixels } from "./frames.js";
import { blend, blending as blendingOf } from "./heat.js";
import { html, useEffect, useMemo, useRef, useState } from "./html.js";
import { pixelsOf } from "./masks.js";
import { keyframeName, layerName, weight } from "./numbers.js";
import { Bar } from "./pane.js";
import { pictureSize } from "./picture.js";
import { LinePlot } from "./plot.js";
import { curves as askCurves, interventionMasks, interventions as askInterventions } from "./questions.js";
import { Timeline } from "./timeline.js";

/** @import {Change, Curve, Episode, Intervention, View} from "./types" */

/** Rows that are listed. */
const SHOWN = 40;
/** Kinds of regions that a map is made of. */
const REGIONS = ["cell", "object", "camera"];

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string}} props */
export function Causes({ e, view, change, playing, play, theme }) {
  const answer = useAnswer(askInterventions(e));
  const rows = answer.value?.rows ?? [];
  const [over, setOver] = useState("keyframe");
  const probed = useMemo(() => [...new Set(rows.map((r) => r.keyframe))].sort((a, b) => a - b), [rows]);
  const cameras = Object.keys(e.cameras);
  if (answer.error)
    return html`
      <p class="error" role="alert">${answer.error.message}</p>
    `;
  if (answer.pending)
    return html`
      <p class="quiet" role="status">loading …</p>
    `;
  if (!rows.length)
    return html`
      <section class="card">
        <h2>What matters</h2>
        <p>
          Nothing was taken away from this episode yet. Whether the action depends on what is looked at takes
          the policy again: on the machine that has it,${" "}
          <span class="code">attnstore probe regions STORE --checkpoint …</span>
          ${" and "}
          <span class="code">attnstore probe fidelity STORE --checkpoint …</span>
          ${" "}add it to the store.
        </p>
      </section>
    `;
  const keyframe = probed.includes(view.keyframe)
    ? view.keyframe
    : probed.reduce((a, b) => (Math.abs(b - view.keyframe) < Math.abs(a - view.keyframe) ? b : a), probed[0]);
  const shown = over === "keyframe" ? rows.filter((r) => r.keyframe === keyframe) : rows;
  return html`
    <div class="causes">
      <div class="controls">
        <${Choice} label="Over" value=${over} options=${["keyframe", "episode"]} change=${setOver} />
        <${Choice}
          label="Camera"
          value=${view.camera}
          options=${cameras}
          change=${(/** @type {string} */ camera) => change({ camera })}
        />
        ${
          keyframe !== view.keyframe &&
          html`
            <p class="note">
              ${`Keyframe ${view.keyframe} was not probed; shown is ${keyframe}. Probed: ${probed.join(", ")}.`}
            </p>
          `
        }
      </div>
      <div class="actions">
        <div class="stack stays">
          <${Saliency} e=${e} view=${view} keyframe=${keyframe} rows=${rows} />
          <${Timeline} e=${e} view=${view} change=${change} playing=${playing} play=${play} theme=${theme} />
        </div>
        <div class="stack">
          <${Effects} rows=${shown} change=${change} />
          <${Fidelity} rows=${shown} change=${change} />
          <${Curves} e=${e} keyframe=${over === "keyframe" ? keyframe : null} change=${change} />
        </div>
      </div>
    </div>
  `;
}

/**
 * Regions of the picture in colours of what removing each did to the action.
 * @param {{e: Episode, view: View, keyframe: number, rows: readonly Intervention[]}} props
 */
function Saliency({ e, view, keyframe, rows }) {
  const { camera } = view;
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const here = rows.filter(
    (r) =>
      r.keyframe === keyframe &&
      REGIONS.includes(r.target) &&
      r.cameras?.length === 1 &&
      r.cameras[0] === camera,
  );
  const kinds = REGIONS.filter((k) => here.some((r) => r.target === k));
  const [wanted, setKind] = useState("");
  const kind = kinds.includes(wanted) ? wanted : (kinds[0] ?? "");
  const answer = useAnswer(kind ? interventionMasks(e, keyframe) : null);
  const about = e.cameras[camera];
  const [width, height] = about ? pictureSize(about) : [1, 1];
  const found = useMemo(() => {
    const heat = new Float32Array(width * height).fill(NaN);
    let most = 0;
    /** @type {Map<string, number>} */
    const effects = new Map();
    for (const r of here)
      if (r.target === kind && r.si_mse !== null) effects.set(`${r.part} ${r.variant}`, r.si_mse);
    for (const mask of answer.value?.rows ?? []) {
      const effect = effects.get(`${mask.part} ${mask.variant}`);
      if (effect === undefined || mask.camera !== camera) continue;
      most = Math.max(most, effect);
      const covered = pixelsOf(mask);
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const at = Math.floor(((y + 0.5) * mask.height) / height) * mask.width;
          if (!covered[at + Math.floor(((x + 0.5) * mask.width) / width)]) continue;
          const before = heat[y * width + x];
          heat[y * width + x] = Number.isNaN(before) ? effect : Math.max(before, effect);
        }
    }
    return { heat, most };
  }, [answer.value, kind, keyframe, camera, rows, width, height]);
  useEffect(() => {
    let wantedStill = true;
    if (about)
      pixels(e, camera, keyframe, width, height).then(
        (image) => {
          const context = canvas.current?.getContext("2d");
          if (!wantedStill || !context) return;
          const data = new ImageData(width, height);
          const drawing = blendingOf(colours(view.cmap), view.alpha, view.blend)(image);
          if (found.most > 0) blend(image, found.heat, [0, found.most], drawing, data.data);
          else data.data.set(image);
          context.putImageData(data, 0, 0);
          if (canvas.current) canvas.current.dataset.drawn = String(keyframe);
        },
        () => {},
      );
    return () => {
      wantedStill = false;
    };
  }, [e, found, camera, keyframe, view.cmap, view.alpha, view.blend]);
  return html`
    <section class="card" aria-label="What was removed, and what that did">
      <h2>
        What the action depends on
        <span class="quiet">
          ${` si_mse of the action when the region is removed, ${keyframeName(keyframe, e.frames.length)}`}
        </span>
      </h2>
      ${
        kinds.length > 1 &&
        html`
          <${Choice} label="Regions" value=${kind} options=${kinds} change=${setKind} />
        `
      }
      <canvas
        ref=${canvas}
        class="picture"
        width=${width}
        height=${height}
        role="img"
        aria-label=${kind ? `${camera}: effect of removing each ${kind}, at most ${weight(found.most)}` : camera}
      ></canvas>
      ${
        kind && found.most > 0
          ? html`
              <div class="scale">
                <span>0</span>
                <span class="bar"><${Bar} name=${view.cmap} /></span>
                <span>${weight(found.most)}</span>
                <span class="readout">0: the same action; 1: nothing of it</span>
              </div>
              <p class="note">
                The colours end at the largest effect here, however small it is. Dimmed: not removed.
              </p>
            `
          : html`
              <p class="note">
                ${
                  !kind
                    ? `No region of ${camera} was removed at this keyframe: attnstore probe regions does that.`
                    : answer.pending
                      ? "loading …"
                      : "Removing a region changed nothing of the action."
                }
              </p>
            `
      }
    </section>
  `;
}

/**
 * The interventions by what they did.
 * @param {{rows: readonly Intervention[], change: Change}} props
 */
function Effects({ rows, change }) {
  const probes = [...new Set(rows.map((r) => r.probe))].sort();
  const [wanted, setWanted] = useState("all");
  const probe = probes.includes(wanted) ? wanted : "all";
  const groups = useMemo(() => {
    /** @type {Map<string, {text: string, object: string, effects: number[], areas: number[]}>} */
    const found = new Map();
    for (const r of rows) {
      if ((probe !== "all" && r.probe !== probe) || r.si_mse === null) continue;
      const where = [
        r.target,
        r.detail,
        r.layer !== null && r.layer !== undefined ? layerName(r.layer) : null,
        r.cameras?.length ? `on ${r.cameras.join(" + ")}` : null,
      ];
      const text = where.filter((w) => w !== null && w !== undefined).join(" ");
      const key = `${r.probe} ${text}`;
      const group = found.get(key) ?? {
        text: `${r.probe}: ${text}`,
        object: r.target === "object" ? (r.detail ?? "") : "",
        effects: [],
        areas: [],
      };
      group.effects.push(r.si_mse);
      if (r.area !== null && r.area !== undefined) group.areas.push(r.area);
      found.set(key, group);
    }
    const mean = (/** @type {number[]} */ v) => (v.length ? v.reduce((a, b) => a + b, 0) / v.length : NaN);
    return [...found.values()]
      .map((g) => ({ ...g, effect: mean(g.effects), area: mean(g.areas) }))
      .sort((a, b) => b.effect - a.effect);
  }, [rows, probe]);
  const most = Math.max(1e-9, ...groups.map((g) => g.effect));
  return html`
    <section class="card" aria-label="Effects">
      <h2>
        Largest effects
        <span class="quiet">${" on the action chunk, mean si_mse"}</span>
      </h2>
      ${
        probes.length > 1 &&
        html`
          <${Menu}
            label="probe"
            inline
            value=${probe}
            options=${["all", ...probes].map((p) => [p, p])}
            change=${setWanted}
          />
        `
      }
      <div class="scroll" tabindex="0" role="region" aria-label="Rows of the largest effects">
        <table class="plain-table">
          <thead>
            <tr>
              <th scope="col">Removed or changed</th>
              <th scope="col" class="number">Area</th>
              <th scope="col" class="number">Effect</th>
              <td></td>
            </tr>
          </thead>
          <tbody>
            ${groups.slice(0, SHOWN).map(
              (g) => html`
                <tr>
                  <td>
                    ${
                      g.object
                        ? html`
                            <button
                              type="button"
                              class="link"
                              onClick=${() => change({ view: "look", object: g.object, metric: "object:lift" })}
                            >
                              ${g.text}
                            </button>
                          `
                        : g.text
                    }
                  </td>
                  <td class="number">${Number.isNaN(g.area) ? "" : `${(100 * g.area).toFixed(1)} %`}</td>
                  <td class="number">${weight(g.effect)}</td>
                  <td class="effect"><i style=${{ width: `${(100 * g.effect) / most}%` }}></i></td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
      ${
        groups.length > SHOWN &&
        html`
          <p class="note">${`The first ${SHOWN} of ${groups.length}; all are in table interventions.`}</p>
        `
      }
    </section>
  `;
}

/**
 * Fidelity of each layer's maps: what removing the top of the map does, against a control of the same shape.
 * @param {{rows: readonly Intervention[], change: Change}} props
 */
function Fidelity({ rows, change }) {
  const own = rows.filter((r) => r.probe === "fidelity" && r.layer !== null && r.layer !== undefined);
  const kinds = ["attention", "control"];
  const groups = [...new Set(own.map((r) => `${r.phase}\n${r.layer}`))].sort().map((key) => {
    const [phase, layer] = key.split("\n");
    const [high, control] = kinds.map((target) => {
      const found = own
        .filter(
          (r) => r.phase === phase && String(r.layer) === layer && r.target === target && r.si_mse !== null,
        )
        .map((r) => /** @type {number} */ (r.si_mse));
      return found.length ? found.reduce((a, b) => a + b, 0) / found.length : NaN;
    });
    return { phase, layer: Number(layer), high, control };
  });
  if (!groups.length) return null;
  return html`
    <section class="card" aria-label="Fidelity by layer">
      <h2>
        Fidelity by layer
        <span class="quiet">${" what removing the hottest pixels does, less the same shape elsewhere"}</span>
      </h2>
      <table class="plain-table">
        <thead>
          <tr>
            ${["Layer", "Hottest", "Control", "Fidelity"].map(
              (h, i) => html`
                <th scope="col" class=${i ? "number" : ""}>${h}</th>
              `,
            )}
          </tr>
        </thead>
        <tbody>
          ${groups.map(
            (g) => html`
              <tr>
                <td>
                  <button
                    type="button"
                    class="link"
                    onClick=${() => change({ view: "look", phase: g.phase, query: "", layer: g.layer })}
                  >
                    ${`${g.phase} ${layerName(g.layer)}`}
                  </button>
                </td>
                <td class="number">${weight(g.high)}</td>
                <td class="number">${weight(g.control)}</td>
                <td class="number">${weight(g.high - g.control)}</td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </section>
  `;
}

/**
 * Deletion and insertion: what the map's order does to the action, beside random order.
 * @param {{e: Episode, keyframe: number | null, change: Change}} props keyframe: null for all that were probed
 */
function Curves({ e, keyframe, change }) {
  const answer = useAnswer(askCurves(e, keyframe));
  const [wanted, setWanted] = useState("");
  const all = answer.value ?? [];
  const keyOf = (/** @type {Curve} */ c) =>
    `${c.phase} ${layerName(c.layer)} on ${c.cameras.replaceAll("+", " + ")}`;
  const keys = [...new Set(all.map(keyOf))];
  const key = keys.includes(wanted) ? wanted : keys[0];
  const own = all.filter((c) => keyOf(c) === key);
  if (!own.length) return null;
  return html`
    <section class="card" aria-label="Deletion and insertion">
      <h2>
        Deletion and insertion
        <span class="quiet">
          ${` si_mse of the action, ${keyframe === null ? "mean over the probed keyframes" : keyframeName(keyframe, e.frames.length)}`}
        </span>
      </h2>
      <${Menu} label="Map" inline value=${key} options=${keys.map((k) => [k, k])} change=${setWanted} />
      ${own.map((c) => {
        const points = (/** @type {readonly (number | null)[]} */ values) =>
          c.fraction.map((x, i) => ({ x: /** @type {number} */ (x), y: values[i] }));
        const better = c.gain === null ? "" : c.gain > 0 ? "better than" : "not better than";
        return html`
          <h3>
            ${c.curve === "deletion" ? "Deletion: the hottest patches first" : "Insertion: the hottest patches back first"}
          </h3>
          <${LinePlot}
            label=${`${c.curve} of ${key}: area ${weight(c.attention_area)} in the map's order, ${weight(c.control_area)} in random order`}
            along=${c.curve === "deletion" ? "share that is replaced" : "share that is shown"}
            text=${(/** @type {number} */ x) => `${Math.round(100 * x)} %`}
            lines=${[
              { name: "in the map's order", mark: 1, points: points(c.attention) },
              { name: "in random order", mark: 2, points: points(c.control) },
            ]}
          />
          <p class="note">
            ${`Area ${weight(c.attention_area)} against ${weight(c.control_area)}: the map's order is ${better} random order`}
            ${` (gain ${weight(c.gain)}, ${c.keyframes} keyframe${c.keyframes === 1 ? "" : "s"}). `}
            <button
              type="button"
              class="link"
              onClick=${() => change({ view: "look", phase: c.phase, query: "", layer: c.layer })}
            >
              Look at the layer
            </button>
          </p>
        `;
      })}
    </section>
  `;
}
