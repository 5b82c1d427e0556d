// What is shown of an episode: phase, layer, head, step, query group; and how it looks.

import { useAnswer } from "./answers.js";
import { ABSENT_WEIGHTING } from "./api.js";
import { NAMES } from "./colormaps.js";
import { html } from "./html.js";
import { headName, layerName } from "./numbers.js";
import { generated, phaseOf, tokens } from "./questions.js";
import { namesOf, sourcesOf } from "./state.js";

/** @import {Change, Episode, View} from "./types" */

const SOURCES = {
  raw: "raw: how much of a token is taken",
  value: "value: times the norm of what the token adds through the head; each row is made to sum to 1 again",
  rollout: "rollout: the layers up to the shown one multiplied, residual included, all heads fused by mean",
};

/** @param {{e: Episode, view: View, change: Change}} props */
export function Selection({ e, view, change }) {
  const { layers, heads, steps, query_groups, query } = phaseOf(e, view);
  const sources = sourcesOf(view, phaseOf(e, view));
  const rolled = view.weighting === "rollout";
  const kept = query_groups.map((group, i) => [i ? group : "", `${group} tokens`]);
  const names = new Set(query.flatMap(namesOf).filter((name) => !query_groups.includes(name)));
  const queries = [...kept, ...[...names].map((name) => [name, name])];
  const isToken = /^\d+$/.test(view.query);
  const rows = useAnswer(isToken ? tokens(e, view) : null).value?.rows ?? [];
  if (!queries.some(([value]) => value === view.query)) {
    const token = rows.find((r) => r.keyframe === view.keyframe && String(r.index) === view.query);
    queries.push([
      view.query,
      token ? `“${token.text.trim()}” (${view.query})` : isToken ? `token ${view.query}` : view.query,
    ]);
  }
  // denoising ends with its last step; a text begins with its first token
  const written = view.phase === "decode";
  const words = useAnswer(written ? generated(e) : null).value?.rows ?? [];
  const word = words.find((r) => r.keyframe === view.keyframe && r.index === view.step);
  const stepText = written
    ? `${view.step}${word ? ` “${word.text.trim()}”` : ""}`
    : view.step < 0
      ? `last (${(steps ?? 1) - 1})`
      : String(view.step);
  return html`
    <div class="controls" role="group" aria-label="Selection">
      <${Choice}
        label="Phase"
        value=${view.phase}
        options=${Object.keys(e.phases)}
        change=${(/** @type {string} */ phase) => change({ phase, query: "", step: -1 })}
      />
      <${Menu}
        label="Query"
        value=${view.query}
        title="Whose attention is drawn: these tokens look, the image is looked at"
        options=${queries}
        change=${(/** @type {string} */ query) => change({ query })}
      />
      <${Choice}
        label="Over them"
        value=${view.reduce}
        options=${rolled ? ["mean"] : ["max", "mean"]}
        change=${(/** @type {any} */ reduce) => change({ reduce })}
      />
      ${
        sources.length > 1 &&
        html`
          <${Choice}
            label="Weighting"
            value=${view.weighting}
            options=${sources}
            title=${sources.map((source) => SOURCES[source]).join(". ")}
            change=${(/** @type {any} */ weighting) => change({ weighting })}
          />
        `
      }
      ${
        ABSENT_WEIGHTING &&
        html`
          <span class="quiet small" title=${ABSENT_WEIGHTING}>${ABSENT_WEIGHTING.split(":")[0]}</span>
        `
      }
      <${Slider}
        label="Layer"
        shown=${rolled ? `up to ${layerName(view.layer)}` : layerName(view.layer)}
        value=${view.layer}
        most=${layers - 1}
        change=${(/** @type {number} */ layer) => change({ layer })}
      />
      <${Menu}
        label="Head"
        value=${view.head}
        options=${
          rolled
            ? [["mean", "all, fused by mean"]]
            : [
                ...(query_groups.length ? [["active", "active"]] : []),
                ["mean", "mean"],
                ...Array.from({ length: heads }, (_, h) => [String(h), headName(h)]),
              ]
        }
        change=${(/** @type {string} */ head) => change({ head })}
      />
      ${
        view.head === "active" &&
        html`
          <${Menu}
            label="Active by"
            value=${view.active}
            title="The head whose map varies most: over the patches that show image, or over the whole grid, padding included"
            options=${[
              ["image", "the image"],
              ["lab", "whole grid (lab)"],
            ]}
            change=${(/** @type {any} */ active) => change({ active })}
          />
        `
      }
      ${
        steps !== null &&
        html`
          <${Slider}
            label="Step"
            shown=${stepText}
            value=${view.step < 0 ? steps - 1 : view.step}
            most=${steps - 1}
            change=${(/** @type {number} */ step) => change({ step: step === steps - 1 && !written ? -1 : step })}
          />
        `
      }
    </div>
  `;
}

