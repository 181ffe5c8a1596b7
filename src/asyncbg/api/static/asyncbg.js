// Background jobs, followed from a browser: one EventSource for all its tabs, nothing lost or repeated, polling where
// streams cannot be had. No dependencies, no build step; the types are in asyncbg.d.ts.
//
// A watch is told its job's story from two places that overlap, so that no gap is possible. The one stream of the
// browser, GET /events?job=A,B,…, tells what happens from when it is open. As soon as it is, each watch asks for what
// is stored of its job after its own cursor, and drops what it has had already: ids are <epoch>-<seq>. Whenever a
// stream begins after a watch's cursor (another tab has taken over, a reset, a long sleep), the watch asks again.

/** @typedef {import("./asyncbg.js").Options} Options */
/** @typedef {import("./asyncbg.js").WatchOptions} WatchOptions */
/** @typedef {{body?: object, headers?: Record<string, string>, signal?: AbortSignal}} Request */

/** An EventSource hands over only the types it is asked for; `types` adds those of your own tasks. */
const TYPES = [
  ...["waiting", "scheduled", "queued", "started", "progress", "retrying"].map((name) => `job.${name}`),
  ...["succeeded", "failed", "cancelled", "cancel_ignored"].map((name) => `job.${name}`),
  ...["email.sent", "csv.imported", "csv.failed", "webhook.attempted", "webhook.delivered"],
  ...["loop.blocked", "stream.reset", "stream.position", "stream.bye"],
];
const FINAL = new Set(["job.succeeded", "job.failed", "job.cancelled"]);
/** Statuses that coming back later does not change. */
const HOPELESS = new Set([400, 401, 403, 404, 405, 410, 422]);
const LONGEST_WAIT_S = 30;
const LONGEST_PAUSE_MS = 60_000;
const GATHER_MS = 20;

/** What went wrong: `status` is the HTTP status, 0 where there was no answer, and `problem` its RFC 9457 document. */
export class AsyncBGError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, problem?: object | null, retryAfterMs?: number, cause?: unknown}} [more]
   */
  constructor(message, { status = 0, problem = null, retryAfterMs = 0, cause } = {}) {
    super(message, { cause });
    this.name = "AsyncBGError";
    this.status = status;
    this.problem = problem;
    this.retryAfterMs = retryAfterMs;
  }
}

/** One asyncbg service: submits, looks at, changes and follows jobs. */
export class AsyncBG {
  #http;
  #hub;
  #watches = new Set();

  /** @param {Options} [options] */
  constructor(options = {}) {
    const settings = settingsOf(options);
    this.baseUrl = settings.baseUrl;
    this.#http = new Http(settings);
    this.#hub = new Hub(this.#http, settings);
  }

