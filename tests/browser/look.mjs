// A browser that opens pages and checks them.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const WIDTHS = { wide: 1280, phone: 360 };

/** Opens pages in one browser. Closes the browser at the end. */
export async function browse(act) {
  // The packages are outside of the repository.
  const packages = createRequire(join(process.env.BROWSER_PACKAGES, "node_modules", "none.js"));
  const browser = await packages("playwright-core").chromium.launch({
    executablePath: process.env.BROWSER,
    // Tests run as root, for which Chromium has no sandbox. Chromium sends no requests of its own.
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
      "--disable-sync", "--disable-quic"],
  });
  try {
    await act(browser);
  } finally {
    await browser.close();
  }
}

/**
 * Opens the page at an address, and waits until it shows figures. Collects all complaints of the
 * browser: errors, and violations of the content security policy.
 */
export async function open(browser, address, { scheme = "light", size = "wide" } = {}) {
  const context = await browser.newContext({
    colorScheme: scheme, viewport: { width: WIDTHS[size], height: size === "wide" ? 900 : 740 }, reducedMotion: "reduce",
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.complaints.push(message.text()));
  page.on("dialog", (dialog) => page.complaints.push(dialog.message()) && dialog.dismiss());
  const origin = new URL(address).origin;
  page.on("request", (request) => {
    const { href, protocol } = new URL(request.url());
    if (!href.startsWith(origin) && protocol !== "data:") page.complaints.push("a request to " + href);
  });
  await page.goto(address);
  await page.locator("#figures").waitFor();
  return page;
}

/** Checks for complaints, foreign elements, executed scripts and sideways scrolling. */
export async function isWell(page, what) {
  assert.deepEqual(page.complaints, [], what);
  const found = await page.evaluate(() => ({
    broken: window.broken ?? null,
    // The page itself has one script.
    scripts: document.querySelectorAll("script").length,
    // The page itself has none of these elements, so a text would have created them.
    foreign: document.querySelectorAll("img, iframe, object, embed, form, base, [onmouseover], [onerror], [onfocus], [autofocus]").length,
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  }));
  assert.deepEqual(found, { broken: null, scripts: 1, foreign: 0, sideways: 0 }, what);
}

/** Checks that characters that reverse text or hide a part of it are escaped everywhere. */
export async function isPlain(page, what) {
  const odd = await page.evaluate(() => {
    const shown = [document.title, document.body.innerText,
      ...[...document.querySelectorAll("[title], [aria-label]")].flatMap((e) => [e.title, e.getAttribute("aria-label") ?? ""])];
    return shown.join("\n").match(/[\p{Cf}\p{Zl}\p{Zp}]|(?![\n\t\r])\p{Cc}/u)?.[0].codePointAt(0) ?? null;
  });
  assert.equal(odd, null, `${what}: U+${odd?.toString(16)} is shown as it is`);
}

/** Unfolds all details. */
export const unfold = (page) => page.evaluate(() =>
  document.querySelectorAll("details").forEach((details) => { details.open = true; }));

export const allViews = ["light", "dark"].flatMap((scheme) => ["wide", "phone"].map((size) => ({ scheme, size })));

/** Saves a picture of the whole page as WebP. */
export async function picture(page, path, { height } = {}) {
  const { writeFile } = await import("node:fs/promises");
  const session = await page.context().newCDPSession(page);
  const clip = await page.evaluate((most) => ({
    x: 0, y: 0, scale: 1, width: document.documentElement.clientWidth,
    height: Math.min(most ?? Infinity, document.documentElement.scrollHeight),
  }), height);
  const { data } = await session.send("Page.captureScreenshot",
    { format: "webp", quality: 88, captureBeyondViewport: true, clip });
  await writeFile(path, Buffer.from(data, "base64"));
}
