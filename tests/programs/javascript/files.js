// Checks whether files behave as a JavaScript program expects. JavaScript has no file functions of
// its own here, so the program calls `wasi:filesystem` directly. Leaves `report.txt`: the number of
// checks, and the name of each failed check.

import preopens from "wasi:filesystem/preopens@0.2.12";

const LARGE = Uint8Array.from({ length: 200_000 }, (_, n) => n % 251);
const FOLLOW = { symlinkFollow: true };
const READ = { read: true };
const WRITE = { write: true };
const BOTH = { read: true, write: true };
const NEW = { create: true, exclusive: true };
const NO_CHANGE = { tag: "no-change" };
const NOW = { tag: "now" };

let checked = 0;
const failed = [];

function expect(name, holds) {
  checked += 1;
  if (!holds) failed.push(name);
}

/** Returns the error code that a call throws. */
function code(call) {
  try {
    call();
  } catch (error) {
    return error.payload ?? `${error}`;
  }
  return "none";
}

function fails(name, want, call) {
  checked += 1;
  const got = code(call);
  if (got !== want) failed.push(`${name}: ${got}, not ${want}`);
}

const bytes = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));
const text = (bytes) => String.fromCharCode(...bytes);
const same = (a, b) => a.length === b.length && a.every((byte, n) => byte === b[n]);
const later = (a, b) =>
  a.seconds > b.seconds || (a.seconds === b.seconds && a.nanoseconds > b.nanoseconds);

let inputs, outputs;

/** Passes a descriptor to `use`, and closes it afterwards. */
function using(descriptor, use) {
  try {
    return use(descriptor);
  } finally {
    descriptor[Symbol.dispose]();
  }
}

const open = (path, flags = READ, how = {}, dir = outputs) => dir.openAt(FOLLOW, path, how, flags);
const opens = (...args) => () => open(...args)[Symbol.dispose]();

function put(path, content) {
  using(open(path, WRITE, { create: true, truncate: true }), (file) => {
    if (file.write(bytes(content), 0) !== content.length) failed.push(`put ${path}`);
  });
}

const get = (path) => using(open(path), (file) => text(file.read(4096, 0)[0]));
const exists = (path) => code(() => outputs.statAt(FOLLOW, path)) === "none";

function names(dir, path = ".") {
  return using(open(path, READ, { directory: true }, dir), (opened) =>
    using(opened.readDirectory(), (entries) => {
      const found = [];
      for (let entry; (entry = entries.readDirectoryEntry()); ) found.push(entry.name);
      return found;
    }),
  );
}

/** Reads a stream to its end. */
function drain(stream, size) {
  const all = [];
  for (;;) {
    try {
      all.push(...stream.blockingRead(size));
    } catch (error) {
      const end = error.payload;
      if (end?.tag !== "closed") failed.push(`the end of a stream: ${JSON.stringify(end)}`);
      return Uint8Array.from(all);
    }
  }
}

function inputsAreRead() {
  const large = open("in/large.bin", READ, {}, inputs);
  expect("read at an offset", same(large.read(100, 123_456)[0], LARGE.slice(123_456, 123_556)));
  const [end, isEnd] = large.read(100, 199_995);
  expect("read the end", same(end, LARGE.slice(199_995)) && !isEnd);
  const [none, isReallyEnd] = large.read(100, 200_000);
  expect("read beyond the end", none.length === 0 && isReallyEnd);
  using(large.readViaStream(0), (stream) => {
    expect("read by a stream", same(drain(stream, 7919), LARGE));
  });
  using(large.readViaStream(199_000), (stream) => {
    expect("skip", stream.blockingSkip(500) === 500);
    expect("read after skip", same(drain(stream, 64_000), LARGE.slice(199_500)));
  });
  using(large.readViaStream(0), (stream) => {
    using(stream.subscribe(), (ready) => expect("ready", ready.ready()));
  });
  const stat = large.stat();
  expect("size", stat.size === 200_000 && stat.linkCount === 1);
  expect("type", stat.type === "regular-file" && large.getType() === "regular-file");
  expect("flags", large.getFlags().read && !large.getFlags().write);
  fails("write to an input", "not-permitted", () => large.write(bytes("x"), 0));
  fails("stream to an input", "not-permitted", () => large.writeViaStream(0));
  fails("truncate an input", "not-permitted", () => large.setSize(0));
  const again = open("in/../in/./large.bin", READ, {}, inputs);
  expect("same object", large.isSameObject(again));
  const hash = JSON.stringify(large.metadataHash());
  expect("stable hash", hash === JSON.stringify(inputs.metadataHashAt(FOLLOW, "in/large.bin")));
  expect("its own hash", hash !== JSON.stringify(inputs.metadataHashAt(FOLLOW, "in/hello.txt")));
  again[Symbol.dispose]();
  large[Symbol.dispose]();

  expect("list", `${names(inputs)} ${names(inputs, "in")}` === "in empty.dat,hello.txt,large.bin");
  expect("stat", inputs.statAt(FOLLOW, "in").type === "directory");
  fails("open what is not there", "no-entry", opens("none", READ, {}, inputs));
  fails("open below a file", "not-directory", opens("in/hello.txt/x", READ, {}, inputs));
  fails("open outside", "not-permitted", opens("/etc/passwd", READ, {}, inputs));
  fails("open above", "not-permitted", opens("../outputs", READ, {}, inputs));
}

