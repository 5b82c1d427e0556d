// What it knows: whether a failure is seen coming, beside where the policy looks, and which layer knows what.

import { useAnswer } from "./answers.js";
import { Choice, Menu, Selection } from "./controls.js";
import { secondsAt } from "./episode.js";
import { html, useState } from "./html.js";
import { keyframeName, layerName, percent, weight } from "./numbers.js";
import { Thumbnail } from "./overview.js";
import { LinePlot } from "./plot.js";
import { failure as askFailure, linearProbes as askProbes, phaseOf } from "./questions.js";
import { Timeline } from "./timeline.js";

/** @import {Change, Episode, FailurePrediction, FailurePredictor, LinearProbe, View} from "./types" */

/** What is no feature of the policy, and what each is. @type {Record<string, string>} */
const BASELINES = {
  trivial: "time, state and instruction",
  elapsed: "time alone",
  state: "the robot's state alone",
  instruction: "the instruction alone",
};

/** @param {{e: Episode, view: View, change: Change, playing: boolean, play: (on: boolean) => void, theme: string}} props */
export function Knowledge({ e, view, change, playing, play, theme }) {
  const { cameras } = phaseOf(e, view);
  return html`
    <div class="causes">
      <${Selection} e=${e} view=${view} change=${change} />
      <div class="knowledge">
        <div class="seen">
          ${cameras.map(
            (camera) => html`
              <figure class="card look-beside" key=${camera}>
                <${Thumbnail} e=${e} view=${{ ...view, camera }} />
                <figcaption class="quiet small">
                  ${`${camera}, ${keyframeName(view.keyframe, e.frames.length)}`}
                </figcaption>
              </figure>
            `,
          )}
        </div>
        <div class="stack">
          <${Alarm} e=${e} view=${view} change=${change} />
          <${Probes} e=${e} view=${view} change=${change} />
        </div>
      </div>
      <${Timeline} e=${e} view=${view} change=${change} playing=${playing} play=${play} theme=${theme} />
    </div>
  `;
}

/**
 * The score of failure along the episode, its band, and the alarm.
 * @param {{e: Episode, view: View, change: Change}} props
 */
function Alarm({ e, view, change }) {
  const answer = useAnswer(askFailure(e));
  const [wanted, setWanted] = useState({ split: "episodes", features: "", model: "cumulative" });
  const found = answer.value;
  return html`
    <section class="card" aria-label="Failure seen coming">
      <h2>
        Is its failure seen coming?
        <span class="quiet">
          ${" score of failure, of what was seen so far; by a model that never saw this episode"}
        </span>
      </h2>
      <${State} answer=${answer} />
      ${
        found &&
        !found.predictors.length &&
        html`
          <p class="note">
            ${
              found.part === null
                ? "No failures were predicted in this run: "
                : `This episode was not among those that were predicted${e.outcome === "unknown" ? ": its outcome is not known" : ""}. `
            }
            ${
              found.part === null &&
              html`
                <span class="code">attnstore failure STORE</span>
                ${" "}fits a score on some episodes and tests it on the others.
              `
            }
          </p>
        `
      }
      ${
        found &&
        found.predictors.length > 0 &&
        html`
          <${Score} e=${e} view=${view} change=${change} found=${found} wanted=${wanted} want=${setWanted} />
        `
      }
    </section>
  `;
}

/**
 * @param {{e: Episode, view: View, change: Change, found: FailurePrediction,
 *   wanted: {split: string, features: string, model: string},
 *   want: (wanted: {split: string, features: string, model: string}) => void}} props
 */
