// Networks that see images: ControlNets, whose images the result follows, and style images.

import { Num } from "./controls.js";
import { Icon, html } from "./html.js";
import { Picker } from "./inputs.js";
import { randomId } from "./api.js";

/** The most ControlNets and style images of a request. */
export const MOST_CONTROLNETS = 4;
export const MOST_STYLES = 10;

/** A ControlNet of the form: the numbers are texts, as in fields. */
const netOf = ({ name, strength, start, end, mode, edges, thresholds }, picture) => ({
  id: randomId(),
  name,
  strength: String(strength ?? 1),
  from: start ? String(Math.round(start * 1000) / 10) : "",
  until: end != null && end !== 1 ? String(Math.round(end * 1000) / 10) : "",
  mode: mode ?? "",
  edges: edges ?? false,
  thresholds: thresholds ?? null,
  picture: picture ?? null,
});

/** The ControlNets of a request, with the images that were kept of them. */
export const netsOf = (request, pictures) => (request.controlnets ?? []).map((net, i) => netOf(net, pictures[i]));

/** The style images that were kept, with the strengths of a request. */
export const stylesOf = (request, pictures) =>
  pictures.map((picture, i) => ({ ...picture, strength: String(request.styles?.[i]?.strength ?? 1) }));

/** What a request says about ControlNets and style images, without the images. */
export function guidesOf(nets, styles) {
  const request = {};
  const part = (text, usual) => (String(text).trim() === "" ? usual : Number(text) / 100);
  if (nets.length) {
    request.controlnets = nets.map(({ name, strength, from, until, mode, edges, thresholds }) => {
      const net = { name, strength: Number(strength), start: part(from, 0), end: part(until, 1) };
      if (mode) net.mode = mode;
      if (edges) net.edges = true;
      // They come with a request that is drawn again: the form has no field for them.
      if (edges && thresholds) net.thresholds = thresholds;
      return net;
    });
  }
  if (styles.length) request.styles = styles.map(({ strength }) => ({ strength: Number(strength) }));
  return request;
}

function Strength({ id, label, value, max, set }) {
  return html`<label class="field">
    <span>Strength <output>${Number(value).toFixed(2)}</output></span>
    <input id=${id} type="range" min="0" max=${max} step="0.05" value=${value} aria-label=${label}
      onInput=${(e) => set(e.target.value)} />
  </label>`;
}

function Remove({ what, onClick }) {
  return html`<button type="button" class="square quiet" aria-label=${`Remove ${what}`} onClick=${onClick}>
    <${Icon} name="close" />
  </button>`;
}

/** An image, or a button that opens one. */
function Tile({ picture, label, fileId, pick, clear }) {
  if (!picture) {
    return html`<${Picker} fileId=${fileId} className="ref add" label=${`Open ${label}`} pick=${pick}>
      <${Icon} name="plus" />
    <//>`;
  }
  return html`<span class="ref">
    <img src=${picture.url} alt=${label} title=${picture.name} />
    <${Remove} what=${label} onClick=${clear} />
  </span>`;
}

function Net({ net, number, known, change, remove, pick }) {
  const modes = known?.modes ?? [];
  const own = (name) => `net-${name}-${number}`;
  const label = `the image for ${net.name}`;
  return html`<div class="net" role="group" aria-label=${net.name}>
    <div class="title">
      <span class="name" title=${net.name}>${net.name}</span>
      <${Remove} what=${net.name} onClick=${remove} />
    </div>
    <${Tile} picture=${net.picture} label=${label} fileId=${own("file")} clear=${() => change({ picture: null })}
      pick=${async (blob, name) => change({ picture: await pick(blob, name) })} />
    <div class="stack">
      <${Strength} id=${own("strength")} label=${`Strength of ${net.name}`} value=${net.strength} max="2"
        set=${(strength) => change({ strength })} />
      <div class="row two">
        <${Num} label="Steps from, %" id=${own("from")} value=${net.from} own="0" min="0" max="100" step="any"
          set=${(from) => change({ from })} />
        <${Num} label="to, %" id=${own("until")} value=${net.until} own="100" min="0" max="100" step="any"
          set=${(until) => change({ until })} />
      </div>
      ${modes.length > 0 && html`<label class="field">
        <span>The image is</span>
        <select id=${own("mode")} value=${net.mode} onChange=${(e) => change({ mode: e.target.value })}>
          <option value="" disabled>choose …</option>
          ${modes.map((mode) => html`<option key=${mode} value=${mode}>${mode}</option>`)}
        </select>
      </label>`}
      <label class="check">
        <input id=${own("edges")} type="checkbox" checked=${net.edges}
          onChange=${(e) => change({ edges: e.target.checked })} />
        It is a photo: find its edges
      </label>
    </div>
  </div>`;
}

/** The ControlNets of the request: `listed` are those of the server. */
export function ControlNets({ list, set, listed, reads, pick }) {
  const shows = reads && listed.length > 0;
  if (!shows && !list.length) return null;
  // The list may have changed while an image was read.
  const change = (id, changed) => set((list) => list.map((net) => (net.id === id ? { ...net, ...changed } : net)));
  const remove = (id) => set((list) => list.filter((net) => net.id !== id));
  return html`<fieldset class="nets references">
    <legend>ControlNets</legend>
    ${list.map((net, i) => html`<${Net} key=${net.id} net=${net} number=${i} pick=${pick}
      known=${listed.find((l) => l.name === net.name)}
      change=${(changed) => change(net.id, changed)} remove=${() => remove(net.id)} />`)}
    ${shows && list.length < MOST_CONTROLNETS && html`<select id="add-controlnet" aria-label="Add a ControlNet" value=""
      onChange=${(e) => {
        const name = e.target.value;
        if (name) set((list) => [...list, netOf({ name })]);
        e.target.value = "";
      }}>
      <option value="">Add a ControlNet …</option>
      ${listed.map((net) => html`<option key=${net.name} value=${net.name}>${net.name}</option>`)}
    </select>`}
    ${list.length > 0 && html`<p class="note">
      The result follows the image: edges, depths or a pose, as the ControlNet was trained.
    </p>`}
  </fieldset>`;
}

/** Images whose content and style the result has. */
export function Styles({ list, set, reads, add }) {
  if (!reads && !list.length) return null;
  const change = (id, strength) =>
    set((list) => list.map((style) => (style.id === id ? { ...style, strength } : style)));
  const remove = (id) => set((list) => list.filter((style) => style.id !== id));
  return html`<fieldset class="styles references">
    <legend>Style images</legend>
    ${list.map((style, i) => html`<div class="style" key=${style.id}>
      <${Tile} picture=${style} label=${`style image ${i + 1}`} clear=${() => remove(style.id)} />
      <${Strength} id=${`style-strength-${i}`} label=${`Strength of style image ${i + 1}`} value=${style.strength}
        max="2" set=${(strength) => change(style.id, strength)} />
    </div>`)}
    ${reads && list.length < MOST_STYLES && html`<div class="refs">
      <${Picker} id="add-style" fileId="style-file" className="ref add" label="Add a style image" pick=${add} multiple>
        <${Icon} name="plus" />
      <//>
    </div>`}
    <p class="note">The result has their content, colours and style; with less strength the prompt says more.</p>
  </fieldset>`;
}
