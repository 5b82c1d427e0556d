// A wall: one head over chosen episodes at the same share of their time, or over the runs of one episode.

import { useAnswer, useAnswers } from "./answers.js";
import { colours } from "./colormaps.js";
import { Menu } from "./controls.js";
import { read } from "./episode.js";
import { shortName } from "./episodes.js";
import { pixels } from "./frames.js";
import { blend, blending as blendingOf, heatOf, limitsOf, sampler } from "./heat.js";
import { html, useList, useMemo, useState } from "./html.js";
import { headAt, mapsOf } from "./maps.js";
import { headText, keyframeName, layerName, weight } from "./numbers.js";
import { Picture, pictureSize } from "./picture.js";
import {
  activeHead,
  episode as askEpisode,
  episodes,
  headsTogether,
  LISTED,
  maps as askMaps,
} from "./questions.js";
import { csvOf, save } from "./share.js";
import { fitted } from "./state.js";

/** @import {Blending, Change, Episode, Limits, ListedEpisode, View} from "./types" */

/** Episodes that a wall begins with, and that it takes. */
const FIRST = 8,
  MOST = 48;
const TILE = 320;

/** @typedef {{e: Episode, view: View, map: Float32Array | null, limits: Limits, pending: boolean, error?: Error}} Tile */

/** @param {string} wall @returns {[string, string][]} run and episode of each */
export const wallOf = (wall) =>
  wall
    .split(",")
    .map((place) => /** @type {[string, string]} */ (place.split("/")))
    .filter(([run, id]) => run && id)
    .slice(0, MOST);

/** @param {{run: string, episode: string}[]} rows */
export const formatWall = (rows) => rows.map((r) => `${r.run}/${r.episode}`).join(",");

/**
 * Some of each outcome, for a wall that nobody has chosen yet.
 * @param {readonly ListedEpisode[]} rows @param {number} most
 */
function someOf(rows, most) {
  const groups = [...new Set(rows.map((r) => r.outcome))].map((o) => rows.filter((r) => r.outcome === o));
  const each = Math.max(1, Math.floor(most / Math.max(1, groups.length)));
  return groups.flatMap((g) => g.slice(0, each));
}