  /**
   * Follow a job to its end: an async iterator of its events, with callbacks, `done` and `close()`.
   * @param {string} jobId @param {WatchOptions} [options]
   */
  watch(jobId, options = {}) {
    const followed = new Watch(jobId, options, this.#http, this.#hub);
    this.#watches.add(followed);
    followed.ended.addEventListener("abort", () => this.#watches.delete(followed));
    followed.start(options.signal);
    return followed;
  }

  /**
   * Run a registered task; the job is on disk when this resolves.
   * @param {string} task @param {object} [args] @param {import("./asyncbg.js").SubmitOptions} [options]
   */
  async submit(task, args = {}, { idempotencyKey, delayS, priority, tags, signal } = {}) {
    const headers = idempotencyKey === undefined ? {} : { "Idempotency-Key": idempotencyKey };
    const body = { task, args, delay_s: delayS, priority, tags };
    return (await this.#http.json("POST", "jobs", { body, headers, signal })).jobs[0];
  }

  /** The job as it is now. @param {string} jobId @param {{signal?: AbortSignal}} [options] */
  async get(jobId, { signal } = {}) {
    return this.#http.json("GET", pathOf(jobId), { signal });
  }

  /**
   * The job when it is final; rejects when `timeoutMs` is over first.
   * @param {string} jobId @param {{timeoutMs?: number, signal?: AbortSignal}} [options]
   */
  async wait(jobId, { timeoutMs = Infinity, signal } = {}) {
    const until = Date.now() + timeoutMs;
    for (;;) {
      const waitS = Math.min(Math.max(until - Date.now(), 0) / 1000, LONGEST_WAIT_S);
      const job = await this.#http.json("GET", `${pathOf(jobId)}?wait=${waitS}`, { signal });
      if (isFinal(job)) return job;
      if (Date.now() >= until) throw new AsyncBGError(`job ${jobId} is still ${job.state} after ${timeoutMs} ms`);
    }
  }

  /** Stop a job that is not final. @param {string} jobId @param {{reason?: string, signal?: AbortSignal}} [options] */
  async cancel(jobId, { reason = "", signal } = {}) {
    return this.#http.json("POST", `${pathOf(jobId)}/cancel`, { body: { reason }, signal });
  }

  /** Run a final job again. @param {string} jobId @param {{signal?: AbortSignal}} [options] */
  async retry(jobId, { signal } = {}) {
    return this.#http.json("POST", `${pathOf(jobId)}/retry`, { signal });
  }

  /**
   * A page of jobs, newest first; `next` is the `cursor` of the page after, null on the last one.
   * @param {import("./asyncbg.js").ListOptions} [options]
   */
  async list({ signal, ...filter } = {}) {
    const given = Object.entries(filter).filter(([, value]) => value !== undefined && value !== null);
    const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
    return this.#http.json("GET", `jobs?${query}`, { signal });
  }

  /** Close all watches. */
  close() {
    for (const followed of [...this.#watches]) followed.close();
  }
}

/** @type {AsyncBG | undefined} */
let service;

/**
 * Follow a job of the service that this module was loaded from.
 * @param {string} jobId @param {WatchOptions} [options]
 */
export function watch(jobId, options) {
  service ??= new AsyncBG();
  return service.watch(jobId, options);
}

/** One followed job. Everything of it up to `#cursor` was handed on. */
class Watch {
  #path;
  #on;
  #http;
  #hub;
  #cursor;
  #stream = null; // the stream it was last told of; null: there is none
  #from = null; // where that begins; null: when it was opened
  #readSince = null; // the stream since whose opening the log was read
  #isLive = false; // all that happens from now on comes by the stream
  #buffer = null; // what the stream tells while the log is being read
  #isReading = false; // the log was asked for, and may tell the end
  #isPolling = false;
  #progress = null; // the latest
  #queue;
  #waiting = [];
  #error = null;
  #end = new AbortController();
  #settle;

  /** @param {string} jobId @param {WatchOptions} options @param {Http} http @param {Hub} hub */
  constructor(jobId, { onEvent, onProgress, onFinal, onReset, onError, lastEventId }, http, hub) {
    this.jobId = jobId;
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {}); // it is for those who ask
    this.#path = pathOf(jobId);
    this.#on = { onEvent, onProgress, onFinal, onReset, onError };
    this.#queue = Object.values(this.#on).some(Boolean) ? null : []; // for callbacks alone nothing is kept
    this.#http = http;
    this.#hub = hub;
    this.#cursor = lastEventId ?? null;
  }

  get ended() {
    return this.#end.signal;
  }

  start(signal) {
    if (signal?.aborted) return this.close();
    signal?.addEventListener("abort", () => this.close(), { signal: this.ended });
    const timer = setTimeout(() => this.poll(), this.#hub.patienceMs);
    this.ended.addEventListener("abort", () => clearTimeout(timer));
    this.#hub.add(this);
  }

  close() {
    this.#stop();
    this.#settle.resolve(undefined);
  }

  [Symbol.asyncIterator]() {
    this.#queue ??= [];
    const iterator = {
      next: () => this.#next(),
      return: async (value) => (this.close(), { done: true, value }),
      [Symbol.asyncIterator]: () => iterator,
    };
    return iterator;
  }

  /** The stream is open and tells all that comes after `from`. */
  opened(stream, from) {
    if (this.#stream === stream) return;
    this.#stream = stream;
    this.#from = from;
    if (this.#buffer === null) this.#catchUp().finally(() => (this.#isReading = false));
  }

  /** The stream told `event` and has come to `position`. */
  heard(event, position) {
    const isMine = event.subject === this.jobId;
    if (this.#buffer !== null) {
      if (isMine) this.#buffer.push(event);
    } else if (this.#isLive) {
      if (isMine) this.#deliver(event);
      this.#cursor = furthest(this.#cursor, position);
    }
  }

  /** There is no stream for now. */
  lost() {
    this.#stream = null;
    this.#isLive = false;
    this.poll();
  }

  /** Ask for the job itself, again and again, until the stream is back. */
  async poll() {
    if (this.#isPolling) return;
    this.#isPolling = true;
    while (!this.#isLive && !this.ended.aborted) {
      const nextAt = Date.now() + this.#hub.pollMs;
      let leastMs = 0;
      try {
        const waitS = Math.min(this.#hub.pollMs / 1000, LONGEST_WAIT_S);
        const job = await this.#http.json("GET", `${this.#path}?wait=${waitS}`, { signal: this.ended });
        if (isFinal(job)) await this.#read();
        if (!this.#isLive && !this.ended.aborted) this.#polled(job);
      } catch (error) {
        this.#failIfHopeless(error);
        leastMs = Math.max(this.#hub.pollMs, error.retryAfterMs ?? 0);
      }
      await pause(Math.max(leastMs, nextAt - Date.now()), this.ended);
    }
    this.#isPolling = false;
  }

  /** Wait for the answer of a log that is being read: it tells the end itself, and what came before. */
  async #read() {
    const until = Date.now() + this.#hub.patienceMs;
    while (this.#isReading && !this.ended.aborted && Date.now() < until) await pause(GATHER_MS, this.ended);
  }

  /** Read the log from the cursor to where the stream goes on, and go live. */
  async #catchUp() {
    this.#buffer = [];
    while (this.#stream !== null && this.#readSince !== this.#stream) {
      if (this.#readSince !== null && covers(this.#cursor, this.#from)) break;
      this.#isLive = false;
      const [stream, from] = [this.#stream, this.#from];
      const frames = await this.#stored();
      if (this.ended.aborted) return;
      if (frames) this.#deliverStored(frames);
      this.#cursor = furthest(this.#cursor, from);
      this.#readSince = stream;
      if (!frames || frames.some(({ event }) => isFinal(standingIn(event, this.jobId)))) {
        this.#buffer = null; // its end lies before the cursor: the job itself tells what it was
        return void this.poll();
      }
    }
    const told = this.#buffer;
    this.#buffer = null;
    if (this.#stream === null) return;
    this.#readSince = this.#stream;
    this.#isLive = true;
    for (const event of told) if (event.id || event.time > (this.#progress?.time ?? "")) this.#deliver(event);
  }

  /** The frames of the log after the cursor, null where that has seen the end; asked for until they come. */
  async #stored() {
    for (let tries = 0; !this.ended.aborted; tries++) {
      this.#buffer = []; // what was told before the question is in the answer
      this.#isReading = true;
      try {
        return await this.#http.stored(this.#path, this.#cursor, this.ended);
      } catch (error) {
        this.#isReading = false;
        this.#failIfHopeless(error);
        this.poll();
        await pause(Math.max(backoff(this.#hub.retryMs, tries), error.retryAfterMs ?? 0), this.ended);
      }
    }
    return null;
  }

  #deliverStored(frames) {
    const end = frames.findLastIndex(({ event }) => event.id);
    const goesOn = this.#buffer.some(({ id }) => id && !covers(frames[end]?.id, id));
    frames.forEach(({ id, event }, at) => {
      this.#deliver(event, at === end && !goesOn);
      if (event.type === "stream.reset") this.#cursor = id;
    });
  }

  /** Hand on an event that is new. A final one is the end, unless the job was run again since (`mayEnd`). */
  #deliver(event, mayEnd = true) {
    if (this.ended.aborted || (event.id && covers(this.#cursor, event.id))) return;
    this.#cursor = event.id ?? this.#cursor;
    this.#emit(event);
    if (mayEnd && FINAL.has(event.type)) this.#finish(event);
  }

  /** Tell the news of a job that was asked for, in the form of events. */
  #polled(job) {
    const { id: subject, task, batch, owner, attempt } = job;
    const time = job.finished_at ?? new Date().toISOString();
    const common = { id: null, time, subject, task, batch, owner, attempt, polled: true };
    if (job.progress && JSON.stringify(job.progress) !== JSON.stringify(this.#progress?.data))
      this.#emit({ ...common, type: "job.progress", data: job.progress });
    if (!isFinal(job) || this.ended.aborted) return;
    const event = { ...common, type: `job.${job.state}`, data: job.error ? { error: job.error } : {} };
    this.#emit(event);
    this.#finish(event);
  }

  #emit(event) {
    if (event.type === "job.progress") this.#progress = event;
    this.#call(this.#on.onEvent, event);
    if (event.type === "job.progress") this.#call(this.#on.onProgress, event.data, event);
    if (event.type === "stream.reset") this.#call(this.#on.onReset, standingIn(event, this.jobId), event);
    if (this.#waiting.length) return this.#waiting.shift().resolve({ done: false, value: event });
    if (this.#queue === null) return;
    if (event.type === "job.progress" && this.#queue.at(-1)?.type === "job.progress") this.#queue.pop();
    this.#queue.push(event);
  }

  /** What a callback throws is its author's to see, and stops nothing. */
  #call(callback, ...values) {
    try {
      callback?.(...values);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #next() {
    if (this.#queue.length) return Promise.resolve({ done: false, value: this.#queue.shift() });
    const error = this.#error;
    this.#error = null; // an iterator throws once, then is at its end
    if (error) return Promise.reject(error);
    if (this.ended.aborted) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  #finish(event) {
    if (this.ended.aborted) return;
    this.#stop();
    this.#settle.resolve(event);
    this.#call(this.#on.onFinal, event);
  }

  #failIfHopeless(error) {
    if (this.ended.aborted || !HOPELESS.has(error.status)) return;
    if (this.#waiting.length) this.#waiting.shift().reject(error);
    else this.#error = error;
    this.#stop();
    this.#settle.reject(error);
    this.#call(this.#on.onError, error);
  }

  #stop() {
    this.#end.abort();
    this.#hub.remove(this);
    for (const { resolve } of this.#waiting.splice(0)) resolve({ done: true, value: undefined });
  }
}

/**
 * The watches of one tab, and its place among the tabs of the browser. While it has a watch it stands for election (a
 * lock); who holds the lock has the EventSource and tells all tabs, itself among them, what comes:
 * `want` (a tab's jobs), `who` (asks for them), `opened`, `told` (an event) and `down`.
 */
class Hub {
  #http;
  #settings;
  #name;
  #tab = newId();
  #watches = new Set();
  #channel = null;
  #candidacy = null;
  #isLeader = false;
  #wants = new Map(); // the leader's: what the other tabs want
  #source = null;
  #stream = null; // the name of the open stream
  #jobs = new Set(); // what it was opened for
  #cursor = null; // the last position heard
  #isDown = false;
  #failures = 0;
  #attempt = 0;
  #listening = new Set();
  #timer;

  constructor(http, settings) {
    this.#http = http;
    this.#settings = settings;
    this.#name = `asyncbg/1 ${settings.baseUrl} ${digest(`${settings.share} ${settings.apiKey ?? ""}`)}`;
    this.pollMs = settings.pollMs;
    this.retryMs = settings.retryMs;
    this.patienceMs = settings.patienceMs;
  }

  add(followed) {
    this.#watches.add(followed);
    if (!this.#settings.EventSource) return followed.lost();
    if (this.#watches.size === 1) this.#enter();
    this.#announce();
  }

  remove(followed) {
    if (!this.#watches.delete(followed) || !this.#settings.EventSource) return;
    if (this.#watches.size) this.#announce();
    else this.#leave();
  }

  #enter() {
    const { locks } = globalThis.navigator ?? {};
    this.#candidacy = new AbortController();
    if (!this.#settings.share || !locks || !globalThis.BroadcastChannel) return void this.#lead();
    const { signal } = this.#candidacy;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    const elected = locks.request(this.#name, { signal }, () => this.#lead(signal));
    elected.catch(() => signal.aborted || this.#lead()); // a page may be refused its locks
  }

  /** Open the stream for all tabs, until this one has no more watches. */
  #lead(signal) {
    if (signal?.aborted) return undefined;
    this.#isLeader = true;
    this.#channel?.postMessage({ kind: "who" });
    this.#openSoon(GATHER_MS);
    // A connection that died in a sleep or with another network may not know it.
    globalThis.addEventListener?.("online", () => this.#openSoon(GATHER_MS), { signal: this.#candidacy.signal });
    return new Promise((resolve) => signal?.addEventListener("abort", resolve));
  }

  #leave() {
    this.#close();
    if (!this.#isLeader) this.#announce();
    this.#isLeader = this.#isDown = false;
    this.#cursor = null; // what comes now is not heard
    this.#wants.clear();
    this.#channel?.close();
    this.#channel = null;
    this.#candidacy.abort();
  }

  /** Say what this tab wants. */
  #announce() {
    const jobs = [...this.#watches].map(({ jobId }) => jobId);
    if (this.#isLeader) this.#serve();
    else this.#channel?.postMessage({ kind: "want", tab: this.#tab, jobs, types: this.#settings.types });
  }

  #tell(message) {
    this.#channel?.postMessage(message);
    this.#hear(message);
  }

  #hear(message) {
    const { kind, tab, jobs, types, stream, from, event, position } = message;
    if (kind === "who") this.#announce();
    if (kind === "want" && this.#isLeader) {
      this.#wants.set(tab, { jobs, types });
      this.#serve();
    }
    if (kind === "told") this.#cursor = position || this.#cursor;
    for (const followed of [...this.#watches]) {
      if (kind === "opened" && jobs.includes(followed.jobId)) followed.opened(stream, from);
      if (kind === "told") followed.heard(event, position);
      if (kind === "down") followed.lost();
    }
  }

  /** Let the stream be as the tabs want it. It is not closed for one job less. */
  #serve() {
    if (this.#isDown) return this.#tell({ kind: "down" });
    const { jobs, types } = this.#wanted();
    if (!jobs.every((job) => this.#jobs.has(job))) return this.#openSoon(GATHER_MS);
    this.#listen(types);
    if (this.#stream) this.#tell({ kind: "opened", stream: this.#stream, from: this.#cursor, jobs });
  }

  #wanted() {
    const own = { jobs: [...this.#watches].map(({ jobId }) => jobId), types: this.#settings.types };
    const all = [own, ...this.#wants.values()];
    return { jobs: [...new Set(all.flatMap(({ jobs }) => jobs))], types: new Set(all.flatMap(({ types }) => types)) };
  }

  #openSoon(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(), ms);
  }

  /** Open the stream of all wanted jobs, from the last position heard. */
  async #open() {
    this.#close();
    const { jobs, types } = this.#wanted();
    const attempt = this.#attempt;
    const query = new URLSearchParams({ job: jobs.join(",") });
    if (this.#cursor) query.set("last_event_id", this.#cursor);
    this.#jobs = new Set(jobs);
    try {
      const ticket = await this.#http.ticket("/events");
      if (ticket) query.set("ticket", ticket);
    } catch (error) {
      return attempt === this.#attempt ? this.#fail(error.retryAfterMs) : undefined;
    }
    if (attempt !== this.#attempt) return;
    const { EventSource, baseUrl, credentials, hasTickets } = this.#settings;
    const source = new EventSource(`${baseUrl}events?${query}`, { withCredentials: credentials === "include" });
    this.#source = source;
    source.onopen = () => this.#opened();
    source.onerror = () => {
      const wasOpen = this.#stream !== null;
      this.#stream = null;
      if (!hasTickets && source.readyState !== EventSource.CLOSED) return; // it comes back by itself, with its cursor
      this.#close();
      if (hasTickets && wasOpen) this.#openSoon(backoff(this.retryMs, 0)); // a ticket is good once
      else this.#fail();
    };
    this.#listen(types);
  }

  #listen(types) {
    if (!this.#source) return;
    for (const type of [...TYPES, ...types].filter((name) => !this.#listening.has(name))) {
      this.#listening.add(type);
      this.#source.addEventListener(type, ({ data, lastEventId }) => this.#told(JSON.parse(data), lastEventId));
    }
  }

  #opened() {
    this.#isDown = false;
    this.#failures = 0;
    this.#stream = newId();
    // Told even where it is opened anew at once: who was live in the one before may have missed what came between.
    this.#tell({ kind: "opened", stream: this.#stream, from: this.#cursor, jobs: [...this.#jobs] });
    this.#serve();
  }

  #told(event, position) {
    if (event.type === "stream.bye") return;
    if (event.type !== "stream.reset") return this.#tell({ kind: "told", event, position });
    this.#cursor = position; // each watch asks for what it missed, as far as its job's log reaches
    this.#opened();
  }

  /** No stream now: poll, and try again later. */
  #fail(leastMs = 0) {
    this.#close();
    this.#isDown = true;
    this.#tell({ kind: "down" });
    this.#openSoon(Math.max(backoff(this.retryMs, this.#failures++), leastMs));
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = this.#stream = null;
    this.#attempt += 1;
    this.#jobs.clear();
    this.#listening.clear();
  }
}

/** Requests to one service. */
class Http {
  #settings;

  constructor(settings) {
    this.#settings = settings;
  }

  /** @param {string} method @param {string} path @param {Request} [request] */
  async json(method, path, request = {}) {
    return (await this.#request(method, path, request)).json();
  }

  /** The frames of a job's log after `cursor`; null where that has seen its end. Rejects rather than give a part. */
  async stored(path, cursor, signal) {
    const query = cursor ? `&last_event_id=${encodeURIComponent(cursor)}` : "";
    const response = await this.#request("GET", `${path}/events?follow=false${query}`, { signal });
    if (response.status === 204) return null;
    const frames = framesOf(await response.text());
    if (frames.some(({ event }) => event.type === "stream.bye")) throw new AsyncBGError("the service is stopping");
    return frames;
  }

  /** A ticket for the stream at `path`, where tickets are used. */
  async ticket(path) {
    const { ticket, hasTickets } = this.#settings;
    if (ticket) return ticket(path);
    return hasTickets ? (await this.json("POST", "stream-tickets", { body: { path } })).ticket : null;
  }

  /** @param {string} method @param {string} path @param {Request} request */
  async #request(method, path, { body, headers, signal }) {
    const { baseUrl, apiKey, credentials, fetch } = this.#settings;
    const all = { ...this.#settings.headers, ...headers };
    if (apiKey !== undefined) all.Authorization = `Bearer ${apiKey}`;
    if (body !== undefined) all["Content-Type"] = "application/json";
    let response;
    try {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const request = { method, headers: all, body: text, signal, credentials, cache: "no-store" };
      response = await fetch(baseUrl + path, request);
    } catch (cause) {
      if (signal?.aborted) throw cause;
      const remedy = "is the service running, and may this page reach it?";
      throw new AsyncBGError(`${method} ${baseUrl}${path} got no answer: ${remedy}`, { cause });
    }
    if (response.ok) return response;
    const { status } = response;
    const problem = await response.json().catch(() => null);
    const message = `${method} ${baseUrl}${path} was answered ${status}: ${problem?.detail ?? response.statusText}`;
    const retryAfterMs = Number(response.headers.get("Retry-After")) * 1000 || 0;
    throw new AsyncBGError(message, { status, problem, retryAfterMs });
  }
}

/** The options with their defaults. @param {Options} options */
function settingsOf(options) {
  const { baseUrl = ownUrl(), share = true, apiKey, headers = {}, credentials = "same-origin", types = [] } = options;
  const { ticket, useTickets = apiKey !== undefined, pollMs = 1000, retryMs = 2000, patienceMs = 10_000 } = options;
  const { fetch = (...args) => globalThis.fetch(...args), EventSource = globalThis.EventSource } = options;
  const known = { baseUrl, share, apiKey, headers, credentials, types, ticket, useTickets };
  Object.assign(known, { pollMs, retryMs, patienceMs, fetch, EventSource });
  const unknown = Object.keys(options).find((name) => !(name in known));
  if (unknown) throw new TypeError(`AsyncBG has no option "${unknown}"; it has ${Object.keys(known).join(", ")}`);
  const { href } = new URL(baseUrl.endsWith("/") ? baseUrl : `${baseUrl}/`, globalThis.location?.href);
  return { ...known, baseUrl: href, hasTickets: Boolean(ticket || useTickets) };
}

/** Where this module was loaded from, if that is a service. */
function ownUrl() {
  if (/^https?:/.test(import.meta.url)) return new URL(".", import.meta.url).href;
  const remedy = 'give its URL, new AsyncBG({ baseUrl: "https://…" })';
  throw new TypeError(`this module was not loaded from a service: ${remedy}`);
}

function pathOf(jobId) {
  if (typeof jobId === "string" && jobId) return `jobs/${encodeURIComponent(jobId)}`;
  throw new TypeError(`a job is named by its id, a string, not by ${JSON.stringify(jobId) ?? String(jobId)}`);
}

/** Whether who has had all up to `cursor` has had `position`: <epoch>-<seq>, where the epoch names the database. */
function covers(cursor, position) {
  if (!cursor || !position) return false;
  const [at, wanted] = [cursor.lastIndexOf("-"), position.lastIndexOf("-")];
  const isSameLog = cursor.slice(0, at) === position.slice(0, wanted);
  return isSameLog && Number(cursor.slice(at + 1)) >= Number(position.slice(wanted + 1));
}

/** The later of two positions of one log; of two logs the cursor, which only a reset moves to another. */
function furthest(cursor, position) {
  return !cursor || (position && covers(position, cursor)) ? position || cursor : cursor;
}

/** The frames that carry an event (WHATWG HTML, section 9.2, as this service writes it: one line of data). */
function framesOf(text) {
  const fields = (block) => Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
  const blocks = text.split("\n\n").map(fields);
  return blocks.filter(({ data }) => data).map(({ id, data }) => ({ id, event: JSON.parse(data) }));
}

function isFinal(job) {
  return FINAL.has(`job.${job?.state}`);
}

/** How a job stands, by a stream.reset. */
function standingIn(event, jobId) {
  return event.type === "stream.reset" ? event.data.jobs.find(({ id }) => id === jobId) : undefined;
}

/** Twice as long each time, with jitter: who was thrown out together does not come back together. */
function backoff(ms, tries) {
  return Math.min(ms * 2 ** tries, LONGEST_PAUSE_MS) * (0.5 + Math.random() / 2);
}

async function pause(ms, signal) {
  if (signal.aborted) return;
  const over = new AbortController(); // takes the listener away
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, ms, undefined);
    signal.addEventListener("abort", () => resolve(clearTimeout(timer)), { signal: over.signal });
  });
  over.abort();
}

function newId() {
  return Math.random().toString(36).slice(2);
}

/** Keeps apart who has another key, without writing the key into a name that other scripts see (FNV-1a, 32 bits). */
function digest(text) {
  let hash = 0x811c9dc5;
  for (const letter of text) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
  return hash.toString(16);
}
