// runtime_worker.py for onnxruntime-web: node runtime_worker.mjs FOLDER_WITH_NODE_MODULES EXPORT STEPS

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { change, emptyState, inputsOf, integers, open } from "../examples/web/model.mjs";

const KINDS = {
  f32: Float32Array, i64: BigInt64Array, bool: Uint8Array, i8: Int8Array, u8: Uint8Array, i16: Int16Array,
};
const [environment, folder, place] = process.argv.slice(2);
const ort = createRequire(join(resolve(environment), "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const about = JSON.parse(readFileSync(join(folder, "onnx.json"), "utf8"));
const steps = JSON.parse(readFileSync(join(place, "steps.json"), "utf8"));
const values = readFileSync(join(place, "values.bin"));
const weights = { path: about.weights, data: readFileSync(join(folder, about.weights)) };
const graphs = Object.fromEntries([about.wake, about.wake_one, about.sleep_replay, about.sleep_recurrent]
  .filter(Boolean).map((graph) => [graph.file, graph]));

function expected(step) {
  return Object.fromEntries(step.outputs.map(([name, dtype, dims, offset]) => {
    const count = dims.reduce((a, b) => a * b, 1);
    const bytes = values.subarray(offset, offset + count * KINDS[dtype].BYTES_PER_ELEMENT);
    const data = new KINDS[dtype](new Uint8Array(bytes).buffer);
    const kind = { f32: "float32", i64: "int64", i8: "int8", u8: "uint8", i16: "int16" }[dtype] ?? dtype;
    return [name, new ort.Tensor(kind, data, dims)];
  }));
}

function given(step) {
  const dims = (x) => (Array.isArray(x) ? [x.length, ...(x.length ? dims(x[0]) : [])] : []);
  return Object.fromEntries(Object.entries(step.given).map(([name, x]) => {
    const flat = Array.isArray(x) ? x.flat(Infinity) : [x];
    return [name, integers(ort, flat, step.shapes[name] ?? dims(x))];
  }));
}

function apart(found, wanted) {
  if (String(found.dims) !== String(wanted.dims)) throw new Error(`shape ${found.dims} instead of ${wanted.dims}`);
  let [worst, scale] = [0, 1e-30];
  for (let i = 0; i < wanted.data.length; i++) {
    const [a, b] = [Number(found.data[i]), Number(wanted.data[i])];
    if (!Number.isFinite(a)) return Infinity;
    worst = Math.max(worst, Math.abs(a - b));
    scale = Math.max(scale, Math.abs(b));
  }
  return worst / scale;
}

const words = (error) => `${error.name ?? "Error"}: ${String(error.message ?? error).replace(/\s+/g, " ").slice(0, 300)}`;
const files = [...new Set(steps.flatMap((step) => step.files))];
const found = Object.fromEntries(files.map((file) => [file, { file, error: 0, ms: {} }]));
const sessions = {};
for (const file of files) {
  const started = performance.now();
  try {
    sessions[file] = await open(ort, readFileSync(join(folder, file)), weights);
    found[file].open_s = Math.round((performance.now() - started) / 10) / 100;
  } catch (error) {
    found[file].refused = words(error);
  }
}

/** A state whose arrays may be written into. */
function copy(state) {
  return Object.fromEntries(Object.entries(state).map(([name, x]) => [name, new ort.Tensor(x.type, x.data.slice(), x.dims)]));
}

async function one(step, file, state) {
  const row = found[file];
  if (row.refused) return;
  const started = performance.now();
  try {
    const outputs = await sessions[file].run(inputsOf(graphs[file], { ...state, ...given(step) }));
    row.ms[step.name] = Math.round((performance.now() - started) * 10) / 10;
    const [wanted, own] = [expected(step), copy(state)];
    change(about, own, step.kind, outputs);
    const right = copy(state);
    change(about, right, step.kind, wanted);
    for (const name of [...Object.keys(right), ...(wanted.logits ? ["logits"] : [])]) {
      const error = name === "logits" ? apart(outputs.logits, wanted.logits) : apart(own[name], right[name]);
      if (error >= row.error) Object.assign(row, { error, worst: `${name}, ${step.name}` });
    }
  } catch (error) {
    row.refused = `step ${step.name}: ${words(error)}`;
  }
}

let state = emptyState(ort, about, steps[0].rows);
for (const step of steps) {
  for (const file of step.files) await one(step, file, state);
  change(about, state, step.kind, expected(step));
}
for (const row of Object.values(found)) console.log(JSON.stringify(row));
if (Object.values(found).every((row) => !row.refused)) {
  state = emptyState(ort, about, steps[0].rows);
  let carried = 0;
  for (const step of steps) {
    const file = step.files.at(-1);
    const outputs = await sessions[file].run(inputsOf(graphs[file], { ...state, ...given(step) }));
    change(about, state, step.kind, outputs);
    if (outputs.logits) carried = apart(outputs.logits, expected(step).logits);
  }
  console.log(JSON.stringify({ carried }));
}
