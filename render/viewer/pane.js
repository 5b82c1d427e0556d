// One camera: its picture, what lies under the pointer, and patches that are brushed.

import { css } from "./colormaps.js";
import { patchAt, patchBox } from "./heat.js";
import { html, useRef, useState } from "./html.js";
import { peakOf } from "./maps.js";
import { keyframeName, percent, weight } from "./numbers.js";
import { Picture } from "./picture.js";

/** @import {Brush, Episode, Limits, Pair, Blending, View} from "./types" */

/**
 * @typedef {object} Shown what a pane shows of its camera
 * @property {Float32Array | null} map
 * @property {Limits} limits
 * @property {string} head as printed
 * @property {string} [headTitle] what made it the active one
 * @property {{image: number, letterbox: number} | null} mass
 * @property {string} note
 * @property {boolean} pending
 * @property {Error | undefined} error
 */

/**
 * What a pane shows, of a map and little else.
 * @param {Float32Array | null} map @param {Limits} limits @param {string} head as printed
 * @param {Partial<Shown>} more
 * @returns {Shown}
 */
export const shownMap = (map, limits, head, more = {}) => ({
  map,
  limits,
  head,
  mass: null,
  note: "",
  pending: false,
  error: undefined,
  ...more,
});

/**
 * @param {{e: Episode, view: View, camera: string, shown: Shown, blending: Blending, outlines?: import("./objects.js").Outline[], brush?: Brush | null,
 *   onBrush?: (brush: Brush | null) => void}} props without `onBrush` nothing can be brushed
 */
