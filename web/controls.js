// The form: prompt, shape, numbers, LoRAs, and the images of inputs.js.

import { useEffect, useRef } from "preact/hooks";
import { Icon, html } from "./html.js";
import { SHAPES, sizeOf } from "./form.js";
import { Control, Input, References } from "./inputs.js";
import { ControlNets, Styles } from "./nets.js";
import { bytes, duration, plural } from "./text.js";

/** A text field that grows with its text. */
function Prompt({ value, onInput, label, id, placeholder, rows }) {
  const field = useRef();
  useEffect(() => {
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight + 2}px`;
  }, [value]);
  return html`<label class="field">
    <span class=${rows > 1 ? "sr" : ""}>${label}</span>
    <textarea
      id=${id}
      ref=${field}
      rows=${rows}
      value=${value}
      placeholder=${placeholder}
      spellcheck="false"
      onInput=${(e) => onInput(e.target.value)}
    ></textarea>
  </label>`;
}

/** A number, where empty means the model's own value, which is shown. */
export function Num({ label, value, own, set, min, max, step, id, wide }) {
  return html`<label class=${wide ? "field wide" : "field"}>
    <span>${label}</span>
    <input
      id=${id}
      type="number"
      inputmode=${step === "any" ? "decimal" : "numeric"}
      value=${value}
      min=${min}
      max=${max}
      step=${step ?? 1}
      placeholder=${own ?? "auto"}
      onInput=${(e) => set(e.target.value)}
    />
  </label>`;
}

function Shapes({ form, own, set }) {
  const square = String(sizeOf("1:1", own)) === String([own?.width ?? 1024, own?.height ?? 1024]);
  const chosen = form.shape === "auto" && square ? "1:1" : form.shape;
  return html`<fieldset class="shapes">
    <legend>Shape</legend>
    <div class="chips">
      ${SHAPES.map(([name, w, h]) => {
        const size = sizeOf(name, own);
        const scale = 15 / Math.max(w, h);
        return html`<button
          type="button"
          class="chip"
          key=${name}
          aria-pressed=${chosen === name}
          title=${size.join(" × ")}
          onClick=${() => set({ shape: name })}
        >
          <i class="shape" style=${{ width: `${w * scale}px`, height: `${h * scale}px` }}></i>
          ${name}
        </button>`;
      })}
      <button
        type="button"
        class="chip"
        aria-pressed=${chosen === "custom"}
        onClick=${() => {
          const [width, height] = sizeOf(form.shape, own) ?? [own?.width ?? 1024, own?.height ?? 1024];
          set({ shape: "custom", width: form.width || String(width), height: form.height || String(height) });
        }}
      >
        Other
      </button>
    </div>
    ${form.shape === "custom" &&
    html`<div class="row">
      <${Num} label="Width" id="width" value=${form.width} min="16" max="4096" step="16" set=${(width) => set({ width })} />
      <${Num} label="Height" id="height" value=${form.height} min="16" max="4096" step="16" set=${(height) => set({ height })} />
    </div>`}
  </fieldset>`;
}

function Seed({ form, set, lastSeed }) {
  const locked = form.seed !== "";
  return html`<label class="field wide">
    <span>Seed</span>
    <span class="joined">
      <input
        id="seed"
        inputmode="numeric"
        pattern="[0-9]*"
        value=${form.seed}
        placeholder="random"
        onInput=${(e) => set({ seed: e.target.value })}
      />
      <button
        type="button"
        class="square"
        title=${locked ? "Draw with a random seed" : "Keep the seed of the last image"}
        aria-label=${locked ? "Use a random seed" : "Keep the seed of the last image"}
        aria-pressed=${locked}
        disabled=${!locked && !lastSeed}
        onClick=${() => set({ seed: locked ? "" : lastSeed })}
      >
        <${Icon} name=${locked ? "lock" : "unlock"} />
      </button>
    </span>
  </label>`;
}

function Loras({ form, set, loras }) {
  const change = (i, change) =>
    set({ loras: form.loras.map((lora, j) => (j === i ? { ...lora, ...change } : lora)) });
  const left = loras.filter((lora) => !form.loras.some((chosen) => chosen.name === lora.name));
  if (!loras.length && !form.loras.length) return null;
  return html`<fieldset class="loras">
    <legend>LoRAs</legend>
    ${form.loras.map(
      (lora, i) => html`<div class="lora" key=${lora.name}>
        <span class="name" title=${lora.name}>${lora.name}</span>
        <input
          type="range"
          min="-1"
          max="2"
          step="0.05"
          value=${lora.strength}
          aria-label=${`Strength of ${lora.name}`}
          onInput=${(e) => change(i, { strength: e.target.value })}
        />
        <output>${Number(lora.strength).toFixed(2)}</output>
        <button
          type="button"
          class="square quiet"
          aria-label=${`Remove ${lora.name}`}
          onClick=${() => set({ loras: form.loras.filter((_, j) => j !== i) })}
        >
          <${Icon} name="close" />
        </button>
      </div>`,
    )}
    ${left.length > 0 &&
    html`<select
      aria-label="Add a LoRA"
      value=""
      onChange=${(e) => {
        if (e.target.value) set({ loras: [...form.loras, { name: e.target.value, strength: "1" }] });
        e.target.value = "";
      }}
    >
      <option value="">Add a LoRA …</option>
      ${left.map((lora) => html`<option key=${lora.name} value=${lora.name}>${lora.name}</option>`)}
    </select>`}
  </fieldset>`;
}

/** What the run will cost, or why it cannot run. */
function Cost({ plan }) {
  if (!plan) return html`<p class="cost" aria-live="polite"> </p>`;
  if (plan.fault) {
    const hint = plan.fault.hint ? ` Try: ${plan.fault.hint}.` : "";
    return html`<p class="cost bad" role="alert">${plan.fault.message}${hint}</p>`;
  }
  const { seconds, peak_bytes: peak, budget_bytes: budget, time_source: source } = plan;
  const about = source === "measured" ? "" : "about ";
  const title = [
    `${plan.model} on ${plan.device}`,
    `${plural(plan.count, "image")} of ${plan.width} × ${plan.height}, ${plural(plan.steps, "step")}`,
    `memory: ${bytes(peak)} at most, of ${bytes(budget)} that may be used`,
    source === "assumed" ? "the time is a rough estimate: nothing like it was measured yet" : "",
  ];
  return html`<p class="cost" aria-live="polite" title=${title.filter(Boolean).join("\n")}>
    ${seconds != null && html`<b>${about}${duration(seconds)}</b>`}
    ${seconds != null && " · "}${bytes(peak)} of memory · ${plan.width} × ${plan.height}${plan.count > 1 ? ` × ${plan.count}` : ""}
  </p>`;
}

/** Settings of a loaded image that have no control. */
function Extra({ form, set }) {
  const names = Object.keys(form.extra);
  if (!names.length) return null;
  const shown = (name, value) =>
    name === "only" ? `image ${value + 1} of the batch` : name === "scheduler" ? "its noise levels" : `${name} ${value}`;
  return html`<div class="chips">
    ${names.map((name) => {
      const { [name]: value, ...rest } = form.extra;
      return html`<button type="button" class="chip" key=${name} title="Remove" onClick=${() => set({ extra: rest })}>
        ${shown(name, value)} <${Icon} name="close" />
      </button>`;
    })}
  </div>`;
}

export function Composer(props) {
  const { form, set, own, models, loras, plan, draw, drawing, wide, lastSeed, reset } = props;
  const known = models.find((m) => (form.model ? m.name === form.model : m.default));
  const usesGuidance = !known?.defaults || known.defaults.guidance != null || form.guidance !== "";
  const cfg = Number(form.cfg);
  const mac = /Mac|iPhone|iPad/.test(navigator.platform);
  return html`<form
    class="composer"
    onSubmit=${(e) => {
      e.preventDefault();
      draw();
    }}
  >
    <div class="prompt">
      <${Prompt} id="prompt" label="Prompt" rows="3" value=${form.prompt}
        placeholder="What the image shows" onInput=${(prompt) => set({ prompt })} />
      <div class="go">
        <button type="submit" class="primary" id="draw" disabled=${form.prompt.trim() === ""}>
          ${drawing ? "Add to the queue" : "Draw"}
          <kbd>${mac ? "⌘" : "Ctrl"} ↵</kbd>
        </button>
      </div>
      <${Cost} plan=${plan} />
    </div>
    <details class="settings" open=${wide}>
      <summary>Settings</summary>
      <div class="stack fields">
      ${models.length > 1 &&
      html`<label class="field">
        <span>Model</span>
        <select id="model" value=${form.model} onChange=${(e) => set({ model: e.target.value })}>
          ${models.map(
            (m) => html`<option key=${m.name} value=${m.default ? "" : m.name} title=${m.what}>${m.name}</option>`,
          )}
        </select>
      </label>`}
      ${props.isMasked ? html`<p class="note">The result has the size of the image to start from${form.shape === "auto" ? "" : ", whatever shape was chosen"}.</p>` : html`<${Shapes} form=${form} own=${own} set=${set} />`}
      <div class="row">
        <${Num} label="Images" id="count" value=${form.count} own="1" min="1" max="64" set=${(count) => set({ count })} />
        <${Num} label="Steps" id="steps" value=${form.steps} own=${known?.defaults?.steps} min="1" max="1000"
          set=${(steps) => set({ steps })} />
        ${usesGuidance &&
        html`<${Num} label="Guidance" id="guidance" value=${form.guidance} own=${known?.defaults?.guidance}
          min="0" max="100" step="any" set=${(guidance) => set({ guidance })} />`}
        <${Seed} form=${form} set=${set} lastSeed=${lastSeed} />
      </div>
      <${Loras} form=${form} set=${set} loras=${loras} />
      <${Input} ...${props.images} form=${form} set=${set} />
      <${Control} ...${props.control} />
      <${ControlNets} ...${props.nets} />
      <${Styles} ...${props.styles} />
      <${References} ...${props.references} />
      <details class="more" open=${form.cfg !== ""}>
        <summary>What not to draw</summary>
        <div class="stack">
        <${Prompt} label="Not in the image" rows="1" id="negative" value=${form.negative}
          placeholder="text, blur" onInput=${(negative) => set({ negative, cfg: form.cfg || (negative ? "2" : "") })} />
        <${Num} label="How strongly (CFG scale; above 1 takes twice the time)" id="cfg" value=${form.cfg} own="1 (off)"
          min="0" max="100" step="any" set=${(value) => set({ cfg: value })} />
        ${form.negative && !(cfg !== 1 && form.cfg !== "") && html`<p class="note">It has an effect only with a CFG scale other than 1.</p>`}
        </div>
      </details>
      <${Extra} form=${form} set=${set} />
      <button type="button" class="link" onClick=${reset}>Reset all settings</button>
      </div>
    </details>
  </form>`;
}
