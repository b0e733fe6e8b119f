// The page: what is typed, what is shown. The model runs in worker.js. Everything said becomes text nodes, never HTML.
import { computedSpans } from "./calculator.js";

const $ = id => document.getElementById(id), turns = [];
let site, worker, running = null, ready = false;

function make(tag, text, parent, cls) {
  const e = document.createElement(tag);
  e.textContent = text; if (cls) e.className = cls; parent.append(e); return e;
}
function notes() { document.querySelectorAll(".note").forEach(n => n.remove()); }
function state(text, part) {
  $("state").textContent = text;
  if (part === undefined) return;
  const bar = make("progress", "", $("state"));
  bar.max = 1; bar.value = part; bar.setAttribute("aria-label", "download"); $("state").prepend(bar, " ");
}

// A service worker keeps the files for the next time, and adds the two headers without which a page gets no threads.
async function keepFiles() {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    const taken = new Promise(resolve => navigator.serviceWorker.addEventListener("controllerchange", resolve));
    if (!navigator.serviceWorker.controller) await Promise.race([taken, new Promise(resolve => setTimeout(resolve, 3000))]);
    if (!crossOriginIsolated && !sessionStorage.reloaded) {
      sessionStorage.reloaded = "yes"; location.reload(); await new Promise(() => {});
    }
  } catch (e) { console.info("offline use is not possible here: " + e.message); }
}

function knobs() {
  for (const s of site.settings) {
    const label = make("label", s.name.replaceAll("_", " "), $("knobs")), i = document.createElement("input");
    label.append(i); label.title = s.help; i.id = "s-" + s.name;
    if (typeof s.default === "boolean") { i.type = "checkbox"; i.checked = s.default; continue; }
    i.type = "number"; i.min = s.low; i.step = s.whole ? 1 : "any";
    i.max = s.name === "max_new_tokens" ? site.context : s.high; i.placeholder = s.default ?? "any";
  }
}
function settings() {
  const found = {};
  for (const s of site.settings) {
    const i = $("s-" + s.name);
    found[s.name] = i.type === "checkbox" ? i.checked : i.value === "" || !i.validity.valid ? s.default : Number(i.value);
  }
  return found;
}

function start(device) {
  worker?.terminate(); ready = false; busy(false);
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => heard[data.kind](data);
  worker.onerror = e => state("the model cannot be started: " + (e.message || "its script did not load"));
  worker.postMessage({ kind: "load", device, files: site.files });
}
const heard = {
  progress: d => state(`${d.file}: ${(d.loaded / 1e6).toFixed(1)} of ${(d.total / 1e6).toFixed(1)} MB`, d.loaded / d.total),
  note: d => state(d.text),
  ready: d => { ready = true; state(`${site.parameters.toLocaleString("en")} parameters, ${d.where}. Nothing you type leaves this page.`); busy(false); },
  failed: d => { state("the model cannot be opened: " + d.text); if (running) running({ text: d.text }); },
  part: d => running?.part(d),
  end: d => running?.(d),
};

function show(words, text) {
  words.replaceChildren();
  let at = 0;
  for (const [start, end] of [...computedSpans(text), [text.length, text.length]]) {
    words.append(text.slice(at, start));
    if (end > start) make("span", text.slice(start, end), words, "computed").title = "computed";
    at = end;
  }
}

async function answer() {
  const log = $("log"), turn = { role: "assistant", text: "" };
  const view = make("article", "", log), words = make("div", "", view), small = make("small", "…", view);
  const messages = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  for (const t of turns) messages.push({ role: t.role, content: t.text });
  const end = await new Promise(resolve => {
    running = resolve; busy(true);
    running.part = d => {
      const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      turn.text = d.text; show(words, d.text);
      if (follow) log.scrollTop = log.scrollHeight;
    };
    worker.postMessage({ kind: "answer", messages, settings: settings(), context: site.context });
  });
  running = null;
  if (end.error) {
    const asked = turns.pop();
    view.className = "note"; small.textContent = end.error; asked.view.remove(); $("text").value ||= asked.text;
  } else {
    turn.text = end.text; show(words, end.text);
    small.textContent = `${end.tokens} tokens, ${end.rate.toFixed(1)} a second` + { length: ", cut at the length limit", stopped: ", stopped", repetition: ", ended where it repeated itself", stop: "" }[end.finish] + (end.forgotten ? `; the ${end.forgotten} oldest messages no longer fit and were not read` : "");
    turn.view = view; turns.push(turn);
  }
  busy(false);
}

function busy(now) {
  $("send").disabled = now || !ready; $("clear").disabled = now;
  $("stop").disabled = !now; $("retry").disabled = now || !ready || !turns.length;
  if (!now && ready && matchMedia("(pointer: fine)").matches) $("text").focus();
}
function say(text) {
  notes();
  turns.push({ role: "user", text, view: make("article", text, $("log"), "user") });
  $("log").scrollTop = $("log").scrollHeight;
  answer();
}

$("form").addEventListener("submit", e => {
  e.preventDefault();
  const text = $("text").value;
  if (running || !ready || !text.trim()) return;
  $("text").value = ""; say(text);
});
$("text").addEventListener("keydown", e => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("form").requestSubmit(); }
});
$("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
$("clear").addEventListener("click", () => { turns.length = 0; $("log").replaceChildren(); busy(false); });
$("retry").addEventListener("click", () => {
  if (running || !turns.length) return;
  notes(); turns.pop().view.remove(); answer();
});
$("device").addEventListener("change", () => start($("device").value));

try {
  await keepFiles();
  site = await (await fetch("site.json")).json();
  $("name").textContent = document.title = site.name;
  knobs(); start("auto");
} catch (e) { state("this page is not complete: " + e.message); }
