// One question to several models: a chat whose user message has an answer a model, all with one seed. Starts and follows
// the runs, and asks the server where two answers differ. Draws nothing.
import { batch, signal } from "@preact/signals";
import { ApiError, get, post, hintOnce } from "../../api/client";
import { follow } from "../../api/events";
import type { RunEvent, StartedRun } from "../../api/run";
import type { Card, Difference, Leaf, Message, OpenedChat, Receipt } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { connected, reach } from "../chat/link";

export interface Column {
  answer: string; // id of its message
  model: string;
  run: string; // "" once it has ended
  text: string;
  thinking: string;
  state: Message["state"];
  receipt: Receipt | null;
  wait: string; // why nothing comes yet; "" once it does
  error: string;
}

export interface Round {
  user: Message;
  columns: Column[];
}

export interface Comparison {
  chat: string; // "" before the first question
  seed: number;
  rounds: Round[]; // oldest first
}

export const NONE: Comparison = { chat: "", seed: 1, rounds: [] };
export const now = signal<Comparison>(NONE);
/** By the ids of both answers. */
export const differences = signal<ReadonlyMap<string, Difference>>(new Map());

let over = new AbortController(); // of the runs that are followed

export const pair = (a: string, b: string) => `${a} ${b}`;
export const running = (round: Round | undefined) => Boolean(round?.columns.some((column) => column.run));

/** Ask all models one question, each with the same context and seed. `parent`: the answer it continues. */
export async function ask(models: string[], seed: number, content: string, parent: string | null): Promise<string> {
  const chat = now.value.chat || (await create(models[0]!, content, seed));
  const asked = { parent, message: { content }, model: models[0], settings: { sampling: { seed } } };
  const { user, answer, run } = await reach(post<StartedRun>(`/console/api/chats/${chat}/runs`, asked));
  const others = await answersTo(user!.id, chat, models.slice(1), seed);
  begin(chat, seed, { user: user!, columns: [column(answer, run), ...others] });
  return chat;
}

/** Ask them a question that the chat has already: another answer to it from each. */
export async function askAgain(models: string[], seed: number, user: Message): Promise<void> {
  const { chat } = now.value;
  const columns = await answersTo(user.id, chat, models, seed);
  if (columns.length) begin(chat, seed, { user, columns });
}

/** Have each model answer a message of the chat. One that the server refuses is said and left out: the others run. */
async function answersTo(parent: string, chat: string, models: string[], seed: number): Promise<Column[]> {
  const columns: Column[] = [];
  for (const model of models)
    try {
      const asked = { parent, model, settings: { sampling: { seed } } };
      const { run, answer } = await reach(post<StartedRun>(`/console/api/chats/${chat}/runs`, asked));
      columns.push(column(answer, run));
    } catch (e) {
      notifyError(e);
    }
  return columns;
}

function begin(chat: string, seed: number, round: Round): void {
  const others = now.value.rounds.filter((other) => other.user.id !== round.user.id);
  now.value = { chat, seed, rounds: [...others, round] };
  for (const each of round.columns) void attend(each);
}

async function create(model: string, content: string, seed: number): Promise<string> {
  const title = content.trim().replace(/\s+/g, " ").slice(0, 60);
  const { id } = await post<Card>("/console/api/chats", { model, title });
  now.value = { ...now.value, chat: id, seed }; // a question that is refused is asked again in the same chat
  return id;
}

export async function stop(round: Round): Promise<void> {
  await Promise.all(
    round.columns.filter((one) => one.run).map((one) => post(`/console/api/runs/${one.run}/cancel`)),
  );
}

/** Let go of what is followed: the runs continue on the server. */
export function leave(): void {
  over.abort();
  over = new AbortController();
}

