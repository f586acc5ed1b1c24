// The engine at work: streams, queue, latencies, cache, memory and processes, as /metrics counts them. Knows no chat.
import type { LiveState, ModelList } from "../../api/types";
import { Icon } from "../../parts/icons";
import { Meter, Progress } from "../../parts/meter";
import { bytes, duration } from "../../parts/numbers";
import { useKept } from "../../parts/loaded";
import { Empty, Failed, Page, Waiting } from "../../parts/page";
import { texts } from "../../texts";
import "./engine.css";
import { useLive } from "./live";
import { EngineCard } from "./card";
import { Streams } from "./streams";
import { shown } from "../../text/shown";

const words = texts.engine;

export default function Engine() {
  const { state, connected, error, history } = useLive();
  const list = useKept<ModelList>("/console/api/models?held=1", state?.models.length ?? 0);
  const needs = new Map(list.value?.models.map((row) => [row.name, row.needs]));
  return (
    <Page
      title={texts.pages.engine}
      lead={state && words.lead(state.version, duration(Math.max(1, state.at - state.started_at)))}
      actions={state && <Standing connected={connected} />}
    >
      {state ? (
        <>
          <Troubles state={state} />
          <Machine state={state} />
          {state.loading.map((one) => (
            <section key={one.name} class="card loading-model">
              <p>{words.loading(one.name, bytes(one.done), one.total ? bytes(one.total) : "")}</p>
              <Progress label={shown(one.name)} max={one.total} {...(one.total > 0 && { value: one.done })} />
            </section>
          ))}
          {state.models.map((model) => (
            <EngineCard key={model.name} model={model} history={history.get(model.name)} needs={needs.get(model.name) ?? ""} />
          ))}
          {state.models.length === 0 && state.loading.length === 0 && (
            <Empty icon="engine" title={words.none}>
              <p>{words.noneText}</p>
            </Empty>
          )}
          <Streams streams={state.streams} />
        </>
      ) : error ? (
        <Failed error={error} />
      ) : (
        <Waiting />
      )}
    </Page>
  );
}

function Standing({ connected }: { connected: boolean }) {
  return (
    <span class={connected ? "badge good" : "badge warn"} role="status">
      {connected ? words.live : words.waiting}
    </span>
  );
}

function Troubles({ state }: { state: LiveState }) {
  if (!state.troubles.length) return null;
  return (
    <div role="alert">
      <ul class="troubles">
        {state.troubles.map((trouble) => (
          <li key={trouble}>
            <Icon name="warning" size={18} /> {trouble}
          </li>
        ))}
      </ul>
    </div>
  );
}

function Machine({ state }: { state: LiveState }) {
  if (!state.machine) return null;
  const { memory, free } = state.machine;
  const used = words.memoryUsed(bytes(memory - free), bytes(memory));
  return (
    <div class="machine">
      <span>{words.memory}</span>
      <Meter label={words.memory} value={memory - free} max={memory} said={used} tone={free < memory / 10 ? "warn" : "accent"} />
      <span class="dim">{used}</span>
    </div>
  );
}
