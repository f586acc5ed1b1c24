// What this browser keeps of ours: how much it is, and forgetting it. Knows our names in storage and nothing of what they mean.

const ours = (name: string) => name.startsWith("freehold/") || name.startsWith("freehold.");

function names(): string[] {
  try {
    return Object.keys(localStorage).filter(ours);
  } catch {
    return []; // storage is refused in this browser
  }
}

/** Bytes and entries of ours; a character takes two. */
export function keptHere(): { bytes: number; entries: number } {
  const found = names();
  const bytes = found.reduce((sum, name) => sum + 2 * (name.length + (localStorage.getItem(name) ?? "").length), 0);
  return { bytes, entries: found.length };
}

/** Forget all of it, attachments of drafts too. */
export async function forgetAll(): Promise<void> {
  for (const name of names()) localStorage.removeItem(name);
  const databases = await indexedDB.databases();
  for (const { name } of databases) if (name === "freehold") await emptied(name);
}

/** Empty each store; deleting the database would wait for other tabs. */
function emptied(name: string): Promise<void> {
  return new Promise((done, failed) => {
    const asked = indexedDB.open(name);
    asked.onerror = () => failed(asked.error);
    asked.onsuccess = () => {
      const database = asked.result;
      const stores = [...database.objectStoreNames];
      if (!stores.length) return (database.close(), done());
      const step = database.transaction(stores, "readwrite");
      for (const store of stores) step.objectStore(store).clear();
      step.oncomplete = () => (database.close(), done());
      step.onerror = () => failed(step.error);
    };
  });
}
