import { texts } from "../../texts";

export default function Usage() {
  return <h1>{texts.pages.usage}</h1>;
}