function Score({ e, view, change, found, wanted, want }) {
  const all = found.predictors;
  const options = (/** @type {"split" | "features" | "model"} */ name) => [
    ...new Set(all.map((p) => p[name])),
  ];
  const own = options("features").filter((f) => !(f in BASELINES));
  const features = options("features").includes(wanted.features) ? wanted.features : (own[0] ?? "trivial");
  const chosen = { ...wanted, features };
  const is = (/** @type {FailurePredictor} */ p, /** @type {string} */ of) =>
    p.split === chosen.split && p.model === chosen.model && p.features === of;
  const shown = all.find((p) => is(p, features));
  const trivial = all.find((p) => is(p, "trivial"));
  if (!shown) return null;
  const at = (/** @type {number} */ keyframe) => e.frames[keyframe];
  const points = (/** @type {readonly (number | null)[]} */ values) =>
    shown.keyframes.map((k, i) => ({ x: at(k), y: values[i] }));
  const alarm = shown.alarm;
  const seconds = alarm === null ? null : secondsAt(e, alarm);
  const left = alarm === null || !e.rate ? null : (at(e.frames.length - 1) - at(alarm)) / e.rate;
  return html`
    <div class="controls">
      ${
        options("split").length > 1 &&
        html`
          <${Choice}
            label="Unseen"
            value=${chosen.split}
            options=${options("split")}
            change=${(/** @type {string} */ split) => want({ ...chosen, split })}
          />
        `
      }
      <${Menu}
        label="From"
        value=${features}
        options=${options("features").map((f) => [f, f in BASELINES ? `${f}: ${BASELINES[f]}` : `${found.weighting === "value" && f !== "hidden" ? "value-weighted " : ""}${f}`])}
        change=${(/** @type {string} */ f) => want({ ...chosen, features: f })}
      />
      <${Choice}
        label="Model"
        title="cumulative: on the mean of the calls so far; logistic: on one call"
        value=${chosen.model}
        options=${options("model")}
        change=${(/** @type {string} */ model) => want({ ...chosen, model })}
      />
    </div>
    <${LinePlot}
      label=${`score of failure over ${shown.keyframes.length} keyframes; ${alarm === null ? "no alarm" : `alarm at keyframe ${alarm + 1}`}`}
      along="frame"
      range=${[0, 1]}
      now=${at(view.keyframe)}
      lines=${[
        { name: "score", mark: 2, points: points(shown.score) },
        { name: "band: above it is an alarm", mark: 1, dashed: true, points: points(shown.band) },
      ]}
      rings=${alarm === null ? [] : [{ x: at(alarm), y: shown.score[shown.keyframes.indexOf(alarm)], title: "the alarm rises" }]}
      choose=${(/** @type {number} */ frame) => change({ keyframe: e.frames.indexOf(frame) })}
    />
    <p>
      ${
        alarm === null
          ? "No alarm in this episode."
          : html`
              <button type="button" class="link" onClick=${() => change({ keyframe: alarm })}>
                ${`The alarm rises at ${keyframeName(alarm, e.frames.length)}`}
              </button>
              ${seconds === null ? "" : `, after ${seconds.toFixed(1)} s`}${left === null ? "" : `, ${left.toFixed(1)} s before the end`}.
            `
      }
      ${` It ended in ${e.outcome}.`}
    </p>
    <p class="note">
      ${`In this run, unseen ${shown.split}: AUROC ${withInterval(shown.auroc, shown.low, shown.high)}`}
      ${shown.shuffled === null ? "" : `, with shuffled outcomes ${weight(shown.shuffled)}`}
      ${trivial && trivial !== shown ? `; from ${BASELINES.trivial} ${withInterval(trivial.auroc, trivial.low, trivial.high)}` : ""}.
      ${` ${shown.false_alarms} of ${shown.successes} successes raised an alarm`}
      ${shown.split === "episodes" ? ` (promised: at most ${percent(found.alpha ?? NaN)})` : " (of unseen tasks nothing is promised)"},
      ${` ${shown.detected} of ${shown.failures} failures did`}
      ${shown.before_end === null ? "" : `, at the median ${weight(shown.before_end)} ${shown.unit} before the end`}.
    </p>
  `;
}

/**
 * How well a target is read off each layer's hidden states.
 * @param {{e: Episode, view: View, change: Change}} props
 */
function Probes({ e, view, change }) {
  const answer = useAnswer(askProbes(e));
  const [part, setPart] = useState("");
  const [split, setSplit] = useState("");
  const all = answer.value ?? [];
  const parts = [...new Set(all.map((p) => p.part))];
  const own = all.filter((p) => p.part === (parts.includes(part) ? part : parts[0]));
  const shown = own.find((p) => p.split === split) ?? own[0];
  return html`
    <section class="card" aria-label="Linear probes">
      <h2>
        Which layer knows what
        <span class="quiet">${" linear probes of hidden states, over the run's episodes"}</span>
      </h2>
      <${State} answer=${answer} />
      ${
        answer.value &&
        !shown &&
        html`
          <p class="note">
            No hidden states of this run were probed:${" "}
            <span class="code">attnstore linear-probe STORE --target outcome</span>
            ${" "}says how well something is read off each layer.
          </p>
        `
      }
      ${
        shown &&
        html`
          <div class="controls">
            ${
              parts.length > 1 &&
              html`
                <${Menu}
                  label="Target"
                  value=${shown.part}
                  options=${parts.map((p) => [p, nameOf(/** @type {LinearProbe} */ (all.find((a) => a.part === p)))])}
                  change=${setPart}
                />
              `
            }
            ${
              own.length > 1 &&
              html`
                <${Choice}
                  label="Unseen"
                  value=${shown.split}
                  options=${own.map((p) => p.split)}
                  change=${setSplit}
                />
              `
            }
          </div>
          <${Layers} e=${e} view=${view} change=${change} probe=${shown} />
        `
      }
    </section>
  `;
}

