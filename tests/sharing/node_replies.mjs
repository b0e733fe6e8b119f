// Opens an exported model with transformers.js in Node.js and compares its replies with those in the manifest.
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";
import { readFileSync } from "node:fs";

const [folder, dtype] = process.argv.slice(2), at = folder.lastIndexOf("/") + 1;
env.allowRemoteModels = false; env.localModelPath = folder.slice(0, at);
const { proof, ends } = JSON.parse(readFileSync(folder + "/manifest.json"));
const model = await AutoModelForCausalLM.from_pretrained(folder.slice(at), { dtype, device: "cpu" });
let same = 0;
for (const [k, ids] of proof.prompts.entries()) {
  const input_ids = new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), [1, ids.length]);
  const attention_mask = new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]);
  const out = await model.generate({ input_ids, attention_mask, max_new_tokens: 48, do_sample: false });
  const said = [...out.data].map(Number).slice(ids.length);
  if (ends.includes(said.at(-1))) said.pop();
  same += JSON.stringify(said) === JSON.stringify(proof.replies[k]);
}
console.log(JSON.stringify({ same, of: proof.prompts.length }));
