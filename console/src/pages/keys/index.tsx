import { texts } from "../../texts";

export default function Keys() {
  return <h1>{texts.pages.keys}</h1>;
}
