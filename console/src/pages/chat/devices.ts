// The cameras and microphones of this browser, as far as it says; none where the page may not use them.
import { signal } from "@preact/signals";

export const cameras = signal(0);
export const microphones = signal(0);

/** Count them again: some browsers name them only once one was allowed. */
export async function countDevices(): Promise<void> {
  try {
    const devices = await navigator.mediaDevices.enumerateDevices();
    cameras.value = devices.filter((each) => each.kind === "videoinput").length;
    microphones.value = devices.filter((each) => each.kind === "audioinput").length;
  } catch {
    cameras.value = microphones.value = 0;
  }
}

/** Look for them from now on. A page that came over plain http from another machine has none. */
export function watchDevices(): () => void {
  const devices = navigator.mediaDevices as MediaDevices | undefined;
  if (!devices?.getUserMedia) return () => {};
  const again = () => void countDevices();
  again();
  devices.addEventListener("devicechange", again);
  return () => devices.removeEventListener("devicechange", again);
}
