// What the client and the service on @grpc/grpc-js have in common: the same messages, metadata and settings as
// kit/grpc_messages.py, byte for byte.
"use strict";

const crypto = require("node:crypto");
const grpc = require("@grpc/grpc-js");

const OPTIONS = {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.max_metadata_size": 64 * 1024,
};
const DEADLINE = 15 * Number(process.env.FASTMESH_TEST_PATIENCE || "1"); // seconds, as in kit/limits.py
const BLOCK = Buffer.from(Array.from({ length: 251 }, (_, index) => index));

const identity = (data) => data;

function encode(message) {
  if (typeof message === "string") return Buffer.from(message);
  return Buffer.alloc(message, BLOCK);
}

function digest(message) {
  if (message.length <= 64) return message.toString("latin1");
  const hash = crypto.createHash("sha256").update(message).digest("hex").slice(0, 16);
  return `${message.length} bytes, sha256 ${hash}`;
}

function fromPairs(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of pairs) {
    metadata.add(key, typeof value === "string" ? value : Buffer.from(value.b64, "base64"));
  }
  return metadata;
}

function toPairs(metadata) {
  if (!metadata) return [];
  return Object.entries(metadata.toJSON()).flatMap(([key, values]) =>
    values.map((value) => [key, typeof value === "string" ? value : { b64: value.toString("base64") }]),
  );
}

// Messages as they come, for a program that asks for them one by one; null is their end.
class Messages {
  constructor() {
    this.kept = [];
    this.waiting = [];
  }

  push(message) {
    const next = this.waiting.shift();
    if (next) next(message);
    else this.kept.push(message);
  }

  // Once it has ended it goes on saying so.
  next() {
    if (this.kept.length > 0) {
      return Promise.resolve(this.kept[0] === null ? null : this.kept.shift());
    }
    return new Promise((resolve) => this.waiting.push(resolve));
  }
}

module.exports = { DEADLINE, Messages, OPTIONS, digest, encode, fromPairs, grpc, identity, toPairs };
