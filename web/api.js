// Talks to the server. Addresses are relative, so that the page works below a path of a proxy.

const KEY = "flux-fast-key";

/** The address of the server, without a slash at the end. */
export const base = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

function storages() {
  // Reading `localStorage` may fail where a browser blocks site data.
  try {
    return [localStorage, sessionStorage];
  } catch {
    return [];
  }
}

let memory = null;

/** The key that the user gave, or null. */
export function getKey() {
  for (const storage of storages()) {
    const key = storage.getItem(KEY);
    if (key) return key;
  }
  return memory;
}

/** Keeps a key: on this device, or until the tab is closed. Null forgets it. */
export function setKey(key, keep) {
  memory = key;
  const [local, session] = storages();
  if (!local) return;
  local.removeItem(KEY);
  session.removeItem(KEY);
  if (key) (keep ? local : session).setItem(KEY, key);
}

/** What went wrong, in words. `code` is the server's, or `unreachable`. */
export class Fault extends Error {
  constructor(status, body, retryAfter) {
    super(body?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = body?.code ?? String(status);
    this.parameter = body?.parameter ?? null;
    this.hint = body?.hint ?? null;
    this.retryAfter = retryAfter;
  }
}

/** Whether the same request may succeed later. */
export const isTemporary = (e) =>
  e instanceof Fault && [0, 408, 429, 502, 503, 504].includes(e.status);

let onUnauthorized = () => {};

/** Calls `f` when the server needs a key, or refuses the one that was sent. */
export function whenUnauthorized(f) {
  onUnauthorized = f;
}

/** Sends a request; the answer has a good status. */
export async function call(path, { json, body, method, headers = {}, signal } = {}) {
  const sent = new Headers(headers);
  const key = getKey();
  if (key) sent.set("Authorization", `Bearer ${key}`);
  if (json !== undefined) {
    sent.set("Content-Type", "application/json");
    body = JSON.stringify(json);
  }
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: sent,
      body,
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new Fault(0, { code: "unreachable", message: "the server does not answer" });
  }
  if (response.ok) return response;
  const after = Number(response.headers.get("retry-after"));
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Something between here and the server has answered.
  }
  const fault = new Fault(response.status, error, after > 0 ? after : null);
  if (fault.status === 401) onUnauthorized(fault, Boolean(key));
  throw fault;
}

/** The JSON of an answer. */
export const getJson = async (path, options) => (await call(path, options)).json();

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** 32 random hexadecimal digits. `crypto.randomUUID` exists on https only. */
export function randomId() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (b) => b.toString(16).padStart(2, "0")).join("");
}

/**
 * Sends a job. While the server is full or away it is sent again, with the same idempotency key;
 * `onWait` receives the fault and the seconds.
 */
export async function submit(request, onWait) {
  const headers = { "Idempotency-Key": randomId() };
  for (let tries = 0; ; tries += 1) {
    try {
      return await getJson("api/v2/jobs", { json: { request }, headers });
    } catch (e) {
      if (!isTemporary(e) || tries >= 8) throw e;
      const backoff = Math.min(30, 0.5 * 2 ** tries);
      const seconds = Math.max(e.retryAfter ?? 0, backoff * (0.5 + Math.random() / 2));
      onWait(e, seconds);
      await pause(seconds * 1000);
    }
  }
}

/** The events of a job as they arrive: `{id, name, data}`. */
export async function* events(id, lastId, signal) {
  const headers = { Accept: "text/event-stream" };
  if (lastId) headers["Last-Event-ID"] = lastId;
  const response = await call(`api/v2/jobs/${id}/events`, { headers, signal });
  if (response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = { id: null, name: "message", data: "" };
      for (const line of text.slice(0, end).split("\n")) {
        const [, field, content] = line.match(/^([a-z]+): ?(.*)$/) ?? [];
        if (field === "id") event.id = content;
        else if (field === "event") event.name = content;
        else if (field === "data") event.data += content;
      }
      text = text.slice(end + 2);
      if (event.data) yield { ...event, data: JSON.parse(event.data) };
    }
  }
}
