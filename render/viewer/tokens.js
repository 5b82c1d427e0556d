// The tokens that look. A click shows where one looks; with patches brushed, each says how much it
// attends to them.

import { useAnswer } from "./answers.js";
import { html, useMemo, useRef } from "./html.js";
import { percent } from "./numbers.js";
import { phaseOf, tokens as asked } from "./questions.js";

/** @import {Change, Episode, Span, View} from "./types" */

/** @typedef {{index: number, label: string}} Chip */

const HINT = "click one to see where it looks; brush patches to see which tokens attend to them";

/**
 * @param {{e: Episode, view: View, change: Change, weights: Float32Array | null, about: string, patch: number | null}} props
 *   weights: of every query token to the brushed patches; about: which patches; patch: the one patch as a query
 */
export function TokenStrip({ e, view, change, weights, about, patch }) {
  const strip = useRef(/** @type {HTMLElement | null} */ (null));
  const answer = useAnswer(asked(e, view));
  const texts = useMemo(() => {
    /** @type {Map<number, string>} */
    const found = new Map();
    for (const row of answer.value?.rows ?? [])
      if (row.keyframe === view.keyframe) found.set(row.index, row.text);
    return found;
  }, [answer.value, view.keyframe]);
  const { query, query_groups } = phaseOf(e, view);
  let most = 0;
  if (weights) for (const w of weights) if (w > most) most = w;
  /** @param {Chip} chip @param {Span} span */
  const chipTitle = ({ index }, span) => {
    const share = weights ? `: ${percent(weights[index])} of its attention goes to ${about}` : "";
    return `token ${index} of ${span.name}${share}`;
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const chips = /** @type {HTMLElement[]} */ ([...(strip.current?.querySelectorAll("button") ?? [])]);
    chips[chips.indexOf(/** @type {HTMLElement} */ (document.activeElement)) + by]?.focus();
    event.preventDefault();
    event.stopPropagation();
  };
  // Tab reaches one chip, arrow keys the others
  const chips = query.map((span) => chipsOf(span, texts));
  // the phase's own group is the empty query; one that is a span stands among the spans alone
  const valueOf = (/** @type {string} */ name) => (name === query_groups[0] ? "" : name);
  const apart = query_groups.filter((group) => !query.some((s) => s.name === group));
  const first = query_groups.length ? "" : query[0].name;
  const known = [
    ...[...apart, ...query.map((s) => s.name)].map(valueOf),
    ...chips.flat().map((c) => String(c.index)),
  ];
  const reached = known.includes(view.query) ? view.query : first;
  const stop = (/** @type {string} */ value) => (value === reached ? 0 : -1);
  return html`
    <section class="card tokens" aria-label="Query tokens">
      <h2>
        ${"Tokens that look "}
        <span class="quiet">${weights ? `bars: attention to ${about}` : HINT}</span>
        ${
          patch !== null &&
          html`
            ${" "}
            <button type="button" class="link" onClick=${() => change({ query: String(patch) })}>
              show where this patch looks
            </button>
          `
        }
      </h2>
      <div class="strip" ref=${strip} role="toolbar" aria-label="Query tokens" onKeyDown=${key}>
        ${apart.map(
          (g) => html`
            <button
              type="button"
              class="group"
              tabindex=${stop(valueOf(g))}
              aria-pressed=${view.query === valueOf(g)}
              onClick=${() => change({ query: valueOf(g) })}
            >
              all ${g}
            </button>
          `,
        )}
        ${query.map(
          (span, i) => html`
            <span class="span" role="group" aria-label=${span.name}>
              <button
                type="button"
                class="group"
                tabindex=${stop(valueOf(span.name))}
                aria-pressed=${view.query === valueOf(span.name)}
                onClick=${() => change({ query: valueOf(span.name) })}
                title=${spanTitle(span, weights)}
              >
                ${span.name}${span.kind === "image" ? ` (${span.stop - span.start})` : ""}${
                  weights
                    ? html`
                        ${" "}
                        <i>${percent(meanOf(weights, span))}</i>
                      `
                    : ""
                }
              </button>
              ${chips[i].map(
                (chip) => html`
                  <button
                    type="button"
                    class="token"
                    data-token=${chip.index}
                    tabindex=${stop(String(chip.index))}
                    aria-pressed=${view.query === String(chip.index)}
                    title=${chipTitle(chip, span)}
                    onClick=${() => change({ query: view.query === String(chip.index) ? "" : String(chip.index) })}
                  >
                    ${chip.label}${
                      weights && most > 0
                        ? html`
                            <i
                              class="share"
                              style=${{ height: `${100 * (weights[chip.index] / most) || 0}%` }}
                            ></i>
                          `
                        : ""
                    }
                  </button>
                `,
              )}
            </span>
          `,
        )}
      </div>
      ${
        answer.error &&
        html`
          <p class="error">${answer.error.message}</p>
        `
      }
    </section>
  `;
}

/**
 * The tokens of a span one by one; patches are not listed, they are on the pictures.
 * @param {Span} span
 * @param {Map<number, string>} texts
 * @returns {Chip[]}
 */
function chipsOf(span, texts) {
  if (span.kind === "image") return [];
  const chips = [];
  for (let index = span.start; index < span.stop; index++) {
    if (span.kind === "text") {
      const text = texts.get(index);
      if (text !== undefined) chips.push({ index, label: visible(text) });
    } else
      chips.push({
        index,
        text: "",
        label: span.stop - span.start > 1 ? String(index - span.start) : span.kind,
      });
  }
  return chips;
}

/** Blanks and line ends as signs. @param {string} text */
const visible = (text) => text.replaceAll("\n", "⏎").replace(/^[ ▁]/, "").replaceAll(" ", "·") || "·";

/** @param {Float32Array} weights @param {Span} span */
function meanOf(weights, span) {
  let sum = 0,
    count = 0;
  for (let i = span.start; i < span.stop; i++) if (!Number.isNaN(weights[i])) ((sum += weights[i]), count++);
  return count ? sum / count : NaN;
}

/** @param {Span} span @param {Float32Array | null} weights */
const spanTitle = (span, weights) =>
  `${span.kind} tokens ${span.start} to ${span.stop - 1}${weights ? `: mean ${percent(meanOf(weights, span))}` : ""}`;
