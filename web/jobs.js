// The jobs of this page: sent, followed by their events, and turned into images of the history.

import { useEffect, useRef, useState } from "preact/hooks";
import { Fault, call, events, getJson, isTemporary, pause, randomId, submit } from "./api.js";
import { dataUri } from "./form.js";
import { all, put, remove } from "./store.js";
import { duration, sentence } from "./text.js";

/** How often the place in the queue is asked for, in milliseconds. */
const POLL = 2000;
/** For how long after a connection the server may be repeating earlier events, in milliseconds. */
const REPEATS = 500;
const OVER = ["succeeded", "failed", "canceled", "expired"];

/** What is stored of a job. */
const stored = ({ id, created, request, init, mask, control, references, nets, styles, width, height, estimate, fault, status }) => ({
  id, created, request, init, mask, control, references, nets, styles, width, height, estimate, fault, status,
});

const isSent = (job) => job.status !== "sending" && job.status !== "failed";

/**
 * The jobs that are not over, oldest first, and those that have failed. `onImages` receives the
 * images of a job that has succeeded, `onGone` a sentence about one that has not.
 */
export function useJobs(onImages, onGone) {
  const [jobs, setJobs] = useState([]);
  // What the loops below see: always the newest list and functions.
  const now = useRef({ jobs: [], ending: new Set() });
  Object.assign(now.current, { onImages, onGone });
  const set = (change) => {
    now.current.jobs = change(now.current.jobs);
    setJobs(now.current.jobs);
  };
  const update = (id, change) => set((jobs) => jobs.map((j) => (j.id === id ? { ...j, ...change } : j)));
  const drop = (id) => {
    set((jobs) => jobs.filter((j) => j.id !== id));
    remove("jobs", id);
  };
  const find = (id) => now.current.jobs.find((j) => j.id === id);

  const fail = (id, fault) => {
    const job = { ...find(id), status: "failed", fault: { code: fault.code, message: fault.message, hint: fault.hint } };
    update(id, job);
    put("jobs", stored(job));
  };

  /** What the server says about a job, from an event or from a poll. */
  const hear = (id, object) => {
    const job = find(id);
    if (!job || OVER.includes(job.status)) return;
    const change = { status: object.status ?? job.status };
    if ("queue_position" in object) change.position = object.queue_position;
    if (object.predicted_seconds != null) {
      Object.assign(change, { predicted: object.predicted_seconds, predictedAt: Date.now() });
    }
    if (object.progress) Object.assign(change, stepped(job, object.progress, object.isRepeated));
    if (change.status === "running" && !job.running) change.running = Date.now();
    if (OVER.includes(change.status)) {
      end(id);
      return;
    }
    update(id, change);
  };

  /** Loads the outcome of a job that is over. */
  const end = async (id) => {
    if (now.current.ending.has(id)) return;
    now.current.ending.add(id);
    try {
      const object = await getJson(`api/v2/jobs/${id}`);
      const job = find(id);
      if (object.status === "succeeded") {
        const images = await Promise.all(object.outputs.map((output) => load(job, object, output)));
        for (const image of images) await put("images", image);
        now.current.onImages(images);
        drop(id);
      } else if (object.status === "failed") {
        fail(id, object.error ?? { message: "the job failed" });
      } else {
        if (object.status === "expired") now.current.onGone("The server has deleted the images of a job.");
        drop(id);
      }
    } catch (e) {
      if (e instanceof Fault && [404, 410].includes(e.status)) {
        now.current.onGone("The server does not know a job of this page any more.");
        drop(id);
      } else if (!(e instanceof Fault)) {
        fail(id, { code: "page", message: `the images cannot be kept: ${e.message}` });
      }
      // Otherwise it is asked again by the poll.
    } finally {
      now.current.ending.delete(id);
    }
  };

  /** Follows the events of a job until it is over, however often the connection breaks. */
  const follow = async (id, signal) => {
    let last = null;
    for (let tries = 0; !signal.aborted && find(id); tries += 1) {
      const since = Date.now();
      try {
        for await (const event of events(id, last, signal)) {
          tries = 0;
          last = event.id ?? last;
          if (event.name === "status") hear(id, { status: event.data.status });
          else if (event.name === "progress") {
            const isRepeated = Date.now() - since < REPEATS;
            hear(id, { progress: event.data, status: "running", isRepeated });
          }
          else if (event.name === "preview") {
            update(id, { preview: `data:${event.data.content_type};base64,${event.data.data}` });
          }
        }
      } catch (e) {
        if (signal.aborted) return;
        if (e instanceof Fault && [404, 410].includes(e.status)) end(id);
        else if (!(e instanceof Fault) && e.name !== "TypeError") throw e;
      }
      await pause(Math.min(10000, 500 * 2 ** tries));
    }
  };

  // The jobs of an earlier visit.
  useEffect(() => {
    all("jobs").then((rows) => {
      const known = new Set(now.current.jobs.map((j) => j.id));
      const old = rows.filter((row) => !known.has(row.id)).reverse();
      set((jobs) => [...old, ...jobs]);
    });
  }, []);

  // The oldest job is followed: a browser has few connections for a server.
  const followed = jobs.find(isSent)?.id;
  useEffect(() => {
    if (!followed) return undefined;
    const controller = new AbortController();
    follow(followed, controller.signal);
    return () => controller.abort();
  }, [followed]);

  // The others, and the place in the queue, are asked for.
  const waiting = jobs.some(isSent);
  useEffect(() => {
    if (!waiting) return undefined;
    let stop = false;
    const poll = async () => {
      for (const { id } of now.current.jobs.filter(isSent)) {
        try {
          const object = await getJson(`api/v2/jobs/${id}`);
          if (stop) return;
          hear(id, object);
        } catch (e) {
          if (e instanceof Fault && e.status === 404) end(id);
        }
      }
    };
    poll();
    const timer = setInterval(poll, POLL);
    return () => {
      stop = true;
      clearInterval(timer);
    };
  }, [waiting, jobs.length]);

  /**
   * Sends a request with its images: the files `init` and `control`, a mask with its file,
   * references with theirs, and the images of `request.controlnets` and `request.styles` with
   * theirs.
   */
  const start = async (request, { init, mask, control, references, nets, styles }, facts) => {
    let id = `new-${randomId()}`;
    // What is kept: not the addresses of this visit.
    const lasting = ({ url, ...rest }) => rest;
    const kept = references.map(lasting);
    const seen = { nets: nets.map(lasting), styles: styles.map(lasting) };
    const images = { init, mask: mask && lasting(mask), control, references: kept, ...seen };
    const job = { id, created: Date.now(), request, ...images, ...facts, status: "sending" };
    set((jobs) => [...jobs, job]);
    try {
      const body = { ...request };
      if (init) body.init = await dataUri(init);
      if (mask) body.mask = await dataUri(mask.blob);
      if (control) body.control = await dataUri(control);
      if (kept.length) body.references = await Promise.all(kept.map(({ blob }) => dataUri(blob)));
      const withImages = (list, images) =>
        Promise.all(list.map(async (item, i) => ({ ...item, image: await dataUri(images[i].blob) })));
      if (request.controlnets) body.controlnets = await withImages(request.controlnets, seen.nets);
      if (request.styles) body.styles = await withImages(request.styles, seen.styles);
      const object = await submit(body, (fault, seconds) =>
        update(id, { waiting: `${sentence(fault.message)} Trying again in ${duration(seconds)} …` }),
      );
      const sent = { ...job, id: object.id, status: object.status, waiting: null, position: object.queue_position };
      set((jobs) => jobs.map((j) => (j.id === id ? sent : j)));
      id = object.id;
      await put("jobs", stored(sent));
    } catch (e) {
      if (find(id)) fail(id, e);
    }
  };

  const cancel = async (job) => {
    if (job.status === "sending") {
      drop(job.id);
      return;
    }
    update(job.id, { status: "canceling" });
    try {
      hear(job.id, await getJson(`api/v2/jobs/${job.id}/cancel`, { method: "POST" }));
    } catch (e) {
      if (!isTemporary(e)) end(job.id);
      else update(job.id, { status: "running" });
    }
  };

  return { jobs, start, cancel, dismiss: (job) => drop(job.id) };
}

/** The times of the steps, for the time that is left. Repeated events say nothing about it. */
function stepped(job, progress, isRepeated) {
  const change = { progress };
  if (progress.phase !== "denoise") return change;
  if (!job.firstStep || isRepeated || progress.step < job.firstStep.step) {
    change.firstStep = { step: progress.step, at: Date.now() };
    change.lastStep = Date.now();
  } else if (progress.step !== job.progress?.step) {
    change.lastStep = Date.now();
  }
  return change;
}

/** One image of a job, as a row of the history. */
async function load(job, object, output) {
  const response = await call(`api/v2/jobs/${object.id}/images/${output.number}`);
  const blob = await response.blob();
  const seconds = object.completed_at && object.started_at ? object.completed_at - object.started_at : null;
  return {
    id: `${object.id}-${output.number}`,
    number: output.number,
    created: job.created,
    blob,
    init: job.init ?? null,
    mask: job.mask ?? null,
    control: job.control ?? null,
    references: job.references ?? [],
    nets: job.nets ?? [],
    styles: job.styles ?? [],
    width: output.width,
    height: output.height,
    request: { ...job.request, seed: object.seed_text },
    settings: object.settings,
    seed: object.seed_text,
    model: object.model,
    seconds,
  };
}
