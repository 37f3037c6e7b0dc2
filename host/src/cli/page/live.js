// Receives the figures when they change, and shows them.

/** Seconds without a message after which the connection counts as lost. The server sends a message
 * at least every 15 s. */
const PATIENCE = 40;

class Page {
  constructor() {
    const here = (id) => byId(id);
    this.parts = {
      charts: new Charts(here("charts")),
      hosts: new Hosts(here("hosts-table")),
      names: new Names(here("names-table")),
      settings: new Pairs(here("settings-table"), ["Setting", "Value", "From"], "Settings"),
      about: new Pairs(here("about-table"), ["Fact", "Value"], "This host"),
    };
    this.host = new HostView(this.parts);
    this.fleet = new FleetView(this.parts);
    for (const id of ["hosts-filter", "running-filter"]) here(id).addEventListener("input", () => this.render());
    // The URL's fragment names a host, so this link must not change it.
    here("skip").addEventListener("click", (event) => {
      event.preventDefault();
      here("main").focus();
    });
    addEventListener("hashchange", () => {
      this.render();
      scrollTo(0, 0);
    });
    document.addEventListener("visibilitychange", () => this.render());
    document.addEventListener("keydown", (event) => {
      const isTyped = event.target instanceof HTMLInputElement;
      if (event.key !== "/" || isTyped || event.ctrlKey || event.metaKey || event.altKey) return;
      const filter = [here("hosts-filter"), here("running-filter")].find((input) => input.offsetParent);
      if (filter) event.preventDefault();
      filter?.focus();
    });
    setInterval(() => this.tick(), 1000);
    this.connect();
  }

  connect() {
    this.source?.close();
    this.heard = performance.now();
    this.source = new EventSource("api/events");
    this.source.onmessage = ({ data }) => {
      this.shown = JSON.parse(data);
      this.came = performance.now();
      this.isHere();
    };
    this.source.addEventListener("still", () => this.isHere());
    this.source.onerror = () => this.isAway();
  }

  isHere() {
    this.heard = performance.now();
    this.why = "";
    this.lost = null;
    this.tick();
  }

  isAway() {
    this.lost ??= Date.now() / 1000;
    this.tick();
    if (this.source.readyState === EventSource.CLOSED) this.ask();
  }

  /** Finds out why there is no stream: too many pages may be open. */
  async ask() {
    const stop = new AbortController();
    try {
      const answer = await fetch("api/events", { signal: stop.signal });
      this.why = answer.status === 503 ? "Too many pages are open there." : "";
      stop.abort();
    } catch {
      this.why = "";
    }
  }

  /** Runs every second. Updates times, and reconnects if the connection is lost. */
  tick() {
    const silent = (performance.now() - this.heard) / 1000;
    if (silent > PATIENCE) this.isLongSilent();
    // The browser reconnects by itself, except after an answer that is not a stream.
    else if (this.source.readyState === EventSource.CLOSED && silent > 3) this.connect();
    const isLost = this.lost != null;
    put(byId("link"), isLost ? "Reconnecting…" : this.shown ? "Live" : "Connecting…");
    putClass(byId("link"), "pill " + (isLost ? "warn" : this.shown ? "good" : "quiet"));
    show(byId("lost"), isLost);
    if (isLost) {
      const last = this.shown ? " The figures below are the last that arrived." : "";
      put(byId("lost"), `No connection since ${clock(this.lost, true)}. ${this.why ?? ""}${last}`);
    }
    document.body.classList.toggle("stale", isLost && this.shown != null);
    if (!isLost) this.render();
  }

  isLongSilent() {
    this.lost ??= Date.now() / 1000;
    this.connect();
  }

  render() {
    if (!this.shown || document.hidden) return;
    const elapsed = (performance.now() - this.came) / 1000;
    show(byId("waiting"), false);
    if (this.shown.now) this.showHost(this.shown, elapsed);
    else this.showFleet(this.shown, elapsed);
    // For measurements of the page's loading time.
    if (!this.isMeasured) performance.mark("figures");
    this.isMeasured = true;
  }

  showHost(shown, elapsed, heartbeat) {
    this.useRunning(false);
    this.host.update(shown, shown.now.time + elapsed + (heartbeat?.age_seconds ?? 0), heartbeat);
    show(byId("back"), heartbeat != null);
    if (!heartbeat) footer([["Figures as JSON", "api/host"], ["Metrics", "metrics"], ["Readiness", "readyz"]]);
  }

  showFleet(all, elapsed) {
    footer([["Figures as JSON", "api/hosts"]]);
    const one = all.hosts.find(({ snapshot }) => location.hash === hostAddress(snapshot.host));
    if (one) {
      this.showHost({ now: one.snapshot }, elapsed, one);
      return;
    }
    this.useRunning(true);
    show(byId("back"), false);
    this.fleet.update(all, elapsed);
  }

  /** Rebuilds the table of running tasks. It has a column for hosts only in the view of many. */
  useRunning(withHosts) {
    if (this.withHosts === withHosts) return;
    this.withHosts = withHosts;
    // For many hosts, causes are more useful than tasks, so they come first.
    byId("main").insertBefore(byId("failures"), byId(withHosts ? "running" : "names"));
    const place = byId("running-table");
    place.replaceChildren();
    this.parts.running = this.parts.spread = new Running(place, withHosts);
  }
}

new Page();
