import { texts } from "../../texts";

export function Chat() {
  return <h1>{texts.pages.chat}</h1>;
}
