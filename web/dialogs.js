// What is asked for or shown on top of the page.

import { useEffect, useRef, useState } from "preact/hooks";
import { Icon, html } from "./html.js";

/** A modal dialog. Escape closes it, and so does a click next to it, unless it is to `keep`. */
export function Dialog({ title, close, children, id, keep }) {
  const dialog = useRef();
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  return html`<dialog
    id=${id}
    ref=${dialog}
    aria-label=${title}
    onCancel=${(e) => {
      e.preventDefault();
      close();
    }}
    onClick=${(e) => !keep && e.target === dialog.current && close()}
  >
    <div class="inside">
      <header>
        <h2>${title}</h2>
        <button type="button" class="square quiet" aria-label="Close" onClick=${close}><${Icon} name="close" /></button>
      </header>
      ${children}
    </div>
  </dialog>`;
}

/** Asks for a key. */
export function KeyDialog({ wrong, has, done, close }) {
  const [key, setKey] = useState("");
  const [keep, setKeep] = useState(true);
  return html`<${Dialog} id="key-dialog" title="Key" close=${close}>
    <form
      class="stack"
      onSubmit=${(e) => {
        e.preventDefault();
        done(key.trim() || null, keep);
      }}
    >
      <p>${wrong ? "The server does not know this key." : "This server needs a key."} Ask the person who runs it for one.</p>
      <label class="field">
        <span>Key</span>
        <input id="key" type="password" autocomplete="current-password" value=${key} autofocus onInput=${(e) => setKey(e.target.value)} />
      </label>
      <label class="check"><input type="checkbox" checked=${keep} onChange=${(e) => setKeep(e.target.checked)} /> Remember it on this device</label>
      <div class="actions end">
        ${has && html`<button type="button" onClick=${() => done(null, false)}>Forget the key</button>`}
        <button type="submit" class="primary" disabled=${!key.trim()}>Use this key</button>
      </div>
    </form>
  <//>`;
}

/** What an image that was opened can be used for. `found` is null while the server reads it. */
export function ImageDialog({ image, found, fault, useSettings, useAsInput, addReference, close }) {
  return html`<${Dialog} id="image-dialog" title=${image.name} close=${close}>
    <div class="opened">
      <img src=${image.url} alt=${image.name} />
      <div class="stack">
        ${!found && !fault && html`<p>Reading its settings …</p>`}
        ${fault && html`<p>${fault.code === "no_settings" ? "This file does not contain the settings of an image generator." : `Its settings cannot be read: ${fault.message}.`}</p>`}
        ${found && html`<p class="muted">Settings written by ${found.program}</p><p class="caption full">${found.settings.prompt}</p>`}
        ${found?.notes.length > 0 && html`<ul class="notes">${found.notes.map((note) => html`<li key=${note}>${note}</li>`)}</ul>`}
      </div>
    </div>
    <div class="actions end">
      ${addReference && html`<button type="button" id="as-reference" onClick=${addReference}>Use as reference</button>`}
      <button type="button" id="start-from" onClick=${useAsInput}>Start from this image</button>
      <button type="button" class="primary" id="use-settings" disabled=${!found} onClick=${useSettings}>Use its settings</button>
    </div>
  <//>`;
}

/** Texts to copy. The clipboard is available on https and on this machine only. */
export function CopyDialog({ texts, close }) {
  const [copied, setCopied] = useState(null);
  const copy = async (name, text, e) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const field = e.target.closest("section").querySelector("textarea");
      field.select();
      document.execCommand("copy");
    }
    setCopied(name);
  };
  return html`<${Dialog} id="copy-dialog" title="Copy as" close=${close}>
    <div class="stack">
      ${texts.map(
        ([name, text, note]) => html`<section class="text" key=${name}>
          <header>
            <h3>${name}</h3>
            <span class="muted">${note}</span>
            <button type="button" onClick=${(e) => copy(name, text, e)}><${Icon} name="copy" /> ${copied === name ? "Copied" : "Copy"}</button>
          </header>
          <textarea readonly rows=${Math.min(6, text.split("\n").length + 1)} aria-label=${name} value=${text}></textarea>
        </section>`,
      )}
    </div>
  <//>`;
}

/** Asks before something that cannot be undone. */
export function ConfirmDialog({ title, text, action, done, close }) {
  return html`<${Dialog} id="confirm-dialog" title=${title} close=${close}>
    <p>${text}</p>
    <div class="actions end">
      <button type="button" onClick=${close}>Keep</button>
      <button type="button" class="danger" onClick=${done}>${action}</button>
    </div>
  <//>`;
}

/** Short messages at the edge. */
export function Toasts({ toasts, dismiss }) {
  return html`<div class="toasts" role="status">
    ${toasts.map(
      (toast) => html`<div class=${`toast ${toast.kind ?? ""}`} key=${toast.id}>
        <span>${toast.text}</span>
        ${toast.action && html`<button type="button" class="link" onClick=${() => { toast.action.run(); dismiss(toast.id); }}>${toast.action.label}</button>`}
        <button type="button" class="square quiet" aria-label="Dismiss" onClick=${() => dismiss(toast.id)}><${Icon} name="close" /></button>
      </div>`,
    )}
  </div>`;
}
