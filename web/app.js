// The page: the form on one side, the image and the history on the other.

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Fault, base, call, getJson, getKey, pause, randomId, setKey, whenUnauthorized } from "./api.js";
import { Composer } from "./controls.js";
import { ConfirmDialog, CopyDialog, ImageDialog, KeyDialog, Toasts } from "./dialogs.js";
import {
  EMPTY, MOST_REFERENCES, asInput, chosenSize, fromSettings, partOf, repaintedSize, toRequest, usualStrength, withShape,
} from "./form.js";
import { History } from "./history.js";
import { Icon, html } from "./html.js";
import { useJobs } from "./jobs.js";
import { MaskDialog, transparencyOf } from "./mask.js";
import { MOST_STYLES, guidesOf, netsOf, stylesOf } from "./nets.js";
import { Failed, Live, Queue, Shown, Welcome } from "./stage.js";
import { MOST_IMAGES, all, clear, load, put, remove, save } from "./store.js";
import { command, curl, fileName, remoteCommand, sentence } from "./text.js";

const EXAMPLES = [
  "a fox, 3D style, on a blue background",
  "a slice of pizza, flat style, on a green background",
  "an owl, 3D style, on a purple background",
  "a red apple, flat style, on a white background",
];

const withUrl = (image) => ({ ...image, url: URL.createObjectURL(image.blob) });

/** A value that is kept from visit to visit. */
function useKept(name, fallback) {
  const [value, setValue] = useState(() => {
    const kept = load(name, fallback);
    return typeof fallback === "object" ? { ...fallback, ...kept } : kept;
  });
  useEffect(() => save(name, value), [value]);
  return [value, setValue];
}

