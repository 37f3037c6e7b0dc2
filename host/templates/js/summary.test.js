// Runs without WebAssembly: `npm test`.

import assert from "node:assert/strict";
import test from "node:test";

import { summarise } from "./summary.js";

test("numeric columns are summarised", () => {
  const { rows, columns } = summarise('name,"size, in m",note\n"a ""b""",1.5,\r\nc,-2,x\n\n');
  assert.equal(rows, 2);
  assert.deepEqual(columns, { "size, in m": { count: 2, min: -2, max: 1.5, mean: -0.25 } });
});

test("an empty text has no rows", () => {
  assert.deepEqual(summarise(""), { rows: 0, columns: {} });
});
