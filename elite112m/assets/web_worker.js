// The model, in a thread of its own: opens the files beside this page, answers conversations token by token.
import { AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, Tensor, env } from "./vendor/transformers.min.js";
import { toWrite } from "./calculator.js";
import { MOST_REPEATED, heldTokens, repeatsItself, withoutRepetition } from "./repetition.js";

const here = new URL("./", self.location).href;
env.allowRemoteModels = false; env.allowLocalModels = true; env.localModelPath = new URL(here).pathname; env.useBrowserCache = false;
env.backends.onnx.wasm.wasmPaths = { mjs: here + "vendor/ort-wasm-simd-threaded.asyncify.mjs", wasm: here + "vendor/ort-wasm-simd-threaded.asyncify.wasm" };
env.backends.onnx.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

let tokenizer, model, stopped = false;
const DTYPES = { fp32: "fp32", fp16: "fp16", int8: "q8", int4: "q4" };
const NAMES = { webgpu: "on the GPU", wasm: "on the processor" };

// The ways to run what there is, best first.
async function ways(device, files) {
  const found = [];
  if (device !== "wasm" && navigator.gpu) {
    const adapter = await navigator.gpu.requestAdapter().catch(() => null);
    const fits = adapter ? ["int4", ...(adapter.features.has("shader-f16") ? ["fp16"] : []), "fp32"] : [];
    found.push(...fits.filter(f => files.includes(f)).slice(0, 1).map(f => ["webgpu", f]));
  }
  if (device !== "webgpu") found.push(...["fp16", "int8", "fp32", "int4"].filter(f => files.includes(f)).slice(0, 1).map(f => ["wasm", f]));
  return found;
}

async function load({ device, files }) {
  const progress_callback = p => { if (p.status === "progress" && p.total) postMessage({ kind: "progress", file: p.file.split("/").pop(), loaded: p.loaded, total: p.total }); };
  let why = device === "webgpu" ? "this browser has no WebGPU" : "there is no file for this device";
  for (const [device_, format] of await ways(device, files)) {
    try {
      tokenizer = await AutoTokenizer.from_pretrained("model", { progress_callback });
      model = await AutoModelForCausalLM.from_pretrained("model", { device: device_, dtype: DTYPES[format], progress_callback });
      postMessage({ kind: "note", text: "warming up" });
      await model.generate({ ...tokenizer("a"), max_new_tokens: 1, do_sample: false });
      const threads = device_ === "wasm" ? `, ${env.backends.onnx.wasm.numThreads} threads` : "";
      return postMessage({ kind: "ready", where: `${format} ${NAMES[device_]}${threads}` });
    } catch (e) { why = e?.message ?? String(e); }
  }
  postMessage({ kind: "failed", text: why });
}

// Pseudo-random numbers that a seed decides (mulberry32).
const random = seed => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

// Chooses the next token as our other chats do, and leaves only that one likely.
class Choose extends LogitsProcessor {
  constructor(settings, start) { super(); Object.assign(this, { settings, start, next: random(settings.seed ?? Math.floor(Math.random() * 2 ** 31)) }); }
  _call(ids, logits) {
    const s = this.settings, row = logits.data, said = new Set(ids[0].slice(this.start).map(Number));
    if (s.repetition_penalty !== 1) for (const i of said) row[i] = row[i] < 0 ? row[i] * s.repetition_penalty : row[i] / s.repetition_penalty;
    if (!(s.temperature > 0)) return logits;
    let order = [...row.keys()].sort((a, b) => row[b] - row[a]);
    if (s.top_k > 0) order = order.slice(0, s.top_k);
    const best = row[order[0]], weights = order.map(i => Math.exp((row[i] - best) / s.temperature));
    const total = weights.reduce((a, b) => a + b, 0);
    let kept = 0, before = 0;
    while (kept < order.length && (kept === 0 || (before < s.top_p && weights[kept] >= s.min_p * weights[0]))) before += weights[kept++] / total;
    let left = this.next() * weights.slice(0, kept).reduce((a, b) => a + b, 0), k = 0;
    while (k < kept - 1 && (left -= weights[k]) > 0) k++;
    const chosen = order[k];
    row.fill(-Infinity); row[chosen] = 0;
    return logits;
  }
}

