// One episode: its cameras with heat, and everything that says what the heat is of.

import { useAnswer, useAnswers } from "./answers.js";
import { get, peek } from "./api.js";
import { colours } from "./colormaps.js";
import { Appearance, Selection } from "./controls.js";
import { pixels, pixelsHere, preload } from "./frames.js";
import { blending as blendingOf, limitsOf } from "./heat.js";
import { html, useEffect, useList, useMemo } from "./html.js";
import { Unanswered } from "./kept.js";
import { mapAt, mapsOf, massOf, ofHead } from "./maps.js";
import { HeadMatrix } from "./matrix.js";
import { headText, layerName, percent, weightedText } from "./numbers.js";
import { ObjectStrip, useOutlines } from "./objects.js";
import { Pane } from "./pane.js";
import { pictureSize } from "./picture.js";
import {
  activeHead,
  attending,
  headsTogether,
  isStored,
  maps as askMaps,
  phaseOf,
  rollout as askRollout,
  sinks as askSinks,
  stepOf,
  trace,
} from "./questions.js";
import { brushOf, formatBrush } from "./state.js";
import { lineOf, Timeline } from "./timeline.js";
import { TokenStrip } from "./tokens.js";
import { Share } from "./share.js";

/** @import {Brush, Change, Episode, NumberArray, View} from "./types" */

/**
 * The head that is shown of each camera, and the maps of every keyframe.
 * @param {Episode} e @param {View} view @param {string[]} cameras
 */
export function useMaps(e, view, cameras) {
  const active = useAnswers(cameras.map((c) => (view.head === "active" ? activeHead(e, view, c) : null)));
  /** @type {(number | "mean" | null)[]} */
  const heads = cameras.map((_, i) => {
    if (view.head !== "active") return view.head === "mean" ? "mean" : Number(view.head);
    return active[i].value?.head ?? null;
  });
  const answers = useAnswers(
    cameras.map((c, i) => {
      if (headsTogether(e, view, c)) return askMaps(e, view, c, 0); // whichever head it will be
      const alone = heads[i];
      return alone === null ? null : askMaps(e, view, c, alone);
    }),
  );
  const arrived = useList(answers.map((a) => a.value));
  const maps = useMemo(
    () => arrived.map((value, i) => (value && heads[i] !== null ? ofHead(mapsOf(value), heads[i]) : null)),
    [arrived, heads.join()],
  );
  const unseen = (/** @type {number} */ i) =>
    active[i].value?.head === null
      ? new Error("No keyframe has this camera: no head is active on it.")
      : undefined;
  return cameras.map((camera, i) => ({
    camera,
    head: heads[i],
    maps: maps[i],
    chosenBy: active[i].value?.chosen_by,
    pending: active[i].pending || answers[i].pending,
    error: answers[i].error ?? active[i].error ?? unseen(i),
  }));
}

/**
 * As `useMaps`, the rollout of the keyframe that is shown alone, which reads all layers; where it is not
 * defined or too much, what the service says.
 * @param {Episode} e @param {View} view @param {string[]} cameras
 */
