// Pictures in, probabilities out: reads pictures as `ncfmkit predict` does and runs the model in this browser.
//
// `about` is what the page holds of its model: channels, size, precision, input, output, kind, classes, check.

import * as ort from "./runtime/ort.webgpu.min.mjs";

ort.env.wasm.numThreads = 1; // more of them need headers that few servers send
ort.env.logLevel = "error";

/** The model, opened by the first of the backends that answers rightly, and why those before it do not.
 *
 * Each backend is asked for the scores of one image, which the exported model gave as `about.check` has them.
 */
export async function load(model, about, backends = ["webgpu", "wasm"]) {
  const response = await fetch(model);
  if (!response.ok) throw new Error(`${model}: the server answers ${response.status}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const refused = [];
  for (const backend of backends) {
    let session;
    try {
      const name = backend === "webgpu" ? await webgpu(about, backends.length === 1) : "the processor (WebAssembly)";
      session = await ort.InferenceSession.create(bytes, { executionProviders: [backend] });
      const scores = (pixels) => run(session, about, pixels);
      check(await scores(checkImage(about)), about.check);
      const classify = async (pixels) => probabilities(await scores(pixels), about.kind);
      return { backend, name, refused, scores, classify };
    } catch (error) {
      refused.push({ backend, reason: String(error?.message ?? error) });
      await session?.release().catch(() => {}); // of a GPU that is lost, say
    }
  }
  throw new Error(refused.map(({ backend, reason }) => `${backend}: ${reason}`).join("; "));
}

/** The GPU's name; a GPU that is emulated in software counts only if nothing else is left: WebAssembly is faster. */
async function webgpu({ precision }, emulated) {
  if (!isSecureContext) throw new Error("WebGPU needs https or localhost");
  if (!navigator.gpu) throw new Error("this browser has no WebGPU");
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("WebGPU finds no GPU");
  const { vendor, architecture } = adapter.info ?? {};
  const isFallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter; // the latter in Chromium before 136
  if (isFallback && !emulated) throw new Error("WebGPU finds no GPU, only software that stands in for one");
  if (precision === "fp16" && !adapter.features.has("shader-f16")) throw new Error("the GPU has no 16-bit arithmetic");
  return `WebGPU (${[vendor, architecture].filter(Boolean).join(" ") || "an unnamed GPU"})`;
}

async function run(session, about, pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, about.channels, about.size, about.size]);
  const answer = await session.run({ [about.input]: images });
  return Float64Array.from(answer[about.output].data);
}

function checkImage({ channels, size }) {
  return Uint8Array.from({ length: channels * size * size }, (_, index) => Math.imul(index, 2654435761) >>> 24);
}

function check(scores, { scores: expected, allowed }) {
  const off = Math.max(...expected.map((value, k) => Math.abs(value - scores[k])));
  if (!(off <= allowed)) throw new Error(`its scores of the test image differ by ${off.toPrecision(2)}, allowed ${allowed.toPrecision(2)}`);
}

/** Scores of the classes as probabilities. */
export function probabilities(scores, kind) {
  if (!scores.every(Number.isFinite)) throw new Error("the model returns scores that are not finite");
  if (kind === "probabilities") return scores;
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const exponents = scores.map((score) => Math.exp(score - largest));
  const sum = exponents.reduce((a, b) => a + b);
  return exponents.map((value) => value / sum);
}

/** A picture's file as the model takes it: uint8 [C, H, W], upright, of its color and size. */
export async function read(file, { channels, size }) {
  const bitmap = await createImageBitmap(file, UNCHANGED).catch(() => {
    throw new Error("this browser cannot read it as a picture");
  });
  try {
    const { width, height } = bitmap;
    const short = Math.min(width, height);
    const across = filter(width, (width - short) / 2, short, size);
    const down = filter(height, (height - short) / 2, short, size);
    const part = await pixelsOf(bitmap, across.from, down.from, across.to - across.from, down.to - down.from);
    const columnsFirst = height > size && height - size > 2 * (width - size); // as Pillow 13 does
    const pixels = new Uint8Array(channels * size * size);
    planes(part.data, channels).forEach((plane, c) => {
      pixels.set(resize(plane, part.width, across, down, columnsFirst), c * size * size);
    });
    return { pixels, width, height, transparent: part.transparent };
  } finally {
    bitmap.close();
  }
}

const UNCHANGED = { colorSpaceConversion: "none", premultiplyAlpha: "none" }; // the file's own values, but upright

/** RGBA of a part of a picture. */
async function pixelsOf(bitmap, left, top, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`${width} x ${height} pixels are too many for this browser`);
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  if (!hasTransparency(data)) return { data, width, transparent: "" };
  // A canvas forgets colors where they cannot be seen, and `ncfmkit predict` leaves out only the transparency.
  const colors = await colorsOf(bitmap, left, top, width, height);
  return { data: colors ?? data, width, transparent: colors ? "ignored" : "black" };
}

function hasTransparency(data) {
  for (let k = 3; k < data.length; k += 4) if (data[k] < 255) return true;
  return false;
}

let gl; // one context for all pictures: browsers allow few

/** RGBA by a texture, which keeps the colors of transparent pixels; null where there is no WebGL for it. */
async function colorsOf(bitmap, left, top, width, height) {
  gl ??= document.createElement("canvas").getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const part = await createImageBitmap(bitmap, left, top, width, height, UNCHANGED);
  const [texture, framebuffer] = [gl.createTexture(), gl.createFramebuffer()];
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  const failed = gl.getError() !== gl.NO_ERROR || gl.isContextLost();
  gl.deleteFramebuffer(framebuffer);
  gl.deleteTexture(texture);
  part.close();
  return failed ? null : data;
}

/** RGBA as planes of RGB or gray, transparency left out; gray by Pillow's weights (ITU-R 601), in integers. */
export function planes(rgba, channels) {
  const count = rgba.length / 4;
  const found = Array.from({ length: channels }, () => new Uint8Array(count));
  for (let k = 0; k < count; k++) {
    const at = 4 * k;
    if (channels === 1) found[0][k] = (rgba[at] * 19595 + rgba[at + 1] * 38470 + rgba[at + 2] * 7471 + 32768) >> 16;
    else for (let c = 0; c < 3; c++) found[c][k] = rgba[at + c];
  }
  return found;
}

const BITS = 22; // of a weight behind the point, as in Pillow

function bicubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * -0.5 : 0;
}

/** Pillow's bicubic filter along one side, antialiased: which pixels make each of `count`, with integer weights.
 *
 * `from` and `to` are the pixels that take part at all; those beside the box [start, start + length] do, too.
 */
export function filter(side, start, length, count) {
  const scale = length / count;
  const stretch = Math.max(scale, 1);
  const rows = [];
  for (let k = 0; k < count; k++) {
    const center = start + (k + 0.5) * scale;
    const first = Math.max(Math.trunc(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(center + 2 * stretch + 0.5), side);
    const weights = [];
    for (let x = first; x < end; x++) weights.push(bicubic((x - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const integers = weights.map((w) => Math.trunc((w / sum) * 2 ** BITS + (w / sum < 0 ? -0.5 : 0.5)));
    rows.push({ first, weights: Int32Array.from(integers) });
  }
  const from = Math.min(...rows.map((row) => row.first));
  const to = Math.max(...rows.map((row) => row.first + row.weights.length));
  return { from, to, rows };
}

/** A plane of `width` columns, filtered along rows and columns; rounded to 8 bits in between, as in Pillow. */
export function resize(plane, width, across, down, columnsFirst) {
  if (columnsFirst) return alongRows(alongColumns(plane, width, down), width, across);
  return alongColumns(alongRows(plane, width, across), across.rows.length, down);
}

function alongRows(plane, width, { from, rows }) {
  const [height, columns] = [plane.length / width, rows.length];
  const out = new Uint8ClampedArray(height * columns);
  for (let x = 0; x < columns; x++) {
    const { first, weights } = rows[x];
    for (let y = 0; y < height; y++) out[y * columns + x] = weighted(plane, y * width + first - from, 1, weights);
  }
  return out;
}

function alongColumns(plane, width, { from, rows }) {
  const out = new Uint8ClampedArray(rows.length * width);
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) out[y * width + x] = weighted(plane, (first - from) * width + x, width, weights);
  });
  return out;
}

function weighted(pixels, start, step, weights) {
  let sum = 1 << (BITS - 1);
  for (let k = 0; k < weights.length; k++) sum = (sum + pixels[start + k * step] * weights[k]) | 0;
  return sum >> BITS; // the array that takes it clamps to 0..255
}
