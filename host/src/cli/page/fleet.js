// The view of many hosts: the tasks that each host runs, and the silent hosts.

/** The number of running tasks of each name, the most frequent name first. */
function runs(snapshot) {
  const numbers = new Map();
  for (const { name } of snapshot.running) numbers.set(name, (numbers.get(name) ?? 0) + 1);
  return [...numbers].sort((a, b) => b[1] - a[1]);
}

class Hosts {
  constructor(place) {
    const now = (item) => item.snapshot;
    const columns = [
      column("Host", "name host", (item, cell) => hostLink(now(item).host, cell)),
      column("State", "", (item, cell) => {
        if (!cell.firstChild) cell.append(make("span", "badge"), " ", make("span", "badge bad"));
        const out = now(item).outages?.length ?? 0;
        show(cell.lastChild, out > 0);
        put(cell.lastChild, counted(out, "outage"));
        const isSilent = item.is_silent;
        const kind = isSilent ? "bad" : { working: "good", stopping: "warn" }[now(item).state] ?? "";
        putClass(cell.firstChild, "badge " + kind);
        put(cell.firstChild, isSilent ? "silent for " + coarse(item.age) : plain(now(item).state, 20));
        cell.title = isSilent ? "since " + clock(now(item).time, true) : "heard " + ago(item.age);
      }),
      column("Runs", "runs guest", (item, cell) => {
        const some = runs(now(item)).slice(0, 4);
        keep(cell, some, ([name]) => name, () => {
          const node = make("span");
          return { node, update: ([name, number]) => put(node, plain(name, 60) + (number > 1 ? " ×" + count(number) : "")) };
        });
      }),
      column("Slots", "num", (item) => count(now(item).running.length) + "/" + count(now(item).host.slots), "slots"),
      column("Throughput", "num", (item) => (item.is_silent ? "–" : rate(now(item).rate?.per_second))),
      column("Done", "num", (item) => count(now(item).totals.done), "done"),
      column("Failed", "num", (item, cell) => {
        putClass(cell, "num" + (now(item).totals.failed ? " red" : ""));
        return count(now(item).totals.failed);
      }, "failed"),
      column("Longest", "num", (item) => {
        const since = Math.min(...now(item).running.map((task) => task.since));
        return Number.isFinite(since) ? coarse(now(item).time - since) : "";
      }, "longest"),
      column("Memory", "num", (item) => size(now(item).memory?.guests)),
    ];
    this.table = new Table(place, columns, (item) => now(item).host.id,
      { none: "No host has written a heartbeat.", title: "Hosts" });
  }

  /** Sorts silent hosts first, and then by name. */
  update(items) {
    items.sort((a, b) => (b.is_silent - a.is_silent)
      || hostTitle(a.snapshot.host).localeCompare(hostTitle(b.snapshot.host), "en", { numeric: true }));
    put(byId("hosts-number"), items.length ? count(items.length) : "");
    const text = ({ snapshot, is_silent }) => [snapshot.host.hostname, snapshot.host.id, is_silent ? "silent" : snapshot.state,
      ...runs(snapshot).map(([name]) => name)].join("\n");
    this.table.update(matching(byId("hosts-filter"), items, text));
    show(byId("hosts"), true);
  }
}

/** The sum of a total over all hosts. */
function totals(hosts, key) {
  return hosts.reduce((sum, { snapshot }) => sum + (snapshot.totals[key] ?? 0), 0);
}

class FleetView {
  constructor(parts) {
    this.parts = parts;
  }

  /** `elapsed`: seconds since the message arrived. */
  update(all, elapsed) {
    const hosts = all.hosts.map((item) => ({ ...item, age: item.age_seconds + elapsed }));
    const silent = hosts.filter((item) => item.is_silent);
    const alive = hosts.filter((item) => !item.is_silent);
    const queue = all.queue;
    put(byId("title"), counted(hosts.length, "host"));
    const perSecond = all.rate?.per_second ?? all.rate;
    document.title = `${counted(hosts.length, "host")} · ${rate(perSecond)} · Task Host`;
    where([queue?.url]);
    if (silent.length) state(count(silent.length) + " silent", "bad");
    else state(alive.some((item) => item.snapshot.state === "working") ? "working" : "idle", alive.length ? "good" : "quiet");
    outages(all.problems);
    const slots = alive.reduce((sum, { snapshot }) => sum + (snapshot.host.slots ?? 0), 0);
    const busy = alive.reduce((sum, { snapshot }) => sum + snapshot.running.length, 0);
    const [used, limit] = ["guests", "limit"]
      .map((key) => alive.reduce((sum, { snapshot }) => sum + (snapshot.memory?.[key] ?? 0), 0));
    const [read, written, failed] = ["bytes_in", "bytes_out", "failed"].map((key) => totals(hosts, key));
    const errors = queue?.errors;
    figures([
      inQueue(queue, (queue?.time ?? 0) + elapsed),
      timeLeft(all.eta_seconds, queue),
      { label: "Throughput", value: rate(perSecond), note: "of " + counted(alive.length, "host") },
      { label: "Done", value: count(totals(hosts, "done")), note: count(totals(hosts, "retried")) + " retried" },
      { label: "Failed", value: count(failed), note: errors == null ? "" : count(errors) + " in the error queue", isBad: failed > 0 || errors > 0 },
      { label: "Silent hosts", value: count(silent.length), note: "of " + count(hosts.length), isBad: silent.length > 0 },
      { label: "Slots in use", value: count(busy) + " of " + count(slots), part: slots ? busy / slots : 0 },
      { label: "Memory of tasks", value: size(used), note: limit ? "of " + size(limit) : "", part: limit ? used / limit : null },
      { label: "Read and written", value: size(read + written), note: size(read) + " in · " + size(written) + " out" },
    ]);
    for (const id of ["charts", "names", "settings", "about"]) show(byId(id), false);
    this.parts.hosts.update(hosts);
    this.parts.spread.update(alive.flatMap(({ snapshot, age }) => {
      const names = byName(snapshot.names);
      return snapshot.running.map((task) => ({ task, names, now: snapshot.time + age, host: snapshot.host }));
    }));
    failures(all.failures, Date.now() / 1000);
  }
}
