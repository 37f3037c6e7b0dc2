// The view of one host: its current state.

const STATES = { working: "good", idle: "quiet", stopping: "warn" };

function hostFigures(now) {
  const { totals, rate: speed, memory, cache } = now;
  const done = totals.done + (totals.done_before ?? 0);
  const others = [["retried", totals.retried], ["returned", totals.returned], ["lost", totals.lost]]
    .filter(([, number]) => number > 0).map(([word, number]) => count(number) + " " + word);
  const running = now.running.length;
  const looks = totals.cache_hits + totals.cache_misses;
  const all = [
    inQueue(now.queue, now.time),
    timeLeft(now.eta_seconds, now.queue),
    { label: "Throughput", value: rate(speed?.per_second), note: speed ? "over the last " + coarse(speed.over_seconds) : "" },
    { label: "Done", value: count(done), note: totals.done_before ? count(totals.done_before) + " were done before" : "since the start" },
    { label: "Failed", value: count(totals.failed), note: others.join(" · ") || "none retried", isBad: totals.failed > 0 },
    {
      label: "Slots in use", value: count(running) + " of " + count(now.host.slots), part: running / now.host.slots,
      note: counted(now.held, "more task") + " held",
    },
    {
      label: "Memory of tasks", value: size(memory?.guests ?? 0),
      note: memory?.limit ? "of " + size(memory.limit) : "no limit", part: memory?.limit ? memory.guests / memory.limit : null, isLimit: true,
    },
    {
      label: "Cache", value: size(cache?.bytes ?? 0), part: cache?.limit ? cache.bytes / cache.limit : null,
      note: [cache?.limit ? "of " + size(cache.limit) : "", looks ? Math.floor((100 * totals.cache_hits) / looks) + "% found" : ""]
        .filter(Boolean).join(" · "),
    },
    { label: "Read and written", value: size(totals.bytes_in + totals.bytes_out), note: size(totals.bytes_in) + " in · " + size(totals.bytes_out) + " out" },
  ];
  return all;
}

/** A map from a name to its statistics. */
const byName = (names) => new Map((names ?? []).map((name) => [name.name, name]));

/** Facts about the host itself, for a table. */
function facts({ host }, age) {
  const worker = Object.entries(host.worker ?? {}).filter(([, value]) => value != null && value !== "")
    .map(([name, value]) => [name.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)]);
  return [
    ["host", host.id], ["machine", host.hostname], ["process", String(host.pid)], ["version", host.version],
    ["started", clock(host.started, true)], ["queue", host.queue], ["bucket", host.bucket],
    ...(age == null ? [] : [["last heartbeat", ago(age)]]), ...worker,
  ];
}

class HostView {
  constructor(parts) {
    this.parts = parts;
  }

  /** `clockNow`: the current time of the host, later than the time of its last message. */
  update({ now, minutes, settings }, clockNow, heartbeat) {
    const { host } = now;
    put(byId("title"), hostTitle(host));
    document.title = `${hostTitle(host)} · ${rate(now.rate?.per_second)} · Task Host`;
    where([host.queue, `version ${host.version}`, `up ${coarse(clockNow - host.started)}`]);
    if (heartbeat?.is_silent) state("silent since " + clock(now.time), "bad");
    else state(now.state, STATES[now.state] ?? "quiet");
    outages(now.outages);
    // A silent host may have ended, so it has no rate and no time left.
    figures(hostFigures(heartbeat?.is_silent ? { ...now, rate: null, eta_seconds: null } : now));
    show(byId("charts"), minutes?.length > 0);
    if (minutes?.length) this.parts.charts.update(minutes);
    show(byId("hosts"), false);
    // The running times of a silent host's tasks end with its last heartbeat.
    const until = heartbeat?.is_silent ? now.time : clockNow;
    const names = byName(now.names);
    this.parts.running.update(now.running.map((task) => ({ task, now: until, names })));
    failures(now.failures, clockNow);
    this.parts.names.update(now.names);
    show(byId("settings"), settings?.length > 0);
    put(byId("settings-number"), settings ? count(settings.length) : "");
    // Settings that were set explicitly come first.
    const isDefault = ({ source }) => Number(source === "default");
    const sorted = [...(settings ?? [])].sort((a, b) => isDefault(a) - isDefault(b));
    this.parts.settings.update(sorted.map(({ name, value, source }) => [name, value, source]));
    this.parts.about.update(facts(now, heartbeat?.age_seconds));
    show(byId("about"), true);
  }
}
