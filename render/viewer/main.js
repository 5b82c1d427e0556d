// The page: what is shown, kept in the address, and the parts that show it.

import { Actions } from "./actions.js";
import { useAnswer } from "./answers.js";
import { Causes } from "./causes.js";
import { Compare } from "./compare.js";
import { useEpisode } from "./episode.js";
import { Episodes, neighbourOf } from "./episodes.js";
import { HeadsGrid } from "./heads.js";
import { Help } from "./help.js";
import { html, render, useCallback, useEffect, useRef, useState } from "./html.js";
import { useKeys } from "./keys.js";
import { Knowledge } from "./knowledge.js";
import { Look } from "./look.js";
import { Overview } from "./overview.js";
import { overview, stores } from "./questions.js";
import { Sql } from "./sql.js";
import { fitted, formatView, isStep, parseView } from "./state.js";
import { useTheme } from "./theme.js";

/** @import {Change, View} from "./types" */

/** @type {[View["view"], string][]} */
const VIEWS = [
  ["overview", "Overview"],
  ["look", "Look"],
  ["heads", "Heads"],
  ["actions", "Actions"],
  ["causes", "What matters"],
  ["knowledge", "What it knows"],
  ["compare", "Compare"],
  ["sql", "SQL"],
];

/** The view, as state and as address. @returns {[View, Change]} */
function useView() {
  const [view, setView] = useState(() => parseView(location.hash));
  const written = useRef(view);
  const change = useCallback(
    (/** @type {Partial<View>} */ changed) => setView((old) => ({ ...old, ...changed })),
    [],
  );
  useEffect(() => {
    const read = () => {
      written.current = parseView(location.hash);
      setView(written.current);
    };
    addEventListener("hashchange", read);
    return () => removeEventListener("hashchange", read);
  }, []);
  useEffect(() => {
    const old = written.current;
    if (old === view) return;
    // Browsers allow only so many changes of the address in a while: scrubbing would exceed it.
    const wait = isStep(old, view) ? 0 : 250;
    const timer = setTimeout(() => {
      const address = location.pathname + location.search + formatView(view);
      if (isStep(old, view) && old.episode) history.pushState(null, "", address);
      else history.replaceState(null, "", address);
      written.current = view;
    }, wait);
    return () => clearTimeout(timer);
  }, [view]);
  return [view, change];
}

