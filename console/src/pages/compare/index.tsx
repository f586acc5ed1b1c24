import { texts } from "../../texts";

export default function Compare() {
  return <h1>{texts.pages.compare}</h1>;
}
