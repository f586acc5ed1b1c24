// The models that are here and those of the catalogue. Fit, speed, verdict and quality come from the server as they are.
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { me } from "../../api/me";
import type { ModelList, ModelRow } from "../../api/types";
import { Search, Toggle } from "../../parts/field";
import { Icon } from "../../parts/icons";
import { type Loading, useKept, useLoaded } from "../../parts/loaded";
import { Empty, Loaded, Page } from "../../parts/page";
import { go, place, to } from "../../parts/router";
import { Tabs } from "../../parts/tabs";
import { Button } from "../../parts/button";
import { texts } from "../../texts";
import { changes } from "./actions";
import { ModelActions, ModelTable } from "./list";
import "./models.css";
import { matching, NO_FILTERS, ordered, type Filters } from "./rows";
import { WhyDialog } from "./why";

const words = texts.models;
const AT_ONCE = 60; // rows drawn before more are asked for

export default function Models() {
  const held = useKept<ModelList>("/console/api/models?held=1", changes.value);
  const all = useKept<ModelList>("/console/api/models", changes.value); // which takes seconds the first time
  const newest = useLoaded<ModelList>(all.value?.newer ? "/console/api/models?newest=1" : null, changes.value);
  const both = (all.value?.newer && newest.value) || all.value || held.value;
  return (
    <Page title={texts.pages.models} lead={words.lead}>
      {both ? <Found list={both} catalogue={all} /> : <Loaded of={held}>{() => null}</Loaded>}
    </Page>
  );
}

function Found({ list, catalogue }: { list: ModelList; catalogue: Loading<ModelList> }) {
  const held = list.models.filter((row) => row.held);
  const tab = place.value.query.get("tab") ?? (held.length ? "here" : "catalogue");
  const missing = tab === "catalogue" && catalogue.value === null;
  const filters = useSignal<Filters>(NO_FILTERS);
  const most = useSignal(AT_ONCE);
  const rows = useMemo(
    () => ordered(matching(list.models, { ...filters.value, held: tab === "here" })),
    [list, filters.value, tab],
  );
  const open = list.models.find((row) => row.name === place.value.rest[0]);
  const address = `${to("models")}?tab=${tab}`;
  return (
    <>
      <Doors />
      <Tabs
        label={texts.pages.models}
        open={tab}
        onOpen={(key) => go(`${to("models")}?tab=${key}`, true)}
        tabs={[
          { key: "here", title: words.here, count: held.length },
          {
            key: "catalogue",
            title: words.catalogue,
            ...(catalogue.value && { count: list.models.length - held.length }),
          },
        ]}
      >
        <FilterBar
          filters={filters.value}
          onChange={(changed) => (filters.value = changed)}
          roles={rolesOf(list.models)}
          judged={Boolean(list.purpose)}
        />
        <p class="unseen" role="status">
          {words.found(rows.length)}
        </p>
        {missing ? (
          <Loaded of={catalogue}>{() => null}</Loaded>
        ) : rows.length === 0 ? (
          <Nothing here={tab === "here" && !held.length} />
        ) : (
          <ModelTable key={tab} rows={rows} held={tab === "here"} tab={tab} most={most.value} />
        )}
        {rows.length > most.value && (
          <p class="more-rows">
            <Button onClick={() => (most.value += AT_ONCE)}>{words.showMore(rows.length - most.value)}</Button>
          </p>
        )}
      </Tabs>
      {open && (
        <WhyDialog name={open.name} needs={open.needs} onClose={() => go(address)} actions={<ModelActions row={open} full />} />
      )}
    </>
  );
}

/** What this visitor may not do, with the way out. */
function Doors() {
  const can = me.value?.can ?? [];
  if (!me.value || can.includes("pull")) return null;
  return (
    <p class="hint">
      <Icon name="lock" size={18} />
      <span>
        {words.owner} <code>freehold open</code>
      </span>
    </p>
  );
}

function rolesOf(rows: ModelRow[]): string[] {
  return [...new Set(rows.map((row) => row.role))].filter(Boolean).sort();
}

interface FilterProps {
  filters: Filters;
  onChange: (filters: Filters) => void;
  roles: string[];
  judged: boolean; // whether licences have a verdict
}

function FilterBar({ filters, onChange, roles, judged }: FilterProps) {
  const set = (changed: Partial<Filters>) => onChange({ ...filters, ...changed });
  return (
    <div class="filters">
      <Search label={words.search} value={filters.words} onValue={(value) => set({ words: value })} />
      {judged && (
        <select
          aria-label={words.licenceFilter}
          value={filters.licence}
          onChange={(e) => set({ licence: e.currentTarget.value as Filters["licence"] })}
        >
          <option value="any">{words.anyLicence}</option>
          <option value="usable">{words.usableLicence}</option>
          <option value="allowed">{words.allowedLicence}</option>
        </select>
      )}
      <select aria-label={words.roleFilter} value={filters.role} onChange={(e) => set({ role: e.currentTarget.value })}>
        <option value="">{words.anyRole}</option>
        {roles.map((role) => (
          <option key={role} value={role}>
            {words.roles[role as keyof typeof words.roles] ?? role}
          </option>
        ))}
      </select>
      <Toggle label={words.onlyFitting} on={filters.fits} onChange={(on) => set({ fits: on })} />
    </div>
  );
}

function Nothing({ here }: { here: boolean }) {
  return (
    <Empty icon="models" title={here ? words.noneHere : words.noMatch}>
      <p>{here ? words.noneHereText : words.noMatchText}</p>
    </Empty>
  );
}
