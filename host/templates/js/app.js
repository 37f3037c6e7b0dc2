// Summarises CSV files: count, smallest, largest and mean value of each numeric column, in
// `summary.json`.
//
// Replace this example with your own task. README.md says how to test, build and queue it.

import { Reject, task } from "./task-host.js";
import { summarise } from "./summary.js";

export const { prepare, execute, finalize } = task((task) => {
  // The task's parameters: `payload_info` in its message, such as `{"min_rows": 10}`.
  const { min_rows: minRows = 1 } = task.payload ?? {};
  if (task.inputs.length === 0) {
    // A retry would fail the same way. Otherwise, throw `Retry`.
    throw new Reject("the task has no inputs");
  }
  const summaries = {};
  for (const key of task.inputs) {
    const { rows, columns } = summarise(task.readText(key));
    if (rows < minRows) {
      throw new Reject(`input ${key} has ${rows} rows; min_rows is ${minRows}`);
    }
    summaries[key] = columns;
    task.log(`${key}: ${rows} rows`);
  }
  task.write("summary.json", JSON.stringify(summaries));
});
