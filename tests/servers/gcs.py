"""Google Cloud Storage's XML API, spoken to an S3 server.

    python gcs.py PORT S3_PORT

The two protocols differ in the names of headers and in generations: an object's generation
here is a number made of its entity tag. Requests are forwarded with the body as it is.
"""

import http.client
import http.server
import sys
import zlib

RENAMED = {"x-goog-copy-source": "x-amz-copy-source"}
DROPPED = {"host", "authorization", "connection", "x-goog-if-generation-match", "transfer-encoding"}


def generation(etag):
    return str(zlib.crc32(etag.encode()) + 1)


class Gateway(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        s3 = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=60)
        headers = {}
        for name, value in self.headers.items():
            name = name.lower()
            if name not in DROPPED:
                name = RENAMED.get(name, name).replace("x-goog-meta-", "x-amz-meta-")
                headers[name] = value
        expected = self.headers.get("x-goog-if-generation-match")
        if expected == "0":
            headers["if-none-match"] = "*"
        elif expected is not None:
            s3.request("HEAD", self.path)
            head = s3.getresponse()
            head.read()
            etag = head.headers.get("etag", "")
            headers["if-match"] = etag if generation(etag) == expected else '"other"'
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        s3.request(self.command, self.path, body=body, headers=headers)
        answer = s3.getresponse()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(name.replace("x-amz-meta-", "x-goog-meta-"), value)
        if answer.headers.get("etag"):
            self.send_header("x-goog-generation", generation(answer.headers["etag"]))
        content = answer.read()
        length = answer.headers.get("content-length") if self.command == "HEAD" else len(content)
        self.send_header("content-length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Gateway).serve_forever()
