// The last hour as charts. The cursor marks the same minute in all charts.

/** The marks of a scale: zero, and at most four steps at round numbers. */
function steps(highest, isTime) {
  if (!(highest > 0)) return [0, 1];
  const bases = isTime && highest > 60 ? [60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400] : null;
  const power = 10 ** Math.floor(Math.log10(highest / 3));
  const step = bases?.find((base) => highest / base <= 4)
    ?? [1, 2, 2.5, 5, 10].map((base) => base * power).find((step) => highest / step <= 4);
  const all = [0];
  while (all.at(-1) < highest) all.push(all.length * step);
  return all;
}

/** A chart of several series: `{ key, label, className }`. */
class Chart {
  constructor(title, series, { form, isStacked = false, isTime = false, hasArea = false }) {
    Object.assign(this, { title, series, form, isStacked, isTime, hasArea, minutes: [] });
    this.values = series.map(() => make("b"));
    this.when = make("span");
    const entries = series.map(({ label, className }, n) =>
      make("span", "swatch " + className, label + " ", this.values[n]));
    this.legend = make("div", "legend", ...entries, this.when);
    this.plot = this.draw("svg", "plot");
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("tabindex", "0");
    this.node = make("div", "chart", make("h2", "", title), this.legend, this.plot);
    this.plot.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("blur", () => this.choose(null));
    this.plot.addEventListener("keydown", (event) => {
      const last = this.minutes.length - 1;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") this.choose(null);
      if (!by || last < 0) return;
      event.preventDefault();
      this.legend.setAttribute("aria-live", "polite");
      this.choose(Math.min(last, Math.max(0, (this.chosen ?? last + 1) + by)));
    });
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  draw(tag, className, attributes = {}, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    if (className) element.setAttribute("class", className);
    for (const name of Object.keys(attributes)) element.setAttribute(name, attributes[name]);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  point(x) {
    const { left, width } = this.frame ?? {};
    if (!width || this.minutes.length === 0) return;
    const time = this.first + ((x - left) / width) * 3600;
    const distance = (minute) => Math.abs(minute.time + 30 - time);
    const nearest = this.minutes.reduce((best, minute, n) =>
      (distance(minute) < distance(this.minutes[best]) ? n : best), 0);
    this.choose(nearest);
  }

  choose(chosen) {
    if (chosen !== this.chosen) this.onchoose?.(chosen);
  }

  /** Shows `minutes`, and the values of the chosen minute or else of the last one. */
  update(minutes, chosen) {
    Object.assign(this, { minutes, chosen });
    this.render();
  }

  render() {
    const { minutes, series } = this;
    const shown = minutes[this.chosen ?? minutes.length - 1];
    series.forEach(({ key }, n) => put(this.values[n], shown?.[key] == null ? "–" : this.form(shown[key])));
    put(this.when, shown && this.chosen != null ? "at " + hour(shown.time) : "");
    const said = series.map(({ label, key }) => label + " " + (shown?.[key] == null ? "none" : this.form(shown[key])));
    this.plot.setAttribute("aria-label",
      this.title + " by minute over the last hour; last: " + said.join(", ") + ". Left and right choose a minute.");
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    if (!width || minutes.length === 0) return;
    const total = (minute) => series.map(({ key }) => minute[key] ?? 0)
      .reduce((sum, value) => (this.isStacked ? sum + value : Math.max(sum, value)), 0);
    const scale = steps(Math.max(0, ...minutes.map(total)), this.isTime);
    const labels = scale.map((value) => this.form(value));
    const left = 14 + 6 * Math.max(...labels.map((label) => label.length));
    this.frame = { left, width: width - left - 2 };
    // The last minute ends at the right edge.
    this.first = minutes.at(-1).time - 3540;
    const x = (time) => left + ((time - this.first) / 3600) * this.frame.width;
    const y = (value) => height - 20 - (value / scale.at(-1)) * (height - 30);
    const parts = [];
    scale.forEach((value, n) => {
      const at = Math.round(y(value)) + 0.5;
      parts.push(this.draw("line", "grid", { x1: left, x2: width - 2, y1: at, y2: at }));
      parts.push(this.draw("text", "", { x: left - 6, y: at + 4, "text-anchor": "end" }, labels[n]));
    });
    for (const part of [0, 1, 2, 3, 4]) {
      const time = this.first + part * 900;
      const anchor = ["start", "middle", "middle", "middle", "end"][part];
      parts.push(this.draw("text", "", { x: x(time), y: height - 5, "text-anchor": anchor }, hour(time)));
    }
    const chosen = minutes[this.chosen];
    if (chosen) {
      const at = Math.round(x(chosen.time + 30)) + 0.5;
      parts.push(this.draw("line", "cursor", { x1: at, x2: at, y1: 8, y2: height - 20 }));
    }
    parts.push(...(this.isStacked ? this.bars(x, y) : this.lines(x, y)));
    this.plot.replaceChildren(...parts);
  }

  bars(x, y) {
    const wide = Math.max(1, this.frame.width / 60 - 1.5);
    return this.minutes.flatMap((minute) => {
      let below = 0;
      return this.series.filter(({ key }) => minute[key] > 0).map(({ key, className }) => {
        const [bottom, top] = [y(below), y(below += minute[key])];
        const tall = Math.max(bottom - top, 1);
        return this.draw("rect", "fill " + className, { x: x(minute.time) + 0.75, y: bottom - tall, width: wide, height: tall });
      });
    });
  }

  lines(x, y) {
    return this.series.flatMap(({ key, className }) => {
      // A minute without a value ends a line, and so does a gap between minutes.
      const runs = [];
      let last;
      for (const minute of this.minutes) {
        if (minute[key] == null) continue;
        if (last === undefined || minute.time - last > 90) runs.push([]);
        runs.at(-1).push([x(minute.time + 30), y(minute[key])]);
        last = minute.time;
      }
      return runs.flatMap((points) => {
        if (points.length === 1) return [this.draw("circle", "fill " + className, { cx: points[0][0], cy: points[0][1], r: 2.5 })];
        const line = points.map((point) => point.map((n) => n.toFixed(1)).join(",")).join("L");
        const drawn = [this.draw("path", "line " + className, { d: "M" + line })];
        if (this.hasArea) {
          const [from, to] = [points[0][0], points.at(-1)[0]];
          drawn.unshift(this.draw("path", "area " + className, { d: `M${from},${y(0)}L${line}L${to},${y(0)}Z` }));
        }
        return drawn;
      });
    });
  }
}

/** The charts of one host. */
class Charts {
  constructor(place) {
    this.all = [
      new Chart("Tasks per minute", [
        { key: "done", label: "done", className: "done" },
        { key: "retried", label: "retried", className: "retried" },
        { key: "failed", label: "failed", className: "failed" },
      ], { form: brief, isStacked: true }),
      new Chart("Time per task", [
        { key: "p50", label: "half under", className: "p50" },
        { key: "p95", label: "95% under", className: "p95" },
      ], { form: span, isTime: true }),
      new Chart("Waiting in the queue", [
        { key: "waiting", label: "tasks", className: "queued" },
      ], { form: brief, hasArea: true }),
    ];
    place.append(...this.all.map((chart) => chart.node));
    for (const chart of this.all) {
      chart.onchoose = (chosen) => this.all.forEach((other) => other.update(this.minutes, chosen));
    }
  }

  update(minutes) {
    this.minutes = minutes;
    for (const chart of this.all) chart.update(minutes, chart.chosen < minutes.length ? chart.chosen : null);
  }
}