/** Whether the window is wide enough for two columns. */
function useWide() {
  const query = useRef(matchMedia("(min-width: 900px)")).current;
  const [wide, setWide] = useState(query.matches);
  useEffect(() => {
    const change = () => setWide(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  return wide;
}

/** Models, LoRAs, ControlNets, and whether the server answers. They are asked for until it does. */
function useServer(attempt) {
  const [server, setServer] = useState({ models: [], loras: [], controlnets: [], state: "asking" });
  useEffect(() => {
    let stop = false;
    (async () => {
      for (let tries = 0; !stop; tries += 1) {
        try {
          const [{ models }, { loras }, { controlnets }] = await Promise.all([
            getJson("api/v2/models"),
            getJson("api/v2/loras"),
            getJson("api/v2/controlnets"),
          ]);
          if (stop) return;
          const ready = models.some((m) => m.defaults);
          setServer({ models, loras, controlnets, state: ready ? "ready" : "opening" });
          if (ready) return;
        } catch (e) {
          if (stop || e.status === 401) return;
          setServer((s) => ({ ...s, state: "away" }));
        }
        await pause(Math.min(5000, 500 * 2 ** tries));
      }
    })();
    return () => {
      stop = true;
    };
  }, [attempt]);
  return server;
}

/** What stands for the images of a request in the question what it would cost. */
function standIns({ input, control, references, styles }) {
  const size = (image) => `${image.width}x${image.height}`;
  return {
    init_size: input ? size(input) : undefined,
    mask_box: input?.mask?.box,
    control_size: control ? size(control) : undefined,
    style_count: styles.length || undefined,
    reference_sizes: references.length ? references.map(size) : undefined,
  };
}

/** What the request would cost. It is asked for when the user pauses. */
function usePlan(request, images, renewed) {
  const [plan, setPlan] = useState(null);
  const { prompt, seed, negative, styles, ...rest } = request;
  // Only the LoRA tags of a prompt matter.
  const tags = prompt.match(/<[^>]*>/g) ?? [];
  const asked = JSON.stringify({ ...rest, prompt: tags.join(" ") || "x", ...standIns(images) });
  useEffect(() => {
    const controller = new AbortController();
    const timer = setTimeout(async () => {
      for (;;) {
        try {
          const json = { request: JSON.parse(asked) };
          setPlan(await getJson("api/v2/plan", { json, signal: controller.signal }));
          return;
        } catch (e) {
          if (controller.signal.aborted) return;
          if (e instanceof Fault && (e.status === 422 || e.status === 404 || e.status === 507)) {
            setPlan({ fault: { message: sentence(e.message), hint: e.hint } });
            return;
          }
          // It is known when the server has drawn what it draws now.
          setPlan(null);
          if (e.status !== 503) return;
          await pause(3000);
          if (controller.signal.aborted) return;
        }
      }
    }, 250);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [asked, renewed]);
  return plan;
}

const THEMES = { auto: "light", light: "dark", dark: "auto" };
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };

function App() {
  const wide = useWide();
  const [theme, setTheme] = useKept("theme", "auto");
  const [form, setForm] = useKept("form", EMPTY);
  const [input, setInput] = useState(null);
  const [control, setControl] = useState(null);
  const [references, setReferences] = useState([]);
  const [nets, setNets] = useState([]);
  const [styles, setStyles] = useState([]);
  const [images, setImages] = useState([]);
  // The id of an image; null: what is being drawn, or the newest image.
  const [current, setCurrent] = useState(null);
  const [dialog, setDialog] = useState(null);
  const [toasts, setToasts] = useState([]);
  const [attempt, setAttempt] = useState(0);
  const server = useServer(attempt);
  const picker = useRef();
  const stage = useRef();

  useEffect(() => {
    document.documentElement.dataset.theme = theme;
  }, [theme]);

  const dismiss = (id) => setToasts((toasts) => toasts.filter((t) => t.id !== id));
  const toast = (text, kind, action) => {
    const id = randomId();
    setToasts((toasts) => [...toasts.slice(-3), { id, text, kind, action }]);
    setTimeout(() => dismiss(id), kind === "bad" ? 12000 : 5000);
  };

  // History.
  useEffect(() => {
    all("images").then((rows) => {
      rows.slice(MOST_IMAGES).forEach((row) => remove("images", row.id));
      setImages(rows.slice(0, MOST_IMAGES).map(withUrl));
    });
  }, []);
  const onImages = (rows) => {
    setImages((images) => [...rows.map(withUrl), ...images.filter((i) => rows.every((r) => r.id !== i.id))]);
  };
  const jobs = useJobs(onImages, (text) => toast(text, "bad"));
  const active = jobs.jobs.filter((job) => job.status !== "failed");
  const failed = jobs.jobs.filter((job) => job.status === "failed");

  // Keys.
  useEffect(() => {
    whenUnauthorized((fault, had) => setDialog((d) => d ?? { kind: "key", wrong: had }));
  }, []);

  const model = server.models.find((m) => (form.model ? m.name === form.model : m.default));
  const own = model?.defaults;
  const reads = Boolean(model?.reads_references);
  const part = partOf(form, input);
  const isMasked = Boolean(input?.mask || part.outpaint);
  const strength = form.strength === "" ? usualStrength(input, part, model) : Number(form.strength);
  const request = { ...toRequest(form, own), ...part, ...guidesOf(nets, styles) };
  if (input) request.strength = strength;
  if (isMasked) {
    // The result has the size of the image.
    delete request.width;
    delete request.height;
  }
  const plan = usePlan(request, { input, control, references, styles }, images.length + attempt + server.state);
  // Stays while a plan is refused.
  const device = useRef(null);
  device.current = plan?.device ?? device.current;
  const set = (change) => setForm((form) => ({ ...form, ...change }));

  const start = (request, pictures, size) => {
    const estimate = plan && !plan.fault ? plan.seconds : null;
    // Without a size, the image gets that of the first reference.
    const first = pictures.references[0];
    const [width, height] = size ?? (first ? [first.width, first.height] : [own?.width ?? 1, own?.height ?? 1]);
    jobs.start(request, pictures, { width, height, estimate });
    setCurrent(null);
    if (!wide) stage.current?.scrollIntoView({ behavior: "smooth", block: "start" });
  };
  const draw = () => {
    if (form.prompt.trim() === "") return;
    const blind = nets.find((net) => !net.picture);
    if (blind) {
      toast(`Open the image that ${blind.name} is to see.`, "bad");
      return;
    }
    const pictures = { init: input?.blob ?? null, mask: input?.mask ?? null, control: control?.blob ?? null, references,
      nets: nets.map((net) => net.picture), styles };
    start(request, pictures, isMasked ? repaintedSize(input, part) : chosenSize(form, own));
  };

  // Images that are opened, dropped or pasted.
  const open = async (file) => {
    const image = { name: file.name || "image", url: URL.createObjectURL(file), blob: file };
    setDialog({ kind: "image", image });
    const settle = (change) => setDialog((d) => (d?.image === image ? { ...d, ...change } : d));
    try {
      settle({ found: await (await call("api/v2/settings", { body: file })).json() });
    } catch (fault) {
      settle({ fault });
    }
  };
  /** An image that is opened, with its size; null with a message if the browser cannot read it. */
  const picture = async (blob, name) => {
    try {
      const file = await asInput(blob);
      const { width, height } = await createImageBitmap(file);
      return { id: randomId(), blob: file, url: URL.createObjectURL(file), name, width, height };
    } catch {
      toast("This browser cannot read the image: save it as PNG or JPEG first.", "bad");
      return null;
    }
  };
  const startFrom = async (blob, name, mask) => {
    const opened = await picture(blob, name);
    if (!opened) return;
    const known = mask && { ...mask, url: URL.createObjectURL(mask.blob) };
    const transparent = known ? null : await transparencyOf(opened.blob, opened.width, opened.height);
    setInput({ ...opened, mask: known ?? (transparent && { ...transparent, isTransparent: true }) });
    toast(transparent ? "The transparent pixels of this image are painted next." : "The next image starts from this one.");
  };
  const openControl = async (blob, name) => {
    const opened = await picture(blob, name);
    if (opened) setControl(opened);
  };
  const addReference = async (blob, name) => {
    const opened = await picture(blob, name);
    if (!opened) return;
    setReferences((list) => [...list, opened].slice(0, MOST_REFERENCES));
    toast("The model looks at this image from now on.");
  };
  const addStyle = async (blob, name) => {
    const opened = await picture(blob, name);
    if (opened) setStyles((list) => [...list, { ...opened, strength: "1" }].slice(0, MOST_STYLES));
  };
  /** Fills the form; `kept` are the images of ControlNets and styles, as far as they are there. */
  const apply = (settings, seedText, kept = { nets: [], styles: [] }) => {
    const names = server.models.map((m) => m.name);
    const next = withShape(fromSettings(settings, seedText, names), own);
    const known = new Set(server.loras.map((l) => l.name));
    const missing = next.loras.filter((l) => !known.has(l.name)).map((l) => l.name);
    setForm(next);
    setNets(netsOf(settings, kept.nets));
    setStyles(stylesOf(settings, kept.styles));
    const absent = (settings.style_strengths ?? []).length;
    if (absent && !kept.styles.length) toast(`It was drawn with ${absent} style images, which its file does not contain.`);
    if (settings.model && !names.includes(settings.model)) {
      toast(`It was made with ${settings.model}, which this server does not have.`);
    }
    if (missing.length) toast(`This server does not have the LoRA ${missing.join(", ")}.`, "bad");
  };

  // Keyboard, drops and pastes, wherever they happen.
  const latest = useRef({});
  latest.current = { draw, open, images, current, setCurrent, dialog };
  const [dragging, setDragging] = useState(false);
  useEffect(() => {
    const keydown = (e) => {
      const { draw, images, current, setCurrent, dialog } = latest.current;
      if (dialog) return;
      if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
        e.preventDefault();
        draw();
        return;
      }
      if (e.target.matches("input, textarea, select") || e.altKey || e.ctrlKey || e.metaKey) return;
      const at = images.findIndex((image) => image.id === (current ?? images[0]?.id));
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1 }[e.key];
      if (to !== undefined && images[to]) {
        e.preventDefault();
        setCurrent(images[to].id);
      } else if (e.key === "/") {
        e.preventDefault();
        document.getElementById("prompt").focus();
      }
    };
    const file = (transfer) => [...(transfer?.files ?? [])].find((f) => f.type.startsWith("image/"));
    const paste = (e) => {
      const image = file(e.clipboardData);
      if (image) latest.current.open(image);
    };
    const hasFiles = (e) => [...(e.dataTransfer?.types ?? [])].includes("Files");
    const over = (e) => {
      if (!hasFiles(e)) return;
      e.preventDefault();
      setDragging(true);
    };
    const leave = (e) => !e.relatedTarget && setDragging(false);
    const drop = (e) => {
      if (!hasFiles(e)) return;
      e.preventDefault();
      setDragging(false);
      const image = file(e.dataTransfer);
      if (image) latest.current.open(image);
      else toast("This is not an image.", "bad");
    };
    const all = { keydown, paste, dragover: over, dragleave: leave, drop };
    Object.entries(all).forEach(([name, f]) => addEventListener(name, f));
    return () => Object.entries(all).forEach(([name, f]) => removeEventListener(name, f));
  }, []);

  const fileOf = (image) => fileName(image.request.prompt, image.seed, "png", image.number);
  /** The request that gives an image again: of a batch only this image. */
  const requestOf = (image) => {
    const { request } = image;
    const isBatch = request.count > 1 && request.only == null;
    return isBatch ? { ...request, only: image.number } : request;
  };
  /** The images that an image of the history was drawn from. */
  const picturesOf = ({ init, mask, control, references, nets, styles }) => (
    { init: init ?? null, mask: mask ?? null, control: control ?? null, references: references ?? [], nets: nets ?? [], styles: styles ?? [] });
  const actions = {
    again: (image) => start(requestOf(image), picturesOf(image), [image.width, image.height]),
    otherSeed: (image) => {
      const { seed, only, ...rest } = image.request;
      start(rest, picturesOf(image), [image.width, image.height]);
    },
    useAsInput: (image) => startFrom(image.blob, fileOf(image)),
    addReference: reads ? (image) => addReference(image.blob, fileOf(image)) : null,
    load: (image) => {
      const kept = (list) => (list ?? []).map(withUrl);
      apply({ ...image.request, count: image.request.count ?? 1 }, image.seed, { nets: kept(image.nets), styles: kept(image.styles) });
      if (image.init) startFrom(image.init, "input", image.mask);
      if (image.control) openControl(image.control, "control");
      setReferences(kept(image.references));
      document.getElementById("prompt").focus();
    },
    download: (image) => {
      const link = document.createElement("a");
      link.href = image.url;
      link.download = fileOf(image);
      link.click();
    },
    copy: (image) => {
      const request = { ...requestOf(image), init: image.init ? "input.png" : undefined,
        mask: image.mask ? "mask.png" : undefined, control: image.control ? "control.png" : undefined,
        controlnets: image.request.controlnets?.map((net, i) => ({ ...net, image: `controlnet-${i + 1}.png` })),
        styles: image.request.styles?.map((style, i) => ({ ...style, image: `style-${i + 1}.png` })),
        references: image.references?.length ? image.references.map((_, i) => `reference-${i + 1}.png`) : undefined };
      setDialog({ kind: "copy", request, file: fileOf(image) });
    },
    remove: (image) => {
      const at = images.indexOf(image);
      setImages(images.filter((i) => i !== image));
      setCurrent(images[at + 1]?.id ?? images[at - 1]?.id ?? null);
      remove("images", image.id);
      const undo = async () => {
        const { url, ...row } = image;
        await put("images", row);
        setImages((images) => [...images, image].sort((a, b) => b.created - a.created || a.number - b.number));
        setCurrent(image.id);
      };
      toast("The image was deleted.", null, { label: "Undo", run: undo });
    },
  };

  const at = images.findIndex((image) => image.id === current);
  // Unless an image was chosen: what is being drawn, else the newest image.
  const shown = at >= 0 ? images[at] : active.length ? null : images[0];
  const showsLive = active.length > 0 && !shown;
  const position = shown ? images.indexOf(shown) : -1;
  const go = {
    newer: position > 0 ? () => setCurrent(images[position - 1].id) : null,
    older: position >= 0 && position < images.length - 1 ? () => setCurrent(images[position + 1].id) : null,
  };
  const close = () => setDialog(null);
  const key = getKey();

  return html`
    <header class="top">
      <h1><img src="page/icon.svg" alt="" /> flux-fast</h1>
      <p class=${`state ${server.state}`}>
        <i></i>${{ asking: "connecting", opening: "opening the model", away: "the server does not answer", ready: device.current ?? "ready" }[server.state]}
      </p>
      <button type="button" class="square quiet" aria-label="Key" title="Key" onClick=${() => setDialog({ kind: "key" })}><${Icon} name="key" /></button>
      <button type="button" class="square quiet" id="theme" aria-label=${`Colours: ${theme}`} title=${`Colours: ${theme}`} onClick=${() => setTheme(THEMES[theme])}>
        <${Icon} name=${THEME_ICONS[theme]} />
      </button>
    </header>
    <main>
      <${Composer}
        form=${form} set=${set} own=${own} models=${server.models} loras=${server.loras} plan=${plan}
        draw=${draw} drawing=${active.length > 0} wide=${wide} lastSeed=${images[0]?.seed}
        isMasked=${isMasked}
        images=${{ input, setInput, strength, isMasked, pick: () => picker.current.click(),
          paint: () => setDialog({ kind: "mask" }), setMask: (mask) => setInput({ ...input, mask }) }}
        control=${{ control, set: setControl, needed: Boolean(model?.needs_control), pick: openControl }}
        nets=${{ list: nets, set: setNets, listed: server.controlnets, reads: Boolean(model?.reads_controlnets), pick: picture }}
        styles=${{ list: styles, set: setStyles, reads: Boolean(model?.reads_styles), add: addStyle }}
        references=${{ list: references, set: setReferences, reads, add: addReference }}
        reset=${() => {
          setForm({ ...EMPTY, prompt: form.prompt });
          setInput(null);
          setControl(null);
          setReferences([]);
          setNets([]);
          setStyles([]);
        }}
      />
      <div class="side" ref=${stage}>
        ${failed.map((job) => html`<${Failed} key=${job.id} job=${job} dismiss=${jobs.dismiss}
          retry=${(job) => {
            jobs.dismiss(job);
            start(job.request, picturesOf(job), [job.width, job.height]);
          }} />`)}
        ${showsLive && html`<${Live} job=${active[0]} cancel=${jobs.cancel} />`}
        ${!showsLive && active.length > 0 && html`<button type="button" class="back" onClick=${() => setCurrent(null)}>Show what is being drawn</button>`}
        <${Queue} jobs=${active.slice(1)} cancel=${jobs.cancel} />
        ${shown && html`<${Shown} image=${shown} actions=${actions} go=${go} />`}
        ${!shown && !active.length && html`<${Welcome} examples=${EXAMPLES} ready=${server.state === "ready"} use=${(prompt) => {
          set({ prompt });
          document.getElementById("prompt").focus();
        }} />`}
        <${History} images=${images} current=${shown?.id} select=${(id) => {
          setCurrent(id);
          stage.current.scrollIntoView({ behavior: "smooth", block: "start" });
        }} clear=${() => setDialog({ kind: "clear" })} />
      </div>
    </main>
    <input ref=${picker} id="file" class="sr" type="file" accept="image/*" tabindex="-1" aria-label="Open an image" onChange=${(e) => {
      if (e.target.files[0]) open(e.target.files[0]);
      e.target.value = "";
    }} />
    ${dragging && html`<div class="dragging"><p>Drop the image here</p></div>`}
    ${dialog?.kind === "key" && html`<${KeyDialog} wrong=${dialog.wrong} has=${Boolean(key)} close=${close} done=${(key, keep) => {
      setKey(key, keep);
      setDialog(null);
      setAttempt((n) => n + 1);
    }} />`}
    ${dialog?.kind === "image" && html`<${ImageDialog} ...${dialog} close=${close}
      useSettings=${() => {
        const { settings, model, index, seed_text: seed } = dialog.found;
        const only = settings.count > 1 && settings.only == null ? index : settings.only;
        apply({ ...settings, model: model ?? settings.model, only }, seed);
        close();
      }}
      useAsInput=${() => {
        startFrom(dialog.image.blob, dialog.image.name);
        close();
      }}
      addReference=${reads ? () => {
        addReference(dialog.image.blob, dialog.image.name);
        close();
      } : null} />`}
    ${dialog?.kind === "mask" && input && html`<${MaskDialog} input=${input} close=${close} fail=${(text) => toast(text, "bad")} done=${(mask) => {
      setInput({ ...input, mask });
      close();
    }} />`}
    ${dialog?.kind === "copy" && html`<${CopyDialog} close=${close} texts=${[
      ["Command", command(dialog.request, dialog.file), "draws on your machine"],
      ["Remote command", remoteCommand(dialog.request, dialog.file, base(), Boolean(key)), "draws on this server"],
      ["curl", curl(dialog.request, dialog.file, base(), Boolean(key)), "draws on this server"],
    ]} />`}
    ${dialog?.kind === "clear" && html`<${ConfirmDialog} title="Clear the history?" text=${`${images.length} images are deleted from this browser.`} action="Delete all" close=${close} done=${() => {
      clear("images");
      setImages([]);
      setCurrent(null);
      close();
    }} />`}
    <${Toasts} toasts=${toasts} dismiss=${dismiss} />
  `;
}

render(html`<${App} />`, document.getElementById("app"));
