// Lines along one axis, as plain SVG: few points, with intervals where they have some.

import { html } from "./html.js";
import { weight } from "./numbers.js";

/** @typedef {{x: number, y: number | null, low?: number | null, high?: number | null, title?: string}} Point */
/**
 * @typedef {object} Line
 * @property {string} name
 * @property {1 | 2 | 3 | 4} mark its colour
 * @property {Point[]} points a line ends where one is not known
 * @property {boolean} [dashed] and without dots
 */

const WIDTH = 560,
  HEIGHT = 210,
  LEFT = 46,
  RIGHT = 24,
  TOP = 10,
  BOTTOM = 34;

/**
 * @param {object} props
 * @param {string} props.label for those who do not see it
 * @param {string} props.along what the horizontal axis is
 * @param {Line[]} props.lines
 * @param {[number, number] | null} [props.range] of the values; else what they have
 * @param {number | null} [props.level] a value that is drawn as a rule: chance
 * @param {number | null} [props.now] where on the horizontal axis the page is
 * @param {Point[]} [props.rings] points that stand out
 * @param {(x: number) => string} [props.text] of a place on the horizontal axis
 * @param {(x: number) => void} [props.choose] called with a place on the horizontal axis that is clicked
 */
export function LinePlot({
  label,
  along,
  lines,
  range = null,
  level = null,
  now = null,
  rings = [],
  text = String,
  choose,
}) {
  const points = lines.flatMap((l) => l.points);
  const xs = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
  const known = points.flatMap((p) => [p.y, p.low, p.high]).filter((v) => typeof v === "number");
  const values = /** @type {number[]} */ (level === null ? known : [...known, level]);
  const [low, top] = range ?? [Math.min(...values), Math.max(...values)];
  const [first, last] = [xs[0] ?? 0, xs[xs.length - 1] ?? 1];
  const wide = WIDTH - LEFT - RIGHT,
    inner = HEIGHT - TOP - BOTTOM;
  const across = (/** @type {number} */ x) =>
    LEFT + (last > first ? (wide * (x - first)) / (last - first) : wide / 2);
  const down = (/** @type {number} */ y) =>
    TOP + inner * (1 - Math.min(1.03, Math.max(-0.03, (y - low) / (top - low || 1))));
  const every = Math.ceil(xs.length / 12);
  const click = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const nearest = xs.reduce((a, b) => (Math.abs(across(b) - at) < Math.abs(across(a) - at) ? b : a), first);
    choose?.(nearest);
  };
  return html`
    <span class="legend left">
      ${lines.map(
        (l) => html`
          <span>
            <i class=${`line line-${l.mark} ${l.dashed ? "dashed" : ""}`}></i>
            ${l.name}
          </span>
        `,
      )}
    </span>
    <svg
      class=${`plot ${choose ? "chosen-from" : ""}`}
      viewBox=${`0 0 ${WIDTH} ${HEIGHT}`}
      role="img"
      aria-label=${label}
      onClick=${click}
    >
      ${[low, (low + top) / 2, top].map(
        (v) => html`
          <line class="rule" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${down(v)} y2=${down(v)} />
          <text x=${LEFT - 6} y=${down(v) + 4} text-anchor="end">${weight(v)}</text>
        `,
      )}
      ${
        level !== null &&
        html`
          <line class="level" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${down(level)} y2=${down(level)} />
        `
      }
      ${xs.map(
        (x, i) =>
          i % every === 0 &&
          html`
            <text x=${across(x)} y=${HEIGHT - BOTTOM + 15} text-anchor="middle">${text(x)}</text>
          `,
      )}
      <text x=${WIDTH - RIGHT} y=${HEIGHT - 4} text-anchor="end">${along}</text>
      ${
        now !== null &&
        html`
          <line class="now" x1=${across(now)} x2=${across(now)} y1=${TOP} y2=${HEIGHT - BOTTOM} />
        `
      }
      ${lines.map(
        (l) => html`
          <g class=${`mark-${l.mark} ${l.dashed ? "dashed" : ""}`} data-line=${l.name}>
            <path class="series" d=${pathOf(l.points, across, down)} />
            ${l.points.map(({ x, y, low: from, high: to, title }) =>
              y === null || y === undefined
                ? null
                : html`
                    ${
                      typeof from === "number" &&
                      typeof to === "number" &&
                      html`
                        <line
                          class="interval"
                          x1=${across(x)}
                          x2=${across(x)}
                          y1=${down(from)}
                          y2=${down(to)}
                        />
                      `
                    }
                    ${
                      !l.dashed &&
                      html`
                        <circle cx=${across(x)} cy=${down(y)} r="3.2">
                          <title>${title ?? `${l.name}, ${along} ${text(x)}: ${weight(y)}`}</title>
                        </circle>
                      `
                    }
                  `,
            )}
          </g>
        `,
      )}
      ${rings.map(
        (p) =>
          typeof p.y === "number" &&
          html`
            <circle class="ring" cx=${across(p.x)} cy=${down(p.y)} r="7.5"><title>${p.title}</title></circle>
          `,
      )}
    </svg>
  `;
}

/** @param {Point[]} points @param {(x: number) => number} across @param {(y: number) => number} down */
function pathOf(points, across, down) {
  let path = "",
    pen = "M";
  for (const { x, y } of points) {
    if (y === null || y === undefined) {
      pen = "M";
      continue;
    }
    path += `${pen}${across(x).toFixed(1)} ${down(y).toFixed(1)}`;
    pen = "L";
  }
  return path;
}
