// Checks the status page in a browser: `node check.mjs NAME ADDRESS PICTURES`.
//
// ADDRESS is the address of a real host or dashboard. Most checks use its page with their own
// figures.

import assert from "node:assert/strict";
import { join } from "node:path";
import { allViews, browse, isPlain, isWell, open, picture, unfold } from "./look.mjs";
import { HOSTILE, fleet, host, hostileFleet, hostileHost } from "./samples.mjs";
import { StandIn } from "./stand_in.mjs";

const now = () => Date.now() / 1000;
const text = (page, selector) => page.locator(selector).innerText();

/** The value of a figure at the top of the page. */
const figure = (page, label) => page.locator(".figure", { hasText: label }).locator(".value").innerText();

/** The escaped beginnings of hostile texts that the page must escape. */
const SHOWN = { reversed: "safe \\u{202e} exe.gpj", terminal: "\\u{1b}]0;title\\u{7}", invisible: "in\\u{200b}visi\\u{ad}ble" };

const checks = {
  /** A real host with tasks that print, sleep, and fail with markup in their errors. */
  async real(browser, address) {
    const page = await open(browser, address);
    await page.locator("#running-table tbody tr", { hasText: "misbehave" }).first().waitFor();
    await page.locator("#causes details").waitFor();
    await unfold(page);
    await page.locator("#causes pre", { hasText: "</script><script>window.broken = 1</script>: <img src=x" }).waitFor();
    await page.locator("#settings-table", { hasText: "parallel" }).waitFor();
    assert.match(await text(page, "#link"), /Live/);
    assert.equal(await page.locator("#charts .chart").count(), 3);
    await isWell(page, "a real host");
    // The page updates without a reload.
    const before = await figure(page, "Done");
    await page.waitForFunction((value) => {
      const figures = [...document.querySelectorAll(".figure")];
      return figures.find((one) => one.innerText.includes("Done")).querySelector(".value").innerText !== value;
    }, before);
    await isPlain(page, "a real host");
    await isWell(page, "a real host, later");
  },

  /** A dashboard of 40 hosts, two of which are silent, and of hosts with hostile texts. */
  async dashboard(browser, address) {
    const page = await open(browser, address);
    const rows = page.locator("#hosts-table tbody tr");
    await rows.nth(40 + Object.keys(HOSTILE).length - 1).waitFor();
    assert.equal(await page.locator("#hosts-table .badge", { hasText: "silent for" }).count(), 2);
    await page.locator("#running-table", { hasText: "simplified 12413 triangles" }).waitFor();
    await unfold(page);
    await isPlain(page, "a dashboard");
    await isWell(page, "a dashboard");
    await page.locator("#hosts-filter").fill("node-24");
    assert.match(await rows.first().innerText(), /silent for/);
    await page.locator("#hosts-table a").first().click();
    await page.locator("#about").waitFor();
    await page.locator("#back").click();
    await page.locator("#hosts").waitFor();
    await isWell(page, "a dashboard, later");
  },

  /** One host in light and dark, on a wide screen and on a phone. */
  async host(browser, address, pictures) {
    const server = await StandIn.of(address);
    server.figures = host(now());
    for (const view of allViews) {
      const page = await open(browser, server.address, view);
      const what = `a host, ${view.scheme}, ${view.size}`;
      assert.equal(await text(page, "#title"), "node-17");
      assert.equal(await figure(page, "Waiting in the queue"), "18,233");
      assert.equal(await figure(page, "Time left"), "5m 26s");
      const first = page.locator("#running-table tbody tr").first();
      assert.match(await first.innerText(), /mesh[^]*25287[^]*execute[^]*2\dm[^]*slow[^]*MiB[^]*simplified 12413 triangles/);
      assert.match(await text(page, "#causes"), /12[^]*index out of bounds[^]*align-tiles, mesh[^]*3 rejected/);
      assert.match(await text(page, "#names-table"), /segment/);
      assert.ok(await page.locator("#charts svg path").count() >= 3, what);
      assert.ok(await page.locator("#charts svg rect").count() >= 50, what);
      await isWell(page, what);
      // docs/images has two of the pictures.
      await picture(page, join(pictures, `host-${view.scheme}-${view.size}.webp`), { height: 1010 });
      await unfold(page);
      assert.match(await text(page, "#causes"), /the len is 10 but the index is 14/);
      assert.match(await text(page, "#settings-table"), /cache-size[^]*40 GiB[^]*host\.toml/);
      await isWell(page, what + ", unfolded");
      await page.context().close();
    }
    await server.stop();
  },

  /** 40 hosts: the time until the page shows them, and the number of bytes. */
  async fleet(browser, address, pictures) {
    const server = await StandIn.of(address);
    server.figures = fleet(40, now());
    for (const view of allViews) {
      const page = await open(browser, server.address, view);
      const what = `40 hosts, ${view.scheme}, ${view.size}`;
      const rows = page.locator("#hosts-table tbody tr");
      assert.equal(await rows.count(), 40);
      // Silent hosts come first.
      assert.match(await rows.nth(0).innerText(), /node-07[^]*silent for \d+m/);
      assert.match(await rows.nth(1).innerText(), /node-24[^]*silent for \d+m/);
      assert.match(await rows.nth(2).innerText(), /node-01[^]*working[^]*×/);
      assert.equal(await figure(page, "Silent hosts"), "2");
      assert.equal(await page.locator("#running-table tbody tr").count(), 20);
      await page.getByRole("button", { name: /Show all/ }).click();
      assert.ok(await page.locator("#running-table tbody tr").count() > 200, what);
      await isWell(page, what);
      const times = await page.evaluate(() => {
        const paint = performance.getEntriesByName("first-contentful-paint")[0];
        return { paint: paint.startTime, figures: performance.getEntriesByName("figures")[0].startTime };
      });
      console.log(`${what}: first paint after ${times.paint.toFixed(0)} ms, figures after ${times.figures.toFixed(0)} ms, `
        + `page ${server.bytes.page} bytes, event ${server.bytes.event} bytes`);
      await page.context().close();
    }
    const page = await open(browser, server.address, { scheme: "dark" });
    await picture(page, join(pictures, "fleet-dark-wide.webp"), { height: 1000 });
    // Opens the view of one host, and goes back.
    await page.locator("#hosts-filter").fill("node-31");
    assert.equal(await page.locator("#hosts-table tbody tr").count(), 1);
    await page.locator("#hosts-table a").click();
    await page.locator("#about").waitFor();
    assert.equal(await text(page, "#title"), "node-31");
    assert.ok(!await page.locator("#hosts").isVisible());
    await page.locator("#back").click();
    await page.locator("#hosts").waitFor();
    assert.equal(await text(page, "#title"), "40 hosts");
    await isWell(page, "a host of 40");
    await server.stop();
  },

  /** Hostile texts in every place in which the page shows a text. */
  async hostile(browser, address) {
    const server = await StandIn.of(address);
    for (const size of ["wide", "phone"]) {
      server.figures = hostileHost("harmless", now());
      const page = await open(browser, server.address, { size });
      const elements = () => page.evaluate(() => {
        const numbers = {};
        for (const { tagName } of document.querySelectorAll(":not(svg *)")) numbers[tagName] = (numbers[tagName] ?? 0) + 1;
        return numbers;
      });
      await unfold(page);
      const harmless = await elements();
      for (const [name, hostile] of Object.entries(HOSTILE)) {
        const what = `hostile text ${name}, ${size}`;
        server.send(hostileHost(hostile, now()));
        const start = SHOWN[name] ?? hostile.slice(0, 5);
        await page.waitForFunction((words) => document.getElementById("title").textContent.startsWith(words), start);
        await unfold(page);
        // A text is shown as text, and creates no element.
        assert.deepEqual(await elements(), harmless, what);
        const places = ["#title", "#where", "#outages", "#running-table .name", "#running-table .id", "#running-table .one",
          "#causes .two", "#causes .facts", "#causes p", "#causes pre", "#names-table .name", "#settings-table", "#about-table"];
        for (const place of places) {
          const shown = await page.locator(place).first().textContent();
          assert.ok(shown.includes(start), `${what}: ${place} shows ${shown.slice(0, 80)}`);
        }
        for (const place of ["#title", "#running-table .name", "#causes summary"]) await page.locator(place).first().hover();
        await isPlain(page, what);
        await isWell(page, what);
      }
      server.send(hostileFleet(now()));
      await page.locator("#hosts-table tbody tr").nth(Object.keys(HOSTILE).length - 1).waitFor();
      await isPlain(page, "hostile hosts");
      await isWell(page, `hostile hosts, ${size}`);
      // The link to a host contains its name, and leads only to that host.
      for (let n = 0; n < Object.keys(HOSTILE).length; n += 1) {
        await page.locator("#hosts-table a").nth(n).click();
        await page.locator("#about").waitFor();
        await isWell(page, `hostile host ${n}, ${size}`);
        await page.locator("#back").click();
        await page.locator("#hosts").waitFor();
      }
      await page.context().close();
    }
    await server.stop();
  },

  /** Every action with a pointer is also possible with a keyboard. */
  async keyboard(browser, address) {
    const server = await StandIn.of(address);
    server.figures = host(now());
    const page = await open(browser, server.address);
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("class") || document.activeElement.tagName);
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "skip");
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "main");
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "plot");
    const legend = page.locator(".legend").first();
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("ArrowLeft");
    assert.match(await legend.innerText(), /at \d\d:\d\d/);
    // All charts show the same minute.
    assert.match(await page.locator(".legend").nth(2).innerText(), /at \d\d:\d\d/);
    await page.keyboard.press("Escape");
    assert.doesNotMatch(await legend.innerText(), /at \d\d:\d\d/);
    await page.keyboard.press("/");
    assert.equal(await focused(), "running-filter");
    await page.keyboard.type("25287");
    assert.equal(await page.locator("#running-table tbody tr").count(), 1);
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "SUMMARY");
    await page.keyboard.press("Enter");
    await page.locator("#causes pre", { hasText: "index out of bounds" }).waitFor();
    // Unfolded and focused elements stay so when figures change.
    const next = host(now());
    next.now.totals.done += 1;
    next.now.failures[0].count += 1;
    server.send(next);
    await page.locator("#causes .times", { hasText: "13" }).waitFor();
    assert.equal(await focused(), "SUMMARY");
    assert.ok(await page.locator("#causes pre").first().isVisible());
    // Controls without text have accessible names, and tables keep their roles, on a phone too.
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, a, input, svg.plot, table, section")]
      .filter((e) => e.checkVisibility() && !(e.innerText?.trim() || e.getAttribute("aria-label") || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML.slice(0, 80)));
    assert.deepEqual(nameless, []);
    assert.ok(await page.getByRole("row").count() > 5);
    await isWell(page, "a keyboard");
    await server.stop();
  },

  /** A host that stops, comes back, and refuses more pages. */
  async connection(browser, address) {
    const server = await StandIn.of(address);
    server.figures = host(now());
    const page = await open(browser, server.address);
    await page.locator("#link", { hasText: "Live" }).waitFor();
    await server.stop();
    await page.locator("#lost", { hasText: /No connection since .* the last that arrived/ }).waitFor();
    assert.equal(await text(page, "#title"), "node-17");
    await server.listen(server.port);
    await page.locator("#link", { hasText: "Live" }).waitFor();
    assert.ok(!await page.locator("#lost").isVisible());
    server.refusal = 503;
    for (const client of server.clients) client.end();
    await page.locator("#lost", { hasText: "Too many pages are open there" }).waitFor();
    server.refusal = null;
    await page.locator("#link", { hasText: "Live" }).waitFor();
    // The page complains only about the refused connections.
    assert.deepEqual(page.complaints.filter((complaint) => !/503|ERR_CONNECTION|ERR_INCOMPLETE/.test(complaint)), []);
    await server.stop();
  },
};

const [name, address, pictures] = process.argv.slice(2);
await browse((browser) => checks[name](browser, address, pictures));
