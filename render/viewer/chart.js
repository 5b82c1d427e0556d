// A metric along the episode: a line for each camera, and where the shown keyframe is.

import { html, useEffect, useLayoutEffect, useRef } from "./html.js";
import { weight } from "./numbers.js";
import uPlot from "./vendor/uplot.js";

/** Space left of the plots, pixels: axes of all rows are aligned, and the scrubber with them. */
export const GUTTER = 64;
const MARGIN = 10;
const HEIGHT = 58;

/**
 * @param {{frames: number[], lines: {name: string, values: (number | null)[]}[], keyframe: number, theme: string,
 *   choose: (keyframe: number) => void, label: string}} props
 */
export function Chart({ frames, lines, keyframe, theme, choose, label }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {uPlot | null} */ (null));
  const head = useRef(/** @type {HTMLElement | null} */ (null));
  const latest = useRef({ keyframe, choose });
  latest.current = { keyframe, choose };
  const names = lines.map((l) => l.name).join("\n");
  const putHead = () => {
    const u = plot.current;
    if (u && head.current)
      head.current.style.left = `${u.valToPos(frames[latest.current.keyframe], "x") + GUTTER}px`;
  };
  useEffect(() => {
    const box = place.current;
    if (!box) return;
    const ink = colourOf(box, "quiet"),
      rule = colourOf(box, "rule");
    const colours = lines.map((_, i) => colourOf(box, `line-${(i % 4) + 1}`));
    const u = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        padding: [7, MARGIN, 5, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        scales: {
          x: { time: false, range: (_, low, top) => (low === top ? [low - 1, top + 1] : [low, top]) },
        },
        axes: [
          { show: false },
          {
            size: GUTTER,
            stroke: ink,
            font: "11px system-ui",
            gap: 4,
            space: 15,
            grid: { stroke: rule, width: 1 },
            ticks: { show: false },
            values: (_, splits) => splits.map((v) => weight(v)),
          },
        ],
        series: [
          {},
          ...lines.map((line, i) => ({
            label: line.name,
            stroke: colours[i],
            width: 1.5,
            points: { show: frames.length < 60, size: 4 },
          })),
        ],
      },
      /** @type {any} */ ([frames, ...lines.map((l) => l.values)]),
      box,
    );
    plot.current = u;
    const click = () => {
      const at = u.cursor.idx;
      if (at !== null && at !== undefined) latest.current.choose(at);
    };
    u.over.addEventListener("click", click);
    const resized = new ResizeObserver(() => {
      if (box.clientWidth && box.clientWidth !== u.width)
        u.setSize({ width: box.clientWidth, height: HEIGHT });
      putHead();
    });
    resized.observe(box);
    putHead();
    return () => {
      resized.disconnect();
      u.destroy();
      plot.current = null;
    };
  }, [frames, names, theme]);
  useEffect(() => {
    plot.current?.setData(/** @type {any} */ ([frames, ...lines.map((l) => l.values)]));
    putHead();
  }, [lines]);
  useLayoutEffect(putHead, [keyframe, frames]);
  return html`
    <div class="chart" role="img" aria-label=${label}>
      <div ref=${place}></div>
      <i ref=${head} class="playhead"></i>
    </div>
  `;
}

/** A colour of the style sheet as a canvas takes it. @param {HTMLElement} element @param {string} name */
function colourOf(element, name) {
  element.style.color = `var(--${name})`;
  const colour = getComputedStyle(element).color;
  element.style.color = "";
  return colour;
}
