// Engines beyond ours that this server starts: replicas, their states, deaths and logs, and what the owner may do.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../../api/client";
import { me } from "../../api/me";
import { Empty, Failed, Page, Waiting } from "../../parts/page";
import { texts } from "../../texts";
import { DeploymentCard } from "./card";
import "./deployments.css";
import type { Deployment } from "./rows";

const words = texts.deployments;
const EVERY_MS = 3000; // a replica loads weights for minutes

export default function Deployments() {
  const rows = useSignal<Deployment[] | null>(null);
  const error = useSignal<unknown>(null);
  const allowed = me.value === null ? null : me.value.can.includes("load");
  useEffect(() => {
    if (!allowed) return;
    const stop = new AbortController();
    const look = async () => {
      if (document.hidden) return;
      try {
        rows.value = (await get<{ deployments: Deployment[] }>("/admin/deployments", stop.signal)).deployments;
        error.value = null;
      } catch (e) {
        if (!stop.signal.aborted) error.value = e;
      }
    };
    void look();
    const timer = setInterval(() => void look(), EVERY_MS);
    return () => {
      stop.abort();
      clearInterval(timer);
    };
  }, [allowed]);
  return (
    <Page title={texts.pages.deployments} lead={words.lead}>
      {allowed === false ? (
        <Empty icon="lock" title={words.owners}>
          <p>{words.ownersText}</p>
          <code>freehold open</code>
        </Empty>
      ) : rows.value === null ? (
        error.value ? (
          <Failed error={error.value} />
        ) : (
          <Waiting />
        )
      ) : rows.value.length === 0 ? (
        <Empty icon="deployments" title={words.none}>
          <p>{words.noneText}</p>
          <code>freehold deploy --help</code>
        </Empty>
      ) : (
        rows.value.map((row) => <DeploymentCard key={row.name} row={row} />)
      )}
    </Page>
  );
}
