// Parts that the views of one host and of many hosts share.

/** The figures at the top: `{ label, value, note, part, isBad }`. A bar shows `part` (0 to 1). */
function figures(items) {
  keep(byId("figures"), items, (item) => item.label, ({ label }) => {
    const [value, note, filled] = [make("div", "value"), make("div", "note"), make("span")];
    const bar = make("div", "bar", filled);
    const node = make("div", "figure", make("dt", "", label), make("dd", "", value, bar, note));
    const update = (item) => {
      putClass(node, "figure" + (item.isBad ? " bad" : ""));
      put(value, item.value);
      put(note, item.note ?? "");
      show(bar, item.part != null);
      if (item.part != null) {
        filled.style.width = (100 * Math.min(1, Math.max(0, item.part))).toFixed(1) + "%";
        putClass(bar, "bar" + (item.part > 0.97 && item.isLimit ? " bad" : ""));
      }
    };
    return { node, update };
  });
  show(byId("figures"), true);
}

/** The time left, and the time of the end. */
function timeLeft(eta, queue) {
  const isEmpty = queue?.waiting === 0 && !(queue.held > 0 || queue.retrying > 0);
  if (isEmpty) return { label: "Time left", value: "none", note: "the queue is empty" };
  if (eta == null && queue?.waiting === 0 && queue.held > 0)
    return { label: "Time left", value: "unknown", note: "only running tasks are left" };
  if (eta == null) return { label: "Time left", value: "unknown", note: "until tasks end" };
  return { label: "Time left", value: coarse(eta), note: "until about " + clock(Date.now() / 1000 + eta) };
}

/** Counts of the queue. `now` is the time of the whole message. */
function inQueue(queue, now) {
  if (!queue) return { label: "Waiting in the queue", value: "unknown", note: "not counted yet" };
  const notes = [];
  if (queue.held != null) notes.push(count(queue.held) + " held");
  if (queue.retrying != null) notes.push(count(queue.retrying) + " to be retried");
  if (now - queue.time > 60) notes.push("counted " + ago(now - queue.time));
  const value = queue.waiting == null ? "unknown" : count(queue.waiting);
  return { label: "Waiting in the queue", value, note: notes.join(" · ") };
}

/** Whether a task runs much longer than others of its name. The host warns by the same rule. */
function isSlow(task, seconds, names) {
  const name = names.get(task.name);
  return name?.done >= 10 && name.p50 != null && seconds >= Math.max(30, 10 * name.p50);
}

/** The table of running tasks: of one host, or of many with a column for hosts. */
class Running {
  constructor(place, withHosts) {
    const task = (item) => item.task;
    const columns = [
      column("Task", "name guest cut", (item) => plain(task(item).name, 200)),
      column("ID", "id", (item, cell) => this.id(item, cell)),
      column("Step", "step", (item, cell) => this.step(item, cell)),
      column("Running for", "num", (item, cell) => this.time(item, cell)),
      column("Memory", "num", (item) => size(task(item).memory)),
      column("Last line", "one mono guest", (item, cell) => {
        const text = plain(task(item).last_line);
        if (cell.title !== text) cell.title = text;
        return text;
      }),
    ];
    if (withHosts) columns.splice(2, 0, column("Host", "host", (item, cell) => hostLink(item.host, cell)));
    const key = ({ host, task }) => [host?.id, task.name, task.id, task.attempt, task.since].join("\0");
    this.table = new Table(place, columns, key, { most: withHosts ? 20 : 50, none: "No task is running.", title: "Running tasks" });
  }

  id({ task }, cell) {
    if (!cell.firstChild) cell.append(make("div", "beside", make("div", "mono guest two"), make("span", "badge warn")));
    const [text, attempt] = cell.firstChild.children;
    const id = plain(task.id, 200);
    put(text, id);
    if (cell.title !== id) cell.title = id;
    show(attempt, task.attempt > 1);
    put(attempt, "attempt " + task.attempt);
  }

  step({ task, now }, cell) {
    if (!cell.firstChild) cell.append(make("span", "badge"), " ", make("span", "dim fine"));
    put(cell.firstChild, plain(task.step, 20));
    put(cell.lastChild, task.step_since == null ? "" : coarse(now - task.step_since));
  }

  time({ task, now, names }, cell) {
    if (!cell.firstChild) cell.append(make("span"), " ", make("span", "badge warn"));
    const seconds = now - task.since;
    const slow = isSlow(task, seconds, names);
    put(cell.firstChild, coarse(seconds));
    show(cell.lastChild, slow);
    put(cell.lastChild, slow ? "slow" : "");
    const usual = slow ? "; half of its name took less than " + span(names.get(task.name).p50) : "";
    const title = "since " + clock(task.since, true) + usual;
    if (cell.title !== title) cell.title = title;
  }