/** @param {{e: Episode, view: View, change: Change}} props of the chosen episode, whose head is shown of all */
export function Wall({ e, view, change }) {
  const { camera } = view;
  const listed = useAnswer(episodes(view, LISTED)).value?.rows ?? [];
  const everything = useAnswer(
    episodes({ ...view, text: "", where: "", outcome: "", order: "name", descending: false }, LISTED),
  ).value?.rows;
  const [said, setSaid] = useState("");
  const chosen = view.wall
    ? wallOf(view.wall)
    : someOf(listed, FIRST).map((r) => /** @type {[string, string]} */ ([r.run, r.episode]));
  const tiles = useWall(e, view, chosen);
  const blending = useMemo(
    () => blendingOf(colours(view.cmap), view.alpha, view.blend),
    [view.cmap, view.alpha, view.blend],
  );
  const set = (/** @type {{run: string, episode: string}[]} */ rows) => change({ wall: formatWall(rows) });
  const own = chosen.map(([run, episode]) => ({ run, episode }));
  const rows = everything ?? [];
  const sameName = rows.filter((r) => r.name === e.name);
  const label = `${layerName(view.layer)} ${headText(tiles.head)}`;
  const good = tiles.all.filter((t) => t.map);
  const name = `wall_${view.phase.replace("/", "-")}_${layerName(view.layer)}_${camera}`;
  /** @param {() => void | Promise<void>} action */
  const saving = (action) => async () => {
    try {
      await action();
      setSaid("saved");
    } catch (error) {
      setSaid(String(error instanceof Error ? error.message : error));
    }
  };
  return html`
    <section class="card" aria-label="Episodes of the wall">
      <div class="controls">
        <${Menu}
          label="Add an episode"
          value=""
          options=${[
            ["", "choose …"],
            ...rows.map((r, i) => [String(i), `${r.outcome}: ${shortName(r.name)}, ${r.instruction}`]),
          ]}
          change=${(/** @type {string} */ i) => i !== "" && set([...own, rows[Number(i)]])}
        />
        <button type="button" onClick=${() => set(listed.slice(0, MOST))}>
          ${`The list as it is filtered (${Math.min(MOST, listed.length)})`}
        </button>
        ${
          sameName.length > 1 &&
          html`
            <button type="button" onClick=${() => set(sameName)}>
              ${`This episode in its ${sameName.length} runs`}
            </button>
          `
        }
        <${Menu}
          label="Scale"
          value=${view.scale}
          options=${[
            ["frame", "of each frame"],
            ["episode", "of each episode"],
            ["cameras", "of the whole wall"],
          ]}
          change=${(/** @type {any} */ scale) => change({ scale })}
        />
        <button
          type="button"
          onClick=${saving(async () => save(await pictureOf(good, camera, label, blending), `${name}.png`))}
        >
          PNG
        </button>
        <button
          type="button"
          onClick=${saving(() => save(new Blob([csvOfWall(good, camera, tiles.head)], { type: "text/csv" }), `${name}.csv`))}
        >
          CSV
        </button>
        <span class="quiet small" role="status">${said}</span>
      </div>
    </section>
    <div class="wall" aria-label=${`${label} of ${camera} in ${tiles.all.length} episodes`} role="group">
      ${tiles.all.map((tile, i) => {
        const [run, id] = chosen[i];
        return html`
          <figure class="card wall-tile" key=${`${run}/${id}`}>
            ${
              tile.e
                ? html`
                    <${Picture}
                      e=${tile.e}
                      camera=${camera}
                      keyframe=${tile.view.keyframe}
                      map=${tile.map}
                      limits=${tile.limits}
                      blending=${blending}
                      interpolation=${view.interpolation}
                      pending=${tile.pending}
                      widest=${TILE}
                      label=${`${tile.e.name}, ${keyframeName(tile.view.keyframe, tile.e.frames.length)}`}
                    />
                  `
                : html`
                    <span class="blank"></span>
                  `
            }
            <figcaption>
              <button
                type="button"
                class="link"
                onClick=${() => change({ view: "look", run, episode: id, keyframe: tile.view?.keyframe ?? 0 })}
              >
                <i class=${`dot ${tile.e?.outcome ?? ""}`}></i>
                ${tile.e ? shortName(tile.e.name) : id}
              </button>
              <button
                type="button"
                class="plain"
                aria-label=${`Take ${tile.e?.name ?? id} off the wall`}
                onClick=${() => set(own.filter((_, k) => k !== i))}
              >
                ×
              </button>
              <span class="quiet small">
                ${tile.error ? tile.error.message : tile.e ? `${tile.e.instruction}${new Set(chosen.map(([r]) => r)).size > 1 ? ` (${run})` : ""}` : "loading …"}
              </span>
              ${
                tile.map &&
                html`
                  <span class="quiet small">${`0 – ${weight(tile.limits[1])}`}</span>
                `
              }
            </figcaption>
          </figure>
        `;
      })}
    </div>
  `;
}

/**
 * What the tiles show: the head that is shown of the chosen episode, in every one.
 * @param {Episode} e @param {View} view @param {[string, string][]} chosen
 * @returns {{all: any[], head: number | "mean" | null}}
 */
