// Sample figures of hosts in the format of the status page: invented ones, the same in every run,
// and hostile ones.

import { mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const MiB = 1024 ** 2;
const GiB = 1024 ** 3;

/** Random numbers from 0 to 1, the same in every run. */
function numbers(seed) {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

const NAMES = ["align-tiles", "segment", "mesh", "downsample"];
const USUAL = { "align-tiles": 42, segment: 118, mesh: 9.4, downsample: 0.84 };
const LINES = {
  "align-tiles": (n) => `tile ${n % 9} of 9: shift (${n % 7}, ${n % 5}), correlation 0.9${n % 10}`,
  segment: (n) => `chunk ${n % 64}/64: ${1000 + 37 * n} supervoxels`,
  mesh: (n) => `simplified ${12000 + 413 * n} triangles to ${900 + n}`,
  downsample: () => "",
};
const STEPS = ["execute", "execute", "execute", "execute", "publish", "prepare", "finalize"];

function failures(time, scale = 1) {
  const failure = (cause, count, given_up, names, first, last, text, id = "53") => ({
    cause, count: count * scale, given_up: given_up * scale, names, first: time - first, last: time - last,
    example: { name: names[0], id, attempt: 1, text },
  });
  return [
    failure("panicked at src/lib.rs:#:#: index out of bounds: the len is # but the index is #", 12, 3,
      ["align-tiles", "mesh"], 3100, 41,
      "panicked at src/lib.rs:10:44: index out of bounds: the len is 10 but the index is 14", "20417"),
    failure("open /inputs/#.png: no such file", 7, 7, ["segment"], 2400, 610,
      "open /inputs/x1024_y2048.png: no such file", "20991"),
    failure("KeyError: 'class' (app.py:#)", 1, 0, ["downsample"], 130, 130, "KeyError: 'class' (app.py:12)", "21333"),
  ];
}

/** The state of a host, as in the field `now` of `GET /api/host`. */
export function snapshot(number, time, { slots = 8, age = 0, version = "0.1.0" } = {}) {
  const random = numbers(number + 7);
  const base = time - age;
  const hostname = `node-${String(number).padStart(2, "0")}`;
  const running = Array.from({ length: Math.max(1, slots - (number % 3)) }, (_, n) => {
    const name = NAMES[Math.min(3, Math.floor(random() * 4))];
    const since = base - USUAL[name] * (0.05 + 0.9 * random());
    return {
      name, id: String(20000 + 311 * number + 17 * n), attempt: random() < 0.1 ? 2 : 1,
      step: STEPS[Math.floor(random() * STEPS.length)], since, step_since: since + 0.4 * (base - since),
      memory: Math.round((30 + 600 * random()) * MiB), last_line: LINES[name](Math.floor(random() * 90)),
    };
  });
  running[0] = { ...running[0], name: "mesh", since: base - 1263, step: "execute", step_since: base - 1262, last_line: "simplified 12413 triangles to 901" };
  running.sort((a, b) => a.since - b.since);
  const done = 4000 + Math.floor(random() * 900);
  return {
    host: {
      id: `${hostname}.${4000 + number}`, hostname, pid: 4000 + number, version, started: base - 18400,
      worker: { engine: "slurm", fleet: "night", name: `night-${number}`, index: number, job: "88213", node: hostname },
      queue: "sqs://em-night", bucket: "s3://em-volumes/minnie", slots,
    },
    time: base, state: "working", running, held: 3,
    totals: {
      done, done_before: 12, failed: 10, retried: 27, returned: 3, lost: 0, bytes_in: 413 * GiB, bytes_out: 96 * GiB,
      cache_hits: 8211, cache_misses: 1733,
    },
    rate: { per_second: 1.2 + 0.4 * random(), over_seconds: 60 },
    queue: { time: base - 4, waiting: 18233, held: 331, retrying: 9 },
    eta_seconds: 18233 / (40 * 1.4), failures: failures(base), outages: [],
    names: NAMES.map((name) => ({
      name, done: Math.round(done * (0.1 + 0.3 * random())), failed: name === "mesh" ? 0 : 3, retried: name === "downsample" ? 0 : 9,
      p50: 0.6 * USUAL[name], p90: 0.9 * USUAL[name], p99: 1.3 * USUAL[name],
    })),
    memory: { guests: running.reduce((sum, { memory }) => sum + memory, 0), limit: Math.round(0.6 * slots * GiB) },
    cache: { bytes: Math.round(31.4 * GiB), limit: 40 * GiB },
  };
}

/** The answer of `/api/host` of a busy host. */
export function host(time) {
  const random = numbers(3);
  const first = Math.floor(time / 60) * 60 - 59 * 60;
  const minutes = Array.from({ length: 60 }, (_, n) => {
    const wave = 1 + 0.25 * Math.sin(n / 9);
    const isOut = n > 33 && n < 38;
    const done = isOut ? 0 : Math.round((72 + 14 * random()) * wave);
    return {
      time: first + 60 * n, done, failed: n % 13 === 4 && !isOut ? 1 + Math.floor(2 * random()) : 0,
      retried: n % 7 === 3 && !isOut ? 2 + Math.floor(4 * random()) : 0,
      p50: isOut ? null : 6 * wave + random(), p95: isOut ? null : 24 * wave + 9 * random(),
      bytes_in: 7 * GiB, bytes_out: GiB, waiting: 23400 - 88 * n + (n > 36 ? 320 : 0),
    };
  });
  minutes.at(-1).done = Math.round((minutes.at(-1).done * (time % 60)) / 60);
  const settings = [
    ["queue", "sqs://em-night", "HOST_QUEUE"], ["bucket", "s3://em-volumes/minnie", "host.toml"],
    ["components", "s3://em-volumes/minnie", "default"], ["parallel", "8", "--parallel"], ["lease", "30s", "default"],
    ["max-attempts", "3", "default"], ["cache-size", "40 GiB", "host.toml"], ["listen", "127.0.0.1:8080", "--listen"],
  ].map(([name, value, source]) => ({ name, value, source }));
  return { now: snapshot(17, time), minutes, settings };
}

/** The answer of `/api/hosts` for `many` hosts, two of which are silent. */
export function fleet(many, time) {
  const hosts = Array.from({ length: many }, (_, n) => {
    const is_silent = n === 6 || n === 23;
    const age_seconds = is_silent ? 700 + 61 * n : (n * 7) % 29;
    return { age_seconds, is_silent, snapshot: snapshot(n + 1, time, { age: age_seconds, version: n % 9 ? "0.1.0" : "0.0.9" }) };
  });
  return {
    queue: { url: "sqs://em-night", waiting: 18233, held: 331, retrying: 9, errors: 212, time: time - 4 },
    eta_seconds: 326, rate: { per_second: 55.8, over_seconds: 60 }, hosts, failures: failures(time, 31),
  };
}

/** Texts that a malicious task could write to attack the page. */
export const HOSTILE = {
  script: "<script>window.broken = 'script'</script>",
  close: "</script></style></title><script>window.broken = 'close'</script>",
  image: "<img src=x onerror=\"window.broken = 'image'\">",
  attribute: "\" onmouseover=\"window.broken = 'attribute'\" style=\"position:fixed;inset:0\" x=\"",
  quote: "' autofocus onfocus='window.broken = 1' tabindex=1 '",
  address: "javascript:window.broken='address'",
  template: "${window.broken = 1} {{window.broken = 2}} <%= 3 %>",
  reversed: "safe \u202e exe.gpj \u2066 hidden",
  long: "W".repeat(10_000),
  terminal: "\u001b]0;title\u0007\u001b[2J\u001b[31mred\u009b5m\r\n\u0000bell",
  marks: "Z" + "\u0300\u0489\u033f".repeat(200),
  prototype: "__proto__",
  entity: "&lt;b&gt;&#x3c;script&#62;",
  invisible: "in\u200bvisi\u00adble\ufeff",
};

/** A host in which every text is `text`. */
export function hostileHost(text, time) {
  const view = host(time);
  const { now } = view;
  Object.assign(now.host, { id: text, hostname: text, version: text, queue: text, bucket: text });
  now.host.worker = { name: text, fleet: text };
  now.running = now.running.map((task) => ({ ...task, name: text, id: text, last_line: text }));
  now.names = [{ ...now.names[0], name: text }];
  now.outages = [text];
  now.failures = now.failures.map((failure, n) => ({
    ...failure, cause: text + " ".repeat(n), names: [text, text], example: { name: text, id: text, attempt: 1, text },
  }));
  view.settings = [{ name: text, value: text, source: text }];
  return view;
}

/** One host for each hostile text of at most `longest` characters. */
export function hostileFleet(time, longest = Infinity) {
  const all = fleet(1, time);
  all.queue.url = HOSTILE.close;
  all.hosts = Object.values(HOSTILE).map((text, n) => ({
    age_seconds: n, is_silent: n % 4 === 1, snapshot: hostileHost(text.slice(0, longest), time - n).now,
  }));
  all.failures = all.hosts.flatMap(({ snapshot: { failures: some } }) => some.slice(0, 1));
  return all;
}

/** Writes the heartbeats of 40 hosts, and of one for each hostile text, into a directory. */
function writeHeartbeats(directory) {
  const time = Date.now() / 1000;
  mkdirSync(directory, { recursive: true });
  // Heartbeats of more than 64 KiB are ignored.
  const hosts = [...fleet(40, time).hosts, ...hostileFleet(time, 500).hosts];
  hosts.forEach(({ age_seconds, snapshot: one }, n) => {
    const path = join(directory, `host-${n}.json`);
    writeFileSync(path, JSON.stringify({ every_seconds: 30, ...one }));
    utimesSync(path, time - age_seconds, time - age_seconds);
  });
}

if (process.argv[1] === import.meta.filename) writeHeartbeats(process.argv[2]);