  /** `items`: `{ task, now, names, host }`. */
  update(items) {
    items.sort((a, b) => a.task.since - b.task.since);
    put(byId("running-number"), items.length ? count(items.length) : "");
    const text = ({ task, host }) => [task.name, task.id, task.step, task.last_line, host?.hostname].join("\n");
    this.table.update(matching(byId("running-filter"), items, text));
    show(byId("running"), true);
  }
}

const hostTitle = (host) => plain(host?.hostname || host?.id || "unknown", 80);

/** The URL fragment that selects a host. */
const hostAddress = (host) => "#host=" + encodeURIComponent((host?.id ?? "").toWellFormed());

/** A link to the view of a host. */
function hostLink(host, cell) {
  if (!cell.firstChild) cell.append(make("a", "guest two"));
  const to = hostAddress(host);
  if (cell.firstChild.getAttribute("href") !== to) cell.firstChild.setAttribute("href", to);
  put(cell.firstChild, hostTitle(host));
}

/** Failures, the most frequent cause first. */
function failures(items, now) {
  const all = [...(items ?? [])].sort((a, b) => b.count - a.count);
  put(byId("failures-number"), all.length ? count(all.reduce((sum, one) => sum + one.count, 0)) : "");
  keep(byId("causes"), all, (item) => item.cause, () => {
    const [times, cause, names, when, givenUp] =
      [make("span", "times"), make("span", "mono guest two"), make("span", "guest"), make("span"), make("span", "red")];
    const [of, text] = [make("p", "guest"), make("pre", "guest")];
    text.tabIndex = 0;
    const summary = make("summary", "", times, cause, make("span", "sign"), make("span", "facts", names, when, givenUp));
    const node = make("li", "", make("details", "", summary, make("div", "example", of, text)));
    const update = (item) => {
      put(times, count(item.count));
      put(cause, plain(item.cause, 300));
      put(names, plain((item.names ?? []).join(", "), 120));
      put(when, item.count === 1 ? ago(now - item.last) : "last " + ago(now - item.last) + ", first " + ago(now - item.first));
      put(givenUp, item.given_up ? count(item.given_up) + " rejected" : "");
      show(givenUp, item.given_up > 0);
      const example = item.example;
      put(of, example ? `${plain(example.name, 200)} ${plain(example.id, 200)}, attempt ${example.attempt}` : "");
      put(text, lines(example?.text ?? item.cause));
    };
    return { node, update };
  });
  show(byId("failures"), all.length > 0);
}

/** The table of task names, with counts and times. */
class Names {
  constructor(place) {
    const columns = [
      column("Task", "name guest cut", (item) => plain(item.name, 200)),
      column("Done", "num", (item) => count(item.done), "done"),
      column("Failed", "num", (item, cell) => {
        putClass(cell, "num" + (item.failed ? " red" : ""));
        return count(item.failed);
      }, "failed"),
      column("Retried", "num", (item) => count(item.retried), "retried"),
      column("Half took less than", "num", (item) => span(item.p50), "50% <"),
      column("90%", "num", (item) => span(item.p90), "90% <"),
      column("99%", "num", (item) => span(item.p99), "99% <"),
    ];
    this.table = new Table(place, columns, (item) => item.name, { title: "Tasks by name" });
  }

  update(items) {
    this.table.update([...(items ?? [])].sort((a, b) => b.done + b.failed - a.done - a.failed));
    show(byId("names"), items?.length > 0);
  }
}

/** A table of two or three columns of texts: `[name, value, source]`. */
class Pairs {
  constructor(place, titles, title) {
    const classes = ["", "mono guest", "dim"];
    const columns = titles.map((text, n) => column(text, classes[n], (item) => lines(item[n], 2000)));
    this.table = new Table(place, columns, (item) => item[0], { most: Infinity, title, folds: false });
  }

  update(items) {
    this.table.update(items);
  }
}

/** Outages, in a list that screen readers announce when it changes. */
function outages(items) {
  keep(byId("outages"), items ?? [], (item) => item, () => {
    const node = make("li", "guest");
    return { node, update: (item) => put(node, plain(item)) };
  });
  show(byId("outages"), items?.length > 0);
}

/** The words under the title. */
function where(texts) {
  keep(byId("where"), texts.filter(Boolean), (text) => text, () => {
    const node = make("span", "guest");
    return { node, update: (text) => put(node, plain(text, 120)) };
  });
}

function state(word, kind) {
  put(byId("state"), word);
  putClass(byId("state"), "pill " + kind);
  show(byId("state"), true);
}

function footer(links) {
  keep(byId("footer"), links, ([, to]) => to, ([text, to]) => {
    const link = make("a", "", text);
    link.setAttribute("href", to);
    return { node: make("span", "", link), update: () => {} };
  });
}