function useWall(e, view, chosen) {
  const { camera, store } = view;
  const active = useAnswer(view.head === "active" ? activeHead(e, view, camera) : null).value?.head ?? null;
  const head = view.head === "active" ? active : view.head === "mean" ? "mean" : Number(view.head);
  const described = useAnswers(chosen.map(([run, id]) => askEpisode(store, run, id)));
  const values = useList(described.map((d) => d.value));
  const all = useMemo(() => values.map((v) => (v ? read(v, store) : null)), [values]);
  const own = all.map((other) => {
    if (!other) return null;
    const keyframe = Math.round(view.time * (other.frames.length - 1));
    const shown = fitted({ ...view, head: String(head ?? "mean"), keyframe, query: "" }, other);
    const lacks =
      shown.phase !== view.phase
        ? `no phase ${view.phase}`
        : shown.camera !== camera
          ? `no camera ${camera}`
          : shown.layer !== view.layer || (head !== "mean" && shown.head !== String(head))
            ? "no such layer or head"
            : "";
    return { view: { ...shown, camera }, lacks };
  });
  const answers = useAnswers(
    own.map((o, i) => {
      const other = all[i];
      if (!o || !other || o.lacks || head === null) return null;
      return askMaps(other, o.view, camera, headsTogether(other, o.view, camera) ? 0 : head);
    }),
  );
  const arrived = useList(answers.map((a) => a.value));
  const wholes = useMemo(
    () =>
      arrived.map((value, i) => {
        const other = all[i];
        if (!value || !other || head === null) return null;
        const maps = mapsOf(value);
        return limitsOf(
          Array.from({ length: maps.keyframes }, (_, k) => headAt(maps, head, k)),
          other.cameras[camera].coverage,
        );
      }),
    [arrived, head, camera],
  );
  const shared = /** @type {Limits} */ ([
    Math.min(0, ...wholes.map((l) => l?.[0] ?? 0)),
    Math.max(1e-9, ...wholes.map((l) => l?.[1] ?? 0)),
  ]);
  return {
    head,
    all: all.map((other, i) => {
      const o = own[i];
      const error = described[i].error ?? answers[i].error ?? (o?.lacks ? new Error(o.lacks) : undefined);
      if (!other || !o || o.lacks)
        return { e: null, view: null, map: null, limits: [0, 1], pending: false, error };
      const value = arrived[i];
      const map = value && head !== null ? headAt(mapsOf(value), head, o.view.keyframe) : null;
      const frame = map && limitsOf([map], other.cameras[camera].coverage);
      const limits = view.scale === "frame" ? frame : view.scale === "episode" ? wholes[i] : shared;
      return { e: other, view: o.view, map, limits: limits ?? [0, 1], pending: answers[i].pending, error };
    }),
  };
}

/** @param {Tile[]} tiles @param {string} camera @param {number | "mean" | null} head */
function csvOfWall(tiles, camera, head) {
  const texts = tiles.map(({ e, view, map, limits }) =>
    csvOf(e, view, [{ camera, map, limits, head: "", headIndex: head, mass: null }]),
  );
  return texts.map((t, i) => (i ? t.slice(t.indexOf("\n") + 1) : t)).join("");
}

/** @param {Tile[]} tiles @param {string} camera @param {string} label @param {Blending} blending */
async function pictureOf(tiles, camera, label, blending) {
  if (!tiles.length) throw new Error("no picture is on the wall yet");
  const columns = Math.ceil(Math.sqrt(tiles.length)),
    gap = 12,
    band = 40;
  const sizes = tiles.map(({ e }) => pictureSize(e.cameras[camera], TILE));
  const [width, height] = [Math.max(...sizes.map((s) => s[0])), Math.max(...sizes.map((s) => s[1]))];
  const rows = Math.ceil(tiles.length / columns);
  const canvas = new OffscreenCanvas(gap + columns * (width + gap), gap + rows * (height + band + gap) + 24);
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser draws no canvas");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "12px system-ui, sans-serif";
  for (const [i, { e, view, map, limits }] of tiles.entries()) {
    const [w, h] = sizes[i];
    const left = gap + (i % columns) * (width + gap),
      top = gap + Math.floor(i / columns) * (height + band + gap);
    const about = e.cameras[camera];
    const image = await pixels(e, camera, view.keyframe, w, h);
    const data = new ImageData(w, h);
    const lookup = sampler(about.geometry, about.coverage, h, w, view.interpolation);
    if (map) blend(image, heatOf(map, lookup), limits, blending(image), data.data);
    else data.data.set(image);
    context.putImageData(data, left, top);
    context.fillStyle = "#222";
    context.fillText(
      `${e.outcome}: ${shortName(e.name)}, frame ${e.frames[view.keyframe]}`,
      left,
      top + h + 15,
      width,
    );
    context.fillText(
      `${e.instruction}   ${weight(limits[0])} – ${weight(limits[1])}`,
      left,
      top + h + 31,
      width,
    );
  }
  context.fillText(`${camera}   ${label}`, gap, canvas.height - 8, canvas.width - 2 * gap);
  return canvas.convertToBlob({ type: "image/png" });
}
