// What the policy did: the chunk of the shown keyframe over time, how denoising came to it, what was recorded.

import { useAnswer } from "./answers.js";
import { Choice } from "./controls.js";
import { html, useMemo } from "./html.js";
import { Thumbnail } from "./overview.js";
import { keyframeName, weight } from "./numbers.js";
import { denoising as askDenoising, phaseOf, policyArray } from "./questions.js";
import { Timeline } from "./timeline.js";

/** @import {Change, Episode, NumberArray, View} from "./types" */

const WIDTH = 560,
  HEIGHT = 150,
  LEFT = 46,
  RIGHT = 46,
  TOP = 8,
  BOTTOM = 20;

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string}} props */
export function Actions({ e, view, change, playing, play, theme }) {
  const chunks = useAnswer(policyArray(e, "actions"));
  const recorded = useAnswer(policyArray(e, "actions_recorded"));
  const fan = useAnswer(askDenoising(e, view.keyframe));
  const { cameras } = phaseOf(e, view);
  const error = chunks.error ?? recorded.error ?? fan.error;
  const array = chunks.value;
  return html`
    <div class="actions-view">
      <div class="controls">
        <${Choice}
          label="Camera"
          value=${view.camera}
          options=${cameras}
          change=${(/** @type {string} */ camera) => change({ camera })}
        />
      </div>
      ${
        error &&
        html`
          <p class="error" role="alert">${error.message}</p>
        `
      }
      ${
        !e.policy.actions &&
        html`
          <p class="note">
            The policy of this episode gives no action
            chunks${e.policy.actions_recorded ? "; what was recorded is in the store: episode.policy_array('actions_recorded')" : ""}.
          </p>
        `
      }
      <div class="actions">
        ${
          view.camera &&
          html`
            <figure class="card look-beside" aria-label="Camera">
              <${Thumbnail} e=${e} view=${view} />
              <figcaption class="quiet small">
                ${`${view.camera}, ${keyframeName(view.keyframe, e.frames.length)}`}
              </figcaption>
            </figure>
          `
        }
        ${
          array &&
          html`
            <section class="card" aria-label="Action chunk">
              <h2>
                Action chunk of the keyframe
                <span class="quiet">${" in the policy's normalised units, left scale"}</span>
              </h2>
              <span class="legend left">
                <span>
                  <i class="line line-1"></i>
                  predicted here
                </span>
                <span>
                  <i class="line faint"></i>
                  predicted at other keyframes
                </span>
                ${
                  fan.value &&
                  html`
                    <span>
                      <i class="line line-4"></i>
                      after each denoising step, faint to strong
                    </span>
                  `
                }
                ${
                  recorded.value &&
                  html`
                    <span>
                      <i class="line line-2"></i>
                      recorded, in the dataset's units, right scale
                    </span>
                  `
                }
              </span>
              <${Charts}
                e=${e}
                view=${view}
                change=${change}
                chunks=${array}
                recorded=${recorded.value ?? null}
                fan=${fan.value ?? null}
              />
              ${
                recorded.value &&
                html`
                  <p class="note">
                    The two scales are each dimension's own: what is to be compared is the course. r is the
                    correlation, over keyframes, of the chunk's first command with what was recorded.
                    Dimensions are matched by their
                    position${array.shape[2] === recorded.value.shape[1] ? "" : `: the chunk has ${array.shape[2]}, the recording ${recorded.value.shape[1]}, which need not be the same quantities`}.
                  </p>
                `
              }
            </section>
          `
        }
      </div>
      <${Timeline} e=${e} view=${view} change=${change} playing=${playing} play=${play} theme=${theme} />
    </div>
  `;
}

/**
 * @param {{e: Episode, view: View, change: Change, chunks: NumberArray, recorded: NumberArray | null,
 *   fan: NumberArray | null}} props
 */
