// Masks: what is repainted of an image. They are painted with a brush, by mouse, finger, pen or
// keyboard, or opened as a file.

import { useEffect, useRef, useState } from "preact/hooks";
import { Dialog } from "./dialogs.js";
import { Icon, html } from "./html.js";

/** The colour of the brush. A mask is the opacity of its layer. */
const COLOUR = "#ff5a1f";
/** Values below this are compression's: the server takes them for black, too. */
const NEARLY = 8;

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

/** Fills what is opaque in a canvas with the colour of the brush. */
function coloured(canvas) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "source-in";
  context.fillStyle = COLOUR;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
  return canvas;
}

/** Sets the opacity of every pixel to `value(data, index)`, and returns the smallest and the largest. */
function eachOpacity(canvas, value) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  let [least, most] = [255, 0];
  for (let i = 0; i < pixels.data.length; i += 4) {
    const opacity = value(pixels.data, i);
    pixels.data[i + 3] = opacity;
    least = Math.min(least, opacity);
    most = Math.max(most, opacity);
  }
  context.putImageData(pixels, 0, 0);
  return [least, most];
}

/** The layer that a mask file means: its transparent pixels, or its white ones if it has none. */
async function layerOf(blob, width, height) {
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").drawImage(await createImageBitmap(blob), 0, 0, width, height);
  const [, most] = eachOpacity(canvas, (data, i) => 255 - data[i + 3]);
  if (most === 0) {
    canvas.getContext("2d").drawImage(await createImageBitmap(blob), 0, 0, width, height);
    eachOpacity(canvas, (data, i) => Math.round((54 * data[i] + 183 * data[i + 1] + 19 * data[i + 2]) / 256));
  }
  return coloured(canvas);
}

/** A layer as a mask: a black and white file, and the part that is repainted; null if it is empty. */
export async function maskOf(layer) {
  const { width, height } = layer;
  const { data } = layer.getContext("2d").getImageData(0, 0, width, height);
  const gray = new ImageData(width, height);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let i = 0; i < width * height; i += 1) {
    const value = data[4 * i + 3];
    gray.data.set([value, value, value, 255], 4 * i);
    if (value >= NEARLY) {
      const [x, y] = [i % width, Math.floor(i / width)];
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  if (right < 0) return null;
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(gray, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return { blob, box: [left, top, right - left + 1, bottom - top + 1], url: URL.createObjectURL(blob) };
}

/** The transparent pixels of an image as its mask; null if all are opaque. */
export async function transparencyOf(blob, width, height) {
  if (blob.type === "image/jpeg") return null;
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").drawImage(await createImageBitmap(blob), 0, 0, width, height);
  const [, most] = eachOpacity(canvas, (data, i) => 255 - data[i + 3]);
  return most === 0 ? null : maskOf(coloured(canvas));
}

/** Draws one change of a mask. */
function apply(context, change) {
  const { canvas } = context;
  const { width, height } = canvas;
  if (change.kind === "stroke") {
    context.globalCompositeOperation = change.erase ? "destination-out" : "source-over";
    Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: change.size, strokeStyle: COLOUR });
    const [[x, y], ...rest] = change.points;
    context.beginPath();
    context.moveTo(x, y);
    // A point is a line, too.
    if (!rest.length) context.lineTo(x, y + 0.01);
    rest.forEach((point) => context.lineTo(...point));
    context.stroke();
    context.globalCompositeOperation = "source-over";
    return;
  }
  const before = canvasOf(width, height);
  before.getContext("2d").drawImage(canvas, 0, 0);
  context.clearRect(0, 0, width, height);
  if (change.kind === "layer") context.drawImage(change.layer, 0, 0);
  if (change.kind === "invert") {
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(before, 0, 0);
    context.globalCompositeOperation = "source-over";
  }
}

