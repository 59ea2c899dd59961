import { UserError } from "./errors.js";

const MAX_THREADS = 4;
// A module with one instruction of 128 bits.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

/** Refuses browsers that cannot run the model, each in its own words. */
export function checkBrowser() {
  if (!isSecureContext) {
    throw new UserError("Browsers let this page keep its files on https:// and localhost only: open it there.");
  }
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new UserError("This browser has no WebAssembly SIMD, which the model needs: use a browser of 2023 or later.");
  }
  if (typeof DecompressionStream !== "function" || typeof OffscreenCanvas !== "function") {
    throw new UserError("This browser cannot unpack files or draw aside: use a browser of 2023 or later.");
  }
}

/**
 * What the model runs on: `device` ("wasm" or "webgpu"), the `files` of the manifest for it, the number of `threads`,
 * and `notes`, sentences on what the browser lacks. The address's `?device=` and `?threads=` ask for others.
 */
export async function chooseRuntime(query) {
  const notes = [];
  const wanted = query.get("device") ?? "auto";
  const requested = Number(query.get("threads") ?? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1));
  if (!["auto", "wasm", "webgpu"].includes(wanted) || !Number.isInteger(requested) || requested < 1) {
    throw new UserError(`The address asks for ?${query}: device can be wasm or webgpu, and threads a number from 1.`);
  }
  const adapter = wanted === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  // An adapter that computes on the processor is slower than WebAssembly.
  const device = adapter && (wanted === "webgpu" || !adapter.info?.isFallbackAdapter) ? "webgpu" : "wasm";
  if (wanted === "webgpu" && !adapter) {
    notes.push("This browser offers no WebGPU adapter: the model runs on WebAssembly.");
  }
  if (requested > 1 && !crossOriginIsolated) {
    notes.push("The model runs on one thread: this page's server does not send the COOP and COEP headers for more.");
  }
  return { device, threads: crossOriginIsolated ? requested : 1, notes };
}

/** ONNX Runtime for a choice of `chooseRuntime`, which changes where WebGPU fails, and the sessions of the
 * graphs among the `files`. */
export async function loadRuntime(runtime, entry, files) {
  const ort = await import(entry.script);
  ort.env.wasm.wasmBinary = files[entry.wasm.name].buffer;
  ort.env.wasm.wasmPaths = { mjs: new URL(entry.loader, location).href };
  ort.env.wasm.numThreads = runtime.threads;
  const create = (name, provider) => {
    const weights = files[`${name}.data`];
    const externalData = weights && [{ path: `${name}.data`, data: weights }];
    return ort.InferenceSession.create(files[name], { executionProviders: [provider], ...(weights && { externalData }) });
  };
  return {
    tensor: (type, values, shape) => new ort.Tensor(type, values, shape),
    textEncoder: () => create("text_encoder.onnx", "wasm"),
    segmenter: () =>
      create("segmenter.onnx", runtime.device).catch((error) => {
        if (runtime.device === "wasm") {
          throw error;
        }
        runtime.device = "wasm";
        runtime.notes.push(`The model runs on WebAssembly, since WebGPU failed (${error.message}).`);
        return create("segmenter.onnx", "wasm");
      }),
  };
}
