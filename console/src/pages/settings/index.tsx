import { texts } from "../../texts";

export default function Settings() {
  return <h1>{texts.pages.settings}</h1>;
}
