/** Types of asyncbg.js: background jobs of an asyncbg service, followed from a browser. */

export type JobState = "waiting" | "scheduled" | "queued" | "running" | "succeeded" | "failed" | "cancelled";

/** How far a running job is: `current` of `total` (null where nobody knows), counted in `unit`. */
export interface Progress {
  current: number;
  total: number | null;
  message: string;
  unit: string;
}

export interface JobFailure {
  type: string;
  message: string;
}

/** A job as the service shows it. Times are RFC 3339 in UTC; personal arguments are shown as pseudonyms. */
export interface Job {
  id: string;
  task: string;
  queue: string;
  state: JobState;
  owner: string;
  priority: number;
  batch: string;
  tags: string[];
  durable: boolean;
  attempt: number;
  max_attempts: number;
  created_at: string;
  run_at: string;
  started_at: string | null;
  finished_at: string | null;
  progress: Progress | null;
  result: unknown;
  error: JobFailure | null;
  args: Record<string, unknown>;
  links: { self: string; events: string; cancel: string; retry: string };
}

/** What a job is right after it was accepted. */
export interface AcceptedJob {
  id: string;
  task: string;
  state: JobState;
  url: string;
  events_url: string;
}

/** How a job stands, as a `stream.reset` tells it. */
export type JobStanding = Pick<
  Job,
  "id" | "task" | "state" | "batch" | "owner" | "attempt" | "max_attempts" | "progress" | "error"
>;

/** A fact about a job (CloudEvents 1.0 names). The types and their data: docs/events.md. */
export interface JobEvent<Data = Record<string, unknown>> {
  /** `<epoch>-<seq>`, the cursor to resume after; null for what is not stored, such as progress. */
  id: string | null;
  /** `job.started`, `job.progress`, …, or a name that the task chose. */
  type: string;
  time: string;
  /** The id of the job. */
  subject: string | null;
  task?: string;
  batch?: string;
  owner?: string;
  attempt?: number;
  data: Data;
  /** The event was made from the job, which was asked for since no stream could be had. */
  polled?: true;
}

export type ProgressEvent = JobEvent<Progress>;

export interface WatchOptions {
  /** Called with every event, in order. */
  onEvent?: (event: JobEvent) => void;
  onProgress?: (progress: Progress, event: ProgressEvent) => void;
  /** Called once, with `job.succeeded`, `job.failed` or `job.cancelled`. */
  onFinal?: (event: JobEvent) => void;
  /** Called where events are lost: the cursor is of another database, or malformed. `job` is how it stands now. */
  onReset?: (job: JobStanding | undefined, event: JobEvent) => void;
  /** Called once, where following is of no use: there is no such job, or it is not yours. */
  onError?: (error: AsyncBGError) => void;
  /** Ends the watch, as `close()` does. */
  signal?: AbortSignal;
  /** The `id` of the last event that was dealt with; without it the job's story begins with its first event. */
  lastEventId?: string;
}

/**
 * A followed job: `for await (const event of watch)`. Ends after the job's final event. What comes before the iterator
 * is asked is kept for it, unless there are callbacks; of progress only the latest.
 */
export interface Watch extends AsyncIterable<JobEvent> {
  readonly jobId: string;
  /** The final event, or undefined when the watch was closed first. Rejects with AsyncBGError, as the iterator does. */
  readonly done: Promise<JobEvent | undefined>;
  /** Aborted when the watch is over, for whatever reason. */
  readonly ended: AbortSignal;
  close(): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<JobEvent>;
}

export interface Options {
  /** Where the service or the router is: `https://example.com/bg/`. Default: where this module was loaded from. */
  baseUrl?: string;
  /** One EventSource for all tabs of the browser; false: one for each. A word keeps those apart that have another. */
  share?: boolean | string;
  /** Sent as `Authorization: Bearer …`; streams are then opened with tickets. */
  apiKey?: string;
  /** Sent with every request but the stream's. */
  headers?: Record<string, string>;
  /** "include": send cookies to another origin too. */
  credentials?: "same-origin" | "include" | "omit";
  /** Event types of your own tasks that the stream is to hand on: an EventSource takes only those it knows of. */
  types?: string[];
  /** Open each stream with a ticket from `POST /stream-tickets`. */
  useTickets?: boolean;
  /** Gets a ticket for the stream at `path` in a way of your own. */
  ticket?: (path: string) => Promise<string>;
  /** How often a job is asked for while there is no stream. */
  pollMs?: number;
  /** The first pause before something is tried again; it doubles up to a minute. */
  retryMs?: number;
  /** After how long a watch begins to poll while the stream is still being opened. */
  patienceMs?: number;
  fetch?: typeof globalThis.fetch;
  /** A class like the browser's, for where there is none. */
  EventSource?: typeof globalThis.EventSource;
}

export interface SubmitOptions {
  /** The same key with the same body gives the same job. */
  idempotencyKey?: string;
  delayS?: number;
  /** Higher runs first. */
  priority?: number;
  tags?: string[];
  signal?: AbortSignal;
}

export interface ListOptions {
  /** One or more, with commas between. */
  state?: string;
  task?: string;
  tag?: string;
  batch?: string;
  owner?: string;
  limit?: number;
  /** `next` of the page before. */
  cursor?: string | null;
  signal?: AbortSignal;
}

/** What went wrong: `status` is the HTTP status, 0 where there was no answer, `problem` its RFC 9457 document. */
export class AsyncBGError extends Error {
  readonly name: "AsyncBGError";
  readonly status: number;
  readonly problem: Record<string, unknown> | null;
  readonly retryAfterMs: number;
  constructor(
    message: string,
    more?: { status?: number; problem?: object | null; retryAfterMs?: number; cause?: unknown },
  );
}

/** One asyncbg service: submits, looks at, changes and follows jobs. */
export class AsyncBG {
  readonly baseUrl: string;
  constructor(options?: Options);
  /** Follow a job to its end. Throws TypeError where `jobId` is none. */
  watch(jobId: string, options?: WatchOptions): Watch;
  /** Run a registered task; the job is on disk when this resolves. */
  submit(task: string, args?: Record<string, unknown>, options?: SubmitOptions): Promise<AcceptedJob>;
  get(jobId: string, options?: { signal?: AbortSignal }): Promise<Job>;
  /** The job when it is final; rejects when `timeoutMs` is over first. */
  wait(jobId: string, options?: { timeoutMs?: number; signal?: AbortSignal }): Promise<Job>;
  cancel(jobId: string, options?: { reason?: string; signal?: AbortSignal }): Promise<Job>;
  /** Run a final job again. */
  retry(jobId: string, options?: { signal?: AbortSignal }): Promise<Job>;
  /** A page of jobs, newest first; `next` is the `cursor` of the page after, null on the last one. */
  list(options?: ListOptions): Promise<{ items: Job[]; next: string | null }>;
  /** Close all watches. */
  close(): void;
}

/** Follow a job of the service that this module was loaded from. */
export function watch(jobId: string, options?: WatchOptions): Watch;
