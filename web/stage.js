// The large image: what is being drawn, or one of the history with what can be done with it.

import { useEffect, useState } from "preact/hooks";
import { Icon, html } from "./html.js";
import { duration, plural, sentence } from "./text.js";

const PHASES = {
  text: "Reading the prompt",
  style: "Reading the style",
  image: "Reading the image",
  modulate: "Preparing",
  references: "Reading the references",
  denoise: "Drawing",
  decode: "Finishing",
};

/** The seconds that a running job still takes; null if nothing is known. */
function secondsLeft(job, now) {
  const { step, steps } = job.progress ?? {};
  if (job.firstStep && step > job.firstStep.step) {
    const each = (job.lastStep - job.firstStep.at) / (step - job.firstStep.step) / 1000;
    return Math.max(0, each * (steps - step) - (now - job.lastStep) / 1000);
  }
  if (job.predicted) return Math.max(0, job.predicted - (now - job.predictedAt) / 1000);
  if (job.estimate && job.running) return Math.max(0, job.estimate - (now - job.running) / 1000);
  return job.estimate ?? null;
}

/** What a job is at, in words. */
function statusOf(job, now) {
  if (job.waiting) return job.waiting;
  if (job.status === "canceling") return "Stopping …";
  if (job.status === "sending") return "Sending …";
  if (job.status === "queued") {
    const ahead = job.position;
    const left = secondsLeft(job, now);
    const ready = left ? ` · ready in ${duration(left)}` : "";
    if (ahead == null) return `In the queue${ready}`;
    return ahead === 0 ? `Next in the queue${ready}` : `Number ${ahead + 1} in the queue${ready}`;
  }
  const { phase, step, steps } = job.progress ?? {};
  const what = phase === "denoise" ? `Step ${Math.min(steps, step + 1)} of ${steps}` : PHASES[phase] ?? "Starting";
  const left = secondsLeft(job, now);
  return left != null && left >= 0.5 ? `${what} · ${duration(left)} left` : what;
}

/** The time, often enough for a countdown while `on`. */
function useNow(on) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!on) return undefined;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [on]);
  return now;
}

/** A job that waits or runs. */
export function Live({ job, cancel }) {
  const now = useNow(true);
  const status = statusOf(job, now);
  const value = job.progress?.value ?? 0;
  const running = job.status === "running" || job.status === "canceling";
  return html`<figure class="live">
    <div class="canvas" style=${{ aspectRatio: `${job.width} / ${job.height}`, "--ratio": job.width / job.height }}>
      ${job.preview ? html`<img src=${job.preview} alt="Preview" />` : html`<div class="noise" aria-hidden="true"></div>`}
      <div
        class=${`bar${running && value === 0 ? " unsure" : ""}`}
        role="progressbar"
        aria-label="Progress"
        aria-valuemin="0"
        aria-valuemax="100"
        aria-valuenow=${Math.round(value * 100)}
      >
        <i style=${{ width: `${value * 100}%` }}></i>
      </div>
    </div>
    <figcaption>
      <div class="what">
        <p class="status" aria-live="polite">${status}</p>
        <p class="caption">${job.request.prompt}</p>
      </div>
      <button type="button" class="danger" id="cancel" disabled=${job.status === "canceling"} onClick=${() => cancel(job)}>
        Cancel
      </button>
    </figcaption>
  </figure>`;
}

/** The jobs behind the one that is shown. */
export function Queue({ jobs, cancel }) {
  const now = useNow(jobs.length > 0);
  if (!jobs.length) return null;
  return html`<ol class="queue" aria-label="Queue">
    ${jobs.map(
      (job) => html`<li key=${job.id}>
        <span class="place">${statusOf(job, now)}</span>
        <span class="caption" title=${job.request.prompt}>${job.request.prompt}</span>
        <button type="button" class="square quiet" aria-label=${`Cancel ${job.request.prompt}`} onClick=${() => cancel(job)}>
          <${Icon} name="close" />
        </button>
      </li>`,
    )}
  </ol>`;
}