function inputsCanNotBeChanged() {
  const path = "in/hello.txt";
  fails("open to write", "not-permitted", opens(path, WRITE, {}, inputs));
  fails("truncate", "not-permitted", opens(path, READ, { truncate: true }, inputs));
  fails("create", "not-permitted", opens("new", BOTH, { create: true }, inputs));
  fails("unlink", "not-permitted", () => inputs.unlinkFileAt(path));
  fails("rename", "not-permitted", () => inputs.renameAt(path, inputs, "other"));
  fails("rename out", "not-permitted", () => inputs.renameAt(path, outputs, "other"));
  fails("mkdir", "not-permitted", () => inputs.createDirectoryAt("dir"));
  fails("rmdir", "not-permitted", () => inputs.removeDirectoryAt("in"));
  fails("times", "not-permitted", () => inputs.setTimesAt(FOLLOW, path, NOW, NOW));
}

function bytesAreWritten() {
  const file = open("a.bin", BOTH, NEW);
  const read = () => text(file.read(100, 0)[0]);
  expect("write", file.write(bytes("0123456789"), 0) === 10 && read() === "0123456789");
  expect("write in the middle", file.write(bytes("xy"), 3) === 2 && read() === "012xy56789");
  file.setSize(4);
  file.setSize(6);
  expect("set size", read() === "012x\0\0" && file.stat().size === 6);
  file.write(bytes("end"), 10);
  expect("a hole is zeros", read() === "012x\0\0\0\0\0\0end");
  using(file.writeViaStream(1), (stream) => {
    stream.blockingWriteAndFlush(bytes("AB"));
    stream.blockingWriteAndFlush(bytes("C"));
  });
  expect("write by a stream", read().startsWith("0ABC\0"));
  using(file.appendViaStream(), (stream) => {
    stream.blockingWriteAndFlush(bytes("!"));
    file.write(bytes("?"), 14);
    stream.blockingWriteAndFlush(bytes("!"));
    expect("room", stream.checkWrite() > 0);
    stream.blockingWriteZeroesAndFlush(2);
  });
  expect("append by a stream", read().endsWith("end!?!\0\0"));
  file.sync();
  file.syncData();
  file.advise(0, 10, "sequential");
  file[Symbol.dispose]();

  using(open("a.bin"), (file) => {
    fails("write to what is read", "bad-descriptor", () => file.write(bytes("x"), 0));
    fails("append to what is read", "bad-descriptor", () => file.appendViaStream());
    fails("truncate what is read", "invalid", () => file.setSize(0));
  });
  using(open("a.bin", WRITE), (file) => {
    fails("read what is written", "bad-descriptor", () => file.read(1, 0));
    fails("stream what is written", "bad-descriptor", () => file.readViaStream(0));
  });
  fails("create what is there", "exist", opens("a.bin", BOTH, NEW));
  opens("a.bin", WRITE, { truncate: true })();
  expect("truncate", outputs.statAt(FOLLOW, "a.bin").size === 0);

  using(open("large.bin", BOTH, NEW), (file) => {
    using(file.writeViaStream(0), (stream) => {
      for (let at = 0; at < LARGE.length; at += 3001) {
        stream.blockingWriteAndFlush(LARGE.slice(at, at + 3001));
      }
      using(file.readViaStream(0), (input) => {
        expect("splice", stream.blockingSplice(input, 1000) === 1000);
      });
    });
    expect("spliced", same(file.read(2000, 200_000)[0], LARGE.slice(0, 1000)));
    file.setSize(200_000);
    using(file.readViaStream(0), (stream) => expect("large", same(drain(stream, 9973), LARGE)));
  });
}

