// What a store holds, before any episode: outcomes, some episodes, where layers look, active heads, health.

import { useAnswer } from "./answers.js";
import { colours } from "./colormaps.js";
import { Menu } from "./controls.js";
import { useEpisode } from "./episode.js";
import { shortName } from "./episodes.js";
import { blending as blendingOf, limitsOf } from "./heat.js";
import { html, useMemo } from "./html.js";
import { useMaps } from "./look.js";
import { mapAt } from "./maps.js";
import { bytes, headName, keyframeName, layerName, percent, weight } from "./numbers.js";
import { Picture } from "./picture.js";
import { overview as asked } from "./questions.js";
import { fitted, START } from "./state.js";

/** @import {Change, Glimpse, Overview as Answer, View} from "./types" */

/** Width of a small picture, pixels. */
const SMALL = 320;
/** Row sums further from 1 than this are said to be. */
const CLOSE = 0.01;
const OUTCOMES = /** @type {const} */ (["success", "failure", "unknown"]);

/**
 * @param {{view: View, change: Change, open: (row: {run: string, episode: string}, more?: Partial<View>) => void}} props
 */
export function Overview({ view, change, open }) {
  const answer = useAnswer(asked(view.store));
  const found = answer.value;
  if (answer.error)
    return html`
      <p class="error" role="alert">${answer.error.message}</p>
    `;
  if (!found)
    return html`
      <p class="quiet" role="status">loading …</p>
    `;
  const runs = [...new Set(found.outcomes.map((o) => o.run))];
  if (!runs.length)
    return html`
      <p class="note">This store has no episodes yet: attnstore ingest writes them.</p>
      <${Health} found=${found} />
    `;
  const run = runs.includes(view.run) ? view.run : runs[0];
  const own = /** @type {Answer} */ ({
    ...found,
    outcomes: found.outcomes.filter((o) => o.run === run),
    layers: found.layers.filter((o) => o.run === run),
    heads: found.heads.filter((o) => o.run === run),
    glimpses: found.glimpses.filter((o) => o.run === run),
  });
  return html`
    <div class="overview">
      ${
        runs.length > 1 &&
        html`
          <${Menu}
            label="Run"
            inline
            value=${run}
            options=${runs.map((r) => [r, r])}
            change=${(/** @type {string} */ chosen) => change({ run: chosen, episode: "" })}
          />
        `
      }
      <${Outcomes} found=${own} change=${change} view=${view} />
      <section class="card" aria-label="Episodes to open">
        <h2>
          Episodes to open
          <span class="quiet">${" from all over the store; heat of the most active head, mid-episode"}</span>
        </h2>
        <div class="glimpses">
          ${own.glimpses.map(
            (g) => html`
              <${Glance} key=${`${g.run}/${g.episode}`} store=${view.store} glimpse=${g} open=${open} />
            `,
          )}
        </div>
      </section>
      <div class="halves">
        <${Layers} found=${own} open=${open} />
        <div class="stack">
          <${Heads} found=${own} open=${open} />
          <${Health} found=${found} />
        </div>
      </div>
    </div>
  `;
}

/** @param {{found: Answer, change: Change, view: View}} props */
function Outcomes({ found, change, view }) {
  const tasks = [...new Set(found.outcomes.map((o) => o.task))];
  const count = (/** @type {string | null} */ task, /** @type {string} */ outcome) =>
    found.outcomes
      .filter((o) => o.outcome === outcome && (task === null || o.task === task))
      .reduce((sum, o) => sum + o.episodes, 0);
  const all = found.outcomes.reduce((sum, o) => sum + o.episodes, 0);
  const keyframes = found.outcomes.reduce((sum, o) => sum + o.keyframes, 0);
  const most = Math.max(
    ...tasks.map((t) => OUTCOMES.reduce((sum, o) => sum + count(tasks.length > 1 ? t : null, o), 0)),
  );
  const bar = (/** @type {string | null} */ task) => html`
    <span class="outcome-bar">
      ${OUTCOMES.map((outcome) => {
        const n = count(task, outcome);
        return (
          n > 0 &&
          html`
            <button
              type="button"
              class=${`part ${outcome}`}
              style=${{ flexGrow: n }}
              aria-pressed=${view.outcome === outcome}
              aria-label=${`${n} ${outcome}${task ? `, ${task}` : ""}: list them`}
              title=${`${n} ${outcome}${task ? `, ${task}` : ""}`}
              onClick=${() => change({ outcome, ...(task ? { text: task } : {}) })}
            >
              ${n}
            </button>
          `
        );
      })}
    </span>
  `;
  return html`
    <section class="card" aria-label="Episodes by outcome">
      <h2>
        ${`${all} episode${all === 1 ? "" : "s"}`}
        <span class="quiet">
          ${`, ${keyframes} keyframes, ${bytes(found.soundness.parts.reduce((sum, p) => sum + p.bytes, 0))}`}
        </span>
      </h2>
      <div class="outcomes">
        ${bar(null)}
        <span class="legend left">
          ${OUTCOMES.filter((o) => count(null, o)).map(
            (o) => html`
              <span class=${o}>
                <i class=${`dot ${o}`}></i>
                ${`${o} ${count(null, o)} (${percent(count(null, o) / all)})`}
              </span>
            `,
          )}
        </span>
      </div>
      ${
        tasks.length > 1 &&
        html`
          <div class="tasks">
            ${tasks.slice(0, 12).map((task) => {
              const n = OUTCOMES.reduce((sum, o) => sum + count(task, o), 0);
              return html`
                <span class="name">${task ?? "no task"}</span>
                <span style=${{ width: `${(100 * n) / most}%` }}>${bar(task)}</span>
              `;
            })}
          </div>
          ${
            tasks.length > 12 &&
            html`
              <p class="quiet small">${`and ${tasks.length - 12} more tasks`}</p>
            `
          }
        `
      }
    </section>
  `;
}

