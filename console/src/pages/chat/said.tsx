export function Text({ source }: { source: string; open: boolean }) {
  return <div style={{ whiteSpace: "pre-wrap" }}>{source}</div>;
}
export const shown = (text: string) => text;
