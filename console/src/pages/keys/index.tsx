// Keys of this server: a list, making one, revoking one. The secret of a new key is shown once and kept nowhere.
import { useSignal } from "@preact/signals";
import { del } from "../../api/client";
import { me, readMe } from "../../api/me";
import { Button } from "../../parts/button";
import { ask } from "../../parts/dialog";
import { useLoaded } from "../../parts/loaded";
import { notify, notifyError } from "../../parts/notice";
import { whole } from "../../parts/numbers";
import { Empty, Loaded, Page } from "../../parts/page";
import { Table, type Column } from "../../parts/table";
import { texts } from "../../texts";
import { type KeyRow, MakeKey } from "./make";

const words = texts.keys;

export default function Keys() {
  if (!me.value!.can.includes("keys"))
    return (
      <Page title={texts.pages.keys} lead={words.lead}>
        <Empty icon="keys" title={words.owners}>
          <p>{words.ownersText}</p>
          <code>freehold open</code>
        </Empty>
      </Page>
    );
  return <Listed />;
}

function Listed() {
  const found = useLoaded<{ keys: KeyRow[] }>("/console/api/keys");
  const making = useSignal(false);
  const changed = () => {
    found.again();
    readMe().catch(notifyError); // the first key changes what is asked of everyone
  };
  return (
    <Page
      title={texts.pages.keys}
      lead={words.lead}
      actions={
        <Button kind="primary" icon="plus" onClick={() => (making.value = true)}>
          {words.make}
        </Button>
      }
    >
      <Loaded of={found}>
        {({ keys }) =>
          keys.length ? (
            <Table
              caption={words.caption}
              columns={columns(changed)}
              rows={keys}
              rowKey={(row) => row.name}
              sort={{ key: "name" }}
            />
          ) : (
            <Empty icon="keys" title={words.none}>
              <p>{words.noneText}</p>
            </Empty>
          )
        }
      </Loaded>
      {making.value && <MakeKey made={changed} close={() => (making.value = false)} />}
    </Page>
  );
}

function columns(changed: () => void): Column<KeyRow>[] {
  return [
    { key: "name", title: words.name, cell: (row) => row.name, value: (row) => row.name },
    { key: "kind", title: words.kind, cell: (row) => words.kinds[row.kind], value: (row) => row.kind },
    {
      key: "models",
      title: words.models,
      cell: (row) => (row.kind === "admin" ? "–" : row.models.join(", ") || words.allModels),
    },
    { key: "rate", title: words.rate, cell: (row) => row.rate ?? "–" },
    { key: "tokens", title: words.tokens, cell: (row) => row.tokens ?? "–" },
    {
      key: "spent",
      title: words.spent,
      cell: (row) => whole(row.spent_today),
      value: (row) => row.spent_today,
      end: true,
    },
    { key: "created", title: words.created, cell: (row) => row.created.slice(0, 10) || "–", value: (row) => row.created },
    {
      key: "revoke",
      title: words.actions,
      title_hidden: true,
      end: true,
      cell: (row) => (
        <Button kind="quiet" aria-label={words.revokeOf(row.name)} onClick={() => void revoke(row.name, changed)}>
          {words.revoke}
        </Button>
      ),
    },
  ];
}

async function revoke(name: string, changed: () => void): Promise<void> {
  const own = name === me.peek()!.key;
  const text = own ? `${words.revokeText} ${words.revokeOwn}` : words.revokeText;
  if (!(await ask({ title: words.revokeTitle(name), text, action: words.revoke, danger: true }))) return;
  try {
    await del(`/console/api/keys/${encodeURIComponent(name)}`);
    notify({ text: words.revoked(name) });
    changed();
  } catch (e) {
    notifyError(e);
  }
}