/** Read a comparison, or a chat to compare answers in, and follow what still runs. */
export async function open(chat: string): Promise<void> {
  leave();
  const { tree, leaf, messages, running: runs } = await get<OpenedChat>(`/console/api/chats/${chat}?last=1`);
  const users = branch(tree, leaf ?? messages.at(-1)?.id ?? null).filter(([, , role]) => role === "user");
  const answers = users.map(([id]) => tree.filter(([, parent, role]) => parent === id && role === "assistant").slice(-4));
  const ids = users.flatMap(([id], i) => [id, ...answers[i]!.map(([answer]) => answer)]).slice(-200);
  const found = ids.length ? await get<{ messages: Message[] }>(`/console/api/chats/${chat}/messages?ids=${ids.join(",")}`) : { messages: [] };
  const by = new Map(found.messages.map((message) => [message.id, message]));
  const rounds = users.flatMap(([id], i) => {
    const user = by.get(id);
    const columns = answers[i]!.flatMap(([answer]) => (by.has(answer) ? [column(by.get(answer)!, "")] : []));
    return user && columns.length ? [{ user, columns }] : [];
  });
  const seeds = rounds.at(-1)?.columns.map((one) => one.receipt?.sampling.seed) ?? [];
  now.value = { chat, seed: (seeds.find((seed) => typeof seed === "number") as number) ?? NONE.seed, rounds };
  for (const run of runs) void attendUnknown(run);
  for (const one of rounds) void compare(one);
}

/** From the root to a leaf. */
function branch(tree: Leaf[], leaf: string | null): Leaf[] {
  const by = new Map(tree.map((each) => [each[0], each]));
  const path: Leaf[] = [];
  for (let at = leaf; at !== null && by.has(at); at = by.get(at)![1]) path.unshift(by.get(at)!);
  return path;
}

function column(message: Message, run: string): Column {
  return {
    answer: message.id,
    model: message.model,
    run,
    text: message.content,
    thinking: message.thinking,
    state: message.state,
    receipt: message.receipt,
    wait: "",
    error: "",
  };
}

/** Follow a run that a chat had when it was opened: its first event names its answer. */
async function attendUnknown(run: string): Promise<void> {
  let known: Column | undefined;
  const signal = over.signal;
  await follow(run, 0, (event) => {
    if (event.t === "begin" && !known) {
      known = now.value.rounds.flatMap((round) => round.columns).find((each) => each.answer === event.answer);
      if (known) change(known.answer, { run });
    }
    if (known) take(known.answer, event);
  }, connected, signal).catch(() => {});
}

async function attend(one: Column): Promise<void> {
  try {
    await follow(one.run, 0, (event) => take(one.answer, event), connected, over.signal);
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    change(one.answer, { run: "", state: "lost", error: e.message });
  }
}

function take(answer: string, event: RunEvent): void {
  const held = find(answer);
  if (!held) return;
  if (event.t === "text") change(answer, { text: held.text.slice(0, event.at) + event.text, wait: "" });
  else if (event.t === "thinking") change(answer, { thinking: held.thinking.slice(0, event.at) + event.text, wait: "" });
  else if (event.t === "wait") change(answer, { wait: event.why });
  else if (event.t === "end") end(answer, event);
}

function end(answer: string, event: Extract<RunEvent, { t: "end" }>): void {
  const whole = event.finish === "stop" || event.finish === "tool_calls";
  const state = whole ? "whole" : (event.finish as Message["state"]);
  const said = event.error && hintOnce(event.error);
  const error = said ? [said.message, said.hint].filter(Boolean).join(". ") : "";
  change(answer, { run: "", state, receipt: event.receipt, wait: "", error });
  const round = now.value.rounds.find((each) => each.columns.some((one) => one.answer === answer));
  if (round) void compare(round);
}

function find(answer: string): Column | undefined {
  return now.value.rounds.flatMap((round) => round.columns).find((one) => one.answer === answer);
}

function change(answer: string, changed: Partial<Column>): void {
  const update = (one: Column) => (one.answer === answer ? { ...one, ...changed } : one);
  const rounds = now.value.rounds.map((round) =>
    round.columns.some((one) => one.answer === answer) ? { ...round, columns: round.columns.map(update) } : round,
  );
  batch(() => (now.value = { ...now.value, rounds }));
}

/** Ask where the first answer and each other one differ, once both have ended. */
async function compare(round: Round): Promise<void> {
  const [first, ...others] = round.columns;
  if (!first || !ended(first)) return;
  for (const other of others.filter(ended)) {
    const key = pair(first.answer, other.answer);
    if (differences.value.has(key)) continue;
    const query = new URLSearchParams({ a: first.answer, b: other.answer });
    try {
      const found = await get<Difference>(`/console/api/chats/${now.value.chat}/difference?${query}`);
      differences.value = new Map(differences.value).set(key, found);
    } catch (e) {
      if (!(e instanceof ApiError)) throw e; // an answer that failed is compared with nothing
    }
  }
}

const ended = (one: Column) => !one.run && (one.state === "whole" || one.state === "length" || one.state === "stopped");
