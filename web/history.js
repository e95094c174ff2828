// All images so far, newest first.

import { useState } from "preact/hooks";
import { Icon, html } from "./html.js";

/** How many are shown before the user asks for more. */
const PAGE = 60;

export function History({ images, current, select, clear }) {
  const [most, setMost] = useState(PAGE);
  if (!images.length) return null;
  return html`<section class="history" aria-label="History">
    <header>
      <h2>History</h2>
      <span class="muted">${images.length}, kept in this browser</span>
      <button type="button" class="link" onClick=${clear}>Clear</button>
    </header>
    <div class="grid">
      ${images.slice(0, most).map(
        (image) => html`<button
          type="button"
          class="thumb"
          key=${image.id}
          aria-current=${image.id === current}
          aria-label=${`${image.request.prompt}, seed ${image.seed}`}
          title=${image.request.prompt}
          onClick=${() => select(image.id)}
        >
          <img src=${image.url} alt="" loading="lazy" decoding="async" />
        </button>`,
      )}
    </div>
    ${images.length > most &&
    html`<button type="button" class="more" onClick=${() => setMost(most + PAGE)}><${Icon} name="plus" /> Show more</button>`}
  </section>`;
}