/** @param {{store: string, glimpse: Glimpse, open: (row: any, more?: Partial<View>) => void}} props */
function Glance({ store, glimpse: g, open }) {
  const { episode: e, error } = useEpisode(store, g.run, g.episode);
  const look = {
    phase: g.phase ?? "",
    layer: g.layer ?? 0,
    camera: g.camera ?? "",
    keyframe: Math.floor(g.keyframes / 2),
    query: "",
  };
  return html`
    <button type="button" class="glimpse" onClick=${() => open(g, { ...look, view: "look", head: "active" })}>
      ${
        e
          ? html`
              <${Thumbnail}
                e=${e}
                view=${fitted({ ...START, ...look, store, run: g.run, episode: g.episode }, e)}
              />
            `
          : html`
              <span class="blank"></span>
            `
      }
      <span class="caption">
        <i class=${`dot ${g.outcome}`}></i>
        <span class="hidden">${`${g.outcome}: `}</span>
        <b>${shortName(g.name)}</b>
        <span class="quiet">${error ? error.message : g.instruction}</span>
      </span>
    </button>
  `;
}

/** A camera of an episode with the heat of a head, small. @param {{e: any, view: View}} props */
export function Thumbnail({ e, view }) {
  const [one] = useMaps(e, view, [view.camera]);
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const map = one.maps && mapAt(one.maps, view.keyframe);
  const limits = map ? limitsOf([map], e.cameras[view.camera].coverage) : null;
  return html`
    <${Picture}
      e=${e}
      camera=${view.camera}
      keyframe=${view.keyframe}
      map=${map}
      limits=${limits ?? [0, 1]}
      blending=${blending}
      interpolation=${view.interpolation}
      pending=${one.pending}
      widest=${SMALL}
      label=${`${view.camera}, ${keyframeName(view.keyframe, e.frames.length)}`}
    />
  `;
}

/** @param {{found: Answer, open: (row: any, more?: Partial<View>) => void}} props */
function Layers({ found, open }) {
  const [first] = found.glimpses;
  const groups = [...new Set(found.layers.map((l) => `${l.phase}\n${l.query}`))].map((g) => g.split("\n"));
  const cameras = [...new Set(found.layers.map((l) => l.camera))];
  return html`
    <section class="card" aria-label="Where each layer looks">
      <h2>
        Where each layer looks
        <span class="quiet">${` mean over heads and ${found.sampled} episodes`}</span>
      </h2>
      <span class="legend left">
        ${cameras.map(
          (c, i) => html`
            <span>
              <i class=${`swatch fill-${(i % 4) + 1}`}></i>
              ${c}
            </span>
          `,
        )}
        <span>
          <i class="swatch fill-padding"></i>
          padding
        </span>
        <span>
          <i class="swatch fill-rest"></i>
          text, state, action
        </span>
      </span>
      ${groups.map(([phase, query]) => {
        const rows = found.layers.filter((l) => l.phase === phase && l.query === query);
        const layers = [...new Set(rows.map((l) => l.layer))];
        return html`
          <h3>${`${phase}: ${query} tokens`}</h3>
          <div class="layer-bars">
            ${layers.map((layer) => {
              const own = rows.filter((l) => l.layer === layer);
              const padding = own.reduce((sum, l) => sum + (l.letterbox ?? 0), 0);
              const said = own.map((l) => `${l.camera} ${percent(l.image ?? NaN)}`).join(", ");
              return html`
                <button
                  type="button"
                  class="layer-bar"
                  aria-label=${`${layerName(layer)} of ${phase}: ${said}, padding ${percent(padding)}. Open it`}
                  title=${`${said}, padding ${percent(padding)}`}
                  onClick=${() => first && open(first, { view: "look", phase, query: "", layer, head: "active" })}
                >
                  <span class="number">${layerName(layer)}</span>
                  <span class="bar">
                    ${own.map(
                      (l) => html`
                        <i
                          class=${`fill-${(cameras.indexOf(l.camera) % 4) + 1}`}
                          style=${{ width: `${100 * (l.image ?? 0)}%` }}
                        ></i>
                      `,
                    )}
                    <i class="fill-padding" style=${{ width: `${100 * padding}%` }}></i>
                  </span>
                </button>
              `;
            })}
          </div>
        `;
      })}
    </section>
  `;
}