// Called after each token: tells the page, and stops for the user, where the calculator is to write, and in a circle.
class Watch extends StoppingCriteria {
  constructor(onText, calculator, circles) { super(); Object.assign(this, { onText, calculator, circles }); }
  _call(rows) {
    const text = this.onText(rows[0]);
    return [stopped || (this.calculator && toWrite(text) !== "") || this.circles(rows[0])];
  }
}

function promptOf(messages, settings, context) {
  const most = context - Math.min(settings.max_new_tokens, Math.floor(context / 4));
  let kept = [...messages], forgotten = 0;
  const ids = () => tokenizer.apply_chat_template(kept, { add_generation_prompt: true, return_tensor: false, return_dict: false }).map(Number);
  const first = kept[0].role === "system" ? 1 : 0;
  while (ids().length > most && kept.length - first > 1) { kept.splice(first, 2); forgotten += 2; }
  return [ids(), forgotten];
}

async function answer({ messages, settings, context }) {
  stopped = false;
  const [prompt, forgotten] = promptOf(messages, settings, context);
  if (prompt.length >= context) return postMessage({ kind: "end", error: `that is ${prompt.length} tokens; the model reads ${context} at most: shorten it` });
  const ends = new Set([model.generation_config.eos_token_id].flat());
  const limit = Math.min(settings.max_new_tokens, context - prompt.length), began = performance.now();
  let ids = [...prompt], finish = "length";
  const textOf = all => tokenizer.decode(all.slice(prompt.length).filter(i => !ends.has(Number(i))), { skip_special_tokens: true });
  const guard = settings.stop_repetition, replyOf = all => all.slice(prompt.length).map(Number);
  const circles = all => guard && repeatsItself(replyOf(all), MOST_REPEATED);
  const onText = all => {
    all = all.map(Number);
    const shown = guard && !ends.has(all.at(-1)) ? all.slice(0, all.length - heldTokens(replyOf(all))) : all;
    postMessage({ kind: "part", text: textOf(shown).trimStart() });
    return textOf(all);
  };
  while (ids.length - prompt.length < limit) {
    const input_ids = new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), [1, ids.length]);
    const attention_mask = new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]);
    const processors = new LogitsProcessorList(); processors.push(new Choose(settings, prompt.length));
    const criteria = new StoppingCriteriaList(); criteria.push(new Watch(onText, settings.calculator, circles));
    const out = await model.generate({ input_ids, attention_mask, max_new_tokens: limit - (ids.length - prompt.length), do_sample: false, logits_processor: processors, stopping_criteria: criteria });
    ids = [...out.data].map(Number);
    if (ends.has(ids.at(-1))) { finish = "stop"; break; }
    if (stopped) { finish = "stopped"; break; }
    const more = settings.calculator ? toWrite(textOf(ids)) : "";
    if (!more || circles(ids)) break;
    ids.push(...tokenizer.encode(more, { add_special_tokens: false }).map(Number));
    onText(ids);
  }
  const tokens = ids.length - prompt.length, kept = guard && finish !== "stop" ? withoutRepetition(replyOf(ids)) : replyOf(ids);
  if (kept.length < tokens) { ids = [...prompt, ...kept]; finish = finish === "length" ? "repetition" : finish; }
  postMessage({ kind: "end", text: textOf(ids).trim(), tokens, rate: tokens / ((performance.now() - began) / 1000), finish, forgotten });
}

self.onmessage = async ({ data }) => {
  if (data.kind === "stop") { stopped = true; return; }
  try { await { load, answer }[data.kind](data); } catch (e) {
    postMessage(data.kind === "answer" ? { kind: "end", error: e?.message ?? String(e) } : { kind: "failed", text: e?.message ?? String(e) });
  }
};
