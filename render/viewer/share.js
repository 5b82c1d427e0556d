// Taking what is shown elsewhere: a picture, numbers, a link, Python.

import { storeAddress } from "./api.js";
import { css } from "./colormaps.js";
import { pixels } from "./frames.js";
import { blend, heatOf, sampler } from "./heat.js";
import { html, useState } from "./html.js";
import { layerName, percent, weight, weightedText } from "./numbers.js";
import { pythonCall } from "./python.js";

/** @import {Episode, Blending, View} from "./types" */

/** @typedef {{camera: string, map: Float32Array | null, limits: import("./types").Limits, head: string,
 *   headIndex: number | "mean" | null, mass: {image: number, letterbox: number} | null}} Shown */

/** @param {{e: Episode, view: View, shown: Shown[], blending: Blending}} props */
export function Share({ e, view, shown, blending }) {
  const [said, setSaid] = useState("");
  const [code, setCode] = useState(false);
  const own = shown.find((one) => one.camera === view.camera) ?? shown[0];
  const python =
    own && own.headIndex !== null
      ? pythonCall(e, view, own.camera, own.headIndex, storeAddress(e.store))
      : "";
  const name = `${e.episode}_${view.phase.replace("/", "-")}_${layerName(view.layer)}_k${view.keyframe}`;
  /** @param {string} what @param {() => void | Promise<void>} action */
  const after = (what, action) => async () => {
    try {
      await action();
      setSaid(what);
    } catch (error) {
      setSaid(String(error instanceof Error ? error.message : error));
    }
  };
  return html`
    <section class="card" aria-label="Share">
      <h2>Share</h2>
      <div class="buttons">
        <button
          type="button"
          onClick=${after("saved", async () => save(await pictureOf(e, view, shown, blending), `${name}.png`))}
        >
          PNG
        </button>
        <button
          type="button"
          onClick=${after("saved", () => save(new Blob([csvOf(e, view, shown)], { type: "text/csv" }), `${name}.csv`))}
        >
          CSV
        </button>
        <button type="button" onClick=${after("link copied", () => copy(location.href))}>Copy link</button>
        <button type="button" aria-expanded=${code} onClick=${() => setCode(!code)}>Python</button>
      </div>
      ${
        code &&
        html`
          <div class="code-box">
            <pre class="code" tabindex="0" aria-label="Python call">${python}</pre>
            <button type="button" onClick=${after("copied", () => copy(python))}>Copy</button>
          </div>
        `
      }
      <p class="quiet small" role="status">${said}</p>
    </section>
  `;
}

/**
 * The maps that are shown, a row for each patch.
 * @param {Episode} e @param {View} view @param {Shown[]} shown
 */
export function csvOf(e, view, shown) {
  const rows = [
    "run,episode,phase,step,layer,head,query,reduce,sink_corrected,weighting,keyframe,frame,camera,row,col,coverage,weight",
  ];
  for (const { camera, map, headIndex } of shown) {
    const { grid, coverage } = e.cameras[camera];
    const step = e.phases[view.phase].steps === null ? "" : view.step;
    const query = view.query || e.phases[view.phase].query_groups[0];
    const start = [
      e.run,
      e.episode,
      view.phase,
      step,
      view.layer,
      headIndex,
      query,
      view.reduce,
      view.sinks,
      view.weighting,
      view.keyframe,
      e.frames[view.keyframe],
      camera,
    ].map(field);
    map?.forEach((v, i) =>
      rows.push(
        [...start, Math.floor(i / grid[1]), i % grid[1], coverage[i], Number.isNaN(v) ? "" : v].join(","),
      ),
    );
  }
  return `${rows.join("\n")}\n`;
}

/** A field of a CSV. A name that a spreadsheet would take for a formula is marked as text. @param {unknown} value */
export function field(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * The cameras side by side at full size, with what is shown written below.
 * @param {Episode} e @param {View} view @param {Shown[]} shown @param {Blending} blending
 * @returns {Promise<Blob>}
 */
async function pictureOf(e, view, shown, blending) {
  const gap = 12,
    band = 84;
  const height = Math.max(...shown.map(({ camera }) => e.cameras[camera].height));
  const width = shown.reduce((sum, { camera }) => sum + e.cameras[camera].width + gap, gap);
  const canvas = new OffscreenCanvas(Math.max(width, 480), height + band + 2 * gap);
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser draws no canvas");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  let left = gap;
  for (const { camera, map, limits, head, mass } of shown) {
    const about = e.cameras[camera];
    const image = await pixels(e, camera, view.keyframe, about.width, about.height);
    const data = new ImageData(about.width, about.height);
    const lookup = sampler(about.geometry, about.coverage, about.height, about.width, view.interpolation);
    if (map) blend(image, heatOf(map, lookup), limits, blending(image), data.data);
    else data.data.set(image);
    context.putImageData(data, left, gap);
    const under = gap + about.height + 8,
      bar = Math.min(about.width, 160);
    for (let i = 0; i < bar; i++) {
      context.fillStyle = css(view.cmap, i / (bar - 1));
      context.fillRect(left + i, under, 1, 8);
    }
    context.fillStyle = "#222";
    context.font = "12px system-ui, sans-serif";
    context.fillText(
      `${weight(limits[0])} – ${weight(limits[1])}`,
      left + bar + 8,
      under + 9,
      about.width - bar - 8,
    );
    const masses = mass ? `  image ${percent(mass.image)}, letterbox ${percent(mass.letterbox)}` : "";
    context.fillText(`${camera}  ${head}${masses}`, left, under + 28, about.width);
    left += about.width + gap;
  }
  const queries = view.query || e.phases[view.phase].query_groups[0] || "";
  const treated = `${view.sinks ? ", sinks taken out" : ""}${weightedText(view)}`;
  const what = `${view.phase}, ${view.reduce} over ${queries} tokens${treated}`;
  context.fillText(
    `${e.name}   frame ${e.frames[view.keyframe]}   ${what}`,
    gap,
    canvas.height - 12,
    canvas.width - 2 * gap,
  );
  return canvas.convertToBlob({ type: "image/png" });
}

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {string} text */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
