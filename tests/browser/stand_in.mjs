// A server that serves the page of a real host with the figures of a test.

import { createServer } from "node:http";

export class StandIn {
  /** Copies the page and its content security policy from the host at this address. */
  static async of(real) {
    const answer = await fetch(real);
    const standIn = new StandIn();
    standIn.page = await answer.text();
    standIn.headers = Object.fromEntries(["content-type", "content-security-policy"]
      .map((name) => [name, answer.headers.get(name)]));
    await standIn.listen(0);
    return standIn;
  }

  clients = new Set();
  figures = null;

  /** The status that the next request for events gets instead of events, if any. */
  refusal = null;

  /** The number of bytes of the page and of the last event. */
  get bytes() {
    return { page: Buffer.byteLength(this.page), event: Buffer.byteLength(this.event()) };
  }

  event() {
    return `data: ${JSON.stringify(this.figures)}\n\n`;
  }

  listen(port) {
    this.server = createServer((request, response) => {
      if (request.url === "/") {
        response.writeHead(200, this.headers).end(this.page);
      } else if (request.url !== "/api/events") {
        response.writeHead(404).end();
      } else if (this.refusal) {
        response.writeHead(this.refusal).end();
      } else {
        response.writeHead(200, { "content-type": "text/event-stream" });
        response.write(`retry: 100\n\n${this.event()}`);
        this.clients.add(response);
        response.on("close", () => this.clients.delete(response));
      }
    });
    return new Promise((listening) => this.server.listen(port, "127.0.0.1", () => {
      this.port = this.server.address().port;
      this.address = `http://127.0.0.1:${this.port}/`;
      listening();
    }));
  }

  /** Sends new figures to all pages. */
  send(figures) {
    this.figures = figures;
    for (const client of this.clients) client.write(this.event());
  }

  /** Stops like a host that is killed. */
  async stop() {
    this.server.closeAllConnections();
    await new Promise((closed) => this.server.close(closed));
  }
}
