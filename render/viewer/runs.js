// One episode in two runs: another checkpoint, prompt or data type on the same frames.

import { useAnswer } from "./answers.js";
import { Menu } from "./controls.js";
import { useEpisode } from "./episode.js";
import { html, useEffect } from "./html.js";
import { Grid } from "./matrix.js";
import { weight } from "./numbers.js";
import { divergence as askDivergence, episodes, run as askRun } from "./questions.js";

/** @import {Change, Episode, View} from "./types" */

/**
 * The same episode in another run, which one chooses, and what the runs differ in.
 * @param {{e: Episode, view: View, change: Change,
 *   sides: (other: Episode) => any}} props sides: draws both, and their difference
 */
export function Runs({ e, view, change, sides }) {
  const named = { ...view, text: e.name, where: "", outcome: "", order: "name", descending: false };
  const listed = useAnswer(episodes(/** @type {View} */ (named), 1000));
  const others = (listed.value?.rows ?? []).filter((r) => r.name === e.name && r.run !== e.run);
  const chosen = others.find((r) => r.run === view.otherRun) ?? others[0];
  const found = useEpisode(view.store, chosen?.run ?? "", chosen?.episode ?? "");
  useEffect(() => {
    if (chosen && (view.otherRun !== chosen.run || view.other !== chosen.episode))
      change({ otherRun: chosen.run, other: chosen.episode });
  }, [chosen?.run, chosen?.episode]);
  const error = listed.error ?? found.error;
  if (error)
    return html`
      <p class="error" role="alert">${error.message}</p>
    `;
  if (listed.pending)
    return html`
      <p class="quiet" role="status">loading …</p>
    `;
  if (!chosen)
    return html`
      <p class="note">
        This store has ${e.name} in one run. Ingested again with another checkpoint, prompt or data type it is
        here twice, and can be compared frame by frame.
      </p>
    `;
  return html`
    <${Menu}
      label="Other run"
      value=${chosen.run}
      options=${others.map((r) => [r.run, r.run])}
      change=${(/** @type {string} */ other) => change({ otherRun: other })}
    />
    <${Settings} store=${view.store} a=${e.run} b=${chosen.run} />
    ${found.episode && sides(found.episode)}
    ${
      found.episode &&
      html`
        <${Apart} e=${e} view=${view} change=${change} other=${chosen.run} />
      `
    }
  `;
}

/** What the configurations of two runs differ in. @param {{store: string, a: string, b: string}} props */
function Settings({ store, a, b }) {
  const [one, two] = [useAnswer(askRun(store, a)), useAnswer(askRun(store, b))];
  if (!one.value || !two.value)
    return html`
      <p class="note">${(one.error ?? two.error)?.message ?? ""}</p>
    `;
  const said = [one.value.config, two.value.config].map(plain);
  const rows = Object.keys({ ...said[0], ...said[1] }).filter((name) => said[0][name] !== said[1][name]);
  return html`
    <section class="card" aria-label="What the runs differ in">
      <h2>What the runs differ in</h2>
      <div class="scroll" tabindex="0" role="region" aria-label="Settings that differ">
        <table class="plain-table">
          <thead>
            <tr>
              ${["Setting", `${a} (left)`, `${b} (right)`].map(
                (h) => html`
                  <th scope="col">${h}</th>
                `,
              )}
            </tr>
          </thead>
          <tbody>
            ${rows.map(
              (name) => html`
                <tr>
                  <th scope="row">${name}</th>
                  <td>${said[0][name] ?? "–"}</td>
                  <td>${said[1][name] ?? "–"}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

/** Settings as text, those of `options` among them. @param {Record<string, any>} config @returns {Record<string, string>} */
function plain({ options, ...rest }) {
  return Object.fromEntries(
    Object.entries({ ...rest, ...options }).map(([name, value]) => {
      const text = typeof value === "object" ? JSON.stringify(value) : String(value);
      return [name, name.endsWith("digest") ? `${text.slice(0, 12)}…` : text];
    }),
  );
}

/**
 * How far apart each head's maps are.
 * @param {{e: Episode, view: View, change: Change, other: string}} props
 */
function Apart({ e, view, change, other }) {
  const answer = useAnswer(askDivergence(e, view, other));
  const found = answer.value;
  const cells = (found?.values ?? []).flatMap((row, layer) =>
    row.map((value, head) => ({ layer, head, value: value ?? NaN })),
  );
  const most = cells.filter((c) => c.value >= 0).sort((a, b) => b.value - a.value)[0];
  return html`
    <section class="card" aria-label="How far apart the heads are">
      <h2>
        How far apart each head's maps are
        <span class="quiet">
          ${found ? ` Jensen-Shannon divergence, mean over ${found.frames.length} frames that both runs have` : ""}
        </span>
      </h2>
      ${
        answer.error &&
        html`
          <p class="note" role="status">${answer.error.message}</p>
        `
      }
      ${
        answer.pending &&
        html`
          <p class="quiet" role="status">comparing …</p>
        `
      }
      ${
        found &&
        html`
          <${Grid}
            values=${found.values}
            colours="viridis"
            layer=${view.layer}
            head=${view.head}
            unit="bits"
            name="Divergence"
            choose=${(/** @type {number} */ layer, /** @type {number} */ head) => change({ layer, head: String(head) })}
          />
          <p class="note">
            ${most ? `Furthest apart: layer ${most.layer}, head ${most.head}, ${weight(most.value)} bits. ` : ""}
            0 is the same map, 1 bit two maps that share nothing. These are the same frames: there is no test
            over episodes here.
          </p>
        `
      }
    </section>
  `;
}
