// The loop around an exported model, over onnxruntime-web: in a page, and in Node.js. The rules are in onnx.json, in words.

const ARRAYS = {
  f32: ["float32", Float32Array], i64: ["int64", BigInt64Array], bool: ["bool", Uint8Array],
  i8: ["int8", Int8Array], u8: ["uint8", Uint8Array], i16: ["int16", Int16Array],
};

/** An export: wake.onnx reads tokens, a sleep graph consolidates the window into the memories. */
export class Model {
  /** `ort` is the onnxruntime-web module, `read(name)` gives the bytes of a file of the export, or its text. */
  static async open(ort, read) {
    const about = JSON.parse(new TextDecoder().decode(await read("onnx.json")));
    const asleep = about.sleep_recurrent ?? about.sleep_replay;
    const weights = { path: about.weights, data: await read(about.weights) };
    const sessions = {};
    for (const graph of [about.wake, asleep]) {
      sessions[graph.file] = await open(ort, await read(graph.file), weights);
    }
    return new Model(ort, about, asleep, sessions);
  }

  constructor(ort, about, asleep, sessions) {
    Object.assign(this, { ort, about, asleep, sessions });
  }

  /** The state of one text of which nothing has been read. */
  newState() {
    return emptyState(this.ort, this.about, 1);
  }

  /** Read tokens, sleeping after every window; the logits [V] after the last. `state` becomes what it is then. */
  async read(state, ids, slept = () => {}) {
    let logits;
    for (let at = 0; at < ids.length;) {
      // a run never leads over a sleep: `since` counts the tokens since the last one
      const piece = ids.slice(at, at + Math.min(this.about.window - Number(state.since.data[0]), PIECE));
      at += piece.length;
      const found = await this.run(this.about.wake, state, {
        tokens: integers(this.ort, piece, [1, piece.length]),
        lengths: integers(this.ort, [piece.length], [1]),
        logits_at: at < ids.length ? integers(this.ort, [], [1, 0]) : integers(this.ort, [piece.length - 1], [1, 1]),
      });
      change(this.about, state, "wake", found);
      logits = found.logits.data;
      if (Number(state.since.data[0]) === this.about.window) {
        await this.sleep(state);
        slept();
      }
    }
    return logits;
  }

  /** Let the row sleep. */
  async sleep(state) {
    const passes = integers(this.ort, [this.about.passes], []);
    change(this.about, state, "sleep", await this.run(this.asleep, state, { passes }));
  }

  run(graph, state, more) {
    return this.sessions[graph.file].run(inputsOf(graph, { ...state, ...more }));
  }

  /** Tokens one after another, the most likely each time or one of the likely ones, until one of `ends`. */
  async *generate(state, ids, { count = 64, temperature = 0, ends = new Set(), slept = () => {} } = {}) {
    let logits = await this.read(state, ids, slept);
    for (let i = 0; i < count; i++) {
      const token = choose(logits, temperature);
      if (ends.has(token)) return;
      yield token;
      logits = await this.read(state, [token], slept);
    }
  }
}

const PIECE = 128; // tokens of a call: more are no faster, and take memory

/** The session of a graph's bytes. Weights lie in a file of their own, which onnxruntime-web has to be handed. */
export async function open(ort, bytes, weights) {
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], externalData: [weights] });
}

/** The state of `rows` rows that have read nothing. */
export function emptyState(ort, about, rows) {
  const state = {};
  for (const { name, dtype, dims, initial } of about.states) {
    const sizes = dims.map((d) => (d === "B" ? rows : d));
    const [kind, Kind] = ARRAYS[dtype];
    const data = new Kind(sizes.reduce((a, b) => a * b, 1));
    if (initial) data.fill(dtype === "i64" ? BigInt(initial) : initial);
    state[name] = new ort.Tensor(kind, data, sizes);
  }
  return state;
}

/** Those of the values that a graph takes. */
export function inputsOf(graph, values) {
  return Object.fromEntries(graph.inputs.map(({ name }) => [name, values[name]]));
}

/** A tensor of int64. */
export function integers(ort, numbers, dims) {
  return new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);
}

/** Make the new state out of a run's outputs, as onnx.json says for each of its tensors. */
export function change(about, state, step, found) {
  for (const spec of about.states) {
    const how = spec[step];
    if (how.kind === "replaced") state[spec.name] = found[how.output];
    else if (how.kind === "columns") writeColumns(state[spec.name], found[how.output], how.row, found[how.slots]);
  }
}

/** Tokens have their own slots in the window [B, H, W, ..]: written in place. */
function writeColumns(old, columns, row, slots) {
  const [rows, heads, width, ...rest] = old.dims;
  const size = rest.reduce((a, b) => a * b, 1);
  const [, all, tokens] = columns.dims;
  for (let b = 0; b < rows; b++) {
    for (let t = 0; t < tokens; t++) {
      const slot = Number(slots.data[b * tokens + t]);
      for (let h = 0; slot >= 0 && h < heads; h++) {
        const from = ((b * all + heads * row + h) * tokens + t) * size;
        old.data.set(columns.data.subarray(from, from + size), ((b * heads + h) * width + slot) * size);
      }
    }
  }
}

/** Bytes of a state: the same after any number of tokens. */
export function bytesOf(state) {
  return Object.values(state).reduce((sum, tensor) => sum + tensor.data.byteLength, 0);
}

function choose(logits, temperature) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (temperature <= 0) return best;
  const weights = Array.from(logits, (x) => Math.exp((x - logits[best]) / temperature));
  let left = Math.random() * weights.reduce((a, b) => a + b, 0);
  return weights.findIndex((w) => (left -= w) < 0);
}
