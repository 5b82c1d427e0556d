// The episode in time: scrub, play, and metrics of the shown head at every keyframe.

import { useAnswer, useAnswers } from "./answers.js";
import { Chart } from "./chart.js";
import { Menu } from "./controls.js";
import { secondsAt } from "./episode.js";
import { html, useEffect, useList, useMemo, useRef, useState } from "./html.js";
import { keyframeName } from "./numbers.js";
import { nameOfMetric, OBJECT_METRICS, objectLine, objectMetricOf } from "./objects.js";
import { isStored, metrics as listed, objectMetric, phaseOf, trace } from "./questions.js";

/** @import {Change, Episode, Trace, View} from "./types" */

const SPEEDS = [2, 5, 10, 20];

/**
 * @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string,
 *   headOf?: (camera: string) => number | "mean" | null, ready?: (keyframe: number) => boolean}} props
 *   headOf: whose traces are drawn; none if absent
 *   ready: whether a keyframe's images are here; if not, they are asked for
 */
export function Timeline({ e, view, change, playing, play, theme, headOf, ready = () => true }) {
  const [speed, setSpeed] = useState(5);
  const count = e.frames.length;
  const waited = useRef(0);
  useTicks(playing, speed, () => {
    const next = (view.keyframe + 1) % count;
    // for a second at most: an image may be missing
    if (!ready(next) && waited.current++ < speed) return;
    waited.current = 0;
    change({ keyframe: next });
  });
  const { cameras, query_groups } = phaseOf(e, view);
  const shown = view.traces.split(",").filter((name) => name && (view.object || !objectMetricOf(name)));
  const known = useAnswer(listed()).value ?? [];
  const seconds = secondsAt(e, view.keyframe);
  const clock = seconds === null ? "" : `, ${seconds.toFixed(1)} s`;
  const about = `${keyframeName(view.keyframe, count)}, frame ${e.frames[view.keyframe]}${clock}`;
  const toggle = (/** @type {string} */ name) =>
    change({ traces: (shown.includes(name) ? shown.filter((m) => m !== name) : [...shown, name]).join(",") });
  return html`
    <section class="card timeline" aria-label="Time">
      <div class="transport">
        <button
          type="button"
          class="play"
          aria-pressed=${playing}
          onClick=${() => play(!playing)}
          title="Space"
        >
          ${playing ? "Pause" : "Play"}
        </button>
        <button
          type="button"
          aria-label="Previous keyframe"
          title="Left arrow"
          onClick=${() => change({ keyframe: Math.max(0, view.keyframe - 1) })}
        >
          ‹
        </button>
        <button
          type="button"
          aria-label="Next keyframe"
          title="Right arrow"
          onClick=${() => change({ keyframe: Math.min(count - 1, view.keyframe + 1) })}
        >
          ›
        </button>
        <output aria-live=${playing ? "off" : "polite"}>${about}</output>
        <${Menu}
          label="keyframes a second"
          inline
          value=${String(speed)}
          options=${SPEEDS.map((n) => [String(n), String(n)])}
          change=${(/** @type {string} */ chosen) => setSpeed(Number(chosen))}
        />
        ${
          headOf &&
          query_groups.length > 0 &&
          html`
            <${Menu}
              label="trace"
              inline
              value=""
              options=${[
                ["", "add or remove …"],
                ...(view.object
                  ? OBJECT_METRICS.map((m) => [
                      nameOfMetric(m),
                      `${shown.includes(nameOfMetric(m)) ? "✓ " : ""}${m} of ${view.object}`,
                    ])
                  : []),
                ...known.map((m) => [m.name, `${shown.includes(m.name) ? "✓ " : ""}${m.name}`]),
              ]}
              change=${toggle}
            />
          `
        }
        <span class="legend" hidden=${!headOf}>
          ${cameras.map(
            (c, i) => html`
              <span>
                <i class=${`line line-${(i % 4) + 1}`}></i>
                ${c}
              </span>
            `,
          )}
        </span>
      </div>
      <div class="scrubber">
        <input
          type="range"
          min="0"
          max=${count - 1}
          step="1"
          value=${view.keyframe}
          aria-label="Keyframe"
          aria-valuetext=${about}
          onInput=${(/** @type {any} */ x) => change({ keyframe: Number(x.target.value) })}
        />
        <${Ticks} frames=${e.frames} />
      </div>
      ${
        headOf &&
        query_groups.length > 0 &&
        html`
          <${Traces}
            e=${e}
            view=${view}
            change=${change}
            theme=${theme}
            shown=${shown}
            headOf=${headOf}
            remove=${toggle}
          />
        `
      }
    </section>
  `;
}

