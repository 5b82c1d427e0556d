// Numbers as they are printed.

/** An attention weight or another small number: three significant digits. @param {number | null | undefined} value */
export function weight(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(1).replace("e+", "e");
  return String(+value.toPrecision(3));
}

/** A share as a percentage. @param {number} value */
export const percent = (value) =>
  Number.isNaN(value) ? "–" : value > 0 && value < 0.0005 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`;

/** A size. @param {number} value bytes */
export const bytes = (value) =>
  value < 1e6
    ? `${(value / 1e3).toFixed(0)} kB`
    : value < 1e9
      ? `${(value / 1e6).toFixed(1)} MB`
      : `${(value / 1e9).toFixed(2)} GB`;

/** `5` as `L05`. @param {number} layer */
export const layerName = (layer) => `L${String(layer).padStart(2, "0")}`;

/** `3` as `H03`. @param {number} head */
export const headName = (head) => `H${String(head).padStart(2, "0")}`;

/** The first is 1, as people count; in SQL and addresses it is 0. @param {number} keyframe @param {number} count */
export const keyframeName = (keyframe, count) => `keyframe ${keyframe + 1} of ${count}`;

/** Which head, where the mean may be meant. @param {number | "mean" | null} head null: not known yet */
export const headText = (head) => (head === null ? "…" : head === "mean" ? "mean of heads" : headName(head));

/** What is said of a weighting that is not the usual one. @param {import("./types").View} view */
export const weightedText = (view) =>
  ({ raw: "", value: ", value-weighted", rollout: ", rollout, all heads fused by mean" })[view.weighting];