/** @param {{view: View, change: Change}} props */
export function Appearance({ view, change }) {
  const rolled = view.weighting === "rollout";
  return html`
    <div class="controls column" role="group" aria-label="Appearance">
      <${Slider}
        label="Opacity"
        shown=${`${Math.round(100 * view.alpha)} %`}
        value=${view.alpha}
        most=${1}
        step=${0.05}
        change=${(/** @type {number} */ alpha) => change({ alpha })}
      />
      <${Menu}
        label="Colours"
        value=${view.cmap}
        options=${NAMES.map((n) => [n, n])}
        change=${(/** @type {string} */ cmap) => change({ cmap })}
      />
      <${Menu}
        label="Scale"
        value=${view.scale}
        options=${[
          ["frame", "of each frame"],
          ...(rolled ? [] : [["episode", "of the episode"]]),
          ["cameras", "of all cameras"],
        ]}
        change=${(/** @type {any} */ scale) => change({ scale })}
      />
      <${Menu}
        label="Blend"
        value=${view.blend}
        options=${[
          ["auto", "by the picture"],
          ["spotlight", "spotlight"],
          ["proportional", "proportional"],
          ["constant", "constant"],
        ]}
        change=${(/** @type {any} */ blend) => change({ blend })}
      />
      <${Menu}
        label="Patches"
        value=${view.interpolation}
        options=${[
          ["bilinear", "smooth"],
          ["nearest", "as they are"],
        ]}
        change=${(/** @type {any} */ interpolation) => change({ interpolation })}
      />
      <label class="check">
        <input
          type="checkbox"
          checked=${view.sinks}
          disabled=${rolled}
          onChange=${(/** @type {any} */ x) => change({ sinks: x.target.checked })}
        />
        take sinks out
      </label>
    </div>
  `;
}

/**
 * A few exclusive choices, all in sight.
 * @param {{label: string, value: string, options: string[], title?: string, change: (v: any) => void}} props
 */
export function Choice({ label, value, options, title = "", change }) {
  return html`
    <div class="field" role="radiogroup" aria-label=${label} title=${title}>
      <span>${label}</span>
      <span class="choice">
        ${options.map(
          (option) => html`
            <button
              type="button"
              role="radio"
              aria-checked=${option === value}
              onClick=${() => change(option)}
            >
              ${option}
            </button>
          `,
        )}
      </span>
    </div>
  `;
}

/**
 * Exclusive choices in a menu: pairs of value and text.
 * @param {{label: string, value: string, options: string[][], title?: string, inline?: boolean,
 *   change: (v: any) => void}} props
 */
export function Menu({ label, value, options, title = "", inline = false, change }) {
  return html`
    <label class=${inline ? "field inline" : "field"}>
      <span>${label}</span>
      <select value=${value} title=${title} onChange=${(/** @type {any} */ x) => change(x.target.value)}>
        ${options.map(
          ([name, text]) => html`
            <option value=${name}>${text}</option>
          `,
        )}
      </select>
    </label>
  `;
}

/** @param {{label: string, shown: string, value: number, most: number, step?: number, change: (v: number) => void}} props */
export function Slider({ label, shown, value, most, step = 1, change }) {
  return html`
    <label class="field slider">
      <span>
        ${`${label} `}
        <b>${shown}</b>
      </span>
      <input
        type="range"
        min="0"
        max=${most}
        step=${step}
        value=${value}
        disabled=${most === 0}
        aria-valuetext=${shown}
        onInput=${(/** @type {any} */ x) => change(Number(x.target.value))}
      />
    </label>
  `;
}