function useRollouts(e, view, cameras) {
  const answers = useAnswers(cameras.map((c) => askRollout(e, view, c, view.keyframe)));
  const arrived = useList(answers.map((a) => a.value));
  const maps = useMemo(
    () => arrived.map((value) => (value ? mapsOf({ ...value, shape: [1, ...value.shape] }) : null)),
    [arrived],
  );
  return cameras.map((camera, i) => {
    const { pending, error } = answers[i];
    const refused = error instanceof Unanswered && [400, 404, 413].includes(error.status);
    return {
      camera,
      head: /** @type {const} */ ("mean"),
      maps: maps[i],
      chosenBy: undefined,
      pending,
      error: refused ? undefined : error,
      refusal: refused ? error.message : "",
    };
  });
}

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string}} props */
export function Look({ e, view, change, playing, play, theme }) {
  const phase = phaseOf(e, view);
  const { cameras } = phase;
  const rolled = view.weighting === "rollout";
  const attention = useMaps(e, view, rolled ? [] : cameras);
  const rollouts = useRollouts(e, view, rolled ? cameras : []);
  const loaded = rolled ? rollouts : attention;
  const at = rolled ? 0 : view.keyframe; // of the maps that are here
  const refusal = rollouts.find((one) => one.refusal)?.refusal;
  const ready = loaded.every((one) => one.maps || one.error) || !!refusal;
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const maps = useList(loaded.map((one) => one.maps));
  const whole = useMemo(
    () => maps.map((found, i) => limitsOf(found ? [found.data] : [], e.cameras[cameras[i]].coverage)),
    [e, maps],
  );
  const masses = useMasses(e, view, loaded, at);
  const notes = useSinks(e, view, loaded);
  const brush = brushOf(view);
  const outlines = useOutlines(e, view);
  const attended = useAttending(e, view, brush, loaded);

  useEffect(() => {
    if (!ready) return;
    const stop = new AbortController();
    preload(e, cameras, view.keyframe, (c) => pictureSize(e.cameras[c]), stop.signal);
    return () => stop.abort();
  }, [e, ready, cameras.join()]);

  const shown = loaded.map(({ camera, head, maps, chosenBy, pending, error }, i) => {
    const map = maps ? mapAt(maps, at) : null;
    const absent = map?.every(Number.isNaN) ?? false;
    const frame = map ? limitsOf([map], e.cameras[camera].coverage) : null;
    const shared = /** @type {import("./types").Limits} */ ([
      Math.min(...whole.map((l) => l[0])),
      Math.max(...whole.map((l) => l[1])),
    ]);
    return {
      camera,
      map: absent ? null : map,
      limits: (view.scale === "frame" ? frame : view.scale === "episode" ? whole[i] : shared) ?? [0, 1],
      head: rolled
        ? `rollout up to ${layerName(view.layer)}`
        : `${layerName(view.layer)} ${headText(head)}${chosenBy ? " (active)" : ""}${weightedText(view)}`,
      headTitle: chosenBy
        ? `The most active head of the episode, by ${chosenBy} of the map that is shown.`
        : "",
      headIndex: head,
      mass: absent ? null : masses[i],
      note: absent ? "These tokens, or this camera, are absent at this keyframe." : notes[i],
      pending,
      error,
    };
  });
  const imagesHere = (/** @type {number} */ keyframe) => {
    const missing = cameras.filter((c) => !pixelsHere(e, c, keyframe, ...pictureSize(e.cameras[c])));
    for (const c of missing) pixels(e, c, keyframe, ...pictureSize(e.cameras[c])).catch(() => {});
    const unrolled = rolled && !refusal ? cameras.map((c) => askRollout(e, view, c, keyframe)) : [];
    const coming = unrolled.filter((question) => peek(question) === undefined);
    for (const question of coming) get(question).catch(() => {});
    return missing.length === 0 && coming.length === 0;
  };
  const headOf = (/** @type {string} */ camera) => loaded[cameras.indexOf(camera)]?.head ?? null;
  return html`
    <div class="look">
      <div class="main">
        <${Selection} e=${e} view=${view} change=${change} />
        ${
          rolled &&
          html`
            <p class="note">
              ${
                refusal ??
                `Rollout up to ${layerName(view.layer)}, all heads, fused by mean: from which patches information may have come. Matrix, traces, objects and the tokens' bars are of raw attention.`
              }
            </p>
          `
        }
        <div class="panes">
          ${shown.map(
            (one) => html`
              <${Pane}
                key=${one.camera}
                e=${e}
                view=${view}
                camera=${one.camera}
                shown=${one}
                blending=${blending}
                outlines=${outlines[one.camera]}
                brush=${brush}
                onBrush=${(/** @type {Brush | null} */ b) => change({ brush: b ? formatBrush(b) : "" })}
              />
            `,
          )}
          ${
            cameras.length === 0 &&
            html`
              <p class="note">No camera is among the keys of this phase.</p>
            `
          }
        </div>
        <${Timeline}
          e=${e}
          view=${view}
          change=${change}
          playing=${playing}
          play=${play}
          theme=${theme}
          headOf=${headOf}
          ready=${imagesHere}
        />
        <${ObjectStrip} e=${e} view=${view} change=${change} headOf=${headOf} />
        <${TokenStrip}
          e=${e}
          view=${view}
          change=${change}
          weights=${attended.weights}
          about=${attended.about}
          patch=${brush && patchQuery(e, view, brush)}
        />
        ${
          attended.error &&
          html`
            <p class="error" role="alert">${attended.error.message}</p>
          `
        }
      </div>
      <aside class="side" aria-label="Heads, appearance and export">
        <${HeadMatrix}
          e=${e}
          view=${view}
          change=${change}
          keyframe=${view.keyframe}
          active=${loaded.find((one) => one.camera === view.camera)?.head ?? null}
        />
        <section class="card" aria-label="Appearance">
          <h2>Appearance</h2>
          <${Appearance} view=${view} change=${change} />
        </section>
        <${Share} e=${e} view=${view} shown=${shown} blending=${blending} />
      </aside>
    </div>
  `;
}

