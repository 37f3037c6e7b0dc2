/** The number of rows of a CSV text, and the summaries of its numeric columns by name. */
export function summarise(text) {
  const [names = [], ...rows] = parse(text);
  const columns = {};
  names.forEach((name, at) => {
    const cells = rows.map((row) => row[at] ?? "").filter((cell) => cell !== "");
    const numbers = cells.map(Number);
    if (numbers.length === 0 || !numbers.every(Number.isFinite)) return;
    columns[name] = {
      count: numbers.length,
      min: numbers.reduce((a, b) => Math.min(a, b)),
      max: numbers.reduce((a, b) => Math.max(a, b)),
      mean: numbers.reduce((a, b) => a + b) / numbers.length,
    };
  });
  return { rows: rows.length, columns };
}

/** The non-empty rows of a CSV text. Cells may be in quotes. */
function parse(text) {
  const rows = [];
  let row = [];
  for (const [, quoted, bare, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|$)/g)) {
    row.push(quoted?.replaceAll('""', '"') ?? bare);
    if (end === ",") continue;
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = [];
  }
  return rows;
}