export function Pane({ e, view, camera, shown, blending, outlines = [], brush = null, onBrush = () => {} }) {
  const { map, limits, head, mass, pending, error } = shown;
  const about = e.cameras[camera];
  const [hover, setHover] = useState(/** @type {Pair | null} */ (null));
  const [cursor, setCursor] = useState(/** @type {Pair | null} */ (null));
  const anchor = useRef(/** @type {Pair | null} */ (null));
  const peak = map && peakOf(map, about);
  const mine = brush?.camera === camera ? brush : null;

  /** @param {PointerEvent} event */
  const patchUnder = (event) => {
    const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
    const y = ((event.clientY - box.top) / box.height) * about.height;
    const x = ((event.clientX - box.left) / box.width) * about.width;
    return patchAt(about.geometry, y, x);
  };
  /** @param {Pair} a @param {Pair} b */
  const choose = (a, b) =>
    onBrush({
      camera,
      rows: [Math.min(a[0], b[0]), Math.max(a[0], b[0])],
      cols: [Math.min(a[1], b[1]), Math.max(a[1], b[1])],
    });
  /** @param {PointerEvent} event */
  const down = (event) => {
    anchor.current = patchUnder(event);
    if (!anchor.current) return;
    /** @type {Element} */ (event.currentTarget).setPointerCapture(event.pointerId);
    const { rows, cols } = mine ?? { rows: [-1, -1], cols: [-1, -1] };
    const [r, c] = anchor.current;
    if (rows[0] === r && rows[1] === r && cols[0] === c && cols[1] === c) {
      anchor.current = null;
      onBrush(null);
    } else choose(anchor.current, anchor.current);
  };
  /** @param {PointerEvent} event */
  const move = (event) => {
    const at = patchUnder(event);
    setHover(at);
    if (anchor.current && at && event.buttons) choose(anchor.current, at);
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const start = cursor ?? (peak ? /** @type {Pair} */ ([peak.row, peak.col]) : null);
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter" && start) {
      setCursor(start);
      choose(start, start);
    } else if (event.key === "Escape" && (cursor || mine)) {
      setCursor(null);
      onBrush(null);
    } else if (step && cursor) {
      const to = /** @type {Pair} */ ([
        Math.min(Math.max(cursor[0] + step[0], 0), about.grid[0] - 1),
        Math.min(Math.max(cursor[1] + step[1], 0), about.grid[1] - 1),
      ]);
      setCursor(to);
      choose(to, to);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const read = hover ?? cursor;
  const most = peak ? `: most attention at patch ${peak.row}, ${peak.col}` : "";
  return html`
    <figure class="pane" data-camera=${camera}>
      <figcaption>
        <b>${camera}</b>
        <span class="quiet" title=${shown.headTitle ?? ""}>${head}</span>
        <span
          class="numbers"
          title=${`Share of the ${view.weighting === "rollout" ? "rollout" : "attention"} that falls on this camera's image, and on its letterbox, which is never drawn`}
        >
          ${
            mass &&
            html`
              <span>image ${percent(mass.image)}</span>
              ${" "}
              <span class=${mass.letterbox > 0.05 ? "warn" : ""}>letterbox ${percent(mass.letterbox)}</span>
            `
          }
        </span>
      </figcaption>
      <div
        class="stage"
        tabindex="0"
        role="group"
        onKeyDown=${key}
        onPointerDown=${down}
        onPointerMove=${move}
        onPointerUp=${() => (anchor.current = null)}
        onPointerLeave=${() => setHover(null)}
        aria-label=${`${camera}: press Enter to choose the patch of most attention, then arrow keys move`}
      >
        <${Picture}
          e=${e}
          camera=${camera}
          keyframe=${view.keyframe}
          map=${map}
          limits=${limits}
          blending=${blending}
          interpolation=${view.interpolation}
          pending=${pending}
          label=${`${camera}, ${keyframeName(view.keyframe, e.frames.length)}${most}`}
        />
        <svg
          class="marks"
          viewBox=${`0 0 ${about.width} ${about.height}`}
          preserveAspectRatio="none"
          aria-hidden="true"
        >
          ${outlines.map(
            ({ object, path, line, chosen }) => html`
              <path
                class=${`outline outline-${line} ${chosen ? "of-chosen" : ""}`}
                data-object=${object}
                d=${path}
                vector-effect="non-scaling-stroke"
              />
            `,
          )}
          ${
            hover &&
            html`
              <${Box} about=${about} rows=${[hover[0], hover[0]]} cols=${[hover[1], hover[1]]} kind="hover" />
            `
          }
          ${
            mine &&
            html`
              <${Box} about=${about} rows=${mine.rows} cols=${mine.cols} kind="chosen" />
            `
          }
        </svg>
      </div>
      <div class="scale">
        <span>${weight(limits[0])}</span>
        <span class="bar"><${Bar} name=${view.cmap} /></span>
        <span>${weight(limits[1])}</span>
        <span class="readout">
          ${
            read && map
              ? html`
                  ${`patch ${read[0]}, ${read[1]}: `}
                  <b>${weight(map[read[0] * about.grid[1] + read[1]])}</b>
                `
              : peak &&
                html`
                  ${"max "}
                  <b>${weight(peak.value)}</b>
                  ${` at patch ${peak.row}, ${peak.col}`}
                `
          }
        </span>
      </div>
      ${
        shown.note &&
        html`
          <p class="note">${shown.note}</p>
        `
      }
      ${
        error &&
        html`
          <p class="error" role="alert">${error.message}</p>
        `
      }
    </figure>
  `;
}

/** @param {{about: import("./types").Camera, rows: Pair, cols: Pair, kind: string}} props */
function Box({ about, rows, cols, kind }) {
  const a = patchBox(about.geometry, rows[0], cols[0]),
    b = patchBox(about.geometry, rows[1], cols[1]);
  const x = Math.min(a.x, b.x),
    y = Math.min(a.y, b.y);
  const width = Math.max(a.x + a.width, b.x + b.width) - x,
    height = Math.max(a.y + a.height, b.y + b.height) - y;
  return html`
    <rect class=${kind} x=${x} y=${y} width=${width} height=${height} vector-effect="non-scaling-stroke" />
  `;
}

/** The colours of a map, from low to high. @param {{name: string}} props */
export function Bar({ name }) {
  const stops = Array.from({ length: 17 }, (_, i) => css(name, i / 16));
  return html`
    <i class="ramp" style=${{ background: `linear-gradient(90deg, ${stops.join(", ")})` }}></i>
  `;
}
