// Two episodes side by side, aligned by normalised time, and where they look differently.

import { useAnswer } from "./answers.js";
import { colours, DIVERGING } from "./colormaps.js";
import { Choice, Menu, Selection } from "./controls.js";
import { useEpisode } from "./episode.js";
import { shortName } from "./episodes.js";
import { Groups } from "./groups.js";
import { blending as blendingOf, limitsOf } from "./heat.js";
import { html, useEffect, useMemo } from "./html.js";
import { useMaps } from "./look.js";
import { mapAt, mapAtTime, symmetric } from "./maps.js";
import { headText, layerName, weightedText } from "./numbers.js";
import { Pane, shownMap } from "./pane.js";
import { episodes, isStored, phaseOf } from "./questions.js";
import { Runs } from "./runs.js";
import { useTicks } from "./timeline.js";
import { Wall } from "./wall.js";

/** @import {Change, Episode, ListedEpisode, View} from "./types" */

/** Steps of the time slider, and of a playback that takes six seconds. */
const STEPS = 60;

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void}} props */
export function Compare({ e, view: wished, change, playing, play }) {
  // a token's index may be another word in another episode
  const view = isStored(e, wished) ? wished : { ...wished, query: "" };
  useTicks(playing, 10, () => change({ time: view.time >= 1 ? 0 : Math.min(1, view.time + 1 / STEPS) }));
  const { cameras } = phaseOf(e, view);
  return html`
    <div class="compare">
      <div class="controls">
        <${Choice}
          label="Compare"
          value=${view.pairing}
          options=${["episodes", "runs", "wall", "groups"]}
          change=${(/** @type {any} */ pairing) => change({ pairing })}
        />
        <${Choice}
          label="Camera"
          value=${view.camera}
          options=${cameras}
          change=${(/** @type {string} */ camera) => change({ camera })}
        />
      </div>
      <${Selection} e=${e} view=${view} change=${change} />
      <section class="card" aria-label="Time">
        <div class="transport">
          <button type="button" class="play" aria-pressed=${playing} onClick=${() => play(!playing)}>
            ${playing ? "Pause" : "Play"}
          </button>
          <input
            type="range"
            class="wide"
            min="0"
            max=${STEPS}
            value=${Math.round(view.time * STEPS)}
            aria-label="Normalised time"
            aria-valuetext=${`${Math.round(100 * view.time)} % of the episode`}
            onInput=${(/** @type {any} */ x) => change({ time: Number(x.target.value) / STEPS })}
          />
          <output>${Math.round(100 * view.time)} % of the episode</output>
        </div>
      </section>
      ${
        view.camera &&
        view.pairing === "episodes" &&
        html`
          <${Pair} e=${e} view=${view} change=${change} />
        `
      }
      ${
        view.camera &&
        view.pairing === "runs" &&
        html`
          <${Runs}
            e=${e}
            view=${view}
            change=${change}
            sides=${(/** @type {Episode} */ other) => sidesOf(e, other, view)}
          />
        `
      }
      ${
        view.camera &&
        view.pairing === "wall" &&
        html`
          <${Wall} e=${e} view=${view} change=${change} />
        `
      }
      ${
        view.camera &&
        view.pairing === "groups" &&
        html`
          <${Groups} e=${e} view=${view} change=${change} />
        `
      }
    </div>
  `;
}

/** @param {{e: Episode, view: View, change: Change}} props */
function Pair({ e, view, change }) {
  const rows =
    useAnswer(episodes({ ...view, text: "", where: "", outcome: "", order: "name", descending: false }, 1000))
      .value?.rows ?? [];
  const found = useEpisode(view.store, view.otherRun, view.other);
  const other = found.episode;
  useEffect(() => {
    if (view.other || !rows.length) return;
    const rank = (/** @type {ListedEpisode} */ r) =>
      4 * +(r.run === e.run) + 2 * +(r.outcome !== e.outcome) + +(r.task === e.task);
    const others = rows.filter((r) => r.episode !== e.episode || r.run !== e.run);
    const best = others.reduce(
      (a, b) => (!a || rank(b) > rank(a) ? b : a),
      /** @type {ListedEpisode | null} */ (null),
    );
    if (best) change({ other: best.episode, otherRun: best.run });
  }, [view.other, rows]);
  const chosen = rows.findIndex((r) => r.episode === view.other && r.run === view.otherRun);
  const picker = html`
    <${Menu}
      label="Compared with"
      value=${String(chosen)}
      options=${rows.map((r, i) => [String(i), `${r.outcome}: ${shortName(r.name)}, ${r.instruction}${r.run === e.run ? "" : ` (${r.run})`}`])}
      change=${(/** @type {string} */ index) => {
        const row = rows[Number(index)];
        change({ other: row.episode, otherRun: row.run });
      }}
    />
  `;
  if (found.error)
    return html`
      ${picker}
      <p class="error" role="alert">${found.error.message}</p>
    `;
  if (!other)
    return html`
      ${picker}
      <p class="quiet" role="status">${rows.length === 1 ? "There is no other episode." : "loading …"}</p>
    `;
  return html`
    ${picker} ${sidesOf(e, other, view)}
  `;
}

