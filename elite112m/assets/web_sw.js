// Keeps this export's files for use without a network, and adds the headers that let a page use threads.
const CACHE = "elite112m-__VERSION__";
const PAGE = ["./", "index.html", "app.js", "worker.js", "calculator.js", "repetition.js", "site.json"];  // read before this worker is there
self.addEventListener("install", e => e.waitUntil((async () => {
  await (await caches.open(CACHE)).addAll(PAGE.map(file => new Request(file, { cache: "reload" })));
  await self.skipWaiting();
})()));
self.addEventListener("activate", e => e.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("elite112m-") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
})()));

function isolated(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
async function answer(request) {
  const cache = await caches.open(CACHE), known = await cache.match(request, { ignoreSearch: true });
  if (known) return isolated(known);
  const response = await fetch(request);
  if (response.ok && response.status === 200) await cache.put(request, response.clone());
  return isolated(response);
}
self.addEventListener("fetch", e => {
  const own = new URL(e.request.url).origin === self.location.origin;
  if (e.request.method === "GET" && own) e.respondWith(answer(e.request));
});