function entriesAreMadeAndRemoved() {
  put("file", "x");
  outputs.createDirectoryAt("dir");
  outputs.createDirectoryAt("dir/sub/");
  fails("mkdir on a directory", "exist", () => outputs.createDirectoryAt("dir"));
  fails("mkdir on a file", "exist", () => outputs.createDirectoryAt("file"));
  fails("mkdir below nothing", "no-entry", () => outputs.createDirectoryAt("none/dir"));
  fails("mkdir below a file", "not-directory", () => outputs.createDirectoryAt("file/dir"));
  fails("rmdir what is full", "not-empty", () => outputs.removeDirectoryAt("dir"));
  fails("rmdir a file", "not-directory", () => outputs.removeDirectoryAt("file"));
  fails("rmdir nothing", "no-entry", () => outputs.removeDirectoryAt("none"));
  fails("unlink a directory", "is-directory", () => outputs.unlinkFileAt("dir"));
  fails("unlink nothing", "no-entry", () => outputs.unlinkFileAt("none"));
  fails("write a directory", "is-directory", opens("dir", WRITE));
  fails("open a file as a directory", "not-directory", opens("file", READ, { directory: true }));
  fails("create below nothing", "no-entry", opens("none/x", BOTH, NEW));
  fails("an empty path", "no-entry", opens(""));
  fails("a long name", "name-too-long", opens("n".repeat(256), BOTH, NEW));
  fails("a long path", "name-too-long", opens("d/".repeat(3000)));
  fails("a zero in a path", "invalid", opens("file\0"));
  fails("a name that can't be a key", "illegal-byte-sequence", opens("line\nbreak", BOTH, NEW));
  fails("symbolic link", "not-permitted", () => outputs.symlinkAt("file", "link"));
  fails("hard link", "not-permitted", () => outputs.linkAt({}, "file", outputs, "link"));
  fails("read a link", "invalid", () => outputs.readlinkAt("file"));
  using(open("dir", READ, { directory: true }), (dir) => {
    fails("read a directory", "is-directory", () => dir.read(1, 0));
    fails("write into a directory", "bad-descriptor", () => dir.write(bytes("x"), 0));
    expect("directory", dir.getType() === "directory" && dir.getFlags().mutateDirectory);
    using(open("below", BOTH, NEW, dir), () => expect("below", exists("dir/below")));
    dir.unlinkFileAt("below");
    outputs.removeDirectoryAt("dir/sub");
    outputs.removeDirectoryAt("dir");
    fails("create in what is removed", "no-entry", opens("x", BOTH, NEW, dir));
  });
  outputs.unlinkFileAt("file");
  expect("all removed", !exists("dir") && !exists("file"));
}