/**
 * @param {{e: Episode, view: View, change: Change, theme: string, shown: string[],
 *   headOf: (camera: string) => number | "mean" | null, remove: (name: string) => void}} props
 */
function Traces({ e, view, change, theme, shown, headOf, remove }) {
  const { cameras } = phaseOf(e, view);
  const ofHeads = useAnswers(
    shown.flatMap((m) => cameras.map((c) => (objectMetricOf(m) ? null : trace(e, view, c, m)))),
  );
  const ofObject = useAnswers(
    shown.flatMap((m) => {
      const metric = objectMetricOf(m);
      return cameras.map((c) => (metric ? objectMetric(e, view, c, metric) : null));
    }),
  );
  const answers = ofHeads.map((a, i) =>
    objectMetricOf(shown[Math.floor(i / cameras.length)]) ? ofObject[i] : a,
  );
  const arrived = useList(answers.map((a) => a.value ?? a.error));
  const heads = cameras.map(headOf);
  const rows = useMemo(
    () =>
      shown.map((name, i) => {
        const own = answers.slice(i * cameras.length, (i + 1) * cameras.length);
        const error = own.find((a) => a.error)?.error;
        return {
          name: objectMetricOf(name) ? `${objectMetricOf(name)} of ${view.object}` : name,
          key: name,
          error,
          unit: own[0]?.value?.unit ?? "",
          lines: cameras.map((camera, c) => ({
            name: camera,
            values: valuesOf(own[c]?.value, view.layer, heads[c]) ?? e.frames.map(() => null),
          })),
        };
      }),
    [arrived, shown.join(), heads.join(), view.layer, view.object, e],
  );
  return html`
    ${rows.map(
      ({ name, key, unit, lines, error }) => html`
        <div class="trace" key=${key}>
          <span class="name" title=${unit}>
            ${name}
            <button
              type="button"
              class="plain"
              aria-label=${`Remove the trace of ${name}`}
              onClick=${() => remove(key)}
            >
              ×
            </button>
          </span>
          ${
            error
              ? html`
                  <p class="error">${error.message}</p>
                `
              : html`
                  <${Chart}
                    frames=${e.frames}
                    lines=${lines}
                    keyframe=${view.keyframe}
                    theme=${theme}
                    label=${`${name} at every keyframe`}
                    choose=${(/** @type {number} */ keyframe) => change({ keyframe })}
                  />
                `
          }
        </div>
      `,
    )}
    ${
      !isStored(e, view) &&
      html`
        <p class="note">
          Traces and the layer × head matrix are of ${phaseOf(e, view).query_groups[0]} tokens; statistics of
          other tokens are not stored.
        </p>
      `
    }
  `;
}

/**
 * @param {Trace | import("./types").ObjectMetric | undefined} answer
 * @param {number} layer @param {number | "mean" | null} head
 */
const valuesOf = (answer, layer, head) =>
  answer && ("object" in answer ? objectLine(answer, layer, head) : lineOf(answer, head));

/**
 * A head's values by keyframe, or the mean over heads.
 * @param {Trace} trace
 * @param {number | "mean" | null} head null: not known yet
 */
export function lineOf({ values }, head) {
  if (head !== "mean") return values[head ?? -1] ?? values[0].map(() => null);
  return values[0].map((_, k) => {
    const there = values.map((v) => v[k]).filter((v) => v !== null);
    return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
  });
}

/** A tick at every keyframe. @param {{frames: number[]}} props */
function Ticks({ frames }) {
  const [first, last] = [frames[0], frames[frames.length - 1]];
  const every = Math.ceil(frames.length / 12);
  return html`
    <div class="ticks" aria-hidden="true">
      ${frames.map((f, i) => {
        const left = `${last > first ? (100 * (f - first)) / (last - first) : 50}%`;
        return html`
          <i style=${{ left }}></i>
          ${
            i % every === 0 &&
            html`
              <span style=${{ left }}>${f}</span>
            `
          }
        `;
      })}
    </div>
  `;
}

/**
 * Call back a number of times a second.
 * @param {boolean} on @param {number} rate @param {() => void} tick
 */
export function useTicks(on, rate, tick) {
  const latest = useRef(tick);
  latest.current = tick;
  useEffect(() => {
    if (!on) return;
    let due = performance.now() + 1000 / rate;
    let request = requestAnimationFrame(function step(now) {
      if (now >= due) {
        due = Math.max(due + 1000 / rate, now);
        latest.current();
      }
      request = requestAnimationFrame(step);
    });
    return () => cancelAnimationFrame(request);
  }, [on, rate]);
}
