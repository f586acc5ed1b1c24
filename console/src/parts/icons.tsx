// A small set of line icons on a grid of 24, drawn in the text's colour. Decoration only: a label beside it says the name.
const PATHS = {
  chat: "M4 5.5h16v11H9.5L5.5 20v-3.5H4z",
  compare: "M4 5h6.5v14H4zM13.5 5H20v14h-6.5z",
  models: "M12 3.5 20 8v8l-8 4.5L4 16V8zM4.3 8.2 12 12.5l7.7-4.3M12 12.5v8",
  engine: "M3 12.5h4l2.5-7 4.5 13 2.5-6H21",
  usage: "M5 20v-6M10 20V9M15 20v-9M20 20V4",
  runs: "M4 4v16h16M7.5 15.5l4-5 3 2.5 5-7",
  deployments: "M4 4.5h16v6H4zM4 13.5h16v6H4zM7.5 7.5h.01M7.5 16.5h.01M11 7.5h5.5M11 16.5h5.5",
  keys: "M8 19a4 4 0 1 1 0-8 4 4 0 0 1 0 8zM11 12.5 19.5 4M16 7.5l3 3M13.5 10l2 2",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.8v4.4M9 14.8v4.4",
  more: "M5.5 12h.01M12 12h.01M18.5 12h.01",
  menu: "M4 6.5h16M4 12h16M4 17.5h16",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  search: "M10.5 17a6.5 6.5 0 1 1 0-13 6.5 6.5 0 0 1 0 13zM15.3 15.3 20 20",
  send: "M12 19.5V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  play: "M8 5.5v13l10.5-6.5z",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  check: "M5 12.5 10 17.5 19.5 7",
  good: "M4 11h3.5v8.5H4zM7.5 11.5 11 4.5c1.6 0 2.5 1 2.5 2.5v3h5.2c1.2 0 2 1 1.7 2.2l-1.3 5.6c-.2 1-1 1.7-2 1.7H7.5",
  poor: "M4 13h3.5V4.5H4zM7.5 12.5l3.5 7c1.6 0 2.5-1 2.5-2.5v-3h5.2c1.2 0 2-1 1.7-2.2l-1.3-5.6c-.2-1-1-1.7-2-1.7H7.5",
  edit: "M4.5 19.5l1-4.5L16 4.5l3.5 3.5L9 18.5zM13.5 7l3.5 3.5",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l1 13h9l1-13M10.3 11v5.5M13.7 11v5.5",
  pin: "M9 4h6l-1 6 3.5 3.5h-11L10 10zM12 13.5V20",
  again: "M19.5 12a7.5 7.5 0 1 1-2.3-5.4M19.5 4v4.5H15",
  undo: "M9 14 4.5 9.5 9 5M4.5 9.5h9a5.5 5.5 0 0 1 0 11H10",
  left: "M14.5 5.5 8 12l6.5 6.5",
  right: "M9.5 5.5 16 12l-6.5 6.5",
  down: "M5.5 9.5 12 16l6.5-6.5",
  up: "M5.5 14.5 12 8l6.5 6.5",
  download: "M12 4v11.5M7 11l5 5 5-5M4.5 20h15",
  upload: "M12 16V4.5M7 9l5-5 5 5M4.5 20h15",
  attach: "M19 11.5l-7.3 7.3a4.6 4.6 0 0 1-6.5-6.5l7.8-7.8a3 3 0 0 1 4.3 4.3l-7.5 7.5a1.5 1.5 0 0 1-2.1-2.1L14 8",
  image: "M4 5h16v14H4zM4.5 16.5l5-5 4.5 4.5 2-2 3.5 3.5M15.5 9h.01",
  camera: "M4 7.5h3.5L9 5h6l1.5 2.5H20v11.5H4zM12 16.5a3.5 3.5 0 1 1 0-7 3.5 3.5 0 0 1 0 7z",
  microphone: "M12 14.5a3 3 0 0 1-3-3v-5a3 3 0 0 1 6 0v5a3 3 0 0 1-3 3zM6 11.5a6 6 0 0 0 12 0M12 17.5v3M8.5 20.5h7",
  sound: "M4 10.5v3M8 7.5v9M12 4v16M16 8v8M20 10.5v3",
  file: "M6 3.5h8l4.5 4.5v12.5H6zM13.5 3.5V8.5h5",
  warning: "M12 4 21 19.5H3zM12 10v4.5M12 17h.01",
  info: "M12 20.5a8.5 8.5 0 1 1 0-17 8.5 8.5 0 0 1 0 17zM12 11v5.5M12 7.8h.01",
  external: "M13.5 4.5h6v6M19.5 4.5 11 13M17 14v5.5H4.5V7H10",
  user: "M12 12a4 4 0 1 1 0-8 4 4 0 0 1 0 8zM4.5 20.5c.8-4 3.7-6 7.5-6s6.7 2 7.5 6",
  logout: "M14 4.5H5v15h9M10 12h10.5M16.5 8l4 4-4 4",
  branch: "M7 4v16M7 14c0-4 10-2 10-7M17 7.5V4",
  receipt: "M6 3.5h12V20.5l-3-2-3 2-3-2-3 2zM9.5 8.5h5M9.5 12.5h5",
  tool: "M14.5 7a4 4 0 0 1 5-2.5L17 7v2h2l2-2.5a4 4 0 0 1-5.5 4.8L8 19a2.1 2.1 0 0 1-3-3l7.7-7.5A4 4 0 0 1 14.5 7z",
  eye: "M2.5 12C5 7.5 8.3 5.5 12 5.5s7 2 9.5 6.5c-2.5 4.5-5.8 6.5-9.5 6.5s-7-2-9.5-6.5zM12 15a3 3 0 1 1 0-6 3 3 0 0 1 0 6z",
  code: "M8.5 7 3.5 12l5 5M15.5 7l5 5-5 5",
  filter: "M4 6h16M7 12h10M10 18h4",
  lock: "M6 11h12v9.5H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  clock: "M12 20.5a8.5 8.5 0 1 1 0-17 8.5 8.5 0 0 1 0 17zM12 7v5.5l3.5 2",
  bolt: "M13 3.5 5.5 13.5H12l-1 7 7.5-10H12z",
  memory: "M6.5 6.5h11v11h-11zM9.5 3v3.5M14.5 3v3.5M9.5 17.5V21M14.5 17.5V21M3 9.5h3.5M3 14.5h3.5M17.5 9.5H21M17.5 14.5H21",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 20 }: { name: IconName; size?: number }) {
  const heavy = name === "more" ? 3 : 1.7;
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path
        d={PATHS[name]}
        fill="none"
        stroke="currentColor"
        stroke-width={heavy}
        stroke-linecap="round"
        stroke-linejoin="round"
      />
    </svg>
  );
}
