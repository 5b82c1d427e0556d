// What the keys do, and what the colours mean.

import { html, useEffect, useRef } from "./html.js";

/** @type {[string, string][]} */
const KEYS = [
  ["← →", "keyframe before, after"],
  ["Home End", "first, last keyframe"],
  ["Space", "play, pause"],
  ["↑ ↓", "layer before, after"],
  ["[ ]", "head before, after"],
  ["a  m", "the active head, the mean of heads"],
  ["n p", "next, previous episode"],
  ["s", "take sinks out, or not"],
  ["w", "raw attention, what it carries (value), what came through the layers (rollout)"],
  ["Esc", "forget the token, the patches and the object"],
  ["/", "filter episodes"],
  ["?", "this help"],
];

/** @param {{open: boolean, close: () => void}} props */
export function Help({ open, close }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    if (open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open]);
  return html`
    <dialog ref=${dialog} onClose=${close} aria-labelledby="help-title">
      <h2 id="help-title">Help</h2>
      <dl class="keys">
        ${KEYS.map(
          ([key, what]) => html`
            <dt>
              ${key
                .split(" ")
                .filter(Boolean)
                .map(
                  (k) => html`
                    <kbd>${k}</kbd>
                    ${" "}
                  `,
                )}
            </dt>
            <dd>${what}</dd>
          `,
        )}
      </dl>
      <p>
        In the layer × head matrix and among small multiples the arrow keys choose a head; in the list of
        episodes they move. On a camera, Enter chooses the patch of most attention and the arrow keys move it.
      </p>
      <h3>What the colours mean</h3>
      <p>
        Attention of the chosen query tokens to each image patch, from 0 to the number at the end of the bar.
        Dimmed pixels are never seen by the policy; attention to the letterbox is not drawn, its share is
        printed above the picture. With weighting “value”, attention times the size of what each token adds
        through the head, as a share of the row's sum: a sink that adds nothing goes dark.
      </p>
      <p>
        With “rollout” (Abnar & Zuidema 2020), the layers up to the shown one are multiplied, heads fused by
        mean, each layer mixed half and half with the identity that stands for the residual: from which
        patches information may have come. It takes information to mix linearly and leaves out values and
        MLPs: what could flow, not what did.
      </p>
      <p>
        A map shows where image tokens sit. After a vision encoder has mixed all patches, a token is no longer
        only its patch of pixels; and attention is not importance: probes measure that.
      </p>
      <form method="dialog"><button autofocus>Close</button></form>
    </dialog>
  `;
}