function entriesAreRenamed() {
  const rename = (from, to) => outputs.renameAt(from, outputs, to);
  const renames = (from, to) => () => rename(from, to);
  put("old", "old");
  put("new", "new");
  for (const dir of ["empty", "full", "full/sub"]) outputs.createDirectoryAt(dir);
  fails("rename nothing", "no-entry", renames("none", "x"));
  fails("over a directory", "is-directory", renames("old", "empty"));
  fails("a directory over a file", "not-directory", renames("empty", "old"));
  fails("over a full directory", "not-empty", renames("empty", "full"));
  fails("into itself", "invalid", renames("full", "full/sub/x"));
  rename("old", "old");
  const hash = JSON.stringify(outputs.metadataHashAt(FOLLOW, "old"));
  rename("old", "new");
  expect("over a file", get("new") === "old" && !exists("old"));
  expect("the same file", JSON.stringify(outputs.metadataHashAt(FOLLOW, "new")) === hash);
  rename("full", "empty");
  expect("over an empty directory", exists("empty/sub") && !exists("full"));
  using(open("empty/sub", READ, { directory: true }), (dir) => {
    outputs.renameAt("new", dir, "moved");
    expect("to another directory", get("empty/sub/moved") === "old");
    dir.renameAt("moved", outputs, "gone");
  });
  outputs.removeDirectoryAt("empty/sub");
  outputs.removeDirectoryAt("empty");

  const file = open("gone", BOTH);
  outputs.unlinkFileAt("gone");
  expect("unlinked", !exists("gone"));
  put("gone", "another");
  file.write(bytes(" here"), 3);
  expect("open after it was unlinked", text(file.read(100, 0)[0]) === "old here");
  using(open("gone"), (other) => expect("not the same", !file.isSameObject(other)));
  file[Symbol.dispose]();
  outputs.unlinkFileAt("gone");
}

function directoriesAreListed() {
  outputs.createDirectoryAt("many");
  outputs.createDirectoryAt("many/dir");
  for (let n = 0; n < 300; n++) put(`many/${n}`, "");
  expect("all of them", new Set(names(outputs, "many")).size === 301);
  const dir = open("many", READ, { directory: true });
  const entries = dir.readDirectory();
  const found = new Set();
  let twice = 0;
  for (let entry; (entry = entries.readDirectoryEntry()); ) {
    twice += found.has(entry.name);
    found.add(entry.name);
    if (entry.type === "directory") expect("a directory", entry.name === "dir");
    else dir.unlinkFileAt(entry.name);
  }
  expect("removed while listed", found.size === 301 && twice === 0);
  expect("what is left", `${names(outputs, "many")}` === "dir");
  entries[Symbol.dispose]();
  dir[Symbol.dispose]();
  outputs.removeDirectoryAt("many/dir");
  outputs.removeDirectoryAt("many");
}

function timesGoOn() {
  using(open("timed", BOTH, NEW), (file) => {
    let last = file.stat();
    let wrong = 0;
    for (let n = 0; n < 100; n++) {
      file.write(bytes("x"), n);
      const now = file.stat();
      wrong += later(last.dataModificationTimestamp, now.dataModificationTimestamp);
      wrong += now.size !== n + 1;
      last = now;
    }
    expect("times never go back", wrong === 0);
    const then = { tag: "timestamp", val: { seconds: 1_000_000_000, nanoseconds: 5 } };
    file.setTimes(NO_CHANGE, then);
    const now = file.stat();
    expect("set", now.dataModificationTimestamp.seconds === 1_000_000_000);
    expect("not set", !later(last.dataAccessTimestamp, now.dataAccessTimestamp));
    outputs.setTimesAt(FOLLOW, "timed", then, NOW);
    const set = file.stat();
    expect("now", !later(last.dataModificationTimestamp, set.dataModificationTimestamp));
    expect("accessed", set.dataAccessTimestamp.nanoseconds === 5);
    const bad = { tag: "timestamp", val: { seconds: 0, nanoseconds: 1_000_000_000 } };
    fails("a time that can't be", "invalid", () => file.setTimes(bad, bad));
  });
  outputs.unlinkFileAt("timed");
}

const GROUPS = [
  inputsAreRead,
  inputsCanNotBeChanged,
  bytesAreWritten,
  entriesAreMadeAndRemoved,
  entriesAreRenamed,
  directoriesAreListed,
  timesGoOn,
];

export function prepare() {}

export function execute() {
  for (const [descriptor, name] of preopens.getDirectories()) {
    if (name === "/inputs") inputs = descriptor;
    if (name === "/outputs") outputs = descriptor;
  }
  for (const group of GROUPS) {
    try {
      group();
    } catch (error) {
      failed.push(`${group.name}: ${error} ${error.stack} ${JSON.stringify(error)}`);
    }
  }
  put("report.txt", [checked, ...failed, ""].join("\n"));
  return { success: true, outputs: [] };
}

export function finalize() {}