/** Paints the mask of an image. `done` receives it, or null if nothing is painted. */
export function MaskDialog({ input, done, close, fail }) {
  const canvas = useRef();
  const ring = useRef();
  const file = useRef();
  const [tool, setTool] = useState("paint");
  const [size, setSize] = useState(8);
  const [changes, setChanges] = useState(0);
  const [isDown, setDown] = useState(false);
  // What changes while a stroke is drawn: not a reason to render.
  const state = useRef({ changes: [], start: null, stroke: null, at: [input.width / 2, input.height / 2] }).current;
  const { width, height } = input;
  // In pixels of the image.
  const brush = Math.max(1, (Math.max(width, height) * size) / 100);
  const context = () => canvas.current.getContext("2d", { willReadFrequently: true });

  const redraw = () => {
    context().clearRect(0, 0, width, height);
    if (state.start) context().drawImage(state.start, 0, 0);
    state.changes.forEach((change) => apply(context(), change));
  };
  const add = (change) => {
    state.changes.push(change);
    setChanges(state.changes.length);
    apply(context(), change);
  };
  const undo = () => {
    state.changes.pop();
    setChanges(state.changes.length);
    redraw();
  };
  const open = async (blob, isStart) => {
    try {
      const layer = await layerOf(blob, width, height);
      if (isStart) {
        state.start = layer;
        redraw();
      } else {
        add({ kind: "layer", layer });
      }
    } catch {
      fail("This browser cannot read the mask: save it as PNG first.");
    }
  };
  useEffect(() => {
    if (input.mask) open(input.mask.blob, true);
    moveRing(state.at);
  }, []);

  // The brush, shown as a ring.
  const moveRing = ([x, y]) => {
    const scale = canvas.current.clientWidth / width;
    Object.assign(ring.current.style, {
      left: `${x * scale}px`, top: `${y * scale}px`, width: `${brush * scale}px`, height: `${brush * scale}px`,
    });
  };
  useEffect(() => moveRing(state.at), [size]);
  const place = (e) => {
    const rect = canvas.current.getBoundingClientRect();
    return [((e.clientX - rect.left) * width) / rect.width, ((e.clientY - rect.top) * height) / rect.height];
  };
  const begin = (point) => {
    state.stroke = { kind: "stroke", erase: tool === "erase", size: brush, points: [point] };
    add(state.stroke);
  };
  const extend = (point) => {
    const last = state.stroke.points.at(-1);
    state.stroke.points.push(point);
    apply(context(), { ...state.stroke, points: [last, point] });
  };

  const pointerDown = (e) => {
    if (e.button !== 0) return;
    e.preventDefault();
    canvas.current.focus();
    canvas.current.setPointerCapture(e.pointerId);
    state.at = place(e);
    moveRing(state.at);
    begin(state.at);
  };
  const pointerMove = (e) => {
    state.at = place(e);
    moveRing(state.at);
    if (!state.stroke || !canvas.current.hasPointerCapture(e.pointerId)) return;
    const passed = e.getCoalescedEvents?.() ?? [];
    (passed.length ? passed : [e]).forEach((event) => extend(place(event)));
  };
  const pointerUp = () => {
    state.stroke = null;
  };
  // Arrows move the brush; Space paints a dot, Enter lowers and lifts the brush.
  const keyDown = (e) => {
    if ((e.ctrlKey || e.metaKey) && e.key === "z") {
      e.preventDefault();
      if (state.changes.length) undo();
      return;
    }
    const step = (brush / 4) * (e.shiftKey ? 4 : 1);
    const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[e.key];
    if (by) {
      e.preventDefault();
      const inside = (value, most) => Math.min(most, Math.max(0, value));
      state.at = [inside(state.at[0] + by[0], width), inside(state.at[1] + by[1], height)];
      moveRing(state.at);
      if (isDown && state.stroke) extend(state.at);
    } else if (e.key === " ") {
      e.preventDefault();
      begin(state.at);
      state.stroke = null;
    } else if (e.key === "Enter") {
      e.preventDefault();
      if (isDown) state.stroke = null;
      else begin(state.at);
      setDown(!isDown);
    } else if (e.key === "[" || e.key === "]") {
      setSize((size) => Math.min(40, Math.max(1, size + (e.key === "]" ? 1 : -1))));
    }
  };

  const tools = [["paint", "Paint"], ["erase", "Erase"]];
  return html`<${Dialog} id="mask-dialog" title="What to repaint" close=${close} keep>
    <div class="tools">
      <div class="chips" role="group" aria-label="Tool">
        ${tools.map(([name, label]) => html`<button type="button" class="chip" id=${`mask-${name}`} key=${name}
          aria-pressed=${tool === name} onClick=${() => setTool(name)}>${label}</button>`)}
      </div>
      <label class="brush"><span>Brush</span>
        <input id="mask-size" type="range" min="1" max="40" value=${size} onInput=${(e) => setSize(Number(e.target.value))} /></label>
      <div class="chips">
        <button type="button" class="chip" id="mask-undo" disabled=${changes === 0} onClick=${undo}>Undo</button>
        <button type="button" class="chip" id="mask-invert" onClick=${() => add({ kind: "invert" })}>Invert</button>
        <button type="button" class="chip" id="mask-clear" onClick=${() => add({ kind: "clear" })}>Clear</button>
        <button type="button" class="chip" onClick=${() => file.current.click()}>From a file …</button>
      </div>
      <input ref=${file} id="mask-file" class="sr" type="file" accept="image/*" tabindex="-1" aria-label="Mask" onChange=${(e) => {
        if (e.target.files[0]) open(e.target.files[0], false);
        e.target.value = "";
      }} />
    </div>
    <div class="mask-view" style=${{ aspectRatio: `${width} / ${height}`, "--ratio": width / height }}>
      <img src=${input.url} alt="The image to start from" draggable=${false} />
      <canvas ref=${canvas} id="mask-canvas" width=${width} height=${height} tabindex="0" role="img"
        aria-label="The mask. Arrow keys move the brush, Space paints a dot, Enter lowers and lifts the brush, brackets change its size."
        onPointerDown=${pointerDown} onPointerMove=${pointerMove} onPointerUp=${pointerUp} onPointerCancel=${pointerUp}
        onKeyDown=${keyDown}></canvas>
      <i class=${`ring ${tool}${isDown ? " down" : ""}`} ref=${ring} aria-hidden="true"></i>
    </div>
    <div class="actions end">
      <p class="note">Painted parts are drawn again. All others stay as they are.</p>
      <button type="button" onClick=${close}>Cancel</button>
      <button type="button" class="primary" id="mask-done" onClick=${async () => done(await maskOf(canvas.current))}>
        <${Icon} name="brush" /> Use this mask
      </button>
    </div>
  <//>`;
}
