// The JSON of /admin/deployments: rows of backends.contract, with the fields that the page shows.
export type ReplicaState = "starting" | "probing" | "ready" | "draining" | "waiting" | "stopped" | "failed";

export interface Replica {
  number: number;
  state: ReplicaState;
  version: string;
  pid: number;
  phase: string;
  since_s: number;
  in_flight: number;
  restarts: number;
  said: string; // the latest death
  memory_bytes: number;
  cpu_s: number;
}

export interface Deployment {
  name: string;
  plan: {
    engine: string;
    version: string;
    command: string[];
    context: number;
    streams: number;
    replicas: number;
    memory_bytes: number;
    decode: { low: number; mid: number; high: number } | null;
    basis: string;
    notes: string[];
    attached: string;
  };
  replicas: Replica[];
  ready: boolean;
  rolling: string;
  requests: number;
  resumed: number;
  retried: number;
  cut: number;
  fallback: string;
}
