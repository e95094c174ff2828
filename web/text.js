// Numbers in words, and requests as commands.

/** Bytes with three digits: 1.25 GB. */
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) {
    n /= 1000;
    i += 1;
  }
  return `${i === 0 ? Math.round(n) : n.toPrecision(3)} ${units[i]}`;
}

/** A time for people: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds) {
  if (seconds < 9.95) return `${Math.max(0.1, seconds).toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${s / 60} min`;
  const min = Math.round(s / 60) % 60;
  return min ? `${Math.floor(s / 3600)} h ${min} min` : `${Math.floor(s / 3600)} h`;
}

/** `count` with its noun. */
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** The first letter large, and a full stop. */
export const sentence = (text) =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** A word for a POSIX shell. */
export function quoted(word) {
  const text = String(word);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A name for a file, from a prompt: a-fox-3d-style-7.png. */
export function fileName(prompt, seed, format, number) {
  const words = prompt.toLowerCase().replace(/<[^>]*>/g, " ").match(/[\p{L}\p{N}]+/gu) ?? ["flux"];
  const ending = format === "jpeg" ? "jpg" : format;
  return `${words.slice(0, 6).join("-").slice(0, 60)}-${seed}${number ? `-${number + 1}` : ""}.${ending}`;
}

/** The options of `flux-fast` for a request of the server's API. */
function options(request) {
  const words = [];
  const add = (option, value) => value != null && value !== "" && words.push(option, quoted(value));
  add("--model", request.model);
  add("--negative", request.negative);
  add("--steps", request.steps);
  if (request.width && request.height) add("--size", `${request.width}x${request.height}`);
  add("--seed", request.seed);
  add("-n", request.count > 1 ? request.count : null);
  add("--guidance", request.guidance);
  add("--cfg-scale", request.cfg_scale);
  add("--shift", request.shift);
  for (const lora of request.loras ?? []) {
    const text = lora.text_strength == null ? "" : `:${lora.text_strength}`;
    add("--lora", `${lora.name}:${lora.strength}${text}`);
  }
  for (const { name, image, strength, start, end, mode, edges, thresholds } of request.controlnets ?? []) {
    const range = start > 0 || end < 1 ? `:${start}-${end}` : "";
    const found = edges ? `,edges${thresholds ? `=${thresholds.join("-")}` : ""}` : "";
    add("--controlnet", `${name}:${image}:${strength}${range}${mode ? `,mode=${mode}` : ""}${found}`);
  }
  for (const { image, strength } of request.styles ?? []) add("--style", `${image}:${strength}`);
  for (const file of request.references ?? []) words.push("--reference", file);
  if (request.control) words.push("--control", request.control);
  if (request.init) {
    words.push("--init-img", request.init);
    add("--mask", request.mask);
    add("--mask-blur", request.mask_blur);
    add("--mask-padding", request.mask_padding);
    add("--outpaint", request.outpaint);
    add("--strength", request.strength);
  }
  return words;
}

/** A prompt as an argument: one that begins like an option, or is a single word, needs `-p`. */
function promptWords(prompt) {
  return /^-|^\S+$/.test(prompt) ? ["-p", quoted(prompt)] : [quoted(prompt)];
}

/** The request as a command of this program. */
export function command(request, file) {
  const words = [...promptWords(request.prompt), ...options(request), "-o", quoted(file)];
  return `flux-fast ${words.join(" ")}`;
}

/** The request as a command that sends it to this server. */
export function remoteCommand(request, file, base, hasKey) {
  const words = [...promptWords(request.prompt), ...options(request), "-o", quoted(file)];
  const key = hasKey ? 'FLUX_FAST_KEY="$KEY" ' : "";
  return `${key}flux-fast remote ${quoted(base)} ${words.join(" ")}`;
}

/** The request as curl: sends the job, waits for the end of its events, loads the image. */
export function curl(request, file, base, hasKey) {
  const auth = hasKey ? ' -H "Authorization: Bearer $KEY"' : "";
  const call = `curl -sSf${auth}`;
  const jobs = `${base}/api/v2/jobs`;
  const lines = [];
  const body = { ...request };
  let data = `-d ${quoted(JSON.stringify({ request: body }))}`;
  // Images do not fit on a command line.
  const files = [];
  const mark = (file) => `@IMAGE${files.push(file) - 1}@`;
  for (const name of ["init", "mask", "control"]) {
    if (request[name]) body[name] = mark(request[name]);
  }
  if (request.references) body.references = request.references.map(mark);
  for (const name of ["controlnets", "styles"]) {
    if (request[name]) body[name] = request[name].map((item) => ({ ...item, image: mark(item.image) }));
  }
  if (files.length) {
    // In the order in which they are written.
    const text = JSON.stringify({ request: body });
    const parts = text.split(/@IMAGE\d+@/);
    const order = [...text.matchAll(/@IMAGE(\d+)@/g)].map(([, i]) => files[i]);
    const words = parts.map((part, i) => `printf %s ${quoted(part)};${i < order.length ? ` base64 < ${order[i]};` : ""}`);
    lines.push(`{ ${words.join(" ")} } | tr -d '\\n' > request.json`);
    data = "-d @request.json";
  }
  const json = `-H 'Content-Type: application/json'`;
  lines.push(`id=$(${call} ${quoted(jobs)} ${json} ${data} | sed 's/.*"id":"\\([0-9a-f]*\\)".*/\\1/')`);
  lines.push(`${call} -N ${jobs}/$id/events > /dev/null`);
  lines.push(`${call} ${jobs}/$id/images/0 -o ${quoted(file)}`);
  return lines.join("\n");
}
