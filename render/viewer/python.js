// The Python call that returns what is shown.

import { isStored, phaseOf } from "./questions.js";
import { brushOf } from "./state.js";

/** @import {Episode, View} from "./types" */

/**
 * @param {Episode} e
 * @param {View} view
 * @param {string} camera
 * @param {number | "mean"} head
 * @param {string} address of the store
 */
export function pythonCall(e, view, camera, head, address) {
  const stepped = phaseOf(e, view).steps !== null;
  const selection = [
    `layer=${view.layer}`,
    ...(head === "mean" ? [] : [`head=${head}`]),
    ...(stepped ? [`step=${view.step}`] : []),
  ].join(", ");
  const query =
    view.query === "" || (isStored(e, view) && view.query === phaseOf(e, view).query_groups[0])
      ? ""
      : `, query=${/^\d+$/.test(view.query) ? view.query : literal(view.query)}`;
  const corrected = view.sinks ? ", sink_corrected=True" : "";
  const rolled = view.weighting === "rollout";
  const weighted = view.weighting === "value" ? ', weighting="value"' : "";
  const shown = rolled
    ? [
        `shown = rollout_map(episode, ${literal(camera)}, ${literal(view.phase)}, keyframe=${view.keyframe}, ` +
          `layers=range(${view.layer + 1})${stepped ? `, step=${view.step}` : ""}${query})  # (row, col)`,
      ]
    : [
        `maps = episode.maps(${literal(view.phase)}, ${literal(camera)}, keyframe=${view.keyframe}, ` +
          `${selection}, reduce=${literal(view.reduce)}${query}${corrected}${weighted})`,
        head === "mean" ? 'shown = maps.mean("head")  # (row, col)' : "shown = maps  # (row, col)",
      ];
  const lines = [
    "import attnstore",
    ...(rolled ? ["from attnstore.query.attention import rollout_map"] : []),
    "",
    `store = attnstore.open(${literal(address)})  # ATTNSTORE_TOKEN is set; or a path`,
    `episode = store.episode(${literal(e.episode)}, run=${literal(e.run)})  # ${comment(e.name)}`,
    ...shown,
  ];
  const brush = brushOf(view);
  if (brush) {
    lines.push(
      "",
      `weights = episode.attention(${literal(view.phase)}, keyframe=${view.keyframe}, ${selection}, ` +
        `key=${literal(`image:${brush.camera}`)}${weighted})`,
      `patches = weights.attn.on(${literal(brush.camera)})` +
        `[..., ${brush.rows[0]}:${brush.rows[1] + 1}, ${brush.cols[0]}:${brush.cols[1] + 1}]`,
      'attending = patches.sum(["row", "col"])  # of every query token, to the brushed patches',
    );
  }
  return `${lines.join("\n")}\n`;
}

/** A Python string: JSON's escapes are Python's. @param {string} text */
const literal = (text) => JSON.stringify(text);

/** @param {string} text */
const comment = (text) => text.replace(/[\p{Cc}\u2028\u2029]/gu, " ");
