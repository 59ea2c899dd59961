import { UserError } from "./errors.js";
import { throughStream } from "./png.js";

const CACHE = "catseg-files";

/** Reads a small JSON file of the page. */
export async function fetchJson(path) {
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) {
    throw new UserError(`${path} could not be loaded (${response?.status ?? "no connection"}): try again.`);
  }
  return response.json();
}

export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/**
 * The contents of large files of the manifest, by their names, unpacked. What was downloaded before is taken from the
 * browser's cache; the rest goes there once its length and SHA-256 are right.
 *
 * `onProgress` is called with the bytes that have come and with all that have to.
 */
export async function loadFiles(entries, onProgress) {
  const cache = await caches.open(CACHE);
  const key = (entry) => `${entry.path}?${entry.sha256}`;
  const cached = await Promise.all(entries.map((entry) => cache.match(key(entry))));
  const total = entries.reduce((sum, entry, index) => sum + (cached[index] ? 0 : entry.bytes), 0);
  let arrived = 0;
  onProgress(0, total);
  const unpacked = entries.map(async (entry, index) => {
    let packed = cached[index] && new Uint8Array(await cached[index].arrayBuffer());
    if (!packed) {
      packed = await download(entry, (bytes) => onProgress((arrived += bytes), total));
      try {
        await cache.put(key(entry), new Response(packed));
      } catch (error) {
        console.warn(`${entry.path} is not kept for the next visit: ${error.message}`); // The quota may be full.
      }
    }
    return [entry.name, await throughStream(packed, new DecompressionStream("gzip"))];
  });
  return Object.fromEntries(await Promise.all(unpacked));
}

/** Forgets files of earlier versions of the page. */
export async function forgetOtherFiles(entries) {
  const kept = new Set(entries.map((entry) => new URL(`${entry.path}?${entry.sha256}`, location).href));
  const cache = await caches.open(CACHE);
  for (const request of await cache.keys()) {
    if (!kept.has(request.url)) {
      await cache.delete(request);
    }
  }
}

async function download(entry, onBytes) {
  const response = await fetch(entry.path, { cache: "no-store" }).catch(() => null);
  if (!response?.ok) {
    throw new UserError(`${entry.path} could not be downloaded (${response?.status ?? "no connection"}): try again.`);
  }
  const bytes = new Uint8Array(entry.bytes);
  let length = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) {
        break;
      }
      if (length + value.length <= bytes.length) {
        bytes.set(value, length);
      }
      length += value.length;
      onBytes(value.length);
    }
  } catch {
    // A connection that broke: the length tells.
  }
  if (length !== entry.bytes) {
    throw new UserError(`${entry.path} was cut off: ${length} of its ${entry.bytes} bytes arrived. Try again.`);
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== entry.sha256) {
    throw new UserError(`${entry.path} is damaged, its SHA-256 is not that of the manifest: try again.`);
  }
  return bytes;
}