/**
 * Attention on image and letterbox at the keyframe: from the stored statistics, or from the map where it
 * is a mean over queries.
 * @param {Episode} e @param {View} view @param {ReturnType<typeof useMaps>} loaded
 * @param {number} at which of the maps is shown
 */
function useMasses(e, view, loaded, at) {
  const single = /^\d+$/.test(view.query);
  const summed = (single || view.reduce === "mean") && !view.sinks;
  const stored = !summed && isStored(e, view) && phaseOf(e, view).query_groups.length > 0;
  const answers = useAnswers(
    loaded.flatMap(({ camera }) =>
      ["camera_mass", "letterbox_mass"].map((m) => (stored ? trace(e, view, camera, m) : null)),
    ),
  );
  return loaded.map(({ camera, head, maps }, i) => {
    if (head === null) return null;
    if (summed) return maps && massOf(mapAt(maps, at), e.cameras[camera]);
    const [image, letterbox] = [answers[2 * i], answers[2 * i + 1]].map(
      (a) => a.value && lineOf(a.value, head)[view.keyframe],
    );
    return typeof image === "number" && typeof letterbox === "number" ? { image, letterbox } : null;
  });
}

/**
 * What is said about sinks under each camera.
 * @param {Episode} e @param {View} view @param {ReturnType<typeof useMaps>} loaded
 */
function useSinks(e, view, loaded) {
  const answer = useAnswer(view.sinks ? askSinks(e, view) : null);
  const step = stepOf(e, view);
  return loaded.map(({ camera, head }) => {
    if (!view.sinks || !answer.value || head === null) return "";
    const found = answer.value.rows.filter(
      (r) =>
        r.camera === camera &&
        r.weighting === view.weighting &&
        r.row !== null &&
        r.layer === view.layer &&
        r.step === step &&
        (head === "mean" || r.head === head),
    );
    if (!found.length) return "This head has no sink on this camera: the map is as it is.";
    const mass = found.reduce((sum, r) => sum + (r.mass ?? 0), 0);
    return head === "mean"
      ? `Sinks of the layer's heads set to the median patch: ${found.length}.`
      : `Sinks set to the median patch: ${found.length}, with ${percent(mass)} of all queries' attention.`;
  });
}

/**
 * How much every query token attends to the brushed patches.
 * @param {Episode} e @param {View} view @param {Brush | null} brush @param {ReturnType<typeof useMaps>} loaded
 * @returns {{weights: Float32Array | null, about: string, error?: Error}}
 */
function useAttending(e, view, brush, loaded) {
  const head = brush ? (loaded.find((one) => one.camera === brush.camera)?.head ?? null) : null;
  const question = brush && head !== null ? attending(e, view, brush, head === "mean" ? null : head) : null;
  const answer = useAnswer(question);
  const weights = useMemo(
    () =>
      brush && answer.value ? sumOverPatches(answer.value, brush, e.cameras[brush.camera].grid[1]) : null,
    [answer.value],
  );
  if (!brush) return { weights: null, about: "" };
  const [r0, r1, c0, c1] = [...brush.rows, ...brush.cols];
  const count = (r1 - r0 + 1) * (c1 - c0 + 1);
  const about = count === 1 ? `patch ${r0}, ${c0} of ${brush.camera}` : `${count} patches of ${brush.camera}`;
  return { weights, about, error: answer.error };
}

/**
 * Index of a single brushed patch among the queries; null if it is none of them.
 * @param {Episode} e @param {View} view @param {Brush} brush
 */
function patchQuery(e, view, { camera, rows, cols }) {
  const span = phaseOf(e, view).query.find((s) => s.camera === camera);
  if (!span || rows[0] !== rows[1] || cols[0] !== cols[1]) return null;
  return span.start + rows[0] * e.cameras[camera].grid[1] + cols[0];
}

/**
 * (query, key) summed over the brushed keys, of those from the first to the last of them; with heads
 * before, their mean.
 * @param {NumberArray} array @param {Brush} brush
 * @param {number} cols of the grid
 */
function sumOverPatches({ shape, data }, brush, cols) {
  const [queries, keys] = shape.slice(-2),
    heads = shape.length === 3 ? shape[0] : 1;
  const sums = new Float32Array(queries);
  for (let i = 0; i < data.length; i++) {
    const col = (brush.cols[0] + (i % keys)) % cols;
    if (col >= brush.cols[0] && col <= brush.cols[1]) sums[Math.floor(i / keys) % queries] += data[i] / heads;
  }
  return sums;
}
