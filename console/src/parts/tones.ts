// Which colour a speed has: green for what can be read while it is written.
import type { Pace } from "../api/types";

export const PACE_TONES: Record<Pace, "good" | "warn" | "bad"> = { fast: "good", readable: "good", slow: "warn", unusable: "bad" };
