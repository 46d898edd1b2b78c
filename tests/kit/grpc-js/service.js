// The gRPC service of kit/grpc_scenarios.py on @grpc/grpc-js: node service.js [HOST:PORT]. What it says, remembers
// and ends with is described in kit/grpc_service.py. It cannot compress, nor take a call back.
"use strict";

const readline = require("node:readline");
const { DEADLINE, Messages, OPTIONS, digest, encode, fromPairs, grpc, identity, toPairs } = require("./common");

const records = new Map(); // by x-call: {seen, ended: a promise, end: resolves it}

function recordOf(name) {
  if (!records.has(name)) {
    const record = {};
    record.ended = new Promise((resolve) => (record.end = resolve));
    records.set(name, record);
  }
  return records.get(name);
}

class Program {
  constructor(call, messages, streams) {
    this.call = call;
    this.streams = streams; // messages down, as many as it likes
    this.messages = messages;
    this.trailers = undefined;
    this.answer = []; // what a kind with one message down will send at its end
    this.steps = JSON.parse(call.metadata.get("x-script")[0] || "[]");
    this.name = call.metadata.get("x-call")[0];
    const deadline = call.getDeadline();
    const at = deadline instanceof Date ? deadline.getTime() : deadline;
    const metadata = call.metadata.clone();
    metadata.remove("x-script");
    metadata.remove("x-call");
    this.seen = {
      method: call.getPath(),
      authority: call.getHost(),
      metadata: toPairs(metadata),
      deadline: Number.isFinite(at) ? (at - Date.now()) / 1000 : null,
      messages: [],
      half_closed: false,
      cancelled: false,
      ended: true,
    };
    this.over = new Promise((resolve) => {
      call.on("cancelled", () => {
        this.seen.cancelled ||= !this.done;
        messages.push(null);
        resolve();
      });
    });
  }

  async read() {
    const message = await this.messages.next();
    if (message === null) this.seen.half_closed = !this.seen.cancelled;
    else this.seen.messages.push(digest(message));
    return message;
  }

  async write(message) {
    if (!this.streams) this.answer.push(message);
    // A stream that holds as much as it likes says when there is room again, unless the call has ended.
    else if (!this.call.write(message)) {
      await Promise.race([new Promise((resolve) => this.call.once("drain", resolve)), this.over]);
    }
  }

  // The status that the steps end with.
  async run() {
    try {
      for (const [name, ...rest] of this.steps) {
        switch (name) {
          case "initial": this.call.sendMetadata(fromPairs(rest[0])); break;
          case "trailers": this.trailers = fromPairs(rest[0]); break;
          case "read": await this.read(); break;
          case "read_all": while ((await this.read()) !== null); break;
          case "send": for (let left = rest[1] ?? 1; left > 0; left--) await this.write(encode(rest[0])); break;
          case "echo": await this.echo(); break;
          case "echo_all": while (await this.echo()); break;
          case "status": return { code: rest[0], details: rest[1], metadata: this.trailers };
          case "wait_cancel": await this.over; break;
          case "raise": throw new Error("the application fails");
          case "compress": break; // what it cannot do, it may leave
          default: throw new Error(`no such step: ${name}`);
        }
      }
      return null;
    } catch (error) {
      return { code: grpc.status.UNKNOWN, details: error.message };
    } finally {
      this.done = true; // who cancels from here on has its status, or cancels nothing
      if (this.name) {
        recordOf(this.name).seen = this.seen;
        recordOf(this.name).end();
      }
    }
  }

  async echo() {
    const message = await this.read();
    if (message !== null) await this.write(message);
    return message !== null;
  }
}

function incoming(call) {
  const messages = new Messages();
  if (call.request !== undefined) {
    messages.push(call.request);
    messages.push(null);
  } else {
    call.on("data", (message) => messages.push(message));
    call.on("end", () => messages.push(null));
    call.on("error", () => messages.push(null));
  }
  return messages;
}

// Kinds with one message down are answered at their end.
async function one(call, callback) {
  const program = new Program(call, incoming(call), false);
  const status = await program.run();
  if (status) callback(status);
  else callback(null, Buffer.concat(program.answer), program.trailers);
}

async function many(call) {
  const program = new Program(call, incoming(call), true);
  const status = await program.run();
  if (status) call.emit("error", status);
  else call.end(program.trailers);
}

async function control(call, callback) {
  const record = recordOf(call.request.toString());
  const timeout = new Promise((resolve) => setTimeout(resolve, DEADLINE * 1000).unref());
  await Promise.race([record.ended, timeout]);
  callback(null, Buffer.from(JSON.stringify(record.seen ?? null)));
  records.delete(call.request.toString());
}

const method = (path, up, down) => ({
  path,
  requestStream: up,
  responseStream: down,
  requestSerialize: identity,
  requestDeserialize: identity,
  responseSerialize: identity,
  responseDeserialize: identity,
});

const server = new grpc.Server(OPTIONS);
let port = 0;
server.addService(
  {
    Unary: method("/fastmesh.test.Script/Unary", false, false),
    ClientStream: method("/fastmesh.test.Script/ClientStream", true, false),
    ServerStream: method("/fastmesh.test.Script/ServerStream", false, true),
    Bidi: method("/fastmesh.test.Script/Bidi", true, true),
    Who: method("/fastmesh.test.Script/Who", false, false),
    Seen: method("/fastmesh.test.Control/Seen", false, false),
  },
  {
    Unary: one,
    ClientStream: one,
    ServerStream: many,
    Bidi: many,
    Who: (call, callback) => callback(null, Buffer.from(String(port))),
    Seen: control,
  },
);
server.bindAsync(process.argv[2] || "127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) => {
  if (error) throw error;
  port = bound;
  console.log(JSON.stringify({ port }));
  let drained = false;
  const input = readline.createInterface({ input: process.stdin });
  input.on("line", (line) => {
    if (line !== "drain") return;
    drained = true;
    server.tryShutdown(() => process.exit(0));
  });
  input.on("close", () => {
    if (drained) return;
    server.forceShutdown();
    process.exit(0);
  });
});
