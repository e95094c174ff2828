// The images of a request: one to start from with its mask, a control image, and references.

import { useRef } from "preact/hooks";
import { Num } from "./controls.js";
import { Icon, html } from "./html.js";
import { MOST_REFERENCES, SIDES } from "./form.js";

/** A button that opens files. */
export function Picker({ id, fileId, label, pick, multiple, className, children }) {
  const field = useRef();
  return html`<button type="button" id=${id} class=${className} aria-label=${label} title=${label} onClick=${() => field.current.click()}>${children}</button>
    <input ref=${field} id=${fileId} class="sr" type="file" accept="image/*" multiple=${multiple} tabindex="-1" aria-label=${label}
      onChange=${async (e) => {
        for (const file of e.target.files) await pick(file, file.name);
        e.target.value = "";
      }} />`;
}

/** What is repainted, and what is added on the sides. */
function Part({ input, form, set, paint, setMask, isMasked }) {
  const isOpen = isMasked || SIDES.some((side) => form[side] !== "");
  return html`<details class="more part" open=${isOpen}>
    <summary>Repaint a part, or add to its sides</summary>
    <div class="stack">
      <div class="actions">
        <button type="button" id="paint-mask" onClick=${paint}><${Icon} name="brush" /> ${input.mask ? "Change the mask" : "Paint a mask"}</button>
        ${input.mask && html`<button type="button" class="link" id="remove-mask" onClick=${() => setMask(null)}>Remove the mask</button>`}
      </div>
      ${isMasked && html`<div class="row two">
        <${Num} label="Blur its edges, pixels" id="mask-blur" value=${form.blur} own="0" min="0" max="256" step="any" set=${(blur) => set({ blur })} />
        <${Num} label="Only around it, pixels" id="mask-padding" value=${form.padding} own="all of it" min="0" max="4096" set=${(padding) => set({ padding })} />
      </div>
      ${form.padding !== "" && html`<p class="note">Only the mask and as many pixels around it are drawn, enlarged, and put back: small parts get more detail.</p>`}`}
      <fieldset>
        <legend>Pixels to add</legend>
        <div class="row four">
          ${SIDES.map((side) => html`<${Num} key=${side} label=${side[0].toUpperCase() + side.slice(1)} id=${`add-${side}`} value=${form[side]}
            own="0" min="0" max="4096" set=${(value) => set({ [side]: value })} />`)}
        </div>
      </fieldset>
    </div>
  </details>`;
}

/** The image to start from, how far the new one may leave it, and which part of it is repainted. */
export function Input(props) {
  const { input, form, set, setInput, pick, strength } = props;
  if (!input) {
    return html`<button type="button" class="drop" onClick=${pick}>
      <${Icon} name="image" />
      <span><b>Open an image</b> to start from it, to repaint a part of it, or to get its settings back. Dropping and pasting work, too.</span>
    </button>`;
  }
  return html`<fieldset class="input">
    <legend>Start from</legend>
    <span class="start">
      <img src=${input.url} alt="The image to start from" />
      ${input.mask && html`<img class="veil" src=${input.mask.url} alt="Its mask" />`}
    </span>
    <div>
      <label class="field">
        <span>Change <output>${Math.round(strength * 100)} %</output></span>
        <input id="strength" type="range" min="0" max="1" step="0.05" value=${strength} onInput=${(e) => set({ strength: e.target.value })} />
      </label>
      <button type="button" class="link" onClick=${() => setInput(null)}>Remove the image</button>
    </div>
    <${Part} ...${props} />
  </fieldset>`;
}

/** The image whose edges or depths the result has. */
export function Control({ control, set, needed, pick }) {
  if (!needed && !control) return null;
  return html`<fieldset class="references">
    <legend>Control image</legend>
    <div class="refs">
      ${control && html`<span class="ref">
        <img src=${control.url} alt="Control image" title=${control.name} />
        <button type="button" class="square quiet" aria-label="Remove the control image" onClick=${() => set(null)}><${Icon} name="close" /></button>
      </span>`}
      ${!control && html`<${Picker} id="add-control" fileId="control-file" className="ref add" label="Open a control image" pick=${pick}><${Icon} name="plus" /><//>`}
    </div>
    <p class="note">The result has its edges or its depths: give a photo or a drawing to Canny, and an image of depths to Depth.</p>
  </fieldset>`;
}

/** The images that the model looks at. */
export function References({ list, set, reads, add }) {
  if (!reads && !list.length) return null;
  return html`<fieldset class="references">
    <legend>Reference images</legend>
    <div class="refs">
      ${list.map(
        (reference, i) => html`<span class="ref" key=${reference.id}>
          <img src=${reference.url} alt=${`Reference image ${i + 1}`} title=${reference.name} />
          <button type="button" class="square quiet" aria-label=${`Remove reference image ${i + 1}`}
            onClick=${() => set(list.filter((other) => other !== reference))}><${Icon} name="close" /></button>
        </span>`,
      )}
      ${reads && list.length < MOST_REFERENCES &&
      html`<${Picker} id="add-reference" fileId="reference-file" className="ref add" label="Add a reference image" pick=${add} multiple><${Icon} name="plus" /><//>`}
    </div>
    <p class="note">The prompt says what to do with them: “put the hat of image 2 on the fox of image 1”.</p>
  </fieldset>`;
}
