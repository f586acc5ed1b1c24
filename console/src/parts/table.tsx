// A table that sorts by its columns and scrolls in its own box; on a phone each row is a card. Knows no data.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { Icon } from "./icons";

export interface Column<T> {
  key: string;
  title: string;
  cell: (row: T) => ComponentChildren;
  value?: (row: T) => string | number | null; // what it sorts by; without it the column does not sort
  end?: boolean; // numbers stand at the end of their cell
  title_hidden?: boolean; // for a column of buttons
}

interface TableProps<T> {
  caption: string; // for a screen reader
  columns: Column<T>[];
  rows: readonly T[];
  rowKey: (row: T) => string;
  sort?: { key: string; down?: boolean };
  most?: number; // rows drawn, of all that are sorted
}

export function Table<T>({ caption, columns, rows, rowKey, sort, most }: TableProps<T>) {
  const by = useSignal(sort ?? { key: "", down: false });
  const sorted = order(rows, columns.find((c) => c.key === by.value.key)?.value, by.value.down ?? false);
  const turn = (key: string) => {
    by.value = { key, down: by.value.key === key && !by.value.down };
  };
  return (
    <div class="table-box" role="region" aria-label={caption} tabIndex={0}>
      <table class="table" role="table" aria-label={caption}>
        <thead role="rowgroup">
          <tr role="row">
            {columns.map((c) => (
              <th
                key={c.key}
                role="columnheader"
                scope="col"
                class={c.end ? "end" : ""}
                aria-sort={by.value.key === c.key ? (by.value.down ? "descending" : "ascending") : undefined}
              >
                {c.value ? (
                  <button type="button" onClick={() => turn(c.key)}>
                    {c.title}
                    {by.value.key === c.key && <Icon name={by.value.down ? "down" : "up"} size={14} />}
                  </button>
                ) : (
                  <span class={c.title_hidden ? "unseen" : ""}>{c.title}</span>
                )}
              </th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {sorted.slice(0, most).map((row) => (
            <tr key={rowKey(row)} role="row">
              {columns.map((c) => (
                <td key={c.key} role="cell" class={c.end ? "end" : ""} data-label={c.title_hidden ? undefined : c.title}>
                  {c.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Rows without a value come last, whichever way. */
function order<T>(rows: readonly T[], value: Column<T>["value"], down: boolean): readonly T[] {
  if (!value) return rows;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0);
    const way = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -way : way;
  });
}
