// A chat's messages as a tree: branches, versions beside a message, the end of a branch. Knows ids; knows no text.
import type { Leaf, Message, Role } from "../../api/types";

export interface Node {
  id: string;
  parent: string | null;
  role: Role;
  chars: number;
  children: string[];
}

export interface Tree {
  nodes: ReadonlyMap<string, Node>;
  roots: readonly string[];
}

export const EMPTY: Tree = { nodes: new Map(), roots: [] };

export function treeOf(leaves: readonly Leaf[]): Tree {
  const nodes = new Map<string, Node>();
  const roots: string[] = [];
  for (const [id, parent, role, chars] of leaves) {
    nodes.set(id, { id, parent, role, chars, children: [] });
    const above = parent === null ? undefined : nodes.get(parent);
    if (above) above.children.push(id);
    else roots.push(id);
  }
  return { nodes, roots };
}

/** The tree with one message more. */
export function grown(tree: Tree, { id, parent, role, content }: Message): Tree {
  if (tree.nodes.has(id)) return tree;
  const nodes = new Map(tree.nodes);
  nodes.set(id, { id, parent, role, chars: content.length, children: [] });
  const above = parent === null ? undefined : nodes.get(parent);
  if (!above) return { nodes, roots: [...tree.roots, id] };
  nodes.set(above.id, { ...above, children: [...above.children, id] });
  return { nodes, roots: tree.roots };
}

/** Ids from the root to `leaf`. */
export function branchOf(tree: Tree, leaf: string | null): string[] {
  const ids: string[] = [];
  for (let node = leaf === null ? undefined : tree.nodes.get(leaf); node; ) {
    ids.push(node.id);
    node = node.parent === null ? undefined : tree.nodes.get(node.parent);
  }
  return ids.reverse();
}

/** A message and those that stand in its place, oldest first. */
export function versions(tree: Tree, id: string): readonly string[] {
  const parent = tree.nodes.get(id)?.parent ?? null;
  return parent === null ? tree.roots : (tree.nodes.get(parent)?.children ?? [id]);
}

/** The end of the newest branch through a message. */
export function endBelow(tree: Tree, id: string): string {
  for (;;) {
    const below = tree.nodes.get(id)?.children.at(-1);
    if (below === undefined) return id;
    id = below;
  }
}
