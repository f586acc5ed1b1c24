import { texts } from "../../texts";

export default function Models() {
  return <h1>{texts.pages.models}</h1>;
}
