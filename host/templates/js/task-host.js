// The files and failures of a task. `host new` wrote this file for its version of the interface.

import preopens from "wasi:filesystem/preopens@0.2.12";
import stderr from "wasi:cli/stderr@0.2.12";

/** Rejects the task: the host sends a report with this message to the error queue. */
export class Reject extends Error {}

/** A failure that may be temporary: the host retries the task later. */
export class Retry extends Error {}

/**
 * Makes a task from a function that receives a `Task`. All files that it writes are published.
 *
 * With `{ plan }`, the task names its own inputs; `wit/world.wit` must include `task-with-plan`.
 * The function `plan` receives a `Task` too, and returns or yields the inputs. A string is a key.
 */
export function task(run, { plan } = {}) {
  return {
    prepare() {},
    execute(record) {
      try {
        run(new Task(record));
      } catch (error) {
        throw failure(error);
      }
      return { success: true, outputs: [] };
    },
    finalize() {},
    plan(record) {
      try {
        return gathered(plan(new Task(record)));
      } catch (error) {
        throw failure(error);
      }
    },
  };
}

/** Asks for an object that may be missing. */
export function optional(key) {
  return { tag: "optional-key", val: key };
}

/** Asks for all objects below a prefix, such as `masks/`. */
export function prefix(key) {
  return { tag: "prefix", val: key };
}

/** Ends a plan that must read these inputs first. It is called again when they are present. */
export function more(...needs) {
  return More.of(...needs);
}

class More extends Array {}

/** Converts the values that a plan returned or yielded to the host's form. */
function gathered(planned) {
  if (planned instanceof More) return { inputs: Array.from(planned, asked), more: true };
  if (typeof planned === "string" || !planned?.[Symbol.iterator]) {
    return { inputs: [asked(planned)], more: false };
  }
  const inputs = [];
  const each = planned[Symbol.iterator]();
  for (;;) {
    const { done, value } = each.next();
    // `more` ends a plan, and a generator may return its last needs.
    if (value instanceof More || (done && value !== undefined)) {
      const last = gathered(value);
      return { inputs: [...inputs, ...last.inputs], more: last.more };
    }
    if (done) return { inputs, more: false };
    inputs.push(asked(value));
  }
}

function asked(need) {
  const { tag, val } = typeof need === "string" ? { tag: "key", val: need } : need ?? {};
  if (typeof val === "string") return { tag, val };
  throw new TypeError(`a plan asks for keys, optional(key) and prefix(key), not for ${JSON.stringify(need)}`);
}

/** One task: the fields of its message, and its files. */
class Task {
  constructor({ info, payload, attempt }) {
    /** The producer's number for the task. */
    this.id = info.id;
    this.name = info.name;
    /** The prefix that inputs and outputs are relative to. */
    this.baseDirectory = info.baseDirectory;
    /** The keys of the inputs: the message's, then those that the plan asked for and that exist. */
    this.inputs = info.inputs;
    this.known = new Set(info.inputs);
    /** The parameters, or `undefined`. */
    this.payload = payload == null ? undefined : JSON.parse(payload);
    /** The number of this attempt, from 1. */
    this.attempt = attempt;
  }

  /** Whether there is an input with this key. */
  has(key) {
    return this.known.has(relative(key));
  }

  /** The bytes of an input. */
  read(key) {
    const path = `/inputs/${relative(key)}`;
    return using(path, open(path, {}, { read: true }), (file) => {
      const size = Number(file.stat().size);
      const bytes = new Uint8Array(size);
      for (let at = 0; at < size; ) {
        const [part] = file.read(Math.min(size - at, PART), at);
        if (part.length === 0) break;
        bytes.set(part, at);
        at += part.length;
      }
      return bytes;
    });
  }

  /** The text of an input, in UTF-8. */
  readText(key) {
    return decode(this.read(key));
  }

  /** Writes an output, a string or a `Uint8Array`, and creates its directories. */
  write(key, content) {
    const bytes = typeof content === "string" ? encode(content) : content;
    const path = `/outputs/${key}`;
    for (let at = key.indexOf("/"); at >= 0; at = key.indexOf("/", at + 1)) {
      makeDirectory(key.slice(0, at));
    }
    using(path, open(path, { create: true, truncate: true }, { write: true }), (file) => {
      for (let at = 0; at < bytes.length; ) {
        at += Number(file.write(bytes.subarray(at, at + PART), at));
      }
    });
  }

  /** Writes a line to the task's log. */
  log(text) {
    const stream = stderr.getStderr();
    stream.blockingWriteAndFlush(encode(`${text}\n`).subarray(0, 4096));
    stream[Symbol.dispose]();
  }
}

/** A key without the slash with which a key relative to the bucket's root begins in a plan. */
function relative(key) {
  return key.replace(/^\//, "");
}

/** The most bytes that one call reads or writes. */
const PART = 1 << 20;

/** Codes of file calls that may succeed at a later attempt. */
const TEMPORARY = new Set(["busy", "in-progress", "interrupted", "io", "would-block"]);

/** A file call that failed. */
class FileError extends Error {
  constructor(path, code) {
    super(`${path}: ${code}`);
    this.code = code;
  }
}

function attempt(path, call) {
  try {
    return call();
  } catch (error) {
    throw typeof error?.payload === "string" ? new FileError(path, error.payload) : error;
  }
}

function directory(name) {
  for (const [descriptor, path] of preopens.getDirectories()) {
    if (path === name) return descriptor;
  }
  throw new Error(`there is no directory ${name}`);
}

function open(path, how, flags) {
  const [, root, key] = path.match(/^(\/[^/]*)\/(.*)$/s);
  return attempt(path, () => directory(root).openAt({ symlinkFollow: true }, key, how, flags));
}

function using(path, file, use) {
  try {
    return attempt(path, () => use(file));
  } finally {
    file[Symbol.dispose]();
  }
}

function makeDirectory(key) {
  try {
    directory("/outputs").createDirectoryAt(key);
  } catch (error) {
    if (error?.payload !== "exist") throw new FileError(`/outputs/${key}`, error?.payload ?? error);
  }
}

/** The failure that the host receives for an exception. */
function failure(error) {
  if (error instanceof Retry) return { tag: "retry", val: error.message };
  if (error instanceof Reject) return { tag: "reject", val: error.message };
  if (error instanceof FileError) {
    return { tag: TEMPORARY.has(error.code) ? "retry" : "reject", val: error.message };
  }
  if (!(error instanceof Error)) return { tag: "reject", val: `uncaught: ${error}` };
  // The first frame in the project's own files: `    at summarise (summary.js:12:3)`.
  const frames = (error.stack ?? "").matchAll(/at (?:(\S+) \()?(?:\S*\/)?([\w.-]+\.m?js):(\d+)/g);
  const [, name, file, line] = [...frames].find((frame) => frame[2] !== "task-host.js") ?? [];
  const place = file ? ` (${file}:${line}${name && name !== "<anonymous>" ? `, in ${name}` : ""})` : "";
  return { tag: "reject", val: `${error.name}: ${error.message}${place}` };
}

/** The bytes of a text in UTF-8. */
function encode(text) {
  const bytes = unescape(encodeURIComponent(text));
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}

/** The text of bytes in UTF-8. */
function decode(bytes) {
  const parts = [];
  for (let at = 0; at < bytes.length; at += 4096) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 4096)));
  }
  const text = parts.join("");
  return /[\x80-\xff]/.test(text) ? decodeURIComponent(escape(text)) : text;
}
