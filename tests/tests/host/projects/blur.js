// Blurs grey pictures (binary PGM): each pixel becomes the mean of the pixels around it.

import { Reject, task } from "./task-host.js";

export const { prepare, execute, finalize } = task((task) => {
  const { radius = 1 } = task.payload ?? {};
  for (const key of task.inputs) {
    const bytes = task.read(key);
    const header = /^P5\s(\d+)\s(\d+)\s255\s/.exec(String.fromCharCode(...bytes.subarray(0, 64)));
    if (!header) throw new Reject(`input ${key} is not a grey picture`);
    const [begin, width, height] = [header[0].length, Number(header[1]), Number(header[2])];
    const out = bytes.slice();
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        let [sum, count] = [0, 0];
        for (let v = Math.max(0, y - radius); v <= Math.min(height - 1, y + radius); v++) {
          for (let u = Math.max(0, x - radius); u <= Math.min(width - 1, x + radius); u++) {
            sum += bytes[begin + v * width + u];
            count++;
          }
        }
        out[begin + y * width + x] = sum / count;
      }
    }
    task.write(`1_blurred/${key}`, out);
  }
});