/** A job that has failed. */
export function Failed({ job, retry, dismiss }) {
  return html`<div class="failed" role="alert">
    <div>
      <p><b>${sentence(job.fault.message)}</b></p>
      ${job.fault.hint && html`<p>Try: ${job.fault.hint}</p>`}
      <p class="caption">${job.request.prompt}</p>
    </div>
    <div class="actions">
      <button type="button" onClick=${() => retry(job)}>Try again</button>
      <button type="button" class="square quiet" aria-label="Dismiss" onClick=${() => dismiss(job)}><${Icon} name="close" /></button>
    </div>
  </div>`;
}

function Action({ icon, label, onClick, id, short }) {
  return html`<button type="button" id=${id} title=${label} aria-label=${label} onClick=${onClick}>
    <${Icon} name=${icon} /><span>${short ?? label}</span>
  </button>`;
}

/** Settings of an image in one line. */
function Facts({ image }) {
  const s = image.settings ?? image.request;
  const facts = [
    `${image.width} × ${image.height}`,
    s.steps && plural(s.steps, "step"),
    s.guidance != null && `guidance ${s.guidance}`,
    s.cfg_scale != null && s.cfg_scale !== 1 && `CFG ${s.cfg_scale}`,
    image.mask && (s.mask_padding == null ? "a part repainted" : `a part repainted, ${s.mask_padding} pixels around it`),
    image.request.outpaint && `pixels added: ${image.request.outpaint}`,
    image.control && "a control image",
    ...(s.controlnets ?? []).map((net) => `${net.name} ${net.strength}`),
    image.styles?.length > 0 && plural(image.styles.length, "style image"),
    image.references?.length > 0 && plural(image.references.length, "reference image"),
    s.strength != null && `change ${Math.round(s.strength * 100)} %`,
    ...(s.loras ?? []).map((lora) => `${lora.name} ${lora.strength}`),
    image.model,
    image.seconds && duration(image.seconds),
  ];
  return html`<p class="facts">
    ${facts.filter(Boolean).map((fact) => html`<span key=${fact}>${fact}</span>`)}
    <span>seed <code>${image.seed}</code></span>
  </p>`;
}

/** One image of the history. */
export function Shown({ image, actions, go }) {
  const { again, otherSeed, useAsInput, addReference, download, copy, load, remove } = actions;
  return html`<figure class="shown">
    <div class="canvas" style=${{ aspectRatio: `${image.width} / ${image.height}`, "--ratio": image.width / image.height }}>
      <a href=${image.url} target="_blank" rel="noopener" title="Open in full size">
        <img src=${image.url} alt=${image.request.prompt} width=${image.width} height=${image.height} />
      </a>
      ${go.newer && html`<button type="button" class="turn left" aria-label="Newer image" onClick=${go.newer}><${Icon} name="left" /></button>`}
      ${go.older && html`<button type="button" class="turn right" aria-label="Older image" onClick=${go.older}><${Icon} name="right" /></button>`}
    </div>
    <figcaption>
      <p class="caption full">${image.request.prompt}</p>
      <${Facts} image=${image} />
      <div class="actions">
        <${Action} icon="dice" id="other-seed" label="Other seed" onClick=${() => otherSeed(image)} />
        <${Action} icon="again" id="again" label="Again" onClick=${() => again(image)} />
        <${Action} icon="sliders" id="load" label="Use its settings" short="Settings" onClick=${() => load(image)} />
        <${Action} icon="input" id="as-input" label="Use as input" short="As input" onClick=${() => useAsInput(image)} />
        ${addReference && html`<${Action} icon="plus" id="reference" label="Use as reference" short="As reference" onClick=${() => addReference(image)} />`}
        <${Action} icon="download" id="download" label="Download" onClick=${() => download(image)} />
        <${Action} icon="copy" id="copy" label="Copy as command or curl" short="Copy as …" onClick=${() => copy(image)} />
        <${Action} icon="trash" id="remove" label="Delete" onClick=${() => remove(image)} />
      </div>
    </figcaption>
  </figure>`;
}

/** What a newcomer sees. */
export function Welcome({ examples, use, ready }) {
  return html`<div class="welcome">
    <div class="noise" aria-hidden="true"></div>
    <h1>Write what you want to see.</h1>
    <p>${ready ? "The prompt on this page works as it is: press Draw." : "The server is opening its model …"}</p>
    <div class="chips">
      ${examples.map((text) => html`<button type="button" class="chip" key=${text} onClick=${() => use(text)}>${text}</button>`)}
    </div>
  </div>`;
}