function Page() {
  const [wished, change] = useView();
  const [theme, toggleTheme] = useTheme();
  const [playing, play] = useState(false);
  const [help, setHelp] = useState(false);
  const [list, setList] = useState(() => innerWidth > 900);
  const served = useAnswer(wished.store ? null : stores());
  const needed = !wished.episode && !["overview", "sql"].includes(wished.view);
  const first = useAnswer(wished.store && needed ? overview(wished.store) : null);
  const { episode, error } = useEpisode(wished.store, wished.run, wished.episode);
  const view = episode ? fitted(wished, episode) : wished;

  useEffect(() => {
    if (served.value?.length) change({ store: served.value[0].id });
  }, [served.value]);
  useEffect(() => {
    const { glimpses = [] } = first.value ?? {};
    const row = glimpses.find((g) => g.outcome === "success") ?? glimpses[0];
    if (row) change({ run: row.run, episode: row.episode });
  }, [first.value]);
  useEffect(() => {
    document.title = episode && wished.view !== "overview" ? `${episode.name} · attnstore` : "attnstore";
  }, [episode, wished.view]);

  const open = (/** @type {any} */ row, /** @type {Partial<View>} */ more = {}) => {
    play(false);
    const stays = ["overview", "sql"].includes(view.view) ? "look" : view.view;
    change({ run: row.run, episode: row.episode, view: stays, ...more });
  };
  const neighbour = (/** @type {number} */ by) => {
    neighbourOf(view, by).then(
      (row) => row && open(row),
      () => {}, // the list says why it is not there
    );
  };
  useKeys({
    e: episode,
    view,
    change,
    togglePlay: () => play(!playing),
    help: () => setHelp(true),
    neighbour,
  });
  // What shows one episode, with the same of it to hand
  const views = /** @type {Record<string, any>} */ ({
    heads: HeadsGrid,
    actions: Actions,
    causes: Causes,
    knowledge: Knowledge,
  });
  const Single = views[view.view];
  const failure = served.error ?? first.error ?? error;
  return html`
    <div class=${`page ${list ? "" : "without-list"}`}>
      <header>
        <button
          type="button"
          class="plain"
          aria-expanded=${list}
          aria-controls="list"
          onClick=${() => setList(!list)}
          aria-label="List of episodes"
        >
          ☰
        </button>
        ${
          episode && view.view !== "overview"
            ? html`
                <span class="brand">attnstore</span>
              `
            : html`
                <h1 class="brand">attnstore</h1>
              `
        }
        <span class="choice" role="tablist" aria-label="View">
          ${VIEWS.map(
            ([name, text]) => html`
              <button
                type="button"
                role="tab"
                aria-selected=${view.view === name}
                onClick=${() => (play(false), change({ view: name }))}
              >
                ${text}
              </button>
            `,
          )}
        </span>
        ${
          episode &&
          view.view !== "overview" &&
          html`
            <h1 title=${episode.name}>
              <i class=${`dot ${episode.outcome}`}></i>
              ${episode.name}
            </h1>
            <span class=${`outcome ${episode.outcome}`}>${episode.outcome}</span>
            <q class="instruction" title=${episode.instruction}>${episode.instruction}</q>
          `
        }
        <span class="spring"></span>
        <button
          type="button"
          class="plain"
          onClick=${toggleTheme}
          aria-label=${`Colours of the page: ${theme}`}
          title="light, dark"
        >
          ${theme === "dark" ? "☾" : "☀"}
        </button>
        <button type="button" class="plain" onClick=${() => setHelp(true)} aria-label="Help" title="?">
          ?
        </button>
      </header>
      <div id="list" hidden=${!list}>
        ${
          list &&
          html`
            <${Episodes} view=${view} change=${change} open=${open} />
          `
        }
      </div>
      <main>
        ${
          failure &&
          html`
            <p class="error" role="alert">${failure.message}</p>
          `
        }
        ${
          first.value?.glimpses.length === 0 &&
          html`
            <p class="note">This store has no episodes yet: attnstore ingest writes them.</p>
          `
        }
        ${
          view.view === "overview" &&
          view.store &&
          html`
            <${Overview} view=${view} change=${change} open=${open} />
          `
        }
        ${
          view.view === "sql" &&
          view.store &&
          html`
            <${Sql} view=${view} change=${change} />
          `
        }
        ${
          view.view === "look" &&
          episode &&
          html`
            <${Look}
              key=${episode.version}
              e=${episode}
              view=${view}
              change=${change}
              playing=${playing}
              play=${play}
              theme=${theme}
            />
          `
        }
        ${
          Single &&
          episode &&
          (view.view !== "heads" || view.camera) &&
          html`
            <${Single}
              key=${episode.version}
              e=${episode}
              view=${view}
              change=${change}
              playing=${playing}
              play=${play}
              theme=${theme}
            />
          `
        }
        ${
          view.view === "compare" &&
          episode &&
          html`
            <${Compare} e=${episode} view=${view} change=${change} playing=${playing} play=${play} />
          `
        }
        ${
          !failure &&
          !episode &&
          (needed || wished.episode) &&
          !["overview", "sql"].includes(view.view) &&
          first.value?.glimpses.length !== 0 &&
          html`
            <p class="quiet" role="status">loading …</p>
          `
        }
      </main>
      <${Help} open=${help} close=${() => setHelp(false)} />
    </div>
  `;
}

render(
  html`
    <${Page} />
  `,
  /** @type {Element} */ (document.getElementById("page")),
);