/** @param {{found: Answer, open: (row: any, more?: Partial<View>) => void}} props */
function Heads({ found, open }) {
  return html`
    <section class="card" aria-label="Most active heads">
      <h2>
        Most active heads
        <span class="quiet">
          ${" by variance of the map on the image; opens the episode where it is largest"}
        </span>
      </h2>
      <div class="scroll" tabindex="0" role="region" aria-label="Rows of the most active heads">
        <table class="plain-table">
          <thead>
            <tr>
              ${["Phase", "Camera", "Head", "On image", "Entropy"].map(
                (h, i) => html`
                  <th scope="col" class=${i > 2 ? "number" : ""}>${h}</th>
                `,
              )}
            </tr>
          </thead>
          <tbody>
            ${found.heads.map(
              (h) => html`
                <tr>
                  <td>${h.phase}</td>
                  <td>${h.camera}</td>
                  <td>
                    <button
                      type="button"
                      class="link"
                      onClick=${() =>
                        open(h, {
                          view: "look",
                          phase: h.phase,
                          query: "",
                          camera: h.camera,
                          layer: h.layer,
                          head: String(h.head),
                          keyframe: Math.floor(h.keyframes / 2),
                        })}
                    >
                      ${`${layerName(h.layer)} ${headName(h.head)}`}
                    </button>
                  </td>
                  <td class="number">${percent(h.image ?? NaN)}</td>
                  <td class="number">${weight(h.entropy)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

/** @param {{found: Answer}} props */
function Health({ found: { soundness: s, outcomes } }) {
  const [low, high] = s.row_sums;
  const close = low !== null && high !== null && Math.abs(low - 1) < CLOSE && Math.abs(high - 1) < CLOSE;
  const episodes = outcomes.reduce((sum, o) => sum + o.episodes, 0);
  const withPart = (/** @type {string} */ kind) => s.parts.find((p) => p.kind === kind)?.episodes ?? 0;
  /** @type {[boolean, string, readonly string[]][]} */
  const said = [
    [
      close,
      low === null || high === null
        ? "no keyframe has attention"
        : `attention rows sum to ${low.toFixed(4)} – ${high.toFixed(4)}`,
      [],
    ],
    [
      s.unreadable.count === 0,
      s.unreadable.count ? `${s.unreadable.count} parts cannot be read` : "every committed part can be read",
      s.unreadable.first,
    ],
    [
      s.quarantined.count === 0,
      s.quarantined.count
        ? `${s.quarantined.count} episodes were kept out by the health gate`
        : "no episode was kept out by the health gate",
      s.quarantined.first,
    ],
  ];
  const adds = { objects: "objects", probe: "probes", cnn: "networks" };
  return html`
    <section class="card" aria-label="Health">
      <h2>Health</h2>
      <ul class="health">
        ${said.map(
          ([good, text, reasons]) => html`
            <li class=${good ? "good" : "bad"}>
              <i aria-hidden="true">${good ? "✓" : "!"}</i>
              <span class="hidden">${good ? "in order: " : "attention: "}</span>
              ${text}
              ${reasons.map(
                (r) => html`
                  <p class="note">${r}</p>
                `,
              )}
            </li>
          `,
        )}
      </ul>
      <p class="note">
        ${s.sink_heads ? `${s.sink_heads} heads have an attention sink in some episode. ` : "No head has an attention sink. "}
        ${Object.entries(adds)
          .map(([kind, name]) => `${name} ${withPart(kind)}`)
          .join(", ")}
        ${` of ${episodes} episodes.`} ${s.newest ? `Newest: ${s.newest.slice(0, 16)} UTC.` : ""}
        ${" attnstore verify compares every file."}
      </p>
    </section>
  `;
}
