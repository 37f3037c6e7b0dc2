// Elements. Strings are only inserted as text: the policy of the page forbids everything else.

const byId = (id) => document.getElementById(id);

/** An element with a class and children, which are elements or texts. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Sets a text only if it differs, so that the user's selection survives. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function putClass(element, className) {
  if (element.className !== className) element.className = className;
}

function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

const kept = new WeakMap();

/**
 * Gives an element one child per item, in order. A child is kept as long as its key, so that focus,
 * selections and open details survive. `create` returns `{ node, update }`.
 */
function keep(parent, items, keyOf, create) {
  const old = kept.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    let key = keyOf(item);
    while (now.has(key)) key += " ";
    now.set(key, old.get(key) ?? create(item));
    old.delete(key);
    now.get(key).update(item);
  }
  for (const gone of old.values()) gone.node.remove();
  let place = parent.firstChild;
  for (const { node } of now.values()) {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  kept.set(parent, now);
}

/** A column. `value` returns the text of a cell. Narrow screens fold rows and show `label`. */
const column = (title, className, value, label) => ({ title, className, value, label });

/**
 * A table. Sets ARIA roles, because browsers drop the implicit ones when CSS folds rows on a phone.
 * Shows the first `most` items until a button shows all.
 */
class Table {
  constructor(place, columns, keyOf, { most = 100, none = "", title = "", folds = true } = {}) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.most = most;
    const head = make("tr", "", ...columns.map((column) => {
      const cell = make("th", column.className.split(" ").includes("num") ? "num" : "", column.title);
      cell.setAttribute("role", "columnheader");
      return cell;
    }));
    head.setAttribute("role", "row");
    this.body = make("tbody");
    this.body.setAttribute("role", "rowgroup");
    this.table = make("table", folds ? "" : "pairs", make("thead", "", head), this.body);
    this.table.setAttribute("role", "table");
    this.table.setAttribute("aria-label", title);
    this.none = make("p", "none", none);
    this.all = make("button", "more");
    this.all.type = "button";
    this.all.addEventListener("click", () => {
      this.most = Infinity;
      this.update(this.items);
    });
    place.append(make("div", folds ? "fold" : "", this.table), this.none, this.all);
  }

  update(items) {
    this.items = items;
    show(this.table, items.length > 0);
    show(this.none, items.length === 0);
    show(this.all, items.length > this.most);
    put(this.all, "Show all " + count(items.length));
    keep(this.body, items.slice(0, this.most), this.keyOf, () => this.row());
  }

  row() {
    const cells = this.columns.map((column) => {
      const cell = make("td", column.className);
      cell.setAttribute("role", "cell");
      if (column.label) cell.dataset.label = column.label;
      return cell;
    });
    // CSS can truncate an element inside a cell after two lines, but not the cell itself.
    const texts = cells.map((cell, n) => {
      if (!this.columns[n].className.split(" ").includes("cut")) return cell;
      cell.append(make("div", "two"));
      return cell.firstChild;
    });
    const node = make("tr", "", ...cells);
    node.setAttribute("role", "row");
    const update = (item) => {
      this.columns.forEach((column, n) => {
        const value = column.value(item, cells[n]);
        if (typeof value !== "string") return;
        put(texts[n], value);
        if (texts[n] !== cells[n] && cells[n].title !== value) cells[n].title = value;
      });
    };
    return { node, update };
  }
}

/** The items whose texts contain the value of an input. All items if it is empty. */
function matching(input, items, textOf) {
  const wanted = input.value.trim().toLowerCase();
  return wanted ? items.filter((item) => textOf(item).toLowerCase().includes(wanted)) : items;
}
