/* The page's own files, kept for visits without a network. The model and ONNX Runtime are kept by downloads.js. */
importScripts("version.js");

const CACHE = `catseg-page-${PAGE.version}`;
/** Not from the HTTP cache, where a file of another version may be. */
const fresh = (file) => new Request(file, { cache: "reload" });

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE.files.map(fresh))));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => {
  const forgetOthers = async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith("catseg-page-") && name !== CACHE);
    await Promise.all(names.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(forgetOthers());
});

self.addEventListener("fetch", (event) => {
  const answer = async () => {
    const kept = await caches.match(event.request, { cacheName: CACHE, ignoreSearch: true });
    return kept ?? fetch(event.request);
  };
  if (event.request.method === "GET") {
    event.respondWith(answer());
  }
});
