import { texts } from "../../texts";

export default function Runs() {
  return <h1>{texts.pages.runs}</h1>;
}
