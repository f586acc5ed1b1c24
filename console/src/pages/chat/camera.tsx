// The camera: one picture of what it shows. The browser asks whether it may; the camera is off once the dialog is closed.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Button } from "../../parts/button";
import { Dialog } from "../../parts/dialog";
import { texts } from "../../texts";
import { cameras, countDevices } from "./devices";

const words = texts.chat.pictures;
const QUALITY = 0.92;

export function Camera({ take, close }: { take: (file: File) => void; close: () => void }) {
  const video = useRef<HTMLVideoElement>(null);
  const front = useSignal(false);
  const state = useSignal<"asking" | "on" | "refused">("asking");

  useEffect(() => {
    let gone = false;
    let stream: MediaStream | null = null;
    state.value = "asking";
    const facingMode = front.value ? "user" : "environment";
    const wanted = { video: { facingMode, width: { ideal: 3840 }, height: { ideal: 2160 } } };
    navigator.mediaDevices.getUserMedia(wanted).then(
      (opened) => {
        if (gone) return opened.getTracks().forEach((track) => track.stop());
        stream = opened;
        video.current!.srcObject = opened;
        void video.current!.play().catch(() => {}); // the dialog was closed meanwhile
        void countDevices(); // some browsers name the cameras only once one was allowed
      },
      () => !gone && (state.value = "refused"),
    );
    return () => {
      gone = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, [front.value]);

  async function shoot(): Promise<void> {
    const seen = video.current!;
    const canvas = document.createElement("canvas");
    canvas.width = seen.videoWidth;
    canvas.height = seen.videoHeight;
    canvas.getContext("2d")!.drawImage(seen, 0, 0);
    const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    if (blob) take(new File([blob], words.cameraFile, { type: "image/jpeg" }));
    close();
  }

  return (
    <Dialog
      title={words.camera}
      onClose={close}
      wide
      actions={
        <>
          {cameras.value > 1 && (
            <Button icon="again" onClick={() => (front.value = !front.value)}>
              {words.otherCamera}
            </Button>
          )}
          <Button kind="primary" icon="camera" disabled={state.value !== "on"} data-autofocus onClick={() => void shoot()}>
            {words.shoot}
          </Button>
        </>
      }
    >
      <div class="viewfinder">
        <video
          ref={video}
          playsInline
          muted
          aria-label={words.viewfinder}
          hidden={state.value !== "on"}
          onLoadedData={() => (state.value = "on")} // before, it has no size
        />
        {state.value !== "on" && <p role="status">{state.value === "asking" ? words.askingCamera : words.noCamera}</p>}
      </div>
    </Dialog>
  );
}
