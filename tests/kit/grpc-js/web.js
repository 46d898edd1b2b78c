// A browser's gRPC client, `grpc-web`, under node: node web.js. Each line on stdin is a call:
//   {"base": "http://HOST:PORT", "path": ..., "kind": "unary" | "server_stream", "format": "text" | "binary",
//    "metadata": {...}, "message": BASE64}
// and what becomes of it is a line of [EVENT, VALUE] on stdout as soon as it happens: "metadata", "data" (base64),
// "status" and "error" (both with code, message, metadata), and in the end "done".
"use strict";

const http = require("node:http");
const readline = require("node:readline");

// What grpc-web needs of a browser: text can be read while it comes, bytes only at the end.
class XMLHttpRequest {
  constructor() {
    Object.assign(this, { readyState: 0, status: 0, statusText: "", responseText: "", response: "", responseType: "" });
    this.fields = {};
    this.received = {};
    this.onreadystatechange = null;
  }

  open(method, url) {
    Object.assign(this, { method, url });
    this.enter(1);
  }

  setRequestHeader(name, value) {
    this.fields[name] = value;
  }

  send(body) {
    const options = { method: this.method, headers: { host: "web", ...this.fields } };
    this.request = http.request(this.url, options, (answer) => {
      this.status = answer.statusCode;
      this.statusText = answer.statusMessage;
      this.received = answer.headers;
      this.enter(2);
      const pieces = [];
      answer.on("data", (piece) => {
        pieces.push(piece);
        if (this.responseType !== "arraybuffer") this.responseText += piece.toString("latin1");
        this.enter(3);
      });
      answer.on("end", () => {
        this.response = this.responseText;
        if (this.responseType === "arraybuffer") this.response = new Uint8Array(Buffer.concat(pieces)).buffer;
        this.enter(4);
      });
      answer.on("error", () => this.fail());
    });
    this.request.on("error", () => this.fail());
    this.request.end(typeof body === "string" ? body : Buffer.from(body));
  }

  abort() {
    this.request.destroy();
  }

  fail() {
    this.status = 0;
    if (this.readyState !== 4) this.enter(4);
  }

  enter(state) {
    this.readyState = state;
    if (this.onreadystatechange) this.onreadystatechange();
  }

  getResponseHeader(name) {
    return this.received[name.toLowerCase()] ?? null;
  }

  getAllResponseHeaders() {
    return Object.entries(this.received).map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }
}

global.XMLHttpRequest = XMLHttpRequest;
const { GrpcWebClientBase, MethodDescriptor, MethodType } = require("grpc-web");

const identity = (bytes) => bytes;

function say(event, value) {
  if (event === "data") value = Buffer.from(value).toString("base64");
  console.log(JSON.stringify([event, value ?? null]));
}

function call({ base, path, kind, format, metadata, message }) {
  const client = new GrpcWebClientBase({ format });
  const type = kind === "unary" ? MethodType.UNARY : MethodType.SERVER_STREAMING;
  const method = new MethodDescriptor(path, type, Uint8Array, Uint8Array, identity, identity);
  const bytes = new Uint8Array(Buffer.from(message, "base64"));
  return new Promise((resolve) => {
    if (kind === "unary") {
      const under = client.rpcCall(base + path, bytes, metadata, method, (error, answer) => {
        if (error) say("error", { code: error.code, message: error.message, metadata: error.metadata });
        else say("data", answer);
        resolve();
      });
      under.on("metadata", (fields) => say("metadata", fields));
      return;
    }
    const stream = client.serverStreaming(base + path, bytes, metadata, method);
    stream.on("metadata", (fields) => say("metadata", fields));
    stream.on("data", (answer) => say("data", answer));
    stream.on("status", ({ code, details, metadata }) => say("status", { code, message: details, metadata }));
    stream.on("error", (error) => {
      say("error", { code: error.code, message: error.message, metadata: error.metadata });
      resolve();
    });
    stream.on("end", resolve);
  });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await call(JSON.parse(line));
    say("done");
  }
  process.exit(0);
}

main();