function Charts({ e, view, change, chunks, recorded, fan }) {
  const [keyframes, horizon, dofs] = chunks.shape;
  const recordedDofs = recorded?.shape[1] ?? 0;
  const moved = useMemo(() => movedDofs(chunks, recordedDofs), [chunks, recordedDofs]);
  const first = e.frames[0],
    last = e.frames[e.frames.length - 1] + horizon - 1;
  const x = (/** @type {number} */ frame) =>
    LEFT + ((WIDTH - LEFT - RIGHT) * (frame - first)) / Math.max(1, last - first);
  const at = (/** @type {number} */ k, /** @type {number} */ t, /** @type {number} */ d) =>
    chunks.data[(k * horizon + t) * dofs + d];
  return html`
    <div class="dofs">
      ${moved.map((d) => {
        const values = [];
        for (let k = 0; k < keyframes; k++) for (let t = 0; t < horizon; t++) values.push(at(k, t, d));
        const steps = fan?.shape[0] ?? 0;
        const stepAt = (/** @type {number} */ s, /** @type {number} */ t) =>
          fan ? fan.data[(s * horizon + t) * dofs + d] : NaN;
        const y = scaleOf(values);
        const own =
          recorded && d < recordedDofs
            ? Array.from(e.frames, (_, k) => recorded.data[k * recordedDofs + d])
            : null;
        const z = own && scaleOf(own);
        const chunk = (/** @type {number} */ k) =>
          lineOf(horizon, (t) => [x(e.frames[k] + t), y.place(at(k, t, d))]);
        const r =
          own &&
          correlation(
            own,
            own.map((_, k) => at(k, 0, d)),
          );
        const name = `dimension ${d}`;
        return html`
          <figure class="dof" key=${d}>
            <figcaption>
              <b>${name}</b>
              ${
                r !== null &&
                html`
                  <span class="quiet">${` r = ${r.toFixed(2)}`}</span>
                `
              }
            </figcaption>
            <svg
              viewBox=${`0 0 ${WIDTH} ${HEIGHT}`}
              role="img"
              aria-label=${`${name}: ${weight(at(view.keyframe, 0, d))} first, ${weight(at(view.keyframe, horizon - 1, d))} last in this chunk`}
              onClick=${(/** @type {MouseEvent} */ event) => {
                const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
                const px = ((event.clientX - box.left) / box.width) * WIDTH;
                const frame = first + ((px - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first);
                change({ keyframe: nearest(e.frames, frame) });
              }}
            >
              ${[y.low, y.top].map(
                (v) => html`
                  <line class="rule" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y.place(v)} y2=${y.place(v)} />
                  <text x=${LEFT - 4} y=${y.place(v) + 4} text-anchor="end">${weight(v)}</text>
                `,
              )}
              ${
                z &&
                [z.low, z.top].map(
                  (v) => html`
                    <text class="recorded" x=${WIDTH - RIGHT + 4} y=${z.place(v) + 4}>${weight(v)}</text>
                  `,
                )
              }
              <text x=${LEFT} y=${HEIGHT - 4}>${first}</text>
              <text x=${WIDTH - RIGHT} y=${HEIGHT - 4} text-anchor="end">${`frame ${last}`}</text>
              ${e.frames.map(
                (_, k) =>
                  k !== view.keyframe &&
                  html`
                    <path class="chunk" d=${chunk(k)} />
                  `,
              )}
              ${Array.from(
                { length: Math.max(0, steps - 1) },
                (_, s) => html`
                  <path
                    class="fan"
                    data-step=${s}
                    style=${{ opacity: 0.15 + (0.55 * (s + 1)) / steps }}
                    d=${lineOf(horizon, (t) => [x(e.frames[view.keyframe] + t), y.place(stepAt(s, t))])}
                  />
                `,
              )}
              ${
                own &&
                z &&
                html`
                  <path class="recorded" d=${lineOf(own.length, (k) => [x(e.frames[k]), z.place(own[k])])} />
                `
              }
              <path class="chunk here" d=${chunk(view.keyframe)} />
              <line
                class="now"
                x1=${x(e.frames[view.keyframe])}
                x2=${x(e.frames[view.keyframe])}
                y1=${TOP}
                y2=${HEIGHT - BOTTOM}
              />
            </svg>
          </figure>
        `;
      })}
    </div>
    ${
      moved.length < dofs &&
      html`
        <p class="note">
          ${`${dofs - moved.length} of the action's ${dofs} dimensions are left out: `}
          ${recordedDofs ? "beyond what was recorded, the policy's padding." : "they never change."}
        </p>
      `
    }
  `;
}

/**
 * Dimensions that are drawn: a policy's vector may have padding behind its own.
 * @param {NumberArray} chunks @param {number} recorded dimensions that were recorded
 */
function movedDofs({ shape, data }, recorded) {
  const dofs = shape[2];
  return Array.from({ length: dofs }, (_, d) => d).filter((d) => {
    if (recorded && dofs > recorded) return d < recorded;
    for (let i = d + dofs; i < data.length; i += dofs) if (data[i] !== data[d]) return true;
    return false;
  });
}

/**
 * Where a value is drawn, between the least and the most that is finite; beyond is drawn at the edge.
 * @param {number[]} values
 */
function scaleOf(values) {
  const known = values.filter(Number.isFinite);
  const low = Math.min(...known),
    top = Math.max(...known);
  const span = top - low || 1;
  const inner = HEIGHT - TOP - BOTTOM;
  const place = (/** @type {number} */ v) =>
    TOP + inner - inner * Math.min(1.05, Math.max(-0.05, (v - low) / span));
  return { low, top, place };
}

/** @param {number} count @param {(i: number) => [number, number]} point */
function lineOf(count, point) {
  let path = "",
    pen = "M";
  for (let i = 0; i < count; i++) {
    const [x, y] = point(i);
    if (Number.isNaN(y)) {
      pen = "M";
      continue;
    }
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return path;
}

/** Pearson's; null where one does not vary. @param {number[]} a @param {number[]} b */
export function correlation(a, b) {
  const pairs = a.map((v, i) => [v, b[i]]).filter(([v, w]) => Number.isFinite(v) && Number.isFinite(w));
  const mean = (/** @type {number} */ i) => pairs.reduce((sum, p) => sum + p[i], 0) / pairs.length;
  const [m, n] = [mean(0), mean(1)];
  let xy = 0,
    xx = 0,
    yy = 0;
  for (const [v, w] of pairs) ((xy += (v - m) * (w - n)), (xx += (v - m) ** 2), (yy += (w - n) ** 2));
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : null;
}

/** @param {number[]} frames @param {number} frame */
function nearest(frames, frame) {
  let best = 0;
  frames.forEach((f, k) => {
    if (Math.abs(f - frame) < Math.abs(frames[best] - frame)) best = k;
  });
  return best;
}
