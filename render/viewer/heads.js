// Small multiples of a camera: all heads of a layer, or all layers of a head; a click chooses one.

import { useAnswers } from "./answers.js";
import { colours } from "./colormaps.js";
import { Choice, Menu, Selection } from "./controls.js";
import { pixels, pixelsHere, preload } from "./frames.js";
import { blending as blendingOf, limitsOf } from "./heat.js";
import { html, useEffect, useList, useMemo, useRef } from "./html.js";
import { headAt, mapsOf, peakOf } from "./maps.js";
import { headName, headText, layerName, weight } from "./numbers.js";
import { Picture, pictureSize } from "./picture.js";
import { activeHead, headsTogether, maps as askMaps, phaseOf } from "./questions.js";
import { Timeline } from "./timeline.js";

/** @import {Change, Episode, Limits, Maps, View} from "./types" */

/** Width that a tile is drawn at, pixels. */
const TILE = 200;

/**
 * What each tile shows: its layer and head, and the maps of every keyframe.
 * @param {Episode} e @param {View} view
 */
function useTiles(e, view) {
  const { camera } = view;
  const { layers, heads } = phaseOf(e, view);
  const ofLayer = view.grid === "heads";
  const places = Array.from({ length: ofLayer ? heads : layers }, (_, i) => ({
    layer: ofLayer ? view.layer : i,
    head: ofLayer ? i : view.head === "mean" ? /** @type {const} */ ("mean") : Number(view.head),
  }));
  const asked = (/** @type {number} */ layer) => ({ ...view, layer });
  const byActivity = view.head === "active";
  const actives = useAnswers(
    byActivity
      ? (ofLayer ? [view.layer] : places.map((p) => p.layer)).map((l) => activeHead(e, asked(l), camera))
      : [],
  );
  const known = places.map(({ layer, head }, i) => ({
    layer,
    head: !ofLayer && byActivity ? (actives[i]?.value?.head ?? null) : head,
  }));
  const answers = useAnswers(
    known.map(({ layer, head }) => {
      if (headsTogether(e, view, camera)) return askMaps(e, asked(layer), camera, 0);
      return head === null ? null : askMaps(e, asked(layer), camera, head);
    }),
  );
  const arrived = useList(answers.map((a) => a.value));
  const maps = useMemo(() => arrived.map((value) => (value ? mapsOf(value) : null)), [arrived]);
  const active = ofLayer ? (actives[0]?.value?.head ?? null) : null;
  return known.map(({ layer, head }, i) => ({
    layer,
    head,
    maps: head === null ? null : maps[i],
    pending: answers[i].pending || (actives[ofLayer ? 0 : i]?.pending ?? false),
    error: answers[i].error ?? (ofLayer ? undefined : actives[i]?.error),
    active: ofLayer ? head === active : byActivity,
  }));
}

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string}} props */
export function HeadsGrid({ e, view, change, playing, play, theme }) {
  const { camera } = view;
  const { cameras } = phaseOf(e, view);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const tiles = useTiles(e, view);
  const about = e.cameras[camera];
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const arrived = useList(tiles.map((t) => t.maps));
  const chosenHeads = tiles.map((t) => t.head).join();
  const whole = useMemo(
    () => tiles.map(({ maps, head }) => wholeOf(maps, head, about.coverage)),
    [arrived, chosenHeads, about],
  );
  const shared = useMemo(
    () =>
      /** @type {Limits} */ ([
        Math.min(...whole.map((l) => l?.[0] ?? 0)),
        Math.max(...whole.map((l) => l?.[1] ?? -Infinity)),
      ]),
    [whole],
  );
  const size = pictureSize(about, TILE);
  const ready = tiles.every((t) => t.maps || t.error);
  useEffect(() => {
    if (!ready) return;
    const stop = new AbortController();
    preload(e, [camera], view.keyframe, () => size, stop.signal);
    return () => stop.abort();
  }, [e, ready, camera]);
  const imageHere = (/** @type {number} */ keyframe) => {
    if (pixelsHere(e, camera, keyframe, ...size)) return true;
    pixels(e, camera, keyframe, ...size).catch(() => {});
    return false;
  };
  const ofLayer = view.grid === "heads";
  const at = ofLayer ? (/^\d+$/.test(view.head) ? Number(view.head) : -1) : view.layer;
  const choose = (/** @type {number} */ i) => change(ofLayer ? { head: String(i) } : { layer: i });
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const buttons = /** @type {HTMLElement[]} */ ([...(box.current?.querySelectorAll("button") ?? [])]);
    const from = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const row = buttons.findIndex((b) => b.offsetTop > buttons[0].offsetTop);
    const columns = row < 0 ? buttons.length : row;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : from + (step ?? NaN);
    if (from < 0 || Number.isNaN(to)) return;
    event.preventDefault();
    event.stopPropagation();
    if (!buttons[to]) return;
    choose(to);
    buttons[to].focus();
  };
  return html`
    <div class="heads-view">
      <${Selection} e=${e} view=${view} change=${change} />
      <div class="controls">
        <${Menu}
          label="Show"
          value=${view.grid}
          options=${[
            ["heads", `all heads of ${layerName(view.layer)}`],
            [
              "layers",
              `all layers, ${view.head === "active" ? "the active head of each" : headText(view.head === "mean" ? "mean" : Number(view.head))}`,
            ],
          ]}
          change=${(/** @type {any} */ grid) => change({ grid })}
        />
        <${Choice}
          label="Camera"
          value=${camera}
          options=${cameras}
          change=${(/** @type {string} */ chosen) => change({ camera: chosen })}
        />
        <${Menu}
          label="Scale"
          value=${view.scale}
          options=${[
            ["frame", "of each frame"],
            ["episode", "of the episode"],
            ["cameras", "of all tiles"],
          ]}
          change=${(/** @type {any} */ scale) => change({ scale })}
        />
        <button type="button" onClick=${() => change({ view: "look" })}>Look at the chosen one</button>
      </div>
      <div
        class="tiles"
        ref=${box}
        role="toolbar"
        aria-label=${ofLayer ? `Heads of layer ${view.layer}` : "Layers"}
        onKeyDown=${key}
      >
        ${tiles.map(({ layer, head, maps, pending, error, active }, i) => {
          const map = maps && head !== null ? headAt(maps, head, view.keyframe) : null;
          const absent = map?.every(Number.isNaN) ?? false;
          const peak = map && peakOf(map, about);
          const limits =
            view.scale === "frame"
              ? map && limitsOf([map], about.coverage)
              : view.scale === "episode"
                ? whole[i]
                : shared;
          const name = `${layerName(layer)} ${head === null ? "…" : head === "mean" ? "mean" : headName(head)}`;
          return html`
            <button
              type="button"
              key=${i}
              class=${`tile ${i === at ? "chosen" : ""}`}
              tabindex=${i === Math.max(at, 0) ? 0 : -1}
              aria-pressed=${i === at}
              onClick=${() => choose(i)}
              onDblClick=${() => change({ view: "look" })}
            >
              <span class="name">
                <b>${name}</b>
                ${active ? " active" : ""}
                <span class="quiet">
                  ${error ? error.message : absent ? "absent" : peak ? weight(peak.value) : ""}
                </span>
              </span>
              <${Picture}
                e=${e}
                camera=${camera}
                keyframe=${view.keyframe}
                map=${absent ? null : map}
                limits=${limits ?? [0, 1]}
                blending=${blending}
                interpolation=${view.interpolation}
                pending=${pending}
                widest=${TILE}
                label="map"
              />
            </button>
          `;
        })}
      </div>
      <${Timeline}
        e=${e}
        view=${view}
        change=${change}
        playing=${playing}
        play=${play}
        theme=${theme}
        ready=${imageHere}
      />
    </div>
  `;
}

/**
 * Limits over the episode of one head's maps.
 * @param {Maps | null} maps @param {number | "mean" | null} head @param {Float32Array} coverage
 */
function wholeOf(maps, head, coverage) {
  if (!maps || head === null) return null;
  return limitsOf(
    Array.from({ length: maps.keyframes }, (_, k) => headAt(maps, head, k)),
    coverage,
  );
}
