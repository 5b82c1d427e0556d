// Episodes that are being recorded: how far they are, and what the policy saw last.

import { get } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { Unanswered } from "./kept.js";
import { recordedOverlay, recordings } from "./questions.js";

/** @import {UnderWay} from "./types" */

const EVERY = 2000;
const STATES = {
  recording: "recording",
  committing: "being put into the store",
  elsewhere: "on another host",
  dead: "its recorder died",
};

/** @param {{store: string, ended: () => void}} props `ended` is called when one is there no more */
export function Progress({ store, ended }) {
  const [rows, setRows] = useState(/** @type {UnderWay[]} */ ([]));
  useEffect(() => {
    let wanted = true;
    let timer = 0;
    let before = new Set();
    const look = async () => {
      try {
        const found = await get(recordings(store));
        if (!wanted) return;
        const now = new Set(found.map((r) => `${r.recording}/${r.episode}`));
        if ([...before].some((name) => !now.has(name))) ended();
        before = now;
        setRows(found);
      } catch (error) {
        if (!wanted || (error instanceof Unanswered && error.status === 404)) return; // a pack has none
      }
      timer = setTimeout(look, document.hidden ? 5 * EVERY : EVERY);
    };
    if (store) look();
    return () => {
      wanted = false;
      clearTimeout(timer);
      setRows([]);
    };
  }, [store]);
  if (!rows.length) return null;
  return html`
    <section class="under-way" aria-label="Episodes that are being recorded">
      ${rows.map((row) => {
        const cameras = row.calls ? row.cameras : [];
        const ago = `${row.idle < 10 ? row.idle.toFixed(1) : Math.round(row.idle)} s ago`;
        return html`
          <article key=${`${row.recording}/${row.episode}`} class=${row.state} data-recorded=${row.episode}>
            <p>
              <b>${row.name}</b>
              <span class="state">${STATES[row.state]}</span>
            </p>
            <p class="quiet small instruction">${row.instruction}</p>
            <div class="pictures">
              ${cameras.map((camera) => {
                const address = recordedOverlay(store, row, row.calls - 1, camera);
                return html`
                  <a href=${address} target="_blank" title=${`${camera}, newest call`}>
                    <img src=${`${address}?width=240`} alt=${`${camera}, as the policy saw it last`} />
                  </a>
                `;
              })}
            </div>
            <p class="quiet small">
              ${row.calls} keyframe${row.calls === 1 ? "" : "s"}, step ${row.step}, written ${ago}
              ${row.dropped ? `, ${row.dropped} dropped` : ""}
            </p>
            <p class="quiet small">
              ${row.phases.length ? `heat: active head of ${row.phases[0]}` : `no attention yet (${row.mode})`}
            </p>
            ${
              row.state === "dead" &&
              html`
                <p class="small">
                  Process ${row.pid} on ${row.host} is gone.${" "}
                  <code>attnstore record recover STORE</code>
                  ${" "}keeps what it wrote.
                </p>
              `
            }
            ${
              row.state === "elsewhere" &&
              html`
                <p class="small">Process ${row.pid} on ${row.host}: whether it lives is not known here.</p>
              `
            }
          </article>
        `;
      })}
    </section>
  `;
}
