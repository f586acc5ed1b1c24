import { texts } from "../../texts";

export default function Engine() {
  return <h1>{texts.pages.engine}</h1>;
}