/** @param {{e: Episode, view: View, change: Change, probe: LinearProbe}} props */
function Layers({ e, view, change, probe }) {
  const measure = probe.kind === "classes" ? "balanced accuracy" : "R²";
  const layers = probe.layers.filter((l) => l.layer !== null);
  const flat = (/** @type {number | null} */ y) =>
    layers.map((l) => ({ x: /** @type {number} */ (l.layer), y }));
  const best = probe.layers.reduce((a, b) => ((b.score ?? -9) > (a.score ?? -9) ? b : a), probe.layers[0]);
  const knowing = probe.layers.filter((l) => l.knows);
  const place = (/** @type {number | null} */ layer) =>
    layer === null ? "the last hidden states" : layer < 0 ? "what enters layer 0" : layerName(layer);
  const about = `${nameOf(probe)}: ${measure} on unseen ${probe.split}, best at ${place(best.layer)}, ${weight(best.score)}`;
  const open = (/** @type {number} */ layer) =>
    layer >= 0 && e.phases[probe.phase] && change({ phase: probe.phase, query: "", layer });
  return html`
    <p class="quiet small">${nameOf(probe)}</p>
    ${
      layers.length > 1 &&
      html`
        <${LinePlot}
          label=${about}
          along="layer"
          level=${probe.chance}
          now=${view.phase === probe.phase ? view.layer : null}
          text=${(/** @type {number} */ x) => (x < 0 ? "in" : String(x))}
          lines=${[
            {
              name: `hidden states, ${measure}, 95 %`,
              mark: 1,
              points: layers.map((l) => ({
                x: l.layer,
                y: l.score,
                low: l.low,
                high: l.high,
                title: `${place(l.layer)}: ${withInterval(l.score, l.low, l.high)}`,
              })),
            },
            { name: "time, state, instruction", mark: 2, dashed: true, points: flat(probe.baseline.score) },
            {
              name: "95 % of shuffled targets are below",
              mark: 3,
              dashed: true,
              points: layers.map((l) => ({ x: l.layer, y: l.shuffled_high })),
            },
          ]}
          rings=${layers.filter((l) => l.knows).map((l) => ({ x: l.layer, y: l.score, title: "more than the obvious, and than chance" }))}
          choose=${open}
        />
      `
    }
    <p>
      ${`Best at ${place(best.layer)}: ${measure} ${withInterval(best.score, best.low, best.high)}; `}
      ${`from time, state and instruction ${withInterval(probe.baseline.score, probe.baseline.low, probe.baseline.high)}; chance ${weight(probe.chance)}. `}
      ${
        knowing.length
          ? `More than the obvious and than chance (ringed): ${knowing.map((l) => place(l.layer)).join(", ")}.`
          : "No layer says more than the obvious and than chance."
      }
    </p>
    <p class="note">
      ${`${probe.episodes} episodes, ${probe.keyframes} keyframes. A probe says what is there, not what the policy uses.`}
    </p>
  `;
}

/** @param {LinearProbe} p */
const nameOf = (p) =>
  `${p.target.length > 80 ? `${p.target.slice(0, 79)}…` : p.target}, from ${p.phase} ${p.span}${p.tokens === "last" ? ", last hidden states" : ""}`;

/** @param {number | null} value @param {number | null} low @param {number | null} high */
const withInterval = (value, low, high) =>
  `${weight(value)}${low === null || high === null ? "" : ` (${weight(low)} to ${weight(high)})`}`;

/** That an answer is awaited, or why there is none. @param {{answer: {error?: Error, pending: boolean}}} props */
function State({ answer }) {
  if (answer.error)
    return html`
      <p class="note" role="status">${answer.error.message}</p>
    `;
  return answer.pending
    ? html`
        <p class="quiet" role="status">loading …</p>
      `
    : null;
}
