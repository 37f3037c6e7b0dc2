// Formats numbers, times and texts for people.

/** Characters that are invisible or reorder text, as in the host's `plain.rs`. */
const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}]/gu;

function escaped(character) {
  if (character === "\n") return "\\n";
  if (character === "\t") return "\\t";
  return "\\u{" + character.codePointAt(0).toString(16) + "}";
}

/** More combining marks on one letter than any script uses. They would cover other text. */
const MARKS = /(\p{M}{4})\p{M}+/gu;

/** A text on one line, truncated to `most` characters. Odd characters are escaped. */
function plain(text, most = 300) {
  const all = Array.from(String(text ?? "").slice(0, 2 * most));
  const cut = all.length > most ? all.slice(0, most).join("") + "…" : all.join("");
  return cut.replace(MARKS, "$1…").replace(ODD, escaped);
}

/** A text of several lines. Odd characters are escaped. */
function lines(text, most = 20000) {
  const cut = String(text ?? "").slice(0, most);
  return cut.replace(MARKS, "$1…").replace(ODD, (odd) => (odd === "\n" || odd === "\t" ? odd : escaped(odd)));
}

const WHOLE = new Intl.NumberFormat("en");
const BRIEF = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function count(number) {
  return WHOLE.format(Math.round(number ?? 0));
}

/** `1 task`, `2 tasks` */
function counted(number, noun) {
  return count(number) + " " + noun + (number === 1 ? "" : "s");
}

/** A number with at most three digits: `1.2K`. */
function brief(number) {
  return Math.abs(number) < 1 ? String(Number(number.toPrecision(2))) : BRIEF.format(number);
}

function rate(perSecond) {
  if (perSecond == null) return "–";
  if (perSecond >= 99.95) return count(perSecond) + "/s";
  if (perSecond === 0) return "0/s";
  return (perSecond < 0.0995 ? perSecond.toPrecision(2) : perSecond.toFixed(perSecond < 9.995 ? 2 : 1)) + "/s";
}

function size(bytes) {
  if (bytes == null) return "";
  let unit = 0;
  while (bytes >= 1023.5 && unit < 5) {
    bytes /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || bytes >= 99.95 ? 0 : 1;
  return bytes.toFixed(digits) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
}

/** A time with two or three digits: `340 ms`, `4.2 s`, `3m 12s`, `2h 5m`, `3d 4h`. */
function span(seconds) {
  if (seconds == null) return "";
  const s = Math.max(0, seconds);
  if (s === 0) return "0 s";
  if (s < 0.001) return (s * 1e6).toFixed(0) + " µs";
  if (s < 0.9995) return (s * 1e3).toFixed(s < 0.01 ? 1 : 0) + " ms";
  if (s < 59.95) return s.toFixed(1).replace(/\.0$/, "") + " s";
  return coarse(s);
}

/** A time in whole seconds, for times that change while they are shown. */
function coarse(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return s + " s";
  const [minutes, hours, days] = [Math.floor(s / 60), Math.floor(s / 3600), Math.floor(s / 86400)];
  const two = (first, second, unit) => first + (second ? " " + second + unit : "");
  if (hours < 1) return two(minutes + "m", s % 60, "s");
  if (days < 1) return two(hours + "h", minutes % 60, "m");
  return two(days + "d", hours % 24, "h");
}

function ago(seconds) {
  return seconds < 1.5 ? "now" : coarse(seconds) + " ago";
}

/** The time of day, as `14:03`. */
function hour(time) {
  return new Date(time * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

/** The time of day, with the date if it is not today's. */
function clock(time, seconds = false) {
  const date = new Date(time * 1000);
  const form = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (seconds) form.second = "2-digit";
  const day = date.toDateString() === new Date().toDateString()
    ? "" : date.toLocaleDateString(undefined, { day: "numeric", month: "short" }) + ", ";
  return day + date.toLocaleTimeString(undefined, form);
}
