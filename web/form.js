// What the user has chosen, as a request, and back.

/** What a newcomer sees: Ctrl+Enter draws it. */
export const FIRST_PROMPT = "a fox, 3D style, on a blue background";

/** Shapes as width and height. */
export const SHAPES = [
  ["1:1", 1, 1],
  ["4:3", 4, 3],
  ["3:4", 3, 4],
  ["3:2", 3, 2],
  ["2:3", 2, 3],
  ["16:9", 16, 9],
  ["9:16", 9, 16],
];

/** Sides are multiples of this, in pixels. */
const UNIT = 16;
const MAX_SIDE = 4096;
/** The most pixels of an image to start from; larger ones are made smaller before they are sent. */
const MAX_INPUT = 4e6;

/** The most reference images of a request. */
export const MOST_REFERENCES = 10;

/** The sides of an image to which pixels are added, in the order of the server. */
export const SIDES = ["left", "top", "right", "bottom"];

/** Empty texts mean the model's own values. */
export const EMPTY = {
  prompt: FIRST_PROMPT,
  negative: "",
  shape: "auto",
  width: "",
  height: "",
  count: "1",
  steps: "",
  seed: "",
  guidance: "",
  cfg: "",
  strength: "",
  blur: "",
  padding: "",
  left: "",
  top: "",
  right: "",
  bottom: "",
  loras: [],
  model: "",
  /** Settings without a control of their own, from an image: shift, scheduler, only. */
  extra: {},
};

/** Width and height of a shape, at the number of pixels of the model's own size. */
export function sizeOf(shape, own) {
  const found = SHAPES.find(([name]) => name === shape);
  const area = (own?.width ?? 1024) * (own?.height ?? 1024);
  if (!found) return null;
  const [, w, h] = found;
  const side = (pixels) => Math.min(MAX_SIDE, Math.max(UNIT, Math.round(pixels / UNIT) * UNIT));
  return [side(Math.sqrt((area * w) / h)), side(Math.sqrt((area * h) / w))];
}

/** Width and height of the form; null for the model's own. */
export function chosenSize(form, own) {
  if (form.shape === "custom") return [Number(form.width), Number(form.height)];
  return sizeOf(form.shape, own);
}

/** The form as the request of a job, without its image. */
export function toRequest(form, own) {
  const request = { prompt: form.prompt };
  const number = (text) => (String(text).trim() === "" ? null : Number(text));
  const add = (name, value) => {
    if (value != null && value !== "" && !Number.isNaN(value)) request[name] = value;
  };
  add("model", form.model);
  add("negative", form.cfg.trim() === "" ? "" : form.negative);
  add("steps", number(form.steps));
  add("guidance", number(form.guidance));
  add("cfg_scale", number(form.cfg));
  add("seed", form.seed.trim());
  const size = chosenSize(form, own);
  if (size) [request.width, request.height] = size;
  if (number(form.count) > 1) request.count = number(form.count);
  const loras = form.loras.filter((lora) => lora.name);
  if (loras.length) {
    request.loras = loras.map(({ strength, ...lora }) => ({ ...lora, strength: Number(strength) }));
  }
  return { ...request, ...form.extra };
}

/** What a request says about the part that is repainted of `input`. */
export function partOf(form, input) {
  if (!input) return {};
  const part = {};
  const sides = SIDES.map((side) => Number(form[side]) || 0);
  if (sides.some((pixels) => pixels > 0)) part.outpaint = sides.join(",");
  if (!input.mask && !part.outpaint) return {};
  if (form.blur !== "") part.mask_blur = Number(form.blur);
  if (form.padding !== "") part.mask_padding = Number(form.padding);
  return part;
}

/** How far the image to start from is left, unless the user says so: all of it where nothing is seen. */
export function usualStrength(input, part, model) {
  return part.outpaint || input?.mask?.isTransparent || model?.needs_mask ? 1 : 0.75;
}

/** The size of the result of a request of which a part is repainted. */
export function repaintedSize(input, part) {
  const [left, top, right, bottom] = (part.outpaint ?? "0,0,0,0").split(",").map(Number);
  return [input.width + left + right, input.height + top + bottom];
}

/** The form of a request, or of the settings of an image. */
export function fromSettings(settings, seedText, names) {
  const text = (value) => (value == null ? "" : String(value));
  const form = { ...EMPTY, prompt: settings.prompt ?? "", extra: {} };
  form.negative = text(settings.negative);
  form.steps = text(settings.steps);
  form.guidance = text(settings.guidance);
  form.cfg = settings.cfg_scale == null || settings.cfg_scale === 1 ? "" : text(settings.cfg_scale);
  form.seed = text(seedText ?? settings.seed);
  form.count = text(settings.count ?? 1);
  if (settings.width && settings.height) {
    Object.assign(form, { shape: "custom", width: text(settings.width), height: text(settings.height) });
  }
  form.strength = text(settings.strength);
  form.blur = text(settings.mask_blur || "");
  form.padding = text(settings.mask_padding);
  const sides = settings.outpaint?.split(",") ?? [];
  sides.forEach((pixels, i) => (form[SIDES[i]] = Number(pixels) > 0 ? pixels : ""));
  form.loras = (settings.loras ?? []).map((lora) => ({ ...lora, strength: text(lora.strength) }));
  form.model = names.includes(settings.model) ? settings.model : "";
  for (const name of ["shift", "scheduler", "only"]) {
    if (settings[name] != null) form.extra[name] = settings[name];
  }
  return form;
}

/** `form` with the shape that its size has, if it is one of the list. */
export function withShape(form, own) {
  if (form.shape !== "custom") return form;
  const is = ([name]) => String(sizeOf(name, own)) === `${form.width},${form.height}`;
  const shape = SHAPES.find(is);
  return shape ? { ...form, shape: shape[0] } : form;
}

/** A file as a data URI. */
export function dataUri(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** An image to start from, at most as large as the server takes. */
export async function asInput(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.sqrt(MAX_INPUT / (bitmap.width * bitmap.height));
  if (scale >= 1 && /^image\/(png|jpeg|webp)$/.test(blob.type)) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * Math.min(1, scale));
  canvas.height = Math.round(bitmap.height * Math.min(1, scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
