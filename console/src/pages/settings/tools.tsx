// Servers of tools, what they offer, and what was allowed for good. All of it is a server's own words: shown, never obeyed.
// Servers are configured by `freehold mcp` alone; this page starts one to look, and takes permissions back.
import { useSignal } from "@preact/signals";
import { useId } from "preact/hooks";
import { del, post } from "../../api/client";
import { me } from "../../api/me";
import { Button } from "../../parts/button";
import { useLoaded } from "../../parts/loaded";
import { notifyError } from "../../parts/notice";
import { Loaded } from "../../parts/page";
import { Table, type Column } from "../../parts/table";
import { Plain, Verbatim } from "../../text";
import { texts } from "../../texts";

const words = texts.settings.tools;

interface OfferedTool {
  name: string;
  description: string;
  annotations: Record<string, unknown>;
  digest: string;
}

interface ToolServerRow {
  name: string;
  state: "running" | "idle" | "failed";
  trouble: string;
  tools: OfferedTool[] | null;
  left_out: string[];
  where?: string;
}

interface StandingPermission {
  digest: string;
  server: string;
  tool: string;
  scope: "chat" | "always";
  chat: string;
  at: number;
}

interface ToolFacts {
  servers: ToolServerRow[];
  permissions: StandingPermission[];
}

export function Tools() {
  const id = useId();
  if (!me.value!.can.includes("tools")) return null;
  return (
    <section class="card" aria-labelledby={id}>
      <h2 id={id}>{words.title}</h2>
      <p>{words.lead}</p>
      <Listed />
    </section>
  );
}

function Listed() {
  const found = useLoaded<ToolFacts>("/console/api/tools");
  return (
    <Loaded of={found}>
      {({ servers, permissions }) => (
        <>
          {servers.length === 0 && (
            <p>
              {words.none} <code>freehold mcp add</code>
            </p>
          )}
          {servers.map((server) => (
            <Server key={server.name} server={server} changed={found.again} />
          ))}
          {permissions.length > 0 && (
            <Table
              caption={words.permissions}
              columns={columns(found.again)}
              rows={permissions}
              rowKey={(row) => row.digest + row.chat}
            />
          )}
        </>
      )}
    </Loaded>
  );
}

function Server({ server, changed }: { server: ToolServerRow; changed: () => void }) {
  const busy = useSignal(false);
  const look = () => {
    busy.value = true;
    post(`/console/api/tools/${encodeURIComponent(server.name)}/try`)
      .then(changed, notifyError)
      .finally(() => (busy.value = false));
  };
  return (
    <div class="tool-server">
      <h3>
        {server.name} <small>{words.states[server.state]}</small>
      </h3>
      {server.where && (
        <p>
          <Verbatim text={server.where} code />
        </p>
      )}
      {server.trouble && (
        <p role="alert">
          <Verbatim text={server.trouble} />
        </p>
      )}
      {server.tools && (
        <ul>
          {server.tools.map((tool) => (
            <li key={tool.digest}>
              <code>
                <Plain text={tool.name} />
              </code>
              <Verbatim text={tool.description.slice(0, 300)} />
            </li>
          ))}
        </ul>
      )}
      {server.left_out.map((sentence) => (
        <p key={sentence}>
          <Verbatim text={sentence} />
        </p>
      ))}
      <Button busy={busy.value} onClick={look}>
        {words.look(server.name)}
      </Button>
    </div>
  );
}

function columns(changed: () => void): Column<StandingPermission>[] {
  const revoke = (row: StandingPermission) =>
    del(`/console/api/tools/permissions/${row.digest}`).then(changed, notifyError);
  return [
    { key: "server", title: words.server, cell: (row) => row.server },
    { key: "tool", title: words.tool, cell: (row) => <Plain text={row.tool} /> },
    { key: "scope", title: words.scope, cell: (row) => words.scopes[row.scope] },
    { key: "at", title: words.since, cell: (row) => new Date(row.at * 1000).toLocaleDateString() },
    { key: "revoke", title: words.revoke, title_hidden: true, cell: (row) => <Button onClick={() => revoke(row)}>{words.revoke}</Button> },
  ];
}
