// Writes what a JavaScript program can observe besides its task to `observed/ID.txt`, one `NAME:
// VALUE` per line.

import preopens from "wasi:filesystem/preopens@0.2.12";
import monotonicClock from "wasi:clocks/monotonic-clock@0.2.12";
import wallClock from "wasi:clocks/wall-clock@0.2.12";
import insecure from "wasi:random/insecure@0.2.12";
import insecureSeed from "wasi:random/insecure-seed@0.2.12";
import random from "wasi:random/random@0.2.12";

const FOLLOW = { symlinkFollow: true };
const NEW = { create: true, exclusive: true };
const bytes = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const bits = (number) => hex(new Uint8Array(new Float64Array([number]).buffer).reverse());

function put(outputs, path, text) {
  const file = outputs.openAt(FOLLOW, path, NEW, { write: true });
  file.write(bytes(text), 0);
  file[Symbol.dispose]();
}

function names(dir, path) {
  const opened = dir.openAt(FOLLOW, path, { directory: true }, { read: true });
  const entries = opened.readDirectory();
  const found = [];
  for (let entry; (entry = entries.readDirectoryEntry()); ) found.push(entry.name);
  entries[Symbol.dispose]();
  opened[Symbol.dispose]();
  return found;
}

function state(dir, path) {
  const { dataModificationTimestamp: at } = dir.statAt(FOLLOW, path);
  return `${at.seconds}.${at.nanoseconds}`;
}

function* observe(inputs, outputs) {
  const start = monotonicClock.now();
  const wall = wallClock.now();
  yield ["time", `${wall.seconds}.${wall.nanoseconds}`];
  yield ["date", new Date().toISOString()];
  yield ["resolution", monotonicClock.resolution()];
  yield ["random", hex(random.getRandomBytes(16))];
  yield ["random number", random.getRandomU64()];
  yield ["insecure", hex(insecure.getInsecureRandomBytes(16))];
  yield ["insecure number", insecure.getInsecureRandomU64()];
  yield ["seed", insecureSeed.insecureSeed()];
  yield ["random of the language", Math.random()];

  const pollable = monotonicClock.subscribeDuration(5_000_000);
  pollable.block();
  pollable[Symbol.dispose]();
  yield ["slept", monotonicClock.now() - start];
  while (monotonicClock.now() - start < 8_000_000) continue;
  yield ["waited", monotonicClock.now() - start];

  for (const name of ["b", "a", "c"]) put(outputs, name, "x".repeat(200));
  yield ["listing", names(outputs, ".")];
  yield ["listing of inputs", names(inputs, "in")];
  for (const name of ["a", "b", "c"]) {
    yield [`times of ${name}`, state(outputs, name)];
    yield [`number of ${name}`, JSON.stringify(outputs.metadataHashAt(FOLLOW, name))];
    outputs.unlinkFileAt(name);
  }
  for (const name of ["in/1", "in/2"]) {
    yield [`times of ${name}`, state(inputs, name)];
    yield [`number of ${name}`, JSON.stringify(inputs.metadataHashAt(FOLLOW, name))];
  }
  yield ["not a number", [0 / 0, Math.sqrt(-1), Infinity - Infinity].map(bits)];
}

export function prepare() {}

export function execute(task) {
  let inputs, outputs;
  for (const [descriptor, name] of preopens.getDirectories()) {
    if (name === "/inputs") inputs = descriptor;
    if (name === "/outputs") outputs = descriptor;
  }
  let lines = "";
  for (const [name, value] of observe(inputs, outputs)) lines += `${name}: ${value}\n`;
  outputs.createDirectoryAt("observed");
  put(outputs, `observed/${task.info.id}.txt`, lines);
  return { success: true, outputs: [] };
}

export function finalize() {}
