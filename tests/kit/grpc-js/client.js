// The gRPC client of kit/grpc_scenarios.py on @grpc/grpc-js: node client.js. The jobs that it reads and the
// observations that it writes are described in kit/grpc_client.py.
"use strict";

const crypto = require("node:crypto");
const readline = require("node:readline");
const { DEADLINE, Messages, OPTIONS, digest, encode, fromPairs, grpc, identity, toPairs } = require("./common");

const COMPRESSION = { identity: 0, deflate: 1, gzip: 2 };

class Call {
  constructor(client, scenario) {
    this.client = client;
    this.scenario = scenario;
    this.name = crypto.randomUUID();
    this.events = [];
    this.messages = new Messages();
    this.initial = [];
    this.oneUp = ["unary", "server_stream"].includes(scenario.kind);
    this.oneDown = ["unary", "client_stream"].includes(scenario.kind);
    this.metadata = fromPairs(scenario.metadata);
    this.metadata.set("x-script", scenario.script);
    this.metadata.set("x-call", this.name);
    this.started = new Promise((resolve) => (this.begun = resolve));
    if (!this.oneUp) this.start();
  }

  start(message) {
    const { path, kind, deadline } = this.scenario;
    const rest = [this.metadata, deadline ? { deadline: Date.now() + deadline * 1000 } : {}];
    const answered = (error, answer) => {
      if (!error) this.messages.push(answer);
      this.messages.push(null);
    };
    const make = {
      unary: () => this.client.makeUnaryRequest(path, identity, identity, message, ...rest, answered),
      client_stream: () => this.client.makeClientStreamRequest(path, identity, identity, ...rest, answered),
      server_stream: () => this.client.makeServerStreamRequest(path, identity, identity, message, ...rest),
      bidi: () => this.client.makeBidiStreamRequest(path, identity, identity, ...rest),
    };
    this.call = make[kind]();
    this.status = new Promise((resolve) => this.call.on("status", resolve));
    this.heard = new Promise((resolve) => {
      this.call.on("metadata", (metadata) => {
        this.initial = toPairs(metadata);
        resolve();
      });
      this.status.then(resolve);
    });
    if (!this.oneDown) {
      this.call.on("data", (data) => this.messages.push(data));
      this.call.on("end", () => this.messages.push(null));
      this.call.on("error", () => this.messages.push(null));
    }
    this.begun();
  }

  async run() {
    const watchdog = setTimeout(() => this.call.cancel(), DEADLINE * 1000);
    for (const [name, ...rest] of this.scenario.client) {
      switch (name) {
        case "send": await this.send(...rest); break;
        case "half_close": this.call.end(); break;
        case "initial": await this.heard; this.events.push("initial metadata"); break;
        case "recv": await this.recv(); break;
        case "recv_all": while (await this.recv()); break;
        case "ping_pong": await this.pingPong(...rest); break;
        case "cancel": this.call.cancel(); break;
        case "idle": await new Promise((resolve) => setTimeout(resolve, rest[0] * 1000)); break;
        default: throw new Error(`no such step: ${name}`);
      }
    }
    const status = await this.status;
    clearTimeout(watchdog);
    return {
      events: this.events,
      code: grpc.status[status.code],
      details: status.details,
      initial: this.initial,
      trailing: toPairs(status.metadata),
    };
  }

  async send(message, times = 1) {
    const data = encode(message);
    if (this.oneUp) return this.start(data);
    for (let left = times; left > 0; left--) {
      if (this.call.write(data)) continue;
      await Promise.race([new Promise((resolve) => this.call.once("drain", resolve)), this.status]);
    }
  }

  async recv() {
    const message = await this.messages.next();
    this.events.push(message === null ? "end" : digest(message));
    return message !== null;
  }

  async pingPong(times, message) {
    for (let left = times; left > 0; left--) {
      await this.send(message);
      if (!(await this.recv())) return;
    }
  }
}

function ask(control, name) {
  return new Promise((resolve, reject) => {
    control.makeUnaryRequest(
      "/fastmesh.test.Control/Seen",
      identity,
      identity,
      Buffer.from(name),
      { deadline: Date.now() + 2 * DEADLINE * 1000 },
      (error, answer) => (error ? reject(error) : resolve(JSON.parse(answer.toString()))),
    );
  });
}

async function observe({ scenario, target, control, authority }) {
  const options = { ...OPTIONS, "grpc.default_authority": authority, "grpc.use_local_subchannel_pool": 1 };
  if (scenario.compression) options["grpc.default_compression_algorithm"] = COMPRESSION[scenario.compression];
  if (scenario.keepalive) {
    options["grpc.keepalive_time_ms"] = scenario.keepalive * 1000;
    options["grpc.keepalive_timeout_ms"] = DEADLINE * 1000;
    options["grpc.keepalive_permit_without_calls"] = 1;
  }
  const client = new grpc.Client(target, grpc.credentials.createInsecure(), options);
  const service = new grpc.Client(control, grpc.credentials.createInsecure(), OPTIONS);
  try {
    const calls = Array.from({ length: scenario.parallel }, () => new Call(client, scenario));
    const seen = await Promise.all(calls.map((call) => call.run()));
    if (scenario.recorded) {
      await Promise.all(calls.map(async (call, index) => (seen[index].service = await ask(service, call.name))));
    }
    return { calls: seen };
  } finally {
    client.close();
    service.close();
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await observe(JSON.parse(line))));
  }
}

main();