/** Both episodes and their difference, or why they cannot be compared. @param {Episode} e @param {Episode} other @param {View} view */
function sidesOf(e, other, view) {
  const name = `${shortName(other.name)}${other.name === e.name ? ` of ${other.run}` : ""}`;
  const problem = !other.phases[view.phase]
    ? `${name} has no phase ${view.phase}.`
    : !other.phases[view.phase].cameras.includes(view.camera)
      ? `${name} has no camera ${view.camera}.`
      : other.phases[view.phase].layers <= view.layer
        ? `${name} has no layer ${view.layer}.`
        : "";
  if (problem)
    return html`
      <p class="error" role="alert">${problem}</p>
    `;
  return html`
    <${Sides} a=${e} b=${other} view=${view} />
  `;
}

/** @param {{a: Episode, b: Episode, view: View}} props */
function Sides({ a, b, view }) {
  const { camera } = view;
  const [one] = useMaps(a, view, [camera]);
  // the same head on both sides: else the difference would be one between heads
  const head = one.head === null ? "mean" : String(one.head);
  const [two] = useMaps(b, { ...view, head }, [camera]);
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const apart = useMemo(() => blendingOf(colours(DIVERGING), 0.9, "signed"), []);
  const grid = String(a.cameras[camera].grid) === String(b.cameras[camera].grid);
  const ready = one.maps && two.maps && one.head !== null;
  // two runs of one episode have frames in common: those are compared, and nothing between them
  const same = a.name === b.name && a.run !== b.run;
  const left = Math.round(view.time * (a.frames.length - 1));
  const right = same ? b.frames.indexOf(a.frames[left]) : Math.round(view.time * (b.frames.length - 1));
  const difference = useMemo(() => {
    if (!one.maps || !two.maps || !grid || right < 0) return null;
    const [x, y] = same
      ? [mapAt(one.maps, left), mapAt(two.maps, right)]
      : [mapAtTime(one.maps, view.time), mapAtTime(two.maps, view.time)];
    return x.map((v, i) => v - y[i]);
  }, [one.maps, two.maps, grid, view.time, left, right]);
  const wholes = useMemo(
    () =>
      [one, two].map(({ maps }, i) =>
        limitsOf(maps ? [maps.data] : [], (i ? b : a).cameras[camera].coverage),
      ),
    [one.maps, two.maps, camera],
  );
  const shared = /** @type {[number, number]} */ ([
    Math.min(wholes[0][0], wholes[1][0]),
    Math.max(wholes[0][1], wholes[1][1]),
  ]);
  const label = `${layerName(view.layer)} ${headText(one.head)}${weightedText(view)}`;
  const sides = [
    [a, one],
    [b, two],
  ].map((pair) => {
    const [e, { maps, pending, error }] = /** @type {[Episode, typeof one]} */ (pair);
    const absent = e === b && right < 0;
    const keyframe = e === a ? left : Math.max(0, right);
    const map = maps && !absent ? mapAt(maps, keyframe) : null;
    const own = map ? limitsOf([map], e.cameras[camera].coverage) : null;
    return {
      e,
      keyframe,
      shown: shownMap(
        map,
        (view.scale === "frame" ? own : shared) ?? [0, 1],
        `${label}, frame ${e.frames[keyframe]}`,
        { pending, error, note: absent ? `Frame ${a.frames[left]} is no keyframe of this run.` : "" },
      ),
    };
  });
  const far = symmetric(limitsOf(difference ? [difference] : [], a.cameras[camera].coverage));
  return html`
    <div class="panes three">
      ${sides.map(
        ({ e, keyframe, shown }) => html`
          <div key=${`${e.run}/${e.episode}`}>
            <h2>
              <i class=${`dot ${e.outcome}`}></i>
              ${same ? e.run : `${e.outcome}: ${shortName(e.name)}`}
              <span class="quiet">${` ${e.instruction}`}</span>
            </h2>
            <${Pane}
              e=${e}
              view=${{ ...view, keyframe }}
              camera=${camera}
              shown=${shown}
              blending=${blending}
            />
          </div>
        `,
      )}
      <div>
        <h2>
          Difference
          <span class="quiet">
            ${same ? " left minus right, at the same frame" : " left minus right, interpolated to the same moment"}
          </span>
        </h2>
        ${
          !grid &&
          html`
            <p class="note">The cameras' patch grids differ: there is no difference patch by patch.</p>
          `
        }
        ${
          ready &&
          grid &&
          html`
            <${Pane}
              e=${a}
              view=${{ ...view, keyframe: sides[0].keyframe, cmap: DIVERGING }}
              camera=${camera}
              blending=${apart}
              shown=${shownMap(difference, far, `${label}; red: more on the left`)}
            />
          `
        }
      </div>
    </div>
  `;
}
